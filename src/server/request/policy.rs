//! A stream's policy.

use crate::config::LimitsConfig;
use crate::proto::v1;
use crate::proto::v1::stream_policy::Overflow as WireOverflow;
use crate::server::refusal::Refusal;
use crate::stream::{Bounds, Overflow, Policy};

use super::unknown_value;

/// What bounds a stream's session.
pub(in crate::server) fn bounds(limits: &LimitsConfig) -> Bounds {
    Bounds {
        max_in_flight: limits.max_in_flight as usize,
        max_unsent_bytes: usize::try_from(limits.max_unsent_bytes).unwrap_or(usize::MAX),
    }
}

/// Lays an update's policy over the stream's, field by field.
pub(in crate::server) fn overlay(
    base: &v1::StreamPolicy,
    over: &v1::StreamPolicy,
) -> Result<v1::StreamPolicy, Refusal> {
    let v1::StreamPolicy { overflow, depth, time_to_live, max_rate_hz, unordered, priority, max_response_bytes } =
        *over;
    if unordered && !base.unordered {
        let message = "policy.unordered: an update cannot change the order; open another stream";
        return Err(Refusal::invalid("policy.unordered", message));
    }
    // A depth that belongs to another way of giving way means nothing here.
    let kept_depth = if overflow == 0 || overflow == base.overflow { base.depth } else { 0 };
    Ok(v1::StreamPolicy {
        overflow: if overflow == 0 { base.overflow } else { overflow },
        depth: if depth == 0 { kept_depth } else { depth },
        time_to_live: time_to_live.or(base.time_to_live),
        max_rate_hz: max_rate_hz.or(base.max_rate_hz),
        unordered: base.unordered,
        priority: if priority == 0 { base.priority } else { priority },
        max_response_bytes: if max_response_bytes == 0 { base.max_response_bytes } else { max_response_bytes },
    })
}

/// Checks a policy and fills in its defaults: for the session, and as the client is told.
pub(in crate::server) fn resolve(
    asked: &v1::StreamPolicy,
    limits: &LimitsConfig,
) -> Result<(Policy, v1::StreamPolicy), Refusal> {
    let v1::StreamPolicy { overflow, depth, ref time_to_live, max_rate_hz, unordered, priority, max_response_bytes: _ } =
        *asked;
    if time_to_live.is_some() {
        return Err(Refusal::not_built("policy.time_to_live", "a time to live is"));
    }
    if max_rate_hz.is_some() {
        return Err(Refusal::not_built("policy.max_rate_hz", "a rate limit is"));
    }
    if priority != 0 {
        return Err(Refusal::not_built("policy.priority", "priorities are"));
    }
    let overflow = match WireOverflow::try_from(overflow) {
        Ok(WireOverflow::Unspecified | WireOverflow::Latest) => Overflow::Latest,
        Ok(WireOverflow::Block) => Overflow::Block,
        Ok(WireOverflow::Reject) => return Err(Refusal::not_built("policy.overflow", "OVERFLOW_REJECT is")),
        Err(_) => return Err(unknown_value("policy.overflow", overflow, "LATEST and BLOCK are allowed")),
    };
    if depth > limits.max_in_flight {
        let message = format!("policy.depth is {depth}: at most {} is allowed", limits.max_in_flight);
        return Err(Refusal::invalid("policy.depth", message));
    }
    let (default_depth, wire) = match overflow {
        Overflow::Latest => (1, WireOverflow::Latest),
        Overflow::Block => (limits.max_in_flight, WireOverflow::Block),
    };
    let depth = if depth == 0 { default_depth } else { depth };
    let effective = v1::StreamPolicy { overflow: wire as i32, depth, ..*asked };
    Ok((Policy { overflow, depth: depth as usize, unordered }, effective))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn limits() -> LimitsConfig {
        LimitsConfig { max_in_flight: 4, ..LimitsConfig::default() }
    }

    #[test]
    fn nothing_asked_means_the_latest_frame_of_a_camera() {
        let (policy, effective) = resolve(&v1::StreamPolicy::default(), &limits()).expect("the default");
        assert_eq!(policy, Policy { overflow: Overflow::Latest, depth: 1, unordered: false });
        assert_eq!((effective.overflow(), effective.depth), (WireOverflow::Latest, 1));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let default = v1::StreamPolicy::default;
        for (policy, field) in [
            (v1::StreamPolicy { time_to_live: Some(Default::default()), ..default() }, "policy.time_to_live"),
            (v1::StreamPolicy { max_rate_hz: Some(0.0), ..default() }, "policy.max_rate_hz"),
            (v1::StreamPolicy { priority: 1, ..default() }, "policy.priority"),
            (v1::StreamPolicy { overflow: WireOverflow::Reject as i32, ..default() }, "policy.overflow"),
        ] {
            let refusal = resolve(&policy, &limits()).expect_err(field);
            assert_eq!((refusal.code, refusal.field.as_str()), (Code::Unimplemented, field));
            assert!(refusal.message.starts_with(field), "{refusal}");
        }
    }

    #[test]
    fn values_out_of_range_are_invalid() {
        let deep = v1::StreamPolicy { depth: 5, ..Default::default() };
        assert_eq!(resolve(&deep, &limits()).expect_err("too deep").code, Code::InvalidArgument);
        let strange = v1::StreamPolicy { overflow: 77, ..Default::default() };
        assert_eq!(resolve(&strange, &limits()).expect_err("no such value").code, Code::InvalidArgument);
    }

    #[test]
    fn an_update_changes_what_it_names_and_never_the_order() {
        let base = v1::StreamPolicy { overflow: WireOverflow::Latest as i32, depth: 3, ..Default::default() };
        let same = overlay(&base, &v1::StreamPolicy::default()).expect("nothing changes");
        assert_eq!(same, base);
        let block = v1::StreamPolicy { overflow: WireOverflow::Block as i32, ..Default::default() };
        let changed = overlay(&base, &block).expect("another way of giving way");
        assert_eq!((changed.overflow(), changed.depth), (WireOverflow::Block, 0));
        assert!(overlay(&base, &v1::StreamPolicy { unordered: true, ..Default::default() }).is_err());
    }
}
