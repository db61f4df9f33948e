//! The tokens that the server accepts, read again when their file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::watch::{Watched, warn_if_open_to_all};
use crate::credentials::{CredentialError, Token, tokens};

/// Characters below which a token can be guessed.
const SOUND_LENGTH: usize = 16;

/// Reads the server's tokens, and reads them again when the file changes.
pub(in crate::server) fn watch(path: &Path) -> Result<Watched<TokenSet>, CredentialError> {
    warn_if_open_to_all("the file of tokens", path);
    let paths = vec![path.to_owned()];
    let path = PathBuf::from(path);
    let make = move |contents: &[Vec<u8>]| {
        let tokens = tokens(&path, &contents[0])?;
        let short = tokens.iter().filter(|token| token.secret().len() < SOUND_LENGTH).count();
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
            |token: &Token| (token.name.as_deref().unwrap_or("unnamed").into(), digest(token.secret().as_bytes()));
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
        crate::credentials::tokens(Path::new("tokens"), text.as_bytes()).map_err(|error| error.to_string())
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
}
