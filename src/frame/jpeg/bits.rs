//! A bit reader over the entropy-coded data of one restart interval.

/// Reads bits, most significant first. After the last byte it supplies zeros without end; [`Bits::overrun`] tells.
#[derive(Debug, Clone)]
pub(super) struct Bits<'a> {
    /// Without stuffed zeros and markers.
    data: &'a [u8],
    /// The next byte to load.
    at: usize,
    /// The next bits, from the most significant one down.
    buffer: u64,
    /// How many bits of `buffer` count.
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Bits { data, at: 0, buffer: 0, count: 0 }
    }

    /// Loads until at least 56 bits are there.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let next = match self.data.get(self.at..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => u64::from_be_bytes(*bytes),
            None => self.last_bytes(),
        };
        // Bits beyond `count` equal those that are loaded again, so `|` does not change them.
        self.buffer |= next >> self.count;
        self.at = self.at.wrapping_add((63 ^ self.count) as usize >> 3);
        self.count |= 56;
    }

    #[cold]
    fn last_bytes(&self) -> u64 {
        let mut bytes = [0; 8];
        let rest = self.data.get(self.at..).unwrap_or_default();
        bytes[..rest.len()].copy_from_slice(rest);
        u64::from_be_bytes(bytes)
    }

    /// Loads if fewer than 32 bits are there.
    #[inline(always)]
    pub(super) fn ensure32(&mut self) {
        if self.count < 32 {
            self.refill();
        }
    }

    /// The next `count` bits, 1 to 32, which stay.
    #[inline(always)]
    pub(super) fn peek(&self, count: u32) -> usize {
        (self.buffer >> (64 - count)) as usize
    }

    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer = self.buffer.wrapping_shl(count);
        self.count = self.count.wrapping_sub(count);
    }

    /// Takes `count` bits, 0 to 16, which must have been loaded.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> i32 {
        // In two steps, since a shift by 64 is none.
        let value = (self.buffer >> 1 >> (63 ^ count)) as i32;
        self.skip(count);
        value
    }

    /// Takes one bit.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        if self.count == 0 {
            self.refill();
        }
        let bit = self.buffer >> 63 != 0;
        self.skip(1);
        bit
    }

    /// Takes the `size` bits, 1 to 16, of a coefficient, and returns its value (T.81, F.2.2.1).
    #[inline(always)]
    pub(super) fn coefficient(&mut self, size: u32) -> i32 {
        let positive = (self.buffer >> 63) as i32;
        let bits = self.peek(size) as i32;
        self.skip(size);
        // A first bit of 0 marks a negative value, stored minus 1.
        bits + ((positive.wrapping_sub(1)) & (1 - (1 << size)))
    }

    /// Bits taken so far.
    fn taken(&self) -> usize {
        (self.at * 8).wrapping_sub(self.count as usize)
    }

    /// Whether more bits were taken than there are.
    #[inline(always)]
    pub(super) fn overrun(&self) -> bool {
        self.at.wrapping_mul(8).wrapping_sub(self.count as usize) > self.data.len().wrapping_mul(8)
    }

    /// How many of the last bytes that were touched are zeros.
    pub(super) fn zeros_taken(&self) -> usize {
        let taken = self.data.get(..self.taken().div_ceil(8)).unwrap_or(self.data);
        taken.iter().rev().take_while(|&&byte| byte == 0).count()
    }

    /// The whole bytes that were not touched.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.data.get(self.taken().div_ceil(8)..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_in_order_and_zeros_follow() {
        let data: Vec<u8> = (0..50u8).map(|n| n.wrapping_mul(73)).collect();
        let bit = |at: usize| data.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
        let mut bits = Bits::new(&data);
        let mut at = 0;
        for step in 0..60 {
            bits.ensure32();
            let count = step % 17;
            let want = (at..at + count).fold(0, |value, at| value << 1 | i32::from(bit(at)));
            assert_eq!(bits.take(count as u32), want, "{count} bits at {at}");
            at += count;
            assert_eq!(bits.overrun(), at > data.len() * 8);
            assert_eq!(bits.rest(), &data[at.div_ceil(8).min(data.len())..]);
        }
        assert!(at > data.len() * 8);
    }

    #[test]
    fn zeros_that_were_taken_are_counted_from_where_reading_stands() {
        let data = [0, 0, 1, 0, 0, 0, 0, 1, 0, 0];
        for (taken, zeros) in [(0, 0), (1, 1), (16, 2), (17, 0), (24, 0), (25, 1), (56, 4), (64, 0), (80, 2), (96, 2)] {
            let mut bits = Bits::new(&data);
            for _ in 0..taken {
                bits.bit();
            }
            assert_eq!(bits.zeros_taken(), zeros, "{taken} bits");
        }
    }

    #[test]
    fn a_coefficients_first_bit_is_its_sign() {
        for size in 1..=11u32 {
            for value in [-(1i32 << size) + 1, -(1 << (size - 1)), 1 << (size - 1), (1 << size) - 1] {
                let stored = if value < 0 { value + (1 << size) - 1 } else { value };
                let word = (stored as u16) << (16 - size);
                let data = word.to_be_bytes();
                let mut bits = Bits::new(&data);
                bits.refill();
                assert_eq!(bits.coefficient(size), value);
            }
        }
    }
}
