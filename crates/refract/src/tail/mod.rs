//! Follows the access log.
//!
//! Takes the log's path, or standard input, and the caller's clock; makes lines, and news of what
//! became of the log. One thread, no timer and no thread of its own: the caller waits on
//! [`Tail::sources`] and calls in. It does not know what a line means, and it writes nothing.
//!
//! | room | what it does |
//! |---|---|
//! | `look` | where the path leads now: takes files up and counts out old ones |
//! | `watch` | inotify: every directory on the way, every followed file |
//! | `source` | one open file, FIFO or standard input: bytes to lines |
//! | `place` | how far a file was read, and whether it is still the same |
//! | `news` | what is said besides lines |
//!
//! What holds:
//! - A line is given once its newline is written, and once only. Lines of one file come in their
//!   order; a rotated file's rest comes before its successor's beginning.
//! - A file is known by its device, its inode and its bytes: the last 64 before the place where
//!   reading stands are compared at each read, at the cost of no further call.
//! - Following begins at the end of a file that exists; whatever appears later is read whole.
//! - A rotated or deleted file is read until its successor is there and it has been quiet for
//!   [`OLD_IS_DONE_AFTER`]. Of more than [`OLD_FILES_KEPT`] such files the oldest that has been read
//!   to its end is left, or the oldest if none has.
//! - A file that was cut short is read on from its new end, one that was written anew from its
//!   start. What was cut off unread is lost, and nothing else is. (A file that is cut short, but
//!   not to nothing, and written to before it is looked at is taken for one of the two.)
//! - A file that carries the log's name only between two looks is found by its rename, if it stays
//!   in the directory; one that is deleted, or that a link merely pointed at, before the first look
//!   was never there.

mod look;
mod news;
mod place;
mod source;
mod watch;

use std::{
    collections::VecDeque,
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use refract_core::line::Line;
use rustix::{event::epoll, io::Errno};

use self::{
    look::Found,
    place::Place,
    source::{Identity, Outcome, Source},
    watch::{Asked, Watches},
};

pub use self::news::{News, TailError, Trouble};

/// How long an old file must have been quiet before it is left. Xray holds a log open until a
/// one-minute tick saw no line, so it writes to a renamed file for 60 to 120 s after its last line
/// there (Xray-core, common/log/logger.go, `generalLogger.run`).
pub const OLD_IS_DONE_AFTER: Duration = Duration::from_secs(150);
/// How many old files are kept open besides the log itself.
pub const OLD_FILES_KEPT: usize = 16;
/// How often [`Tail::check`] wants to be called.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Bytes of one read, and so of one call of [`Tail::read_chunk`].
const CHUNK: usize = 128 * 1024;
/// Places remembered in files that were left, in case they come back; the oldest goes first.
const PLACES_KEPT: usize = 16;
/// News kept for a caller that does not ask; the oldest goes first.
const NEWS_KEPT: usize = 64;

/// Where the lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// A file or a FIFO, there already or not yet.
    Path(PathBuf),
    /// Standard input: a pipe, FIFO, socket, terminal or file, read to its end.
    Stdin,
}

impl<P: AsRef<OsStr> + ?Sized> From<&P> for LogTarget {
    /// `-` and `/dev/stdin` are standard input, everything else is a path.
    fn from(name: &P) -> Self {
        let name = name.as_ref();
        if name == "-" || name == "/dev/stdin" { Self::Stdin } else { Self::Path(name.into()) }
    }
}

/// Whether there is more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Call again before waiting.
    More,
    /// Everything was read: wait for the next wake.
    Drained,
    /// Standard input has ended.
    Ended,
}

/// What was read and what happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes read, of lines given and not given.
    pub bytes: u64,
    /// Lines given.
    pub lines: u64,
    /// Lines skipped because they were longer than [`refract_core::line::MAX_LINE`].
    pub oversized: u64,
    /// How often another file took the log's name.
    pub rotations: u64,
    /// How often a file was cut short or written anew.
    pub truncations: u64,
    /// How often the kernel's event queue overflowed, so that everything was looked at.
    pub overflows: u64,
}

/// The follower of one log.
///
/// The caller's loop: register [`sources`](Self::sources) for reading (level-triggered), call
/// [`read_chunk`](Self::read_chunk) until it says [`Progress::Drained`], then wait; when woken call
/// [`woken`](Self::woken) and read again, and every [`CHECK_EVERY`] call [`check`](Self::check) and
/// read again. For one appended line that is one read of the event and one of the file.
#[derive(Debug)]
pub struct Tail {
    /// The path as it was named, made absolute; none for standard input.
    log: Option<PathBuf>,
    watches: Watches,
    /// An epoll instance inside the caller's: FIFOs come and go, the caller's set stays.
    gate: OwnedFd,
    /// Everything that is read, oldest first.
    sources: Vec<Source>,
    begin: Begin,
    left: VecDeque<(Identity, Place)>,
    ended: bool,
    found: Found,
    unwatched: Option<Trouble>,
    counters: Counters,
    news: VecDeque<News>,
    buffer: Vec<u8>,
}

/// Where the next unknown file is begun.
#[derive(Clone, Copy, Debug)]
enum Begin {
    /// The log has not been seen yet: what is in it is from before our time.
    AtEnd,
    /// The log was seen at the start with this size, but could not be opened.
    After(Identity, u64),
    /// The log was followed, or was not there: what appears is new.
    AtStart,
}

impl Tail {
    /// Begins to follow. That the log is not there or cannot be read is no error but
    /// [news](Self::news); it is followed once that changes.
    pub fn open(target: &LogTarget, now: Instant) -> Result<Self, TailError> {
        let failed = |operation, object: &str| {
            let object = object.to_owned();
            move |source| TailError { operation, object, source }
        };
        let gate = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(failed("open", "an epoll instance"))?;
        let mut tail = Self {
            log: None,
            watches: Watches::new()?,
            gate,
            sources: Vec::new(),
            begin: Begin::AtEnd,
            left: VecDeque::new(),
            ended: false,
            found: Found::Unknown,
            unwatched: None,
            counters: Counters::default(),
            news: VecDeque::new(),
            buffer: vec![0; CHUNK],
        };
        match target {
            LogTarget::Path(path) => {
                let absolute = std::path::absolute(path).map_err(|error| TailError {
                    operation: "follow",
                    object: format!("the path \"{}\"", path.display()),
                    source: Errno::from_io_error(&error).unwrap_or(Errno::INVAL),
                })?;
                tail.log = Some(absolute);
                tail.look(now);
            }
            LogTarget::Stdin => {
                let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| {
                    let source = Errno::from_io_error(&error).unwrap_or(Errno::BADF);
                    failed("read", "standard input")(source)
                })?;
                let source = Source::input(input, &tail.gate, now)
                    .map_err(failed("read", "standard input"))?;
                tail.sources.push(source);
            }
        }
        Ok(tail)
    }

    /// The descriptors to wait on for reading, level-triggered. They stay the same for life.
    #[must_use]
    pub fn sources(&self) -> [BorrowedFd<'_>; 2] {
        [self.watches.as_fd(), self.gate.as_fd()]
    }

    /// Takes in why the caller was woken. Then read until [`Progress::Drained`].
    pub fn woken(&mut self, now: Instant) {
        for source in &mut self.sources {
            source.ready |= source.is_piped();
        }
        if self.log.is_none() {
            return;
        }
        let sources = &mut self.sources;
        let asked = self.watches.take(|watch| {
            let written = sources.iter_mut().find(|source| source.watch == Some(watch));
            if let Some(source) = written {
                source.ready = true;
            }
        });
        match asked {
            Asked::Nothing => {}
            Asked::LookAtPath => self.look(now),
            Asked::LookAtAll => {
                self.counters.overflows += 1;
                self.check(now);
            }
        }
    }

    /// Looks at everything, whatever was announced: a file system may keep changes to itself, and a
    /// watch may be missing. Then read until [`Progress::Drained`]; old files that are quiet are
    /// left on the way.
    pub fn check(&mut self, now: Instant) {
        if self.log.is_some() {
            self.look(now);
        }
        for source in &mut self.sources {
            source.ready = true;
        }
    }

    /// Reads one chunk of the oldest file that may hold something, 128 KiB at most, and gives the
    /// lines that it completes, and between them what it skips.
    pub fn read_chunk(&mut self, now: Instant, mut on_line: impl FnMut(Line<'_>)) -> Progress {
        let Some(index) = self.sources.iter().position(|source| source.ready) else {
            return if self.ended { Progress::Ended } else { Progress::Drained };
        };
        let has_successor = index + 1 < self.sources.len();
        let Some(source) = self.sources.get_mut(index) else { return Progress::Drained };
        let oversized = source.oversized();
        let counters = &mut self.counters;
        let outcome = source.read(&self.gate, &mut self.buffer, now, |line| {
            counters.lines += u64::from(line.whole().is_some());
            on_line(line);
        });
        counters.oversized += source.oversized() - oversized;
        if let Outcome::Failed(why) = outcome {
            if source.failed.replace(why) != Some(why) {
                let name = self.log.as_deref().unwrap_or(Path::new("standard input"));
                tell(&mut self.news, News::Unreadable(Trouble::reading(name, why)));
            }
        } else if source.failed.take().is_some() {
            tell(&mut self.news, News::ReadableAgain);
        }
        let quiet = now.saturating_duration_since(source.quiet_since) >= OLD_IS_DONE_AFTER;
        let is_done = !source.named && has_successor && quiet;
        let is_piped = source.is_piped();
        match outcome {
            Outcome::Bytes(0) if is_done => self.leave(index),
            Outcome::Bytes(length) => self.counters.bytes += length as u64,
            Outcome::Truncated => {
                self.counters.truncations += 1;
                tell(&mut self.news, News::Truncated);
            }
            // What cannot be read is announced without end. A FIFO is taken up anew at the next look.
            Outcome::Failed(_) if is_piped && self.log.is_some() => self.leave(index),
            Outcome::Failed(_) if !is_piped => {}
            Outcome::Ended | Outcome::Failed(_) => {
                self.leave(index);
                self.ended = true;
                tell(&mut self.news, News::Ended);
            }
        }
        match self.sources.iter().any(|source| source.ready) {
            true => Progress::More,
            false if self.ended => Progress::Ended,
            false => Progress::Drained,
        }
    }

    /// Gives the lines of the last `limit` bytes before the place where following begins, for a
    /// caller that wants to know the past: call it before the first [`read_chunk`](Self::read_chunk)
    /// and no line is missing or double between the two. Its lines are not counted.
    pub fn read_back(&mut self, limit: u64, on_line: impl FnMut(Line<'_>)) -> Result<(), Trouble> {
        let Some(source) = self.sources.last() else { return Ok(()) };
        let Some(place) = source.place() else { return Ok(()) };
        let path = self.log.as_deref().unwrap_or(Path::new("standard input"));
        place
            .read_back(source.as_fd(), limit, &mut self.buffer, on_line)
            .map_err(|why| Trouble::reading(path, why))
    }

    /// The oldest thing that happened and was not told yet.
    pub fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// What was read so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Closes a source for good and remembers how far it was read.
    fn leave(&mut self, index: usize) {
        let source = self.sources.remove(index);
        let identity = source.identity;
        if let Some(watch) = source.watch {
            self.watches.unwatch(watch);
        }
        if let Some(place) = source.close(&self.gate) {
            if self.left.len() == PLACES_KEPT {
                self.left.pop_front();
            }
            self.left.push_back((identity, place));
        }
    }
}

fn tell(news: &mut VecDeque<News>, item: News) {
    if news.len() == NEWS_KEPT {
        news.pop_front();
    }
    news.push_back(item);
}
