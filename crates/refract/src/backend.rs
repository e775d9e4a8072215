//! Where bans are kept: in sets of ipset, which a rule of iptables looks up, or in a table of nftables
//! with rules of its own. One set of verbs for both.
//!
//! Takes bans; passes them on to the backend that the firewall chose. It chooses none, and the rule
//! is not its business.

use std::{collections::HashMap, fmt, time::Duration};

use refract_kernel::{
    Error as KernelError,
    ban::{Ban, BanTarget, Banned, LONGEST_TIMEOUT},
    ban_sets::{BanSets, Installed, SetNames, Settings},
    nftables::NftTable,
};

use crate::error::Error;

/// The default timeout of sets that are only looked into.
const UNUSED_TIMEOUT: Duration = Duration::from_mins(1);
/// What is left of a ban that is about to run out: there is none for no time at all.
const SHORTEST: Duration = Duration::from_secs(1);

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ipset and iptables.
    Iptables,
    /// nftables.
    Nftables,
}

impl fmt::Display for Kind {
    /// As `--firewall` names it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// The bans of one backend, in the kernel.
#[derive(Debug)]
pub enum Backend {
    /// Of ipset.
    Sets(BanSets),
    /// Of nftables.
    Table(Box<NftTable>),
}

impl Backend {
    /// Which it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Sets(_) => Kind::Iptables,
            Self::Table(_) => Kind::Nftables,
        }
    }

    /// Makes everything exist that holds bans, keeping those that are in force.
    pub fn install(&mut self) -> Result<Vec<Installed>, KernelError> {
        match self {
            Self::Sets(sets) => sets.install(),
            Self::Table(table) => table.install().map(|report| report.sets),
        }
    }

    /// Bans each target for its time; one answer for each, in their order.
    pub fn ban(&mut self, bans: &[(BanTarget, Duration)]) -> Vec<Result<Banned, KernelError>> {
        match self {
            Self::Sets(sets) => sets.ban(bans),
            Self::Table(table) => table.ban(bans),
        }
    }

    /// Lifts bans just as [`Self::list`] gave them, and says for each whether it was still there.
    pub fn lift(&mut self, held: &[BanTarget]) -> Result<Vec<bool>, KernelError> {
        match self {
            Self::Sets(sets) => sets.lift(held),
            Self::Table(table) => table.lift(held),
        }
    }

    /// Every ban in force.
    pub fn list(&mut self) -> Result<Vec<Ban>, KernelError> {
        match self {
            Self::Sets(sets) => sets.list(),
            Self::Table(table) => table.list(),
        }
    }

    /// Whether each target is still banned, in their order.
    pub fn banned(&mut self, targets: &[BanTarget]) -> Result<Vec<bool>, KernelError> {
        match self {
            Self::Sets(sets) => sets.banned(targets),
            Self::Table(table) => table.banned(targets),
        }
    }

    /// The sets that are gone, or that would not take a ban. Cheap: made to be asked every second.
    pub fn missing(&mut self) -> Result<Vec<String>, KernelError> {
        match self {
            Self::Sets(sets) => sets.missing(),
            Self::Table(table) => table.missing(),
        }
    }
}

/// The bans that another backend is to be given so that it has all of `bans`, each with the time that
/// it has left, where it has those of `there`. A ban that is there for longer keeps that time; one
/// that never ends becomes the longest that there is.
#[must_use]
pub fn to_be_carried(bans: &[Ban], there: &[Ban]) -> Vec<(BanTarget, Duration)> {
    let left = |ban: &Ban| ban.remaining.unwrap_or(LONGEST_TIMEOUT).max(SHORTEST);
    let there: HashMap<BanTarget, Duration> =
        there.iter().map(|ban| (ban.target, left(ban))).collect();
    let bans = bans.iter().map(|ban| (ban.target, left(ban)));
    bans.filter(|(target, time)| there.get(target).is_none_or(|there| there < time)).collect()
}

/// All sets of ours, whatever flags the daemon runs with, to look into and to take from.
pub fn every_set() -> Result<BanSets, KernelError> {
    let names = SetNames::default();
    BanSets::open(Settings { names, flows: true, default_timeout: UNUSED_TIMEOUT })
}

/// Every backend that this kernel has, whatever flags the daemon runs with, to look into and to take
/// from; refused where it has none.
pub fn every_backend() -> Result<Vec<Backend>, Error> {
    let sets = known(every_set())?;
    let table = known(NftTable::open_as_found())?;
    if let (Err(ipset), Err(nftables)) = (&sets, &table) {
        let (iptables, nftables) = (ipset.to_string(), nftables.to_string());
        return Err(Error::NoFirewall { iptables, nftables });
    }
    let table = table.map(|table| Backend::Table(Box::new(table)));
    Ok(sets.map(Backend::Sets).into_iter().chain(table).collect())
}

/// That the kernel does not have a backend is an answer; any other error is one.
fn known<T>(opened: Result<T, KernelError>) -> Result<Result<T, KernelError>, KernelError> {
    match opened {
        Err(error) if !matches!(error, KernelError::Unsupported { .. }) => Err(error),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(last: u8, seconds: Option<u64>) -> Ban {
        let target = BanTarget::host([198, 51, 100, last].into());
        Ban { target, remaining: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn each_ban_goes_over_with_its_time_unless_it_is_there_for_longer() {
        let bans =
            [ban(1, Some(30)), ban(2, Some(30)), ban(3, Some(30)), ban(4, None), ban(5, Some(0))];
        let there = [ban(2, Some(40)), ban(3, Some(20)), ban(6, Some(9))];
        let carried: Vec<_> = to_be_carried(&bans, &there);
        let expected = [(1, 30), (3, 30), (4, LONGEST_TIMEOUT.as_secs()), (5, 1)];
        let expected =
            expected.map(|(last, seconds)| (ban(last, None).target, Duration::from_secs(seconds)));
        assert_eq!(carried, expected);
    }
}
