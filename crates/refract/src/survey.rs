//! Looks through the kernel's whole socket table, off the hot thread.
//!
//! Takes requests; gives the connections of banned sources, the local ends of clients that were
//! found nowhere, every connection on a protected port (a census), and which clients have an MPTCP
//! connection; and deletes the UDP entries of banned sources and flows from conntrack. A dump takes
//! milliseconds on a busy host, so it runs on a thread of its own, of which the enforcer and the
//! census have one each; what it finds is handed back through a channel and an eventfd. It decides
//! nothing and destroys no socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::Instant,
};

use refract_kernel::{
    conntrack::Conntrack,
    netlink::Dumped,
    networks::Networks,
    sock_diag::{Connection, Observed, SockDiag},
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
    /// Clients of whom it is to be said whether they have an MPTCP connection.
    pub mptcp: Vec<SocketAddr>,
    /// Every connection on a protected port is wanted, with what has moved on it.
    pub census: bool,
    /// Clients of whom the local ends are wanted, with what has moved.
    pub peers: Vec<SocketAddr>,
}

/// What one survey found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Connections of the wanted sources on protected ports, as the kernel returned them.
    pub connections: Vec<Connection>,
    /// The clients whose conntrack entries were deleted, one for each entry.
    pub flows: Vec<SocketAddr>,
    /// Those of the asked clients that have an MPTCP connection.
    pub mptcp: Vec<SocketAddr>,
    /// Every connection, when that was asked for and the walk was whole, and when it began.
    pub census: Option<(Instant, Vec<Observed>)>,
    /// The connections of the clients that were asked for, if any were.
    pub peers: Option<Vec<Observed>>,
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
        let mut sockets = SockDiag::open()?;
        let mut conntrack = if udp { Some(Conntrack::open()?) } else { None };
        Self::start_with(move |request| survey(&mut sockets, conntrack.as_mut(), &ports, request))
            .map_err(|source| Error::Io {
                operation: "start",
                object: "the thread that surveys connections".to_owned(),
                source,
            })
    }

    fn start_with(
        mut survey: impl FnMut(&Request) -> Findings + Send + 'static,
    ) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let ready = Arc::new(eventfd(0, flags)?);
        let (requests, wanted) = mpsc::channel::<Request>();
        let (found, findings) = mpsc::channel();
        let raise = Arc::clone(&ready);
        let thread =
            std::thread::Builder::new().name("refract-survey".to_owned()).spawn(move || {
                // The hot thread goes first where both want the same processor. Without the right
                // to, they are equals.
                let _ = rustix::process::setpriority_process(None, NICENESS);
                while let Ok(request) = wanted.recv() {
                    // Whoever asked waits for an answer, so there is one whatever happens. What
                    // the sockets were at, they begin anew.
                    let findings = catch_unwind(AssertUnwindSafe(|| survey(&request)))
                        .unwrap_or_else(|_| failed(&request));
                    if found.send(findings).is_err() {
                        return;
                    }
                    // Only a counter at its maximum refuses, and that already wakes the reader.
                    let _ = rustix::io::write(&*raise, &1u64.to_ne_bytes());
                }
            })?;
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
    if !request.mptcp.is_empty() {
        let remotes: Networks = request.mptcp.iter().map(single).collect();
        let filter = ConnectionFilter::on(ports).from(&remotes);
        let listed = sockets.mptcp_connections(&filter, |_, remote| {
            if request.mptcp.contains(&remote) {
                findings.mptcp.push(remote);
            }
        });
        if let Err(error) = listed {
            findings.troubles.push(error.to_string());
        }
    }
    if !request.peers.is_empty() {
        let remotes: Networks = request.peers.iter().map(single).collect();
        let filter = ConnectionFilter::on(ports).from(&remotes);
        let mut found = Vec::new();
        let listed = sockets.observe_all(&filter, |observed| {
            if request.peers.contains(&observed.connection.remote()) {
                found.push(observed);
            }
        });
        findings.peers = Some(found);
        if let Err(error) = listed {
            findings.troubles.push(error.to_string());
        }
    }
    if request.census {
        let begun = Instant::now();
        let mut all = Vec::new();
        match sockets.observe_all(&ConnectionFilter::on(ports), |observed| all.push(observed)) {
            Ok(Dumped::Whole) => findings.census = Some((begun, all)),
            // Whoever is missing may only have been missed.
            Ok(Dumped::Interrupted) => {}
            Err(error) => findings.troubles.push(error.to_string()),
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

/// What becomes of a survey that panicked; the panic itself has been printed.
fn failed(request: &Request) -> Findings {
    Findings {
        // A search that found nothing is over all the same.
        peers: (!request.peers.is_empty()).then(Vec::new),
        troubles: vec![
            "a survey of the connections failed within; this is a mistake in refract".to_owned(),
        ],
        ..Findings::default()
    }
}

fn single(client: &SocketAddr) -> (IpAddr, u8) {
    (client.ip(), if client.is_ipv4() { 32 } else { 128 })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn next(surveyor: &Surveyor) -> Findings {
        let mut ready = [PollFd::new(surveyor, PollFlags::IN)];
        let patience = Timespec::try_from(Duration::from_secs(10)).unwrap();
        assert_eq!(poll(&mut ready, Some(&patience)), Ok(1), "no findings");
        surveyor.findings().unwrap()
    }

    #[test]
    fn whoever_asked_has_an_answer_to_a_survey_that_panics_and_the_next_one_is_made() {
        let surveyor = Surveyor::start_with(|request| {
            assert!(request.tcp.is_empty() && request.peers.is_empty(), "as this test wants it");
            Findings::default()
        })
        .unwrap();
        let client: SocketAddr = "198.51.100.7:1".parse().unwrap();
        for (request, is_search) in [
            (Request { tcp: vec![single(&client)], ..Request::default() }, false),
            (Request { peers: vec![client], ..Request::default() }, true),
        ] {
            assert!(surveyor.request(request));
            let findings = next(&surveyor);
            assert_eq!(findings.troubles.len(), 1, "{findings:?}");
            assert_eq!(findings.peers, is_search.then(Vec::new));
            assert!(findings.census.is_none() && findings.connections.is_empty());
        }
        assert!(surveyor.request(Request { census: true, ..Request::default() }));
        assert_eq!(next(&surveyor).troubles, Vec::<String>::new());
    }
}
