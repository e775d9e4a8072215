//! The state file: what must outlast a restart, and nothing else.
//!
//! Takes [`Standing`]s, a slice of them at a time; makes one small JSON file (`version` 1), written
//! whole to a neighbouring file, synced and renamed, by a thread of its own. At the start it gives
//! back what was there. A file that is broken or of another version costs the memory of yesterday:
//! who was first, and who was whose neighbour. At most [`MOST_STANDINGS`] are kept; the longest
//! silent go, and the file says until when they might be missed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc::{self, SyncSender},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use refract_core::{Evidence, Moment, Network, Occupancy, Source, Standing};
use serde::{Deserialize, Serialize};

use crate::{
    audit::{Outcome, reading},
    clock::Clock,
    escape::printable,
};

/// Standings kept.
pub const MOST_STANDINGS: usize = 65_536;
/// The largest file that is read, bytes.
const LONGEST_FILE: u64 = 64 * 1024 * 1024;
/// Pause between two writes.
const WRITE_PAUSE: Duration = Duration::from_secs(10);
/// Users whose standings are gathered in one step, some tens of microseconds.
const USERS_A_STEP: usize = 512;
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    standings: Vec<Wire>,
    /// Until when somebody who is not in the list may have been anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unknown_until: Option<u64>,
}

/// A standing with times of day, in microseconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    identity: Name,
    shown_as: Name,
    source: String,
    first_seen: u64,
    arrival: u64,
    last_move: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ordered_until: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ordered_at: Option<u64>,
    /// Absent unless it is true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_visit: bool,
}

/// A name, which may be any bytes.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(bytes.to_vec()),
        }
    }
}

impl From<Name> for Box<[u8]> {
    fn from(name: Name) -> Self {
        match name {
            Name::Text(text) => text.into_bytes().into(),
            Name::Bytes(bytes) => bytes.into(),
        }
    }
}

/// What outlasts a restart.
#[derive(Debug, Default)]
pub struct Memory {
    /// Who was where.
    pub standings: Vec<Standing>,
    /// Until when somebody of whom they do not tell may have been anywhere.
    pub unknown_until: Moment,
}

/// What an earlier run left at `path`; nothing when there is no file.
pub fn load(path: &Path, clock: &Clock) -> io::Result<Option<Memory>> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened =
        OpenOptions::new().read(true).custom_flags(nofollow.bits().cast_signed()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LONGEST_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file of ours"));
    }
    let mut text = Vec::new();
    file.take(LONGEST_FILE).read_to_end(&mut text)?;
    let content: Content = serde_json::from_slice(&text).map_err(io::Error::other)?;
    if content.version != VERSION {
        let sentence = format!("it is of version {}, not {VERSION}", content.version);
        return Err(io::Error::other(sentence));
    }
    let moment =
        |micros: u64| clock.moment_of_wall(SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
    if content.standings.len() > MOST_STANDINGS {
        return Err(io::Error::other("it is longer than one of ours"));
    }
    let standing = |wire: Wire| {
        let network: Network = wire.source.parse().map_err(io::Error::other)?;
        let prefix = network.prefix();
        Ok(Standing {
            identity: wire.identity.into(),
            shown_as: wire.shown_as.into(),
            source: Source::of(network.address(), prefix, prefix),
            first_seen: moment(wire.first_seen),
            arrival: moment(wire.arrival),
            last_move: moment(wire.last_move),
            ordered_until: wire.ordered_until.map_or_else(Moment::default, moment),
            ordered_at: wire.ordered_at.map(moment),
            is_visit: wire.is_visit,
        })
    };
    let standings = content.standings.into_iter().map(standing).collect::<io::Result<_>>()?;
    let unknown_until = content.unknown_until.map_or_else(Moment::default, moment);
    Ok(Some(Memory { standings, unknown_until }))
}

/// Whether there should be a file: the block log has a record of somebody whom a daemon that keeps
/// one acted upon so lately that it would tell of it at `now`. Where no daemon ever ran there is
/// none.
#[must_use]
pub fn is_missed(block_log: &Path, remembered_for: Duration, now: Timestamp) -> bool {
    let Ok(since) = now.checked_sub(remembered_for) else { return true };
    reading::latest(block_log).any(|told| {
        // A dry run keeps none, nor who believes the log.
        told.time > since
            && told.evidence == Evidence::Kernel.name()
            && told.outcome != Outcome::DryRun.name()
    })
}

/// The file, as it is kept up to date.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    gathered: Vec<Standing>,
    /// The last sign of life among those that there was no room for.
    left_out: Option<Moment>,
    begun: Instant,
    gathering: bool,
    writing: Option<(SyncSender<Memory>, JoinHandle<()>)>,
    /// How each write ended.
    written: mpsc::Receiver<io::Result<()>>,
    /// What was told since the last write that went well.
    trouble: Option<String>,
}

impl StateFile {
    /// Will write to `path`, from a thread of its own.
    pub fn start(path: PathBuf, clock: Clock, now: Instant) -> io::Result<Self> {
        // Where the disk hangs, one waits and later ones are left out: nothing piles up.
        let (contents, waiting) = mpsc::sync_channel::<Memory>(1);
        let (ended, written) = mpsc::channel();
        let target = path.clone();
        let thread =
            std::thread::Builder::new().name("refract-state".to_owned()).spawn(move || {
                for memory in waiting {
                    let written = content(&memory, &clock).and_then(|it| write(&target, &it));
                    if ended.send(written).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            path,
            gathered: Vec::new(),
            left_out: None,
            begun: now,
            // At once, so that a run that ends soon and without warning leaves a file, too.
            gathering: true,
            writing: Some((contents, thread)),
            written,
            trouble: None,
        })
    }

    /// Goes on gathering, or begins to; call it once a second. Gives a trouble that was not told yet.
    pub fn tick(&mut self, occupancy: &mut Occupancy, now: Instant) -> Option<String> {
        if !self.gathering && now.saturating_duration_since(self.begun) >= WRITE_PAUSE {
            self.gathering = true;
            self.begun = now;
        }
        if self.gathering {
            let standings = occupancy.standings(USERS_A_STEP);
            let is_over = standings.is_empty();
            self.gather(standings);
            if is_over {
                self.gathering = false;
                self.hand_over(occupancy);
            }
        }
        self.untold()
    }

    /// The trouble of the last write that has ended, unless it was told.
    fn untold(&mut self) -> Option<String> {
        let ended = self.written.try_iter().last()?;
        self.judge(ended)
    }

    fn judge(&mut self, ended: io::Result<()>) -> Option<String> {
        let Err(error) = ended else {
            self.trouble = None;
            return None;
        };
        let trouble = format!(
            "cannot write the state file {}: {error}; who was where first will be forgotten with \
             the next restart (--state.file names another place)",
            printable(self.path.as_os_str().as_encoded_bytes())
        );
        (self.trouble.replace(trouble.clone()).as_ref() != Some(&trouble)).then_some(trouble)
    }

    /// Writes everything once more, and waits for that. Gives a trouble that was not told yet.
    pub fn finish(mut self, occupancy: &mut Occupancy) -> Option<String> {
        // The hand may stand anywhere: first to its end, then all the way.
        while self.gathering && !occupancy.standings(usize::MAX / 2).is_empty() {}
        self.gathered.clear();
        self.left_out = None;
        loop {
            let standings = occupancy.standings(USERS_A_STEP);
            if standings.is_empty() {
                break;
            }
            self.gather(standings);
        }
        let memory = self.take_gathered(occupancy);
        if let Some((contents, thread)) = self.writing.take() {
            // Only a thread that panicked is gone, and that has been printed.
            let _ = contents.send(memory);
            drop(contents);
            let _ = thread.join();
        }
        self.untold()
    }

    fn hand_over(&mut self, occupancy: &Occupancy) {
        let memory = self.take_gathered(occupancy);
        if let Some((contents, _)) = &self.writing {
            // Where one waits already, the next will be newer; only a thread that panicked is gone,
            // and that has been printed.
            let _ = contents.try_send(memory);
        }
    }

    fn gather(&mut self, standings: Vec<Standing>) {
        self.gathered.extend(standings);
        if self.gathered.len() >= 2 * MOST_STANDINGS {
            self.left_out = self.left_out.max(shorten(&mut self.gathered));
        }
    }

    fn take_gathered(&mut self, occupancy: &Occupancy) -> Memory {
        let left_out = self.left_out.take().max(shorten(&mut self.gathered));
        let unknown_until = occupancy.untold_until(left_out);
        Memory { standings: std::mem::take(&mut self.gathered), unknown_until }
    }
}

/// Drops the longest silent beyond [`MOST_STANDINGS`]; gives the last sign of life among those.
fn shorten(standings: &mut Vec<Standing>) -> Option<Moment> {
    if standings.len() <= MOST_STANDINGS {
        return None;
    }
    let last = |standing: &Standing| std::cmp::Reverse(standing.last_move);
    let (_, latest, _) = standings.select_nth_unstable_by_key(MOST_STANDINGS, last);
    let latest = latest.last_move;
    standings.truncate(MOST_STANDINGS);
    Some(latest)
}

/// The file's content.
fn content(memory: &Memory, clock: &Clock) -> io::Result<Vec<u8>> {
    let micros = |moment| {
        let since = clock.wall(moment).duration_since(SystemTime::UNIX_EPOCH);
        u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
    };
    let unless_long_ago = |moment| (moment > Moment::default()).then(|| micros(moment));
    let standings = memory
        .standings
        .iter()
        .map(|standing| Wire {
            identity: (&*standing.identity).into(),
            shown_as: (&*standing.shown_as).into(),
            source: standing.source.to_string(),
            first_seen: micros(standing.first_seen),
            arrival: micros(standing.arrival),
            last_move: micros(standing.last_move),
            ordered_until: unless_long_ago(standing.ordered_until),
            ordered_at: standing.ordered_at.map(micros),
            is_visit: standing.is_visit,
        })
        .collect();
    let unknown_until = unless_long_ago(memory.unknown_until);
    let content = Content { version: VERSION, standings, unknown_until };
    serde_json::to_vec(&content).map_err(io::Error::other)
}

/// Replaces the file whole: a crash leaves the old one or the new one.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let _ = std::fs::remove_file(&fresh);
    let mut file: File =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use refract_core::{Accounts, Policy};

    use super::*;
    use crate::audit::{Action, BlockFormat, Record, line};

    fn occupancy() -> Occupancy {
        Occupancy::new(Policy::default(), Arc::new(Accounts::default()))
    }

    fn standing(user: &[u8], source: &str, clock: &Clock, ago: u64) -> Standing {
        let now = clock.moment(Instant::now());
        let moment = now.saturating_sub(Duration::from_secs(ago));
        Standing {
            identity: user.into(),
            shown_as: user.into(),
            source: Source::of(source.parse().unwrap(), 32, 64),
            first_seen: moment,
            arrival: moment,
            last_move: moment,
            ordered_until: Moment::default(),
            ordered_at: None,
            is_visit: false,
        }
    }

    #[test]
    fn what_is_written_is_read_again_whatever_the_names_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("refract.state");
        let clock = Clock::start();
        let mut before = occupancy();
        let now = clock.moment(Instant::now());
        let until = now.saturating_add(Duration::from_mins(1));
        for (user, source, ago) in [
            (&b"alice"[..], "198.51.100.11", 7_200),
            (b"alice", "2001:db8::1", 3_600),
            (b"\xff\x00\nbob", "198.51.100.12", 60),
        ] {
            let standing = standing(user, source, &clock, ago);
            before.restore(&Standing { ordered_until: until, ..standing }, now);
        }
        let visit = standing(b"admin", "198.51.100.12", &clock, 30);
        before.restore(&Standing { is_visit: true, ..visit }, now);
        let file = StateFile::start(path.clone(), clock, Instant::now()).unwrap();
        assert_eq!(file.finish(&mut before), None);

        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let Memory { standings, unknown_until } = load(&path, &clock).unwrap().unwrap();
        assert_eq!((standings.len(), unknown_until), (4, Moment::default()));
        assert!(standings.iter().any(|it| &*it.identity == b"\xff\x00\nbob"));
        assert!(standings.iter().all(|it| it.is_ordered(now) != it.is_visit));
        assert_eq!(standings.iter().filter(|it| it.is_visit).count(), 1);
        let mut after = occupancy();
        for standing in &standings {
            after.restore(standing, now);
        }
        assert_eq!(after.sizes().0, 2);
    }

    #[test]
    fn a_file_that_cannot_be_ours_is_refused_and_none_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::start();
        assert!(load(&folder.path().join("absent"), &clock).unwrap().is_none());
        for (name, text) in [
            ("broken", "{\"version\":1,\"standings\":[{"),
            ("newer", "{\"version\":2,\"standings\":[]}"),
            ("alien", "hello"),
            (
                "nowhere",
                "{\"version\":1,\"standings\":[{\"identity\":\"a\",\"shown_as\":\"a\",\
                 \"source\":\"x\",\"first_seen\":1,\"arrival\":1,\"last_move\":1}]}",
            ),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            assert!(load(&path, &clock).is_err(), "{name}");
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("broken"), &link).unwrap();
        assert!(load(&link, &clock).is_err(), "a link leads where it likes");
        assert!(load(folder.path(), &clock).is_err(), "a directory");
    }

    #[test]
    fn a_file_is_missed_where_the_block_log_tells_of_a_run_that_kept_one() {
        let (folder, now) = (tempfile::tempdir().unwrap(), Timestamp::now());
        let path = folder.path().join("block.log");
        let day = Duration::from_hours(24);
        assert!(!is_missed(&path, day, now), "the first start of all");
        let ban = |hours: u64| Record {
            action: Action::Ban,
            time: now.checked_sub(Duration::from_hours(hours)).unwrap(),
            ..Record::of(b"alice".to_vec(), "198.51.100.7".to_owned())
        };
        for (what, record, expected) in [
            ("a ban", ban(23), true),
            ("a failure", Record { outcome: Outcome::Failed("x".to_owned()), ..ban(1) }, true),
            ("a ban that is long ago", ban(24), false),
            ("a dry run", Record { outcome: Outcome::DryRun, ..ban(1) }, false),
            ("the word of the log", Record { evidence: "log", ..ban(1) }, false),
            ("an adoption", Record { evidence: "kernel_set", ..ban(1) }, false),
        ] {
            std::fs::write(&path, line(&record, BlockFormat::Text)).unwrap();
            assert_eq!(is_missed(&path, day, now), expected, "{what}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told_once() {
        let (clock, now) = (Clock::start(), Instant::now());
        let mut file = StateFile::start("/nonexistent/refract.state".into(), clock, now).unwrap();
        let mut occupancy = occupancy();
        file.tick(&mut occupancy, now + WRITE_PAUSE);
        let mut told = Vec::new();
        for round in 0..2u32 {
            file.hand_over(&occupancy);
            let deadline = Instant::now() + Duration::from_secs(5);
            while Instant::now() < deadline && told.len() <= round as usize {
                match file.written.recv_timeout(Duration::from_secs(5)) {
                    Ok(written) => told.push(written.unwrap_err().to_string()),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!(told.len(), 2, "each write is tried: {told:?}");
        file.finish(&mut occupancy);
    }

    #[test]
    fn the_first_file_is_there_before_anybody_can_be_missed() {
        let (folder, clock, now) = (tempfile::tempdir().unwrap(), Clock::start(), Instant::now());
        let path = folder.path().join("refract.state");
        let mut file = StateFile::start(path.clone(), clock, now).unwrap();
        let mut occupancy = occupancy();
        assert_eq!(file.tick(&mut occupancy, now + Duration::from_secs(1)), None);
        file.written.recv_timeout(Duration::from_secs(5)).unwrap().unwrap();
        assert!(load(&path, &clock).unwrap().unwrap().standings.is_empty());
        for second in 2..10 {
            assert_eq!(file.tick(&mut occupancy, now + Duration::from_secs(second)), None);
        }
        assert!(file.written.try_recv().is_err(), "and the next one ten seconds later");
        file.finish(&mut occupancy);
    }

    #[test]
    fn a_last_write_that_fails_is_told() {
        let (clock, now) = (Clock::start(), Instant::now());
        let file = StateFile::start("/nonexistent/refract.state".into(), clock, now).unwrap();
        let last = file.finish(&mut occupancy()).unwrap();
        assert!(last.contains("cannot write the state file /nonexistent/refract.state"), "{last}");
    }

    #[test]
    fn a_trouble_that_was_over_is_told_when_it_comes_back() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::start());
        let home = folder.path().join("home");
        let path = home.join("refract.state");
        let mut file = StateFile::start(path, clock, Instant::now()).unwrap();
        let mut write = || {
            file.hand_over(&occupancy());
            let ended = file.written.recv_timeout(Duration::from_secs(5)).unwrap();
            file.judge(ended)
        };
        assert!(write().is_some());
        assert!(write().is_none(), "it was told");
        std::fs::create_dir(&home).unwrap();
        assert!(write().is_none());
        std::fs::remove_dir_all(&home).unwrap();
        assert!(write().is_some());
        assert!(write().is_none());
    }

    #[test]
    fn of_too_many_standings_the_longest_silent_go() {
        let clock = Clock::start();
        let mut standings: Vec<Standing> = (0..MOST_STANDINGS as u64 + 10)
            .map(|ago| standing(b"alice", "198.51.100.11", &clock, ago))
            .collect();
        let oldest = standings[MOST_STANDINGS - 1].last_move;
        let left_out = standings[MOST_STANDINGS].last_move;
        standings.reverse();
        assert_eq!(shorten(&mut standings), Some(left_out));
        assert_eq!(standings.len(), MOST_STANDINGS);
        assert_eq!(standings.iter().map(|it| it.last_move).min(), Some(oldest));
        assert_eq!(shorten(&mut standings), None);
    }

    #[test]
    fn a_file_without_room_for_all_says_until_when_they_might_be_missed() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::start());
        let path = folder.path().join("refract.state");
        let mut file = StateFile::start(path.clone(), clock, Instant::now()).unwrap();
        for ago in 0..=MOST_STANDINGS as u64 {
            let ago = if ago == 0 { 1 } else { 7_200 };
            file.gathered.push(standing(b"alice", "198.51.100.11", &clock, ago));
        }
        file.hand_over(&occupancy());
        file.written.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        let memory = load(&path, &clock).unwrap().unwrap();
        assert_eq!(memory.standings.len(), MOST_STANDINGS);
        let left = memory.unknown_until.saturating_since(clock.moment(Instant::now()));
        let expected = Duration::from_hours(22);
        assert!(left <= expected && left + Duration::from_mins(1) > expected, "{left:?}");
        // What it is told of is handed on to the next file.
        let mut after = occupancy();
        after.doubt_neighbours(memory.unknown_until, clock.moment(Instant::now()));
        assert_eq!(after.untold_until(None), memory.unknown_until);
        file.finish(&mut occupancy());
    }
}
