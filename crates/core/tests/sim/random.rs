//! Numbers that look random and are the same in every run: xorshift64*, seeded.
//!
//! It reads no clock and no entropy: a life that went wrong goes wrong again.

/// The generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Any seed will do.
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds are spread first, or their lives begin alike.
        let mut random = Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// At least `low`, less than `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + (self.next() >> 11) % (high - low).max(1)
    }

    /// Half the time as long as `mean` and less, now and then four times as long.
    pub(crate) fn around(&mut self, mean: u64) -> u64 {
        let share = self.between(1, 1_000);
        // A parabola through 0, and 4 at the end: its mean is 4/3 of `mean`.
        mean * share * share / 250_000
    }

    /// `true` in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.between(0, 100) < percent
    }

    /// One of `all`.
    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        let last = all.len() as u64;
        all[usize::try_from(self.between(0, last)).unwrap()]
    }
}
