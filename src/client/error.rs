//! The errors of a client.

use std::error::Error;

use tonic::{Code, Status};

use super::address::Address;
use super::trouble::{Trouble, find};

/// Why a client's operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A setting is invalid: a file that cannot be read, a name that a certificate cannot have, …
    #[error("{problem}")]
    Setting { problem: String },
    /// This machine's TLS library cannot be set up.
    #[error("cannot set up TLS: {cause}")]
    Tls { cause: String },
    /// No server answers at the address.
    #[error("no server at {address}: {cause}")]
    Unreachable { address: Address, cause: String },
    /// A server answers, but the connection cannot be used.
    #[error("cannot use the server at {address}: {trouble}")]
    Unusable { address: Address, trouble: Trouble },
    /// The server ended a call with a status. `asked` names the call, as in "open the stream".
    #[error("cannot {asked}: {}", status.message())]
    Status { asked: &'static str, status: Box<Status> },
}

impl ClientError {
    /// Whether another try may succeed: no server is there at the moment, or the connection broke.
    pub fn may_pass(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Status { status, .. } => match (status.code(), status.source()) {
                // A connection that TLS or a certificate forbids will not be better the next time.
                (_, Some(cause)) if find(cause).is_some() => false,
                (Code::Unavailable, _) => true,
                // With a cause, the status was not sent by the server: this end's transport made it.
                (Code::Internal | Code::Unknown | Code::Cancelled, cause) => cause.is_some(),
                _ => false,
            },
            ClientError::Setting { .. } | ClientError::Tls { .. } | ClientError::Unusable { .. } => false,
        }
    }

    pub(super) fn setting(problem: impl Into<String>) -> Self {
        ClientError::Setting { problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_the_server_has_sent_is_its_last_word_unless_it_is_unavailable() {
        let status = |status: Status| ClientError::Status { asked: "continue the stream", status: Box::new(status) };
        assert!(status(Status::unavailable("no healthy upstream")).may_pass());
        for last_word in [Status::internal("a bug"), Status::invalid_argument("open"), Status::cancelled("")] {
            assert!(!status(last_word).may_pass());
        }
        let reset: Box<dyn Error + Send + Sync> = std::io::Error::from(std::io::ErrorKind::ConnectionReset).into();
        assert!(status(Status::from_error(reset)).may_pass());
        let mut forbidden = Status::unavailable("");
        forbidden.set_source(std::sync::Arc::new(std::io::Error::other("received fatal alert: UnknownCA")));
        assert!(!status(forbidden).may_pass());
    }
}
