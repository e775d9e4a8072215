//! Network namespaces for tests: made under a name of their own, entered by one thread at a time,
//! and removed at the end even when the test fails.
//!
//! Needs root (or `unshare -Urnm` with a writable `/run/netns`) and `ip`.

use std::{
    fmt,
    fs::File,
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
}

/// Its name, as `ip` takes it.
impl fmt::Display for Namespace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
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
