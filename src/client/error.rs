//! Why a client cannot do what it was asked.

use tonic::Status;

use super::address::Address;
use super::trouble::Trouble;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A setting cannot be used: a file that cannot be read, a name that no certificate can have, …
    #[error("{problem}")]
    Setting { problem: String },
    /// This machine's TLS library cannot be set up.
    #[error("cannot speak TLS: {cause}")]
    Tls { cause: String },
    /// Nobody answers at the address.
    #[error("no server at {address}: {cause}")]
    Unreachable { address: Address, cause: String },
    /// A server answers, but the connection cannot be used.
    #[error("cannot use the server at {address}: {trouble}")]
    Unusable { address: Address, trouble: Trouble },
    /// The server ended a call. `asked` says which, as in "open the stream".
    #[error("cannot {asked}: {}", status.message())]
    Status { asked: &'static str, status: Box<Status> },
}

impl ClientError {
    pub(super) fn setting(problem: impl Into<String>) -> Self {
        ClientError::Setting { problem: problem.into() }
    }
}
