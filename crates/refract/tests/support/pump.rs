//! Many connections kept moving by one thread.
//!
//! Takes connections that are established; says something on each at a steady pace, hears what comes
//! back, and notes what ended each, with the instant. A connection can be quiet, and one that is let
//! go ends as its owner chose: with a FIN, or with a reset. It opens none and knows no host.

use std::{
    collections::HashMap,
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};

use super::{
    LabError, Result, eventually,
    peer::{Ending, Progress},
};

/// What is said each time.
const WORDS: [u8; 64] = [b'r'; 64];
/// The connections take turns within the pace, so that they do not all speak at once.
const TURNS: u64 = 5;
/// How long what is on its way may take to come back.
const ECHO_BOUND: Duration = Duration::from_secs(5);

/// The thread and its connections; both end when it is dropped.
pub(crate) struct Pump {
    shared: Arc<Shared>,
    pumping: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: OwnedFd,
    wires: Mutex<HashMap<u64, Arc<Wire>>>,
    added: AtomicU64,
    over: AtomicBool,
    pace: Duration,
}

struct Wire {
    stream: TcpStream,
    quiet: AtomicBool,
    said: AtomicU64,
    progress: Progress,
}

/// One connection that is kept moving. Dropped, it ends with a FIN.
pub(crate) struct Line {
    number: u64,
    local: SocketAddr,
    wire: Arc<Wire>,
    shared: Arc<Shared>,
}

impl Pump {
    /// Starts the thread; each connection says something once in `pace`.
    pub(crate) fn start(pace: Duration) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(LabError::while_trying("open an epoll"))?;
        let shared = Arc::new(Shared {
            epoll,
            wires: Mutex::default(),
            added: AtomicU64::new(0),
            over: AtomicBool::new(false),
            pace,
        });
        let pumping = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.pump())
        };
        Ok(Self { shared, pumping: Some(pumping) })
    }

    /// Takes a connection on which `said` bytes were said and `heard` came back. Unless it is
    /// `quiet`, it talks from now on.
    pub(crate) fn take(
        &self,
        stream: TcpStream,
        (said, heard): (usize, usize),
        quiet: bool,
    ) -> Result<Line> {
        let what = "keep a connection moving";
        let local = stream.local_addr().map_err(LabError::while_trying(what))?;
        stream.set_nonblocking(true).map_err(LabError::while_trying(what))?;
        let number = self.shared.added.fetch_add(1, Ordering::Relaxed);
        let said = AtomicU64::new(u64::try_from(said).unwrap_or(u64::MAX));
        let progress = Progress::default();
        progress.add(heard);
        let wire = Arc::new(Wire { stream, quiet: AtomicBool::new(quiet), said, progress });
        lock(&self.shared.wires).insert(number, Arc::clone(&wire));
        let token = epoll::EventData::new_u64(number);
        epoll::add(&self.shared.epoll, &wire.stream, token, epoll::EventFlags::IN)
            .map_err(LabError::while_trying(what))?;
        Ok(Line { number, local, wire, shared: Arc::clone(&self.shared) })
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(pumping) = self.pumping.take() {
            let _ = pumping.join();
        }
    }
}

impl Shared {
    fn pump(&self) {
        let step = self.pace / u32::try_from(TURNS).unwrap_or(1);
        let mut turn = 0;
        let mut next = Instant::now();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        while !self.over.load(Ordering::Relaxed) {
            events.clear();
            let left = next.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            // Whatever ends the wait, what is there to be done is done.
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&left));
            for event in &events {
                let wire = lock(&self.wires).get(&event.data.u64()).cloned();
                if let Some(wire) = wire
                    && let Some(ending) = wire.hear()
                {
                    self.end(event.data.u64(), &wire, ending);
                }
            }
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + step;
            turn = (turn + 1) % TURNS;
            let due: Vec<(u64, Arc<Wire>)> = lock(&self.wires)
                .iter()
                .filter(|(number, _)| **number % TURNS == turn)
                .map(|(number, wire)| (*number, Arc::clone(wire)))
                .collect();
            for (number, wire) in due {
                if let Some(ending) = wire.say() {
                    self.end(number, &wire, ending);
                }
            }
        }
    }

    fn end(&self, number: u64, wire: &Wire, ending: Ending) {
        wire.progress.end(ending);
        lock(&self.wires).remove(&number);
        // It may have been let go this moment.
        let _ = epoll::delete(&self.epoll, &wire.stream);
    }
}

impl Wire {
    /// Hears all there is; its ending, if that was heard.
    fn hear(&self) -> Option<Ending> {
        let mut heard = [0; 4096];
        loop {
            match recv(&self.stream, heard.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Some(Ending::Closed(Instant::now())),
                Ok((length, _)) => self.progress.add(length),
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(error) => return Some(ending(error)),
            }
        }
    }

    fn say(&self) -> Option<Ending> {
        if self.quiet.load(Ordering::Relaxed) {
            return None;
        }
        match send(&self.stream, &WORDS, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(length) => {
                let length = u64::try_from(length).unwrap_or(u64::MAX);
                self.said.fetch_add(length, Ordering::Relaxed);
                None
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(error) => Some(ending(error)),
        }
    }
}

impl Line {
    /// Its own address and port: the peer that the log names.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// What has come back so far, and its ending.
    pub(crate) fn progress(&self) -> &Progress {
        &self.wire.progress
    }

    /// Says nothing more, and hears on.
    pub(crate) fn be_quiet(&self) {
        self.wire.quiet.store(true, Ordering::Relaxed);
    }

    /// Talks again.
    pub(crate) fn talk_on(&self) {
        self.wire.quiet.store(false, Ordering::Relaxed);
    }

    /// Whether it was reset.
    pub(crate) fn was_reset(&self) -> bool {
        matches!(self.progress().ending(), Some(Ending::Reset(_)))
    }

    /// Waits until it is reset, and says when that was; any other ending is an error.
    pub(crate) fn wait_for_reset(&self, bound: Duration) -> Result<Instant> {
        match self.progress().wait_for_end(bound) {
            Ok(Ending::Reset(at)) => Ok(at),
            Ok(ending) => {
                Err(LabError::new(format!("{} was not reset but ended: {ending:?}", self.local)))
            }
            Err(error) => Err(LabError::new(format!("{}: {error}", self.local))),
        }
    }

    /// Sees that it goes on and that nothing was lost: it falls quiet, and as much comes back as was
    /// said. For connections to an echo only.
    pub(crate) fn is_whole(&self) -> Result<()> {
        let what = format!("everything that {} said to come back", self.local);
        // Something has to come now, or it would not show that it is alive.
        let heard = self.progress().received();
        eventually(&what, ECHO_BOUND, || {
            Ok((self.progress().received() > heard || self.has_ended()).then_some(()))
        })?;
        self.be_quiet();
        eventually(&what, ECHO_BOUND, || {
            let is_all = self.progress().received() == self.wire.said.load(Ordering::Relaxed);
            Ok((is_all || self.has_ended()).then_some(()))
        })?;
        match self.progress().ending() {
            None => Ok(()),
            Some(ending) => Err(LabError::new(format!("{} ended: {ending:?}", self.local))),
        }
    }

    /// Ends it with a reset packet, as an operating system does with what its lost network leaves
    /// behind.
    pub(crate) fn abort(self) -> Result<()> {
        let at_once = Some(Duration::ZERO);
        sockopt::set_socket_linger(&self.wire.stream, at_once)
            .map_err(LabError::while_trying(format!("abort {}", self.local)))
    }

    fn has_ended(&self) -> bool {
        self.progress().ending().is_some()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        lock(&self.shared.wires).remove(&self.number);
        if !self.has_ended() {
            let _ = epoll::delete(&self.shared.epoll, &self.wire.stream);
            // Whoever asked for a reset gets it when the last descriptor is closed.
            if sockopt::socket_linger(&self.wire.stream).is_ok_and(|linger| linger.is_none()) {
                let _ = self.wire.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn ending(error: Errno) -> Ending {
    match error {
        Errno::CONNRESET => Ending::Reset(Instant::now()),
        error => Ending::Failed(error.to_string()),
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
