//! One netlink socket: the only place in this crate that sends and receives.
//!
//! Takes datagrams written with [`Writer`]; gives back acknowledgements, single answers, dumps and
//! events. Requests are serial: an answer is matched to its request by sequence number, and after
//! anything that could leave a late answer in the queue (a timeout, an overflow, a refusal to
//! receive) the socket is replaced before the next request, so that no answer is ever taken for
//! another's. It knows no family and retries nothing.

use std::{
    io,
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

/// A netlink socket with its buffers.
#[derive(Debug)]
pub struct Socket {
    family: Family,
    groups: u32,
    fd: OwnedFd,
    sequence: u32,
    stale: bool,
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
        Ok(Self {
            family,
            groups,
            fd,
            sequence: 0,
            stale: false,
            received: vec![0; DATAGRAM_CAPACITY],
        })
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
        let sequence = self.sequence;
        self.send(request)?;
        loop {
            let length = self.receive()?;
            for message in Messages::new(self.datagram(length)) {
                if message.sequence == sequence
                    && let Some(code) = message.errno()
                {
                    return Ok(if code == 0 { Ok(()) } else { Err(Errno(code)) });
                }
            }
        }
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
        let last = self.sequence;
        self.send(request)?;
        loop {
            let length = self.receive()?;
            for message in Messages::new(self.datagram(length)) {
                let Some(code) = message.errno() else { continue };
                if message.sequence < first || message.sequence > last {
                    continue;
                }
                if self.family == Family::Netfilter && Errno(code) == Errno::PERM {
                    (message.sequence..=last).for_each(|each| answer(each, Err(Errno::PERM)));
                    return Ok(());
                }
                answer(message.sequence, if code == 0 { Ok(()) } else { Err(Errno(code)) });
                if message.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one message without `NLM_F_ACK` whose answer is one message, and reads it with `read`.
    pub fn answered<T>(
        &mut self,
        request: &Writer,
        mut read: impl FnMut(Message<'_>) -> T,
    ) -> Result<Result<T, Errno>, Error> {
        let sequence = self.sequence;
        self.send(request)?;
        loop {
            let length = self.receive()?;
            for message in Messages::new(self.datagram(length)) {
                if message.sequence != sequence {
                    continue;
                }
                return Ok(match message.errno() {
                    Some(code) => Err(Errno(code)),
                    None => Ok(read(message)),
                });
            }
        }
    }

    /// Sends one `NLM_F_DUMP` request and hands every message of the answer to `each`.
    pub fn dumped(
        &mut self,
        request: &Writer,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Result<Dumped, Errno>, Error> {
        let sequence = self.sequence;
        self.send(request)?;
        let mut dumped = Dumped::Whole;
        loop {
            let length = self.receive()?;
            for message in Messages::new(self.datagram(length)) {
                if message.sequence != sequence {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    dumped = Dumped::Interrupted;
                }
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = message.errno().unwrap_or_default();
                        return Ok(if code == 0 { Ok(dumped) } else { Err(Errno(code)) });
                    }
                    _ => each(message),
                }
            }
        }
    }

    /// Hands every event that is waiting to `each`, without blocking. `Ok(false)` means that events
    /// were lost to an overflow (`ENOBUFS`): whoever listens must look for himself.
    pub fn events(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<bool, Error> {
        let mut whole = true;
        loop {
            match recv(&self.fd, self.received.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    for message in Messages::new(self.datagram(length)) {
                        each(message);
                    }
                }
                Err(OsErrno::AGAIN) => return Ok(whole),
                Err(OsErrno::NOBUFS) => whole = false,
                Err(OsErrno::INTR) => {}
                Err(source) => return Err(self.failed("receive from", source)),
            }
        }
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
                Err(source) => {
                    self.stale = true;
                    return Err(self.failed("receive from", source));
                }
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

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn connect(family: Family, groups: u32) -> rustix::io::Result<OwnedFd> {
    let fd = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        family.protocol(),
    )?;
    bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    // Without CAP_NET_ADMIN in the first user namespace the forced size is refused; the plain one
    // is then cut to net.core.rmem_max, which still holds a batch's acknowledgements.
    if sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER)?;
    }
    Ok(fd)
}
