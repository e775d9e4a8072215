//! Both ends of connections that move: a server that speaks in time, and clients that listen.
//!
//! Takes ports and addresses; says when a client's read failed with ECONNRESET. It writes no log.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::slots;
use crate::support::{
    LabError, Result,
    lab::{Host, SERVER_V4},
    peer::{CONNECT_BOUND, connect_from},
};

/// How often the server sends a byte on every connection, so that all of them keep moving.
const PACE: Duration = Duration::from_millis(30);
/// How long a client may wait for a byte.
const SILENCE_BOUND: Duration = Duration::from_secs(5);

/// Listens on `ports`, answers each byte with one, and sends one on every connection each 30 ms. It
/// ends with this process.
pub(crate) fn serve(server: &Host, ports: [u16; 2]) -> Result<()> {
    let listen = |port| {
        let listener = TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), port))?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>(listener)
    };
    let listeners = server.run(|| {
        let listeners: io::Result<Vec<TcpListener>> = ports.into_iter().map(listen).collect();
        listeners.map_err(LabError::while_trying("listen"))
    })?;
    thread::spawn(move || {
        let mut connections = Vec::new();
        let mut speak_at = Instant::now();
        // Whoever waits for a byte says that the server is gone.
        while serve_once(&listeners, &mut connections, &mut speak_at).is_ok() {}
    });
    Ok(())
}

fn serve_once(
    listeners: &[TcpListener],
    connections: &mut Vec<TcpStream>,
    speak_at: &mut Instant,
) -> io::Result<()> {
    let left = Timespec::try_from(speak_at.saturating_duration_since(Instant::now()))
        .map_err(io::Error::other)?;
    let readable = {
        let mut fds: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::new(listener, PollFlags::IN))
            .chain(connections.iter().map(|connection| PollFd::new(connection, PollFlags::IN)))
            .collect();
        poll(&mut fds, Some(&left))?;
        fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<bool>>()
    };
    let (of_listeners, of_connections) = readable.split_at(listeners.len());
    let mut has_news = of_connections.iter();
    connections.retain_mut(|connection| {
        if !has_news.next().copied().unwrap_or_default() {
            return true;
        }
        let mut heard = [0; 64];
        matches!(connection.read(&mut heard), Ok(length) if length > 0)
            && connection.write(b".").is_ok()
    });
    for (listener, has_news) in listeners.iter().zip(of_listeners) {
        if *has_news && let Ok((connection, _)) = listener.accept() {
            connection.set_nonblocking(true)?;
            connections.push(connection);
        }
    }
    if Instant::now() >= *speak_at {
        *speak_at += PACE;
        connections.retain_mut(|connection| connection.write(b".").is_ok());
    }
    Ok(())
}

/// A client's connection, after its first byte has come to the server and back.
pub(crate) struct Client {
    local: SocketAddr,
    connection: TcpStream,
}

impl Client {
    /// Connects from `source` to `port` of the server and sends a byte. Call it inside the client
    /// host.
    pub(crate) fn connect(source: Ipv4Addr, source_port: u16, port: u16) -> Result<Self> {
        let local = SocketAddr::new(source.into(), source_port);
        let what = format!("connect from {local} to port {port}");
        let connect = || {
            let server = SocketAddr::new(SERVER_V4.into(), port);
            let connection = connect_from(local, server, CONNECT_BOUND)?;
            connection.set_read_timeout(Some(SILENCE_BOUND))?;
            (&connection).write_all(b".")?;
            (&connection).read_exact(&mut [0])?;
            Ok::<_, io::Error>(connection)
        };
        let connection = connect().map_err(LabError::while_trying(what))?;
        Ok(Self { local, connection })
    }

    /// The peer that the log names.
    pub(crate) const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Reads until the read fails with ECONNRESET, and says when that was; `None` when it is still
    /// open after `bound`.
    pub(crate) fn wait_for_reset(&mut self, bound: Duration) -> Result<Option<Duration>> {
        let began = Instant::now();
        let mut heard = [0; 64];
        loop {
            let read = self.connection.read(&mut heard);
            let at = slots::now();
            match read {
                Ok(length) if length > 0 && began.elapsed() < bound => {}
                Ok(length) if length > 0 => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(Some(at));
                }
                ending => {
                    return Err(LabError::new(format!(
                        "{} was not reset, but its reading ended with {ending:?}",
                        self.local
                    )));
                }
            }
        }
    }

    /// Reads on on a thread of its own, until it is [let go](Reading::let_go).
    pub(crate) fn read_on(mut self) -> Reading {
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let mut heard = [0; 64];
                // The server never leaves it waiting for long.
                while !is_over.load(Ordering::Relaxed) {
                    match self.connection.read(&mut heard) {
                        Ok(length) if length > 0 => {}
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                            return Ok(false);
                        }
                        ending => {
                            let what = format!("reading from {} ended with {ending:?}", self.local);
                            return Err(LabError::new(what));
                        }
                    }
                }
                Ok(true)
            })
        };
        Reading { is_over, thread }
    }
}

/// A connection that is read on a thread of its own.
pub(crate) struct Reading {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<bool>>,
}

impl Reading {
    /// Closes it. `false` when it had been reset before.
    pub(crate) fn let_go(self) -> Result<bool> {
        self.is_over.store(true, Ordering::Relaxed);
        slots::join(self.thread)
    }
}
