//! The table that nftables has for us: put in place and kept there, without any program.
//!
//! Takes the settings, the news that rules were changed, and a tick a second; looks at the table and
//! makes of it what it is to be, in one transaction. The hot thread does that itself: it is a few
//! messages, and only when somebody changed rules. It bans nobody, except to put bans back into a
//! table that vanished.

use std::time::{Duration, Instant};

use refract_kernel::{
    nftables::{Hook, NftPlan, NftTable, Report, State, Strip},
    xtables::ChainName,
};
use tracing::{info, warn};

use super::{
    SUBFLOWS, Trouble, make_missing_sets, rule::keeper_config, sets_were_remade, tell_set,
};
use crate::{
    backend::Backend,
    cli::{FirewallFlag, Flags},
    enforce::Enforcer,
    error::Error,
};

/// Changes are announced; the rules are still looked at this often.
const SLOW_CHECK: Duration = Duration::from_mins(1);

/// What the table is to be under these flags.
pub(crate) fn table_plan(flags: &Flags) -> Result<NftPlan, Error> {
    let config = keeper_config(flags);
    Ok(NftPlan {
        protocols: config.protocols,
        ports: config.ports,
        hook: hook_of(&flags.chain)?,
        strip_mptcp: flags.strip_mptcp,
        ipv6_prefix: flags.ipv6_prefix,
        flows: flags.proto.udp,
        default_timeout: flags.timeout,
    })
}

/// Refuses a chain that the firewall which is ordered cannot have on any machine.
pub(crate) fn require_hook(flags: &Flags) -> Result<(), Error> {
    match flags.firewall {
        FirewallFlag::Nftables => hook_of(&flags.chain).map(drop),
        FirewallFlag::Auto | FirewallFlag::Iptables => Ok(()),
    }
}

/// Where packets are looked at that pass this chain of iptables.
fn hook_of(chain: &ChainName) -> Result<Hook, Error> {
    match chain.as_str() {
        "INPUT" => Ok(Hook::Input),
        "FORWARD" | "DOCKER-USER" => Ok(Hook::Forward),
        other => Err(Error::ChainOfIptables { chain: other.to_owned() }),
    }
}

/// The table's upkeep.
#[derive(Debug)]
pub(super) struct TableUpkeep {
    checked: Instant,
    trouble: Trouble,
}

impl TableUpkeep {
    /// Makes the table.
    pub(super) fn start(flags: &Flags) -> Result<(Self, NftTable), Error> {
        let plan = table_plan(flags)?;
        let hook = plan.hook;
        let mut table = NftTable::open(plan)?;
        let report = table.install()?;
        for set in &report.sets {
            tell_set(set);
        }
        info!(found = %report.found.state, "the table inet refract is in place, at hook {hook}");
        match report.strip {
            Strip::NotWanted => {}
            Strip::NotInKernel => warn!("MPTCP cannot be stripped: {}; {SUBFLOWS}", report.strip),
            Strip::InPlace | Strip::Missing => {
                info!("MPTCP is stripped from handshakes with the protected ports");
            }
        }
        let upkeep = Self { checked: Instant::now(), trouble: Trouble::default() };
        Ok((upkeep, table))
    }

    /// The upkeep of every second.
    pub(super) fn tick(&mut self, enforcer: &mut Enforcer, now: Instant) {
        sets_were_remade(enforcer);
        if now.saturating_duration_since(self.checked) >= SLOW_CHECK {
            self.check(enforcer, now);
        } else {
            self.repair_sets(enforcer, now);
        }
    }

    /// Looks at sets and rules, and mends what is amiss.
    pub(super) fn check(&mut self, enforcer: &mut Enforcer, now: Instant) {
        self.checked = now;
        if self.repair_sets(enforcer, now) {
            return;
        }
        let Some(arms) = enforcer.arms() else { return };
        let Backend::Table(table) = &mut arms.bans else { return };
        let mended = table.check().and_then(|standing| {
            if standing.wants_repair() { table.install().map(Some) } else { Ok(None) }
        });
        match mended {
            Ok(None) => self.trouble.is_over(),
            Ok(Some(Report { found, .. })) => {
                self.trouble.is_over();
                if found.state == State::InPlace {
                    warn!("the rule that strips MPTCP was not in place; it is there again");
                } else {
                    warn!(
                        found = %found.state,
                        "the rules of the table inet refract were not in place; they are again"
                    );
                }
            }
            Err(error) => self.trouble.say(error.to_string()),
        }
    }

    /// Makes the table again where a set is gone; `true` when one was.
    fn repair_sets(&mut self, enforcer: &mut Enforcer, now: Instant) -> bool {
        make_missing_sets(enforcer, &mut self.trouble, now, |installed, _| {
            installed.iter().for_each(tell_set);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chain_that_nftables_has_an_equal_of_is_hooked_there_and_others_are_refused() {
        for (chain, hook) in
            [("INPUT", Hook::Input), ("FORWARD", Hook::Forward), ("DOCKER-USER", Hook::Forward)]
        {
            assert_eq!(hook_of(&chain.parse().unwrap()).unwrap(), hook);
        }
        let refused = hook_of(&"mine".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(
            refused,
            "nftables has no chain mine to hook: use --chain=INPUT, FORWARD or DOCKER-USER, or \
             --firewall=iptables"
        );
    }
}
