//! The errors of a client.

use tonic::Status;

use super::address::Address;
use super::trouble::Trouble;

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
    pub(super) fn setting(problem: impl Into<String>) -> Self {
        ClientError::Setting { problem: problem.into() }
    }
}
