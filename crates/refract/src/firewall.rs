//! Bans and the rule: chosen and put in place at the start, kept in place while the daemon runs.
//!
//! Takes the settings, ruleset events, the keeper's answers and a tick a second. It chooses between
//! iptables with ipset (`rule`) and nftables (`table`), and hands on to what was chosen; what an
//! earlier run left with the other one is moved over (`moving`), and with the other implementation of
//! iptables removed (`leftovers`). It bans nobody, except to put bans back into a set that vanished.

mod leftovers;
mod moving;
mod rule;
mod table;
mod uninstall;

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use refract_kernel::{
    Error as KernelError,
    ban_set::SetState,
    ban_sets::Installed,
    ruleset_events::RulesetEvents,
    xtables::{ChainName, ProgramFailure, Xtables},
};
use tracing::{error, info, warn};

pub(crate) use self::{
    leftovers::count_of,
    table::{require_hook, table_plan},
};
use self::{rule::RuleUpkeep, table::TableUpkeep};
pub use self::{rule::keeper_config, uninstall::uninstall};
use crate::{
    backend::{Backend, Kind, every_set},
    cli::{FirewallFlag, Flags},
    enforce::{Enforcer, Remade},
    error::Error,
    escape::printable,
    privilege,
};

/// What it means that MPTCP is not stripped.
pub(crate) const SUBFLOWS: &str = "an MPTCP client may keep a connection through another subflow; \
                                   its ban still drops what comes from the banned address";

/// The chosen firewall's upkeep.
#[derive(Debug)]
pub struct Firewall {
    ruleset: RulesetEvents,
    upkeep: Upkeep,
    chain: ChainName,
    /// Why it was chosen.
    because: String,
    trouble: Trouble,
}

#[derive(Debug)]
enum Upkeep {
    Rule(Box<RuleUpkeep>),
    Table(TableUpkeep),
}

/// A trouble, said once, until it is over or another takes its place.
#[derive(Debug, Default)]
struct Trouble(Option<String>);

impl Trouble {
    fn say(&mut self, sentence: String) {
        if self.0.as_ref() != Some(&sentence) {
            error!("{sentence}");
            self.0 = Some(sentence);
        }
    }

    fn is_over(&mut self) {
        self.0 = None;
    }
}

impl Firewall {
    /// Chooses, and makes what holds the bans and enforces them. What an earlier run left with the
    /// other firewall is moved over.
    pub fn start(flags: &Flags) -> Result<(Self, Backend), Error> {
        let ruleset = RulesetEvents::subscribe()?;
        let (upkeep, backend, because) = match flags.firewall {
            FirewallFlag::Iptables => {
                privilege::require_net_raw()?;
                let (upkeep, backend) = start_iptables(flags).map_err(Error::or_broken_iptables)?;
                (upkeep, backend, BY_ORDER.to_owned())
            }
            FirewallFlag::Nftables => {
                let (upkeep, backend) = start_nftables(flags)?;
                (upkeep, backend, BY_ORDER.to_owned())
            }
            FirewallFlag::Auto => start_what_works(flags)?,
        };
        info!(because, "the firewall is {}", backend.kind());
        let chain = flags.chain.clone();
        Ok((Self { ruleset, upkeep, chain, because, trouble: Trouble::default() }, backend))
    }

    /// Which firewall it is, the chain that its rule is in, and why it was chosen.
    #[must_use]
    pub fn choice(&self) -> (Kind, &ChainName, &str) {
        let kind = match self.upkeep {
            Upkeep::Rule(_) => Kind::Iptables,
            Upkeep::Table(_) => Kind::Nftables,
        };
        (kind, &self.chain, &self.because)
    }

    /// Becomes readable when somebody changes nftables rules.
    #[must_use]
    pub fn ruleset_fd(&self) -> BorrowedFd<'_> {
        self.ruleset.as_fd()
    }

    /// Becomes readable when the rule keeper answered or died; another one after a restart. With
    /// nftables there is none.
    #[must_use]
    pub fn keeper_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.upkeep {
            Upkeep::Rule(rule) => rule.keeper_fd(),
            Upkeep::Table(_) => None,
        }
    }

    /// The kernel announced a change: the rule is looked at.
    pub fn ruleset_changed(&mut self, enforcer: &mut Enforcer) {
        match self.ruleset.drain() {
            Ok(false) => return,
            Ok(true) => self.trouble.is_over(),
            Err(error) => self.trouble.say(error.to_string()),
        }
        match &mut self.upkeep {
            Upkeep::Rule(rule) => rule.check(),
            Upkeep::Table(table) => table.check(enforcer, Instant::now()),
        }
    }

    /// Takes what the keeper has to say.
    pub fn keeper_answered(&mut self) {
        if let Upkeep::Rule(rule) = &mut self.upkeep {
            rule.keeper_answered();
        }
    }

    /// The upkeep of every second; `true` when the keeper has another descriptor to watch.
    pub fn tick(&mut self, enforcer: &mut Enforcer, now: Instant) -> bool {
        match &mut self.upkeep {
            Upkeep::Rule(rule) => rule.tick(enforcer, now),
            Upkeep::Table(table) => {
                table.tick(enforcer, now);
                false
            }
        }
    }

    /// Ends the upkeep; what is in the kernel stays.
    pub fn stop(self) {
        if let Upkeep::Rule(rule) = self.upkeep {
            rule.stop();
        }
    }
}

/// Why the one that was ordered was chosen.
const BY_ORDER: &str = "--firewall says so";
/// Why iptables was chosen where either could be.
const IPTABLES_WORKS: &str = "iptables and ipset work here";

fn start_iptables(flags: &Flags) -> Result<(Upkeep, Backend), Error> {
    let mut are_moved = false;
    let (upkeep, sets) = RuleUpkeep::start(flags, |sets| are_moved = moving::from_table(sets))?;
    if are_moved {
        moving::remove_table();
    }
    moving::remove_rules_of_other(upkeep.variant());
    Ok((Upkeep::Rule(Box::new(upkeep)), Backend::Sets(sets)))
}

fn start_nftables(flags: &Flags) -> Result<(Upkeep, Backend), Error> {
    let (upkeep, mut table) = TableUpkeep::start(flags)?;
    moving::from_sets(flags, &mut table);
    Ok((Upkeep::Table(upkeep), Backend::Table(Box::new(table))))
}

/// iptables where it works, else nftables; and why.
fn start_what_works(flags: &Flags) -> Result<(Upkeep, Backend, String), Error> {
    let tried = privilege::require_net_raw().and_then(|()| start_iptables(flags));
    let obstacle = match tried {
        Ok((upkeep, backend)) => return Ok((upkeep, backend, IPTABLES_WORKS.to_owned())),
        Err(error) if is_obstacle(&error) => error.to_string(),
        Err(error) => return Err(error),
    };
    match start_nftables(flags) {
        Ok((upkeep, backend)) => {
            // Whoever named a program meant it to be used.
            if let Some(program) = &flags.iptables {
                warn!(
                    "{}, which --iptables names, cannot be used: {obstacle}",
                    printable(program.as_os_str().as_encoded_bytes())
                );
            }
            Ok((upkeep, backend, no_iptables(&obstacle)))
        }
        Err(error) => Err(Error::NoFirewall { iptables: obstacle, nftables: error.to_string() }),
    }
}

fn no_iptables(obstacle: &str) -> String {
    format!("iptables cannot be used: {obstacle}")
}

/// Whether an error says that iptables does not work here. What the operator can put right with one
/// step, and would be surprised to see passed over, does not; nor does a lock that another holds for
/// a while.
fn is_obstacle(error: &Error) -> bool {
    let Error::Kernel(KernelError::Program { source, .. }) = error else {
        return !matches!(error, Error::ForeignSet { .. });
    };
    !matches!(source, ProgramFailure::NoChain { .. } | ProgramFailure::Locked)
}

/// Which firewall a daemon with these flags would choose, and why, as far as a look can tell.
pub(crate) fn preview(flags: &Flags) -> Result<(Kind, String), Error> {
    match flags.firewall {
        FirewallFlag::Iptables => Ok((Kind::Iptables, BY_ORDER.to_owned())),
        FirewallFlag::Nftables => Ok((Kind::Nftables, BY_ORDER.to_owned())),
        FirewallFlag::Auto => match try_iptables(flags) {
            Ok(()) => Ok((Kind::Iptables, IPTABLES_WORKS.to_owned())),
            Err(error) if is_obstacle(&error) => {
                Ok((Kind::Nftables, no_iptables(&error.to_string())))
            }
            Err(error) => Err(error),
        },
    }
}

fn try_iptables(flags: &Flags) -> Result<(), Error> {
    privilege::require_net_raw()?;
    every_set()?;
    let plan = keeper_config(flags).plan()?;
    Xtables::find(flags.iptables.as_deref(), plan)?.check()?;
    Ok(())
}

/// Whether a ban found its set gone, so that sets were made again since the last look; says so.
fn sets_were_remade(enforcer: &mut Enforcer) -> bool {
    let were = enforcer.sets_were_remade();
    if were {
        warn!("a set was gone; it was made again, with the bans that have time left");
    }
    were
}

/// Makes the sets again that are gone, with the bans that have time left; `false` when none was gone,
/// or it cannot be told. What they are now is for `tell`.
fn make_missing_sets(
    enforcer: &mut Enforcer,
    trouble: &mut Trouble,
    now: Instant,
    tell: impl FnOnce(&[Installed], &mut Trouble),
) -> bool {
    let Some(arms) = enforcer.arms() else { return false };
    match arms.bans.missing() {
        Ok(missing) if missing.is_empty() => return false,
        Ok(missing) => warn!(sets = missing.join(","), "sets are gone or were replaced"),
        Err(error) => {
            trouble.say(error.to_string());
            return false;
        }
    }
    match enforcer.make_sets_again(now) {
        Ok(Remade { installed, restored, troubles }) => {
            tell(&installed, trouble);
            warn!(bans = restored, "made the sets again, with the bans that have time left");
            for sentence in troubles {
                trouble.say(sentence);
            }
        }
        Err(error) => trouble.say(error.to_string()),
    }
    true
}

fn tell_set(set: &Installed) {
    match &set.state {
        SetState::Created | SetState::Kept | SetState::InUse { .. } => {}
        SetState::Replaced(carried) => warn!(
            set = set.set,
            carried = carried.entries,
            left_behind = carried.left_behind,
            "replaced a set of our name with other options; its bans are in force"
        ),
    }
}
