//! The inotify side: every directory on the way to the log, and the followed files themselves.
//!
//! Takes the log's path; makes "this file was written to" and "look at the path again". It opens no
//! log and reads none, and it trusts no event further than to look.

use std::{
    collections::VecDeque,
    ffi::{CStr, CString, OsString},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use super::news::TailError;
use crate::way::{self, Step, Way};

/// What is asked about a followed file: writes and truncation (`IN_MODIFY`), and what may mean that
/// it lost its name or its mode changed.
const FILE: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::ATTRIB).union(WatchFlags::MOVE_SELF);
/// Room for the events of one read, bytes: 256 writes, or some 100 changes in directories.
const ROOM: usize = 4096;
/// The longest event, bytes: a header and a name of `NAME_MAX` with its NUL (linux/inotify.h).
const LONGEST_EVENT: usize = 16 + 256;
/// Renames kept in mind at once; the oldest is forgotten first.
const RENAMES: usize = 16;

/// What a batch of events asks for, beyond reading the files that were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// Nothing.
    Nothing,
    /// The path may lead elsewhere: look at it.
    LookAtPath,
    /// Events were lost (`IN_Q_OVERFLOW`): look at the path and at every file.
    LookAtAll,
}

/// The inotify instance and what it watches.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: OwnedFd,
    steps: Vec<Step>,
    /// The directory that holds the log's file, links resolved, once the way led that far.
    home: Option<PathBuf>,
    /// Cookies of files that left the log's name and have not been seen to arrive.
    leaving: VecDeque<u32>,
    /// Names in `home` that files which had the log's name have now, oldest first.
    moved: VecDeque<CString>,
}

impl Watches {
    pub(super) fn new() -> Result<Self, TailError> {
        let inotify =
            inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|source| {
                TailError {
                    operation: "open",
                    object: "an inotify instance (see the sysctl fs.inotify.max_user_instances)"
                        .to_owned(),
                    source,
                }
            })?;
        Ok(Self {
            inotify,
            steps: Vec::new(),
            home: None,
            leaving: VecDeque::new(),
            moved: VecDeque::new(),
        })
    }

    /// Watches the file behind `fd`, whatever name it has.
    pub(super) fn watch_file(&self, fd: BorrowedFd<'_>) -> Result<i32, Errno> {
        inotify::add_watch(&self.inotify, format!("/proc/self/fd/{}", fd.as_raw_fd()), FILE)
    }

    /// Ends a watch. It may have ended by itself, with its file.
    pub(super) fn unwatch(&self, watch: i32) {
        let _ = inotify::remove_watch(&self.inotify, watch);
    }

    /// Takes the events that are waiting. `written` is given the watch of each file that was written
    /// to. For a line that is one read; more if it may have left something, or if an event concerns
    /// the path, which is then looked at with all that is known.
    pub(super) fn take(&mut self, mut written: impl FnMut(i32)) -> Asked {
        let mut buffer = [MaybeUninit::uninit(); ROOM];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut asked = Asked::Nothing;
        let mut events = 0;
        loop {
            // The error is EAGAIN: the queue is empty.
            let Ok(event) = reader.next() else { return asked };
            let (watch, what, cookie) = (event.wd(), event.events(), event.cookie());
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                asked = Asked::LookAtAll;
            } else if !self.steps.iter().any(|step| step.directory == watch) {
                written(watch);
                if what.difference(ReadFlags::MODIFY | ReadFlags::IGNORED) != ReadFlags::empty() {
                    asked = asked.max(Asked::LookAtPath);
                }
            } else if let Some(name) = event.file_name() {
                let home = self.steps.last().filter(|step| step.directory == watch);
                if let Some(log) = home {
                    let is_log = log.name.as_bytes() == name.to_bytes();
                    note_rename(&mut self.leaving, &mut self.moved, is_log, what, cookie, name);
                }
                let on_the_way = |step: &Step| {
                    step.directory == watch && step.name.as_bytes() == name.to_bytes()
                };
                if self.steps.iter().any(on_the_way) {
                    asked = asked.max(Asked::LookAtPath);
                }
            } else {
                asked = asked.max(Asked::LookAtPath);
            }
            events += 1;
            if reader.is_buffer_empty() {
                // A read that left an event for want of room has given more than this.
                if asked == Asked::Nothing && events < ROOM / LONGEST_EVENT {
                    return asked;
                }
                events = 0;
            }
        }
    }

    /// Watches every directory on the way to the log, and none that was left.
    pub(super) fn trace(&mut self, log: &Path) -> Way {
        let former = std::mem::take(&mut self.steps);
        let mut way = way::trace(&self.inotify, log, way::DIRECTORY);
        self.steps = std::mem::take(&mut way.steps);
        self.home = way.home.take();
        for step in former {
            if !self.steps.iter().any(|kept| kept.directory == step.directory) {
                self.unwatch(step.directory);
            }
        }
        way
    }

    /// Where files that once had the log's name are now, oldest first; each is given once.
    pub(super) fn moved(&mut self) -> Vec<PathBuf> {
        let Some(home) = &self.home else { return Vec::new() };
        let into = |name: CString| home.join(OsString::from_vec(name.into_bytes()));
        self.moved.drain(..).map(into).collect()
    }
}

impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Keeps track of the names that rotated files go by, so that a file which came and went between
/// two looks is still found. A rename is two events with one cookie.
fn note_rename(
    leaving: &mut VecDeque<u32>,
    moved: &mut VecDeque<CString>,
    is_log: bool,
    what: ReadFlags,
    cookie: u32,
    name: &CStr,
) {
    let known = moved.iter().position(|moved| moved.as_c_str() == name);
    if what.contains(ReadFlags::MOVED_TO) {
        let arriving = leaving.iter().position(|&left| left == cookie);
        if let Some(known) = known {
            moved.remove(known);
        }
        if let Some(arriving) = arriving {
            leaving.remove(arriving);
            if !is_log {
                keep_latest(moved, name.to_owned());
            }
        }
    } else if what.contains(ReadFlags::MOVED_FROM) {
        if let Some(known) = known {
            moved.remove(known);
        }
        if is_log || known.is_some() {
            keep_latest(leaving, cookie);
        }
    } else if what.contains(ReadFlags::DELETE)
        && let Some(known) = known
    {
        moved.remove(known);
    }
}

fn keep_latest<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == RENAMES {
        queue.pop_front();
    }
    queue.push_back(item);
}
