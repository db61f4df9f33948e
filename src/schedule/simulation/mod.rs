//! Sessions, budgets, tickets, line and batch together, in simulated time: what the server and the engine's threads do
//! with them, in any order that can happen ([`world`]), who waits for whom ([`fairness`]), and how many cameras a
//! device and a fleet can serve ([`capacity`]).
//!
//! `PROPTEST_CASES` says how many sequences of events are tried; a test run tries a few thousand, a campaign more.

mod cameras;
mod capacity;
mod card;
mod events;
mod fairness;
mod item;
mod world;

fn cases(by_default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(by_default)
}
