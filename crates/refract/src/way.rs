//! The way to a file: every directory on it, links followed, watched.
//!
//! Takes a path and an inotify instance; makes the watches and where the way led. A name is looked
//! up only after its directory is watched, so no change can fall between. It opens no file and
//! takes no events.

use std::{
    ffi::OsString,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        FileType,
        inotify::{self, WatchFlags},
        lstat, readlink,
    },
    io::Errno,
};

/// What is asked about a directory on the way. `IN_ATTRIB` also tells of a mode that changed on a
/// file in it, which cannot be watched itself while it is unreadable.
pub(crate) const DIRECTORY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW);
/// Links followed on the way before giving up, as the kernel does (linux/namei.h, `MAXSYMLINKS`).
pub(crate) const LINKS: usize = 40;

/// One name on the way, and the watch of the directory it is looked up in.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) directory: i32,
    pub(crate) name: OsString,
}

/// Where the way led.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// The watched directories, in the order of the way.
    pub(crate) steps: Vec<Step>,
    /// The directory that holds the file, links resolved, once the way led that far.
    pub(crate) home: Option<PathBuf>,
    /// The way leads into `/proc`, whose links are not what they read as.
    pub(crate) into_proc: bool,
    /// The file's directory could not be watched, and why.
    pub(crate) unwatched: Option<(PathBuf, Errno)>,
}

/// Goes to `file` name by name, as the kernel would, and watches every directory on the way; where
/// the way ends early, the last of them is the nearest that exists.
pub(crate) fn trace(inotify: &OwnedFd, file: &Path, directory: WatchFlags) -> Way {
    let mut way = Way::default();
    let mut here = PathBuf::from("/");
    let mut ahead = names(file);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            here.pop();
            continue;
        }
        match inotify::add_watch(inotify, &here, directory) {
            Ok(watch) => way.steps.push(Step { directory: watch, name: name.clone() }),
            // A directory that may be passed but not listed cannot be watched. Only in the file's
            // own one does that matter day by day.
            Err(source) if ahead.is_empty() => way.unwatched = Some((here.clone(), source)),
            Err(_) => {}
        }
        if here.starts_with("/proc") {
            way.into_proc = true;
        }
        let next = here.join(&name);
        let Ok(found) = lstat(&next) else {
            way.home = ahead.is_empty().then_some(here);
            break;
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            if ahead.is_empty() {
                way.home = Some(here);
                break;
            }
            here = next;
            continue;
        }
        links += 1;
        let Ok(target) = readlink(&next, Vec::new()) else { break };
        if links > LINKS {
            break;
        }
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            here = PathBuf::from("/");
        }
        ahead.extend(names(&target));
    }
    way
}

/// The names of a path, last first, without `/` and `.`.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}
