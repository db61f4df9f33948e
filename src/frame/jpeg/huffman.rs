//! Huffman tables: those of a file, and the standard ones.

use super::bits::Bits;

/// Codes of up to this length are found by one look-up.
const LOOK_AHEAD: u32 = 10;

/// A table as a DHT segment holds it. Nothing is checked until a [`Table`] is made of it, so that reading segments is
/// cheap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Definition<'a> {
    /// The number of codes of 1, 2, … 16 bits.
    pub(super) counts: &'a [u8; 16],
    /// In the order of their codes.
    pub(super) symbols: &'a [u8],
}

impl Definition<'_> {
    /// Bits of the shortest code.
    pub(super) fn shortest(&self) -> usize {
        1 + self.counts.iter().position(|&count| count > 0).unwrap_or(0)
    }
}

/// A decoding table.
#[derive(Clone)]
pub(super) struct Table {
    /// By the next [`LOOK_AHEAD`] bits.
    short: [Entry; 1 << LOOK_AHEAD],
    /// By length: codes of at most this length are below it, aligned to 16 bits.
    limits: [u32; 17],
    /// By length: what to add to a code for its symbol's index.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

/// What the next bits mean.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    /// The coefficient, when `complete`.
    pub(super) value: i16,
    /// Run of zeros in the high half, size of the coefficient in the low half.
    pub(super) symbol: u8,
    /// Bits of the code, and of the coefficient when `complete`. 0: the code is longer than the table.
    length: u8,
}

/// Set in `length` when the entry holds the coefficient's value.
const COMPLETE: u8 = 0x80;

impl Entry {
    #[inline(always)]
    pub(super) fn complete(self) -> bool {
        self.length & COMPLETE != 0
    }

    #[inline(always)]
    pub(super) fn run(self) -> usize {
        usize::from(self.symbol >> 4)
    }

    #[inline(always)]
    pub(super) fn size(self) -> u32 {
        u32::from(self.symbol & 15)
    }
}

impl Table {
    /// `None` when there are more codes than bits can tell apart.
    pub(super) fn new(definition: Definition<'_>) -> Option<Table> {
        let Definition { counts, symbols } = definition;
        let mut table =
            Table { short: [Entry::default(); 1 << LOOK_AHEAD], limits: [0; 17], offsets: [0; 17], symbols: [0; 256] };
        table.symbols.get_mut(..symbols.len())?.copy_from_slice(symbols);
        let (mut code, mut index) = (0u32, 0usize);
        for length in 1..=16u32 {
            table.offsets[length as usize] = index as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                if code >= 1 << length {
                    return None;
                }
                let symbol = *symbols.get(index)?;
                if length <= LOOK_AHEAD {
                    table.fill(code, length, symbol);
                }
                code += 1;
                index += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Some(table)
    }

    /// Writes the entries that begin with a code.
    fn fill(&mut self, code: u32, length: u32, symbol: u8) {
        let free = LOOK_AHEAD - length;
        let size = u32::from(symbol & 15);
        for rest in 0..1u32 << free {
            let entry = &mut self.short[((code << free) + rest) as usize];
            *entry = Entry { value: 0, symbol, length: length as u8 };
            if size > 0 && size <= free {
                let bits = (rest >> (free - size)) as i32;
                let value = if bits >> (size - 1) == 0 { bits + 1 - (1 << size) } else { bits };
                *entry = Entry { value: value as i16, symbol, length: (length + size) as u8 | COMPLETE };
            }
        }
    }

    /// Takes a code, and the coefficient behind it when the entry is [complete](Entry::complete). At least 32 bits must
    /// have been loaded. `None`: no such code.
    #[inline(always)]
    pub(super) fn decode(&self, bits: &mut Bits<'_>) -> Option<Entry> {
        let entry = self.short[bits.peek(LOOK_AHEAD)];
        if entry.length == 0 {
            return self.decode_long(bits);
        }
        bits.skip(u32::from(entry.length & !COMPLETE));
        Some(entry)
    }

    #[cold]
    #[inline(never)]
    fn decode_long(&self, bits: &mut Bits<'_>) -> Option<Entry> {
        let next = bits.peek(16) as u32;
        let length = (LOOK_AHEAD + 1..=16).find(|&length| next < self.limits[length as usize])?;
        let index = (next >> (16 - length)) as i32 + self.offsets[length as usize];
        bits.skip(length);
        Some(Entry { value: 0, symbol: *self.symbols.get(usize::try_from(index).ok()?)?, length: length as u8 })
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

/// Whether a table is for the first coefficient of a block or for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Dc,
    Ac,
}

/// The typical table of T.81, annex K.3.3: 0 for luminance, 1 for chrominance. Cameras leave these out of their frames.
pub(super) fn standard(class: Class, id: usize) -> Option<Definition<'static>> {
    let (counts, symbols): (&[u8; 16], &[u8]) = match (class, id) {
        (Class::Dc, 0) => (&[0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &DC_SYMBOLS),
        (Class::Dc, 1) => (&[0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &DC_SYMBOLS),
        (Class::Ac, 0) => (&[0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7D], &AC_LUMINANCE),
        (Class::Ac, 1) => (&[0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77], &AC_CHROMINANCE),
        _ => return None,
    };
    Some(Definition { counts, symbols })
}

const DC_SYMBOLS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

#[rustfmt::skip]
const AC_LUMINANCE: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
    0x14, 0x32, 0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72,
    0x82, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37,
    0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3,
    0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3,
    0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2,
    0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];

#[rustfmt::skip]
const AC_CHROMINANCE: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
    0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33, 0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1,
    0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36,
    0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A,
    0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A,
    0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA,
    0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA,
    0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];
