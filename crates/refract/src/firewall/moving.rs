//! From one firewall to the other: bans first, then what enforced them is taken away; and from one
//! implementation of iptables to the other, which look the same sets up.
//!
//! Takes the backend of this run; copies into it what an earlier run left with the other, and removes
//! that. Both are in force meanwhile, so there is no unprotected moment. What fails is said and keeps
//! nothing from starting: where a ban could not be copied nothing is removed, so that the old rule
//! goes on dropping until its bans have run out.

use std::time::Duration;

use refract_kernel::{
    Error as KernelError,
    ban::{Ban, BanTarget, Banned},
    ban_sets::BanSets,
    nftables::NftTable,
    xtables::Variant,
};
use tracing::{info, warn};

use super::{
    leftovers,
    uninstall::{has_sets, remove_rules_and_sets},
};
use crate::{
    backend::{Kind, every_set, to_be_carried},
    cli::Flags,
    error::Error,
    privilege,
};

/// Copies the bans of a table of ours, if there is one, into the sets that are to take over; whether
/// the table may go.
pub(super) fn from_table(sets: &mut BanSets) -> bool {
    let Some(mut table) = there(Kind::Nftables, NftTable::open_as_found()) else { return false };
    let listed = table.list().and_then(|bans| Ok((bans, sets.list()?)));
    copy(Kind::Nftables, listed, |bans| sets.ban(bans))
}

/// Deletes the table of an earlier run, now that the rule and the sets are in place.
pub(super) fn remove_table() {
    let Some(mut table) = there(Kind::Nftables, NftTable::open_as_found()) else { return };
    match table.uninstall() {
        Ok(deleted) if deleted.is_empty() => {}
        Ok(_) => info!("deleted the table inet refract of an earlier run with nftables"),
        Err(error) => warn!(
            "{error}: the table of an earlier run with nftables stays and goes on dropping its \
             bans; `nft delete table inet refract` removes it"
        ),
    }
}

/// Removes the rules of an earlier run with the implementation of iptables that is not in force, now
/// that the rule is in place: they would go on dropping, on whatever ports they were made for.
pub(super) fn remove_rules_of_other(in_force: Variant) {
    let other = in_force.other();
    if let Err(error) = remove_rules_of(other) {
        warn!(
            "{error}: a rule that an earlier run may have left with iptables ({other}) cannot be \
             removed and would go on dropping; mend that program, then start refract again"
        );
    }
}

fn remove_rules_of(variant: Variant) -> Result<(), Error> {
    let mut said = Vec::new();
    let removed = leftovers::remove_of(variant, &mut said);
    for sentence in said {
        info!("of an earlier run with iptables ({variant}): {sentence}");
    }
    removed
}

/// Copies the bans of sets of ours, if there are any, into the table that has taken over, and removes
/// the rules and the sets.
pub(super) fn from_sets(flags: &Flags, table: &mut NftTable) {
    let Some(mut sets) = there(Kind::Iptables, every_set()) else { return };
    match has_sets(&mut sets) {
        Ok(true) => {}
        Ok(false) => return remove_rules_without_sets(),
        Err(error) => return warn!("{error}: whether an earlier run left sets is not known"),
    }
    let listed = sets.list().and_then(|bans| Ok((bans, table.list()?)));
    if !copy(Kind::Iptables, listed, |bans| table.ban(bans)) {
        return;
    }
    let mut said = Vec::new();
    let removed = remove_rules_and_sets(flags.iptables.as_deref(), &mut said);
    for sentence in said {
        info!("of an earlier run with iptables: {sentence}");
    }
    if let Err(error) = removed {
        warn!(
            "what an earlier run with iptables left cannot be removed ({error}); its bans were \
             copied, and its rule goes on dropping them: run `refract uninstall` where iptables \
             works, while no daemon runs"
        );
    }
}

/// Removes what an earlier run left with iptables where its sets are gone: a rule that looked one up
/// went with it or drops nobody, but the one against MPTCP looks up none.
fn remove_rules_without_sets() {
    if privilege::require_net_raw().is_err() {
        return;
    }
    for variant in Variant::ALL {
        if let Err(error) = remove_rules_of(variant) {
            info!("{error}: whether an earlier run left a rule against MPTCP is not known");
        }
    }
}

/// The other backend, if this kernel has it.
fn there<T>(kind: Kind, opened: Result<T, KernelError>) -> Option<T> {
    match opened {
        Ok(backend) => Some(backend),
        Err(KernelError::Unsupported { .. }) => None,
        Err(error) => {
            warn!("{error}: what an earlier run with {kind} left stays as it is");
            None
        }
    }
}

/// Copies bans that were `listed`, where they come from and where they go; `false` when that is not
/// known, or some were refused.
fn copy(
    from: Kind,
    listed: Result<(Vec<Ban>, Vec<Ban>), KernelError>,
    ban: impl FnOnce(&[(BanTarget, Duration)]) -> Vec<Result<Banned, KernelError>>,
) -> bool {
    let (bans, present) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            warn!("{error}: {}", stays(from));
            return false;
        }
    };
    let bans = to_be_carried(&bans, &present);
    if bans.is_empty() {
        return true;
    }
    let refused: Vec<_> = ban(&bans).into_iter().filter_map(Result::err).collect();
    info!(bans = bans.len() - refused.len(), "moved the bans of an earlier run with {from}");
    if let Some(error) = refused.first() {
        warn!(bans = refused.len(), "could not move all of them: {error}: {}", stays(from));
        return false;
    }
    true
}

fn stays(from: Kind) -> String {
    format!(
        "what an earlier run with {from} left stays in force until its bans have run out, or until \
         a start at which they can be moved"
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use refract_kernel::Errno;

    use super::*;

    fn refused() -> KernelError {
        KernelError::Refused { operation: "list", object: "bans".to_owned(), source: Errno(105) }
    }

    /// What is copied of two bans, one of which is there already, and whether that is all.
    fn copied(
        listed: Result<Vec<Ban>, KernelError>,
        answers: Vec<Result<Banned, KernelError>>,
    ) -> (Vec<BanTarget>, bool) {
        let mut taken = Vec::new();
        let listed = listed.map(|bans| (bans, vec![ban(1)]));
        let are_all_there = copy(Kind::Nftables, listed, |bans| {
            taken.extend(bans.iter().map(|(target, _)| *target));
            answers
        });
        (taken, are_all_there)
    }

    fn ban(last: u8) -> Ban {
        let target = BanTarget::host(Ipv4Addr::new(198, 51, 100, last).into());
        Ban { target, remaining: Some(Duration::from_mins(1)) }
    }

    fn taken(ban: Ban) -> Banned {
        Banned { target: ban.target, timeout: Duration::from_mins(1), clamped: false }
    }

    #[test]
    fn the_place_that_bans_come_from_may_go_only_when_all_are_at_the_other() {
        let (first, second) = (ban(1), ban(2));
        assert_eq!(copied(Ok(vec![first]), vec![]), (vec![], true));
        assert_eq!(
            copied(Ok(vec![first, second]), vec![Ok(taken(second))]),
            (vec![second.target], true)
        );
        assert_eq!(copied(Ok(vec![second]), vec![Err(refused())]), (vec![second.target], false));
        assert_eq!(copied(Err(refused()), vec![]), (vec![], false));
    }
}
