//! Protocol buffers written straight into a message's bytes: <https://protobuf.dev/programming-guides/encoding/>.

/// A length that fits one byte of a varint, which is what most messages here have.
const SHORT: usize = 1;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

/// A message that is being written. Fields with their default value are written all the same: the caller may leave them
/// out.
#[derive(Debug, Default)]
pub(super) struct Wire(Vec<u8>);

impl Wire {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Wire(Vec::with_capacity(bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn varint(&mut self, field: u32, value: u64) {
        self.key(field, VARINT);
        self.number(value);
    }

    pub(super) fn fixed64(&mut self, field: u32, value: u64) {
        self.key(field, FIXED64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn fixed32(&mut self, field: u32, value: u32) {
        self.key(field, FIXED32);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, BYTES);
        self.number(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    pub(super) fn text(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// The bytes written so far.
    pub(super) fn raw(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }

    /// A message within the message, of what `write` writes. Its length is known afterwards only: room is left for a
    /// short one, and a long one moves.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Wire)) {
        self.key(field, BYTES);
        let at = self.0.len();
        self.0.push(0);
        write(self);
        let length = self.0.len() - at - SHORT;
        let (digits, count) = varint(length as u64);
        if count > SHORT {
            let end = self.0.len();
            self.0.resize(end + count - SHORT, 0);
            self.0.copy_within(at + SHORT..end, at + count);
        }
        self.0[at..at + count].copy_from_slice(&digits[..count]);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.number(u64::from(field << 3 | kind));
    }

    fn number(&mut self, value: u64) {
        let (digits, count) = varint(value);
        self.0.extend_from_slice(&digits[..count]);
    }
}

/// Seven bits a byte, the lowest first, each but the last with its highest bit set; and how many bytes that are.
fn varint(mut value: u64) -> ([u8; 10], usize) {
    let mut digits = [0; 10];
    let mut count = 0;
    loop {
        let digit = (value & 0x7f) as u8;
        value >>= 7;
        digits[count] = if value == 0 { digit } else { digit | 0x80 };
        count += 1;
        if value == 0 {
            return (digits, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    /// A message with every kind of field that is written here.
    #[derive(Clone, PartialEq, prost::Message)]
    struct All {
        #[prost(uint64, tag = "1")]
        varint: u64,
        #[prost(fixed64, tag = "2")]
        fixed64: u64,
        #[prost(fixed32, tag = "16")]
        fixed32: u32,
        #[prost(string, tag = "4")]
        text: String,
        #[prost(message, repeated, tag = "5")]
        within: Vec<All>,
    }

    fn write(all: &All, wire: &mut Wire) {
        wire.varint(1, all.varint);
        wire.fixed64(2, all.fixed64);
        wire.fixed32(16, all.fixed32);
        wire.text(4, &all.text);
        for within in &all.within {
            wire.message(5, |wire| write(within, wire));
        }
    }

    fn any_message() -> impl Strategy<Value = All> {
        let leaf = (any::<u64>(), any::<u64>(), any::<u32>(), "[a-zé]{0,200}")
            .prop_map(|(varint, fixed64, fixed32, text)| All { varint, fixed64, fixed32, text, within: Vec::new() });
        leaf.prop_recursive(3, 12, 4, |inner| {
            (any::<u64>(), prop::collection::vec(inner, 0..4)).prop_map(|(varint, within)| All {
                varint,
                within,
                ..All::default()
            })
        })
    }

    proptest! {
        #[test]
        fn prost_reads_back_what_is_written(all in any_message()) {
            let mut wire = Wire::default();
            write(&all, &mut wire);
            prop_assert_eq!(All::decode(wire.as_bytes()).expect("a message"), all);
        }
    }

    #[test]
    fn lengths_on_either_side_of_one_byte_are_right() {
        for length in [0, 1, 127, 128, 129, 16_383, 16_384, 100_000] {
            let mut wire = Wire::default();
            wire.message(5, |wire| wire.text(4, &"x".repeat(length)));
            let all = All::decode(wire.as_bytes()).expect("a message");
            assert_eq!(all.within[0].text.len(), length);
        }
    }
}
