//! The one clock: the kernel's monotonic one, as `core` wants it.
//!
//! Takes instants; makes moments, and back. Moments of two runs since the same boot compare, and
//! slots of the same length begin at the same moments in every process of a host, so that a slot's
//! end can be measured from outside.

use std::time::{Duration, Instant, SystemTime};

use refract_core::Moment;
use rustix::time::{ClockId, clock_gettime};

/// Added to the kernel's clock, so that what was remembered from before the boot has a moment too.
/// A whole number of slots, for any window that divides it.
const BEFORE_BOOT: Duration = Duration::from_hours(48);

/// A moment and the instants that it is at.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    moment: Moment,
    wall: SystemTime,
}

impl Clock {
    /// Reads the clocks.
    #[must_use]
    pub fn start() -> Self {
        let instant = Instant::now();
        let time = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
        let since_boot = Duration::from_secs(seconds) + Duration::from_nanos(nanos);
        let moment = Moment::default().saturating_add(BEFORE_BOOT + since_boot);
        Self { instant, moment, wall: SystemTime::now() }
    }

    /// The moment of an instant; one before the clock was started is its start.
    #[must_use]
    pub fn moment(&self, instant: Instant) -> Moment {
        self.moment.saturating_add(instant.saturating_duration_since(self.instant))
    }

    /// The instant of a moment; a moment before the clock was started is its start.
    #[must_use]
    pub fn instant(&self, moment: Moment) -> Instant {
        self.instant + moment.saturating_since(self.moment)
    }

    /// The time of day of a moment, as far as the clock has not been set since the start.
    #[must_use]
    pub fn wall(&self, moment: Moment) -> SystemTime {
        let later = moment.saturating_since(self.moment);
        let earlier = self.moment.saturating_since(moment);
        (self.wall + later).checked_sub(earlier).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The moment of a time of day: long ago for what is longer ago than anything is remembered.
    #[must_use]
    pub fn moment_of_wall(&self, wall: SystemTime) -> Moment {
        match self.wall.duration_since(wall) {
            Ok(earlier) => self.moment.saturating_sub(earlier),
            Err(later) => self.moment.saturating_add(later.duration()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_instants_go_back_and_forth() {
        let clock = Clock::start();
        let later = clock.instant + Duration::from_millis(1_500);
        assert_eq!(clock.instant(clock.moment(later)), later);
        assert_eq!(clock.instant(Moment::default()), clock.instant);
        let before = clock.wall - Duration::from_hours(24);
        assert_eq!(clock.wall(clock.moment_of_wall(before)), before);
    }

    #[test]
    fn a_second_run_goes_on_with_the_moments_of_the_first() {
        let (first, second) = (Clock::start(), Clock::start());
        assert!(second.moment(second.instant) >= first.moment(first.instant));
    }
}
