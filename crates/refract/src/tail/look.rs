//! Looking at the path: where it leads now, which file to take up, which to leave.
//!
//! Takes the path and what the watches know of renames; makes sources to read and news. It is the
//! slow side of the tail: it runs when a name on the way has changed, and at each check, never for
//! a line. It reads no lines.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::Instant,
};

use rustix::{
    fs::{FileType, Mode, OFlags, Stat, fstat, open, stat},
    io::Errno,
};

use super::{
    Begin, OLD_FILES_KEPT, Tail,
    news::{News, Trouble},
    place::Place,
    source::{Identity, Source, open_fifo},
    tell,
};

/// What the path was found to be; each change is said once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing was looked at yet.
    Unknown,
    /// A file or FIFO that is read.
    Log,
    /// No file.
    Nothing,
    /// Something that cannot be read.
    Unreadable(Trouble),
}

impl Tail {
    /// Looks where the path leads, and takes up what is there.
    pub(super) fn look(&mut self, now: Instant) {
        let Some(log) = self.log.clone() else { return };
        let way = self.watches.trace(&log);
        for path in self.watches.moved() {
            self.take_up_moved(&path, now);
        }
        let found = if way.into_proc {
            Found::Unreadable(Trouble::OwnDescriptor { path: log.display().to_string() })
        } else {
            self.look_at(&log, now)
        };
        match found {
            Found::Log => {}
            Found::Unknown | Found::Nothing | Found::Unreadable(_) => self.name(None, now),
        }
        self.tell_found(found);
        let directory = way.unwatched.filter(|_| self.found == Found::Log);
        let directory = directory.map(|(path, why)| Trouble::watching(&path, why));
        let unwatched = self.watch_files(&log).or(directory);
        if self.unwatched != unwatched {
            self.unwatched.clone_from(&unwatched);
            if let Some(trouble) = unwatched {
                tell(&mut self.news, News::Unwatched(trouble));
            }
        }
        self.leave_surplus();
    }

    fn look_at(&mut self, log: &Path, now: Instant) -> Found {
        let found = match stat(log) {
            Ok(found) => found,
            Err(why) => return self.not_found(log, why),
        };
        let mut identity = Identity::from(&found);
        if !self.is_known(identity) {
            match self.open_log(log, &found, now) {
                Ok(source) => {
                    identity = source.identity;
                    self.take_up(source);
                }
                Err(Trouble::Failed { source: why @ (Errno::NOENT | Errno::NOTDIR), .. }) => {
                    return self.not_found(log, why);
                }
                Err(trouble) => {
                    self.begin = match (&trouble, self.begin) {
                        (Trouble::NotALog { .. }, _) => Begin::AtStart,
                        (_, Begin::AtEnd) => Begin::After(identity, length(&found)),
                        (_, begin) => begin,
                    };
                    return Found::Unreadable(trouble);
                }
            }
        }
        self.name(Some(identity), now);
        Found::Log
    }

    fn not_found(&mut self, log: &Path, why: Errno) -> Found {
        match why {
            Errno::NOENT | Errno::NOTDIR => {
                self.begin = Begin::AtStart;
                Found::Nothing
            }
            why => {
                if why == Errno::LOOP {
                    self.begin = Begin::AtStart;
                }
                Found::Unreadable(Trouble::reading(log, why))
            }
        }
    }

    fn take_up(&mut self, source: Source) {
        if self.is_known(source.identity) {
            // The path was swapped between the two calls for a file that is read already.
            source.close(&self.gate);
            return;
        }
        if !self.sources.is_empty() {
            self.counters.rotations += 1;
            tell(&mut self.news, News::Rotated);
        } else if self.found == Found::Nothing {
            tell(&mut self.news, News::Appeared);
        }
        self.sources.push(source);
    }

    /// Takes up a file that had the log's name and lost it before it was looked at.
    fn take_up_moved(&mut self, path: &Path, now: Instant) {
        let Ok(found) = stat(path) else { return };
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        if is_file
            && !self.is_known(Identity::from(&found))
            && let Ok(mut source) = self.open_log(path, &found, now)
        {
            source.named = false;
            self.take_up(source);
        }
    }

    fn open_log(&mut self, path: &Path, found: &Stat, now: Instant) -> Result<Source, Trouble> {
        let failed = |why| Trouble::reading(path, why);
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let fd = open(path, flags, Mode::empty()).map_err(failed)?;
                let opened = fstat(&fd).map_err(failed)?;
                let kind = FileType::from_raw_mode(opened.st_mode);
                if kind != FileType::RegularFile {
                    return Err(Trouble::not_a_log(path, kind));
                }
                let identity = Identity::from(&opened);
                let place = self.place_in(fd.as_fd(), identity, length(&opened)).map_err(failed)?;
                Ok(Source::file(fd, identity, place, now))
            }
            FileType::Fifo => {
                let fd = open_fifo(path).map_err(failed)?;
                let identity = Identity::from(&fstat(&fd).map_err(failed)?);
                self.begin = Begin::AtStart;
                Source::fifo(fd, identity, &self.gate, now).map_err(failed)
            }
            other => Err(Trouble::not_a_log(path, other)),
        }
    }

    /// Where to begin in a file of `size` bytes that is not read yet.
    fn place_in(
        &mut self,
        fd: BorrowedFd<'_>,
        identity: Identity,
        size: u64,
    ) -> Result<Place, Errno> {
        let left = self.left.iter().position(|(left, _)| *left == identity);
        if let Some((_, place)) = left.and_then(|index| self.left.remove(index))
            && place.holds(fd)
        {
            return Ok(place);
        }
        let place = match self.begin {
            Begin::AtEnd => Place::at_end(fd, size, &mut self.buffer)?,
            Begin::After(seen, before) if seen == identity => {
                Place::at_end(fd, before.min(size), &mut self.buffer)?
            }
            Begin::After(..) | Begin::AtStart => Place::at_start(),
        };
        self.begin = Begin::AtStart;
        Ok(place)
    }

    /// Gives the log's name to a source and takes it from all others.
    fn name(&mut self, identity: Option<Identity>, now: Instant) {
        for source in &mut self.sources {
            let named = Some(source.identity) == identity;
            if source.named && !named {
                source.quiet_since = now;
                // What was written before the name went is read before its successor.
                source.ready = true;
            }
            source.named = named;
        }
        // Stable: the named one becomes the newest, the others keep their order.
        self.sources.sort_by_key(|source| source.named);
    }

    fn is_known(&self, identity: Identity) -> bool {
        self.sources.iter().any(|source| source.identity == identity)
    }

    fn tell_found(&mut self, found: Found) {
        if found == self.found {
            return;
        }
        match &found {
            Found::Nothing => tell(&mut self.news, News::Absent),
            Found::Unreadable(trouble) => {
                tell(&mut self.news, News::Unreadable(trouble.clone()));
            }
            Found::Log if matches!(self.found, Found::Unreadable(_)) => {
                tell(&mut self.news, News::ReadableAgain);
            }
            Found::Log | Found::Unknown => {}
        }
        self.found = found;
    }

    /// Watches every file that is not watched yet, and says what keeps it from being so.
    fn watch_files(&mut self, log: &Path) -> Option<Trouble> {
        let mut trouble = None;
        for source in self.sources.iter_mut().filter(|source| source.wants_watch()) {
            match self.watches.watch_file(source.as_fd()) {
                Ok(watch) => {
                    source.watch = Some(watch);
                    // Read only now that the watch is in place: nothing falls between.
                    source.ready = true;
                }
                Err(why) => trouble = Some(Trouble::watching(log, why)),
            }
        }
        trouble
    }

    /// Leaves old files beyond [`OLD_FILES_KEPT`]: the oldest that has been read to its end, or the
    /// oldest if none has.
    fn leave_surplus(&mut self) {
        while self.sources.len() > OLD_FILES_KEPT + 1 {
            let old = self.sources.iter().take(OLD_FILES_KEPT);
            let index = old.clone().position(|source| source.unread() == 0).unwrap_or_default();
            let unread = self.sources.get(index).map_or(0, Source::unread);
            if unread > 0 {
                tell(&mut self.news, News::GivenUp(unread));
            }
            self.leave(index);
        }
    }
}

fn length(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use refract_core::line::Line;

    use super::{
        super::{LogTarget, OLD_IS_DONE_AFTER, Progress},
        *,
    };

    fn lines(tail: &mut Tail, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        let mut take = |line: Line<'_>| {
            lines.extend(line.whole().map(|line| String::from_utf8_lossy(line).into_owned()));
        };
        while tail.read_chunk(now, &mut take) == Progress::More {}
        lines
    }

    #[test]
    fn a_new_file_with_the_number_of_a_file_that_was_left_is_read_from_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let [log, rotated] = ["log", "log.1"].map(|name| directory.path().join(name));
        let mut now = Instant::now();
        let mut tail = Tail::open(&LogTarget::from(&log), now).unwrap();
        fs::write(&log, "one\ntwo\n").unwrap();
        tail.woken(now);
        assert_eq!(lines(&mut tail, now), ["one", "two"]);
        fs::rename(&log, &rotated).unwrap();
        fs::write(&log, "").unwrap();
        tail.woken(now);
        now += OLD_IS_DONE_AFTER + Duration::from_secs(1);
        tail.check(now);
        assert_eq!(lines(&mut tail, now), [""; 0]);
        assert_eq!(tail.left.len(), 1);

        // Whether a file system gives a number out again is its own affair: said here by hand.
        fs::write(&rotated, "three\nfour and more\n").unwrap();
        tail.left[0].0 = Identity::from(&stat(&rotated).unwrap());
        fs::rename(&rotated, &log).unwrap();
        tail.woken(now);
        assert_eq!(lines(&mut tail, now), ["three", "four and more"]);
        assert_eq!(tail.counters().truncations, 0);
    }
}
