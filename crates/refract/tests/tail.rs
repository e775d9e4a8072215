//! The tail against a real file system and the real inotify: each thing that happens to logs.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod follower;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use follower::Follower;
use refract::tail::{LogTarget, News, OLD_FILES_KEPT, OLD_IS_DONE_AFTER, Progress, Tail, Trouble};
use refract_core::line::{Line, MAX_LINE};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use tempfile::TempDir;

/// A directory with a log that is not made yet.
fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.log");
    (directory, log)
}

/// Opens a log as Xray does.
fn writer(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).unwrap()
}

/// Adds to a log in one write, as Xray does.
fn append(path: &Path, text: &str) {
    writer(path).write_all(text.as_bytes()).unwrap();
}

fn fifo(path: &Path, mode: u32) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(mode), 0).unwrap();
}

/// Runs `test` on a thread that has no right to pass over file modes, whoever runs the tests.
fn without_rights_over_modes(test: impl FnOnce() + Send + 'static) {
    let unprivileged = move || {
        let mut sets = capabilities(None).unwrap();
        let rights = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        sets.effective.remove(rights);
        set_capabilities(None, sets).unwrap();
        test();
    };
    thread::spawn(unprivileged).join().unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn following_begins_at_the_end() {
    let (_directory, log) = place();
    append(&log, "old\n");
    let mut follower = Follower::of(&log);
    append(&log, "new\n");
    follower.expect(&["new"]);
    assert_eq!(follower.news(), []);
}

#[test]
fn an_incomplete_line_at_the_start_is_read_whole() {
    let (_directory, log) = place();
    append(&log, "old\nbegun");
    let mut follower = Follower::of(&log);
    append(&log, " and ended\nnew\n");
    follower.expect(&["begun and ended", "new"]);
}

#[test]
fn an_incomplete_first_line_is_read_whole() {
    let (_directory, log) = place();
    append(&log, "begun");
    let mut follower = Follower::of(&log);
    append(&log, " and ended\n");
    follower.expect(&["begun and ended"]);
}

#[test]
fn the_longest_incomplete_line_at_the_start_is_read_and_a_longer_one_is_skipped() {
    let longest = "x".repeat(MAX_LINE);
    for (begun, expected) in
        [(longest.clone(), vec![longest.as_str(), "new"]), (longest.clone() + "x", vec!["new"])]
    {
        let (_directory, log) = place();
        append(&log, &format!("{}\n{begun}", "old ".repeat(9000)));
        let mut follower = Follower::of(&log);
        append(&log, "\nnew\n");
        follower.expect(&expected);
        assert_eq!(follower.tail.counters().oversized, 2 - expected.len() as u64);
    }
}

#[test]
fn a_first_line_that_is_empty_is_a_line_like_any() {
    let (_directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    append(&log, "\n");
    follower.expect(&[""]);
    append(&log, "next\n");
    follower.expect(&["next"]);
}

#[test]
fn a_line_in_halves_comes_once_it_is_whole() {
    let (_directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    let line = "y".repeat(4096 + 100);
    let (one, two) = line.split_at(4096);
    append(&log, one);
    follower.expect(&[]);
    append(&log, two);
    follower.expect(&[]);
    append(&log, "\n");
    follower.expect(&[&line]);
}

#[test]
fn more_than_one_chunk_comes_whole_and_in_order() {
    let (_directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    let lines: Vec<String> =
        (0..20_000).map(|n| format!("line {n} {}", "z".repeat(n % 90))).collect();
    append(&log, &(lines.join("\n") + "\n"));
    follower.settle();
    assert_eq!(follower.lines, lines);
}

#[test]
fn a_rotated_file_is_read_while_its_writer_keeps_it() {
    let (directory, log) = place();
    let mut old = writer(&log);
    let mut follower = Follower::of(&log);
    old.write_all(b"1\n2 begun").unwrap();
    fs::rename(&log, directory.path().join("access.log.1")).unwrap();
    follower.expect(&["1"]);
    append(&log, "");
    old.write_all(b" and ended\n3\n").unwrap();
    follower.expect(&["2 begun and ended", "3"]);
    follower.check_after(OLD_IS_DONE_AFTER.mul_f64(0.9));
    old.write_all(b"4\n").unwrap();
    follower.settle();
    follower.check_after(OLD_IS_DONE_AFTER.mul_f64(0.9));
    old.write_all(b"5\n").unwrap();
    append(&log, "6\n");
    follower.expect(&["4", "5", "6"]);
    assert_eq!(follower.news(), [News::Absent, News::Rotated]);
}

#[test]
fn a_rotated_file_is_left_once_it_is_quiet_and_has_a_successor() {
    let (directory, log) = place();
    let rotated = directory.path().join("access.log.1");
    append(&log, "");
    let mut follower = Follower::of(&log);
    let opened = || open_files_named(&rotated);
    fs::rename(&log, &rotated).unwrap();
    follower.settle();
    follower.check_after(OLD_IS_DONE_AFTER * 3);
    assert_eq!(opened(), 1, "there is no successor yet");
    append(&log, "1\n");
    follower.expect(&["1"]);
    assert_eq!(opened(), 1, "it is looked at once more before it is left");
    follower.check_after(Duration::ZERO);
    assert_eq!(opened(), 0);
    append(&rotated, "too late\n");
    append(&log, "2\n");
    follower.expect(&["2"]);
}

/// How many descriptors of this process lead to `path`.
fn open_files_named(path: &Path) -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    files
        .filter(|file| fs::read_link(file.as_ref().unwrap().path()).is_ok_and(|to| to == path))
        .count()
}

#[test]
fn five_rotations_at_once_lose_nothing() {
    for notices in [true, false] {
        let (directory, log) = place();
        let rotated = |n: usize| directory.path().join(format!("access.log.{n}"));
        append(&log, "");
        let mut follower = Follower::of(&log);
        let mut expected = Vec::new();
        let mut writers = Vec::new();
        for round in 0..5 {
            let mut old = writer(&log);
            for line in 0..80 {
                writeln!(old, "{round} {line}").unwrap();
                expected.push(format!("{round} {line}"));
            }
            for n in (1..=round).rev() {
                fs::rename(rotated(n), rotated(n + 1)).unwrap();
            }
            fs::rename(&log, rotated(1)).unwrap();
            append(&log, "");
            writers.push(old);
            if notices {
                follower.notice();
            }
        }
        follower.settle();
        assert_eq!(follower.lines, expected);
        follower.lines.clear();
        for (round, old) in writers.iter_mut().enumerate() {
            writeln!(old, "late {round}").unwrap();
        }
        follower.expect(&["late 0", "late 1", "late 2", "late 3", "late 4"]);
    }
}

#[test]
fn of_too_many_rotated_files_the_oldest_that_is_read_goes_first() {
    let (directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    let mut writers = vec![writer(&log)];
    for n in 0..=OLD_FILES_KEPT {
        fs::rename(&log, directory.path().join(format!("access.log.{n}"))).unwrap();
        writers.push(writer(&log));
        if n == 0 {
            // The oldest is not read to its end, the others are empty.
            follower.notice();
            writers[0].write_all(b"unread\n").unwrap();
        }
        follower.notice();
    }
    follower.expect(&["unread"]);
    assert!(!follower.news().iter().any(|news| matches!(news, News::GivenUp(_))));
    writers[1].write_all(b"left\n").unwrap();
    follower.expect(&[]);
    for kept in [0, 2, OLD_FILES_KEPT + 1] {
        writers[kept].write_all(b"kept\n").unwrap();
        follower.expect(&["kept"]);
    }
}

#[test]
fn rotated_files_that_cannot_all_be_kept_are_given_up_aloud() {
    let (directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    for n in 0..=OLD_FILES_KEPT {
        append(&log, &format!("line {n}\n"));
        fs::rename(&log, directory.path().join(format!("access.log.{n}"))).unwrap();
        append(&log, "");
        follower.notice();
    }
    assert!(follower.news().contains(&News::GivenUp("line 0\n".len() as u64)));
    follower.settle();
    assert_eq!(follower.lines.len(), OLD_FILES_KEPT);
    assert_eq!(follower.lines[0], "line 1");
}

#[test]
fn copytruncate_takes_only_what_was_not_read() {
    let (directory, log) = place();
    let mut xray = writer(&log);
    let mut follower = Follower::of(&log);
    xray.write_all(b"1\n2\n3 begun").unwrap();
    follower.expect(&["1", "2"]);
    fs::copy(&log, directory.path().join("access.log.1")).unwrap();
    xray.write_all(b" lost\nlost\n").unwrap();
    xray.set_len(0).unwrap();
    xray.write_all(b"4\n").unwrap();
    follower.expect(&["4"]);
    xray.set_len(0).unwrap();
    follower.expect(&[]);
    xray.write_all(b"5\n").unwrap();
    follower.expect(&["5"]);
    assert_eq!(follower.news(), [News::Truncated, News::Truncated]);
    assert_eq!(follower.tail.counters().truncations, 2);
}

#[test]
fn a_file_truncated_and_grown_past_the_old_place_is_read_from_its_start() {
    let (_directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    // Lines of one length, so that the old place is the start of a line in the new file, too.
    let lines = |from: usize, to: usize| -> Vec<String> {
        (from..to).map(|n| format!("line {n:03}")).collect()
    };
    append(&log, &(lines(0, 20).join("\n") + "\n"));
    follower.settle();
    fs::write(&log, lines(20, 60).join("\n") + "\n").unwrap();
    follower.settle();
    assert_eq!(follower.lines, lines(0, 60));
}

#[test]
fn a_file_rewritten_to_the_very_same_size_is_read_from_its_start() {
    let (_directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    append(&log, "line 1\nline 2\n");
    follower.settle();
    fs::write(&log, "line 3\nline 4\n").unwrap();
    follower.expect(&["line 1", "line 2", "line 3", "line 4"]);
}

#[test]
fn a_file_that_is_cut_short_is_not_read_again() {
    let (_directory, log) = place();
    append(&log, "before\n");
    let mut follower = Follower::of(&log);
    append(&log, "1\n2\n3\n4\n");
    follower.expect(&["1", "2", "3", "4"]);
    let file = writer(&log);
    file.set_len("before\n1\n2\n3".len() as u64).unwrap();
    follower.expect(&[]);
    append(&log, "rd and last\n5\n");
    follower.expect(&["3rd and last", "5"]);
    file.set_len("before\n1\n".len() as u64).unwrap();
    follower.settle();
    append(&log, "6\n");
    follower.expect(&["6"]);
}

#[test]
fn an_old_line_is_never_read_again_because_a_new_one_is_like_it() {
    let (_directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    for _ in 0..300 {
        append(&log, "the same again\n");
        follower.expect(&["the same again"]);
    }
    follower.check_after(Duration::from_secs(1));
    follower.expect(&[]);
    assert_eq!(follower.tail.counters().truncations, 0);
}

#[test]
fn a_deleted_file_is_read_on_and_its_successor_from_its_start() {
    let (_directory, log) = place();
    let mut old = writer(&log);
    let mut follower = Follower::of(&log);
    old.write_all(b"1\n").unwrap();
    fs::remove_file(&log).unwrap();
    follower.expect(&["1"]);
    old.write_all(b"2\n").unwrap();
    follower.expect(&["2"]);
    append(&log, "3\n");
    old.write_all(b"4\n").unwrap();
    follower.settle();
    assert_eq!(follower.lines, ["4", "3"], "the rest of the old one comes first");
    assert_eq!(follower.news(), [News::Absent, News::Rotated]);
}

#[test]
fn a_file_that_comes_back_is_read_on_where_it_was_left() {
    let (directory, log) = place();
    let aside = directory.path().join("aside");
    append(&log, "");
    let mut follower = Follower::of(&log);
    append(&log, "1\n2 begun");
    fs::rename(&log, &aside).unwrap();
    append(&log, "3\n");
    follower.expect(&["1", "3"]);
    follower.check_after(OLD_IS_DONE_AFTER);
    assert_eq!(open_files_named(&aside), 0);
    append(&aside, " and ended\n");
    fs::rename(&aside, &log).unwrap();
    append(&log, "4\n");
    follower.expect(&["2 begun and ended", "4"]);
}

#[test]
fn a_file_that_does_not_exist_yet_is_read_from_its_start() {
    let (_directory, log) = place();
    let mut follower = Follower::of(&log);
    assert_eq!(follower.news(), [News::Absent]);
    append(&log, "1\n");
    follower.expect(&["1"]);
    assert_eq!(follower.news(), [News::Appeared]);
}

#[test]
fn directories_that_do_not_exist_yet_are_waited_for() {
    let (directory, _) = place();
    let log = directory.path().join("var/log/xray/access.log");
    let mut follower = Follower::of(&log);
    let mut below = directory.path().to_owned();
    for name in ["var", "log", "xray"] {
        below.push(name);
        fs::create_dir(&below).unwrap();
        follower.expect(&[]);
    }
    append(&log, "1\n");
    follower.expect(&["1"]);
    assert_eq!(follower.news(), [News::Absent, News::Appeared]);
}

#[test]
fn directories_made_all_at_once_are_not_missed() {
    let (directory, _) = place();
    let log = directory.path().join("var/log/xray/access.log");
    let mut follower = Follower::of(&log);
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    append(&log, "1\n");
    follower.expect(&["1"]);
}

#[test]
fn a_directory_that_is_removed_and_made_again_is_followed() {
    let (directory, _) = place();
    let log = directory.path().join("log/xray/access.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    append(&log, "");
    let mut follower = Follower::of(&log);
    for round in 0..3 {
        append(&log, "last\n");
        fs::remove_dir_all(directory.path().join("log")).unwrap();
        follower.expect(&["last"]);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        if round == 1 {
            follower.expect(&[]);
        }
        append(&log, "first\n");
        follower.expect(&["first"]);
    }
}

#[test]
fn a_directory_higher_up_that_is_swapped_is_noticed() {
    let (directory, _) = place();
    let log = directory.path().join("log/xray/access.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    let mut old = writer(&log);
    let mut follower = Follower::of(&log);
    fs::rename(directory.path().join("log"), directory.path().join("log.old")).unwrap();
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    append(&log, "new\n");
    old.write_all(b"old\n").unwrap();
    follower.expect(&["old", "new"]);
}

#[test]
fn a_link_is_followed_and_noticed_when_it_points_elsewhere() {
    let (directory, log) = place();
    let file = |name: &str| directory.path().join(name).join("day.log");
    for name in ["a", "b"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    append(&file("a"), "old\n");
    symlink("a/day.log", &log).unwrap();
    let mut follower = Follower::of(&log);
    append(&file("a"), "1\n");
    follower.expect(&["1"]);

    // The file behind the link is rotated where it lies.
    fs::rename(file("a"), directory.path().join("a/day.log.1")).unwrap();
    append(&file("a"), "2\n");
    append(&directory.path().join("a/day.log.1"), "3\n");
    follower.expect(&["3", "2"]);

    // The link is swung: at once, as `ln -sfn` does on most systems, and by way of nothing.
    append(&file("b"), "4\n");
    symlink(file("b"), directory.path().join("new link")).unwrap();
    fs::rename(directory.path().join("new link"), &log).unwrap();
    append(&file("a"), "5\n");
    follower.expect(&["5", "4"]);
    fs::remove_file(&log).unwrap();
    follower.settle();
    symlink("a/day.log", &log).unwrap();
    append(&file("a"), "6\n");
    append(&file("b"), "7\n");
    follower.expect(&["7", "6"]);
    follower.check_after(OLD_IS_DONE_AFTER);

    // To a file that is not there yet.
    fs::remove_file(&log).unwrap();
    symlink("b/tomorrow.log", &log).unwrap();
    follower.expect(&[]);
    append(&directory.path().join("b/tomorrow.log"), "8\n");
    follower.expect(&["8"]);
}

#[test]
fn a_linked_directory_is_followed_through_its_link() {
    let (directory, _) = place();
    let log = directory.path().join("current/../current/access.log");
    for name in ["a", "b"] {
        fs::create_dir(directory.path().join(name)).unwrap();
        append(&directory.path().join(name).join("access.log"), "");
    }
    symlink("./a", directory.path().join("current")).unwrap();
    let mut follower = Follower::of(&log);
    append(&directory.path().join("a/access.log"), "1\n");
    follower.expect(&["1"]);
    symlink("./b", directory.path().join("next")).unwrap();
    fs::rename(directory.path().join("next"), directory.path().join("current")).unwrap();
    append(&directory.path().join("b/access.log"), "2\n");
    follower.expect(&["2"]);
}

#[test]
fn links_in_a_circle_are_an_error_and_can_be_mended() {
    let (directory, log) = place();
    symlink(&log, directory.path().join("other")).unwrap();
    symlink(directory.path().join("other"), &log).unwrap();
    let mut follower = Follower::of(&log);
    assert!(matches!(follower.news()[..], [News::Unreadable(Trouble::Failed { .. })]));
    fs::remove_file(&log).unwrap();
    append(&log, "1\n");
    follower.expect(&["1"]);
}

#[test]
fn a_line_of_64_mib_is_skipped_and_the_next_is_read() {
    let (_directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    append(&log, &"x".repeat(64 << 20));
    append(&log, "\nnext\n");
    follower.expect(&["next"]);
    assert_eq!(follower.tail.counters().oversized, 1);
    assert_eq!(follower.tail.counters().bytes, (64 << 20) + 6);
}

#[test]
fn after_an_overflow_of_the_event_queue_everything_is_looked_at() {
    let (directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    let length: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let noise = directory.path().join("noise");
    for _ in 0..=length / 2 {
        append(&noise, "");
        fs::remove_file(&noise).unwrap();
    }
    append(&log, "1\n");
    fs::rename(&log, directory.path().join("access.log.1")).unwrap();
    append(&log, "2\n");
    append(&directory.path().join("access.log.1"), "3\n");
    follower.expect(&["1", "3", "2"]);
    assert_eq!(follower.tail.counters().overflows, 1);
    append(&log, "4\n");
    follower.expect(&["4"]);
}

#[test]
fn a_line_behind_the_noise_of_its_neighbours_needs_no_second_wake() {
    for name in ["n".repeat(255), "n".to_owned()] {
        let (directory, log) = place();
        append(&log, "");
        let mut follower = Follower::of(&log);
        let noise = directory.path().join(name);
        for _ in 0..300 {
            append(&noise, "");
            fs::remove_file(&noise).unwrap();
        }
        append(&log, "1\n");
        follower.await_wake();
        assert_eq!(follower.lines, ["1"]);
    }
}

#[test]
fn a_check_finds_what_no_event_told() {
    let (directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    append(&log, "1\n");
    follower.check_after(Duration::from_secs(1));
    assert_eq!(follower.lines, ["1"]);
    fs::rename(&log, directory.path().join("access.log.1")).unwrap();
    append(&log, "2\n");
    follower.check_after(Duration::from_secs(1));
    assert_eq!(follower.lines, ["1", "2"]);
}

#[test]
fn a_fifo_does_not_end_between_two_writers() {
    let (_directory, log) = place();
    fifo(&log, 0o600);
    let mut follower = Follower::of(&log);
    for line in ["1\n", "2\n"] {
        append(&log, line);
        follower.settle();
    }
    assert_eq!(follower.lines, ["1", "2"]);
    assert!(!follower.ended);
}

#[test]
fn a_fifo_that_we_may_not_write_to_does_not_end_either() {
    without_rights_over_modes(|| {
        let (_directory, log) = place();
        fifo(&log, 0o400);
        let mut follower = Follower::of(&log);
        for line in ["1\n", "2\n3", "\n"] {
            chmod(&log, 0o600);
            let mut xray = writer(&log);
            chmod(&log, 0o400);
            xray.write_all(line.as_bytes()).unwrap();
            follower.settle();
            drop(xray);
            // Would never settle if the descriptor stayed at its end.
            follower.settle();
        }
        assert_eq!(follower.lines, ["1", "2", "3"]);
    });
}

#[test]
fn a_fifo_takes_the_place_of_a_file_and_a_file_that_of_a_fifo() {
    let (directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    append(&log, "1\n");
    fs::rename(&log, directory.path().join("access.log.1")).unwrap();
    fifo(&log, 0o600);
    follower.expect(&["1"]);
    let mut xray = writer(&log);
    xray.write_all(b"2\n").unwrap();
    follower.expect(&["2"]);
    fs::remove_file(&log).unwrap();
    append(&log, "3\n");
    xray.write_all(b"4\n").unwrap();
    follower.expect(&["4", "3"]);
    follower.check_after(OLD_IS_DONE_AFTER);
    follower.expect(&[]);
}

#[test]
fn an_unreadable_log_is_said_once_and_read_from_the_start_of_our_time_when_mended() {
    without_rights_over_modes(|| {
        let (_directory, log) = place();
        append(&log, "old\n");
        let mut xray = writer(&log);
        chmod(&log, 0);
        let mut follower = Follower::of(&log);
        let [News::Unreadable(trouble @ Trouble::Denied { .. })] = &follower.news()[..] else {
            panic!("no word of it");
        };
        let sentence = trouble.to_string();
        let user = format!("(uid {})", rustix::process::geteuid().as_raw());
        for part in [log.to_str().unwrap(), &user, "permission denied", "CAP_DAC_READ_SEARCH"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        xray.write_all(b"new\n").unwrap();
        follower.settle();
        follower.check_after(Duration::from_secs(1));
        assert_eq!(follower.news(), []);
        chmod(&log, 0o400);
        follower.expect(&["new"]);
        assert_eq!(follower.news(), [News::ReadableAgain]);
    });
}

#[test]
fn a_rotation_to_an_unreadable_file_is_said_and_loses_nothing() {
    without_rights_over_modes(|| {
        let (directory, log) = place();
        append(&log, "");
        let mut follower = Follower::of(&log);
        let mut old = writer(&log);
        fs::rename(&log, directory.path().join("access.log.1")).unwrap();
        follower.settle();
        let mut xray = writer(&log);
        chmod(&log, 0);
        xray.write_all(b"2\n").unwrap();
        old.write_all(b"1\n").unwrap();
        follower.expect(&["1"]);
        assert!(follower.news().iter().any(|news| matches!(news, News::Unreadable(_))));
        chmod(&log, 0o600);
        follower.expect(&["2"]);
        assert_eq!(follower.news(), [News::Rotated, News::ReadableAgain]);
    });
}

#[test]
fn a_directory_that_lets_nobody_in_is_said_and_found_when_mended() {
    without_rights_over_modes(|| {
        let (directory, _) = place();
        let inner = directory.path().join("xray");
        let log = inner.join("access.log");
        fs::create_dir(&inner).unwrap();
        append(&log, "old\n");
        chmod(&inner, 0);
        let mut follower = Follower::of(&log);
        assert!(matches!(follower.news()[..], [News::Unreadable(Trouble::Denied { .. })]));
        chmod(&inner, 0o700);
        follower.expect(&[]);
        append(&log, "new\n");
        follower.expect(&["new"]);
        assert_eq!(follower.news(), [News::ReadableAgain]);
    });
}

#[test]
fn a_directory_that_cannot_be_listed_is_said_and_checked_instead() {
    without_rights_over_modes(|| {
        let (directory, _) = place();
        let inner = directory.path().join("xray");
        let log = inner.join("access.log");
        fs::create_dir(&inner).unwrap();
        append(&log, "");
        chmod(&inner, 0o300);
        let mut follower = Follower::of(&log);
        assert!(matches!(follower.news()[..], [News::Unwatched(_)]));
        fs::rename(&log, inner.join("access.log.1")).unwrap();
        follower.settle();
        append(&log, "1\n");
        follower.check_after(Duration::from_secs(1));
        assert_eq!(follower.lines, ["1"]);
        chmod(&inner, 0o700);
    });
}

#[test]
fn what_is_no_log_is_refused_by_name() {
    let (directory, log) = place();
    let refused = |path: &Path| {
        let mut follower = Follower::of(path);
        match &follower.news()[..] {
            [News::Unreadable(trouble)] => trouble.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(directory.path()).ends_with("it is a directory, not a file or a FIFO"));
    assert!(refused(Path::new("/dev/null")).contains("a character device"));
    symlink("/dev/stdout", &log).unwrap();
    assert!(refused(&log).contains("leads into /proc"));
}

#[test]
fn a_log_in_place_of_a_directory_is_read_from_its_start() {
    let (_directory, log) = place();
    fs::create_dir(&log).unwrap();
    let mut follower = Follower::of(&log);
    fs::remove_dir(&log).unwrap();
    append(&log, "1\n");
    follower.expect(&["1"]);
    let news = follower.news();
    assert!(matches!(news[..], [News::Unreadable(_), .., News::ReadableAgain]), "{news:?}");
}

#[test]
fn the_past_can_be_read_back_up_to_where_following_begins() {
    let (_directory, log) = place();
    append(&log, "1\n22\n333\n4 begun");
    let now = Instant::now();
    let mut tail = Tail::open(&LogTarget::from(&log), now).unwrap();
    append(&log, " and ended\n");
    let mut back = |limit| {
        let mut lines = Vec::new();
        let take = |line: Line<'_>| {
            let line = line.whole().map_or("(skipped)".as_bytes(), |line| line);
            lines.push(String::from_utf8(line.to_vec()).unwrap());
        };
        tail.read_back(limit, take).unwrap();
        lines
    };
    assert_eq!(back(1000), ["1", "22", "333"]);
    assert_eq!(back(9), ["1", "22", "333"]);
    assert_eq!(back(8), ["(skipped)", "22", "333"]);
    assert_eq!(back(7), ["(skipped)", "22", "333"]);
    assert_eq!(back(6), ["(skipped)", "333"]);
    assert_eq!(back(0), ["(skipped)"]);
    let mut lines = Vec::new();
    let take = |line: Line<'_>| lines.extend(line.whole().map(<[u8]>::to_vec));
    assert_eq!(tail.read_chunk(now, take), Progress::Drained);
    assert_eq!(lines, [b"4 begun and ended"]);
}

#[test]
fn a_flood_from_another_thread_through_rotations_loses_nothing() {
    let (directory, log) = place();
    append(&log, "");
    let mut follower = Follower::of(&log);
    let flood = thread::spawn(move || {
        let mut file = writer(&log);
        for n in 0..60_000 {
            if n % 5000 == 4999 {
                let name = format!("access.log.{n}");
                fs::rename(&log, directory.path().join(name)).unwrap();
                // Xray goes on in the old file before it opens the new one.
                writeln!(file, "{n}").unwrap();
                file = writer(&log);
            } else {
                file.write_all(format!("{n}\n").as_bytes()).unwrap();
            }
        }
        directory
    });
    follower.await_lines(60_000);
    let _directory = flood.join().unwrap();
    follower.settle();
    let expected: Vec<String> = (0..60_000).map(|n: u32| n.to_string()).collect();
    assert_eq!(follower.lines, expected);
}

/// Set where [`follow_standard_input`] is to do its work.
const IN_A_PROCESS: &str = "REFRACT_TEST_FOLLOWS_STDIN";

/// Not a test: what the tests of standard input run as a process of its own.
#[test]
#[ignore = "started by the tests of standard input"]
fn follow_standard_input() {
    if std::env::var_os(IN_A_PROCESS).is_none() {
        return;
    }
    let mut follower = Follower::of_target(&LogTarget::from("-"));
    println!("\nfollowing");
    loop {
        for line in follower.lines.drain(..) {
            println!("got {line}");
        }
        if follower.ended {
            break;
        }
        follower.await_wake();
    }
    for news in follower.news() {
        println!("news {news}");
    }
}

/// The command that follows its standard input in a process of its own.
fn follow_in_a_process() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "follow_standard_input", "--ignored", "--nocapture"]);
    command.env(IN_A_PROCESS, "1").stdout(Stdio::piped());
    command
}

/// What the follower says at the end of its input.
const ENDED: &str = "news standard input has ended";

fn is_ours(line: &str) -> bool {
    line.starts_with("got ") || line.starts_with("news ")
}

/// What a follower in a process of its own told.
fn told(output: &[u8]) -> Vec<String> {
    let lines = String::from_utf8_lossy(output);
    lines.lines().filter(|line| is_ours(line)).map(str::to_owned).collect()
}

#[test]
fn standard_input_from_a_pipe_is_read_as_it_comes_and_ends() {
    let mut child = follow_in_a_process().stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || output.by_ref().map(Result::unwrap).find(|line| is_ours(line));
    input.write_all(b"1\n2 be").unwrap();
    assert_eq!(next().unwrap(), "got 1");
    input.write_all(b"gun\n").unwrap();
    assert_eq!(next().unwrap(), "got 2 begun");
    drop(input);
    assert_eq!(next().unwrap(), ENDED);
    assert!(child.wait().unwrap().success());
}

#[test]
fn standard_input_from_a_file_is_read_from_its_start_to_its_end() {
    let (_directory, log) = place();
    let lines: Vec<String> = (0..30_000).map(|n| format!("line {n}")).collect();
    append(&log, &(lines.join("\n") + "\nincomplete"));
    let output = follow_in_a_process().stdin(File::open(&log).unwrap()).output().unwrap();
    let mut expected: Vec<String> = lines.iter().map(|line| format!("got {line}")).collect();
    expected.push(ENDED.to_owned());
    assert_eq!(told(&output.stdout), expected);
    assert!(output.status.success());
}

#[test]
fn standard_input_from_nothing_ends_at_once() {
    let output = follow_in_a_process().stdin(Stdio::null()).output().unwrap();
    assert_eq!(told(&output.stdout), [ENDED]);
}

#[test]
fn standard_input_that_cannot_be_read_is_said_and_ends() {
    let directory = File::open("/").unwrap();
    let output = follow_in_a_process().stdin(directory).output().unwrap();
    let said = told(&output.stdout);
    assert!(said[0].starts_with("news cannot read standard input: "), "{said:?}");
    assert_eq!(said[1..], [ENDED]);
}

#[test]
fn standard_input_from_a_terminal_ends_with_control_d() {
    let exe = std::env::current_exe().unwrap();
    let inner = format!(
        "stty -echo; exec '{}' --exact follow_standard_input --ignored --nocapture",
        exe.display()
    );
    let mut child = Command::new("script")
        .args(["-qec", &inner, "/dev/null"])
        .env(IN_A_PROCESS, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(output.any(|line| line.trim_end() == "following"));
    input.write_all(b"typed\n").unwrap();
    assert!(output.any(|line| line.trim_end() == "got typed"));
    input.write_all(b"\x04").unwrap();
    assert!(output.any(|line| line.trim_end() == ENDED));
    drop(input);
    child.wait().unwrap();
}

#[test]
fn names_of_standard_input_are_known() {
    assert_eq!(LogTarget::from("-"), LogTarget::Stdin);
    assert_eq!(LogTarget::from("/dev/stdin"), LogTarget::Stdin);
    assert_eq!(LogTarget::from("./-"), LogTarget::Path("./-".into()));
}

#[test]
fn an_empty_path_is_refused() {
    let error = Tail::open(&LogTarget::from(""), Instant::now()).unwrap_err();
    assert!(error.to_string().starts_with("cannot follow the path \"\":"), "{error}");
}
