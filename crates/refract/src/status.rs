//! A look inside, in words: the block that SIGUSR1 and the end of the daemon print, and the one line
//! that `systemctl status` shows.
//!
//! Takes the rooms that know something; makes lines. What came from the log is escaped. It changes
//! nothing.

use std::{fmt::Write as _, time::Instant};

use refract_core::Moment;

use crate::{
    census::Census, enforce::Enforcer, escape::printable, firewall::Firewall, grade::Grade,
    judge::Judge, sandbox::Sandbox, tail::Counters as Read,
};

/// Watched users that are named; the rest is only counted.
const MOST_NAMED: usize = 20;

/// The state as one line.
#[must_use]
pub fn line(judge: &Judge, grade: &Grade, bans: usize, dry_run: bool, moment: Moment) -> String {
    format!(
        "{}evidence: {} ({}); bans in force: {bans}; users watched: {} of {}",
        if dry_run { "dry run; " } else { "" },
        grade.evidence.name(),
        grade.reason,
        judge.occupancy.watched(usize::MAX, moment).len(),
        judge.users(),
    )
}

/// The state as lines of `name=value`, one subject a line.
#[must_use]
pub fn block(
    judge: &Judge,
    grade: &Grade,
    census: Option<&Census>,
    (enforcer, firewall): (&Enforcer, Option<&Firewall>),
    (lookups, read): (u64, Read),
    sandbox: &Sandbox,
    (now, moment): (Instant, Moment),
) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(format!("evidence={} because=\"{}\"", grade.evidence.name(), grade.reason));
    if let Some(firewall) = firewall {
        let (kind, chain, because) = firewall.choice();
        lines.push(format!("firewall={kind} chain={chain} because=\"{because}\""));
    }
    let (_, connections) = judge.occupancy.sizes();
    lines.push(format!(
        "users={} connections={connections} lookups={lookups} slot={:?} window={:?}",
        judge.users(),
        judge.occupancy.slot(),
        judge.occupancy.policy().window(),
    ));
    let watched = judge.occupancy.watched(usize::MAX, moment);
    lines.push(format!("watched={}", watched.len()));
    for (user, sources) in watched.iter().take(MOST_NAMED) {
        lines.push(format!(
            "watched user=\"{}\" because=\"{sources} sources may be at work\"",
            printable(user)
        ));
    }
    for (source, users) in judge.occupancy.proxies(MOST_NAMED, moment) {
        lines.push(format!("proxy source={source} users={users} (never banned)"));
    }
    lines.push(format!(
        "bans={} user_bans_withheld={} max_bans_withheld={} hiding_users={}",
        enforcer.ledger.count_due(now),
        judge.brakes.user_bans_withheld,
        judge.brakes.max_bans_withheld,
        judge.hiding.count(),
    ));
    lines.extend(counters(judge));
    if let Some(census) = census {
        lines.push(format!(
            "census walks={} closes_lost={} found_gone={} unnamed={} most_unnamed={}",
            census.walks,
            census.lost,
            census.found_gone,
            census.unnamed_total,
            census
                .most_unnamed()
                .map_or_else(|| "-".to_owned(), |(source, count)| format!("{source} ({count})")),
        ));
    }
    lines.push(format!("sandbox {sandbox}"));
    let reasons = judge.counters.reasons();
    lines.push(format!(
        "log lines={} oversized={} rotations={} truncations={} overflows={} sightings={} \
         offenders={}{}{reasons}",
        judge.counters.lines,
        read.oversized,
        read.rotations,
        read.truncations,
        read.overflows,
        judge.counters.sightings,
        judge.counters.offenders,
        if reasons.is_empty() { "" } else { " " },
    ));
    lines
}

/// What became of lines and of verdicts, a subject a line.
fn counters(judge: &Judge) -> [String; 4] {
    let spared = judge.spared;
    let counters = judge.occupancy.counters();
    let roster = judge.roster_counters();
    [
        counted(
            "spared",
            &[
                ("shared_source", spared.shared_source),
                ("unknown_neighbours", spared.unknown_neighbours),
                ("proxy", spared.proxy),
            ],
        ),
        counted(
            "claims",
            &[
                ("known", counters.known),
                ("verified", counters.verified),
                ("unverified", counters.unverified),
                ("tainted", counters.tainted),
                ("refused", counters.refused),
                ("older", counters.older),
                ("carriers", counters.carriers),
                ("unlimited", counters.unlimited),
                ("no_room", counters.no_room),
                ("invalid_names", judge.taint.invalid_names()),
            ],
        ),
        counted(
            "verdicts",
            &[
                ("asked", counters.asked),
                ("answered", counters.answered),
                ("overlap", counters.violations),
                ("on_sight", counters.on_sight),
                ("too_many_sources", counters.too_many_sources),
                ("other_family", counters.other_family),
                ("behind_cdn", counters.behind_cdn),
                ("late_slots", counters.late_slots),
                ("evicted_users", counters.evicted_users),
                ("evicted_neighbours", counters.evicted_neighbours),
            ],
        ),
        counted(
            "roster",
            &[
                ("dropped_users", roster.evicted_users),
                ("dropped_neighbours", roster.evicted_neighbours),
                ("forgotten_users", roster.forgotten_users),
            ],
        ),
    ]
}

/// One subject with its counters.
fn counted(subject: &str, counters: &[(&str, u64)]) -> String {
    let mut line = subject.to_owned();
    for (name, count) in counters {
        // Writing to a String cannot fail.
        let _ = write!(line, " {name}={count}");
    }
    line
}
