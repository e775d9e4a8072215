//! Looks for everything else that banned sources have open, off the hot thread.
//!
//! Takes a list of sources; makes the list of their connections, by one combined dump of the
//! kernel's socket table, and deletes their UDP entries from conntrack. A dump walks the whole
//! table and can take milliseconds at a hundred thousand sockets, so it runs on a thread of its
//! own; what it finds is handed back through a channel and an eventfd, and the hot thread destroys
//! it in slices. It decides nothing and destroys no socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use refract_kernel::{
    conntrack::Conntrack,
    networks::Networks,
    sock_diag::{Connection, SockDiag},
    sock_filter::ConnectionFilter,
};
use rustix::event::{EventfdFlags, eventfd};

use crate::error::Error;

/// How much the surveying thread gives way.
const NICENESS: i32 = 10;

/// What one survey looks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Sources as address and prefix length whose TCP connections are wanted.
    pub tcp: Vec<(IpAddr, u8)>,
    /// Sources whose UDP entries are deleted from conntrack.
    pub udp: Vec<(IpAddr, u8)>,
    /// Single UDP flows, by the client's address and port, that are deleted from conntrack.
    pub flows: Vec<SocketAddr>,
}

/// What one survey found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Connections of the wanted sources on protected ports, as the kernel returned them.
    pub connections: Vec<Connection>,
    /// The clients whose conntrack entries were deleted, one for each entry.
    pub flows: Vec<SocketAddr>,
    /// What went wrong, as sentences; the rest of the findings still counts.
    pub troubles: Vec<String>,
}

/// The surveying thread, from the hot thread's side.
#[derive(Debug)]
pub struct Surveyor {
    requests: Option<Sender<Request>>,
    findings: Receiver<Findings>,
    ready: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Surveyor {
    /// Opens its sockets and starts the thread, in the network namespace of the calling thread.
    pub fn start(ports: Vec<RangeInclusive<u16>>, udp: bool) -> Result<Self, Error> {
        let trouble = |source: io::Error| Error::Io {
            operation: "start",
            object: "the thread that surveys connections".to_owned(),
            source,
        };
        let mut sockets = SockDiag::open()?;
        let mut conntrack = if udp { Some(Conntrack::open()?) } else { None };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let ready = Arc::new(eventfd(0, flags).map_err(|errno| trouble(errno.into()))?);
        let (requests, wanted) = mpsc::channel::<Request>();
        let (found, findings) = mpsc::channel();
        let raise = Arc::clone(&ready);
        let thread = std::thread::Builder::new()
            .name("refract-survey".to_owned())
            .spawn(move || {
                // The hot thread goes first where both want the same processor. Without the right
                // to, they are equals.
                let _ = rustix::process::setpriority_process(None, NICENESS);
                while let Ok(request) = wanted.recv() {
                    let findings = survey(&mut sockets, conntrack.as_mut(), &ports, &request);
                    if found.send(findings).is_err() {
                        return;
                    }
                    // Only a counter at its maximum refuses, and that already wakes the reader.
                    let _ = rustix::io::write(&*raise, &1u64.to_ne_bytes());
                }
            })
            .map_err(trouble)?;
        Ok(Self { requests: Some(requests), findings, ready, thread: Some(thread) })
    }

    /// Asks for one survey; its findings arrive later, in the order of the requests. `false` when
    /// the thread is gone.
    #[must_use]
    pub fn request(&self, request: Request) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.send(request).is_ok())
    }

    /// The findings of the next finished survey, if there is one.
    #[must_use]
    pub fn findings(&self) -> Option<Findings> {
        let mut counter = [0; 8];
        // An empty counter (EAGAIN) says the same as the empty channel.
        let _ = rustix::io::read(&*self.ready, &mut counter);
        self.findings.try_recv().ok()
    }
}

impl AsFd for Surveyor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Drop for Surveyor {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; there is nothing left to clean up.
            let _ = thread.join();
        }
    }
}

fn survey(
    sockets: &mut SockDiag,
    conntrack: Option<&mut Conntrack>,
    ports: &[RangeInclusive<u16>],
    request: &Request,
) -> Findings {
    let mut findings = Findings::default();
    if !request.tcp.is_empty() {
        let remotes: Networks = request.tcp.iter().copied().collect();
        let filter = ConnectionFilter::on(ports).from(&remotes);
        // A walk that was interrupted twice is as good as it gets: a second pass follows anyway.
        if let Err(error) = sockets.connections(&filter, |found| findings.connections.push(found)) {
            findings.troubles.push(error.to_string());
        }
    }
    if let Some(conntrack) = conntrack
        && !(request.udp.is_empty() && request.flows.is_empty())
    {
        let sources: Networks = request.udp.iter().copied().collect();
        let deleted = conntrack.delete_udp(&sources, &request.flows, ports, |client| {
            findings.flows.push(client);
        });
        if let Err(error) = deleted {
            findings.troubles.push(error.to_string());
        }
    }
    findings
}
