//! Telemetry as its readers see it: an OpenTelemetry collector, Prometheus, an operator at the admin port, probes.

mod admin;
#[expect(dead_code, reason = "shared with tests/security, which uses all of it")]
#[path = "../security/certificates.rs"]
mod certificates;
mod collector;
#[path = "../protocol/conversation.rs"]
mod conversation;
mod delivery;
mod frames;
#[expect(dead_code, reason = "shared with tests/protocol, which uses all of it")]
#[path = "../protocol/images.rs"]
mod images;
mod metrics;
mod probes;
mod process;
#[expect(dead_code, reason = "shared with tests/protocol, which uses all of it")]
#[path = "../protocol/server.rs"]
mod server;
mod streams;
