//! Everything that is ours, taken out of the kernel: the table of nftables, rules of either iptables,
//! then the sets.
//!
//! Takes the path of iptables as the daemon had it; makes lines that say what was removed. It removes
//! nothing that does not bear our name, and does not ask whether a daemon runs.

use std::path::Path;

use refract_kernel::{Error as KernelError, ban_sets::BanSets, nftables::NftTable};

use super::leftovers;
use crate::{backend::every_set, container, error::Error, privilege};

/// Removes refract's table, its rules, of either iptables, then its sets. What was removed is `said`,
/// also where something could not be.
pub fn uninstall(iptables: Option<&Path>, said: &mut Vec<String>) -> Result<(), Error> {
    match NftTable::open_as_found().and_then(|mut table| table.uninstall()) {
        // Its sets and chains went with it.
        Ok(deleted) => said.extend(deleted.first().map(|table| format!("deleted the {table}"))),
        Err(KernelError::Unsupported { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let out_of_reach =
        |obstacle| Error::RulesOutOfReach { obstacle, is_container: container::is_one() };
    if privilege::require_net_raw().is_ok() {
        remove_rules_and_sets(iptables, said).map_err(|error| match error {
            Error::Kernel(KernelError::SetsInUse { .. }) if !leftovers::is_there(iptables) => {
                out_of_reach("there is no iptables")
            }
            error => error,
        })?;
    } else {
        let has_sets = match every_set().map(|mut sets| has_sets(&mut sets)) {
            Ok(Ok(has_sets)) => has_sets,
            Err(KernelError::Unsupported { .. }) => false,
            Ok(Err(error)) | Err(error) => return Err(error.into()),
        };
        if has_sets {
            return Err(out_of_reach("CAP_NET_RAW is missing"));
        }
        // Without sets there can be no rule that names them, but there can be one against MPTCP.
        if leftovers::is_there(iptables) {
            said.push("did not look for rules of iptables: CAP_NET_RAW is missing".to_owned());
        }
    }
    if said.is_empty() {
        said.push("there is nothing of refract's in this network namespace".to_owned());
    }
    Ok(())
}

/// Whether there is any set of ours that a rule may look up.
pub(super) fn has_sets(sets: &mut BanSets) -> Result<bool, KernelError> {
    Ok(sets.missing()?.len() < ALL_SETS)
}

/// IPv4 and IPv6, sources and flows.
const ALL_SETS: usize = 4;

/// Removes the rules, of either iptables, then the sets.
pub(super) fn remove_rules_and_sets(
    iptables: Option<&Path>,
    said: &mut Vec<String>,
) -> Result<(), Error> {
    let rules = leftovers::remove_all(iptables, said);
    match every_set().map(|mut sets| sets.uninstall()) {
        Ok(Ok(sets)) => {
            said.extend(sets.into_iter().map(|set| format!("destroyed the set {set}")));
        }
        Err(KernelError::Unsupported { .. }) => {}
        Ok(Err(error)) | Err(error) => return rules.and(Err(error.into())),
    }
    // Where the sets are gone, so are the rules that named them.
    match rules {
        Err(Error::Kernel(KernelError::Program { .. })) => Ok(()),
        rules => rules,
    }
}
