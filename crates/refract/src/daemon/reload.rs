//! Other rules while the daemon runs: the policy file, read again.
//!
//! Takes the news that the file may have changed, and SIGHUP; puts the new rules into force whole, or
//! says what is wrong with the file and keeps the old ones. What cannot change before the next start
//! is named. It opens no log and touches no ban.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use refract_core::Accounts;
use tracing::{error, info, warn};

use super::{Daemon, start};
use crate::{cli::Flags, config::watch::SETTLED, error::Error};

/// When the file is to be read again.
#[derive(Debug, Default)]
pub(super) struct Reload {
    /// The file changed, last at that instant; it is read when it has been quiet for a while.
    changed: Option<Instant>,
    /// The file has been changing since then.
    begun: Option<Instant>,
    /// The mistake that was told last, so that changes of the file do not have it told again.
    mistake: Option<String>,
}

/// However often the file is rewritten, it is read at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

impl Daemon {
    /// The policy file may be another.
    pub(super) fn policy_may_have_changed(&mut self, now: Instant) {
        let Some(watch) = &mut self.policy_watch else { return };
        if watch.changed() {
            let begun = self.policy_reload.begun.get_or_insert(now);
            let latest = *begun + LONGEST_WAIT;
            self.policy_reload.changed = Some(now.min(latest));
        }
    }

    /// When the policy file is to be read again.
    pub(super) fn policy_due(&self) -> Option<Instant> {
        self.policy_reload.changed.map(|changed| changed + SETTLED)
    }

    /// Reads the policy file again and lives by it, if it can be lived by. Somebody who `asked` for
    /// it is told of a mistake also where it was told before.
    pub(super) fn reload_policy(&mut self, asked: bool) {
        self.policy_reload.changed = None;
        self.policy_reload.begun = None;
        let mut settings = match self.settings.reload() {
            Ok(settings) => settings,
            Err(mistake) => {
                let remedy = self.sandbox.remedy(&self.settings.flags.config);
                let sentence = match remedy.filter(|_| mistake.place.is_none()) {
                    Some(remedy) => format!("{mistake}; {remedy}"),
                    None => mistake.to_string(),
                };
                if asked || self.policy_reload.mistake.as_ref() != Some(&sentence) {
                    error!("{sentence}; the policy stays as it was");
                    self.policy_reload.mistake = Some(sentence);
                }
                return;
            }
        };
        self.policy_reload.mistake = None;
        // What cannot change now is compared with what the daemon runs by, next time too.
        let running = start::running_flags(&settings.flags, &self.settings.flags);
        if let Err(error) = self.live_by(&running, &settings.accounts) {
            error!("{error}; the policy stays as it was");
            return;
        }
        let later = settings.needs_restart(&self.settings);
        if !later.is_empty() {
            warn!(settings = later.join(","), "these change with the next start of refract only");
        }
        if settings.file.is_some() {
            info!("the policy was read again and is in force");
        }
        settings.flags = running;
        self.settings = settings;
    }

    fn live_by(&mut self, flags: &Flags, accounts: &Arc<Accounts>) -> Result<(), Error> {
        let (policy, terms) = start::rules(flags)?;
        self.judge.set_rules(policy, Arc::clone(accounts));
        self.judge.brakes.set_bounds(flags.user_bans, flags.max_bans);
        self.enforcer.set_terms(terms);
        let allow = flags.allow.iter().flat_map(|networks| networks.0.iter().copied()).collect();
        self.judge.set_allowed(allow);
        Ok(())
    }
}
