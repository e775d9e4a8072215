//! One thing that is read: a file of the log, a FIFO in its place, or standard input.
//!
//! Takes an open descriptor; makes lines. A regular file keeps its place and is read by offset; a
//! FIFO or standard input is read only after the kernel said that there is something, so a
//! descriptor shared with others need not be made non-blocking. When to read, and when to leave an
//! old file, is decided by the tail.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Instant,
};

use refract_core::line::{Line, LineSplitter};
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    fs::{Mode, OFlags, Stat, fstat, open},
    io::{Errno, read},
};

use super::place::{Fresh, Place};

/// Which file it is: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// Something that is read, and what is known of it.
#[derive(Debug)]
pub(super) struct Source {
    fd: OwnedFd,
    pub(super) identity: Identity,
    kind: Kind,
    /// The watch on a regular file, where one could be set.
    pub(super) watch: Option<i32>,
    /// There may be something to read.
    pub(super) ready: bool,
    /// It has the log's name.
    pub(super) named: bool,
    /// When it last gave something, or lost the log's name.
    pub(super) quiet_since: Instant,
    /// Why it could not be read, if that was said.
    pub(super) failed: Option<Errno>,
}

#[derive(Debug)]
enum Kind {
    File(Place),
    Pipe {
        lines: LineSplitter,
        /// Standard input ends; a FIFO in the log's place does not, between two writers.
        is_input: bool,
        /// Whether the kernel can wait for it; not so for standard input from a file.
        waits: bool,
    },
}

/// What one read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// So many new bytes.
    Bytes(usize),
    /// The file was cut short or written anew.
    Truncated,
    /// It will never give anything again.
    Ended,
    /// The kernel would not let us read.
    Failed(Errno),
}

impl Source {
    pub(super) fn file(fd: OwnedFd, identity: Identity, place: Place, now: Instant) -> Self {
        Self::new(fd, identity, Kind::File(place), now)
    }

    /// A FIFO, registered with the epoll instance `gate`.
    pub(super) fn fifo(
        fd: OwnedFd,
        identity: Identity,
        gate: &OwnedFd,
        now: Instant,
    ) -> Result<Self, Errno> {
        let_through(gate, fd.as_fd())?;
        Ok(Self::new(
            fd,
            identity,
            Kind::Pipe { lines: LineSplitter::new(), is_input: false, waits: true },
            now,
        ))
    }

    /// Standard input, registered with `gate` where the kernel can wait for it.
    pub(super) fn input(fd: OwnedFd, gate: &OwnedFd, now: Instant) -> Result<Self, Errno> {
        let identity = Identity::from(&fstat(&fd)?);
        let waits = match let_through(gate, fd.as_fd()) {
            Ok(()) => true,
            Err(Errno::PERM) => false,
            Err(other) => return Err(other),
        };
        Ok(Self::new(
            fd,
            identity,
            Kind::Pipe { lines: LineSplitter::new(), is_input: true, waits },
            now,
        ))
    }

    fn new(fd: OwnedFd, identity: Identity, kind: Kind, now: Instant) -> Self {
        Self {
            fd,
            identity,
            kind,
            watch: None,
            ready: true,
            named: true,
            quiet_since: now,
            failed: None,
        }
    }

    /// Whether new bytes are announced by the gate and not by a watch.
    pub(super) fn is_piped(&self) -> bool {
        !matches!(self.kind, Kind::File(_))
    }

    /// Whether it can be watched and is not.
    pub(super) fn wants_watch(&self) -> bool {
        self.watch.is_none() && !self.is_piped()
    }

    /// How many lines were too long so far.
    pub(super) fn oversized(&self) -> u64 {
        match &self.kind {
            Kind::File(place) => place.lines.oversized(),
            Kind::Pipe { lines, .. } => lines.oversized(),
        }
    }

    /// Bytes of a regular file that are still to be read.
    pub(super) fn unread(&self) -> u64 {
        let Kind::File(place) = &self.kind else { return 0 };
        let size = fstat(&self.fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        size.saturating_sub(place.offset)
    }

    /// The place of a regular file.
    pub(super) fn place(&self) -> Option<&Place> {
        match &self.kind {
            Kind::File(place) => Some(place),
            Kind::Pipe { .. } => None,
        }
    }

    /// Closes it; a regular file leaves its place.
    pub(super) fn close(self, gate: &OwnedFd) -> Option<Place> {
        match self.kind {
            Kind::File(place) => Some(place),
            Kind::Pipe { .. } => {
                // Closing alone would not do: standard input has other descriptors.
                let _ = epoll::delete(gate, &self.fd);
                None
            }
        }
    }

    /// Reads once, as much as `buffer` takes, and gives the lines that this completes or skips.
    pub(super) fn read(
        &mut self,
        gate: &OwnedFd,
        buffer: &mut [u8],
        now: Instant,
        on_line: impl FnMut(Line<'_>),
    ) -> Outcome {
        let outcome = match &mut self.kind {
            Kind::File(place) => match place.read(self.fd.as_fd(), buffer) {
                Ok(Fresh::Bytes { bytes, at_end }) => {
                    self.ready = !at_end;
                    place.lines.push(bytes, on_line);
                    Ok(Outcome::Bytes(bytes.len()))
                }
                Ok(Fresh::Truncated) => Ok(Outcome::Truncated),
                Err(Errno::INTR) => Ok(Outcome::Bytes(0)),
                Err(other) => Err(other),
            },
            Kind::Pipe { lines, is_input, waits } => match read_waiting(&self.fd, buffer) {
                Ok(Some([])) => {
                    self.ready = false;
                    if *is_input {
                        Ok(Outcome::Ended)
                    } else {
                        reopen(&self.fd, gate).map(|fresh| {
                            self.fd = fresh;
                            Outcome::Bytes(0)
                        })
                    }
                }
                Ok(Some(bytes)) => {
                    lines.push(bytes, on_line);
                    Ok(Outcome::Bytes(bytes.len()))
                }
                Ok(None) => {
                    self.ready = !*waits;
                    Ok(Outcome::Bytes(0))
                }
                Err(other) => Err(other),
            },
        };
        match outcome {
            Ok(outcome) => {
                if outcome != Outcome::Bytes(0) {
                    self.quiet_since = now;
                }
                outcome
            }
            Err(source) => {
                self.ready = false;
                Outcome::Failed(source)
            }
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a FIFO so that it never ends: with a writing end of our own. Where we may not write, it is
/// opened again after each end, see [`reopen`].
pub(super) fn open_fifo(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    match open(path, flags | OFlags::RDWR, Mode::empty()) {
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            open(path, flags | OFlags::RDONLY, Mode::empty())
        }
        other => other,
    }
}

/// Opens the same FIFO anew. A reader that has seen its last writer go is woken for ever; a fresh
/// one sleeps until a writer comes (fs/pipe.c, `pipe_poll`). The old one is closed only after, so
/// that what is written meanwhile stays.
fn reopen(fifo: &OwnedFd, gate: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::RDONLY;
    let fresh = open(path, flags, Mode::empty())?;
    let_through(gate, fresh.as_fd())?;
    epoll::delete(gate, fifo)?;
    Ok(fresh)
}

fn let_through(gate: &OwnedFd, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    epoll::add(gate, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
}

/// Reads what is there, without ever waiting: `None` if nothing is, no bytes at the end of input.
fn read_waiting<'a>(fd: &OwnedFd, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>, Errno> {
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) | Err(Errno::INTR) => return Ok(None),
        Ok(_) => {}
        Err(other) => return Err(other),
    }
    match read(fd, &mut *buffer) {
        Ok(length) => Ok(buffer.get(..length)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(other) => Err(other),
    }
}
