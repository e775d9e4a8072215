//! TCP connections in the kernel: find one, list those of some sources, reset one.
//!
//! Takes addresses and ports; makes [`Connection`]s, each with the cookie that the kernel gave for
//! it, and resets a connection by that cookie alone. A tuple is never enough: once the connection
//! is gone, the kernel's lookup falls through to the listener, and a destroy without a cookie kills
//! that instead (measured). So nothing here can name a listening socket, nor a UDP one. It knows no
//! users and decides nothing.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
};

use rustix::{
    io::Errno as OsErrno,
    net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with},
};

use crate::{
    error::{Errno, Error},
    netlink::{Dumped, Family, Socket},
    networks::{AF_INET, AF_INET6},
    sock_filter::ConnectionFilter,
    wire::{Message, NLM_F_ACK, NLM_F_DUMP, Writer},
};

/// `SOCK_DIAG_BY_FAMILY`, `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`, `linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// `IPPROTO_TCP`.
const IPPROTO_TCP: u8 = 6;
/// `INET_DIAG_REQ_BYTECODE`, `linux/inet_diag.h`.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// `sizeof(struct inet_diag_sockid)`: ports, two addresses of 16 bytes, interface, cookie.
const SOCKET_ID_LEN: usize = 48;
/// No interface in a lookup: any socket that is not bound to one.
const ANY_INTERFACE: u32 = 0;
/// `INET_DIAG_NOCOOKIE` twice: the cookie that fits every socket.
const NO_COOKIE: u64 = u64::MAX;

/// A TCP state with its kernel number, `include/net/tcp_states.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// The handshake is done and neither side has closed.
    Established = 1,
    /// This host asked for a connection and has no answer yet.
    SynSent = 2,
    /// A client asked; its address is not proven yet.
    SynReceived = 3,
    /// This side closed and waits for the acknowledgement.
    FinWait1 = 4,
    /// This side closed and waits for the other to.
    FinWait2 = 5,
    /// Both closed; the tuple is only kept from being used again.
    TimeWait = 6,
    /// Nothing.
    Close = 7,
    /// The other side closed, this one has not.
    CloseWait = 8,
    /// The other side closed first, and this side's close is not acknowledged yet.
    LastAck = 9,
    /// Waits for connections.
    Listen = 10,
    /// Both closed at once.
    Closing = 11,
}

impl TcpState {
    fn from_kernel(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            // TCP_NEW_SYN_RECV (12) is how the kernel counts a request within; it is shown as 3.
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => return None,
        })
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// What a dump asks for: every state from the client's first packet to the last acknowledgement.
/// Not `TIME_WAIT`, in which nothing is left to reset, and not what this host opened itself.
const DUMPED_STATES: u32 = TcpState::Established.bit()
    | TcpState::SynReceived.bit()
    | TcpState::FinWait1.bit()
    | TcpState::FinWait2.bit()
    | TcpState::CloseWait.bit()
    | TcpState::LastAck.bit()
    | TcpState::Closing.bit();

/// One TCP connection, as the kernel described it.
///
/// Only the kernel's answers make one, and never from a listening socket, so whatever is destroyed
/// is a connection that existed, named by its own cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    local: SocketAddr,
    remote: SocketAddr,
    state: TcpState,
    cookie: u64,
    /// `idiag_family`: `AF_INET6` for the IPv4 clients of a dual-stack listener.
    family: u8,
    /// `struct inet_diag_sockid` as it came, with the interface and the cookie.
    id: [u8; SOCKET_ID_LEN],
}

impl Connection {
    /// This host's end, IPv4 where the kernel shows it mapped. No scope id.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The client's end, IPv4 where the kernel shows it mapped. No scope id.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The state at the time of the answer.
    #[must_use]
    pub fn state(&self) -> TcpState {
        self.state
    }

    /// The kernel's name for this very socket, unique until the next boot. The same tuple used
    /// again has another one.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Reads a `struct inet_diag_msg`; `None` for a listening or unconnected socket, and for
    /// whatever is not one.
    fn read(message: Message<'_>) -> Option<Self> {
        if message.kind != SOCK_DIAG_BY_FAMILY {
            return None;
        }
        // family, state, timer, retransmits, then the socket id.
        let (&[family, state, ..], rest) = message.payload.split_first_chunk::<4>()?;
        let id = *rest.first_chunk::<SOCKET_ID_LEN>()?;
        let state = TcpState::from_kernel(state)?;
        let (local_port, rest) = id.split_first_chunk::<2>()?;
        let (remote_port, rest) = rest.split_first_chunk::<2>()?;
        let (local, rest) = rest.split_first_chunk::<16>()?;
        let (remote, rest) = rest.split_first_chunk::<16>()?;
        let (_interface, rest) = rest.split_first_chunk::<4>()?;
        let cookie = u64::from_ne_bytes(*rest.first_chunk()?);
        let remote_port = u16::from_be_bytes(*remote_port);
        if state == TcpState::Listen || remote_port == 0 || cookie == NO_COOKIE {
            return None;
        }
        Some(Self {
            local: (read_ip(family, *local)?, u16::from_be_bytes(*local_port)).into(),
            remote: (read_ip(family, *remote)?, remote_port).into(),
            state,
            cookie,
            family,
            id,
        })
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the connection of {} to {}", self.remote, self.local)
    }
}

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
        write_lookup(&mut self.request, self.socket.next_sequence(), local, remote);
        match self.socket.answered(&self.request, Connection::read)? {
            // A listener, or anything else that the lookup fell through to, is not what was meant.
            Ok(found) => Ok(found.filter(|it| it.local == local && it.remote == remote)),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(Error::Refused {
                operation: "look up",
                object: format!("the connection of {remote} to {local}"),
                source,
            }),
        }
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
        let mut all = Dumped::Whole;
        for family in filter.families() {
            let mut dumped = self.dump(family, filter, &mut each)?;
            if dumped == Dumped::Interrupted {
                dumped = self.dump(family, filter, &mut each)?;
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
        filter: &ConnectionFilter<'_>,
        each: &mut impl FnMut(Connection),
    ) -> Result<Dumped, Error> {
        write_dump(&mut self.request, self.socket.next_sequence(), family, filter);
        let dumped = self.socket.dumped(&self.request, |message| {
            if let Some(connection) = Connection::read(message)
                && filter.matches(connection.local, connection.remote)
            {
                each(connection);
            }
        });
        match dumped {
            Ok(Ok(dumped)) => Ok(dumped),
            Ok(Err(source)) => Err(Error::Refused {
                operation: "list",
                object: "the TCP connections".to_owned(),
                source,
            }),
            Err(error) if error.errno() == Some(Errno::NOBUFS) => Ok(Dumped::Interrupted),
            Err(error) => Err(error),
        }
    }

    /// Nothing of the connection is left but the memory of it.
    fn is_over(&mut self, connection: &Connection) -> Result<bool, Error> {
        let now = self.find(connection.local, connection.remote)?;
        Ok(now.is_none_or(|now| {
            now.cookie != connection.cookie
                || matches!(now.state, TcpState::TimeWait | TcpState::FinWait2)
        }))
    }
}

/// Asks for one socket by its tuple, whatever its cookie.
fn write_lookup(request: &mut Writer, sequence: u32, local: SocketAddr, remote: SocketAddr) {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let id = socket_id(local, remote);
    begin(request, SOCK_DIAG_BY_FAMILY, 0, sequence, family, 0, &id);
    request.end();
}

/// Asks for the end of one socket by its tuple and its cookie, which only a [`Connection`] has.
fn write_destroy(request: &mut Writer, sequence: u32, connection: &Connection) {
    let Connection { family, id, .. } = connection;
    begin(request, SOCK_DESTROY, NLM_F_ACK, sequence, *family, 0, id);
    request.end();
}

fn write_dump(request: &mut Writer, sequence: u32, family: u8, filter: &ConnectionFilter<'_>) {
    let mut id = [0; SOCKET_ID_LEN];
    if let Some(local_port) = id.first_chunk_mut() {
        *local_port = filter.sole_port().to_be_bytes();
    }
    begin(request, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, sequence, family, DUMPED_STATES, &id);
    if let Some(bytecode) = filter.bytecode(family) {
        request.attribute(INET_DIAG_REQ_BYTECODE, &bytecode);
    }
    request.end();
}

/// Begins a message with `struct inet_diag_req_v2`: family, protocol, extensions, padding, states,
/// socket id.
fn begin(
    request: &mut Writer,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    states: u32,
    id: &[u8; SOCKET_ID_LEN],
) {
    request.clear();
    request.begin(kind, flags, sequence);
    request.put(&[family, IPPROTO_TCP, 0, 0]);
    request.put(&states.to_ne_bytes());
    request.put(id);
}

/// The `struct inet_diag_sockid` of a socket on any interface and with any cookie.
fn socket_id(local: SocketAddr, remote: SocketAddr) -> [u8; SOCKET_ID_LEN] {
    let mut id = [0; SOCKET_ID_LEN];
    let fields: [&[u8]; 6] = [
        &local.port().to_be_bytes(),
        &remote.port().to_be_bytes(),
        &address_field(local.ip()),
        &address_field(remote.ip()),
        &ANY_INTERFACE.to_ne_bytes(),
        &NO_COOKIE.to_ne_bytes(),
    ];
    for (to, from) in id.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    id
}

/// An address as it stands in a socket id: 16 bytes, of which IPv4 takes the first four.
fn address_field(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96).to_be_bytes(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn read_ip(family: u8, field: [u8; 16]) -> Option<IpAddr> {
    let v6 = IpAddr::from(Ipv6Addr::from(field));
    match (family, field) {
        (AF_INET, [a, b, c, d, ..]) => Some(Ipv4Addr::new(a, b, c, d).into()),
        (AF_INET6, _) => Some(v6.to_canonical()),
        _ => None,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{networks::Networks, wire::Messages};

    /// The header of every request below: length, type, flags, sequence number, port.
    fn header(length: u8, kind: u16, flags: u16) -> Vec<u8> {
        let mut bytes = vec![length, 0, 0, 0];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([7, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    /// The answer to a lookup: an IPv4 client of a dual-stack listener, established.
    #[rustfmt::skip]
    const ANSWER: [u8; 72] = [
        // AF_INET6, ESTABLISHED, no timer, no retransmits.
        10, 1, 0, 0,
        // Ports 443 and 40000.
        0x01, 0xbb, 0x9c, 0x40,
        // ::ffff:127.0.0.1 and ::ffff:127.0.0.2.
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 2,
        // No interface, cookie 21878.
        0, 0, 0, 0, 0x76, 0x55, 0, 0, 0, 0, 0, 0,
        // Expires, queues, uid, inode.
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
    ];

    fn read(payload: &[u8]) -> Option<Connection> {
        Connection::read(Message { kind: SOCK_DIAG_BY_FAMILY, flags: 0, sequence: 7, payload })
    }

    // The exact lookup has no command; this is `struct inet_diag_req_v2` field by field.
    #[test]
    fn a_lookup_names_both_ends_and_any_cookie() {
        let mut request = Writer::new();
        let (local, remote) = ("10.0.0.1:443".parse().unwrap(), "10.0.0.2:40000".parse().unwrap());
        write_lookup(&mut request, 7, local, remote);
        let mut expected = header(72, 20, 0x0001);
        #[rustfmt::skip]
        expected.extend([
            // AF_INET, IPPROTO_TCP, no extension, padding; no states.
            2, 6, 0, 0,   0, 0, 0, 0,
            0x01, 0xbb, 0x9c, 0x40,
            10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0,   255, 255, 255, 255, 255, 255, 255, 255,
        ]);
        assert_eq!(request.bytes(), expected);

        let (local, remote) =
            ("[2001:db8::1]:443".parse().unwrap(), "[2001:db8::2]:40000".parse().unwrap());
        write_lookup(&mut request, 7, local, remote);
        let mut expected = header(72, 20, 0x0001);
        #[rustfmt::skip]
        expected.extend([
            10, 6, 0, 0,   0, 0, 0, 0,
            0x01, 0xbb, 0x9c, 0x40,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
            0, 0, 0, 0,   255, 255, 255, 255, 255, 255, 255, 255,
        ]);
        assert_eq!(request.bytes(), expected);
    }

    // ss -K -tn 'sport = :443 and dst 127.0.0.2' sends the same for an IPv4 client of a dual-stack
    // listener (iproute2 6.1, seen by strace): the family, addresses and cookie of the answer.
    #[test]
    fn a_reset_names_the_socket_as_the_kernel_named_it() {
        let mut request = Writer::new();
        write_destroy(&mut request, 7, &read(&ANSWER).unwrap());
        let mut expected = header(72, 21, 0x0005);
        #[rustfmt::skip]
        expected.extend([
            // AF_INET6, IPPROTO_TCP, no extension, padding; no states.
            10, 6, 0, 0,   0, 0, 0, 0,
            0x01, 0xbb, 0x9c, 0x40,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 2,
            0, 0, 0, 0,   0x76, 0x55, 0, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(request.bytes(), expected);
    }

    // ss -tn4 state established state syn-recv state fin-wait-1 state fin-wait-2 state close-wait
    // state last-ack state closing 'dst 10.0.0.1', with the port in the request's own field.
    #[test]
    fn a_dump_asks_for_the_live_states_the_port_and_the_remote() {
        let mut request = Writer::new();
        let remotes = Networks::from_iter([("10.0.0.1".parse().unwrap(), 32)]);
        let ports = [443..=443];
        write_dump(&mut request, 7, AF_INET, &ConnectionFilter::on(&ports).from(&remotes));
        let mut expected = header(92, 20, 0x0301);
        #[rustfmt::skip]
        expected.extend([
            // States 1, 3, 4, 5, 8, 9, 11.
            2, 6, 0, 0,   0b0011_1010, 0b0000_1011, 0, 0,
            0x01, 0xbb, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0,   0, 0, 0, 0, 0, 0, 0, 0,
            // INET_DIAG_REQ_BYTECODE, 20 bytes: remote in 10.0.0.1/32, else past the end.
            20, 0, 1, 0,
            8, 16, 20, 0,   2, 32, 0, 0,   255, 255, 255, 255,   10, 0, 0, 1,
        ]);
        assert_eq!(request.bytes(), expected);
    }

    #[test]
    fn an_answer_is_a_connection_with_plain_addresses() {
        let connection = read(&ANSWER).unwrap();
        assert_eq!(connection.local(), "127.0.0.1:443".parse().unwrap());
        assert_eq!(connection.remote(), "127.0.0.2:40000".parse().unwrap());
        assert_eq!((connection.state(), connection.cookie()), (TcpState::Established, 21878));
        assert_eq!(connection.to_string(), "the connection of 127.0.0.2:40000 to 127.0.0.1:443");
    }

    #[test]
    fn a_listener_and_whatever_is_not_a_connection_is_nothing() {
        let with = |changes: &[(usize, u8)]| {
            let mut answer = ANSWER;
            for (at, value) in changes {
                answer[*at] = *value;
            }
            read(&answer)
        };
        assert!(with(&[]).is_some());
        assert_eq!(with(&[(1, 10)]), None, "LISTEN");
        assert_eq!(with(&[(1, 0)]), None, "no such state");
        assert_eq!(with(&[(1, 99)]), None, "no such state");
        assert_eq!(with(&[(0, 1)]), None, "AF_UNIX");
        assert_eq!(with(&[(6, 0), (7, 0)]), None, "no remote port");
        let cookie: Vec<_> = (44..52).map(|at| (at, 255)).collect();
        assert_eq!(with(&cookie), None, "the cookie that fits everything");
        let error = Message { kind: 2, flags: 0, sequence: 7, payload: &ANSWER };
        assert_eq!(Connection::read(error), None);
    }

    #[test]
    fn every_truncation_of_an_answer_is_nothing_or_the_same_connection() {
        for end in 0..ANSWER.len() {
            let connection = read(&ANSWER[..end]);
            assert_eq!(connection, (end >= 52).then(|| read(&ANSWER).unwrap()), "{end} bytes");
        }
    }

    #[test]
    fn a_request_is_one_message_of_its_own_length() {
        let mut request = Writer::new();
        let ports: Vec<_> = (0..60).map(|n| n..=n).collect();
        write_dump(&mut request, 7, AF_INET6, &ConnectionFilter::on(&ports));
        write_destroy(&mut request, 8, &read(&ANSWER).unwrap());
        let messages: Vec<_> = Messages::new(request.bytes()).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].sequence, messages[0].payload.len()), (8, 56));
    }
}
