//! How far a file was read, and how to tell that it is still the file that was read so far.
//!
//! Takes a regular file; makes its new bytes, each once. The last bytes before the place are read
//! again together with the new ones, in one call: if they are gone or are others, the file was cut
//! short or written anew, even if it has grown past the place since. It opens and watches nothing.

use std::os::fd::BorrowedFd;

use refract_core::line::{Line, LineSplitter, MAX_LINE};
use rustix::{
    fs::fstat,
    io::{Errno, pread},
};

/// Bytes before the place that are compared at each read. Two lines of an access log that agree in
/// so many bytes at the same offset would have to be of the same second and the same peer.
const BEFORE: usize = 64;
/// Bytes kept of the file's beginning, to tell a file that was cut short from one written anew.
const HEAD: usize = 1024;
/// Room that [`Place::at_end`] and [`Place::read`] need at least, bytes.
pub(super) const LEAST_BUFFER: usize = BEFORE + MAX_LINE + 1;

/// A place in a file, with the line that it may stand in.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) lines: LineSplitter,
    /// The bytes before `offset`, [`BEFORE`] or all of them.
    before: Vec<u8>,
    /// The first bytes of the file, [`HEAD`] or as many as were passed.
    head: Vec<u8>,
}

/// What one read of a file gave.
pub(super) enum Fresh<'a> {
    /// Bytes that were not there before; none at the end of the file.
    Bytes {
        /// The bytes.
        bytes: &'a [u8],
        /// Whether the file ended there.
        at_end: bool,
    },
    /// What was before the place is gone or differs; the place has been moved to where the file is
    /// new.
    Truncated,
}

impl Place {
    /// The beginning of a file.
    pub(super) fn at_start() -> Self {
        Self::default()
    }

    /// The end of a file of `size` bytes or, if it ends in an incomplete line, that line's start.
    pub(super) fn at_end(fd: BorrowedFd<'_>, size: u64, buffer: &mut [u8]) -> Result<Self, Errno> {
        // One byte more than the longest line, so that a longer one is seen to be too long.
        let from = size.saturating_sub((MAX_LINE + 1 + BEFORE) as u64);
        let length = usize::try_from(size - from).unwrap_or(usize::MAX);
        let room = buffer.get_mut(..length).ok_or(Errno::INVAL)?;
        let read = pread(fd, &mut *room, from)?;
        if read < length {
            // It was cut short this moment: what it holds now is new.
            return Ok(Self::at_start());
        }
        let line_start = memchr::memrchr(b'\n', room).map_or(0, |newline| newline + 1);
        let start = line_start.max(length.saturating_sub(MAX_LINE + 1));
        let mut head = vec![0; HEAD];
        let head_length = pread(fd, head.as_mut_slice(), 0)?;
        let offset = from + start as u64;
        head.truncate(head_length.min(usize::try_from(offset).unwrap_or(usize::MAX)));
        let mut place = Self { offset, head, ..Self::default() };
        place.remember(room.get(..start).unwrap_or_default());
        Ok(place)
    }

    /// Whether the file still holds what was read before the place.
    pub(super) fn holds(&self, fd: BorrowedFd<'_>) -> bool {
        let mut found = [0; BEFORE];
        let Some(found) = found.get_mut(..self.before.len()) else { return false };
        let from = self.offset - self.before.len() as u64;
        pread(fd, &mut *found, from) == Ok(self.before.len()) && *found == self.before[..]
    }

    /// Reads on from the place, as much as `buffer` takes.
    pub(super) fn read<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        buffer: &'a mut [u8],
    ) -> Result<Fresh<'a>, Errno> {
        let known = self.before.len();
        let read = pread(fd, &mut *buffer, self.offset - known as u64)?;
        let at_end = read < buffer.len();
        let all = buffer.get(..read).unwrap_or_default();
        let bytes = match all.split_at_checked(known) {
            Some((before, bytes)) if before == self.before => bytes,
            _ => {
                self.move_to_the_new(fd)?;
                return Ok(Fresh::Truncated);
            }
        };
        if !bytes.is_empty() {
            if self.offset == self.head.len() as u64 && self.head.len() < HEAD {
                let missing = bytes.len().min(HEAD - self.head.len());
                self.head.extend_from_slice(bytes.get(..missing).unwrap_or_default());
            }
            self.offset += bytes.len() as u64;
            self.remember(all);
        }
        Ok(Fresh::Bytes { bytes, at_end })
    }

    /// Gives the lines of the last `limit` bytes before the place, from the first that lies whole
    /// within them. Where that is not the file's first, it is said before that something is
    /// skipped.
    pub(super) fn read_back(
        &self,
        fd: BorrowedFd<'_>,
        limit: u64,
        buffer: &mut [u8],
        mut on_line: impl FnMut(Line<'_>),
    ) -> Result<(), Errno> {
        let start = self.offset.saturating_sub(limit);
        // One byte earlier, so that a line that begins at `start` is seen to begin there.
        let mut from = start.saturating_sub(1);
        let mut is_cut = start > 0;
        if is_cut {
            on_line(Line::Skipped);
        }
        let mut lines = LineSplitter::new();
        while from < self.offset {
            let left = usize::try_from(self.offset - from).unwrap_or(usize::MAX);
            let room = buffer.len().min(left);
            let read = pread(fd, buffer.get_mut(..room).unwrap_or_default(), from)?;
            let Some(mut bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            from += read as u64;
            if is_cut {
                let Some(newline) = memchr::memchr(b'\n', bytes) else { continue };
                bytes = bytes.get(newline + 1..).unwrap_or_default();
                is_cut = false;
            }
            lines.push(bytes, &mut on_line);
        }
        Ok(())
    }

    /// Goes to the beginning of a file that was written anew, or to the end of one that was only
    /// cut short: that is, still begins as it did, and is shorter than what was read of it. A file
    /// that was cut short and has grown past the place since cannot be told from a new one.
    fn move_to_the_new(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.lines.discard();
        let size = u64::try_from(fstat(fd)?.st_size).unwrap_or_default();
        let mut start = vec![0; HEAD];
        let read = pread(fd, start.as_mut_slice(), 0)?;
        let length = read.min(self.head.len());
        let begins_as_before = length > 0 && start.get(..length) == self.head.get(..length);
        *self = if begins_as_before && size < self.offset {
            let mut buffer = vec![0; LEAST_BUFFER];
            let lines = std::mem::take(&mut self.lines);
            Self { lines, ..Self::at_end(fd, size, &mut buffer)? }
        } else {
            Self { lines: std::mem::take(&mut self.lines), ..Self::at_start() }
        };
        Ok(())
    }

    /// Keeps the last bytes of what was read. `read` must reach back [`BEFORE`] bytes or to the
    /// beginning of the file.
    fn remember(&mut self, read: &[u8]) {
        self.before.clear();
        let last = read.len().saturating_sub(BEFORE);
        self.before.extend_from_slice(read.get(last..).unwrap_or_default());
    }
}
