//! The tail against a model: random programs of what writers, rotators and people do to a log, with
//! reads in between, and a model that says which lines must come out, each exactly once.
//!
//! What the model takes away, and nothing else: lines that a truncation cut off before they were
//! read; files that were deleted before the tail looked at them; and, after the kernel's event queue
//! has overflowed, files that came and went before the tail looked again.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a step that fails ends the test"
)]

#[expect(dead_code, reason = "the scenarios use more of it")]
mod follower;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    time::Duration,
};

use follower::Follower;
use proptest::prelude::*;
use refract::tail::{OLD_FILES_KEPT, OLD_IS_DONE_AFTER};
use refract_core::line::MAX_LINE;
use tempfile::TempDir;

/// Something that happens to the log.
#[derive(Clone, Debug)]
enum Action {
    /// The writer writes so many lines.
    WriteLines(usize),
    /// The writer writes the beginning of a line.
    WriteHalf,
    /// The writer writes a line that is too long.
    WriteHuge,
    /// The writer closes its file and opens the path again, as Xray does after a quiet minute.
    Reopen,
    /// The log is renamed, and the older ones before it; the writer keeps its file.
    Rotate { create: bool },
    /// The log is emptied.
    Truncate,
    /// The log is emptied and at once filled beyond its former size.
    TruncateAndRegrow,
    /// The log is cut short at some byte.
    Cut(prop::sample::Index),
    /// The log's name is removed.
    Delete,
    /// Somebody makes the log if it is not there.
    Create,
    /// The latest rotated log gets its name back.
    Restore,
    /// The link in the log's place is pointed at the other directory.
    Swing,
    /// The tail is woken and looks, but does not come to read.
    Notice,
    /// The tail is woken and reads.
    Read,
    /// The tail makes its slow check and reads.
    Check,
    /// Nothing is written to old files for so long that they are left.
    LetQuiet,
    /// So much happens nearby that the event queue overflows.
    Overflow,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => (1..4_usize).prop_map(Action::WriteLines),
        4 => Just(Action::WriteHalf),
        1 => Just(Action::WriteHuge),
        5 => Just(Action::Reopen),
        6 => any::<bool>().prop_map(|create| Action::Rotate { create }),
        3 => Just(Action::Truncate),
        2 => Just(Action::TruncateAndRegrow),
        2 => any::<prop::sample::Index>().prop_map(Action::Cut),
        2 => Just(Action::Delete),
        3 => Just(Action::Create),
        2 => Just(Action::Restore),
        2 => Just(Action::Swing),
        3 => Just(Action::Notice),
        8 => Just(Action::Read),
        1 => Just(Action::Check),
        1 => Just(Action::LetQuiet),
    ]
}

/// How the log is when the tail begins.
#[derive(Clone, Debug)]
struct Start {
    /// Whether the log's path is a symbolic link to a file in another directory.
    linked: bool,
    /// What the log holds; no log at all if `None`.
    content: Option<&'static str>,
}

fn start() -> impl Strategy<Value = Start> {
    let contents = vec![None, Some(""), Some("old\n"), Some("old\nbegun "), Some("begun ")];
    (any::<bool>(), prop::sample::select(contents))
        .prop_map(|(linked, content)| Start { linked, content })
}

/// A file, whatever its name: an index into [`World::files`].
type Id = usize;
/// A directory and the number of a rotated log in it; the log itself is number 0.
type Name = (usize, usize);

/// What the model knows of a file.
#[derive(Debug, Default)]
struct Modelled {
    content: Vec<u8>,
    /// Where the first line begins that has not come out.
    begun: usize,
    /// Whether the tail reads it.
    followed: bool,
}

/// The file system, what the model makes of it, and the tail.
struct World {
    directory: TempDir,
    linked: bool,
    /// Which of the two directories the link points at.
    pointed: usize,
    names: BTreeMap<Name, Id>,
    files: Vec<Modelled>,
    writer: Option<(Id, File)>,
    /// Files whose rename from the log's name the tail will hear of.
    moved: Vec<Id>,
    events_are_lost: bool,
    written: usize,
    follower: Follower,
}

impl World {
    fn new(start: &Start) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["0", "1"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let mut log = directory.path().join("0/access.log");
        if start.linked {
            symlink("0/access.log", directory.path().join("link")).unwrap();
        }
        let mut names = BTreeMap::new();
        let mut files = Vec::new();
        if let Some(content) = start.content {
            fs::write(&log, content).unwrap();
            let begun = content.rfind('\n').map_or(0, |newline| newline + 1);
            files.push(Modelled { content: content.into(), begun, followed: true });
            names.insert((0, 0), 0);
        }
        if start.linked {
            log = directory.path().join("link");
        }
        let follower = Follower::of(&log);
        Self {
            directory,
            linked: start.linked,
            pointed: 0,
            names,
            files,
            writer: None,
            moved: Vec::new(),
            events_are_lost: false,
            written: 0,
            follower,
        }
    }

    fn path(&self, (directory, number): Name) -> PathBuf {
        let suffix = if number == 0 { String::new() } else { format!(".{number}") };
        self.directory.path().join(format!("{directory}/access.log{suffix}"))
    }

    fn log(&self) -> Name {
        (self.pointed, 0)
    }

    /// Opens the log as Xray does.
    fn open(&mut self) -> (Id, File) {
        let log = self.log();
        let file = OpenOptions::new().append(true).create(true).open(self.path(log)).unwrap();
        let id = *self.names.entry(log).or_insert_with(|| {
            self.files.push(Modelled::default());
            self.files.len() - 1
        });
        (id, file)
    }

    /// Writes in one call what the model then knows to be there.
    fn write(&mut self, text: &str) {
        let (id, mut file) = match self.writer.take() {
            Some(writer) => writer,
            None => self.open(),
        };
        file.write_all(text.as_bytes()).unwrap();
        self.files[id].content.extend_from_slice(text.as_bytes());
        self.writer = Some((id, file));
    }

    fn label(&mut self) -> String {
        self.written += 1;
        format!("line {:05} of them all", self.written)
    }

    /// The log's file, for one who has it open; nobody makes it.
    fn existing(&self) -> Option<(Id, File)> {
        let id = *self.names.get(&self.log())?;
        Some((id, OpenOptions::new().write(true).open(self.path(self.log())).unwrap()))
    }

    fn truncate(&mut self) {
        let Some((id, file)) = self.existing() else { return };
        file.set_len(0).unwrap();
        self.files[id].content.clear();
        self.files[id].begun = 0;
    }

    /// A file lost its last name: whoever has not looked at it never will.
    fn forget(&mut self, id: Id) {
        self.moved.retain(|&moved| moved != id);
    }

    fn rename(&mut self, from: Name, to: Name) {
        fs::rename(self.path(from), self.path(to)).unwrap();
        let id = self.names.remove(&from).unwrap();
        let was_moved = self.moved.contains(&id);
        self.moved.retain(|&moved| moved != id);
        let comes_from_log = from.1 == 0 || was_moved;
        if comes_from_log && to.1 != 0 && from.0 == self.pointed && !self.events_are_lost {
            self.moved.push(id);
        }
        if let Some(replaced) = self.names.insert(to, id) {
            self.forget(replaced);
        }
    }

    fn rotate(&mut self, create: bool) {
        if !self.names.contains_key(&self.log()) || self.files.len() >= OLD_FILES_KEPT {
            return;
        }
        let is_free = |number: &usize| !self.names.contains_key(&(self.pointed, *number));
        let free = (0..=self.files.len()).find(is_free).unwrap();
        for number in (0..free).rev() {
            self.rename((self.pointed, number), (self.pointed, number + 1));
        }
        if create {
            self.open();
        }
    }

    /// The tail takes in the events that are waiting.
    fn notice(&mut self) {
        self.follower.notice();
        self.model_notices();
    }

    fn model_notices(&mut self) {
        self.events_are_lost = false;
        let named = self.names.get(&self.log()).copied();
        for id in self.moved.drain(..).chain(named) {
            self.files[id].followed = true;
        }
    }

    /// The tail reads all it can, and what comes must be what the model says.
    fn read(&mut self) {
        self.follower.settle();
        self.compare();
    }

    fn compare(&mut self) {
        self.model_notices();
        let mut expected = Vec::new();
        for file in self.files.iter_mut().filter(|file| file.followed) {
            let fresh = &file.content[file.begun..];
            let Some(last) = fresh.iter().rposition(|&byte| byte == b'\n') else { continue };
            for line in fresh[..last].split(|&byte| byte == b'\n') {
                if line.len() <= MAX_LINE {
                    expected.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            file.begun += last + 1;
        }
        // The model does not say which file comes first. Each line is unlike all others, so sorting
        // both sides hides nothing but that; the scenarios look at the order.
        let mut lines = std::mem::take(&mut self.follower.lines);
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }

    fn perform(&mut self, action: &Action) {
        match action {
            Action::WriteLines(count) => {
                for _ in 0..*count {
                    let line = self.label() + "\n";
                    self.write(&line);
                }
            }
            Action::WriteHalf => {
                let half = self.label();
                self.write(&half);
            }
            Action::WriteHuge => {
                // Unlike any other throughout: the tail knows a file by its bytes.
                let label = self.label();
                self.write(&(label.repeat(MAX_LINE / label.len() + 1) + "\n"));
            }
            Action::Reopen => self.writer = Some(self.open()),
            Action::Rotate { create } => self.rotate(*create),
            Action::Truncate => self.truncate(),
            Action::TruncateAndRegrow => {
                let Some((id, file)) = self.existing() else { return };
                let former = self.files[id].content.len();
                self.truncate();
                self.writer = Some((
                    id,
                    OpenOptions::new().append(true).open(self.path(self.log())).unwrap(),
                ));
                drop(file);
                while self.files[id].content.len() <= former {
                    let line = self.label() + "\n";
                    self.write(&line);
                }
            }
            Action::Cut(at) => {
                self.read();
                let Some((id, file)) = self.existing() else { return };
                let content = &mut self.files[id].content;
                let length = at.index(content.len() + 1);
                file.set_len(length as u64).unwrap();
                content.truncate(length);
                let line = content.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                self.files[id].begun = line;
                self.read();
            }
            Action::Delete => {
                if let Some(id) = self.names.remove(&self.log()) {
                    fs::remove_file(self.path(self.log())).unwrap();
                    self.forget(id);
                }
            }
            Action::Create => {
                if self.files.len() < OLD_FILES_KEPT {
                    self.open();
                }
            }
            Action::Restore => {
                if self.names.contains_key(&(self.pointed, 1)) {
                    self.rename((self.pointed, 1), self.log());
                }
            }
            Action::Swing => {
                if !self.linked {
                    return;
                }
                self.notice();
                self.pointed = 1 - self.pointed;
                let [link, new] = ["link", "new link"].map(|name| self.directory.path().join(name));
                symlink(format!("{}/access.log", self.pointed), &new).unwrap();
                fs::rename(new, link).unwrap();
                self.notice();
            }
            Action::Notice => self.notice(),
            Action::Read => self.read(),
            Action::Check => {
                self.read();
                self.follower.check_after(Duration::from_secs(1));
                self.compare();
            }
            Action::LetQuiet => {
                let (named, file) = self.open();
                self.writer = Some((named, file));
                self.read();
                self.follower.check_after(OLD_IS_DONE_AFTER);
                self.compare();
                for (id, file) in self.files.iter_mut().enumerate() {
                    file.followed = id == named;
                }
            }
            Action::Overflow => {
                self.notice();
                overflow(&self.path((self.pointed, 0)).with_file_name("noise"));
                self.events_are_lost = true;
            }
        }
    }
}

/// Fills the event queue with changes of a file in the log's directory.
fn overflow(noise: &std::path::Path) {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let other = noise.with_extension("too");
    for path in [noise, &other] {
        fs::write(path, "").unwrap();
    }
    // In turns, since the kernel folds an event into the last one if they are alike.
    for _ in 0..=limit / 2 {
        for path in [noise, &other] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

fn run(start: &Start, actions: &[Action]) {
    let mut world = World::new(start);
    for action in actions {
        world.perform(action);
    }
    world.read();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_line_comes_exactly_once(
        start in start(),
        actions in prop::collection::vec(action(), 1..60),
    ) {
        run(&start, &actions);
    }
}

proptest! {
    // Few, since it takes tens of thousands of system calls to make the queue overflow.
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn every_line_comes_exactly_once_after_an_overflow(
        start in start(),
        before in prop::collection::vec(action(), 1..20),
        after in prop::collection::vec(action(), 1..20),
    ) {
        run(&start, &[before, vec![Action::Overflow], after].concat());
    }
}
