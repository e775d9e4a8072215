//! Rules of ours that iptables has, of either implementation: found, counted, removed.
//!
//! Takes where to look; makes lines that say what was removed. Rules of ours are known whatever their
//! ports and in every chain, so it takes no settings. It removes nothing that does not bear our name,
//! and has the kernel make no table by looking. Sets are not its business.

use std::path::{Path, PathBuf};

use refract_kernel::{
    Error as KernelError,
    nftables::NftTable,
    xtables::{ChainName, ProgramFailure, Protocol, RulePlan, Variant, Xtables},
};

use crate::{
    error::Error,
    rule_keeper::{RuleKeeperConfig, RuleSets},
};

/// Removes every rule of ours, of either implementation. What was removed is `said`; one program that
/// is broken does not keep the others from what they can do.
pub(super) fn remove_all(iptables: Option<&Path>, said: &mut Vec<String>) -> Result<(), Error> {
    // Where there is no iptables there is no rule of its making.
    let chosen = remove(said, |plan| find(iptables, plan));
    // The rule may have been put there by another variant than the one that is the default now.
    let variants = Variant::ALL.map(|variant| remove_of(variant, said));
    variants.into_iter().fold(chosen, Result::and)
}

/// Removes every rule of ours of one implementation, as far as its programs are there.
pub(super) fn remove_of(variant: Variant, said: &mut Vec<String>) -> Result<(), Error> {
    if !may_be_used(variant) {
        return Ok(());
    }
    remove(said, |plan| Xtables::find_variant(variant, plan))
}

/// How many rules of ours one implementation has, and with which program they were found.
pub(crate) fn count_of(variant: Variant) -> Result<Option<(usize, PathBuf)>, Error> {
    if !may_be_used(variant) {
        return Ok(None);
    }
    let Some(xtables) = Xtables::find_variant(variant, plan(RuleSets::Lasting)?)? else {
        return Ok(None);
    };
    let rules = xtables.count()? + xtables.count_strip()?;
    Ok(Some((rules, xtables.path().to_owned())))
}

/// Whether there is an iptables, whatever it can do.
pub(super) fn is_there(iptables: Option<&Path>) -> bool {
    plan(RuleSets::Lasting).is_ok_and(|plan| !matches!(find(iptables, plan), Ok(None)))
}

fn find(iptables: Option<&Path>, plan: RulePlan) -> Result<Option<Xtables>, KernelError> {
    match Xtables::find(iptables, plan) {
        Err(KernelError::Program { source: ProgramFailure::NotFound, .. }) => Ok(None),
        found => found.map(Some),
    }
}

fn remove(
    said: &mut Vec<String>,
    find: impl Fn(RulePlan) -> Result<Option<Xtables>, KernelError>,
) -> Result<(), Error> {
    let lasting = remove_for(RuleSets::Lasting, said, &find);
    let temporary = remove_for(RuleSets::Temporary, said, &find);
    lasting.and(temporary)
}

fn remove_for(
    sets: RuleSets,
    said: &mut Vec<String>,
    find: impl Fn(RulePlan) -> Result<Option<Xtables>, KernelError>,
) -> Result<(), Error> {
    let Some(xtables) = find(plan(sets)?)? else { return Ok(()) };
    let program = xtables.path().display();
    if xtables.count()? > 0 {
        xtables.remove()?;
        said.push(format!("removed the rule from {program}"));
    }
    if sets == RuleSets::Temporary {
        return Ok(());
    }
    match xtables.remove_strip() {
        Ok(0) => {}
        Ok(_) => said.push(format!("removed the rule against MPTCP from {program}")),
        // Nothing else depends on it, so the rest is not left behind because of it.
        Err(error) => said.push(error.to_string()),
    }
    Ok(())
}

/// A plan for `sets`; whatever else it says, the same rules are ours.
fn plan(sets: RuleSets) -> Result<RulePlan, Error> {
    let config = RuleKeeperConfig {
        sets,
        protocols: vec![Protocol::Tcp],
        ports: vec![443..=443],
        strip_mptcp: true,
        chain: ChainName::default(),
        iptables: None,
    };
    Ok(config.plan()?)
}

/// Whether an implementation may have rules in this network namespace, asked without its programs.
fn may_be_used(variant: Variant) -> bool {
    match variant {
        Variant::NfTables => {
            !matches!(NftTable::open_as_found(), Err(KernelError::Unsupported { .. }))
        }
        Variant::Legacy => legacy_is_used(),
    }
}

/// Whether legacy iptables has a table of ours in this network namespace. Where that cannot be told,
/// its program is left alone: it would make one by merely looking.
fn legacy_is_used() -> bool {
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .any(|tables| tables.lines().any(|table| table == "filter" || table == "mangle"))
}
