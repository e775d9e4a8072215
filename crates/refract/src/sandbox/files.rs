//! Files: what may still be opened, by Landlock.
//!
//! Takes files that are read and written; finds the directories around them that last, and shuts
//! everything else. Landlock knows directories by what they are and not by their names, so a rule
//! for the log's own directory would be worth nothing once that was deleted and made again: it is
//! drawn around its parent. Looking a name up, asking for a file's metadata and watching it are not
//! restricted. It opens no file to use it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
    make_bitflags,
};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use super::Needs;
use crate::{links, supervisor, way::LINKS};

/// What is handled: rights that a newer Landlock adds were not tried with the daemon, and would
/// be denied without anybody's having looked.
const TRIED: ABI = ABI::V6;
/// Where the whole host's settings lie, and its users' passwords: never opened for one file's sake.
const SETTINGS: &str = "/etc";
/// Where devices are: whoever may write beneath this may write to disks.
const DEVICES: &str = "/dev";
/// Where programs and their libraries lie; which of them there are differs.
const PROGRAMS: [&str; 10] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/nix/store",
    "/gnu/store",
];

/// What the daemon may still open.
#[derive(Clone, Debug, Default)]
pub(super) struct Confined {
    /// The version of Landlock that this kernel has.
    pub(super) abi: i32,
    reads: BTreeSet<PathBuf>,
    writes: BTreeSet<PathBuf>,
    everything: Vec<Everything>,
    /// Files to be read whose directory is not there, so that nothing of it can be left open.
    too_early: Vec<PathBuf>,
}

/// A file whose directory is not there, nor any above it but the root.
#[derive(Clone, Debug)]
pub(super) struct Everything {
    pub(super) path: PathBuf,
    pub(super) may: &'static str,
}

impl Confined {
    /// Because of whom everything is allowed.
    pub(super) fn everything(&self) -> &[Everything] {
        &self.everything
    }

    /// What is read only after another start, should it come to be there.
    pub(super) fn too_early(&self) -> &[PathBuf] {
        &self.too_early
    }

    /// Whether the file that `path` leads to lies where files may be read. `true` where it cannot
    /// be told.
    pub(super) fn may_read(&self, path: &Path) -> bool {
        let Ok(path) = fs::canonicalize(path) else { return true };
        self.reads.iter().chain(&self.writes).any(|root| path.starts_with(root))
    }
}

/// The version of Landlock that this kernel has switched on.
#[must_use]
pub fn landlock_of_this_kernel() -> Option<i32> {
    // A thread that ends at once is restricted, which is how to ask.
    let asked = thread::spawn(|| restrict(&[], Scope::from_all(TRIED)));
    abi_of(&asked.join().ok()?.ok()?.landlock)
}

/// What a Landlock of version `abi` leaves open of what is meant to be shut (landlock(7), "VERSIONS");
/// `None` if nothing.
#[must_use]
pub fn left_open_by_landlock(abi: i32) -> Option<String> {
    let missing = [
        (3, "6.2", "truncating files"),
        (4, "6.7", "TCP"),
        (5, "6.10", "ioctl on devices"),
        (6, "6.12", "abstract unix sockets and signals"),
    ];
    let left: Vec<_> = missing
        .into_iter()
        .filter(|(since, ..)| abi < *since)
        .map(|(_, kernel, what)| format!("{what} (it takes Linux {kernel})"))
        .collect();
    (!left.is_empty())
        .then(|| format!("Landlock ABI {abi} of this kernel does not restrict {}", left.join(", ")))
}

/// Why files stay open.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotConfined {
    /// Too old a kernel, or one that was told not to.
    #[error(
        "this kernel has no Landlock (it takes 5.13, and landlock among the kernel parameter lsm=), \
         or a container's filter of system calls hides it, so every file stays open to refract that is open to its user"
    )]
    NoLandlock,
    /// It has, and refused.
    #[error("every file stays open to refract that is open to its user: {0}")]
    Refused(#[from] RulesetError),
}

/// Confines the calling thread to what the daemon goes on needing.
pub(super) fn confine_daemon(needs: &Needs) -> Result<Confined, NotConfined> {
    let mut confined = Confined::default();
    let read = BitFlags::from(AccessFs::ReadFile);
    // The block log is read at the start, the state file too.
    let write = make_bitflags!(AccessFs::{ReadFile | WriteFile | MakeReg | RemoveFile});
    let mut rules = Vec::new();
    for file in &needs.reads {
        for root in roots(file, Purpose::Read) {
            if root == Path::new(SETTINGS) {
                confined.too_early.push(file.clone());
                continue;
            }
            if root == Path::new("/") {
                confined.everything.push(Everything { path: file.clone(), may: "read" });
            }
            rules.push((root.clone(), read));
            confined.reads.insert(root);
        }
    }
    for file in &needs.writes {
        for root in roots(file, Purpose::Write) {
            if root == Path::new(DEVICES) {
                continue;
            }
            if root == Path::new("/") {
                confined.everything.push(Everything { path: file.clone(), may: "write" });
            }
            rules.push((root.clone(), write));
            confined.writes.insert(root);
        }
        // A device or a FIFO in the place of a file is opened and never replaced.
        if fs::metadata(file).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            rules.push((file.clone(), make_bitflags!(AccessFs::{ReadFile | WriteFile})));
        }
    }
    // Who we are, for the sentence about a log that may not be read.
    rules.push(("/etc/passwd".into(), read));
    let listens_to_abstract =
        supervisor::socket_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"@"));
    let scope =
        if listens_to_abstract { BitFlags::from(Scope::Signal) } else { Scope::from_all(TRIED) };
    let status = restrict(&rules, scope)?;
    confined.abi = abi_of(&status.landlock).ok_or(NotConfined::NoLandlock)?;
    Ok(confined)
}

/// Confines the calling process to what iptables takes: its programs and libraries, `/proc`, and
/// the lock of the legacy variant.
pub(super) fn confine_rule_keeper(
    iptables: Option<&Path>,
    lock_file: &Path,
) -> Result<(), NotConfined> {
    let run = make_bitflags!(AccessFs::{Execute | ReadFile | ReadDir});
    let look = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let mut rules: Vec<_> = PROGRAMS.iter().map(|root| (PathBuf::from(root), run)).collect();
    rules.extend(programs_around(iptables).into_iter().map(|root| (root, run)));
    rules.push(("/proc".into(), look));
    rules.push(("/dev/null".into(), make_bitflags!(AccessFs::{ReadFile | WriteFile})));
    // It makes the file and takes a lock on it, and never writes to it.
    if let Some(folder) = lock_file.parent() {
        rules.push((folder.to_owned(), make_bitflags!(AccessFs::{ReadFile | MakeReg})));
    }
    // Ourselves, to start the next one with.
    rules.push(("/proc/self/exe".into(), make_bitflags!(AccessFs::{Execute | ReadFile})));
    restrict(&rules, Scope::from_all(TRIED)).map(drop)
}

/// Where a program that was named by hand has its siblings and its libraries.
fn programs_around(program: Option<&Path>) -> BTreeSet<PathBuf> {
    let mut around = BTreeSet::new();
    let Some(program) = program else { return around };
    for program in [Some(program.to_owned()), fs::canonicalize(program).ok()].into_iter().flatten()
    {
        let Some(folder) = program.parent() else { continue };
        around.insert(folder.to_owned());
        let is_of_a_tree = folder.file_name().is_some_and(|name| name == "sbin" || name == "bin");
        if let Some(tree) = folder.parent().filter(|tree| is_of_a_tree && tree.parent().is_some()) {
            around.insert(tree.to_owned());
        }
    }
    around
}

fn restrict(
    rules: &[(PathBuf, BitFlags<AccessFs>)],
    scope: BitFlags<Scope>,
) -> Result<RestrictionStatus, NotConfined> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(TRIED))?
        // After the start no TCP is spoken: none is allowed.
        .handle_access(AccessNet::from_all(TRIED))?
        .scope(scope)?
        .create()?;
    for (path, access) in rules {
        // What is not there cannot be allowed, and need not be.
        let Ok(opened) = PathFd::new(path) else { continue };
        let is_directory = fs::metadata(path).is_ok_and(|found| found.is_dir());
        let access = if is_directory { *access } else { *access & AccessFs::from_file(TRIED) };
        let added = (&mut ruleset).add_rule(PathBeneath::new(opened, access));
        // A pipe or a socket in the place of a file (/dev/stderr) can have no rule and needs none.
        if let Err(error) = added
            && is_directory
        {
            return Err(error.into());
        }
    }
    let status = ruleset.restrict_self()?;
    match status.landlock {
        LandlockStatus::Available { .. } => Ok(status),
        _ => Err(NotConfined::NoLandlock),
    }
}

fn abi_of(status: &LandlockStatus) -> Option<i32> {
    match status {
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            Some(kernel_abi.unwrap_or(*effective_abi as i32))
        }
        _ => None,
    }
}

/// What is to be done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Read,
    /// A stranger's link in its place is not followed.
    Write,
}

/// The directories around `file` that last, wherever its links lead: none where there is no such
/// way.
fn roots(file: &Path, purpose: Purpose) -> BTreeSet<PathBuf> {
    let mut roots = BTreeSet::new();
    let Ok(mut file) = std::path::absolute(file) else { return roots };
    for _ in 0..LINKS {
        let Some(folder) = file.parent() else { break };
        let Ok(home) = fs::canonicalize(folder) else {
            // It will be made: somewhere beneath what there is.
            roots.extend(folder.ancestors().find_map(|above| fs::canonicalize(above).ok()));
            break;
        };
        roots.insert(lasting(&home));
        // A link to the log's directory may become the directory itself.
        if let Some(above) = folder.parent()
            && fs::symlink_metadata(folder).is_ok_and(|found| found.is_symlink())
            && let Ok(above) = fs::canonicalize(above)
            && above != Path::new("/")
        {
            roots.insert(above);
        }
        if purpose == Purpose::Write && links::stranger(&file).is_some() {
            break;
        }
        let Ok(target) = fs::read_link(&file) else { break };
        file = folder.join(target);
    }
    roots
}

/// The nearest directory from `home` upwards that is not deleted and made again: its parent, but
/// never the root nor all settings of the host, and a place where something is mounted lasts itself.
fn lasting(home: &Path) -> PathBuf {
    let is_too_much = |parent: &Path| parent.parent().is_none() || parent == Path::new(SETTINGS);
    let parent = home.parent().filter(|parent| !is_too_much(parent));
    match parent {
        Some(parent) if !is_mounted(home) => parent.to_owned(),
        _ => home.to_owned(),
    }
}

fn is_mounted(folder: &Path) -> bool {
    statx(CWD, folder, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[track_caller]
    fn check(file: &Path, expected: &[&Path]) {
        let found = roots(file, Purpose::Read);
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{}", file.display());
    }

    #[test]
    fn what_an_older_landlock_leaves_open_is_told() {
        for (abi, expected) in [
            (
                2,
                Some(
                    "Landlock ABI 2 of this kernel does not restrict truncating files (it takes Linux \
                     6.2), TCP (it takes Linux 6.7), ioctl on devices (it takes Linux 6.10), abstract \
                     unix sockets and signals (it takes Linux 6.12)",
                ),
            ),
            (
                5,
                Some(
                    "Landlock ABI 5 of this kernel does not restrict abstract unix sockets and \
                     signals (it takes Linux 6.12)",
                ),
            ),
            (6, None),
            (8, None),
        ] {
            assert_eq!(left_open_by_landlock(abi).as_deref(), expected, "{abi}");
        }
    }

    #[test]
    fn what_lasts_is_the_parent_of_the_directory_and_never_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("log");
        fs::create_dir(&home).unwrap();
        check(&home.join("access.log"), &[folder.path()]);
        check(&folder.path().join("access.log"), &[Path::new("/tmp")]);
        check(Path::new("/tmp/access.log"), &[Path::new("/tmp")]);
        // Something is mounted there, whatever that is on a machine that runs tests.
        check(Path::new("/proc/access.log"), &[Path::new("/proc")]);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_made_beneath_the_nearest_that_is() {
        let folder = tempfile::tempdir().unwrap();
        check(&folder.path().join("not/yet/access.log"), &[folder.path()]);
        check(Path::new("/nonexistent/access.log"), &[Path::new("/")]);
    }

    #[test]
    fn a_link_counts_with_both_its_ends() {
        let folder = tempfile::tempdir().unwrap();
        let [here, there] = ["a/here", "b/there"].map(|name| folder.path().join(name));
        fs::create_dir_all(&here).unwrap();
        fs::create_dir_all(&there).unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        symlink("../../b/there/of-today.log", here.join("access.log")).unwrap();
        check(&here.join("access.log"), &[&a, &b]);
        // A link to the directory, which may become a directory.
        let link = folder.path().join("c/logs");
        fs::create_dir(folder.path().join("c")).unwrap();
        symlink(&there, &link).unwrap();
        check(&link.join("access.log"), &[&b, &folder.path().join("c")]);
        // Round and round.
        symlink("loop.log", folder.path().join("loop.log")).unwrap();
        check(&folder.path().join("loop.log"), &[Path::new("/tmp")]);
    }

    #[test]
    fn all_settings_of_the_host_are_not_left_open_for_one_file() {
        // There on every machine: a directory beneath /etc lasts itself.
        check(Path::new("/etc/ssl/refract.toml"), &[Path::new("/etc/ssl")]);
        let needs =
            Needs { reads: vec!["/etc/nonexistent/refract.toml".into()], ..Needs::default() };
        let confined = thread::spawn(move || {
            let confined = confine_daemon(&needs).unwrap();
            assert!(fs::read("/etc/hosts").is_err(), "all of /etc is open");
            confined
        });
        let confined = confined.join().unwrap();
        assert_eq!(confined.too_early(), [PathBuf::from("/etc/nonexistent/refract.toml")]);
        assert!(confined.reads.is_empty(), "{confined:?}");
    }

    #[test]
    fn a_strangers_link_in_the_place_of_a_file_to_be_written_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [here, there] = ["a/here", "b/there"].map(|name| folder.path().join(name));
        fs::create_dir_all(&here).unwrap();
        fs::create_dir_all(&there).unwrap();
        let link = here.join("block.log");
        symlink(there.join("anything"), &link).unwrap();
        let both = [folder.path().join("a"), folder.path().join("b")];
        assert_eq!(roots(&link, Purpose::Write), both.clone().into());
        std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
        assert_eq!(roots(&link, Purpose::Write), [both[0].clone()].into());
        assert_eq!(roots(&link, Purpose::Read), both.into());
    }

    #[test]
    fn programs_that_were_named_have_their_tree_and_no_more() {
        let around = programs_around(Some(Path::new("/opt/tools/sbin/iptables")));
        assert_eq!(around, [PathBuf::from("/opt/tools"), "/opt/tools/sbin".into()].into());
        let around = programs_around(Some(Path::new("/opt/tools/iptables")));
        assert_eq!(around, [PathBuf::from("/opt/tools")].into());
        let around = programs_around(Some(Path::new("/bin/iptables")));
        assert!(!around.contains(Path::new("/")), "{around:?}");
    }
}
