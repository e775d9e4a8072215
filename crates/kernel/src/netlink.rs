//! One netlink socket: the only place in this crate that sends and receives.
//!
//! Takes datagrams written with [`Writer`]; gives back acknowledgements, single answers, dumps and
//! events. Requests are serial: an answer is matched to its request by sequence number, and after
//! anything that could leave a late answer in the queue (a timeout, an overflow, a refusal to
//! receive) the socket is replaced before the next request, so that no answer is ever taken for
//! another's. It knows no family and retries nothing.

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno as OsErrno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::SocketAddrNetlink, recv, send, socket_with, sockopt,
    },
};
use socket2::{SockFilter, SockRef};

use crate::{
    error::{Errno, Error},
    wire::{Message, Messages, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Writer},
};

/// Room for one datagram; a kernel dump fills at most 32 KiB of it (`af_netlink.c`, `netlink_dump`).
const DATAGRAM_CAPACITY: usize = 64 * 1024;
/// How long the kernel may take over an answer. It answers requests while they are sent, so this
/// is only ever reached when something is badly wrong.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Receive buffer asked for, bytes: the acknowledgements of a batch and a burst of events fit.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Bytes of a datagram that every send buffer takes (the default holds 200 KiB).
const PLAIN_DATAGRAM: usize = 64 * 1024;

/// The netlink families that Refract speaks, linux/netlink.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `NETLINK_ROUTE`: addresses and routes.
    Route,
    /// `NETLINK_SOCK_DIAG`: sockets.
    SockDiag,
    /// `NETLINK_NETFILTER`: ipset, nftables, conntrack.
    Netfilter,
}

impl Family {
    fn protocol(self) -> Option<Protocol> {
        match self {
            // NETLINK_ROUTE is protocol 0, which rustix writes as none.
            Self::Route => None,
            Self::SockDiag => Some(rustix::net::netlink::SOCK_DIAG),
            Self::Netfilter => Some(rustix::net::netlink::NETFILTER),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Route => "the route netlink socket",
            Self::SockDiag => "the sock_diag netlink socket",
            Self::Netfilter => "the netfilter netlink socket",
        }
    }
}

/// What a dump has to say about itself once it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Dumped {
    /// The table stood still.
    Whole,
    /// The table changed meanwhile (`NLM_F_DUMP_INTR`): entries may be missing or double.
    Interrupted,
}

/// How far a look at the waiting events got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// Every event until now was handed over.
    Whole,
    /// Nothing waits any more, but the receive buffer overflowed (`ENOBUFS`) and events until now
    /// were lost: whoever listens must look for himself. What happens from now on is heard again.
    Lost,
    /// The bound was reached and more may wait: call again.
    More,
}

/// What a socket that only listens is to hear, and how much of it can wait.
#[derive(Clone, Copy, Debug)]
pub struct Subscription<'a> {
    /// The multicast groups, a bit mask in which group *n* is bit *n - 1* (groups up to 32).
    pub groups: u32,
    /// Receive buffer, bytes of payload, as `SO_RCVBUF` takes it.
    pub receive_buffer: usize,
    /// Classic BPF that the kernel runs on each message before it takes any room; `None` takes all.
    pub filter: Option<&'a [SockFilter]>,
}

/// Which of its wishes a [`Subscription`] was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The receive buffer, bytes of payload.
    pub receive_buffer: usize,
    /// The filter was asked for and is in the kernel.
    pub filter: bool,
}

/// A netlink socket with its buffers.
#[derive(Debug)]
pub struct Socket {
    family: Family,
    groups: u32,
    fd: OwnedFd,
    sequence: u32,
    stale: bool,
    /// An overflow was met that [`Self::some_events`] has not told yet.
    lost: bool,
    received: Vec<u8>,
}

impl Socket {
    /// Opens a socket for requests.
    pub fn open(family: Family) -> Result<Self, Error> {
        Self::open_with_groups(family, 0)
    }

    /// Opens a socket that also receives the multicast `groups`, a bit mask in which group *n* is
    /// bit *n - 1* (groups up to 32).
    pub fn open_with_groups(family: Family, groups: u32) -> Result<Self, Error> {
        let fd = connect(family, groups).map_err(|source| Error::Io {
            operation: "open",
            object: family.name().to_owned(),
            source: source.into(),
        })?;
        Ok(Self::from_fd(family, groups, fd))
    }

    /// Opens a socket for requests whose answers pass `filter`, classic BPF, before they take any room.
    /// It may get more than that: the kernel may not take the filter, and a socket that had to be
    /// replaced has none.
    pub fn open_with_filter(family: Family, filter: &[SockFilter]) -> Result<Self, Error> {
        let socket = Self::open(family)?;
        let _ = SockRef::from(&socket.fd).attach_filter(filter);
        Ok(socket)
    }

    /// Opens a socket for events alone. A filter that the kernel does not take (it is too long for
    /// `net.core.optmem_max`) is left out, and a buffer that it does not grant is smaller.
    pub fn subscribe(
        family: Family,
        subscription: &Subscription<'_>,
    ) -> Result<(Self, Granted), Error> {
        let (fd, granted) = listen(family, subscription).map_err(|source| Error::Io {
            operation: "subscribe to",
            object: family.name().to_owned(),
            source: source.into(),
        })?;
        Ok((Self::from_fd(family, subscription.groups, fd), granted))
    }

    fn from_fd(family: Family, groups: u32, fd: OwnedFd) -> Self {
        let received = vec![0; DATAGRAM_CAPACITY];
        Self { family, groups, fd, sequence: 0, stale: false, lost: false, received }
    }

    /// The sequence number for the next message. Each message of a datagram takes one of its own.
    pub fn next_sequence(&mut self) -> u32 {
        // 0 marks events, so it is never a request's.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }

    /// Sends one message and waits for its acknowledgement.
    ///
    /// The outer result is the conversation, the inner one the kernel's answer.
    pub fn acknowledged(&mut self, request: &Writer) -> Result<Result<(), Errno>, Error> {
        self.converse(request, self.sequence, |message| match message.errno() {
            Some(code) => ControlFlow::Break(acknowledgement(code)),
            None => ControlFlow::Continue(()),
        })
    }

    /// Sends a datagram of several messages, each with `NLM_F_ACK`, and gives every answer in the
    /// order of the messages. `first` is the sequence number of the first one. Keep a datagram to
    /// 100 messages: 256 acknowledgements overrun a default receive buffer (measured).
    ///
    /// Netfilter asks for the capability once a datagram and refuses it by its first message alone
    /// (`nfnetlink.c`, `nfnetlink_rcv`); that refusal is given as the answer to every message.
    pub fn acknowledged_each(
        &mut self,
        request: &Writer,
        first: u32,
        mut answer: impl FnMut(u32, Result<(), Errno>),
    ) -> Result<(), Error> {
        let (last, is_netfilter) = (self.sequence, self.family == Family::Netfilter);
        self.converse(request, first, |message| {
            let Some(code) = message.errno() else { return ControlFlow::Continue(()) };
            if is_netfilter && Errno(code) == Errno::PERM {
                let left = last.wrapping_sub(message.sequence);
                for each in (0..=left).map(|ahead| message.sequence.wrapping_add(ahead)) {
                    answer(each, Err(Errno::PERM));
                }
                return ControlFlow::Break(());
            }
            answer(message.sequence, acknowledgement(code));
            until(message.sequence == last)
        })
    }

    /// Sends a transaction, which is one datagram: a message that begins it, changes of which only the
    /// last has `NLM_F_ACK`, and a message that ends it. `first` is the sequence number of the first
    /// message. Hands over every refusal of a change; the kernel looks at all changes, but takes none
    /// if there is a refusal. `Ok(Err(_))` is the refusal of the transaction as such.
    pub fn transacted(
        &mut self,
        request: &Writer,
        first: u32,
        mut refusal: impl FnMut(u32, Errno),
    ) -> Result<Result<(), Errno>, Error> {
        let last_change = self.sequence.wrapping_sub(1);
        self.converse(request, first, |message| {
            let Some(code) = message.errno() else { return ControlFlow::Continue(()) };
            match (message.sequence, acknowledgement(code)) {
                (sequence, Err(errno)) if sequence == first => {
                    return ControlFlow::Break(Err(errno));
                }
                (sequence, Err(errno)) => refusal(sequence, errno),
                (_, Ok(())) => {}
            }
            if message.sequence == last_change {
                ControlFlow::Break(Ok(()))
            } else {
                ControlFlow::Continue(())
            }
        })
    }

    /// Sends one message without `NLM_F_ACK` whose answer is one message, and reads it with `read`.
    pub fn answered<T>(
        &mut self,
        request: &Writer,
        mut read: impl FnMut(Message<'_>) -> T,
    ) -> Result<Result<T, Errno>, Error> {
        self.converse(request, self.sequence, |message| {
            ControlFlow::Break(answer_of(message).map(&mut read))
        })
    }

    /// Sends a datagram of several messages without `NLM_F_ACK` and hands over what answers them, in
    /// the order of the messages. `first` is the sequence number of the first one.
    ///
    /// It waits for nothing, so it is for a socket whose filter may keep any answer away, and for a
    /// family that answers while it is asked, as `sock_diag` does (`sock_diag.c`, `sock_diag_rcv`).
    pub fn answered_at_once(
        &mut self,
        request: &Writer,
        first: u32,
        mut answer: impl FnMut(Result<Message<'_>, Errno>),
    ) -> Result<(), Error> {
        let last = self.sequence;
        self.send(request)?;
        self.events(|message| {
            if is_between(first, message.sequence, last) {
                answer(answer_of(message));
            }
        })
        .and_then(|is_whole| {
            if is_whole { Ok(()) } else { Err(self.failed("receive from", OsErrno::NOBUFS)) }
        })
    }

    /// Sends one `NLM_F_DUMP` request and hands every message of the answer to `each`.
    pub fn dumped(
        &mut self,
        request: &Writer,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Result<Dumped, Errno>, Error> {
        let mut dumped = Dumped::Whole;
        self.converse(request, self.sequence, |message| {
            if message.flags & NLM_F_DUMP_INTR != 0 {
                dumped = Dumped::Interrupted;
            }
            match message.kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    let code = message.errno().unwrap_or_default();
                    ControlFlow::Break(acknowledgement(code).map(|()| dumped))
                }
                _ => {
                    each(message);
                    ControlFlow::Continue(())
                }
            }
        })
    }

    /// Sends a datagram whose first message is number `first`, and hands what answers to any of its
    /// messages to `take` until that has what it wants.
    fn converse<T>(
        &mut self,
        request: &Writer,
        first: u32,
        mut take: impl FnMut(Message<'_>) -> ControlFlow<T>,
    ) -> Result<T, Error> {
        let last = self.sequence;
        self.send(request)?;
        // Whatever ends this before its time, a panic of `take` as well, leaves answers waiting or
        // a dump half done.
        self.stale = true;
        loop {
            let length = self.receive()?;
            for message in Messages::new(self.datagram(length)) {
                if is_between(first, message.sequence, last)
                    && let ControlFlow::Break(result) = take(message)
                {
                    self.stale = false;
                    return Ok(result);
                }
            }
        }
    }

    /// Hands every event that is waiting to `each`, without blocking. `Ok(false)` means that events
    /// were lost to an overflow (`ENOBUFS`): whoever listens must look for himself.
    pub fn events(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<bool, Error> {
        loop {
            match self.some_events(usize::MAX, &mut each)? {
                Drained::Whole => return Ok(true),
                Drained::Lost => return Ok(false),
                Drained::More => {}
            }
        }
    }

    /// Hands the events that are waiting to `each`, those of `most` datagrams at most, without
    /// blocking.
    ///
    /// After an overflow the kernel drops everything until the queue is empty (`af_netlink.c`,
    /// `NETLINK_S_CONGESTED`), so a loss is told only then: a look taken earlier would miss some.
    pub fn some_events(
        &mut self,
        most: usize,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Drained, Error> {
        for _ in 0..most {
            match recv(&self.fd, self.received.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    for message in Messages::new(self.datagram(length)) {
                        each(message);
                    }
                }
                Err(OsErrno::AGAIN) if std::mem::take(&mut self.lost) => return Ok(Drained::Lost),
                Err(OsErrno::AGAIN) => return Ok(Drained::Whole),
                Err(OsErrno::NOBUFS) => self.lost = true,
                Err(OsErrno::INTR) => {}
                Err(source) => return Err(self.failed("receive from", source)),
            }
        }
        Ok(Drained::More)
    }

    fn send(&mut self, request: &Writer) -> Result<(), Error> {
        if request.is_oversized() {
            return Err(Error::Io {
                operation: "send on",
                object: self.family.name().to_owned(),
                source: io::Error::new(io::ErrorKind::InvalidInput, "the request is too long"),
            });
        }
        if self.stale {
            self.fd = connect(self.family, self.groups)
                .map_err(|source| self.failed("reopen", source))?;
            self.stale = false;
        }
        // What does not fit into the send buffer is refused, and sending says so.
        if request.len() > PLAIN_DATAGRAM {
            let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, 2 * request.len());
        }
        loop {
            match send(&self.fd, request.bytes(), SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(OsErrno::INTR) => {}
                Err(source) => {
                    self.stale = true;
                    return Err(self.failed("send on", source));
                }
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Error> {
        loop {
            match recv(&self.fd, self.received.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(OsErrno::INTR) => {}
                Err(source) => return Err(self.failed("receive from", source)),
            }
        }
    }

    fn datagram(&self, length: usize) -> &[u8] {
        self.received.get(..length).unwrap_or_default()
    }

    fn failed(&self, operation: &'static str, source: OsErrno) -> Error {
        Error::Io { operation, object: self.family.name().to_owned(), source: source.into() }
    }
}

/// What an acknowledgement says; 0 is yes.
const fn acknowledgement(code: i32) -> Result<(), Errno> {
    if code == 0 { Ok(()) } else { Err(Errno(code)) }
}

/// The answer to a question, or why there is none.
fn answer_of(message: Message<'_>) -> Result<Message<'_>, Errno> {
    message.errno().map_or(Ok(message), |code| Err(Errno(code)))
}

const fn until(is_over: bool) -> ControlFlow<()> {
    if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Whether `sequence` is one of those from `first` to `last`, which start over after the highest.
const fn is_between(first: u32, sequence: u32, last: u32) -> bool {
    sequence.wrapping_sub(first) <= last.wrapping_sub(first)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn connect(family: Family, groups: u32) -> rustix::io::Result<OwnedFd> {
    let fd = unbound(family)?;
    bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    set_receive_buffer(&fd, RECEIVE_BUFFER)?;
    Ok(fd)
}

fn listen(
    family: Family,
    subscription: &Subscription<'_>,
) -> rustix::io::Result<(OwnedFd, Granted)> {
    let fd = unbound(family)?;
    set_receive_buffer(&fd, subscription.receive_buffer)?;
    let filter = subscription.filter.is_some_and(|it| SockRef::from(&fd).attach_filter(it).is_ok());
    // The kernel doubles what it is asked for, for its own records (socket(7)).
    let receive_buffer = sockopt::socket_recv_buffer_size(&fd)? / 2;
    // Last, so that no event comes in past the filter.
    bind(&fd, &SocketAddrNetlink::new(0, subscription.groups))?;
    Ok((fd, Granted { receive_buffer, filter }))
}

fn unbound(family: Family) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, family.protocol())
}

/// Without `CAP_NET_ADMIN` in the first user namespace the forced size is refused; the plain one is
/// then cut to `net.core.rmem_max`, which still holds a batch's acknowledgements.
fn set_receive_buffer(fd: &OwnedFd, size: usize) -> rustix::io::Result<()> {
    if sockopt::set_socket_recv_buffer_size_force(fd, size).is_err() {
        sockopt::set_socket_recv_buffer_size(fd, size)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_between_others_also_where_they_start_over() {
        const MAX: u32 = u32::MAX;
        for (first, sequence, last, expected) in [
            (7, 7, 7, true),
            (7, 6, 7, false),
            (7, 8, 7, false),
            (1, 0, 3, false),
            (1, 3, 3, true),
            (1, 4, 3, false),
            (1, MAX, 3, false),
            (MAX, MAX, MAX, true),
            (MAX, 1, MAX, false),
            (MAX - 1, MAX - 2, 2, false),
            (MAX - 1, MAX - 1, 2, true),
            (MAX - 1, MAX, 2, true),
            (MAX - 1, 1, 2, true),
            (MAX - 1, 2, 2, true),
            (MAX - 1, 3, 2, false),
        ] {
            let found = is_between(first, sequence, last);
            assert_eq!(found, expected, "{sequence} from {first} to {last}");
        }
    }
}
