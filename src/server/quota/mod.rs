//! Quotas: of connections and streams (in total and per peer), and of unread answers; the credit of all streams.

pub mod credit;
pub mod slots;
pub mod unsent;
