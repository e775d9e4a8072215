//! How the table becomes what it is to be, in one transaction, without letting anyone go.
//!
//! Takes a plan and what the kernel has; sends the changes, and again if somebody else's came
//! between. Bans in a set that will not do are carried over with the time they have left. What the
//! changes are is the business of [`design`](super::design).

use std::collections::BTreeSet;

use super::{
    NftTable,
    change::Change,
    conversation::Outcome,
    design::{Design, Picture, will_do},
    plan::{Standing, Strip},
    sets::BanSet,
    table_refused,
    wire::{Element, INTERVALS, MAPS},
};
use crate::{
    ban_set::{Carried, MAX_BANS, SetState},
    ban_sets::Installed,
    error::{Errno, Error},
};

/// How often a transaction is built anew because some rules, of whatever table, changed meanwhile.
/// The last one is sent all the same: where others never rest, they are hardly at our table.
const ATTEMPTS: usize = 10;

/// What installing found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How the table stood before.
    pub found: Standing,
    /// How the rule against MPTCP stands now: never [`Strip::Missing`].
    pub strip: Strip,
    /// The sets of bans that are there now, and what became of each.
    pub sets: Vec<Installed>,
    /// There was no table; now there is.
    pub made_table: bool,
}

/// A set that bears a name of ours and will not do.
#[derive(Debug)]
struct Misfit {
    set: BanSet,
    carried: Carried,
    elements: Vec<Element>,
}

impl NftTable {
    /// Installs, with these sets as well.
    pub(super) fn settle(&mut self, more: &BTreeSet<BanSet>) -> Result<Report, Error> {
        let mut before = None;
        let mut made_table = false;
        for attempt in 1..=ATTEMPTS {
            let picture = self.kernel.picture()?;
            if picture.is_owned() {
                return Err(Error::TableOwned);
            }
            let mut sets = self.plan.sets();
            sets.extend(more);
            sets.extend(self.sets_in_use(&picture, &sets)?);
            let mut misfits = self.misfits(&picture)?;
            // Also where nothing can be carried over: that is to be told.
            sets.extend(
                misfits.iter().filter(|it| it.carried != Carried::default()).map(|it| it.set),
            );
            let design = self.design(sets.clone());
            let standing = design.standing(&picture);
            let found = *before.get_or_insert_with(|| self.as_found(&picture));
            // A table that is asleep is woken alone: what is made in it meanwhile is not hooked.
            let carried: Vec<_> = misfits
                .iter_mut()
                .map(|it| (it.set.name(), std::mem::take(&mut it.elements)))
                .collect();
            let changes = if picture.is_dormant() {
                vec![Change::Table]
            } else if standing.wants_repair() {
                design.changes(&picture, &carried)
            } else {
                Vec::new()
            };
            let generation = (attempt < ATTEMPTS).then_some(picture.generation);
            match self.kernel.transact(generation, &changes)? {
                Outcome::Done if picture.is_dormant() => {}
                Outcome::Done => {
                    made_table |= picture.table.is_none();
                    self.known.clone_from(&sets);
                    let strip = match standing.strip {
                        Strip::Missing => Strip::InPlace,
                        strip => strip,
                    };
                    let sets = installed(&picture, &sets, &mut misfits);
                    return Ok(Report { found, strip, sets, made_table });
                }
                Outcome::Void(Errno::RESTART) => {}
                Outcome::Void(source) => return Err(table_refused("install", source)),
                Outcome::Refused(refusals) => {
                    let mut refusals = refusals
                        .into_iter()
                        .filter_map(|(index, errno)| Some((changes.get(index)?, errno)));
                    match refusals.next() {
                        Some((change, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOENT))
                            if design.is_strip(change) =>
                        {
                            self.can_strip = false;
                        }
                        Some((change, errno)) => return Err(change_refused(change, errno)),
                        None => return Err(table_refused("install", Errno::INVAL)),
                    }
                }
            }
        }
        Err(table_refused("install", Errno::RESTART))
    }

    /// The sets that are not among `planned` and hold bans.
    fn sets_in_use(
        &mut self,
        picture: &Picture,
        planned: &BTreeSet<BanSet>,
    ) -> Result<Vec<BanSet>, Error> {
        let mut in_use = Vec::new();
        for set in picture.good_sets().filter(|set| !planned.contains(set)) {
            if !self.bans_in(set)?.is_empty() {
                in_use.push(set);
            }
        }
        Ok(in_use)
    }

    /// The sets that bear a name of ours and will not do, with the bans that can be carried over.
    fn misfits(&mut self, picture: &Picture) -> Result<Vec<Misfit>, Error> {
        let mut misfits = Vec::new();
        for (role, set) in picture.ban_sets().filter(|(role, set)| !will_do(*role, set)) {
            let mut misfit =
                Misfit { set: role, carried: Carried::default(), elements: Vec::new() };
            // Keys of another type, and the ends of intervals, are nobody's address.
            let is_readable = (set.key_type, set.key_length) == role.key_type()
                && set.flags & (INTERVALS | MAPS) == 0;
            for element in self.kernel.elements(&set.name)? {
                let target = role.target(&element.key).filter(|_| is_readable);
                if target.is_none() || misfit.elements.len() >= MAX_BANS as usize {
                    misfit.carried.leave(target);
                    continue;
                }
                misfit.carried.entries += 1;
                let time = element.time.unwrap_or(self.default_timeout).max(1);
                misfit.elements.push(Element { time: Some(time), ..element });
            }
            misfits.push(misfit);
        }
        Ok(misfits)
    }

    /// How the table stands, with the sets that happen to be there.
    pub(super) fn as_found(&self, picture: &Picture) -> Standing {
        let mut sets = self.plan.sets();
        sets.extend(picture.good_sets());
        self.design(sets).standing(picture)
    }

    fn design(&self, sets: BTreeSet<BanSet>) -> Design {
        Design::new(&self.plan, sets, self.can_strip, self.default_timeout)
    }
}

/// What became of each of the sets that are there now.
fn installed(picture: &Picture, sets: &BTreeSet<BanSet>, misfits: &mut [Misfit]) -> Vec<Installed> {
    let kept: BTreeSet<_> = picture.good_sets().collect();
    sets.iter()
        .map(|set| {
            let misfit = misfits.iter_mut().find(|misfit| misfit.set == *set);
            let state = match misfit {
                Some(misfit) => SetState::Replaced(std::mem::take(&mut misfit.carried)),
                None if kept.contains(set) => SetState::Kept,
                None => SetState::Created,
            };
            Installed { set: set.name(), state }
        })
        .collect()
}

/// Why the table could not be made. The kernel brings modules for what it lacks by itself, so what
/// it does not know then is not there.
fn change_refused(change: &Change<'_>, errno: Errno) -> Error {
    let unsupported = |feature: &str, module: &str| Error::Unsupported {
        feature: feature.to_owned(),
        module: module.to_owned(),
    };
    match (change, errno) {
        (
            Change::Table | Change::Chain(_),
            Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT,
        ) => unsupported("nftables for both families at once", "nf_tables_inet"),
        (Change::Rule(_), Errno::NOENT) => unsupported("counter in nftables", "nft_counter"),
        _ => table_refused("install", errno),
    }
}
