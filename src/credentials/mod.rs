//! Certificates, private keys and bearer tokens in files. The server and its clients read them alike.
//!
//! No error quotes a file's content.

mod error;
pub mod pem;
mod token;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use error::CredentialError;
pub use token::{Token, tokens};

/// Certificates, keys and tokens are small, but a path may name any file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads a file of at most 4 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let fail = |source| CredentialError::Read { path: path.to_owned(), source };
    let mut contents = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut contents).map_err(fail)?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        return Err(CredentialError::TooLarge { path: path.to_owned(), bytes: MAX_FILE_BYTES });
    }
    Ok(contents)
}
