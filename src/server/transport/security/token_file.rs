//! Bearer tokens in a file.
//!
//! A line is `TOKEN`, or `NAME: TOKEN`, and then the log has the name. Empty lines and lines that begin with `#` are
//! ignored. Tokens consist of the characters that RFC 6750 allows: letters, digits and `-._~+/=`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::SecurityError;
use super::watch::{Watched, warn_if_open_to_all};

/// Characters below which a token can be guessed.
const SOUND_LENGTH: usize = 16;

/// A secret: neither `Debug` nor `Display` shows it.
pub(crate) struct Token {
    name: Option<String>,
    secret: String,
}

impl Token {
    /// For the call that must send it.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The tokens of a file, in its order; at least one.
pub(crate) fn parse(path: &Path, contents: &[u8]) -> Result<Vec<Token>, SecurityError> {
    let bad = |line: usize, problem| SecurityError::BadToken { path: path.to_owned(), line, problem };
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
    if tokens.is_empty() { Err(SecurityError::NoToken { path: path.to_owned() }) } else { Ok(tokens) }
}

/// Reads the server's tokens, and reads them again when the file changes.
pub(in crate::server) fn watch(path: &Path) -> Result<Watched<TokenSet>, SecurityError> {
    warn_if_open_to_all("the file of tokens", path);
    let paths = vec![path.to_owned()];
    let path = PathBuf::from(path);
    let make = move |contents: &[Vec<u8>]| {
        let tokens = parse(&path, &contents[0])?;
        let short = tokens.iter().filter(|token| token.secret.len() < SOUND_LENGTH).count();
        if short > 0 {
            let path = path.display();
            tracing::warn!(%path, short, "tokens of fewer than {SOUND_LENGTH} characters can be guessed");
        }
        Ok(TokenSet::new(&tokens))
    };
    Watched::open("tokens", paths, Arc::new(make))
}

/// Names and SHA-256 digests of the accepted tokens. Comparing digests hides even a token's length.
pub(in crate::server) struct TokenSet(Vec<(Arc<str>, [u8; 32])>);

impl TokenSet {
    fn new(tokens: &[Token]) -> Self {
        let entry =
            |token: &Token| (token.name.as_deref().unwrap_or("unnamed").into(), digest(token.secret.as_bytes()));
        TokenSet(tokens.iter().map(entry).collect())
    }

    /// The name of the presented token, if it is one of these. The time that this takes does not depend on the result.
    pub(in crate::server) fn name_of(&self, presented: &[u8]) -> Option<Arc<str>> {
        let presented = digest(presented);
        let (mut found, mut at) = (Choice::from(0), 0_u64);
        for (index, (_, known)) in (0_u64..).zip(&self.0) {
            let same = known.ct_eq(&presented);
            at.conditional_assign(&index, same);
            found |= same;
        }
        bool::from(found)
            .then(|| usize::try_from(at).ok().and_then(|at| self.0.get(at)).map(|(name, _)| Arc::clone(name)))?
    }
}

fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Token>, String> {
        parse(Path::new("tokens"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn tokens_are_one_a_line_with_or_without_a_name() {
        let tokens = parsed("# cameras\n\nabc-._~+/=\r\n line 4: secret-of-line-4 \n").expect("two tokens");
        let read: Vec<_> = tokens.iter().map(|token| (token.name.as_deref(), token.secret())).collect();
        assert_eq!(read, [(None, "abc-._~+/="), (Some("line 4"), "secret-of-line-4")]);
        let set = TokenSet::new(&tokens);
        assert_eq!(set.name_of(b"secret-of-line-4").as_deref(), Some("line 4"));
        assert_eq!(set.name_of(b"abc-._~+/=").as_deref(), Some("unnamed"));
        for wrong in ["", "abc", "secret-of-line-4 ", "SECRET-OF-LINE-4", "line 4"] {
            assert_eq!(set.name_of(wrong.as_bytes()), None, "{wrong}");
        }
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
        assert!(parse(Path::new("tokens"), b"\xff\xfe").expect_err("binary").to_string().contains("UTF-8"));
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let tokens = parsed("camera: hush-hush").expect("a token");
        assert!(!format!("{tokens:?}").contains("hush"));
    }
}
