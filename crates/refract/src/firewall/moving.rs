//! From one firewall to the other: bans first, then what enforced them is taken away; and from one
//! implementation of iptables to the other, which look the same sets up.
//!
//! Takes the backend of this run; copies into it what an earlier run left with the other, and removes
//! that. Both are in force meanwhile, so there is no unprotected moment. What fails is said and keeps
//! nothing from starting: the old rule then goes on dropping, and its bans run out by themselves.

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
};

/// Copies the bans of a table of ours, if there is one, into the sets that are to take over.
pub(super) fn from_table(sets: &mut BanSets) {
    let Some(mut table) = there(Kind::Nftables, NftTable::open_as_found()) else { return };
    let listed = table.list().and_then(|bans| Ok((bans, sets.list()?)));
    copy(Kind::Nftables, listed, |bans| sets.ban(bans));
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
    let mut said = Vec::new();
    let removed = leftovers::remove_of(other, &mut said);
    for sentence in said {
        info!("of an earlier run with iptables ({other}): {sentence}");
    }
    if let Err(error) = removed {
        warn!(
            "{error}: a rule that an earlier run may have left with iptables ({other}) cannot be \
             removed and would go on dropping; mend that program, then start refract again"
        );
    }
}

/// Copies the bans of sets of ours, if there are any, into the table that has taken over, and removes
/// the rules and the sets.
pub(super) fn from_sets(flags: &Flags, table: &mut NftTable) {
    let Some(mut sets) = there(Kind::Iptables, every_set()) else { return };
    match has_sets(&mut sets) {
        Ok(true) => {}
        Ok(false) => return,
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
/// known.
fn copy(
    from: Kind,
    listed: Result<(Vec<Ban>, Vec<Ban>), KernelError>,
    ban: impl FnOnce(&[(BanTarget, Duration)]) -> Vec<Result<Banned, KernelError>>,
) -> bool {
    let (bans, present) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            warn!("{error}: the bans of an earlier run with {from} stay where they are");
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
        warn!(bans = refused.len(), "could not move all of them: {error}");
    }
    true
}
