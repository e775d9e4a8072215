//! At which of many local ends a client is connected: exact lookups, a datagram full of them at a
//! time.
//!
//! Takes local ends and a client's; gives what the kernel finds, as [`Observed`]. Nearly all of
//! such lookups are in vain, so a filter in the kernel keeps those answers away, and what is left is
//! taken without waiting. It resets nothing and decides nothing.

use std::net::SocketAddr;

use crate::{
    error::{Errno, Error},
    message_filter,
    netlink::{Family, Socket},
    sock_diag::{between, canonical},
    sock_diag_wire::{Observed, write_observe},
    wire::Writer,
};

/// Most questions in one datagram: their answers, half a kilobyte each with what the kernel adds,
/// fit into a default receive buffer several times.
const BATCH: usize = 32;

/// A `sock_diag` socket for lookups alone.
#[derive(Debug)]
pub struct Lookups {
    socket: Socket,
    request: Writer,
}

impl Lookups {
    /// Opens it in the network namespace of the calling thread. It takes no capability.
    pub fn open() -> Result<Self, Error> {
        let filter = message_filter::connections_and_troubles();
        let socket = Socket::open_with_filter(Family::SockDiag, &filter)?;
        Ok(Self { socket, request: Writer::new() })
    }

    /// Hands the connections of `remote` with one of `locals` to `each`, in the order of `locals` and
    /// in whatever state but listening. A local end is an address with the index of the network
    /// device that the socket is bound to, or 0, as for
    /// [`SockDiag::observe`](crate::sock_diag::SockDiag::observe). IPv4 may be given mapped or plain;
    /// ends of the other family are passed over.
    pub fn observe(
        &mut self,
        locals: impl IntoIterator<Item = (SocketAddr, u32)>,
        remote: SocketAddr,
        mut each: impl FnMut(Observed),
    ) -> Result<(), Error> {
        let remote = canonical(remote);
        let mut locals = locals
            .into_iter()
            .map(|(local, interface)| (canonical(local), interface))
            .filter(|(local, _)| local.is_ipv4() == remote.is_ipv4());
        loop {
            self.request.clear();
            let mut asked = None;
            for (local, interface) in locals.by_ref().take(BATCH) {
                let sequence = self.socket.next_sequence();
                asked.get_or_insert((sequence, local));
                write_observe(&mut self.request, sequence, local, remote, interface);
            }
            let Some((first, local)) = asked else { return Ok(()) };
            let mut refusal = Ok(());
            self.socket.answered_at_once(&self.request, first, |answer| match answer {
                // A listener, or anything else that the lookup fell through to, is nobody's.
                Ok(message) => {
                    if let Some(it) = Observed::read(message)
                        && it.connection.remote() == remote
                    {
                        each(it);
                    }
                }
                Err(Errno::NOENT) => {}
                Err(source) => refusal = Err(source),
            })?;
            refusal.map_err(|source| Error::Refused {
                operation: "look up",
                object: between(local, remote),
                source,
            })?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many answers reach us when nobody is there. It only asks, so it takes no namespace.
    fn answers(mut socket: Socket) -> usize {
        let mut request = Writer::new();
        let first = socket.next_sequence();
        let ends = ["127.0.0.1:1".parse().unwrap(), "127.0.0.2:1".parse().unwrap()];
        write_observe(&mut request, first, ends[0], ends[1], 0);
        let mut answers = 0;
        socket.answered_at_once(&request, first, |_| answers += 1).unwrap();
        answers
    }

    #[test]
    fn the_kernel_takes_the_filter_and_keeps_answers_in_vain_to_itself() {
        let filter = message_filter::connections_and_troubles();
        assert_eq!(answers(Socket::open(Family::SockDiag).unwrap()), 1);
        assert_eq!(answers(Socket::open_with_filter(Family::SockDiag, &filter).unwrap()), 0);
    }
}
