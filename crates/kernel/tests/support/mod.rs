//! A network namespace for a test, and commands in it. A namespace has no name anywhere, so nothing
//! is left of it when the test ends, however it ends. The rooms beside this one are for the tests
//! that name them: `link.rs` joins two namespaces, `iptables.rs` is about the rule.
//!
//! Needs root, or `unshare -Urn`.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    os::fd::{AsFd, AsRawFd},
    process::{self, Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace whose loopback is up. It lives as long as this or a socket made in it.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes one: a child makes it, and lives until it is open here.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "made\n", "unshare --net needs root");
        let file = File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        let namespace = Self { file };
        namespace.run("ip link set lo up");
        namespace
    }

    /// Runs `work` on a thread inside. The sockets, threads and child processes that it makes stay
    /// there, wherever they are used later.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.file.as_fd(), network).unwrap();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell command inside, as [`shell`] does where the calling thread is.
    pub(crate) fn run(&self, command: &str) -> String {
        self.inside(|| shell(command))
    }
}

/// A path to it, which `ip link` takes after `netns`.
impl fmt::Display for Namespace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }
}

/// Runs a shell command and gives what it printed; one that fails ends the test.
#[track_caller]
pub(crate) fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
