//! Bearer tokens in a file.
//!
//! A line is `TOKEN`, or `NAME: TOKEN`, and then the log has the name. Empty lines and lines that begin with `#` are
//! ignored. Tokens consist of the characters that RFC 6750 allows: letters, digits and `-._~+/=`.

use std::fmt;
use std::path::Path;

use super::error::CredentialError;

/// A secret: neither `Debug` nor `Display` shows it.
pub struct Token {
    pub name: Option<String>,
    secret: String,
}

impl Token {
    /// For the call that must send it.
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The tokens of a file, in its order; at least one.
pub fn tokens(path: &Path, contents: &[u8]) -> Result<Vec<Token>, CredentialError> {
    let bad = |line: usize, problem| CredentialError::BadToken { path: path.to_owned(), line, problem };
    let mut tokens = Vec::new();
    for (number, line) in (1..).zip(contents.split(|byte| *byte == b'\n')) {
        let line = std::str::from_utf8(line).map_err(|_| bad(number, "not UTF-8 text"))?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, secret) = match line.split_once(':') {
            Some((name, secret)) => (Some(name.trim().to_owned()), secret.trim()),
            None => (None, line),
        };
        if name.as_deref() == Some("") || secret.is_empty() {
            return Err(bad(number, "give TOKEN or NAME: TOKEN"));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if !secret.bytes().all(allowed) {
            return Err(bad(number, "a token consists of letters, digits and -._~+/= alone"));
        }
        tokens.push(Token { name, secret: secret.to_owned() });
    }
    if tokens.is_empty() { Err(CredentialError::NoToken { path: path.to_owned() }) } else { Ok(tokens) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Token>, String> {
        super::tokens(Path::new("tokens"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_that_is_no_token_is_named_and_not_quoted() {
        for (text, expected) in [
            ("good\nhush hush\n", "line 2"),
            (": hush\n", "line 1"),
            ("name:\n", "NAME: TOKEN"),
            ("# nothing\n\n", "no token"),
            ("", "no token"),
        ] {
            let error = parsed(text).expect_err(text);
            assert!(error.starts_with("tokens") && error.contains(expected) && !error.contains("hush"), "{error}");
        }
        assert!(super::tokens(Path::new("tokens"), b"\xff\xfe").expect_err("binary").to_string().contains("UTF-8"));
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let tokens = parsed("camera: hush-hush").expect("a token");
        assert!(!format!("{tokens:?}").contains("hush"));
    }
}
