//! Real TCP peers: a server that echoes, clients that keep bytes moving, and what became of them.
//!
//! Takes hosts and addresses; makes connections whose source address and port are known, and says
//! how many bytes have come through and what ended them, with the instant. It writes no log and
//! reads none.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, listen, recv,
        send, socket_with, sockopt,
    },
};

use super::{LabError, Result, lab::Host};

/// How long a handshake may take; the SYN of a banned client is dropped, and waits this long.
pub(crate) const CONNECT_BOUND: Duration = Duration::from_millis(1_500);
/// Connections that may wait to be accepted: many hundreds may come at once.
const QUEUE: i32 = 4_096;
/// How long a talker may wait for what happens at once.
const EVENT_BOUND: Duration = Duration::from_secs(5);
/// How often a talker says something.
const PACE: Duration = Duration::from_millis(20);
/// What a talker says.
const WORDS: [u8; 64] = [b'r'; 64];

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The peer, or the kernel for it, sent a reset (ECONNRESET).
    Reset(Instant),
    /// The peer closed.
    Closed(Instant),
    /// Anything else, as the system says it.
    Failed(String),
}

/// What has come through a connection so far, and its ending once it has one.
#[derive(Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    received: u64,
    ending: Option<Ending>,
}

impl Progress {
    /// Payload bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.lock().received
    }

    /// How it ended; `None` while it goes on.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.lock().ending.clone()
    }

    /// Waits until `more` bytes have come from now on: it is alive and moving.
    pub(crate) fn wait_for_bytes(&self, more: u64, bound: Duration) -> Result<()> {
        let wanted = self.received() + more;
        self.wait(&format!("{more} more bytes"), bound, |state| {
            if state.received >= wanted {
                return Some(Ok(()));
            }
            state.ending.as_ref().map(|ending| {
                Err(LabError::new(format!("the connection ended before its bytes: {ending:?}")))
            })
        })?
    }

    /// Waits until it ends.
    pub(crate) fn wait_for_end(&self, bound: Duration) -> Result<Ending> {
        self.wait("the end of a connection", bound, |state| state.ending.clone())
    }

    /// Counts bytes that came.
    pub(crate) fn add(&self, bytes: usize) {
        self.lock().received += u64::try_from(bytes).unwrap_or(u64::MAX);
        self.changed.notify_all();
    }

    /// Writes down the ending; only the first one counts.
    pub(crate) fn end(&self, ending: Ending) {
        self.lock().ending.get_or_insert(ending);
        self.changed.notify_all();
    }

    fn wait<T>(
        &self,
        what: &str,
        bound: Duration,
        look: impl Fn(&State) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + bound;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LabError::new(format!("waited {bound:?} in vain for {what}")));
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Connects from `source`, whose port may be 0, to `server` within `bound`. Call it inside a host.
pub(crate) fn connect_from(
    source: SocketAddr,
    server: SocketAddr,
    bound: Duration,
) -> io::Result<TcpStream> {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &source)?;
    // The send timeout also bounds connect(2).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(bound))?;
    connect(&socket, &server).map_err(|error| match error {
        Errno::INPROGRESS => io::Error::from(io::ErrorKind::TimedOut),
        error => error.into(),
    })?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None)?;
    Ok(TcpStream::from(socket))
}

/// A TCP server with a thread for each connection.
pub(crate) struct Server {
    listener: TcpListener,
    connections: Arc<Mutex<Vec<Weak<TcpStream>>>>,
    accepting: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Listens on `address` (`[::]` is both families) and hands each connection to `serve`. The
    /// connection is closed when that returns.
    pub(crate) fn start(
        host: &Host,
        address: SocketAddr,
        serve: fn(&TcpStream) -> io::Result<()>,
    ) -> Result<Self> {
        let what = format!("listen on {address}");
        let listener =
            host.run(|| TcpListener::bind(address).map_err(LabError::while_trying(&what)))?;
        // The standard library asks for 128, and a SYN beyond that is dropped.
        listen(&listener, QUEUE).map_err(LabError::while_trying(&what))?;
        let connections = Arc::new(Mutex::new(Vec::new()));
        let accepting = {
            let listener = listener.try_clone().map_err(LabError::while_trying(&what))?;
            let connections = Arc::clone(&connections);
            host.start_thread(move || {
                // Ends when the listener is shut down.
                while let Ok((connection, _)) = listener.accept() {
                    let connection = Arc::new(connection);
                    lock(&connections).push(Arc::downgrade(&connection));
                    // A connection that fails is the client's to report, not the server's.
                    thread::spawn(move || serve(&connection));
                }
                Ok(())
            })
        };
        Ok(Self { listener, connections, accepting: Some(accepting) })
    }

    /// Listens on `[::]:port`, both families, and sends back whatever it hears.
    pub(crate) fn echo(host: &Host, port: u16) -> Result<Self> {
        Self::echo_at(host, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    }

    /// Listens on `address` and sends back whatever it hears.
    pub(crate) fn echo_at(host: &Host, address: SocketAddr) -> Result<Self> {
        Self::start(host, address, |connection| {
            io::copy(&mut &*connection, &mut &*connection).map(drop)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for connection in lock(&self.connections).iter().filter_map(Weak::upgrade) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// A client connection that keeps talking to an [echoing](Server::echo) server.
pub(crate) struct Talker {
    local: SocketAddr,
    connection: TcpStream,
    control: Arc<Control>,
    progress: Arc<Progress>,
    talking: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Control {
    over: AtomicBool,
    quiet: AtomicBool,
}

impl Talker {
    /// Connects from `source` on `host` to `server` and begins to talk.
    pub(crate) fn connect(host: &Host, source: IpAddr, server: SocketAddr) -> Result<Self> {
        Self::connect_as(host, SocketAddr::new(source, 0), server)
    }

    /// The same from a port that is known before.
    pub(crate) fn connect_as(host: &Host, local: SocketAddr, server: SocketAddr) -> Result<Self> {
        let what = format!("connect from {local} to {server}");
        let connection = host.run(|| {
            connect_from(local, server, CONNECT_BOUND)
                .map_err(LabError::while_trying(what.as_str()))
        })?;
        let local = connection.local_addr().map_err(LabError::while_trying(what.as_str()))?;
        let control = Arc::new(Control::default());
        let progress = Arc::new(Progress::default());
        let talking = {
            let connection = connection.try_clone().map_err(LabError::while_trying(what))?;
            let (control, progress) = (Arc::clone(&control), Arc::clone(&progress));
            host.start_thread(move || {
                let ending = talk(&connection, &control, &progress);
                progress.end(ending);
                Ok(())
            })
        };
        Ok(Self { local, connection, control, progress, talking: Some(talking) })
    }

    /// Its own address and port: the peer that the log names.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// What has come back so far, and its ending.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Waits until it is reset; any other ending is an error.
    pub(crate) fn wait_for_reset(&self) -> Result<()> {
        match self.progress.wait_for_end(EVENT_BOUND)? {
            Ending::Reset(_) => Ok(()),
            ending => {
                Err(LabError::new(format!("{} was not reset but ended: {ending:?}", self.local)))
            }
        }
    }

    /// Sees that it goes on: more comes back than can have been on its way.
    pub(crate) fn wait_for_answers(&self) -> Result<()> {
        let more = u64::try_from(3 * WORDS.len()).unwrap_or(u64::MAX);
        self.progress
            .wait_for_bytes(more, EVENT_BOUND)
            .map_err(|error| LabError::new(format!("{}: {error}", self.local)))
    }

    /// Keeps the connection open and says nothing more.
    pub(crate) fn be_quiet(&self) {
        self.control.quiet.store(true, Ordering::Relaxed);
    }

    /// Talks again.
    pub(crate) fn talk_on(&self) {
        self.control.quiet.store(false, Ordering::Relaxed);
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.control.over.store(true, Ordering::Relaxed);
        let _ = self.connection.shutdown(Shutdown::Both);
        if let Some(talking) = self.talking.take() {
            let _ = talking.join();
        }
    }
}

/// One thread both speaks and listens, because the kernel reports a reset once, to whichever call
/// comes first.
fn talk(connection: &TcpStream, control: &Control, progress: &Progress) -> Ending {
    let pace = Timespec { tv_sec: 0, tv_nsec: i64::from(PACE.subsec_nanos()) };
    let mut heard = [0; 4096];
    let mut speak_at = Instant::now();
    while !control.over.load(Ordering::Relaxed) {
        if Instant::now() >= speak_at {
            speak_at = Instant::now() + PACE;
            if !control.quiet.load(Ordering::Relaxed)
                && let Err(error) = send(connection, &WORDS, SendFlags::NOSIGNAL)
            {
                return ending(error);
            }
        }
        match poll(&mut [PollFd::new(connection, PollFlags::IN)], Some(&pace)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return ending(error),
        }
        match recv(connection, heard.as_mut_slice(), RecvFlags::empty()) {
            Ok((0, _)) => return Ending::Closed(Instant::now()),
            Ok((length, _)) => progress.add(length),
            Err(Errno::INTR) => {}
            Err(error) => return ending(error),
        }
    }
    Ending::Closed(Instant::now())
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
