//! One of our sets: what it has to be, and how it becomes that without letting anyone go.
//!
//! Takes a role and a name; makes the set of that name exist with the type and the options of the
//! role. A set that is already there is kept if it will do, else replaced by one that holds its
//! bans with the time they had left. A rule that names the set stays valid and never meets an
//! empty one; where the kernel cannot do that, nothing is touched and the caller is told.

use crate::{
    ban::{BanTarget, bits},
    error::{Errno, Error},
    ipset::IpSets,
    ipset_wire::{Entry, Header, NewSet, Operation, SetFamily, Verb},
};

/// Entries that each set can hold.
pub const MAX_BANS: u32 = 1 << 20;
/// Ends the names of [`SetNames::temporary`](crate::ban_sets::SetNames::temporary).
pub(crate) const TEMPORARY: &str = ".tmp";
/// Ends the name of the set that is to take another's place.
pub(crate) const SPARE: &str = ".new";

/// Buckets of a new set. From 1,024 a set grows while an add waits for it: stalls of up to 12 ms
/// in 20,000 adds; from 16,384 none over 0.2 ms (measured), for 100 KiB.
const HASH_SIZE: u32 = 1 << 14;
/// How many entries that could not be carried over are named.
const NAMED_LEFT_BEHIND: usize = 8;

/// What became of one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetState {
    /// There was none; now there is.
    Created,
    /// It was there and as it has to be; its bans are in force.
    Kept,
    /// It was there with other options or of another type, and was replaced.
    Replaced(Carried),
    /// It is of another type or family and rules name it, so it was not touched. To take its place
    /// without a gap: install [`SetNames::temporary`](crate::ban_sets::SetNames::temporary), copy
    /// its bans there, make rules for those sets, remove the rules that name this one, install
    /// again, make our rules, remove the temporary ones, and uninstall the temporary sets.
    InUse {
        /// Its type, `hash:net` and so on.
        type_name: String,
        /// Its family.
        family: SetFamily,
        /// How many rules and sets name it.
        references: u32,
    },
}

/// What came over from another set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bans that are now in our set.
    pub entries: usize,
    /// Entries that could not be carried over.
    pub left_behind: usize,
    /// The first of those that an address can name, at most eight.
    pub examples: Vec<BanTarget>,
}

impl Carried {
    pub(crate) fn leave(&mut self, target: Option<BanTarget>) {
        self.left_behind += 1;
        if self.examples.len() < NAMED_LEFT_BEHIND {
            self.examples.extend(target);
        }
    }
}

/// What a set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetRole {
    /// IPv4 addresses.
    Users,
    /// IPv6 networks.
    Users6,
    /// IPv4 UDP flows.
    Flows,
    /// IPv6 UDP flows.
    Flows6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Good,
    OtherOptions,
    OtherKind,
}

impl SetRole {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Users, Self::Users6, Self::Flows, Self::Flows6];

    /// The role of the set that holds bans of `target`.
    pub(crate) fn of(target: BanTarget) -> Self {
        match target {
            BanTarget::Network { address, .. } if address.is_ipv4() => Self::Users,
            BanTarget::Network { .. } => Self::Users6,
            BanTarget::Flow { address, .. } if address.is_ipv4() => Self::Flows,
            BanTarget::Flow { .. } => Self::Flows6,
        }
    }

    /// Type, family, and the revision to ask for: all that we need is in the first, and those of
    /// Linux 3.19 are listed by every `ipset` in use, while newer ones are refused by older tools.
    fn kind(self) -> (&'static str, SetFamily, u8) {
        match self {
            Self::Users => ("hash:ip", SetFamily::Inet, 4),
            Self::Users6 => ("hash:net", SetFamily::Inet6, 6),
            Self::Flows => ("hash:ip,port", SetFamily::Inet, 5),
            Self::Flows6 => ("hash:ip,port", SetFamily::Inet6, 5),
        }
    }

    fn judge(self, header: &Header) -> Fit {
        let (type_name, family, _) = self.kind();
        if header.type_name != type_name || header.family != family {
            Fit::OtherKind
        } else if header.timeout.is_some()
            && header.max_elements >= MAX_BANS
            && header.hash_size >= HASH_SIZE
            && !header.masked
            && !header.force_add
        {
            Fit::Good
        } else {
            Fit::OtherOptions
        }
    }

    /// A target that only a set of this type and family can take. Broadcast and multicast: no
    /// packet comes from there, so there is never such a ban.
    pub(crate) fn probe(self) -> BanTarget {
        let four = [255, 255, 255, 255].into();
        let six = [0xff00, 0, 0, 0, 0, 0, 0, 0].into();
        match self {
            Self::Users => BanTarget::Network { address: four, prefix: 32 },
            Self::Users6 => BanTarget::Network { address: six, prefix: 64 },
            Self::Flows => BanTarget::Flow { address: four, port: 9 },
            Self::Flows6 => BanTarget::Flow { address: six, port: 9 },
        }
    }
}

/// Makes the set `name` exist and be as its role demands.
///
/// `default_timeout`, seconds, is that of entries made without one. What an interrupted run left
/// under temporary names is cleared away, unless a rule names it.
pub(crate) fn install(
    sets: &mut IpSets,
    role: SetRole,
    name: &str,
    default_timeout: u32,
) -> Result<SetState, Error> {
    let spare = format!("{name}{SPARE}");
    clear_leftovers(sets, role, name, &spare)?;
    let existed = match create(sets, role, name, default_timeout) {
        Ok(()) => false,
        Err(error) if error.errno() == Some(Errno::EXIST) => true,
        Err(error) => return Err(error),
    };
    let header = sets.header(name)?.ok_or_else(|| missing(name))?;
    Ok(match role.judge(&header) {
        Fit::Good if existed => SetState::Kept,
        Fit::Good => SetState::Created,
        Fit::OtherOptions => {
            let carried = fill_spare(sets, role, name, &spare, &header, default_timeout)?;
            sets.swap(name, &spare)?;
            // Whoever lists the set just now keeps it from being destroyed: then the next install
            // does it.
            destroy(sets, &spare)?;
            SetState::Replaced(carried)
        }
        Fit::OtherKind if header.references > 0 => SetState::InUse {
            type_name: header.type_name,
            family: header.family,
            references: header.references,
        },
        Fit::OtherKind => {
            let carried = fill_spare(sets, role, name, &spare, &header, default_timeout)?;
            sets.destroy(name)?;
            sets.rename(&spare, name)?;
            SetState::Replaced(carried)
        }
    })
}

/// Copies the entries of the set `from` into the sets that `to` names for them. An entry that is
/// already there keeps its time; one that never ends in `from` never ends.
pub(crate) fn carry<'a>(
    sets: &mut IpSets,
    from: &str,
    to: impl Fn(BanTarget) -> Option<&'a str>,
    default_timeout: u32,
) -> Result<Carried, Error> {
    let entries = sets.entries(from)?.ok_or_else(|| missing(from))?;
    let mut carried = Carried::default();
    let mut operations = Vec::with_capacity(entries.len());
    for Entry { target, timeout } in entries {
        let fitting = target
            .and_then(|target| target.canonical().ok())
            .filter(|target| is_held_as_one_entry(*target))
            .and_then(|target| Some((target, to(target)?)));
        match fitting {
            Some((target, set)) => operations.push(Operation {
                verb: Verb::AddNew,
                set,
                target,
                timeout: Some(timeout.unwrap_or(default_timeout)),
            }),
            None => carried.leave(target),
        }
    }
    let mut failure = None;
    sets.each(operations.iter().copied(), |index, answer| match answer {
        Ok(()) | Err(Errno::IPSET_EXIST) => carried.entries += 1,
        Err(Errno::IPSET_HASH_FULL) => {
            carried.leave(operations.get(index).map(|operation| operation.target));
        }
        Err(errno) => failure = Some(errno),
    })?;
    match failure {
        None => Ok(carried),
        Some(source) => {
            Err(Error::Refused { operation: "copy the bans of", object: from.to_owned(), source })
        }
    }
}

/// What came of destroying a set.
pub(crate) enum Destroyed {
    /// It is gone.
    Yes,
    /// There was none.
    Absent,
    /// A rule names it, so it is still there.
    InUse,
}

/// Destroys a set with all that is in it.
pub(crate) fn destroy(sets: &mut IpSets, name: &str) -> Result<Destroyed, Error> {
    match sets.destroy(name) {
        Ok(()) => Ok(Destroyed::Yes),
        Err(error) => match error.errno() {
            Some(Errno::NOENT) => Ok(Destroyed::Absent),
            Some(Errno::IPSET_BUSY) => Ok(Destroyed::InUse),
            _ => Err(error),
        },
    }
}

/// Clears away what a run left that ended between two steps of a replacement.
fn clear_leftovers(sets: &mut IpSets, role: SetRole, name: &str, spare: &str) -> Result<(), Error> {
    destroy(sets, &format!("{name}{TEMPORARY}"))?;
    let Some(header) = sets.header(spare)? else { return Ok(()) };
    // It ended between "destroy" and "rename": the spare holds the bans.
    if role.judge(&header) == Fit::Good && sets.header(name)?.is_none() {
        return sets.rename(spare, name);
    }
    match destroy(sets, spare)? {
        Destroyed::InUse => Err(Error::SetsInUse { sets: vec![spare.to_owned()] }),
        Destroyed::Yes | Destroyed::Absent => Ok(()),
    }
}

fn fill_spare(
    sets: &mut IpSets,
    role: SetRole,
    name: &str,
    spare: &str,
    header: &Header,
    default_timeout: u32,
) -> Result<Carried, Error> {
    create(sets, role, spare, default_timeout)?;
    if header.masked {
        // Its entries stand for networks that they do not tell.
        let left_behind = usize::try_from(header.entries).unwrap_or(usize::MAX);
        return Ok(Carried { left_behind, ..Carried::default() });
    }
    let fits = |target| (SetRole::of(target) == role).then_some(spare);
    carry(sets, name, fits, default_timeout)
}

fn create(sets: &mut IpSets, role: SetRole, name: &str, default_timeout: u32) -> Result<(), Error> {
    let (type_name, family, revision) = role.kind();
    let known = sets.revisions(type_name, family)?;
    sets.create(
        name,
        &NewSet {
            type_name,
            revision: revision.clamp(*known.start(), *known.end()),
            family,
            timeout: default_timeout,
            hash_size: HASH_SIZE,
            max_elements: MAX_BANS,
        },
    )
}

/// An IPv4 network would become an entry for each of its addresses.
fn is_held_as_one_entry(target: BanTarget) -> bool {
    match target {
        BanTarget::Network { address, prefix } => address.is_ipv6() || prefix == bits(address),
        BanTarget::Flow { .. } => true,
    }
}

fn missing(set: &str) -> Error {
    Error::SetMissing { set: set.to_owned() }
}
