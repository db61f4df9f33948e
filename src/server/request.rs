//! From messages to jobs: defaults, checks, and a refusal for what is not built yet.

pub(super) mod frame;
pub(super) mod options;
pub(super) mod policy;
pub(super) mod selector;

use tonic::Code;

use super::refusal::Refusal;

/// A value of an enum that this version does not know.
fn unknown_value(field: impl Into<String>, value: i32, allowed: &str) -> Refusal {
    let field = field.into();
    let message = format!("{field} is {value}, which means nothing here: {allowed}");
    Refusal::new(Code::InvalidArgument, field, message)
}
