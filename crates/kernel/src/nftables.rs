//! The other ban backend: one nftables table of ours, `inet refract`, and nothing but ours.
//!
//! Takes a plan, targets and durations; makes the table with its sets, chains and rules in one
//! transaction, and elements with timeouts in the sets; says for each ban whether it is in force.
//! Every verb may be repeated. No program is run. It knows no users and reads no clock, and when the
//! table is to be looked at is the business of others.
//!
//! | in `inet refract` | what it is |
//! |---|---|
//! | `set banned_users`, `banned_users6` | single addresses |
//! | `set banned_networks_24`, `banned_networks6_64`, … | networks of so many bits, found by the masked source |
//! | `set banned_flows`, `banned_flows6` | UDP flows: source address and source port |
//! | `chain banned` | drops what comes from a source in one of the sets, and strips MPTCP from the rest |
//! | `chain input`, or `chain forward` | hooked before the usual filters: sends what comes to a protected port to `banned` |
//!
//! Nothing in other tables is looked at: whatever they accept, a packet also passes our chain.

mod change;
mod conversation;
mod design;
mod install;
mod plan;
mod rule;
mod sets;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::{
    change::Change,
    conversation::{Conversation, Outcome},
    design::Picture,
    sets::BanSet,
    wire::Element,
};
pub use self::{
    install::Report,
    plan::{Hook, NftPlan, Standing, State, Strip},
};
use crate::{
    ban::{Answer, Ban, BanTarget, Banned, outcomes, plan, whole_seconds},
    error::{Errno, Error},
};

/// The table, as messages name it.
const TABLE: &str = "the table inet refract";
/// Bans a transaction.
const BATCH: usize = 100;

/// Our table in the kernel.
#[derive(Debug)]
pub struct NftTable {
    kernel: Conversation,
    plan: NftPlan,
    /// Milliseconds.
    default_timeout: u64,
    /// The sets of bans that were there when last looked.
    known: BTreeSet<BanSet>,
    /// The kernel has not refused the rule against MPTCP.
    can_strip: bool,
}

impl NftTable {
    /// Opens a socket in the network namespace of the calling thread and makes sure that the kernel
    /// has nftables. Nothing is created yet.
    pub fn open(plan: NftPlan) -> Result<Self, Error> {
        plan.check()?;
        Self::with_plan(plan)
    }

    /// As [`Self::open`], to look into a table that is there and to take from it: without a plan
    /// nothing can be installed.
    pub fn open_as_found() -> Result<Self, Error> {
        Self::with_plan(NftPlan {
            protocols: Vec::new(),
            ports: Vec::new(),
            hook: Hook::Input,
            strip_mptcp: false,
            ipv6_prefix: 128,
            flows: false,
            default_timeout: Duration::ZERO,
        })
    }

    fn with_plan(plan: NftPlan) -> Result<Self, Error> {
        // An entry that nobody gave a time gets at least the shortest one.
        let seconds = whole_seconds(plan.default_timeout).unwrap_or(1);
        let mut table = Self {
            kernel: Conversation::open()?,
            plan,
            default_timeout: milliseconds(seconds),
            known: BTreeSet::new(),
            can_strip: true,
        };
        table.look_for_sets()?;
        Ok(table)
    }

    /// Makes the table what it is to be, in one transaction, and keeps the bans that are in force.
    /// Where nothing is amiss, nothing is changed. Sets that hold bans and are not planned (of another
    /// prefix) stay, with their rule; empty ones go.
    pub fn install(&mut self) -> Result<Report, Error> {
        self.plan.check()?;
        self.settle(&BTreeSet::new())
    }

    /// How the table stands. A few milliseconds at most, whatever the number of bans.
    pub fn check(&mut self) -> Result<Standing, Error> {
        let picture = self.kernel.picture()?;
        Ok(self.as_found(&picture))
    }

    /// Bans each target for its time; a ban that is there already gets the new time. One answer
    /// for each, in their order. A single ban is a question and a transaction.
    pub fn ban(&mut self, bans: &[(BanTarget, Duration)]) -> Vec<Result<Banned, Error>> {
        let planned: Vec<_> = bans.iter().map(|(target, time)| plan(*target, *time)).collect();
        let wanted: Vec<_> = planned
            .iter()
            .flatten()
            .map(|(ban, seconds)| Addition {
                set: BanSet::of(ban.target),
                element: Element {
                    key: BanSet::key(ban.target),
                    time: Some(milliseconds(*seconds)),
                },
            })
            .collect();
        let mut answers = vec![None; wanted.len()];
        let conversation =
            self.make_sets_for(&wanted).and_then(|()| self.add(&wanted, &mut answers));
        outcomes(planned, answers, &conversation, |target, errno| refused("ban", target, errno))
    }

    /// Lifts a ban and says whether there was one. An address also lifts the networks that cover
    /// it and the flows from it; a network lifts all that it holds.
    pub fn unban(&mut self, target: BanTarget) -> Result<bool, Error> {
        let target = target.canonical().map_err(|source| Error::Unbannable { target, source })?;
        let mut held: Vec<_> = self.list()?.into_iter().map(|ban| ban.target).collect();
        held.retain(|held| target.lifts(*held));
        Ok(self.lift(&held)?.contains(&true))
    }

    /// Lifts bans just as [`Self::list`] gave them, and says for each whether it was still there.
    pub fn lift(&mut self, held: &[BanTarget]) -> Result<Vec<bool>, Error> {
        let mut lifted = Vec::with_capacity(held.len());
        for some in held.chunks(BATCH) {
            let doomed: Vec<_> = some
                .iter()
                .map(|target| {
                    let element = Element { key: BanSet::key(*target), time: None };
                    (BanSet::of(*target).name(), element)
                })
                .collect();
            let mut answers = vec![true; some.len()];
            loop {
                let (places, changes): (Vec<_>, Vec<_>) = doomed
                    .iter()
                    .enumerate()
                    .filter(|(place, _)| answers.get(*place) == Some(&true))
                    .map(|(place, (set, element))| (place, Change::Delete(set, element)))
                    .unzip();
                let refusals = match self.kernel.transact(None, &changes)? {
                    Outcome::Done => break,
                    Outcome::Refused(refusals) => refusals,
                    Outcome::Void(source) => return Err(table_refused("unban from", source)),
                };
                for (index, errno) in refusals {
                    let Some(place) = places.get(index).copied() else {
                        return Err(table_refused("unban from", errno));
                    };
                    match (answers.get_mut(place), errno, some.get(place)) {
                        // It ran out, or somebody else was faster.
                        (Some(answer), Errno::NOENT, _) => *answer = false,
                        (_, errno, Some(target)) => return Err(refused("unban", *target, errno)),
                        (_, errno, None) => return Err(table_refused("unban from", errno)),
                    }
                }
            }
            lifted.extend(answers);
        }
        Ok(lifted)
    }

    /// Every ban in force. A set that does not exist has none.
    pub fn list(&mut self) -> Result<Vec<Ban>, Error> {
        let mut bans = Vec::new();
        for set in self.look_for_sets()? {
            bans.extend(self.bans_in(set)?);
        }
        Ok(bans)
    }

    /// Whether each target is still banned, in their order. A network is looked for as it was
    /// banned, an address also in the networks that cover it.
    pub fn banned(&mut self, targets: &[BanTarget]) -> Result<Vec<bool>, Error> {
        let mut there = vec![false; targets.len()];
        let names: BTreeMap<_, _> = self.known.iter().map(|set| (*set, set.name())).collect();
        let (mut places, mut questions) = (Vec::new(), Vec::new());
        for (place, target) in targets.iter().enumerate() {
            let Ok(target) = target.canonical() else { continue };
            for (set, name) in names.iter().filter(|(set, _)| set.may_hold(target)) {
                places.push((place, target));
                questions.push((name.as_str(), set.key_in(target)));
            }
        }
        let mut failure = None;
        self.kernel.ask(&questions, |index, answer| {
            let Some(&(place, target)) = places.get(index) else { return };
            match answer {
                Ok(()) => {
                    if let Some(there) = there.get_mut::<usize>(place) {
                        *there = true;
                    }
                }
                Err(Errno::NOENT) => {}
                Err(errno) => failure = Some((target, errno)),
            }
        })?;
        match failure {
            None => Ok(there),
            Some((target, errno)) => Err(refused("look for", target, errno)),
        }
    }

    /// The wanted sets that are gone, or that would not take a ban because somebody put another
    /// in their place. Cheap at any size: made to be asked every second.
    pub fn missing(&mut self) -> Result<Vec<String>, Error> {
        let there = self.look_for_sets()?;
        Ok(self.plan.sets().difference(&there).map(|set| set.name()).collect())
    }

    /// Deletes the table if `installed` says that it was made then: for a start that is given up
    /// after all.
    pub fn take_back(&mut self, installed: &Report) -> Result<(), Error> {
        if installed.made_table {
            self.uninstall()?;
        }
        Ok(())
    }

    /// Deletes our table, whatever is in it, and says what there was.
    pub fn uninstall(&mut self) -> Result<Vec<String>, Error> {
        let picture = self.kernel.picture()?;
        if picture.table.is_none() {
            return Ok(Vec::new());
        }
        self.known.clear();
        match self.kernel.transact(None, &[Change::DeleteTable])? {
            Outcome::Done => {}
            Outcome::Refused(refusals) => match refusals.first() {
                None | Some((_, Errno::NOENT)) => return Ok(Vec::new()),
                Some((_, source)) => return Err(table_refused("delete", *source)),
            },
            Outcome::Void(source) => return Err(table_refused("delete", source)),
        }
        let sets = picture.sets.iter().map(|set| format!("set inet refract {}", set.name));
        let chains =
            picture.chains.iter().map(|chain| format!("chain inet refract {}", chain.name));
        Ok(std::iter::once("table inet refract".to_owned()).chain(sets).chain(chains).collect())
    }

    /// The set that holds bans of this target.
    #[must_use]
    pub fn set_of(&self, target: BanTarget) -> String {
        BanSet::of(target.canonical().unwrap_or(target)).name()
    }

    /// Makes the sets of networks that these bans are the first of. Without a table, the kernel's
    /// refusal of the bans tells enough.
    fn make_sets_for(&mut self, bans: &[Addition]) -> Result<(), Error> {
        let is_new = |ban: &&Addition| {
            matches!(ban.set, BanSet::Networks(_) | BanSet::Networks6(_))
                && !self.known.contains(&ban.set)
        };
        let new: BTreeSet<_> = bans.iter().filter(is_new).map(|ban| ban.set).collect();
        if new.is_empty() || self.plan.check().is_err() || self.kernel.sets()?.is_empty() {
            return Ok(());
        }
        self.settle(&new).map(drop)
    }

    /// Adds each element and notes for each what the kernel answered. An error leaves those without
    /// an answer whose fate is unknown.
    fn add(&mut self, wanted: &[Addition], answers: &mut [Answer]) -> Result<(), Error> {
        wanted
            .chunks(BATCH)
            .zip(answers.chunks_mut(BATCH))
            .try_for_each(|(some, answers)| self.add_at_once(some, answers))
    }

    /// One transaction for all, and again without those that it was refused for: a ban that cannot
    /// be made holds up no other.
    ///
    /// Before Linux 6.12 an element that is there silently keeps its time, so it is replaced: it is
    /// added if it ran out meanwhile, deleted, and added, with no packet in between. Which are there
    /// is asked first (a microsecond), because to refuse a transaction takes the kernel a grace
    /// period (8 ms, measured).
    fn add_at_once(&mut self, wanted: &[Addition], answers: &mut [Answer]) -> Result<(), Error> {
        let names: Vec<_> = wanted.iter().map(|it| it.set.name()).collect();
        let mut is_there = vec![false; wanted.len()];
        let questions: Vec<_> =
            wanted.iter().zip(&names).map(|(it, name)| (name.as_str(), it.element.key)).collect();
        self.kernel.ask(&questions, |place, answer| {
            if let Some(is_there) = is_there.get_mut(place) {
                *is_there = answer.is_ok();
            }
        })?;
        loop {
            let (mut places, mut changes) = (Vec::new(), Vec::new());
            let waiting = wanted.iter().zip(&names).zip(answers.iter().zip(&is_there)).enumerate();
            for (place, ((Addition { element, .. }, name), (answer, is_there))) in waiting {
                if answer.is_some() {
                    continue;
                }
                if *is_there {
                    let one = std::slice::from_ref(element);
                    changes.extend([
                        Change::Add(name, one),
                        Change::Delete(name, element),
                        Change::Add(name, one),
                    ]);
                } else {
                    changes.push(Change::AddNew(name, element));
                }
                places.resize(changes.len(), place);
            }
            let refusals = match self.kernel.transact(None, &changes)? {
                Outcome::Refused(refusals) => refusals,
                Outcome::Done => {
                    for answer in answers {
                        answer.get_or_insert(Ok(()));
                    }
                    return Ok(());
                }
                Outcome::Void(errno) => {
                    for answer in answers {
                        answer.get_or_insert(Err(errno));
                    }
                    return Ok(());
                }
            };
            for (index, errno) in refusals {
                let Some(place) = places.get(index).copied() else {
                    return Err(table_refused("ban in", errno));
                };
                match (is_there.get_mut(place), answers.get_mut(place)) {
                    (Some(is_there @ false), _) if errno == Errno::EXIST => *is_there = true,
                    // The first refusal of its changes says why; the others follow from it.
                    (_, Some(answer)) => {
                        answer.get_or_insert(Err(errno));
                    }
                    (_, None) => return Err(table_refused("ban in", errno)),
                }
            }
        }
    }

    /// The bans in one of our sets, each once.
    fn bans_in(&mut self, set: BanSet) -> Result<Vec<Ban>, Error> {
        let elements = self.kernel.elements(&set.name())?;
        let ban = |element: Element| {
            let remaining = element.time.map(Duration::from_millis);
            Some(Ban { target: set.target(&element.key)?, remaining })
        };
        Ok(elements.into_iter().filter_map(ban).collect())
    }

    /// The sets of bans that are there and will do.
    fn look_for_sets(&mut self) -> Result<BTreeSet<BanSet>, Error> {
        let picture = Picture { sets: self.kernel.sets()?, ..Picture::default() };
        self.known = picture.good_sets().collect();
        Ok(self.known.clone())
    }
}

/// One element to be added.
#[derive(Debug)]
struct Addition {
    set: BanSet,
    element: Element,
}

fn milliseconds(seconds: u32) -> u64 {
    u64::from(seconds) * 1000
}

fn refused(operation: &'static str, target: BanTarget, errno: Errno) -> Error {
    let set = format!("inet refract {}", BanSet::of(target).name());
    match errno {
        Errno::NOENT => Error::SetMissing { set },
        Errno::NFILE => Error::SetFull { list: format!("nft list set {set}"), set, target },
        source => Error::Refused { operation, object: format!("{target} in {set}"), source },
    }
}

pub(super) fn table_refused(operation: &'static str, source: Errno) -> Error {
    Error::Refused { operation, object: TABLE.to_owned(), source }
}
