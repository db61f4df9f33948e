//! What was built: the facts that a report of a fault needs.

use std::sync::OnceLock;

/// camlens's own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The protocol that is spoken.
pub const PROTOCOL: &str = "camlens.v1";

static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// The program tells which commit it was built from: it alone is compiled again when there is a new one.
pub fn set_commit(commit: &'static str) {
    // A second call says the same.
    let _ = COMMIT.set(commit);
}

/// Names and values, in the order in which people read them.
pub fn facts() -> [(&'static str, &'static str); 8] {
    [
        ("version", VERSION),
        ("commit", COMMIT.get().copied().unwrap_or(UNKNOWN)),
        ("rustc", env!("CAMLENS_BUILD_RUSTC")),
        ("target", env!("CAMLENS_BUILD_TARGET")),
        ("profile", if cfg!(debug_assertions) { "debug" } else { "release" }),
        ("libtorch", env!("CAMLENS_BUILD_LIBTORCH")),
        ("cuda_bridge", env!("CAMLENS_BUILD_CUDA_BRIDGE")),
        ("protocol", PROTOCOL),
    ]
}

/// What is said of a commit that is not known.
const UNKNOWN: &str = "unknown";

/// The commit that the last line of git's log of HEAD names, `OLD NEW WHO …`; `unknown` for an empty log.
pub const fn last_commit(log: &'static [u8]) -> &'static str {
    const HASH: usize = 40;
    let mut end = log.len();
    while end > 0 && log[end - 1] == b'\n' {
        end -= 1;
    }
    let mut start = end;
    while start > 0 && log[start - 1] != b'\n' {
        start -= 1;
    }
    let (new, after) = (start + HASH + 1, start + 2 * HASH + 1);
    if after > end {
        return UNKNOWN;
    }
    match std::str::from_utf8(log.split_at(new).1.split_at(HASH).0) {
        Ok(commit) => commit,
        Err(_) => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_the_one_that_was_checked_out_last() {
        const ONE: &str =
            "0000000000000000000000000000000000000000 1111111111111111111111111111111111111111 a <a> 1 +0000\n";
        const TWO: &str = concat!(
            "0000000000000000000000000000000000000000 1111111111111111111111111111111111111111 a <a> 1 +0000\tclone\n",
            "1111111111111111111111111111111111111111 2222222222222222222222222222222222222222 a <a> 2 +0000\tcommit",
        );
        assert_eq!(last_commit(ONE.as_bytes()), "1".repeat(40));
        assert_eq!(last_commit(TWO.as_bytes()), "2".repeat(40));
        for log in ["", "\n", "no log"] {
            assert_eq!(last_commit(log.as_bytes()), "unknown");
        }
    }

    #[test]
    fn every_fact_is_known_to_a_build_from_the_tree() {
        for (name, value) in facts().into_iter().filter(|(name, _)| *name != "commit") {
            assert!(!value.is_empty() && value != UNKNOWN, "{name}");
        }
    }
}
