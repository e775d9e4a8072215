//! Capabilities: which are kept, and whether the files to be written need one.
//!
//! Takes the capabilities to keep; gives up all others of the calling thread, in all five sets. It
//! knows neither daemon nor rule keeper.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, configure_capability_in_ambient_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};

use crate::links;

/// Capabilities that this may keep, by name.
const NAMED: [(CapabilitySet, &str); 4] = [
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
    (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
];

/// The names of those of `set` that have one here.
pub(super) fn names(set: CapabilitySet) -> Vec<&'static str> {
    NAMED.iter().filter(|(one, _)| set.contains(*one)).map(|(_, name)| *name).collect()
}

/// Keeps of what is held only `keep`, effective at once; with `hand_on`, programs that are run have
/// it too. Gives what is held then.
pub(super) fn keep_only(keep: CapabilitySet, hand_on: bool) -> Result<CapabilitySet, Errno> {
    let held = capabilities(None)?;
    let kept = held.permitted & keep;
    // First, as it takes CAP_SETPCAP. Without that the set stays as it is, and no_new_privs alone
    // keeps a program from gaining what is in it.
    for one in every().filter(|one| !kept.contains(*one)) {
        if capability_is_in_bounding_set(one) == Ok(true) {
            let _ = remove_capability_from_bounding_set(one);
        }
    }
    // A kernel without ambient capabilities (before 4.3) has none to clear.
    let _ = clear_ambient_capability_set();
    let inheritable = if hand_on { kept } else { CapabilitySet::empty() };
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
    if hand_on {
        for one in every().filter(|one| kept.contains(*one)) {
            configure_capability_in_ambient_set(one, true)?;
        }
    }
    Ok(kept)
}

/// Every capability that a kernel can have, those that have no name yet included.
fn every() -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit))
}

/// The first of `files` that can be written or replaced only with `CAP_DAC_OVERRIDE`, if that is
/// held. Tried without it, since modes alone do not tell (ACLs, user namespaces, read-only mounts).
pub(super) fn out_of_reach(files: &[PathBuf]) -> Option<PathBuf> {
    let held = capabilities(None).ok()?;
    if !held.effective.contains(CapabilitySet::DAC_OVERRIDE) {
        return None;
    }
    let without = held.effective.difference(CapabilitySet::DAC_OVERRIDE);
    set_capabilities(None, CapabilitySets { effective: without, ..held }).ok()?;
    let found = files.iter().find(|file| is_denied(file)).cloned();
    // What was effective a moment ago is permitted.
    set_capabilities(None, held).ok()?;
    found
}

/// Whether the file, or the making of another one in its place, is refused for want of rights.
fn is_denied(file: &Path) -> bool {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    // What may not be written needs no right.
    let Ok(flags) = links::flags_to_write(file) else { return false };
    let opened = OpenOptions::new().append(true).custom_flags(flags).open(file);
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    opened.is_err_and(|error| denied(&error))
        || makes_files_in(folder.unwrap_or(".".as_ref())).is_err_and(|error| denied(&error))
}

/// Makes a file without a name in `folder`; where the file system has none such, one whose name
/// goes at once.
fn makes_files_in(folder: &Path) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let name = folder.join(format!(".refract-{}", std::process::id()));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name)?;
    std::fs::remove_file(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_effective_and_permitted_and_nothing_else_is_left() {
        // Capabilities are a thread's own.
        let test = || {
            let kept = keep_only(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW, false).unwrap();
            let held = capabilities(None).unwrap();
            assert_eq!((held.effective, held.permitted), (kept, kept));
            assert!(held.inheritable.is_empty());
            for one in every() {
                let is_bound = capability_is_in_bounding_set(one) == Ok(true);
                assert!(!is_bound || kept.contains(one), "{one:?} can come back");
            }
            assert_eq!(names(kept), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_file_of_anothers_directory_is_out_of_reach_without_the_capability() {
        let test = || {
            let folder = tempfile::tempdir().unwrap();
            let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
            std::fs::create_dir(&ours).unwrap();
            std::fs::create_dir(&theirs).unwrap();
            std::os::unix::fs::chown(&theirs, Some(65_534), Some(65_534)).unwrap();
            let files = [ours.join("block.log"), theirs.join("block.log")];
            assert_eq!(out_of_reach(&files).as_ref(), Some(&files[1]));
            assert_eq!(out_of_reach(&files[..1]), None);
            assert_eq!(std::fs::read_dir(&ours).unwrap().count(), 0, "it leaves nothing behind");
            let held = capabilities(None).unwrap();
            assert!(held.effective.contains(CapabilitySet::DAC_OVERRIDE), "it is given back");
        };
        std::thread::spawn(test).join().unwrap();
    }
}
