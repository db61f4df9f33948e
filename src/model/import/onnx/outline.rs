//! Reads a file's messages without the data of its weights.
//!
//! A protobuf message must be read whole, and an ONNX file is one message of up to 2 GB. Here the file is walked once:
//! the raw data of the main graph's initializers is left where it is, and noted; everything else is copied, counted and
//! then decoded. So no weight is in memory twice, and what a file may cost is known before a message is made of it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use super::message::ModelProto;
use crate::model::{LoadLimits, ModelError};

/// Deepest nesting of messages. A graph in a node of a graph takes three levels.
const MAX_DEPTH: u32 = 32;
/// Most fields of messages, for each node of `LoadLimits::max_nodes`; real models have about ten.
const FIELDS_PER_NODE: u64 = 32;

/// A file without the data of its weights.
pub struct Outline {
    pub model: ModelProto,
    /// Where the raw data of each initializer of the main graph lies: offset and length in bytes.
    pub data: Vec<Option<(u64, u64)>>,
}

/// Messages whose fields are walked; all others are copied as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    MainGraph,
    Graph,
    Node,
    Attribute,
    Function,
    Initializer,
    Tensor,
    Entry,
}

impl Kind {
    /// The message in a field.
    fn child(self, field: u64) -> Option<Kind> {
        Some(match (self, field) {
            (Kind::Model, 7) => Kind::MainGraph,
            (Kind::Model, 25) => Kind::Function,
            (Kind::MainGraph | Kind::Graph, 1) | (Kind::Function, 7) => Kind::Node,
            (Kind::MainGraph, 5) => Kind::Initializer,
            (Kind::Graph, 5) => Kind::Tensor,
            (Kind::MainGraph | Kind::Graph, 11 | 12 | 15) => Kind::Entry,
            (Kind::Node, 5) | (Kind::Function, 11) => Kind::Attribute,
            (Kind::Attribute, 5) => Kind::Tensor,
            (Kind::Attribute, 6) => Kind::Graph,
            (Kind::Node, 9) | (Kind::Model, 8 | 14) | (Kind::Function, 9) | (Kind::Initializer | Kind::Tensor, 13) => {
                Kind::Entry
            }
            _ => return None,
        })
    }

    /// Whether camlens reads the field. Others, such as documentation and recorded shapes, are left out.
    fn reads(self, field: u64) -> bool {
        match self {
            Kind::Model => matches!(field, 1..=3 | 6..=8 | 14 | 25),
            Kind::MainGraph | Kind::Graph => matches!(field, 1 | 5 | 11 | 12 | 15),
            Kind::Node => matches!(field, 1..=5 | 7..=9),
            Kind::Attribute => matches!(field, 1..=9 | 20 | 21),
            Kind::Function => matches!(field, 1 | 4..=7 | 9..=11 | 13),
            Kind::Initializer | Kind::Tensor => matches!(field, 1..=5 | 7..=11 | 13 | 14),
            Kind::Entry => true,
        }
    }
}

const WIRE_VARINT: u64 = 0;
const WIRE_64: u64 = 1;
const WIRE_LENGTH: u64 = 2;
const WIRE_32: u64 = 5;

fn bad(problem: impl Into<String>) -> ModelError {
    ModelError::malformed("graph", problem)
}

/// Walks the file and decodes what is left of it.
///
/// # Errors
/// The file cannot be read, is no model of ONNX, or exceeds `limits`.
pub fn read(path: &Path, file: &File, limits: &LoadLimits) -> Result<Outline, ModelError> {
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let length = file.metadata().map_err(read)?.len();
    let file = BufReader::with_capacity(1 << 16, file);
    let mut walk = Walk { file, at: 0, limits, copied: 0, nodes: 0, fields: 0, data: Vec::new() };
    let mut bytes = Vec::new();
    walk.message(Kind::Model, length, 0, &mut bytes)?;
    let data = std::mem::take(&mut walk.data);
    let model = ModelProto::decode(Bytes::from(bytes)).map_err(|error| bad(error.to_string()))?;
    Ok(Outline { model, data })
}

struct Walk<'a> {
    file: BufReader<&'a File>,
    /// Position in the file.
    at: u64,
    limits: &'a LoadLimits,
    copied: u64,
    nodes: u64,
    fields: u64,
    data: Vec<Option<(u64, u64)>>,
}

impl Walk<'_> {
    fn message(&mut self, kind: Kind, end: u64, depth: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        if depth > MAX_DEPTH {
            return Err(bad(format!("messages are nested more than {MAX_DEPTH} deep")));
        }
        while self.at < end {
            self.fields += 1;
            let most = self.limits.max_nodes.saturating_mul(FIELDS_PER_NODE);
            if self.fields > most {
                return Err(self.limit("the number of the graph's fields", self.fields, most));
            }
            let key = self.varint(end)?;
            let (field, wire) = (key >> 3, key & 7);
            let length = match wire {
                WIRE_VARINT => {
                    let value = self.varint(end)?;
                    if kind.reads(field) {
                        self.charge(20)?;
                        put_varint(out, key);
                        put_varint(out, value);
                    }
                    continue;
                }
                WIRE_64 => 8,
                WIRE_32 => 4,
                WIRE_LENGTH => self.varint(end)?,
                _ => return Err(bad(format!("byte {}: this is no message of protobuf", self.at))),
            };
            if length > end - self.at {
                return Err(bad(format!("byte {}: a field of {length} bytes ends after its message", self.at)));
            }
            if !kind.reads(field) {
                self.skip(length)?;
            } else if let Some(child) = kind.child(field).filter(|_| wire == WIRE_LENGTH) {
                self.child(child, key, length, depth, out)?;
            } else if kind == Kind::Initializer && field == 9 && wire == WIRE_LENGTH {
                let place = Some((self.at, length));
                if let Some(last) = self.data.last_mut() {
                    *last = place;
                }
                self.skip(length)?;
            } else {
                put_varint(out, key);
                if wire == WIRE_LENGTH {
                    put_varint(out, length);
                }
                self.copy(length, out)?;
            }
        }
        Ok(())
    }

    fn child(&mut self, kind: Kind, key: u64, length: u64, depth: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        if kind == Kind::Node {
            self.nodes += 1;
            if self.nodes > self.limits.max_nodes {
                return Err(self.limit("the graph", self.nodes, self.limits.max_nodes));
            }
        }
        if kind == Kind::Initializer {
            self.data.push(None);
        }
        let mut inner = Vec::new();
        if kind == Kind::Entry {
            self.copy(length, &mut inner)?;
        } else {
            self.message(kind, self.at + length, depth + 1, &mut inner)?;
        }
        put_varint(out, key);
        put_varint(out, inner.len() as u64);
        out.extend_from_slice(&inner);
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64, ModelError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                return Err(bad(format!("byte {}: a number is cut off", self.at)));
            }
            let mut byte = [0];
            self.file.read_exact(&mut byte).map_err(cannot_read)?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7F) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(bad(format!("byte {}: a number has more than 64 bits", self.at)))
    }

    fn skip(&mut self, length: u64) -> Result<(), ModelError> {
        // Seeking relative to the position keeps the buffer where it can.
        match i64::try_from(length) {
            Ok(step) => self.file.seek_relative(step).map_err(cannot_read)?,
            Err(_) => self.file.seek(SeekFrom::Start(self.at + length)).map(drop).map_err(cannot_read)?,
        }
        self.at += length;
        Ok(())
    }

    fn copy(&mut self, length: u64, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.charge(length)?;
        let start = out.len();
        out.resize(start + length as usize, 0);
        self.file.read_exact(&mut out[start..]).map_err(cannot_read)?;
        self.at += length;
        Ok(())
    }

    fn charge(&mut self, bytes: u64) -> Result<(), ModelError> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > self.limits.max_graph_bytes {
            let what = "the graph without its weights".to_owned();
            let (got, limit) = (self.copied, self.limits.max_graph_bytes);
            return Err(ModelError::Limit { what, got, limit, option: "max_graph_bytes" });
        }
        Ok(())
    }

    fn limit(&self, what: &str, got: u64, limit: u64) -> ModelError {
        ModelError::Limit { what: what.to_owned(), got, limit, option: "max_nodes" }
    }
}

fn cannot_read(error: io::Error) -> ModelError {
    bad(format!("the file cannot be read to its end: {error}"))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
