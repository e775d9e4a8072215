//! Network namespaces for tests: made under a name of their own, entered by one thread at a time,
//! and removed at the end even when the test fails.
//!
//! Needs root (or `unshare -Urnm` with a writable `/run/netns`) and `ip`.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::{
    fs::File,
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace whose loopback is up.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one.
    #[track_caller]
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("refract-{}-{count}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.run("ip link set lo up");
        namespace
    }

    /// Runs `work` inside. A socket or child made there stays there, wherever it is used later.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside, its words parted by spaces, and gives what it printed.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> String {
        let mut words = vec!["netns", "exec", &self.name];
        words.extend(command.split_whitespace());
        run("ip", &words)
    }

    /// Joins two namespaces by a veth pair: `eth0` with `.1` here and `.2` there, of 10.9.0.0/24
    /// and `2001:db8:9::/64`.
    #[track_caller]
    pub(crate) fn join(&self, other: &Self) {
        let Self { name, .. } = self;
        let there = &other.name;
        run(
            "ip",
            &["-n", name, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", there],
        );
        for (namespace, last) in [(self, 1), (other, 2)] {
            namespace.run(&format!("ip addr add 10.9.0.{last}/24 dev eth0"));
            namespace.run(&format!("ip addr add 2001:db8:9::{last}/64 dev eth0 nodad"));
            namespace.run("ip link set eth0 addrgenmode none");
            namespace.run("ip link set eth0 up");
        }
        // The carrier comes a moment later, and with it the last of the addresses and routes.
        let listener = self.inside(|| TcpListener::bind("[2001:db8:9::1]:1").unwrap());
        other.inside(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        for namespace in [self, other] {
            namespace.run("ip link set eth0 up");
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing to be done when it fails; the name has this process's number in it.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

#[track_caller]
fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
