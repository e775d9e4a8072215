//! A network namespace per test, removed when the test ends, however it ends.

use std::{
    fmt,
    fs::File,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::{
    fd::AsFd,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// The two implementations, by path.
pub(crate) const VARIANTS: [&str; 2] = ["/usr/sbin/iptables-nft", "/usr/sbin/iptables-legacy"];

static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// A network namespace of our own with its loopback up.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one under a name that no other test and no other process has.
    pub(crate) fn new() -> Self {
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        let name = format!("refract-rule-{}-{number}", std::process::id());
        shell(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.enter(|| shell("ip link set lo up"));
        namespace
    }

    /// Runs `work` on a thread inside; the processes that it starts are inside too.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl fmt::Display for Namespace {
    /// The name that `ip netns` knows it by.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Not `shell`: a panic while a failed test unwinds would hide why it failed.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs a command line where the calling thread is; gives its output, fails the test if it fails.
#[track_caller]
pub(crate) fn shell(line: &str) -> String {
    let output = Command::new("/bin/sh").args(["-c", line]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Makes Refract's four sets with the `ipset` tool.
pub(crate) fn make_sets() {
    shell(
        "ipset create refract_banned_users hash:ip timeout 60 && \
         ipset create refract_banned_flows hash:ip,port timeout 60 && \
         ipset create refract_banned_users6 hash:net family inet6 timeout 60 && \
         ipset create refract_banned_flows6 hash:ip,port family inet6 timeout 60",
    );
}

/// The rules of chain INPUT as `program` lists them, without the `-A INPUT` in front.
pub(crate) fn input_rules(program: &str) -> Vec<String> {
    let listing = shell(&format!("{program} -w 5 -S INPUT"));
    listing.lines().filter_map(|line| Some(line.strip_prefix("-A INPUT ")?.to_owned())).collect()
}
