//! Numbers that look like chance and are the same every time.

/// SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). It holds
/// its seed.
#[derive(Debug, Clone)]
pub(in crate::schedule) struct Dice(pub(in crate::schedule) u64);

impl Dice {
    /// The next number, from 0 to below 1.
    pub(in crate::schedule) fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
