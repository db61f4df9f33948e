//! The command line: one file per subcommand.

mod failure;
mod latency;
mod npy;
mod source;
mod tally;
mod terminal;
