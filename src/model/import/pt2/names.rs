//! The names of a program's values: each is defined once, and read only after that.
//!
//! `functional` walks from a view's name to the name of its base. The walk ends because of these two rules, so a file
//! that breaks them is refused here.

use std::collections::BTreeSet;

use crate::model::ModelError;

/// Longest name; PyTorch writes shorter ones.
pub const MAX_NAME_BYTES: usize = 4096;

/// The names that are defined so far.
#[derive(Debug, Default)]
pub struct Definitions(BTreeSet<String>);

impl Definitions {
    /// Adds the name of a value that `by` (`node relu`, `the signature`) defines.
    pub fn define(&mut self, name: &str, by: &str) -> Result<(), ModelError> {
        if self.0.insert(name.to_owned()) {
            Ok(())
        } else {
            Err(ModelError::malformed("graph", format!("{by} defines {name}, which is defined already")))
        }
    }

    /// Checks that `by` may read a name.
    pub fn require(&self, name: &str, by: &str) -> Result<(), ModelError> {
        if self.0.contains(name) {
            Ok(())
        } else {
            Err(ModelError::malformed("graph", format!("{by} reads {name}, which nothing defines before it")))
        }
    }

    /// The number of names.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Checks a name as it stands in the file: an identifier, as PyTorch makes them. Names that camlens derives hold `/` or
/// `#`, so that none of them can be one of the file's.
pub fn check_name(name: &str) -> Result<(), ModelError> {
    let bad = |problem: &str| Err(ModelError::malformed("graph", format!("a value is called {name:?}: {problem}")));
    if name.len() > MAX_NAME_BYTES {
        return bad(&format!("{} bytes, and {MAX_NAME_BYTES} are allowed", name.len()));
    }
    if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.') {
        return bad("letters, digits, _ and . are allowed");
    }
    Ok(())
}
