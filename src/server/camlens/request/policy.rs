//! A stream's policy.

use std::time::Duration;

use crate::config::LimitsConfig;
use crate::proto::v1;
use crate::proto::v1::stream_policy::Overflow as WireOverflow;
use crate::server::refusal::Refusal;
use crate::stream::{Bounds, Overflow, Policy};
use crate::view;

use super::{frame, unknown_value};

/// The bounds of a stream's session.
pub(in crate::server) fn bounds(limits: &LimitsConfig) -> Bounds {
    Bounds {
        max_in_flight: limits.max_in_flight as usize,
        max_unsent_bytes: usize::try_from(limits.max_unsent_bytes).unwrap_or(usize::MAX),
    }
}

/// Merges an update's policy into the stream's, field by field.
///
/// # Errors
/// When the update changes the order.
pub(in crate::server) fn merge(base: &v1::StreamPolicy, over: &v1::StreamPolicy) -> Result<v1::StreamPolicy, Refusal> {
    let v1::StreamPolicy { overflow, depth, time_to_live, max_rate_hz, unordered, priority, max_response_bytes } =
        *over;
    if unordered && !base.unordered {
        let message = "policy.unordered: an update cannot change the order; open another stream";
        return Err(Refusal::invalid("policy.unordered", message));
    }
    // A depth that was chosen for another overflow policy does not apply.
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

/// Checks a policy and fills in its defaults. Returns it for the session, and for the client.
///
/// # Errors
/// A field whose value is not allowed.
pub(in crate::server) fn resolve(
    asked: &v1::StreamPolicy,
    limits: &LimitsConfig,
) -> Result<(Policy, v1::StreamPolicy), Refusal> {
    let v1::StreamPolicy { overflow, depth, time_to_live, max_rate_hz, unordered, priority, max_response_bytes: _ } =
        *asked;
    frame::time_to_live("policy.time_to_live", time_to_live.as_ref())?;
    let min_interval = max_rate_hz.map(min_interval).transpose()?;
    if priority > limits.max_priority.into() {
        let message =
            format!("policy.priority is {priority}: at most {} is allowed (limits.max_priority)", limits.max_priority);
        return Err(Refusal::invalid("policy.priority", message));
    }
    let overflow = match WireOverflow::try_from(overflow) {
        Ok(WireOverflow::Unspecified | WireOverflow::Latest) => Overflow::Latest,
        Ok(WireOverflow::Block) => Overflow::Block,
        Ok(WireOverflow::Reject) => Overflow::Reject,
        Err(_) => return Err(unknown_value("policy.overflow", overflow, "LATEST, BLOCK and REJECT are allowed")),
    };
    if depth > limits.max_in_flight {
        let message = format!("policy.depth is {depth}: at most {} is allowed", limits.max_in_flight);
        return Err(Refusal::invalid("policy.depth", message));
    }
    let (default_depth, wire) = match overflow {
        Overflow::Latest => (1, WireOverflow::Latest),
        Overflow::Block => (limits.max_in_flight, WireOverflow::Block),
        Overflow::Reject => (limits.max_in_flight, WireOverflow::Reject),
    };
    let depth = if depth == 0 { default_depth } else { depth };
    let effective = v1::StreamPolicy { overflow: wire as i32, depth, ..*asked };
    Ok((Policy { overflow, depth: depth as usize, unordered, min_interval }, effective))
}

/// The highest rate that may be set.
const MAX_RATE_HZ: f64 = 1e6;

fn min_interval(rate_hz: f64) -> Result<Duration, Refusal> {
    // The lowest rate is one frame in about 30 years.
    if !(1e-9..=MAX_RATE_HZ).contains(&rate_hz) {
        let message = format!("policy.max_rate_hz is {rate_hz}: more than 0 and at most {MAX_RATE_HZ} is allowed");
        return Err(Refusal::invalid("policy.max_rate_hz", message));
    }
    Ok(Duration::from_secs_f64(rate_hz.recip()))
}

/// An effective policy for people.
pub(in crate::server) fn in_words(policy: &v1::StreamPolicy) -> String {
    let overflow = match policy.overflow() {
        WireOverflow::Block => Overflow::Block,
        WireOverflow::Reject => Overflow::Reject,
        WireOverflow::Latest | WireOverflow::Unspecified => Overflow::Latest,
    };
    view::Policy {
        overflow: overflow.name(),
        depth: policy.depth,
        time_to_live: policy.time_to_live.and_then(|time| time.try_into().ok()),
        max_rate_hz: policy.max_rate_hz,
        priority: policy.priority,
        unordered: policy.unordered,
    }
    .to_string()
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
        assert_eq!(policy, Policy { overflow: Overflow::Latest, depth: 1, unordered: false, min_interval: None });
        assert_eq!((effective.overflow(), effective.depth), (WireOverflow::Latest, 1));
    }

    #[test]
    fn values_out_of_range_are_invalid() {
        let deep = v1::StreamPolicy { depth: 5, ..Default::default() };
        assert_eq!(resolve(&deep, &limits()).expect_err("too deep").code, Code::InvalidArgument);
        let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let default = v1::StreamPolicy::default;
        for (policy, field) in [
            (v1::StreamPolicy { overflow: 77, ..default() }, "policy.overflow"),
            (v1::StreamPolicy { time_to_live: duration(0, 0), ..default() }, "policy.time_to_live"),
            (v1::StreamPolicy { time_to_live: duration(-1, 0), ..default() }, "policy.time_to_live"),
            (v1::StreamPolicy { max_rate_hz: Some(0.0), ..default() }, "policy.max_rate_hz"),
            (v1::StreamPolicy { max_rate_hz: Some(f64::NAN), ..default() }, "policy.max_rate_hz"),
            (v1::StreamPolicy { max_rate_hz: Some(-3.0), ..default() }, "policy.max_rate_hz"),
            (v1::StreamPolicy { priority: 8, ..default() }, "policy.priority"),
        ] {
            let refusal = resolve(&policy, &limits()).expect_err(field);
            assert_eq!((refusal.code, refusal.field.as_str()), (Code::InvalidArgument, field));
            assert!(refusal.message.starts_with(field), "{refusal}");
        }
    }

    #[test]
    fn a_rate_is_a_time_between_frames_and_a_priority_a_class() {
        let asked = v1::StreamPolicy { max_rate_hz: Some(4.0), priority: 7, ..Default::default() };
        let (policy, effective) = resolve(&asked, &limits()).expect("it is allowed");
        assert_eq!(policy.min_interval, Some(Duration::from_millis(250)));
        assert_eq!(effective.priority, 7);
        let tight = LimitsConfig { max_priority: 2, ..limits() };
        assert!(resolve(&asked, &tight).is_err_and(|refusal| refusal.message.contains("limits.max_priority")));
    }

    #[test]
    fn an_update_changes_what_it_names_and_never_the_order() {
        let base = v1::StreamPolicy { overflow: WireOverflow::Latest as i32, depth: 3, ..Default::default() };
        let same = merge(&base, &v1::StreamPolicy::default()).expect("nothing changes");
        assert_eq!(same, base);
        let block = v1::StreamPolicy { overflow: WireOverflow::Block as i32, ..Default::default() };
        let changed = merge(&base, &block).expect("another overflow policy");
        assert_eq!((changed.overflow(), changed.depth), (WireOverflow::Block, 0));
        assert!(merge(&base, &v1::StreamPolicy { unordered: true, ..Default::default() }).is_err());
    }
}
