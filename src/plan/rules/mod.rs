//! Reverse rules, one file per operator family. Each agrees with its one-node tape.
