//! Sets and rule: put in place at the start, kept in place while the daemon runs, taken away on
//! demand.
//!
//! Takes the settings, ruleset events, the keeper's answers and a tick a second; makes requests to
//! the rule keeper and repairs of the sets. A missing rule is put back at once. One that was only
//! pushed from the top is moved back at most twice a minute, so that two such tools do not fight.
//! It bans nobody, except to put bans back into a set that vanished.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use refract_kernel::{
    Error as KernelError,
    ban_set::SetState,
    ban_sets::{BanSets, Installed, SetNames, Settings},
    ruleset_events::RulesetEvents,
    xtables::{IpFamily, ProgramFailure, Protocol, State, Variant, Xtables},
};
use tracing::{error, info, warn};

use crate::{
    cli::Flags,
    enforce::{Enforcer, Remade},
    error::Error,
    rule_keeper::{Answer, Command, Found, RuleKeeper, RuleKeeperConfig, RuleSets},
};

/// How long iptables may take at the start and at the end: it waits 5 s for another's lock.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two moves of a rule back to the top.
const MOVE_PAUSE: Duration = Duration::from_secs(30);
/// Where the kernel announces changes of the rules, they are still looked at this often.
const SLOW_CHECK: Duration = Duration::from_mins(1);
/// Pause before a keeper that died is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The rule's and the sets' upkeep.
#[derive(Debug)]
pub struct Firewall {
    keeper: RuleKeeper,
    ruleset: RulesetEvents,
    /// Changes of the rules are announced (`NFNLGRP_NFTABLES`); legacy iptables announces nothing.
    announced: bool,
    checked: Instant,
    moved: Option<Instant>,
    /// The rule waits for the pause to be over before it is moved to the top again.
    displaced: bool,
    died: Option<Instant>,
    trouble: Option<String>,
}

/// All of our sets, whatever flags the daemon runs with, to look into and to take from.
pub(crate) fn every_set() -> Result<BanSets, Error> {
    let default_timeout = Duration::from_mins(1);
    let names = SetNames::default();
    Ok(BanSets::open(Settings { names, flows: true, default_timeout })?)
}

/// What the rule keeper is to keep under these flags.
#[must_use]
pub fn keeper_config(flags: &Flags) -> RuleKeeperConfig {
    let protocols = [(flags.proto.tcp, Protocol::Tcp), (flags.proto.udp, Protocol::Udp)];
    RuleKeeperConfig {
        sets: RuleSets::Lasting,
        protocols: protocols.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect(),
        ports: flags.dport.ranges().to_vec(),
        iptables: flags.iptables.clone(),
    }
}

impl Firewall {
    /// Makes the sets and the rule, and starts the keeper. What can be asked before anything is made
    /// is asked first; where a later step is refused, what was made is taken back.
    pub fn start(flags: &Flags) -> Result<(Self, BanSets), Error> {
        let config = keeper_config(flags);
        let xtables = Xtables::find(config.iptables.as_deref(), config.plan()?)?;
        let before = xtables.check()?;
        if let Err(absence) = before.v6 {
            warn!("{absence}: IPv6 offenders are disconnected but not banned");
        }
        let mut sets = BanSets::open(settings(SetNames::default(), flags))?;
        let ruleset = RulesetEvents::subscribe()?;
        let mut keeper = RuleKeeper::start(&config)?;

        let installed = sets.install()?;
        for set in &installed {
            tell_set(set);
        }
        let Found { report, variant } =
            match put_in_place(&installed, &mut sets, &xtables, &mut keeper, flags) {
                Ok(found) => found,
                Err(error) => {
                    take_back(&installed, &mut sets, &mut keeper);
                    return Err(error);
                }
            };
        let announced = variant == Some(Variant::NfTables);
        info!(
            iptables = %xtables.path().display(),
            variant = %xtables.variant(),
            found = %report.v4,
            "the rule is at the top of INPUT"
        );
        let firewall = Self {
            keeper,
            ruleset,
            announced,
            checked: Instant::now(),
            moved: None,
            displaced: false,
            died: None,
            trouble: None,
        };
        Ok((firewall, sets))
    }

    /// Becomes readable when somebody changes nftables rules.
    #[must_use]
    pub fn ruleset_fd(&self) -> BorrowedFd<'_> {
        self.ruleset.as_fd()
    }

    /// Becomes readable when the keeper answered or died; another one after a restart.
    #[must_use]
    pub fn keeper_fd(&self) -> Option<BorrowedFd<'_>> {
        self.keeper.answer_fd()
    }

    /// The kernel announced a change: the rule is looked at.
    pub fn ruleset_changed(&mut self) {
        match self.ruleset.drain() {
            Ok(false) => {}
            Ok(true) => self.check(),
            Err(error) => {
                self.complain(error.to_string());
                self.check();
            }
        }
    }

    /// Takes what the keeper has to say.
    pub fn keeper_answered(&mut self) {
        while let Some(answer) = self.keeper.answer() {
            match answer {
                Answer::Done { command: Command::Check, found } => self.judge(found),
                Answer::Done { command: Command::Install, found } => {
                    self.trouble = None;
                    if !found.report.is_in_place() {
                        let v6 =
                            found.report.v6.map_or_else(|_| "none".into(), |v6| v6.to_string());
                        warn!(
                            found_v4 = %found.report.v4,
                            found_v6 = v6,
                            "the rule was not in place; it is again at the top of INPUT"
                        );
                    }
                }
                Answer::Done { command: Command::Remove, .. } => {}
                Answer::Failed { sentence, .. } => self.complain(sentence),
                Answer::Died { reason } => {
                    self.died = Some(Instant::now());
                    self.complain(format!("the process that keeps the rule died ({reason})"));
                }
            }
        }
    }

    /// The upkeep of every second; `true` when the keeper has another descriptor to watch.
    pub fn tick(&mut self, enforcer: &mut Enforcer, now: Instant) -> bool {
        self.repair_sets(enforcer, now);
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
                    self.complain(error.to_string());
                }
            }
        }
        let rested = |last: Instant, pause| now.saturating_duration_since(last) >= pause;
        let due = self.displaced && self.moved.is_none_or(|moved| rested(moved, MOVE_PAUSE));
        if due || !self.announced || rested(self.checked, SLOW_CHECK) {
            self.displaced = false;
            self.check();
        }
        restarted
    }

    /// Ends the keeper; the rule stays.
    pub fn stop(self) {
        // How it ended changes nothing: the rule is the kernel's.
        let _ = self.keeper.stop(Duration::from_millis(200));
    }

    fn check(&mut self) {
        self.checked = Instant::now();
        self.keeper.request(Command::Check);
    }

    fn judge(&mut self, found: Found) {
        if found.report.is_in_place() {
            self.trouble = None;
        }
        let worst = [Some(found.report.v4), found.report.v6.ok()];
        let is = |state: State| worst.contains(&Some(state));
        if is(State::Missing) || is(State::Surplus) {
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
        if enforcer.sets_were_remade() {
            warn!("a set was gone; it was made again, with the bans that have time left");
            self.keeper.request(Command::Install);
        }
        let Some(arms) = enforcer.arms() else { return };
        match arms.sets.missing() {
            Ok(missing) if missing.is_empty() => return,
            Ok(missing) => warn!(sets = missing.join(","), "sets are gone or were replaced"),
            Err(error) => return self.complain(error.to_string()),
        }
        match enforcer.make_sets_again(now) {
            Ok(Remade { installed, restored, troubles }) => {
                let in_use = installed.iter().find_map(|set| match &set.state {
                    SetState::InUse { type_name, .. } => Some((&set.set, type_name)),
                    _ => None,
                });
                if let Some((set, found)) = in_use {
                    self.complain(format!(
                        "the set {set} is now of type {found} and in use by a rule: nothing can be \
                         banned in it until that rule is gone"
                    ));
                }
                warn!(bans = restored, "made the sets again, with the bans that have time left");
                for trouble in troubles {
                    self.complain(trouble);
                }
            }
            Err(error) => self.complain(error.to_string()),
        }
        // A set can only vanish when its rule is gone.
        self.keeper.request(Command::Install);
    }

    /// Says a trouble once, until it is over or another takes its place.
    fn complain(&mut self, sentence: String) {
        if self.trouble.as_ref() != Some(&sentence) {
            error!("{sentence}");
            self.trouble = Some(sentence);
        }
    }
}

/// Removes refract's rules, of either iptables, then its sets. Says what was removed.
pub fn uninstall(iptables: Option<PathBuf>) -> Result<Vec<String>, Error> {
    let config = RuleKeeperConfig {
        sets: RuleSets::Lasting,
        protocols: vec![Protocol::Tcp],
        ports: vec![443..=443],
        iptables: None,
    };
    let temporary = RuleKeeperConfig { sets: RuleSets::Temporary, ..config.clone() };
    let mut said = Vec::new();
    // The rule may have been put there by another variant than the one that is the default now.
    let legacy = legacy_is_used().then(|| PathBuf::from(LEGACY)).filter(|path| path.exists());
    let nft = Some(PathBuf::from(NFT)).filter(|path| path.exists());
    let mut programs = vec![iptables];
    programs.extend([legacy, nft].into_iter().flatten().map(Some));
    for program in programs {
        for config in [&config, &temporary] {
            let xtables = match Xtables::find(program.as_deref(), config.plan()?) {
                Ok(xtables) => xtables,
                // Where there is no iptables there is no rule of its making.
                Err(KernelError::Program { source: ProgramFailure::NotFound, .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let (v4, v6) = (config.plan()?.sets(IpFamily::V4), config.plan()?.sets(IpFamily::V6));
            let mut rules = 0;
            for set in [v4.sources, v4.flows, v6.sources, v6.flows] {
                rules += xtables.references(set)?;
            }
            if rules > 0 {
                xtables.remove()?;
                said.push(format!("removed the rule from {}", xtables.path().display()));
            }
        }
    }
    let sets = every_set()?.uninstall()?;
    said.extend(sets.into_iter().map(|set| format!("destroyed the set {set}")));
    if said.is_empty() {
        said.push("there is nothing of refract's in this network namespace".to_owned());
    }
    Ok(said)
}

/// Where distributions put the two variants of iptables.
const NFT: &str = "/usr/sbin/iptables-nft";
const LEGACY: &str = "/usr/sbin/iptables-legacy";

/// Whether legacy iptables has a filter table in this network namespace. Its program would make one
/// by merely looking.
fn legacy_is_used() -> bool {
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .any(|tables| tables.lines().any(|table| table == "filter"))
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
    let mut stand_in_keeper = RuleKeeper::start(&config)?;
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
