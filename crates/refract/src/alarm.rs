//! Wakes the loop at an instant, to the microsecond.
//!
//! Takes instants; becomes readable at each. The loop's own wait counts in whole milliseconds
//! (`epoll_wait(2)`), and the end of a slot is when verdicts fall. It decides nothing.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer of the kernel.
#[derive(Debug)]
pub struct Alarm {
    timer: OwnedFd,
    set: Option<Instant>,
}

impl Alarm {
    /// An alarm that is not set.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { timer: timerfd_create(TimerfdClockId::Monotonic, flags)?, set: None })
    }

    /// Sets it to `instant`; one system call where that is news. It stays readable from then on until
    /// it is [quieted](Self::quiet) or set to another.
    pub fn set(&mut self, instant: Instant, now: Instant) -> io::Result<()> {
        if self.set == Some(instant) {
            return Ok(());
        }
        // All zero would be no alarm.
        let wait = instant.saturating_duration_since(now).max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(wait).map_err(io::Error::other)?;
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        self.set = Some(instant);
        Ok(())
    }

    /// It has rung: it is quiet until it is set again.
    pub fn quiet(&mut self) {
        self.set = None;
        let mut rings = [0; 8];
        // An alarm that did not ring (EAGAIN) is quiet already.
        let _ = rustix::io::read(&self.timer, &mut rings);
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn rings(alarm: &Alarm, bound: Duration) -> bool {
        let bound = Timespec::try_from(bound).unwrap();
        poll(&mut [PollFd::new(alarm, PollFlags::IN)], Some(&bound)).unwrap() == 1
    }

    #[test]
    fn it_rings_once_not_before_its_time_and_again_when_it_is_set_again() {
        let mut alarm = Alarm::new().unwrap();
        assert!(!rings(&alarm, Duration::ZERO));
        for _ in 0..3 {
            let now = Instant::now();
            let due = now + Duration::from_micros(2_500);
            alarm.set(due, now).unwrap();
            alarm.set(due, now).unwrap();
            assert!(rings(&alarm, Duration::from_secs(5)));
            assert!(Instant::now() >= due);
            alarm.quiet();
            assert!(!rings(&alarm, Duration::from_millis(5)));
        }
        let now = Instant::now();
        alarm.set(now, now).unwrap();
        assert!(rings(&alarm, Duration::from_secs(5)), "what is due already rings at once");
    }
}
