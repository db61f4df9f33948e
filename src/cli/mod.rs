//! The command line: one file per subcommand.
//!
//! Commands that explain are clients of a server ([`connection`]). [`doctor`] uses the engine directly, and [`import`]
//! models: they work on files without a server.

mod answer;
mod bench;
mod capacity;
mod connection;
mod credential_args;
mod device_args;
mod doctor;
mod explain;
mod failure;
mod health;
mod import;
mod models;
mod no_models;
mod options;
mod scene;
mod serve;
mod source;
mod stream;
mod summary;
mod terminal;
mod trace;

use std::io::Write as _;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::build_facts;
use crate::process;
use crate::telemetry::log::{self, LogFormat};
use failure::{EXIT_CODES, Failure};

/// The first lines of `camlens --help`: commands to start with.
const FIRST_COMMANDS: &str = "\
First commands:
  camlens explain photo.jpg --models builtin:identity     needs no model and no server
  camlens explain photo.jpg --models models --out out     pictures of what your model looks at
  camlens serve --models models                           a server on 127.0.0.1:8033";

/// Explains live what an image model looks at: Guided Grad-CAM for streamed frames, over gRPC
#[derive(Debug, Parser)]
#[command(
    name = "camlens",
    before_help = FIRST_COMMANDS,
    after_help = EXIT_CODES,
    disable_version_flag = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Print the version
    #[arg(short = 'V', long)]
    version: bool,

    /// With --version: print what was built, too: commit, compiler, libtorch, protocol
    #[arg(long, requires = "version")]
    verbose: bool,

    #[command(flatten)]
    log: LogArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeCommand),
    Explain(explain::ExplainCommand),
    Stream(stream::StreamCommand),
    Trace(trace::TraceCommand),
    Bench(bench::BenchCommand),
    Capacity(capacity::CapacityCommand),
    Models(models::ModelsCommand),
    Import(import::ImportCommand),
    Doctor(doctor::DoctorCommand),
    Health(health::HealthCommand),
}

#[derive(Debug, Args)]
struct LogArgs {
    /// Filter of the log on standard error: a level (off, error, warn, info, debug, trace) or TARGET=LEVEL,… [default:
    /// info for serve, otherwise warn]
    #[arg(long, env = "CAMLENS_LOG", value_name = "FILTER", global = true, help_heading = "Log")]
    log: Option<String>,

    /// Format of the log
    #[arg(
        long,
        env = "CAMLENS_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        global = true,
        help_heading = "Log"
    )]
    log_format: LogFormatName,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormatName {
    Text,
    Json,
}

impl LogArgs {
    /// Installs the log; `default` is the filter when none is given.
    fn install(&self, default: &str) -> Result<(), Failure> {
        let format = match self.log_format {
            LogFormatName::Text => LogFormat::Text,
            LogFormatName::Json => LogFormat::Json,
        };
        log::install(self.log.as_deref().unwrap_or(default), format).map_err(|error| Failure::usage(error.to_string()))
    }
}

impl Command {
    /// A server logs what it does. Other commands print their results, so only warnings are logged.
    fn default_log(&self) -> &'static str {
        match self {
            Command::Serve(_) => "info",
            _ => "warn",
        }
    }

    fn run(self) -> Result<(), Failure> {
        match self {
            Command::Serve(command) => command.run(),
            Command::Explain(command) => command.run(),
            Command::Stream(command) => command.run(),
            Command::Trace(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Capacity(command) => command.run(),
            Command::Models(command) => command.run(),
            Command::Import(command) => command.run(),
            Command::Doctor(command) => command.run(),
            Command::Health(command) => command.run(),
        }
    }
}

/// Parses the arguments, runs the command and ends the process with its exit code.
pub fn main() -> ! {
    let Cli { version, verbose, log, command } = Cli::parse();
    let run = || match command {
        _ if version => print_version(verbose),
        Some(command) => {
            log.install(command.default_log())?;
            crate::torch::check_max_cpu_isa().map_err(Failure::usage)?;
            command.run()
        }
        None => Err(Failure::usage("a command is missing; `camlens --help` lists them")),
    };
    let code = match run() {
        Ok(()) => 0,
        Err(failure) => failure.report(terminal::colours_on_stderr()),
    };
    // Threads may still run in libtorch: after a second signal, or a signal while the models load.
    crate::torch::cuda::close();
    process::quick_exit(code)
}

/// `camlens 1.2.3`, and a line for each of the other facts.
fn print_version(with_facts: bool) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "camlens {}", build_facts::VERSION)?;
    for (name, value) in build_facts::facts().into_iter().filter(|(name, _)| with_facts && *name != "version") {
        writeln!(stdout, "{}: {value}", name.replace('_', " "))?;
    }
    Ok(())
}

/// The runtime of a client command.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the client: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn each_option(command: &clap::Command, check: &mut dyn FnMut(&str, &clap::Arg)) {
        for argument in command.get_arguments().filter(|a| !a.is_positional() && !is_builtin(a)) {
            check(command.get_name(), argument);
        }
        command.get_subcommands().for_each(|sub| each_option(sub, check));
    }

    fn is_builtin(argument: &clap::Arg) -> bool {
        matches!(argument.get_id().as_str(), "help" | "version" | "verbose")
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_an_environment_variable_named_after_it() {
        let mut count = 0;
        each_option(&Cli::command(), &mut |command, option| {
            let long = option.get_long().expect("options have a long name");
            let variable = format!("CAMLENS_{}", long.replace('-', "_").to_uppercase());
            let found = option.get_env().and_then(|name| name.to_str());
            assert_eq!(found, Some(variable.as_str()), "{command} --{long}");
            count += 1;
        });
        assert!(count > 20, "{count} options were checked");
    }

    #[test]
    fn every_option_and_command_has_help() {
        each_option(&Cli::command(), &mut |command, option| {
            assert!(option.get_help().is_some(), "{command} --{}", option.get_id());
        });
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("camlens "), "{} has no example", command.get_name());
        }
    }
}
