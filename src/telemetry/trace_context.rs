//! W3C Trace Context: the `traceparent` and `tracestate` that a frame may carry, read strictly.
//!
//! <https://www.w3.org/TR/trace-context-2/>. Plain data: nothing here knows OpenTelemetry.

use std::fmt;

use thiserror::Error;

/// The longest `tracestate` that is looked at, in bytes: 32 members of the longest key and value, and room for blanks.
const MAX_TRACE_STATE_BYTES: usize = 32 * 1024;
const MAX_MEMBERS: usize = 32;

/// Sixteen bytes that name a trace; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// None when all bytes are zero, which the specification forbids.
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(TraceId(bytes))
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// Eight bytes that name a span within its trace; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl SpanId {
    /// None when all bytes are zero, which the specification forbids.
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(SpanId(bytes))
    }

    pub fn bytes(self) -> [u8; 8] {
        self.0
    }
}

/// Lowercase hexadecimal digits, as in `traceparent` and in `Explanation.trace_id`.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The flags of a trace. Bits that the specification does not define are kept as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TraceFlags {
    /// The caller may have recorded the trace.
    pub sampled: bool,
    /// At least the last seven bytes of the trace id are random (level 2 of the specification).
    pub random: bool,
}

impl TraceFlags {
    pub fn byte(self) -> u8 {
        u8::from(self.sampled) | u8::from(self.random) << 1
    }

    fn from_byte(byte: u8) -> Self {
        TraceFlags { sampled: byte & 1 != 0, random: byte & 2 != 0 }
    }
}

/// Why a `traceparent` or `tracestate` is malformed. The specification says to go on as if it were absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TraceContextError {
    #[error("traceparent must be VERSION-TRACE_ID-PARENT_ID-FLAGS in lowercase hexadecimal digits, 2-32-16-2 of them")]
    Layout,
    #[error("traceparent is there more than once")]
    Several,
    #[error("traceparent version ff is forbidden")]
    Version,
    #[error("traceparent names the trace id 0, which is forbidden")]
    ZeroTraceId,
    #[error("traceparent names the parent id 0, which is forbidden")]
    ZeroParentId,
    #[error("tracestate must be at most 32 members KEY=VALUE, separated by commas")]
    Members,
    #[error("a tracestate key is 1 to 256 of a-z 0-9 _ - * / and starts with a-z or 0-9; TENANT@SYSTEM has 241 and 14")]
    Key,
    #[error("a tracestate value is 1 to 256 printable ASCII characters without , and =, the last one no blank")]
    Value,
    #[error("a tracestate key occurs twice")]
    Duplicate,
}

/// The trace and the span that a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    pub trace_id: TraceId,
    pub parent_id: SpanId,
    pub flags: TraceFlags,
}

impl TraceParent {
    /// Reads a `traceparent`. Versions above 00 are read as far as version 00 goes, as the specification asks. Several
    /// headers are joined by commas before: they are malformed, since none of them is known to be the right one.
    pub fn parse(text: &str) -> Result<Self, TraceContextError> {
        if text.contains(',') {
            return Err(TraceContextError::Several);
        }
        let bytes = text.as_bytes();
        let dashes = [2, 35, 52];
        if bytes.len() < 55 || dashes.iter().any(|&at| bytes[at] != b'-') {
            return Err(TraceContextError::Layout);
        }
        let [version] = hexadecimal(&bytes[0..2])?;
        match version {
            0xff => return Err(TraceContextError::Version),
            0 if bytes.len() != 55 => return Err(TraceContextError::Layout),
            _ if bytes.len() > 55 && bytes[55] != b'-' => return Err(TraceContextError::Layout),
            _ => {}
        }
        let trace_id = TraceId::new(hexadecimal(&bytes[3..35])?).ok_or(TraceContextError::ZeroTraceId)?;
        let parent_id = SpanId::new(hexadecimal(&bytes[36..52])?).ok_or(TraceContextError::ZeroParentId)?;
        let [flags] = hexadecimal(&bytes[53..55])?;
        Ok(TraceParent { trace_id, parent_id, flags: TraceFlags::from_byte(flags) })
    }
}

/// The header of version 00.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_id, self.parent_id, self.flags.byte())
    }
}

fn hexadecimal<const N: usize>(digits: &[u8]) -> Result<[u8; N], TraceContextError> {
    fn digit(byte: u8) -> Result<u8, TraceContextError> {
        match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(TraceContextError::Layout),
        }
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

/// The state of other tracing systems: an ordered list of members, passed on unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TraceState(Vec<(String, String)>);

impl TraceState {
    /// Reads a `tracestate`; several headers are joined by commas before. Empty members are allowed and vanish.
    pub fn parse(text: &str) -> Result<Self, TraceContextError> {
        if text.len() > MAX_TRACE_STATE_BYTES {
            return Err(TraceContextError::Members);
        }
        let mut members: Vec<(String, String)> = Vec::new();
        for member in text.split(',') {
            // Blanks before a member and behind it are the list's; a blank inside is the value's.
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=').ok_or(TraceContextError::Members)?;
            if !is_key(key) {
                return Err(TraceContextError::Key);
            }
            if !is_value(value) {
                return Err(TraceContextError::Value);
            }
            if members.iter().any(|(known, _)| known == key) {
                return Err(TraceContextError::Duplicate);
            }
            if members.len() == MAX_MEMBERS {
                return Err(TraceContextError::Members);
            }
            members.push((key.to_owned(), value.to_owned()));
        }
        Ok(TraceState(members))
    }

    /// Keys and values in their order: the first was written last.
    pub fn members(&self) -> &[(String, String)] {
        &self.0
    }
}

impl fmt::Display for TraceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

fn is_key(key: &str) -> bool {
    let starts_well = |part: &str| part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let consists_well = |part: &str| {
        part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'*' | b'/'))
    };
    let is_part = |part: &str, longest: usize| part.len() <= longest && starts_well(part) && consists_well(part);
    match key.split_once('@') {
        Some((tenant, system)) => is_part(tenant, 241) && is_part(system, 14),
        None => is_part(key, 256),
    }
}

fn is_value(value: &str) -> bool {
    (1..=256).contains(&value.len())
        && value.bytes().all(|b| matches!(b, 0x20..=0x7e) && b != b',' && b != b'=')
        && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_back() {
        let parent = TraceParent::parse(EXAMPLE).expect("the specification's own example");
        assert_eq!(parent.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.parent_id.to_string(), "00f067aa0ba902b7");
        assert!(parent.flags.sampled);
        assert!(!parent.flags.random);
        assert_eq!(parent.to_string(), EXAMPLE);
    }

    #[test]
    fn undefined_flags_are_not_passed_on() {
        let parent = TraceParent::parse(&EXAMPLE.replace("-01", "-fe")).expect("any flags are allowed");
        assert_eq!(parent.flags, TraceFlags { sampled: false, random: true });
        assert!(parent.to_string().ends_with("-02"));
    }

    #[test]
    fn a_later_version_may_be_longer_but_only_behind_a_dash() {
        let later = EXAMPLE.replacen("00", "cc", 1);
        assert!(TraceParent::parse(&later).is_ok());
        assert!(TraceParent::parse(&format!("{later}-what-the-future-will-be-like")).is_ok());
        assert_eq!(TraceParent::parse(&format!("{later}.what")), Err(TraceContextError::Layout));
    }

    #[test]
    fn several_traceparents_are_none() {
        let later = format!("{}-more", EXAMPLE.replacen("00", "cc", 1));
        for text in [format!("{EXAMPLE},{EXAMPLE}"), format!("{later},{EXAMPLE}"), format!(",{EXAMPLE}")] {
            assert_eq!(TraceParent::parse(&text), Err(TraceContextError::Several), "{text:?}");
        }
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        let cases = [
            ("", TraceContextError::Layout),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", TraceContextError::Layout),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", TraceContextError::Layout),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", TraceContextError::Layout),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", TraceContextError::Layout),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", TraceContextError::Layout),
            ("00-4bf92f3577b34da6a3ce929d0e0e473.-00f067aa0ba902b7-01", TraceContextError::Layout),
            ("0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", TraceContextError::Layout),
            (" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", TraceContextError::Layout),
            ("00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01", TraceContextError::Layout),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", TraceContextError::Version),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", TraceContextError::ZeroTraceId),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", TraceContextError::ZeroParentId),
            ("00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01", TraceContextError::Layout),
        ];
        for (text, error) in cases {
            assert_eq!(TraceParent::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_tracestate_keeps_its_order_and_loses_its_blanks() {
        let state =
            TraceState::parse("rojo=00f067aa0ba902b7 ,, \tcongo=t61rcWkgMzE,").expect("blanks and empty members");
        assert_eq!(state.to_string(), "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE");
        assert_eq!(TraceState::parse("").expect("an empty list"), TraceState::default());
    }

    #[test]
    fn tracestate_keys_and_values_follow_the_grammar() {
        let longest_key = format!("{}@{}=1", "t".repeat(241), "s".repeat(14));
        let longest_simple_key = format!("{}=1", "z".repeat(256));
        let longest_value = format!("foo={}", "v".repeat(256));
        let good =
            ["a=1", "0a=1", "fw529a3039@dt=FfffffffA", "a_-*/=1", "a=b c", "a=~ !", &longest_key, &longest_value];
        for text in good.into_iter().chain([longest_simple_key.as_str()]) {
            assert_eq!(TraceState::parse(text).map(|s| s.to_string()).as_deref(), Ok(text), "{text:?}");
        }
        let too_long_tenant = format!("{}@s=1", "t".repeat(242));
        let too_long_system = format!("t@{}=1", "s".repeat(15));
        let too_long_value = format!("foo={}", "v".repeat(257));
        let bad = [
            ("foo", TraceContextError::Members),
            ("=1", TraceContextError::Key),
            ("FOO=1", TraceContextError::Key),
            ("foo.bar=1", TraceContextError::Key),
            ("foo@=1", TraceContextError::Key),
            ("@foo=1", TraceContextError::Key),
            ("foo@@bar=1", TraceContextError::Key),
            ("foo@bar@baz=1", TraceContextError::Key),
            ("foo =1", TraceContextError::Key),
            ("foo=", TraceContextError::Value),
            ("foo=bar=baz", TraceContextError::Value),
            ("foo=b\u{7f}", TraceContextError::Value),
            ("foo=bär", TraceContextError::Value),
            ("foo=1,foo=2", TraceContextError::Duplicate),
            (too_long_tenant.as_str(), TraceContextError::Key),
            (too_long_system.as_str(), TraceContextError::Key),
            (too_long_value.as_str(), TraceContextError::Value),
        ];
        for (text, error) in bad {
            assert_eq!(TraceState::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_tracestate_has_at_most_32_members() {
        let of = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(TraceState::parse(&of(32)).expect("32 members").members().len(), 32);
        assert_eq!(TraceState::parse(&of(33)), Err(TraceContextError::Members));
    }
}
