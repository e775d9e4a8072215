//! TCP connections in the kernel: find one, see what moves on it, list those of some sources,
//! reset one.
//!
//! Takes addresses and ports; makes [`Connection`]s, each with the cookie that the kernel gave for
//! it, and resets a connection by that cookie alone. A tuple is never enough: once the connection
//! is gone, the kernel's lookup falls through to the listener, and a destroy without a cookie kills
//! that instead (measured). So nothing here can name a listening socket, nor a UDP one. It knows no
//! users and decides nothing.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
};

use rustix::{
    io::Errno as OsErrno,
    net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with},
};

pub use crate::sock_diag_wire::{Connection, Observed, TcpState};
use crate::{
    error::{Errno, Error},
    netlink::{Dumped, Family, Socket},
    sock_diag_wire::{
        Listing, read_listener, write_destroy, write_dump, write_lookup, write_observe,
        write_observe_again,
    },
    sock_filter::ConnectionFilter,
    wire::{Message, Writer},
};

/// Whether connections can be reset in this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum DestroySupport {
    /// A connection was reset.
    Works,
    /// `CAP_NET_ADMIN` is missing in the user namespace that owns this network namespace.
    NotPermitted,
    /// The kernel was built without `CONFIG_INET_DIAG_DESTROY`.
    NotBuilt,
    /// The kernel does not show its TCP sockets at all (`CONFIG_INET_DIAG`, module `tcp_diag`).
    NoDiagnostics,
}

/// A `sock_diag` socket. One conversation at a time; give a dump one of its own.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
    request: Writer,
}

impl SockDiag {
    /// Opens it in the network namespace of the calling thread. To look takes no capability.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(Family::SockDiag)?, request: Writer::new() })
    }

    /// The connection with exactly these ends, in whatever state but listening. IPv4 may be given
    /// mapped or plain, and is found on IPv4 and dual-stack listeners alike.
    pub fn find(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Option<Connection>, Error> {
        let (local, remote) = (canonical(local), canonical(remote));
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(None);
        }
        // Without the counters, which take the kernel half a microsecond (measured).
        write_lookup(&mut self.request, self.socket.next_sequence(), local, remote);
        let answer = self.socket.answered(&self.request, Connection::read)?;
        let found = looked_up(answer, || between(local, remote))?;
        // A listener, or anything else that the lookup fell through to, is not what was meant.
        Ok(found.filter(|it| it.is_between(local, remote)))
    }

    /// As [`Self::find`], with what has moved on the connection.
    ///
    /// `interface` is the index of the network device that the socket is bound to, as the sockets of
    /// a listener are that is itself bound to one (`SO_BINDTODEVICE`): without it the kernel does not
    /// find them. An unbound socket is found with 0 and with any other.
    pub fn observe(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        interface: u32,
    ) -> Result<Option<Observed>, Error> {
        let (local, remote) = (canonical(local), canonical(remote));
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(None);
        }
        self.request.clear();
        let sequence = self.socket.next_sequence();
        write_observe(&mut self.request, sequence, local, remote, interface);
        let answer = self.socket.answered(&self.request, Observed::read)?;
        let found = looked_up(answer, || between(local, remote))?;
        // A listener, or anything else that the lookup fell through to, is not what was meant.
        Ok(found.filter(|Observed { connection: it, .. }| it.is_between(local, remote)))
    }

    /// What has moved on `connection` by now, and its state; `None` once it is gone, whoever has its
    /// ends now. The kernel compares the cookie, and answers `ENOENT` to another's (measured).
    pub fn observe_again(&mut self, connection: &Connection) -> Result<Option<Observed>, Error> {
        write_observe_again(&mut self.request, self.socket.next_sequence(), connection);
        let answer = self.socket.answered(&self.request, Observed::read)?;
        let found = looked_up(answer, || connection.to_string())?;
        Ok(found.filter(|it| it.connection.cookie() == connection.cookie()))
    }

    /// Resets `connection`: the client sees `ECONNRESET`, the server `ECONNABORTED`. `Ok(false)` if
    /// it was gone already.
    ///
    /// Takes `CAP_NET_ADMIN` in the calling thread. An MPTCP connection survives the reset of one
    /// subflow (measured).
    pub fn destroy(&mut self, connection: &Connection) -> Result<bool, Error> {
        write_destroy(&mut self.request, self.socket.next_sequence(), connection);
        match self.socket.acknowledged(&self.request)? {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            // Older kernels refuse to destroy what is left of a closed connection.
            Err(Errno::OPNOTSUPP) if self.is_over(connection)? => Ok(false),
            Err(source) => {
                Err(Error::Refused { operation: "reset", object: connection.to_string(), source })
            }
        }
    }

    /// Tries whether [`Self::destroy`] works, on a loopback connection of our own.
    ///
    /// A tuple that matches nothing cannot tell: the kernel looks for the socket before it looks
    /// at the caller's rights, so it answers `ENOENT` to everybody (measured).
    pub fn supports_destroy(&mut self) -> Result<DestroySupport, Error> {
        let probe = Probe::open().map_err(|source| Error::Io {
            operation: "open",
            object: "a loopback connection to try a reset on".to_owned(),
            source,
        })?;
        let Some(found) = self.find(probe.local, probe.remote)? else {
            return Ok(DestroySupport::NoDiagnostics);
        };
        match self.destroy(&found) {
            Ok(_) => Ok(DestroySupport::Works),
            Err(Error::Refused { source: Errno::PERM, .. }) => Ok(DestroySupport::NotPermitted),
            Err(Error::Refused { source: Errno::OPNOTSUPP, .. }) => Ok(DestroySupport::NotBuilt),
            Err(error) => Err(error),
        }
    }

    /// Hands every connection that `filter` means to `each`: established, in the handshake or
    /// closing, of both socket families; no listener and nothing in `TIME_WAIT`.
    ///
    /// It walks the kernel's whole table, milliseconds on a busy host, so it belongs on a thread of
    /// its own. A walk that the kernel calls interrupted, or whose answer overflowed, is repeated
    /// once: a connection may then come twice, and [`Dumped::Interrupted`] says that the second
    /// walk was no better. A connection opened meanwhile may be missing in any case.
    pub fn connections(
        &mut self,
        filter: &ConnectionFilter<'_>,
        mut each: impl FnMut(Connection),
    ) -> Result<Dumped, Error> {
        self.list(Listing::Connections, filter, |message| {
            if let Some(connection) = Connection::read(message)
                && filter.matches(connection.local(), connection.remote())
            {
                each(connection);
            }
        })
    }

    /// As [`Self::connections`], with what has moved on each.
    pub fn observe_all(
        &mut self,
        filter: &ConnectionFilter<'_>,
        mut each: impl FnMut(Observed),
    ) -> Result<Dumped, Error> {
        self.list(Listing::Activity, filter, |message| {
            if let Some(observed) = Observed::read(message)
                && filter.matches(observed.connection.local(), observed.connection.remote())
            {
                each(observed);
            }
        })
    }

    /// Whether a TCP socket listens on one of `ports`, at whatever address. It walks the table of
    /// listeners only: 17 µs, at 200 connections as at 20,000 (measured, `benches/sock_diag.rs`).
    pub fn has_listener(&mut self, ports: &[RangeInclusive<u16>]) -> Result<bool, Error> {
        let filter = ConnectionFilter::on(ports);
        let mut found = false;
        // Listeners that stayed were met by an interrupted walk too.
        let _ = self.list(Listing::Listeners, &filter, |message| {
            found |= read_listener(message).is_some_and(|port| filter.has_port(port));
        })?;
        Ok(found)
    }

    /// Hands the ends, this host's and then the client's, of every live MPTCP connection that
    /// `filter` means to `each`: those of its first subflow, which may be gone. [`Self::destroy`]
    /// of its TCP connections does not end it. None where the kernel has no MPTCP, or cannot show
    /// it (before Linux 5.9, or without `CONFIG_INET_MPTCP_DIAG`).
    ///
    /// Interrupted walks are as in [`Self::connections`].
    pub fn mptcp_connections(
        &mut self,
        filter: &ConnectionFilter<'_>,
        mut each: impl FnMut(SocketAddr, SocketAddr),
    ) -> Result<Dumped, Error> {
        let listed = self.list(Listing::Mptcp, filter, |message| {
            if let Some(connection) = Connection::read(message)
                && filter.matches(connection.local(), connection.remote())
            {
                each(connection.local(), connection.remote());
            }
        });
        match listed {
            Err(Error::Refused { source: Errno::NOENT, .. }) => Ok(Dumped::Whole),
            listed => listed,
        }
    }

    /// Dumps both families, each once more if the first walk was interrupted.
    fn list(
        &mut self,
        listing: Listing,
        filter: &ConnectionFilter<'_>,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Dumped, Error> {
        let mut all = Dumped::Whole;
        for family in filter.families() {
            let mut dumped = self.dump(family, listing, filter, &mut each)?;
            if dumped == Dumped::Interrupted {
                dumped = self.dump(family, listing, filter, &mut each)?;
            }
            if dumped == Dumped::Interrupted {
                all = dumped;
            }
        }
        Ok(all)
    }

    fn dump(
        &mut self,
        family: u8,
        listing: Listing,
        filter: &ConnectionFilter<'_>,
        each: &mut impl FnMut(Message<'_>),
    ) -> Result<Dumped, Error> {
        write_dump(&mut self.request, self.socket.next_sequence(), family, listing, filter);
        match self.socket.dumped(&self.request, each) {
            Ok(Ok(dumped)) => Ok(dumped),
            Ok(Err(source)) => {
                Err(Error::Refused { operation: "list", object: listing.to_string(), source })
            }
            Err(error) if error.errno() == Some(Errno::NOBUFS) => Ok(Dumped::Interrupted),
            Err(error) => Err(error),
        }
    }

    /// Nothing of the connection is left but the memory of it.
    fn is_over(&mut self, connection: &Connection) -> Result<bool, Error> {
        let now = self.observe_again(connection)?;
        Ok(now.is_none_or(|now| {
            matches!(now.connection.state(), TcpState::TimeWait | TcpState::FinWait2)
        }))
    }
}

/// A connection that was not found, in words.
pub(crate) fn between(local: SocketAddr, remote: SocketAddr) -> String {
    format!("the connection of {remote} to {local}")
}

/// What one lookup found; nothing where the kernel knows of nothing.
fn looked_up<T>(
    answer: Result<Option<T>, Errno>,
    object: impl FnOnce() -> String,
) -> Result<Option<T>, Error> {
    match answer {
        Err(Errno::NOENT) => Ok(None),
        answer => answer.map_err(|source| Error::Refused {
            operation: "look up",
            object: object(),
            source,
        }),
    }
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

/// A loopback connection to try things on. It need not be accepted, nor even answered.
struct Probe {
    local: SocketAddr,
    remote: SocketAddr,
    _listener: TcpListener,
    _client: TcpStream,
}

impl Probe {
    fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let remote = listener.local_addr()?;
        // Not blocking, so that a firewall that drops loopback cannot hold the start up.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client =
            socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        match connect(&client, &remote) {
            Ok(()) | Err(OsErrno::INPROGRESS) => {}
            Err(source) => return Err(source.into()),
        }
        let client = TcpStream::from(client);
        Ok(Self { local: client.local_addr()?, remote, _listener: listener, _client: client })
    }
}
