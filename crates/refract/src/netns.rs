//! The network namespace that is meant, where it is not the one the process was started in.
//!
//! Takes a name or a path; puts the calling thread, and all that it starts, into that namespace, and
//! says later whether the name still means it. It is called before anything else: sets, rule,
//! sockets and the lock belong to a namespace. It makes none, and never changes to another one: what
//! was put into the first would stay behind.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{error::Error, way::LINKS};

/// Where `ip netns` keeps its names (iproute2, `NETNS_RUN_DIR`).
const NAMES: &str = "/run/netns";
/// The one that the process is in.
const OURS: &str = "/proc/thread-self/ns/net";

/// What `--netns` takes: a name of `ip netns`, or an absolute path.
pub fn path_of(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let mut components = path.components();
    match (components.next(), components.next()) {
        _ if path.is_absolute() => Ok(path.to_owned()),
        (Some(Component::Normal(name)), None) if name == text => Ok(Path::new(NAMES).join(name)),
        _ => Err("it takes a name as `ip netns list` shows it, or an absolute path, such as \
                  /proc/PID/ns/net"
            .to_owned()),
    }
}

/// A namespace that was entered by its name.
#[derive(Debug)]
pub struct Entered {
    path: PathBuf,
    /// Where the name led, links followed as far as they have a text.
    leads_to: PathBuf,
    identity: Identity,
    /// The process whose namespace it is, where it was named by one.
    owner: Option<OwnedFd>,
}

type Identity = (u64, u64);

/// Enters the namespace at `path`, if one is named. Call it while there is only one thread.
pub fn enter(path: Option<&Path>) -> Result<Option<Entered>, Error> {
    path.map(Entered::enter).transpose()
}

impl Entered {
    fn enter(path: &Path) -> Result<Self, Error> {
        let absent = || Error::NamespaceAbsent { path: path.to_owned() };
        let denied = || Error::NamespaceNotPermitted { path: path.to_owned() };
        let other = |operation| {
            let object = format!("the network namespace {}", path.display());
            move |source: io::Error| Error::Io { operation, object, source }
        };
        let leads_to = leads_to(path);
        // Before the namespace is opened: should the process end in between, that will be noticed.
        let owner = match owner_of(&leads_to) {
            Some(pid) => Some(pidfd_open(pid, PidfdFlags::empty()).map_err(|_| absent())?),
            None => None,
        };
        // Whatever else stands there is not waited for.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
        let opened = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => absent(),
            io::ErrorKind::PermissionDenied => denied(),
            _ => other("open")(error),
        })?;
        let identity = identity_of(&opened).map_err(other("look at"))?;
        // The one that we are in may be named by whoever may not enter any.
        if fs::metadata(OURS).ok().map(|ours| (ours.dev(), ours.ino())) != Some(identity) {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(opened.as_fd(), kind).map_err(|errno| match errno {
                Errno::INVAL => Error::NotANamespace { path: path.to_owned() },
                Errno::PERM => denied(),
                errno => other("enter")(errno.into()),
            })?;
        }
        Ok(Self { path: path.to_owned(), leads_to, identity, owner })
    }

    /// [`Error::NamespaceReplaced`] once the name means another namespace, or none.
    pub fn check(&self) -> Result<(), Error> {
        let replaced = |what| Err(Error::NamespaceReplaced { path: self.path.clone(), what });
        if leads_to(&self.path) != self.leads_to {
            return replaced("leads elsewhere now");
        }
        if let Some(owner) = &self.owner {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut ended = [PollFd::new(owner, PollFlags::IN)];
            // What cannot be asked is asked again.
            return match poll(&mut ended, Some(&now)) {
                Ok(1..) => replaced("is gone with its process"),
                _ => Ok(()),
            };
        }
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.identity => Ok(()),
            Ok(_) => replaced("is another one now"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => replaced("is gone"),
            // It cannot be told.
            Err(_) => Ok(()),
        }
    }
}

fn identity_of(file: &File) -> io::Result<Identity> {
    let found = file.metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Where `path` leads, up to a link of `/proc`, whose text is not where it leads.
fn leads_to(path: &Path) -> PathBuf {
    let mut here = path.to_owned();
    for _ in 0..LINKS {
        if here.starts_with("/proc") {
            break;
        }
        let Ok(target) = fs::read_link(&here) else { break };
        here = here.parent().unwrap_or(Path::new("/")).join(target);
    }
    here
}

/// The process that a path such as `/proc/123/ns/net` names. Once we gave our rights up, the kernel
/// does not tell any more which namespace that is, but still when the process ends.
fn owner_of(path: &Path) -> Option<Pid> {
    let names: Vec<&OsStr> = path.iter().collect();
    let (pid, names) = match names.as_slice() {
        [root, proc, pid, names @ ..] if *root == "/" && *proc == "proc" => (pid, names),
        _ => return None,
    };
    let is_its_own = names == ["ns", "net"]
        || matches!(names, [task, _, ns, net] if *task == "task" && *ns == "ns" && *net == "net");
    if is_its_own { Pid::from_raw(pid.to_str()?.parse().ok()?) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_ip_netns_and_a_path_is_absolute() {
        for (text, expected) in [
            ("xray", Some("/run/netns/xray")),
            ("/proc/12/ns/net", Some("/proc/12/ns/net")),
            ("/run/netns/xray", Some("/run/netns/xray")),
            ("", None),
            (".", None),
            ("..", None),
            ("./xray", None),
            ("xray/", None),
            ("run/netns/xray", None),
        ] {
            assert_eq!(path_of(text).ok().as_deref(), expected.map(Path::new), "{text:?}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_path_alone() {
        for of_twelve in ["/proc/12/ns/net", "/proc/12/task/13/ns/net"] {
            assert_eq!(owner_of(Path::new(of_twelve)), Pid::from_raw(12));
        }
        for other in ["/proc/self/ns/net", "/proc/12/ns/mnt", "/run/netns/12", "/proc/0/ns/net"] {
            assert_eq!(owner_of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn the_namespace_that_we_are_in_is_entered_without_any_right() {
        let here = PathBuf::from("/proc/thread-self/ns/net");
        let test = move || {
            rustix::thread::set_capabilities(
                None,
                rustix::thread::CapabilitySets {
                    effective: rustix::thread::CapabilitySet::empty(),
                    permitted: rustix::thread::CapabilitySet::empty(),
                    inheritable: rustix::thread::CapabilitySet::empty(),
                },
            )
            .unwrap();
            enter(Some(&here)).unwrap().unwrap().check().unwrap();
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        File::create(&file).unwrap();
        for path in [&file, folder.path()] {
            assert!(matches!(Entered::enter(path), Err(Error::NotANamespace { .. })));
        }
        let absent = folder.path().join("absent");
        assert!(matches!(Entered::enter(&absent), Err(Error::NamespaceAbsent { .. })));
        assert!(matches!(Entered::enter(&file.join("x")), Err(Error::NamespaceAbsent { .. })));
        // Of another kind.
        let refused = Entered::enter(Path::new("/proc/thread-self/ns/mnt"));
        assert!(matches!(refused, Err(Error::NotANamespace { .. })), "{refused:?}");
    }
}
