//! Messages to the page: a document, and bytes that it refers to by index.
//!
//! A message is the document's length in bytes as `u32`, little-endian; the document as JSON, whose `parts` lists the
//! parts' lengths; the parts.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

pub(super) fn message(mut document: Value, parts: &[Vec<u8>]) -> Bytes {
    document["parts"] = parts.iter().map(Vec::len).collect::<Vec<_>>().into();
    let document = document.to_string();
    let total = 4 + document.len() + parts.iter().map(Vec::len).sum::<usize>();
    let mut message = BytesMut::with_capacity(total);
    message.put_u32_le(u32::try_from(document.len()).unwrap_or(u32::MAX));
    message.put_slice(document.as_bytes());
    parts.iter().for_each(|part| message.put_slice(part));
    message.freeze()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_tells_the_lengths_of_its_parts() {
        let message = message(json!({"kind": "frame"}), &[vec![1, 2], vec![3]]);
        let length = u32::from_le_bytes(message[..4].try_into().expect("four bytes")) as usize;
        let document: Value = serde_json::from_slice(&message[4..4 + length]).expect("a document");
        assert_eq!(document, json!({"kind": "frame", "parts": [2, 1]}));
        assert_eq!(message[4 + length..], [1, 2, 3]);
    }
}
