//! The ban backend: four ipsets of ours, and nothing but ours.
//!
//! Takes targets and durations; makes entries with timeouts in the kernel, and says for each
//! whether it is in force. Every verb may be repeated. It knows no users and no rule: that a rule
//! matches the sets is the business of others, but a rule that does stays valid through all that
//! happens here.
//!
//! | set | type | holds |
//! |---|---|---|
//! | [`BANNED_USERS`] | `hash:ip`, inet | IPv4 addresses |
//! | [`BANNED_USERS6`] | `hash:net`, inet6 | IPv6 networks, matched by each of their addresses |
//! | [`BANNED_FLOWS`], [`BANNED_FLOWS6`] | `hash:ip,port` | UDP flows, for a rule that matches `src,src` |

use std::time::Duration;

pub use crate::ban::{Ban, Banned, SHORTEST_IPV4_PREFIX};
use crate::{
    ban::{BanTarget, outcomes, plan, whole_seconds},
    ban_set::{self, Carried, Destroyed, SPARE, SetRole, SetState, TEMPORARY},
    error::{Errno, Error},
    ipset::IpSets,
    ipset_wire::{Operation, Verb},
};

/// The set of banned IPv4 addresses.
pub const BANNED_USERS: &str = "refract_banned_users";
/// The set of banned IPv6 networks.
pub const BANNED_USERS6: &str = "refract_banned_users6";
/// The set of banned IPv4 UDP flows.
pub const BANNED_FLOWS: &str = "refract_banned_flows";
/// The set of banned IPv6 UDP flows.
pub const BANNED_FLOWS6: &str = "refract_banned_flows6";
/// The names of the sets. The kernel takes 31 bytes; installing needs four more than the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetNames {
    /// IPv4 addresses.
    pub users: String,
    /// IPv6 networks.
    pub users6: String,
    /// IPv4 UDP flows.
    pub flows: String,
    /// IPv6 UDP flows.
    pub flows6: String,
}

impl Default for SetNames {
    fn default() -> Self {
        Self {
            users: BANNED_USERS.to_owned(),
            users6: BANNED_USERS6.to_owned(),
            flows: BANNED_FLOWS.to_owned(),
            flows6: BANNED_FLOWS6.to_owned(),
        }
    }
}

impl SetNames {
    /// The names of sets that hold the bans while a foreign set is in the way of ours.
    #[must_use]
    pub fn temporary() -> Self {
        let Self { users, users6, flows, flows6 } = Self::default();
        Self {
            users: users + TEMPORARY,
            users6: users6 + TEMPORARY,
            flows: flows + TEMPORARY,
            flows6: flows6 + TEMPORARY,
        }
    }

    fn of(&self, role: SetRole) -> &str {
        match role {
            SetRole::Users => &self.users,
            SetRole::Users6 => &self.users6,
            SetRole::Flows => &self.flows,
            SetRole::Flows6 => &self.flows6,
        }
    }
}

/// What an instance is to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The names of its sets.
    pub names: SetNames,
    /// UDP is enforced: the two sets of flows are wanted too.
    pub flows: bool,
    /// How long an entry lasts that was made without a timeout: by an operator's `ipset add`, or
    /// in a set without timeouts that is carried over.
    pub default_timeout: Duration,
}

/// What installing found and did about one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The set.
    pub set: String,
    /// What became of it.
    pub state: SetState,
}

/// Our sets in the kernel.
#[derive(Debug)]
pub struct BanSets {
    sets: IpSets,
    names: SetNames,
    flows: bool,
    default_timeout: u32,
}

impl BanSets {
    /// Opens a socket and makes sure that the kernel has ipset. Nothing is created yet.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let Settings { names, flows, default_timeout } = settings;
        // An entry that nobody gave a time gets at least the shortest one.
        let default_timeout = whole_seconds(default_timeout).unwrap_or(1);
        Ok(Self { sets: IpSets::open()?, names, flows, default_timeout })
    }

    /// Makes every wanted set exist and be as it has to be, keeping the bans that are in force.
    ///
    /// What an interrupted run left under temporary names is cleared away, unless a rule names it.
    pub fn install(&mut self) -> Result<Vec<Installed>, Error> {
        let mut installed = Vec::new();
        for role in self.roles() {
            let set = self.names.of(*role).to_owned();
            let state = ban_set::install(&mut self.sets, *role, &set, self.default_timeout)?;
            installed.push(Installed { set, state });
        }
        Ok(installed)
    }

    /// Bans each target for its time; a ban that is there already gets the new time. One answer
    /// for each, in their order. A single ban is one system call each way.
    pub fn ban(&mut self, bans: &[(BanTarget, Duration)]) -> Vec<Result<Banned, Error>> {
        let planned: Vec<_> = bans.iter().map(|(target, time)| plan(*target, *time)).collect();
        let names = &self.names;
        let operations = planned.iter().flatten().map(|(ban, seconds)| Operation {
            verb: Verb::Add,
            set: names.of(SetRole::of(ban.target)),
            target: ban.target,
            timeout: Some(*seconds),
        });
        let mut answers = vec![None; planned.len()];
        let conversation = self.sets.each(operations, |index, answer| {
            if let Some(slot) = answers.get_mut(index) {
                *slot = Some(answer);
            }
        });
        outcomes(planned, answers, &conversation, |target, errno| {
            refused("ban", target, names.of(SetRole::of(target)), errno)
        })
    }

    /// Lifts a ban and says whether there was one. An address also lifts the networks that cover
    /// it and the flows from it; a network lifts all that it holds.
    pub fn unban(&mut self, target: BanTarget) -> Result<bool, Error> {
        let target = target.canonical().map_err(|source| Error::Unbannable { target, source })?;
        let held: Vec<BanTarget> = self
            .entries()?
            .into_iter()
            .map(|(_, ban)| ban.target)
            .filter(|held| target.lifts(*held))
            .collect();
        Ok(self.lift(&held)?.contains(&true))
    }

    /// Lifts bans just as [`Self::list`] gave them, and says for each whether it was still there.
    pub fn lift(&mut self, held: &[BanTarget]) -> Result<Vec<bool>, Error> {
        let names = &self.names;
        let operations = held.iter().map(|target| Operation {
            verb: Verb::Delete,
            set: names.of(SetRole::of(*target)),
            target: *target,
            timeout: None,
        });
        let (mut lifted, mut failure) = (vec![false; held.len()], None);
        self.sets.each(operations, |index, answer| match answer {
            Ok(()) => {
                if let Some(lifted) = lifted.get_mut(index) {
                    *lifted = true;
                }
            }
            // It ran out, or somebody else was faster.
            Err(Errno::IPSET_EXIST | Errno::NOENT) => {}
            Err(errno) => failure = held.get(index).map(|failed| (*failed, errno)),
        })?;
        match failure {
            None => Ok(lifted),
            Some((target, errno)) => {
                Err(refused("unban", target, names.of(SetRole::of(target)), errno))
            }
        }
    }

    /// Every ban in force. A set that does not exist has none.
    pub fn list(&mut self) -> Result<Vec<Ban>, Error> {
        Ok(self.entries()?.into_iter().map(|(_, ban)| ban).collect())
    }

    /// Whether each target is still banned, in their order. A network is looked for as it was
    /// banned; of an IPv4 network the first address is looked for.
    pub fn banned(&mut self, targets: &[BanTarget]) -> Result<Vec<bool>, Error> {
        let names = &self.names;
        let mut there = vec![false; targets.len()];
        // The place in `targets` goes with each, because what cannot be banned is not asked for.
        let asked: Vec<_> = (0..)
            .zip(targets)
            .filter_map(|(place, target)| Some((place, target.canonical().ok()?)))
            .collect();
        let operations = asked.iter().map(|(_, target)| Operation {
            verb: Verb::Test,
            set: names.of(SetRole::of(*target)),
            target: *target,
            timeout: None,
        });
        let mut failure = None;
        self.sets.each(operations, |index, answer| {
            let Some(&(place, target)) = asked.get(index) else { return };
            match answer {
                Ok(()) => {
                    if let Some(there) = there.get_mut::<usize>(place) {
                        *there = true;
                    }
                }
                Err(Errno::IPSET_EXIST | Errno::NOENT) => {}
                Err(errno) => failure = Some((target, errno)),
            }
        })?;
        match failure {
            None => Ok(there),
            Some((target, errno)) => Err(refused("look for", target, self.set_of(target), errno)),
        }
    }

    /// The wanted sets that are gone, or that would not take a ban because somebody put another
    /// in their place. Cheap at any size: made to be asked every second.
    pub fn missing(&mut self) -> Result<Vec<String>, Error> {
        let names = &self.names;
        let roles = self.roles();
        // A set that can be asked to lift such a ban can take one. (A test would not do: it passes
        // over a set without timeouts.)
        let operations = roles.iter().map(|role| Operation {
            verb: Verb::Delete,
            set: names.of(*role),
            target: role.probe(),
            timeout: Some(1),
        });
        let mut missing = Vec::new();
        let mut failure = None;
        self.sets.each(operations, |index, answer| {
            let Some(role) = roles.get(index) else { return };
            match answer {
                Ok(()) | Err(Errno::IPSET_EXIST) => {}
                Err(Errno::NOENT | Errno(4096..)) => missing.push(names.of(*role).to_owned()),
                Err(errno) => failure = Some((*role, errno)),
            }
        })?;
        match failure {
            None => Ok(missing),
            Some((role, source)) => Err(Error::Refused {
                operation: "look for the set",
                object: names.of(role).to_owned(),
                source,
            }),
        }
    }

    /// Copies the bans of any set into ours, as far as ours can hold them. A ban that is in ours
    /// keeps its time.
    pub fn copy_from(&mut self, set: &str) -> Result<Carried, Error> {
        let (names, wanted) = (&self.names, self.roles());
        let ours = |target| {
            let role = SetRole::of(target);
            wanted.contains(&role).then(|| names.of(role))
        };
        ban_set::carry(&mut self.sets, set, ours, self.default_timeout)
    }

    /// Destroys the sets that `installed` says were made, and are not in use since: for a start that
    /// is given up after all.
    pub fn take_back(&mut self, installed: &[Installed]) -> Result<(), Error> {
        for Installed { set, state } in installed {
            if *state == SetState::Created {
                ban_set::destroy(&mut self.sets, set)?;
            }
        }
        Ok(())
    }

    /// Destroys our sets, whatever is in them, and says which there were. Those in use by a rule
    /// are left and named in the error; the others are destroyed all the same.
    pub fn uninstall(&mut self) -> Result<Vec<String>, Error> {
        let mut destroyed = Vec::new();
        let mut in_use = Vec::new();
        for role in SetRole::ALL {
            for ending in ["", SPARE, TEMPORARY] {
                let name = format!("{}{ending}", self.names.of(role));
                match ban_set::destroy(&mut self.sets, &name)? {
                    Destroyed::Yes => destroyed.push(name),
                    Destroyed::InUse => in_use.push(name),
                    Destroyed::Absent => {}
                }
            }
        }
        if in_use.is_empty() { Ok(destroyed) } else { Err(Error::SetsInUse { sets: in_use }) }
    }

    /// The set that holds bans of this target.
    #[must_use]
    pub fn set_of(&self, target: BanTarget) -> &str {
        self.names.of(SetRole::of(target))
    }

    fn entries(&mut self) -> Result<Vec<(SetRole, Ban)>, Error> {
        let mut bans = Vec::new();
        for role in SetRole::ALL {
            let entries = self.sets.entries(self.names.of(role))?.unwrap_or_default();
            bans.extend(entries.iter().filter_map(|entry| {
                let seconds = entry.timeout.filter(|seconds| *seconds > 0);
                let remaining = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                Some((role, Ban { target: entry.target?, remaining }))
            }));
        }
        Ok(bans)
    }

    fn roles(&self) -> &'static [SetRole] {
        if self.flows { &SetRole::ALL } else { &[SetRole::Users, SetRole::Users6] }
    }
}

fn refused(operation: &'static str, target: BanTarget, set: &str, errno: Errno) -> Error {
    match errno {
        Errno::NOENT => Error::SetMissing { set: set.to_owned() },
        Errno::IPSET_HASH_FULL => {
            Error::SetFull { set: set.to_owned(), list: format!("ipset list {set}"), target }
        }
        source => Error::Refused { operation, object: format!("{target} in {set}"), source },
    }
}
