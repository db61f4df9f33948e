//! From messages to jobs: defaults, checks, and a refusal for what is not built yet.

use tonic::Code;

use crate::server::refusal::Refusal;

/// A value of an enum that this version does not know.
fn unknown_value(field: impl Into<String>, value: i32, allowed: &str) -> Refusal {
    let field = field.into();
    let message = format!("{field} is {value}, which means nothing here: {allowed}");
    Refusal::new(Code::InvalidArgument, field, message)
}
pub mod frame;
pub mod options;
pub mod policy;
pub mod selector;
