//! Quotas: of unread answers, and the credit of all streams.

pub mod credit;
pub mod unsent;
