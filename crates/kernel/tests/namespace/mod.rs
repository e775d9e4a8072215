//! A network namespace for each test: it has a name nowhere, so nothing is left of it when the
//! test ends, however it ends.
//!
//! Needs root, or `unshare -Urn`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::fd::AsFd,
    process::{Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `test` in a new network namespace whose loopback is up. The sockets, threads and child
/// processes that it makes live there too.
pub(crate) fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let namespace = make();
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            test()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A child makes the namespace and lives until it is open here.
fn make() -> File {
    let mut child = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && echo made && exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "made\n", "unshare --net needs root");
    let namespace = File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    namespace
}
