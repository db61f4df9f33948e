//! The `camlens` program: reads its arguments and does what they say.

use camlens::build_facts;

/// Given by who builds from a tree without git, or known from git.
const COMMIT: &str = match option_env!("CAMLENS_COMMIT") {
    Some(commit) if !commit.is_empty() => commit,
    _ => build_facts::last_commit(include_bytes!(env!("CAMLENS_BUILD_GIT_LOG"))),
};

fn main() {
    build_facts::set_commit(COMMIT);
    camlens::cli::main()
}
