//! How much memory the tail takes for a line that does not end. Alone in its process, whose memory
//! is what is measured.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    time::Instant,
};

use refract::tail::{LogTarget, Progress, Tail};
use refract_core::line::Line;

/// The most memory that this process has had resident so far, KiB.
fn most_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_line_of_a_gibibyte_takes_less_than_a_mebibyte() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.log");
    File::create(&log).unwrap();
    let now = Instant::now();
    let mut tail = Tail::open(&LogTarget::from(&log), now).unwrap();
    let mut lines = Vec::new();
    let mut read = |tail: &mut Tail| {
        tail.woken(now);
        let mut take = |line: Line<'_>| lines.extend(line.whole().map(<[u8]>::to_vec));
        while tail.read_chunk(now, &mut take) == Progress::More {}
    };
    read(&mut tail);
    let before = most_resident().unwrap();
    // A hole reads as NUL bytes, which are bytes like any other.
    let mut file = OpenOptions::new().append(true).open(&log).unwrap();
    file.set_len(1 << 30).unwrap();
    read(&mut tail);
    let growth = most_resident().unwrap() - before;
    assert!(growth < 1024, "grew by {growth} KiB");
    file.write_all(b"\nnext\n").unwrap();
    read(&mut tail);
    assert_eq!(lines, [b"next"]);
    assert_eq!(tail.counters().oversized, 1);
    assert_eq!(tail.counters().bytes, (1 << 30) + 6);
}
