//! The rule that iptables makes, and the sets that it looks up: put in place and kept there.
//!
//! Takes the settings, ruleset events, the keeper's answers and a tick a second; makes requests to
//! the rule keeper and repairs of the sets. The rule against MPTCP goes along with the drop rule, but
//! a failure of it is only said. A missing rule is put back at once. One that was only pushed from
//! the top is moved back at most twice a minute, so that two such tools do not fight. It bans nobody,
//! except to put bans back into a set that vanished.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use refract_kernel::{
    ban_set::SetState,
    ban_sets::{BanSets, Installed, SetNames, Settings},
    xtables::{ChainName, Protocol, State, Variant, Xtables},
};
use tracing::{info, warn};

use super::{SUBFLOWS, Trouble, make_missing_sets, sets_were_remade, tell_set};
use crate::{
    cli::Flags,
    enforce::Enforcer,
    error::Error,
    rule_keeper::{
        Answer, Command, Confinement, Found, RuleKeeper, RuleKeeperConfig, RuleSets, Strip,
    },
};

/// How long iptables may take at the start and at the end: it waits 5 s for another's lock, and
/// where it hangs over MPTCP alone, twice 10 s pass until it is stopped.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two moves of a rule back to the top.
const MOVE_PAUSE: Duration = Duration::from_secs(30);
/// Where the kernel announces changes of the rules, they are still looked at this often.
const SLOW_CHECK: Duration = Duration::from_mins(1);
/// Pause before a keeper that died is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The rule's and the sets' upkeep.
#[derive(Debug)]
pub(super) struct RuleUpkeep {
    keeper: RuleKeeper,
    chain: ChainName,
    /// Changes are announced by the one (`NFNLGRP_NFTABLES`); legacy iptables announces nothing.
    variant: Variant,
    checked: Instant,
    moved: Option<Instant>,
    /// The rule waits for the pause to be over before it is moved to the top again.
    displaced: bool,
    died: Option<Instant>,
    trouble: Trouble,
}

/// What the rule keeper is to keep under these flags.
#[must_use]
pub fn keeper_config(flags: &Flags) -> RuleKeeperConfig {
    let protocols = [(flags.proto.tcp, Protocol::Tcp), (flags.proto.udp, Protocol::Udp)];
    RuleKeeperConfig {
        sets: RuleSets::Lasting,
        protocols: protocols.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect(),
        ports: flags.dport.ranges().to_vec(),
        strip_mptcp: flags.strip_mptcp,
        chain: flags.chain.clone(),
        iptables: flags.iptables.clone(),
    }
}

/// Whether the keeper gives up what it does not need.
fn confinement(flags: &Flags) -> Confinement {
    if flags.sandbox { Confinement::Own } else { Confinement::Free }
}

impl RuleUpkeep {
    /// Makes the sets and the rule, and starts the keeper. What can be asked before anything is made
    /// is asked first; where a later step is refused, what was made is taken back. Before the rule
    /// is there, `fill` is given the sets.
    pub(super) fn start(
        flags: &Flags,
        fill: impl FnOnce(&mut BanSets),
    ) -> Result<(Self, BanSets), Error> {
        let config = keeper_config(flags);
        let xtables = Xtables::find(config.iptables.as_deref(), config.plan()?)?;
        let before = xtables.check()?;
        if let Err(absence) = before.v6 {
            warn!("{absence}: IPv6 offenders are disconnected but not banned");
        }
        let mut sets = BanSets::open(settings(SetNames::default(), flags))?;
        let mut keeper = RuleKeeper::start(&config, confinement(flags))?;

        let installed = sets.install()?;
        for set in &installed {
            tell_set(set);
        }
        fill(&mut sets);
        let placed = put_in_place(&installed, &mut sets, &xtables, &mut keeper, flags);
        let Found { report, strip, .. } = match placed {
            Ok(found) => found,
            Err(error) => {
                take_back(&installed, &mut sets, &mut keeper);
                return Err(error);
            }
        };
        if flags.sandbox {
            // From within its sandbox the daemon can start none.
            keeper.keep_spare()?;
        }
        info!(
            iptables = %xtables.path().display(),
            variant = %xtables.variant(),
            found = %report.v4,
            "the rule is at the top of {}", flags.chain
        );
        let mut upkeep = Self {
            keeper,
            chain: flags.chain.clone(),
            variant: xtables.variant(),
            checked: Instant::now(),
            moved: None,
            displaced: false,
            died: None,
            trouble: Trouble::default(),
        };
        upkeep.tell_strip(strip);
        Ok((upkeep, sets))
    }

    /// Which iptables keeps the rule.
    pub(super) fn variant(&self) -> Variant {
        self.variant
    }

    /// Becomes readable when the keeper answered or died; another one after a restart.
    pub(super) fn keeper_fd(&self) -> Option<BorrowedFd<'_>> {
        self.keeper.answer_fd()
    }

    /// Takes what the keeper has to say.
    pub(super) fn keeper_answered(&mut self) {
        while let Some(answer) = self.keeper.answer() {
            match answer {
                Answer::Done { command: Command::Check, found } => self.judge(&found),
                Answer::Done { command: Command::Install, found } => {
                    if let Strip::Wanted(strip) = &found.strip
                        && strip.wants_repair()
                    {
                        warn!("the rule that strips MPTCP was not in place; it is there again");
                    }
                    self.settle_trouble(&found);
                    if !found.report.is_in_place() {
                        let v6 =
                            found.report.v6.map_or_else(|_| "none".into(), |v6| v6.to_string());
                        warn!(
                            found_v4 = %found.report.v4,
                            found_v6 = %v6,
                            "the rule was not in place; it is again at the top of {}", self.chain
                        );
                    }
                }
                Answer::Done { command: Command::Remove, .. } => {}
                Answer::Failed { sentence, .. } => self.trouble.say(sentence),
                Answer::Died { reason } => {
                    self.died = Some(Instant::now());
                    self.trouble.say(format!("the process that keeps the rule died ({reason})"));
                }
            }
        }
    }

    /// The upkeep of every second; `true` when the keeper has another descriptor to watch.
    pub(super) fn tick(&mut self, enforcer: &mut Enforcer, now: Instant) -> bool {
        self.repair_sets(enforcer, now);
        if !self.keeper.look_after_spare() {
            warn!("the process that stands by to keep the rule died; another one takes its place");
        }
        let mut restarted = false;
        if self.died.is_some_and(|died| now.saturating_duration_since(died) >= RESTART_PAUSE) {
            match self.keeper.restart() {
                Ok(()) => {
                    self.died = None;
                    restarted = true;
                    self.keeper.request(Command::Install);
                }
                Err(error) => {
                    self.died = Some(now);
                    self.trouble.say(error.to_string());
                }
            }
        }
        let rested = |last: Instant, pause| now.saturating_duration_since(last) >= pause;
        let due = self.displaced && self.moved.is_none_or(|moved| rested(moved, MOVE_PAUSE));
        if due || self.variant == Variant::Legacy || rested(self.checked, SLOW_CHECK) {
            self.displaced = false;
            self.check();
        }
        restarted
    }

    /// Ends the keeper; the rule stays.
    pub(super) fn stop(self) {
        // How it ended changes nothing: the rule is the kernel's.
        let _ = self.keeper.stop(Duration::from_millis(200));
    }

    /// Has the rule looked at.
    pub(super) fn check(&mut self) {
        self.checked = Instant::now();
        self.keeper.request(Command::Check);
    }

    fn judge(&mut self, found: &Found) {
        let mends_strip = matches!(&found.strip, Strip::Wanted(strip) if strip.wants_repair());
        if found.report.is_in_place() && !mends_strip {
            self.settle_trouble(found);
        }
        let worst = [Some(found.report.v4), found.report.v6.ok()];
        let is = |state: State| worst.contains(&Some(state));
        if is(State::Missing) || is(State::Surplus) || mends_strip {
            self.keeper.request(Command::Install);
        } else if is(State::Displaced) {
            let now = Instant::now();
            let rested =
                self.moved.is_none_or(|moved| now.saturating_duration_since(moved) >= MOVE_PAUSE);
            if rested {
                self.moved = Some(now);
                self.keeper.request(Command::Install);
            } else {
                // Looked at again when the pause is over, also where changes are announced.
                self.displaced = true;
            }
        }
    }

    fn repair_sets(&mut self, enforcer: &mut Enforcer, now: Instant) {
        if sets_were_remade(enforcer) {
            self.keeper.request(Command::Install);
        }
        if make_missing_sets(enforcer, &mut self.trouble, now, tell_used_set) {
            // A set can only vanish when its rule is gone.
            self.keeper.request(Command::Install);
        }
    }

    /// What the keeper did is done; what is left is what it could not do about MPTCP.
    fn settle_trouble(&mut self, found: &Found) {
        match &found.strip {
            Strip::Failed(sentence) => self.trouble.say(format!("{sentence}; {SUBFLOWS}")),
            Strip::Off | Strip::Wanted(_) => self.trouble.is_over(),
        }
    }

    /// Says at the start whether MPTCP is stripped.
    fn tell_strip(&mut self, strip: Strip) {
        match strip {
            Strip::Off => {}
            Strip::Failed(sentence) => self.trouble.say(format!("{sentence}; {SUBFLOWS}")),
            Strip::Wanted(report) => {
                if let Some(absence) = report.unavailable() {
                    warn!("MPTCP cannot be stripped: {absence}; {SUBFLOWS}");
                } else {
                    info!("MPTCP is stripped from handshakes with the protected ports");
                }
            }
        }
    }
}

fn tell_used_set(installed: &[Installed], trouble: &mut Trouble) {
    let in_use = installed.iter().find_map(|set| match &set.state {
        SetState::InUse { type_name, .. } => Some((&set.set, type_name)),
        _ => None,
    });
    if let Some((set, found)) = in_use {
        trouble.say(format!(
            "the set {set} is now of type {found} and in use by a rule: nothing can be banned in it \
             until that rule is gone"
        ));
    }
}

fn settings(names: SetNames, flags: &Flags) -> Settings {
    Settings { names, flows: flags.proto.udp, default_timeout: flags.timeout }
}

/// Makes room for our sets where they are of another type, then puts the rule in place.
fn put_in_place(
    installed: &[Installed],
    sets: &mut BanSets,
    xtables: &Xtables,
    keeper: &mut RuleKeeper,
    flags: &Flags,
) -> Result<Found, Error> {
    if installed.iter().any(|set| matches!(set.state, SetState::InUse { .. })) {
        replace_used(installed, sets, xtables, keeper, flags)?;
    }
    Ok(keeper.ask_and_wait(Command::Install, PATIENCE)?)
}

/// Removes what a start made that failed after all.
fn take_back(installed: &[Installed], sets: &mut BanSets, keeper: &mut RuleKeeper) {
    // Where no set was there before, a rule can only be of this start's making.
    if installed.iter().all(|set| set.state == SetState::Created)
        && let Err(error) = keeper.ask_and_wait(Command::Remove, PATIENCE)
    {
        warn!("{error}");
    }
    if let Err(error) = sets.take_back(installed) {
        warn!("{error}");
    }
}

/// Replaces sets of our names but another type that rules refer to. Where all of those rules are
/// ours, other sets and rules stand in meanwhile, so that no ban is lifted; where one is foreign,
/// the set is refused by name.
fn replace_used(
    installed: &[Installed],
    sets: &mut BanSets,
    xtables: &Xtables,
    keeper: &mut RuleKeeper,
    flags: &Flags,
) -> Result<(), Error> {
    let used = installed.iter().filter_map(|set| match &set.state {
        SetState::InUse { type_name, references, .. } => Some((&set.set, type_name, *references)),
        _ => None,
    });
    let mut replaced = Vec::new();
    for (set, type_name, references) in used {
        let ours = xtables.references(set)?;
        if usize::try_from(references).unwrap_or(usize::MAX) > ours {
            let users = xtables.foreign_rules(set);
            return Err(Error::ForeignSet {
                set: set.clone(),
                found: type_name.clone(),
                users: if users.is_empty() { "not iptables".to_owned() } else { users.join("; ") },
            });
        }
        replaced.push((set.clone(), type_name.clone()));
    }

    let mut stand_in = BanSets::open(settings(SetNames::temporary(), flags))?;
    stand_in.install()?;
    for (set, _) in &replaced {
        stand_in.copy_from(set)?;
    }
    let config = RuleKeeperConfig { sets: RuleSets::Temporary, ..keeper_config(flags) };
    let mut stand_in_keeper = RuleKeeper::start(&config, confinement(flags))?;
    stand_in_keeper.ask_and_wait(Command::Install, PATIENCE)?;
    keeper.ask_and_wait(Command::Remove, PATIENCE)?;
    for set in sets.install()? {
        tell_set(&set);
    }
    keeper.ask_and_wait(Command::Install, PATIENCE)?;
    stand_in_keeper.ask_and_wait(Command::Remove, PATIENCE)?;
    stand_in.uninstall()?;
    for (set, found) in replaced {
        warn!(set, found, "replaced a set of another type that only our rule used");
    }
    Ok(())
}
