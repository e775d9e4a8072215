//! The messages of `sock_diag` about TCP sockets, both ways and pure.
//!
//! Takes addresses, ports and what the kernel said before; writes lookups, resets and dumps, and
//! reads the kernel's answers and its close events into [`Connection`]s, [`Observed`] ones and
//! [`Closed`] ones. It opens no socket and decides nothing. What an answer leaves out or garbles is
//! `None`, never a guess.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    activity::Activity,
    networks::{AF_INET, AF_INET6},
    sock_filter::ConnectionFilter,
    wire::{Attributes, Message, NLM_F_ACK, NLM_F_DUMP, Writer},
};

/// `SOCK_DIAG_BY_FAMILY`, `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`, `linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// `IPPROTO_TCP`.
const IPPROTO_TCP: u8 = 6;
/// `IPPROTO_MPTCP`, which is too large for the request's own field.
const IPPROTO_MPTCP: u32 = 262;
/// No protocol in the request's own field. A kernel that does not know `INET_DIAG_REQ_PROTOCOL`
/// then finds nobody to ask; given the low byte of 262, as `ss` gives it, it would list TCP.
const NO_PROTOCOL: u8 = 0;
/// `INET_DIAG_REQ_BYTECODE`, `linux/inet_diag.h`.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// `INET_DIAG_REQ_PROTOCOL`, `linux/inet_diag.h`; Linux 5.9.
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
/// `INET_DIAG_INFO`, `linux/inet_diag.h`: a `struct tcp_info`.
const INET_DIAG_INFO: u16 = 2;
/// Nothing but the fixed part of an answer.
const NO_EXTENSION: u8 = 0;
/// `idiag_ext` that asks for `INET_DIAG_INFO`: attribute *n* is bit *n - 1*.
const WITH_INFO: u8 = 1 << (INET_DIAG_INFO - 1);
/// `sizeof(struct inet_diag_msg)`, after which the attributes of an answer begin.
const ANSWER_LEN: usize = 72;
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
    pub(crate) fn from_kernel(number: u8) -> Option<Self> {
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

    /// The client has answered from its address, so that the address is proven and a connection
    /// exists or existed.
    #[must_use]
    pub const fn has_completed_handshake(self) -> bool {
        match self {
            Self::Established
            | Self::FinWait1
            | Self::FinWait2
            | Self::TimeWait
            | Self::CloseWait
            | Self::LastAck
            | Self::Closing => true,
            Self::SynSent | Self::SynReceived | Self::Close | Self::Listen => false,
        }
    }
}

/// What a dump is to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    /// Connections, without their counters.
    Connections,
    /// Connections with their counters.
    Activity,
    /// Listening sockets.
    Listeners,
    /// MPTCP connections, each of which has TCP connections of its own.
    Mptcp,
}

impl fmt::Display for Listing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Connections | Self::Activity => "the TCP connections",
            Self::Listeners => "the listening TCP sockets",
            Self::Mptcp => "the MPTCP connections",
        })
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
    interface: u32,
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

    /// The index of the network device that the socket is bound to; 0 when it is bound to none.
    #[must_use]
    pub fn interface(&self) -> u32 {
        self.interface
    }

    pub(crate) fn is_between(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.local == local && self.remote == remote
    }

    /// Reads a `struct inet_diag_msg`; `None` for a listening or unconnected socket, and for
    /// whatever is not one.
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let described = Described::read(message)?;
        let Described { family, state, id, local, remote, interface, cookie } = described;
        let state = TcpState::from_kernel(state)?;
        if state == TcpState::Listen || remote.port() == 0 || cookie == NO_COOKIE {
            return None;
        }
        Some(Self { local, remote, state, interface, cookie, family, id })
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the connection of {} to {}", self.remote, self.local)
    }
}

/// A connection and what has moved on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The connection.
    pub connection: Connection,
    /// Its counters; `None` where there is no whole socket that could count (`TIME_WAIT`, most of
    /// `SYN_RECV`), and before Linux 4.1.
    pub activity: Option<Activity>,
}

impl Observed {
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let connection = Connection::read(message)?;
        Some(Self { connection, activity: read_activity(message) })
    }
}

/// A connection that the kernel has freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// This host's end, IPv4 where the kernel shows it mapped. No scope id.
    pub local: SocketAddr,
    /// The client's end, IPv4 where the kernel shows it mapped. No scope id.
    pub remote: SocketAddr,
    /// As [`Connection::cookie`] was.
    pub cookie: u64,
    /// The last of its counters; `None` before Linux 4.1. The kernel does not say any more whether
    /// a FIN is among the bytes, so one is always counted off: after a reset, a byte is missing.
    pub activity: Option<Activity>,
}

impl Closed {
    /// Reads an event; `None` for a socket that had no client, such as a listening one.
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let Described { local, remote, cookie, .. } = Described::read(message)?;
        (remote.port() != 0 && cookie != NO_COOKIE).then(|| Self {
            local,
            remote,
            cookie,
            activity: read_activity(message),
        })
    }
}

/// The fixed part of a `struct inet_diag_msg`, whatever socket it is about.
struct Described {
    family: u8,
    state: u8,
    id: [u8; SOCKET_ID_LEN],
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
    cookie: u64,
}

impl Described {
    fn read(message: Message<'_>) -> Option<Self> {
        if message.kind != SOCK_DIAG_BY_FAMILY {
            return None;
        }
        // family, state, timer, retransmits, then the socket id.
        let (&[family, state, ..], rest) = message.payload.split_first_chunk::<4>()?;
        let id = *rest.first_chunk::<SOCKET_ID_LEN>()?;
        let (local_port, rest) = id.split_first_chunk::<2>()?;
        let (remote_port, rest) = rest.split_first_chunk::<2>()?;
        let (local, rest) = rest.split_first_chunk::<16>()?;
        let (remote, rest) = rest.split_first_chunk::<16>()?;
        let (interface, rest) = rest.split_first_chunk::<4>()?;
        Some(Self {
            family,
            state,
            id,
            local: (read_ip(family, *local)?, u16::from_be_bytes(*local_port)).into(),
            remote: (read_ip(family, *remote)?, u16::from_be_bytes(*remote_port)).into(),
            interface: u32::from_ne_bytes(*interface),
            cookie: u64::from_ne_bytes(*rest.first_chunk()?),
        })
    }
}

fn read_activity(message: Message<'_>) -> Option<Activity> {
    let info = Attributes::new(message.payload.get(ANSWER_LEN..)?)
        .find(|attribute| attribute.kind == INET_DIAG_INFO)?;
    Activity::read(info.payload)
}

/// The port of a listening socket; `None` for any other.
pub(crate) fn read_listener(message: Message<'_>) -> Option<u16> {
    let Described { state, local, .. } = Described::read(message)?;
    (TcpState::from_kernel(state)? == TcpState::Listen).then_some(local.port())
}

/// Asks for one socket by its tuple, whatever its cookie.
pub(crate) fn write_lookup(
    request: &mut Writer,
    sequence: u32,
    local: SocketAddr,
    remote: SocketAddr,
) {
    let id = socket_id(local, remote, ANY_INTERFACE);
    Question::about_tcp(family_of(local), &id).write(request, SOCK_DIAG_BY_FAMILY, 0, sequence);
    request.end();
}

/// Asks for one socket and its counters by its tuple and the device that it is bound to, whatever
/// its cookie, in one more message of the datagram.
pub(crate) fn write_observe(
    request: &mut Writer,
    sequence: u32,
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
) {
    let id = socket_id(local, remote, interface);
    let question = Question { extensions: WITH_INFO, ..Question::about_tcp(family_of(local), &id) };
    question.append(request, SOCK_DIAG_BY_FAMILY, 0, sequence);
    request.end();
}

/// Asks for the counters of one socket by its tuple and its cookie.
pub(crate) fn write_observe_again(request: &mut Writer, sequence: u32, connection: &Connection) {
    let Connection { family, id, .. } = connection;
    let question = Question { extensions: WITH_INFO, ..Question::about_tcp(*family, id) };
    question.write(request, SOCK_DIAG_BY_FAMILY, 0, sequence);
    request.end();
}

/// Asks for the end of one socket by its tuple and its cookie, which only a [`Connection`] has.
pub(crate) fn write_destroy(request: &mut Writer, sequence: u32, connection: &Connection) {
    let Connection { family, id, .. } = connection;
    Question::about_tcp(*family, id).write(request, SOCK_DESTROY, NLM_F_ACK, sequence);
    request.end();
}

/// Asks for every socket of `family` that is in `listing` and that `filter` means, or for more.
pub(crate) fn write_dump(
    request: &mut Writer,
    sequence: u32,
    family: u8,
    listing: Listing,
    filter: &ConnectionFilter<'_>,
) {
    let mut id = [0; SOCKET_ID_LEN];
    if let Some(local_port) = id.first_chunk_mut() {
        *local_port = filter.sole_port().to_be_bytes();
    }
    let of_tcp = Question { states: DUMPED_STATES, ..Question::about_tcp(family, &id) };
    let question = match listing {
        Listing::Connections => of_tcp,
        Listing::Activity => Question { extensions: WITH_INFO, ..of_tcp },
        Listing::Listeners => Question { states: TcpState::Listen.bit(), ..of_tcp },
        Listing::Mptcp => Question { protocol: NO_PROTOCOL, ..of_tcp },
    };
    question.write(request, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, sequence);
    if let Some(bytecode) = filter.bytecode(family) {
        request.attribute(INET_DIAG_REQ_BYTECODE, &bytecode);
    }
    if listing == Listing::Mptcp {
        request.attribute(INET_DIAG_REQ_PROTOCOL, &IPPROTO_MPTCP.to_ne_bytes());
    }
    request.end();
}

/// A `struct inet_diag_req_v2`.
struct Question<'a> {
    family: u8,
    protocol: u8,
    extensions: u8,
    states: u32,
    id: &'a [u8; SOCKET_ID_LEN],
}

impl<'a> Question<'a> {
    /// About one TCP socket, which has no need of states.
    fn about_tcp(family: u8, id: &'a [u8; SOCKET_ID_LEN]) -> Self {
        Self { family, protocol: IPPROTO_TCP, extensions: NO_EXTENSION, states: 0, id }
    }

    fn write(&self, request: &mut Writer, kind: u16, flags: u16, sequence: u32) {
        request.clear();
        self.append(request, kind, flags, sequence);
    }

    fn append(&self, request: &mut Writer, kind: u16, flags: u16, sequence: u32) {
        request.begin(kind, flags, sequence);
        request.put(&[self.family, self.protocol, self.extensions, 0]);
        request.put(&self.states.to_ne_bytes());
        request.put(self.id);
    }
}

fn family_of(address: SocketAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The `struct inet_diag_sockid` of a socket with any cookie.
fn socket_id(local: SocketAddr, remote: SocketAddr, interface: u32) -> [u8; SOCKET_ID_LEN] {
    let mut id = [0; SOCKET_ID_LEN];
    let fields: [&[u8]; 6] = [
        &local.port().to_be_bytes(),
        &remote.port().to_be_bytes(),
        &address_field(local.ip()),
        &address_field(remote.ip()),
        &interface.to_ne_bytes(),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{activity::tests::tcp_info, networks::Networks, wire::Messages};

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

    fn message(payload: &[u8]) -> Message<'_> {
        Message { kind: SOCK_DIAG_BY_FAMILY, flags: 0, sequence: 7, payload }
    }

    fn read(payload: &[u8]) -> Option<Connection> {
        Connection::read(message(payload))
    }

    /// [`ANSWER`] with counters, after another attribute (`INET_DIAG_SHUTDOWN`), as they come.
    fn answer_with_info(state: u8) -> Vec<u8> {
        let mut answer = ANSWER.to_vec();
        answer[1] = state;
        answer.extend([5, 0, 8, 0, 0, 0, 0, 0]);
        answer.extend([28, 1, 2, 0]);
        answer.extend(tcp_info(state, 11, 21));
        answer
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

    #[test]
    fn a_lookup_with_counters_asks_for_them_and_names_the_device() {
        let mut request = Writer::new();
        let (local, remote) = ("10.0.0.1:443".parse().unwrap(), "10.0.0.2:40000".parse().unwrap());
        write_observe(&mut request, 7, local, remote, 3);
        let mut expected = header(72, 20, 0x0001);
        #[rustfmt::skip]
        expected.extend([
            // AF_INET, IPPROTO_TCP, INET_DIAG_INFO, padding; no states.
            2, 6, 2, 0,   0, 0, 0, 0,
            0x01, 0xbb, 0x9c, 0x40,
            10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            3, 0, 0, 0,   255, 255, 255, 255, 255, 255, 255, 255,
        ]);
        assert_eq!(request.bytes(), expected);
    }

    #[test]
    fn a_second_lookup_names_the_socket_as_the_kernel_named_it() {
        let mut request = Writer::new();
        let mut answer = ANSWER;
        answer[40] = 3;
        let connection = read(&answer).unwrap();
        assert_eq!(connection.interface(), 3);
        write_observe_again(&mut request, 7, &connection);
        let mut expected = header(72, 20, 0x0001);
        #[rustfmt::skip]
        expected.extend([
            10, 6, 2, 0,   0, 0, 0, 0,
            0x01, 0xbb, 0x9c, 0x40,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 2,
            3, 0, 0, 0,   0x76, 0x55, 0, 0, 0, 0, 0, 0,
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
        let filter = ConnectionFilter::on(&ports).from(&remotes);
        write_dump(&mut request, 7, AF_INET, Listing::Connections, &filter);
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

    /// A dump of port 443 of IPv4 sockets, without attributes.
    fn dump_of_443(length: u8, protocol: u8, extensions: u8, states: [u8; 4]) -> Vec<u8> {
        let mut bytes = header(length, 20, 0x0301);
        bytes.extend([2, protocol, extensions, 0]);
        bytes.extend(states);
        bytes.extend([0x01, 0xbb]);
        bytes.extend([0; 46]);
        bytes
    }

    // ss -tin, with the same states and the port in the request's own field; ss asks for the
    // congestion control and its figures as well.
    #[test]
    fn a_dump_with_counters_differs_in_the_extension() {
        let mut request = Writer::new();
        let ports = [443..=443];
        write_dump(&mut request, 7, AF_INET, Listing::Activity, &ConnectionFilter::on(&ports));
        let expected = dump_of_443(72, 6, 2, [0b0011_1010, 0b0000_1011, 0, 0]);
        assert_eq!(request.bytes(), expected);
    }

    // ss -tln; ss asks for unbound sockets (state 7) as well.
    #[test]
    fn a_dump_of_listeners_asks_for_their_state_alone() {
        let mut request = Writer::new();
        let ports = [443..=443];
        write_dump(&mut request, 7, AF_INET, Listing::Listeners, &ConnectionFilter::on(&ports));
        assert_eq!(request.bytes(), dump_of_443(72, 6, 0, [0, 0b0000_0100, 0, 0]));

        // Two ranges are tested by bytecode, with a jump between them.
        let ports = [443..=443, 8443..=8450];
        write_dump(&mut request, 7, AF_INET, Listing::Listeners, &ConnectionFilter::on(&ports));
        assert_eq!(request.len(), 72 + 4 + 16 + 4 + 16);
    }

    // ss -Mn sends the same attribute (iproute2 6.1, seen by strace), but IPPROTO_TCP before it.
    #[test]
    fn a_dump_of_mptcp_names_the_protocol_in_an_attribute() {
        let mut request = Writer::new();
        let ports = [443..=443];
        write_dump(&mut request, 7, AF_INET, Listing::Mptcp, &ConnectionFilter::on(&ports));
        let mut expected = dump_of_443(80, 0, 0, [0b0011_1010, 0b0000_1011, 0, 0]);
        expected.extend([8, 0, 3, 0, 6, 1, 0, 0]);
        assert_eq!(request.bytes(), expected);
    }

    #[test]
    fn an_answer_with_counters_is_a_connection_and_what_moved_on_it() {
        let observed = Observed::read(message(&answer_with_info(8))).unwrap();
        assert_eq!(observed.connection.state(), TcpState::CloseWait);
        let activity = observed.activity.unwrap();
        assert_eq!((activity.received, activity.acknowledged), (10, 21));
        // What is left of a connection has no counters.
        let observed = Observed::read(message(&ANSWER)).unwrap();
        assert_eq!((observed.connection, observed.activity), (read(&ANSWER).unwrap(), None));
    }

    #[test]
    fn an_event_is_the_end_of_a_connection_and_never_of_a_listener() {
        let event = answer_with_info(7);
        let closed = Closed::read(message(&event)).unwrap();
        assert_eq!(closed.local, "127.0.0.1:443".parse().unwrap());
        assert_eq!(closed.remote, "127.0.0.2:40000".parse().unwrap());
        assert_eq!(closed.cookie, 21878);
        let activity = closed.activity.unwrap();
        assert_eq!((activity.received, activity.acknowledged), (10, 20), "a FIN counted off each");
        let mut listener = event;
        listener[6..8].fill(0);
        assert_eq!(Closed::read(message(&listener)), None);
    }

    #[test]
    fn a_listener_is_a_port_and_a_connection_is_none() {
        let mut listener = ANSWER;
        listener[1] = 10;
        listener[6..8].fill(0);
        assert_eq!(read_listener(message(&listener)), Some(443));
        assert_eq!(read_listener(message(&ANSWER)), None);
    }

    #[test]
    fn only_a_client_that_answered_has_completed_the_handshake() {
        let completed: Vec<_> = (0..=u8::MAX)
            .filter_map(TcpState::from_kernel)
            .filter(|state| state.has_completed_handshake())
            .map(|state| state as u8)
            .collect();
        // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
        assert_eq!(completed, [1, 4, 5, 6, 8, 9, 11]);
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
    fn a_truncated_answer_with_counters_has_the_whole_of_them_or_none() {
        let answer = answer_with_info(1);
        let whole = Observed::read(message(&answer)).unwrap();
        for end in 52..answer.len() {
            let observed = Observed::read(message(&answer[..end])).unwrap();
            assert_eq!(observed.connection, whole.connection, "{end} bytes");
            // The attribute's own length is longer than what is left of it.
            assert_eq!(observed.activity, None, "{end} bytes");
            assert_eq!(Closed::read(message(&answer[..end])).unwrap().activity, None);
        }
        // The same cut in a structure that was shorter from the beginning.
        for info in 0..280u16 {
            let mut shorter = ANSWER.to_vec();
            shorter.extend((4 + info).to_ne_bytes());
            shorter.extend([2, 0]);
            shorter.extend(&tcp_info(1, 11, 21)[..usize::from(info)]);
            let activity = Observed::read(message(&shorter)).unwrap().activity;
            assert_eq!(activity, whole.activity.filter(|_| info >= 136), "{info} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..400),
            at in 0usize..400,
        ) {
            // Noise, and noise from somewhere on in an answer that makes sense.
            let mut answer = answer_with_info(1);
            for (to, from) in answer.iter_mut().skip(at).zip(&payload) {
                *to = *from;
            }
            for payload in [&payload, &answer] {
                let _ = Observed::read(message(payload));
                let _ = Closed::read(message(payload));
                let _ = read_listener(message(payload));
                let _ = Activity::read(payload);
            }
        }
    }

    #[test]
    fn a_request_is_one_message_of_its_own_length() {
        let mut request = Writer::new();
        let ports: Vec<_> = (0..60).map(|n| n..=n).collect();
        write_dump(&mut request, 7, AF_INET6, Listing::Connections, &ConnectionFilter::on(&ports));
        write_destroy(&mut request, 8, &read(&ANSWER).unwrap());
        let messages: Vec<_> = Messages::new(request.bytes()).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].sequence, messages[0].payload.len()), (8, 56));
    }
}
