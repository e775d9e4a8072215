//! Hears when the kernel frees a TCP connection on a protected port, and what had moved on it.
//!
//! Takes the local ports; gives each [`Closed`] connection with its cookie and its last counters,
//! some 10 µs after the server closed it. `TIME_WAIT` does not delay it. A reset that the server has
//! not noticed yet does, and so does a FIN that nobody acknowledges. Connections that open are not
//! heard: nobody announces them. It takes no capability. It keeps no connections; whoever is told
//! that events were lost has to look at those that he keeps.

use std::{
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    error::Error,
    message_filter,
    netlink::{Family, Granted, Socket, Subscription},
    sock_filter::ConnectionFilter,
};
pub use crate::{netlink::Drained, sock_diag_wire::Closed};

/// `SKNLGRP_INET_TCP_DESTROY` (1) and `SKNLGRP_INET6_TCP_DESTROY` (3) as bits of the bind mask,
/// `linux/sock_diag.h`. IPv4 clients of a dual-stack listener are in the latter.
const TCP_DESTROY_GROUPS: u32 = 0b101;
/// Receive buffer asked for, bytes: 26,000 closes.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;
/// Events that one call hands over at most, about 3 ms of work.
const EVENTS_A_CALL: usize = 4096;

/// A subscription to the ends of TCP connections.
#[derive(Debug)]
pub struct CloseEvents {
    socket: Socket,
    granted: Granted,
    ports: Vec<RangeInclusive<u16>>,
}

impl CloseEvents {
    /// Subscribes, for connections whose local port is in one of `ports`, in the network namespace
    /// of the calling thread.
    ///
    /// The kernel has one filter for 256 port ranges; more are told apart here, and so are all where
    /// it does not take the filter: [`Self::is_filtered_by_kernel`].
    pub fn subscribe(ports: &[RangeInclusive<u16>]) -> Result<Self, Error> {
        Self::with_receive_buffer(ports, RECEIVE_BUFFER)
    }

    /// As [`Self::subscribe`], with another wish for the receive buffer, bytes. Only a test wants a
    /// small one.
    pub fn with_receive_buffer(
        ports: &[RangeInclusive<u16>],
        receive_buffer: usize,
    ) -> Result<Self, Error> {
        let filter = message_filter::closes_on(ports);
        let wishes =
            Subscription { groups: TCP_DESTROY_GROUPS, receive_buffer, filter: filter.as_deref() };
        let (socket, granted) = Socket::subscribe(Family::SockDiag, &wishes)?;
        Ok(Self { socket, granted, ports: ports.to_vec() })
    }

    /// The receive buffer that the kernel granted, bytes; an event takes 640 of them (measured). The
    /// 16 MiB that are asked for take `CAP_NET_ADMIN` in the first user namespace. Otherwise it is
    /// `net.core.rmem_max` at most, on older kernels 208 KiB: there [`Drained::Lost`] comes after a
    /// burst of some three hundred closes.
    #[must_use]
    pub fn receive_buffer(&self) -> usize {
        self.granted.receive_buffer
    }

    /// The receive buffer is as large as [`Self::subscribe`] wants it.
    #[must_use]
    pub fn has_whole_buffer(&self) -> bool {
        self.granted.receive_buffer >= RECEIVE_BUFFER
    }

    /// The kernel keeps the closes of other ports away, so that they take no room in the buffer.
    #[must_use]
    pub fn is_filtered_by_kernel(&self) -> bool {
        self.granted.filter
    }

    /// Hands the connections that were closed to `each`, 4,096 at most, without blocking.
    pub fn drain(&mut self, mut each: impl FnMut(Closed)) -> Result<Drained, Error> {
        let filter = ConnectionFilter::on(&self.ports);
        self.socket.some_events(EVENTS_A_CALL, |message| {
            if let Some(closed) = Closed::read(message)
                && filter.has_port(closed.local.port())
            {
                each(closed);
            }
        })
    }
}

/// Readable when an event waits, and after an overflow.
impl AsFd for CloseEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
