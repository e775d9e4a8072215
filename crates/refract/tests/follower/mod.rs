//! A tail in its caller's loop: a real epoll instance, a clock that the test moves.

use std::{
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use refract::tail::{LogTarget, News, Progress, Tail};
use refract_core::line::Line;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

/// How long an event that must come may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Follower {
    pub(crate) tail: Tail,
    pub(crate) now: Instant,
    pub(crate) lines: Vec<String>,
    pub(crate) ended: bool,
    epoll: OwnedFd,
}

impl Follower {
    /// Follows `log` and reads what is there.
    pub(crate) fn of(log: &Path) -> Self {
        Self::of_target(&LogTarget::Path(log.to_owned()))
    }

    pub(crate) fn of_target(target: &LogTarget) -> Self {
        let now = Instant::now();
        let tail = Tail::open(target, now).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for source in tail.sources() {
            epoll::add(&epoll, source, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
                .unwrap();
        }
        let mut follower = Self { tail, now, lines: Vec::new(), ended: false, epoll };
        follower.read();
        follower
    }

    /// Reads until the tail says that there is no more.
    pub(crate) fn read(&mut self) {
        loop {
            let lines = &mut self.lines;
            let take = |line: Line<'_>| {
                lines.extend(line.whole().map(|line| String::from_utf8_lossy(line).into_owned()));
            };
            match self.tail.read_chunk(self.now, take) {
                Progress::More => {}
                Progress::Drained => return,
                Progress::Ended => {
                    self.ended = true;
                    return;
                }
            }
        }
    }

    /// Answers every wake that is due. What this thread did to a file has been announced by the
    /// time that its system call returns, so this needs no waiting.
    pub(crate) fn settle(&mut self) {
        self.read();
        while self.wait(Duration::ZERO) {
            self.tail.woken(self.now);
            self.read();
        }
    }

    /// Takes in the announcements without reading, as a caller does that is slow to read.
    pub(crate) fn notice(&mut self) {
        while self.wait(Duration::ZERO) {
            self.tail.woken(self.now);
        }
    }

    /// Lets time pass, checks and reads.
    pub(crate) fn check_after(&mut self, time: Duration) {
        self.now += time;
        self.tail.check(self.now);
        self.read();
    }

    /// Answers wakes until so many lines have come.
    pub(crate) fn await_lines(&mut self, count: usize) {
        while self.lines.len() < count {
            self.await_wake();
        }
    }

    /// Answers one wake.
    pub(crate) fn await_wake(&mut self) {
        assert!(self.wait(PATIENCE), "nothing happened");
        self.tail.woken(self.now);
        self.read();
    }

    pub(crate) fn news(&mut self) -> Vec<News> {
        std::iter::from_fn(|| self.tail.news()).collect()
    }

    /// Settles and compares all lines since the last time.
    #[track_caller]
    pub(crate) fn expect(&mut self, lines: &[&str]) {
        self.settle();
        assert_eq!(self.lines, lines);
        self.lines.clear();
    }

    fn wait(&self, time: Duration) -> bool {
        let timeout = Timespec::try_from(time).unwrap();
        let mut events = Vec::with_capacity(2);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)).unwrap() > 0
    }
}
