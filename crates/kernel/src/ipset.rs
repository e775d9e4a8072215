//! ipset over netlink: sets are created, read, swapped and destroyed, entries added and tested.
//!
//! Takes set names and operations; gives the kernel's answers. It keeps no state and knows no set
//! of ours: which sets there are to be is the business of [`ban_sets`](crate::ban_sets).

use std::ops::RangeInclusive;

use crate::{
    error::{Errno, Error},
    ipset_wire::{
        Entry, Header, NewSet, Operation, PROTOCOL, SetFamily, read_entries, read_header,
        read_protocol, read_revisions, write_create, write_destroy, write_list, write_protocol,
        write_rename, write_swap, write_type,
    },
    netlink::{Family, Socket},
    wire::Writer,
};

/// Messages a datagram. More bring nothing, and 256 acknowledgements overrun a default receive
/// buffer (measured).
const BATCH: usize = 100;
/// The kernel has no netfilter netlink at all.
const EPROTONOSUPPORT: Errno = Errno(93);

/// A netlink socket that speaks ipset.
#[derive(Debug)]
pub struct IpSets {
    socket: Socket,
    request: Writer,
}

impl IpSets {
    /// Opens the socket and makes sure that the kernel has ipset and speaks our protocol.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(Family::Netfilter).map_err(|error| {
            if error.errno() == Some(EPROTONOSUPPORT) { no_ipset() } else { error }
        })?;
        let mut sets = Self { socket, request: Writer::new() };
        sets.write(write_protocol);
        let answer = sets.socket.answered(&sets.request, read_protocol)?;
        usable_protocol(answer).map(|()| sets)
    }

    /// The revisions of a set type that the kernel knows.
    pub fn revisions(
        &mut self,
        type_name: &str,
        family: SetFamily,
    ) -> Result<RangeInclusive<u8>, Error> {
        self.write(|request, sequence| write_type(request, sequence, type_name, family));
        match self.socket.answered(&self.request, read_revisions)? {
            Ok(Some(revisions)) => Ok(revisions),
            Ok(None) => Err(malformed("ask for the set type", type_name)),
            Err(Errno::IPSET_FIND_TYPE) => Err(Error::Unsupported {
                feature: format!("set type {type_name}"),
                module: format!("ip_set_{}", type_name.replace(':', "_").replace(',', "")),
            }),
            Err(source) => Err(refused("ask for the set type", type_name, source)),
        }
    }

    /// Creates a set; a set of that name, whatever it is, is [`Errno::EXIST`].
    pub fn create(&mut self, name: &str, new: &NewSet<'_>) -> Result<(), Error> {
        self.write(|request, sequence| write_create(request, sequence, name, new));
        self.acknowledged("create", name)
    }

    /// Destroys a set; [`Errno::IPSET_BUSY`] while a rule names it.
    pub fn destroy(&mut self, name: &str) -> Result<(), Error> {
        self.write(|request, sequence| write_destroy(request, sequence, name));
        self.acknowledged("destroy", name)
    }

    /// Gives a set that no rule names another name.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        self.write(|request, sequence| write_rename(request, sequence, from, to));
        self.acknowledged("rename", from)
    }

    /// Exchanges the contents of two sets of one type and family at once. Rules keep naming what
    /// they named.
    pub fn swap(&mut self, one: &str, other: &str) -> Result<(), Error> {
        self.write(|request, sequence| write_swap(request, sequence, one, other));
        self.acknowledged("swap", one)
    }

    /// What a set says of itself; `None` if there is none. Walks the whole set (4 ms at 260,000
    /// entries): not for a poll.
    pub fn header(&mut self, name: &str) -> Result<Option<Header>, Error> {
        self.write(|request, sequence| write_list(request, sequence, name, true));
        let mut header = None;
        let answer = self.socket.dumped(&self.request, |message| {
            if header.is_none() {
                header = read_header(message);
            }
        })?;
        match answer {
            Ok(_) => header.map(Some).ok_or_else(|| malformed("read the header of", name)),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(refused("read the header of", name, source)),
        }
    }

    /// Every entry of a set with the time it has left; `None` if there is no such set.
    pub fn entries(&mut self, name: &str) -> Result<Option<Vec<Entry>>, Error> {
        self.write(|request, sequence| write_list(request, sequence, name, false));
        let mut entries = Vec::new();
        let answer =
            self.socket.dumped(&self.request, |message| read_entries(message, &mut entries))?;
        match answer {
            Ok(_) => Ok(Some(entries)),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(refused("list", name, source)),
        }
    }

    /// Does one thing after another, many in a datagram, and gives each answer with the index of
    /// its operation. An error leaves those without an answer whose fate is unknown.
    pub fn each<'a>(
        &mut self,
        operations: impl IntoIterator<Item = Operation<'a>>,
        mut answer: impl FnMut(usize, Result<(), Errno>),
    ) -> Result<(), Error> {
        let mut operations = operations.into_iter();
        let mut sent = 0;
        loop {
            self.request.clear();
            let mut first = None;
            let mut count = 0;
            for operation in operations.by_ref().take(BATCH) {
                let sequence = self.socket.next_sequence();
                first.get_or_insert(sequence);
                operation.write(&mut self.request, sequence);
                count += 1;
            }
            let Some(first) = first else { return Ok(()) };
            self.socket.acknowledged_each(&self.request, first, |sequence, result| {
                let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(count);
                answer(sent + index, result);
            })?;
            sent += count;
        }
    }

    /// Writes a datagram of one message.
    fn write(&mut self, message: impl FnOnce(&mut Writer, u32)) {
        let sequence = self.socket.next_sequence();
        self.request.clear();
        message(&mut self.request, sequence);
    }

    fn acknowledged(&mut self, operation: &'static str, name: &str) -> Result<(), Error> {
        self.socket.acknowledged(&self.request)?.map_err(|source| refused(operation, name, source))
    }
}

fn usable_protocol(answer: Result<Option<RangeInclusive<u8>>, Errno>) -> Result<(), Error> {
    match answer {
        Ok(Some(spoken)) if spoken.contains(&PROTOCOL) => Ok(()),
        Ok(Some(_)) => Err(refused("speak to", "ipset", Errno::IPSET_PROTOCOL)),
        Ok(None) => Err(malformed("speak to", "ipset")),
        // nfnetlink.c, `nfnetlink_rcv_msg`: no such subsystem, and no module that brings it.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Err(no_ipset()),
        Err(source) => Err(refused("speak to", "ipset", source)),
    }
}

fn no_ipset() -> Error {
    Error::Unsupported { feature: "ipset".to_owned(), module: "ip_set".to_owned() }
}

fn refused(operation: &'static str, object: &str, source: Errno) -> Error {
    Error::Refused { operation, object: object.to_owned(), source }
}

fn malformed(operation: &'static str, object: &str) -> Error {
    Error::Malformed { operation, object: object.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ipset_is_told_with_the_remedy() {
        for errno in [Errno::INVAL, Errno::OPNOTSUPP] {
            let error = usable_protocol(Err(errno)).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the kernel has no ipset: load it with `modprobe ip_set`, or use a kernel built \
                 with CONFIG_IP_SET"
            );
        }
    }

    #[test]
    fn only_a_kernel_that_speaks_our_protocol_will_do() {
        assert!(usable_protocol(Ok(Some(6..=7))).is_ok());
        assert!(usable_protocol(Ok(Some(7..=9))).is_ok());
        for other in [6..=6, 8..=9] {
            let error = usable_protocol(Ok(Some(other))).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::IPSET_PROTOCOL));
        }
        assert!(matches!(usable_protocol(Ok(None)), Err(Error::Malformed { .. })));
        let error = usable_protocol(Err(Errno::PERM)).unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }
}
