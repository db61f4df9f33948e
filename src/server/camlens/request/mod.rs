//! From messages to checked requests: defaults, checks, and a refusal for what is not built yet.

pub mod expected;
pub mod frame;
pub mod options;
pub mod policy;
pub mod selector;

use tonic::Code;

use crate::server::refusal::Refusal;

/// A value of an enum that this version does not know.
fn unknown_value(field: impl Into<String>, value: i32, allowed: &str) -> Refusal {
    let field = field.into();
    let message = format!("{field} is {value}, which this version does not know: {allowed}");
    Refusal::new(Code::InvalidArgument, field, message)
}
