//! Reads certificates, private keys and bearer tokens from files, for the server and its clients.
//!
//! No error quotes a file's content: errors reach logs, and the content may be secret.

mod error;
pub mod pem;
mod token;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use error::CredentialError;
pub use token::{Token, tokens};

/// The largest file that is read, 4 MiB. Certificates, keys and tokens are far smaller, but a path may name any file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads the file at `path`.
///
/// # Errors
/// [`CredentialError::Read`] for a file that cannot be read, [`CredentialError::TooLarge`] beyond 4 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let fail = |source| CredentialError::Read { path: path.to_owned(), source };
    let mut contents = Vec::new();
    let file = File::open(path).map_err(fail)?;
    // One byte more than is allowed shows that the file is too large, whatever size the file system reports.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut contents).map_err(fail)?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        return Err(CredentialError::TooLarge { path: path.to_owned(), bytes: MAX_FILE_BYTES });
    }
    Ok(contents)
}
