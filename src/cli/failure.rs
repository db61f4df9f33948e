//! The failure of a command: a sentence, an optional hint and an exit code.

use std::error::Error;
use std::fmt;
use std::io;

use tonic::{Code, Status};

use crate::client::{ClientError, Trouble, find_trouble};
use crate::telemetry::status_name;

/// The exit codes. Clap's own usage errors exit with 2 as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command failed.
    Failed = 1,
    /// The arguments or a request are invalid.
    Usage = 2,
    /// The server cannot be reached, or is not ready.
    Unavailable = 3,
    /// The command finished, but some frames or checks failed.
    Partly = 4,
}

/// The table in `camlens --help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  invalid usage
  3  the server cannot be reached or is not ready
  4  finished, but some frames or checks failed";

/// A failure as it is printed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    sentence: String,
    hint: Option<String>,
    /// The reader of standard output has closed it: nothing is printed.
    silent: bool,
}

impl Failure {
    pub fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Failure { exit, sentence: sentence.into(), hint: None, silent: false }
    }

    pub fn failed(sentence: impl Into<String>) -> Self {
        Failure::new(Exit::Failed, sentence)
    }

    pub fn usage(sentence: impl Into<String>) -> Self {
        Failure::new(Exit::Usage, sentence)
    }

    /// Adds a hint: how to solve the problem.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The failure for a status of the server. `asked` names the request, as in "explain coffee.png".
    pub fn from_status(asked: &str, status: &Status) -> Self {
        if let Some(trouble) = status.source().and_then(find_trouble) {
            return Failure::new(Exit::Unavailable, format!("cannot {asked}: the server cannot be used, {trouble}"))
                .hint(remedy(trouble));
        }
        let exit = match status.code() {
            Code::Unavailable => Exit::Unavailable,
            Code::InvalidArgument | Code::NotFound | Code::OutOfRange => Exit::Usage,
            _ => Exit::Failed,
        };
        let code = status_name(status.code() as i32);
        let failure = Failure::new(exit, format!("cannot {asked}: {} ({code})", one_line(status.message())));
        if status.code() == Code::Unauthenticated {
            return failure.hint("--token-file names a file with a token");
        }
        failure
    }

    /// The failure of an operation on a file or directory. `doing` names it, as in "read".
    pub fn from_io(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Failure::failed(format!("cannot {doing} {}: {error}", path.display()))
    }

    /// The failure with the name of what it is about in front.
    pub fn about(mut self, name: &str) -> Self {
        self.sentence = format!("{name}: {}", self.sentence);
        self
    }

    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the failure to standard error and returns the exit code of the process.
    pub fn report(&self, colours: bool) -> u8 {
        if self.silent {
            return 0;
        }
        let (red, plain) = if colours { ("\u{1b}[1;31m", "\u{1b}[0m") } else { ("", "") };
        // Standard error may be closed as well.
        let mut lines = format!("{red}error:{plain} {}\n", self.sentence);
        if let Some(hint) = &self.hint {
            lines.push_str(&format!("hint: {hint}\n"));
        }
        let _ = io::Write::write_all(&mut io::stderr().lock(), lines.as_bytes());
        self.exit as u8
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// An error of writing to standard output. A closed pipe (`camlens models | head -1`) is not a failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let mut failure = Failure::failed(format!("cannot write the output: {error}"));
        failure.silent = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let sentence = error.to_string();
        match error {
            ClientError::Setting { .. } => Failure::usage(sentence),
            ClientError::Tls { .. } => Failure::failed(sentence),
            ClientError::Unreachable { .. } => Failure::new(Exit::Unavailable, sentence)
                .hint("check that the server is running and that --server names its address"),
            ClientError::Unusable { trouble, .. } => Failure::new(Exit::Unavailable, sentence).hint(remedy(trouble)),
            ClientError::Status { asked, status } => Failure::from_status(asked, &status),
        }
    }
}

/// The hint for a connection that cannot be used.
fn remedy(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::UnknownAuthority => "--tls-ca names the authority that signed it",
        Trouble::OtherName => "--tls-server-name sets the name to expect",
        Trouble::Expired => "the server needs a new certificate",
        Trouble::NotYetValid => "check the clocks of both machines",
        Trouble::RequiresCertificate => "--tls-certificate and --tls-key name a certificate and its key",
        Trouble::RefusesCertificate => {
            "--tls-certificate must name a certificate that is valid and signed by an authority that the server knows"
        }
        Trouble::SpeaksPlaintext => "name it without https://",
        Trouble::SpeaksTls => "name it https://HOST:PORT",
    }
}

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { "the server gave no reason".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_one_sentence_with_its_code() {
        let status =
            Status::invalid_argument("options.targets[0].label: no label `expresso`;\n  did you mean `espresso`?");
        let failure = Failure::from_status("explain coffee.png", &status);
        assert_eq!(
            failure.to_string(),
            "cannot explain coffee.png: options.targets[0].label: no label `expresso`; did you mean `espresso`? \
             (INVALID_ARGUMENT)"
        );
        assert_eq!(failure.exit(), Exit::Usage);
    }

    #[test]
    fn a_closed_pipe_is_not_a_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.report(false), 0);
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.report(false), 1);
    }
}
