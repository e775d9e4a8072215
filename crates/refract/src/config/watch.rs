//! Whether the policy file may have changed.
//!
//! Takes the file's path; makes a file descriptor that becomes readable and a yes or no. Every
//! directory on the way is watched, those behind links too, so that the file may be edited in
//! place, replaced, be made later, or be switched by a link further up, as Kubernetes does with
//! `..data`. It reads no file: what to make of a change is for others.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{
    FileType,
    inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    lstat,
};

use crate::way::{self, Step};

/// What is asked about a directory: names that come and go, and that whoever wrote a file in it is
/// done (`IN_CLOSE_WRITE`). The writing itself (`IN_MODIFY`) is not asked: half a file is no policy.
const DIRECTORY: WatchFlags = way::DIRECTORY.union(WatchFlags::CLOSE_WRITE);
/// How long the file should have been left alone before it is read: some editors put a file into
/// its place in several steps.
pub const SETTLED: Duration = Duration::from_millis(200);
/// Room for the events of one read, bytes.
const ROOM: usize = 4096;

/// Watches one path.
#[derive(Debug)]
pub struct PolicyWatch {
    inotify: OwnedFd,
    path: PathBuf,
    steps: Vec<Step>,
    /// Where the file is or would be, links resolved, once the way leads that far.
    end: Option<PathBuf>,
}

impl PolicyWatch {
    /// Watches `path`, whatever of it exists. Call this before the file is read.
    pub fn new(path: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let path = std::path::absolute(path)?;
        let mut watch = Self { inotify, path, steps: Vec::new(), end: None };
        watch.trace();
        Ok(watch)
    }

    /// Whether the file may be another than when this was last asked. Never waits.
    pub fn changed(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); ROOM];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut changed = false;
        // The error is EAGAIN: the queue is empty.
        while let Ok(event) = reader.next() {
            let (what, name) = (event.events(), event.file_name());
            let on_the_way = |step: &Step| {
                step.directory == event.wd()
                    && name.is_none_or(|name| step.name.as_bytes() == name.to_bytes())
            };
            // IN_IGNORED is the end of a watch that was left on purpose, or follows an event that
            // said why.
            let concerns = !what.contains(ReadFlags::IGNORED) && self.steps.iter().any(on_the_way);
            if what.contains(ReadFlags::QUEUE_OVERFLOW)
                || concerns && !(what == ReadFlags::CREATE && is_being_written(self.end.as_deref()))
            {
                changed = true;
            }
        }
        if changed {
            self.trace();
        }
        changed
    }

    fn trace(&mut self) {
        let way = way::trace(&self.inotify, &self.path, DIRECTORY);
        let former = std::mem::replace(&mut self.steps, way.steps);
        self.end = way.home.zip(self.steps.last()).map(|(home, step)| home.join(&step.name));
        for step in former {
            if !self.steps.iter().any(|kept| kept.directory == step.directory) {
                // It may have ended by itself, with its directory.
                let _ = inotify::remove_watch(&self.inotify, step.directory);
            }
        }
    }
}

/// Whether a file that was made just now is one that somebody is about to write, who will be heard
/// of again when he is done; a hard link and a symbolic link are whole at once.
fn is_being_written(file: Option<&Path>) -> bool {
    let Some(Ok(found)) = file.map(lstat) else { return false };
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_nlink == 1
}

impl AsFd for PolicyWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        io::Write as _,
        os::unix::fs::symlink,
    };

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use tempfile::TempDir;

    use super::*;

    fn place() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        // The temporary directory may itself lie behind a link.
        let path = directory.path().canonicalize().unwrap().join("refract.toml");
        (directory, path)
    }

    /// Inotify tells within the system call that makes the change, so nothing is waited for.
    #[track_caller]
    fn told(watch: &mut PolicyWatch, what: &str) {
        let mut readable = [PollFd::new(&*watch, PollFlags::IN)];
        assert_eq!(poll(&mut readable, Some(&Timespec::default())), Ok(1), "{what}: not readable");
        assert!(watch.changed(), "{what}");
        assert!(!watch.changed(), "{what}: told twice");
    }

    #[test]
    fn every_way_to_change_a_file_is_told_once() {
        let (_directory, path) = place();
        let mut watch = PolicyWatch::new(&path).unwrap();
        assert!(!watch.changed());
        fs::write(&path, "a").unwrap();
        told(&mut watch, "made");
        fs::write(&path, "b").unwrap();
        told(&mut watch, "written in place");
        fs::write(path.with_extension("new"), "c").unwrap();
        assert!(!watch.changed(), "a neighbour is no concern");
        fs::rename(path.with_extension("new"), &path).unwrap();
        told(&mut watch, "replaced");
        fs::set_permissions(&path, fs::metadata(&path).unwrap().permissions()).unwrap();
        told(&mut watch, "mode set");
        fs::remove_file(&path).unwrap();
        told(&mut watch, "removed");
        fs::write(path.with_extension("old"), "d").unwrap();
        fs::hard_link(path.with_extension("old"), &path).unwrap();
        told(&mut watch, "linked");
        let _ = fs::read(&path).unwrap();
        assert!(!watch.changed(), "reading changes nothing");
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_told_of() {
        let (_directory, path) = place();
        let mut watch = PolicyWatch::new(&path).unwrap();
        for _ in 0..2 {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
            assert!(!watch.changed());
            file.write_all(b"half").unwrap();
            assert!(!watch.changed());
            drop(file);
            told(&mut watch, "whole");
        }
    }

    #[test]
    fn directories_may_come_and_go_on_the_way() {
        let (_directory, path) = place();
        let deep = path.with_file_name("etc").join("refract").join("refract.toml");
        let mut watch = PolicyWatch::new(&deep).unwrap();
        assert!(!watch.changed());
        fs::create_dir_all(deep.parent().unwrap()).unwrap();
        assert!(watch.changed());
        fs::write(&deep, "a").unwrap();
        told(&mut watch, "made");
        fs::rename(path.with_file_name("etc"), path.with_file_name("gone")).unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
        fs::write(path.with_file_name("gone").join("refract/refract.toml"), "b").unwrap();
        assert!(!watch.changed(), "what has left the way is no concern");
        fs::rename(path.with_file_name("gone"), path.with_file_name("etc")).unwrap();
        told(&mut watch, "back");
        fs::write(&deep, "c").unwrap();
        told(&mut watch, "written after it came back");
    }

    #[test]
    fn a_link_that_is_switched_further_up_is_told() {
        let (_directory, path) = place();
        let home = path.parent().unwrap();
        for (version, text) in [("..1", "a"), ("..2", "b")] {
            fs::create_dir(home.join(version)).unwrap();
            fs::write(home.join(version).join("refract.toml"), text).unwrap();
        }
        symlink("..1", home.join("..data")).unwrap();
        symlink("..data/refract.toml", &path).unwrap();
        let mut watch = PolicyWatch::new(&path).unwrap();
        symlink("..2", home.join("..data_tmp")).unwrap();
        assert!(!watch.changed());
        fs::rename(home.join("..data_tmp"), home.join("..data")).unwrap();
        told(&mut watch, "switched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        fs::write(home.join("..2/refract.toml"), "c").unwrap();
        told(&mut watch, "the target was written to");
        fs::write(home.join("..1/refract.toml"), "d").unwrap();
        assert!(!watch.changed(), "the former target is no concern");
    }
}
