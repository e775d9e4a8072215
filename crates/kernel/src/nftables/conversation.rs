//! nftables over netlink, about our one table: it is pictured, changed, and asked for elements.
//!
//! Takes changes; sends them as one transaction each, and gives the kernel's refusals. It keeps no
//! state and decides nothing: what the table is to hold is the business of others.

use std::collections::HashMap;

use super::{
    change::{Change, write_batch_begin, write_batch_end},
    design::Picture,
    sets::Key,
    wire::{
        Element, Set, read_chain, read_elements, read_generation, read_rule, read_set, read_table,
        write_get_element, write_get_generation, write_get_table, write_list_chains,
        write_list_elements, write_list_rules, write_list_sets,
    },
};
use crate::{
    error::{Errno, Error},
    netlink::{Dumped, Family, Socket},
    wire::{Message, Writer},
};

/// Questions a datagram. More bring nothing, and 256 acknowledgements overrun a default receive
/// buffer (measured).
const BATCH: usize = 100;
/// How often a list is read anew that changed meanwhile.
const READINGS: usize = 5;
/// How often a list of several parts is read until two agree.
const WALKS: usize = 10;
/// The kernel has no netfilter netlink at all.
const EPROTONOSUPPORT: Errno = Errno(93);

/// What became of a transaction.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All of it is done.
    Done,
    /// Nothing is done, because of these changes.
    Refused(Vec<(usize, Errno)>),
    /// Nothing is done, because of none of them.
    Void(Errno),
}

/// A netlink socket that speaks nftables.
#[derive(Debug)]
pub(crate) struct Conversation {
    socket: Socket,
    request: Writer,
}

impl Conversation {
    /// Opens the socket and makes sure that the kernel has nftables.
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = Socket::open(Family::Netfilter).map_err(|error| {
            if error.errno() == Some(EPROTONOSUPPORT) { no_nftables() } else { error }
        })?;
        let mut conversation = Self { socket, request: Writer::new() };
        conversation.generation()?;
        Ok(conversation)
    }

    /// The number that every change of any table raises.
    pub(crate) fn generation(&mut self) -> Result<u32, Error> {
        self.write(write_get_generation);
        usable(self.socket.answered(&self.request, read_generation)?)
    }

    /// Everything about our table but the bans. What a change meanwhile spoils is found out by the
    /// generation, which is read first.
    pub(crate) fn picture(&mut self) -> Result<Picture, Error> {
        let mut picture = Picture { generation: self.generation()?, ..Picture::default() };
        self.write(write_get_table);
        picture.table = match self.socket.answered(&self.request, read_table)? {
            Ok(Some(flags)) => Some(flags),
            Ok(None) => return Err(malformed("read the table")),
            Err(Errno::NOENT) => return Ok(picture),
            Err(source) => return Err(refused("read the table", source)),
        };
        picture.chains =
            self.list("list the chains of", write_list_chains, |message, chains| {
                chains.extend(read_chain(message));
            })?;
        picture.rules = self.list("list the rules of", write_list_rules, |message, rules| {
            rules.extend(read_rule(message));
        })?;
        picture.sets = self.sets()?;
        Ok(picture)
    }

    /// The sets of our table; none if there is no table.
    pub(crate) fn sets(&mut self) -> Result<Vec<Set>, Error> {
        self.list("list the sets of", write_list_sets, |message, sets| {
            sets.extend(read_set(message));
        })
    }

    /// The elements of a set, each once; none if there is no such set.
    ///
    /// A list of several parts is walked anew for each, and what the kernel passed over then is
    /// counted, not remembered (`nft_set_hash.c`, `nft_rhash_walk`): while it moves a growing set to
    /// more buckets, elements are passed over that were never listed (seen: 1,091 of 20,000). So it is
    /// read until two lists agree, a bounded number of times, and nothing that was listed is left out.
    pub(crate) fn elements(&mut self, set: &str) -> Result<Vec<Element>, Error> {
        let mut found: HashMap<Key, Element> = HashMap::new();
        let mut before = None;
        for _ in 0..WALKS {
            let parts = self.list(
                "list the elements of",
                |request, sequence| write_list_elements(request, sequence, set),
                |message, parts: &mut Vec<Vec<Element>>| {
                    let mut elements = Vec::new();
                    read_elements(message, &mut elements);
                    parts.push(elements);
                },
            )?;
            // A last part without elements ends the list.
            let is_one_part = parts.iter().filter(|part| !part.is_empty()).count() < 2;
            let listed: HashMap<_, _> =
                parts.into_iter().flatten().map(|element| (element.key, element)).collect();
            let count = listed.len();
            let known = found.len();
            found.extend(listed);
            if is_one_part || before == Some(count) && known == count && found.len() == count {
                break;
            }
            before = Some(count);
        }
        Ok(found.into_values().collect())
    }

    /// Makes all changes at once, or none. With a `generation`, `ERESTART` if that has passed.
    pub(crate) fn transact(
        &mut self,
        generation: Option<u32>,
        changes: &[Change<'_>],
    ) -> Result<Outcome, Error> {
        if changes.is_empty() {
            return Ok(Outcome::Done);
        }
        self.request.clear();
        let begin = self.socket.next_sequence();
        write_batch_begin(&mut self.request, begin, generation);
        for (index, change) in changes.iter().enumerate() {
            let sequence = self.socket.next_sequence();
            change.write(&mut self.request, sequence, index + 1 == changes.len());
        }
        let end = self.socket.next_sequence();
        write_batch_end(&mut self.request, end);
        let mut refusals = Vec::new();
        let answer = self.socket.transacted(&self.request, begin, |sequence, errno| {
            let index = sequence.wrapping_sub(begin).wrapping_sub(1);
            refusals.push((usize::try_from(index).unwrap_or(changes.len()), errno));
        })?;
        Ok(match answer {
            Err(errno) => Outcome::Void(errno),
            Ok(()) if refusals.is_empty() => Outcome::Done,
            Ok(()) => Outcome::Refused(refusals),
        })
    }

    /// Asks for one element after another, many in a datagram, and gives each answer with the index
    /// of its question.
    pub(crate) fn ask(
        &mut self,
        questions: &[(&str, Key)],
        mut answer: impl FnMut(usize, Result<(), Errno>),
    ) -> Result<(), Error> {
        for (part, some) in questions.chunks(BATCH).enumerate() {
            self.request.clear();
            let mut first = None;
            for (set, key) in some {
                let sequence = self.socket.next_sequence();
                first.get_or_insert(sequence);
                write_get_element(&mut self.request, sequence, set, *key);
            }
            let Some(first) = first else { return Ok(()) };
            self.socket.acknowledged_each(&self.request, first, |sequence, result| {
                let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(some.len());
                answer(part * BATCH + index, result);
            })?;
        }
        Ok(())
    }

    /// Reads a list until it stood still meanwhile, a bounded number of times.
    fn list<T>(
        &mut self,
        operation: &'static str,
        write: impl Fn(&mut Writer, u32),
        read: impl Fn(Message<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for _ in 0..READINGS {
            found.clear();
            self.write(&write);
            match self.socket.dumped(&self.request, |message| read(message, &mut found))? {
                Ok(Dumped::Whole) => break,
                Ok(Dumped::Interrupted) => {}
                Err(Errno::NOENT) => {
                    found.clear();
                    break;
                }
                Err(source) => return Err(refused(operation, source)),
            }
        }
        Ok(found)
    }

    /// Writes a datagram of one message.
    fn write(&mut self, message: impl FnOnce(&mut Writer, u32)) {
        let sequence = self.socket.next_sequence();
        self.request.clear();
        message(&mut self.request, sequence);
    }
}

fn usable(answer: Result<Option<u32>, Errno>) -> Result<u32, Error> {
    match answer {
        Ok(Some(generation)) => Ok(generation),
        Ok(None) => Err(malformed("speak nftables about")),
        // nfnetlink.c, `nfnetlink_rcv_msg`: no such subsystem, and no module that brings it.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Err(no_nftables()),
        Err(source) => Err(refused("speak nftables about", source)),
    }
}

fn no_nftables() -> Error {
    Error::Unsupported { feature: "nftables".to_owned(), module: "nf_tables".to_owned() }
}

fn refused(operation: &'static str, source: Errno) -> Error {
    Error::Refused { operation, object: "the table inet refract".to_owned(), source }
}

fn malformed(operation: &'static str) -> Error {
    Error::Malformed { operation, object: "the table inet refract".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nftables_is_told_with_the_remedy() {
        for errno in [Errno::INVAL, Errno::OPNOTSUPP] {
            assert_eq!(
                usable(Err(errno)).unwrap_err().to_string(),
                "the kernel has no nftables: load it with `modprobe nf_tables`, or use a kernel \
                 built with CONFIG_NF_TABLES"
            );
        }
        assert_eq!(usable(Ok(Some(7))).unwrap(), 7);
        assert!(matches!(usable(Ok(None)), Err(Error::Malformed { .. })));
        let error = usable(Err(Errno::PERM)).unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }
}
