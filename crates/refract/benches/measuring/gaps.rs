//! Random waits, so that nobody's period is measured (an xorshift generator; any spread will do).

use std::time::Duration;

/// Gives one wait after the other.
pub(crate) struct Gaps {
    state: u64,
}

impl Default for Gaps {
    fn default() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Gaps {
    /// A wait of at least `least` and less than `least` and `spread` together.
    pub(crate) fn next(&mut self, least: Duration, spread: Duration) -> Duration {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let micros = u64::try_from(spread.as_micros()).unwrap_or(u64::MAX).max(1);
        least + Duration::from_micros(self.state % micros)
    }
}
