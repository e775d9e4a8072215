//! What `doctor` finds about the firewall: which one it would be, its sets, its rule.
//!
//! Takes the flags; looks with the eyes of the firewall itself and makes findings. It installs
//! nothing, so what only an attempt can tell (a kernel without the match `set`) it does not know.

use refract_kernel::{
    Errno, Error as KernelError,
    nftables::{NftTable, State, Strip},
    xtables::{Report, Variant, Xtables},
};

use super::{Finding, rights_elsewhere};
use crate::{
    backend::{Kind, every_backend, every_set},
    cli::{FirewallFlag, Flags},
    error::Error,
    firewall::{self, SUBFLOWS, preview, table_plan},
    privilege,
};

/// The rights that enforcing takes.
pub(super) fn rights(flags: &Flags) -> Finding {
    let raw = privilege::require_net_raw();
    match (privilege::require_net_admin(), raw, flags.firewall) {
        (Err(error), _, _) | (Ok(()), Err(error), FirewallFlag::Iptables) => {
            Finding::Bad(format!("rights: {error}"))
        }
        (Ok(()), Ok(()), _) => Finding::Good("rights: CAP_NET_ADMIN and CAP_NET_RAW".to_owned()),
        (Ok(()), Err(_), _) => Finding::Good(
            "rights: CAP_NET_ADMIN; CAP_NET_RAW, which iptables takes, is missing".to_owned(),
        ),
    }
}

/// The firewall that these flags choose, with what it holds.
pub(super) fn firewall(flags: &Flags) -> Vec<Finding> {
    let (kind, because) = match preview(flags) {
        Ok(choice) => choice,
        Err(error) => return vec![Finding::Bad(format!("firewall: {error}"))],
    };
    if let Some(refusal) = refusal_to_speak_to(kind) {
        return vec![Finding::Bad(format!("firewall: {refusal}"))];
    }
    let chosen = format!("firewall: {kind} ({because})");
    // Whoever named a program meant it to be used.
    let is_passed_over =
        flags.iptables.is_some() && (flags.firewall, kind) == (FirewallFlag::Auto, Kind::Nftables);
    let choice = if is_passed_over { Finding::Notable(chosen) } else { Finding::Good(chosen) };
    let mut findings = vec![choice];
    match kind {
        Kind::Iptables => {
            findings.extend([sets(), rule(flags), mptcp(flags)]);
            findings.extend(rules_of_other(flags));
        }
        Kind::Nftables => findings.extend(table(flags)),
    }
    findings.extend(left_behind(kind));
    findings
}

/// What keeps everybody here from speaking to a firewall, if it is that the kernel permits it to
/// nobody.
fn refusal_to_speak_to(kind: Kind) -> Option<String> {
    let (opened, act) = match kind {
        Kind::Iptables => (every_set().map(drop), "speaking to ipset"),
        Kind::Nftables => (NftTable::open_as_found().map(drop), "speaking to nftables"),
    };
    let error = opened.err().filter(|error| error.errno() == Some(Errno::PERM))?;
    Some(rights_elsewhere(act).unwrap_or_else(|| error.to_string()))
}

fn sets() -> Finding {
    match every_set().and_then(|mut sets| sets.list()) {
        Ok(bans) => Finding::Good(format!("sets: the kernel has ipset; {} bans", bans.len())),
        Err(error) => Finding::Bad(format!("sets: {error}")),
    }
}

fn rule(flags: &Flags) -> Finding {
    match looked_at(flags, Xtables::check) {
        Ok((report, path, variant)) if report.is_in_place() => {
            Finding::Good(format!("rule: at the top of {} ({path} is {variant})", flags.chain))
        }
        Ok((Report { v4, v6 }, _, variant)) => Finding::Notable(format!(
            "rule: not in place as these flags want it ({variant}, IPv4 {v4}, IPv6 {}); the daemon \
             puts it there",
            v6.map_or_else(|why| why.to_string(), |state| state.to_string()),
        )),
        // By then it works where it was not ordered.
        Err(error) => Finding::Bad(format!("rule: {}", error.or_broken_iptables())),
    }
}

fn mptcp(flags: &Flags) -> Finding {
    if let Some(finding) = not_to_be_stripped(flags) {
        return finding;
    }
    match looked_at(flags, Xtables::check_strip) {
        Ok((report, ..)) => match report.unavailable() {
            Some(absence) => {
                Finding::Notable(format!("MPTCP: cannot be stripped: {absence}; {SUBFLOWS}"))
            }
            None if report.wants_repair() => not_stripped_yet(),
            None => stripped(),
        },
        Err(error) => Finding::Notable(format!("MPTCP: {error}; {SUBFLOWS}")),
    }
}

fn looked_at<T>(
    flags: &Flags,
    look: impl Fn(&Xtables) -> Result<T, KernelError>,
) -> Result<(T, String, Variant), Error> {
    let plan = firewall::keeper_config(flags).plan()?;
    let xtables = Xtables::find(flags.iptables.as_deref(), plan)?;
    Ok((look(&xtables)?, xtables.path().display().to_string(), xtables.variant()))
}

/// Rules that an earlier run left with the other implementation of iptables.
fn rules_of_other(flags: &Flags) -> Option<Finding> {
    // What keeps iptables from answering was said of the rule.
    let ((), _, variant) = looked_at(flags, |_| Ok(())).ok()?;
    match firewall::count_of(variant.other()) {
        Ok(None | Some((0, _))) => None,
        Ok(Some((rules, program))) => Some(Finding::Notable(format!(
            "rule: an earlier run left {rules} rules with {}, which are in force; the daemon removes \
             them at its start",
            program.display()
        ))),
        Err(error) => Some(Finding::Notable(format!(
            "rule: what an earlier run may have left with the other iptables is not known: {error}"
        ))),
    }
}

fn table(flags: &Flags) -> Vec<Finding> {
    let looked = || -> Result<_, Error> {
        let mut table = NftTable::open(table_plan(flags)?)?;
        Ok((table.list()?.len(), table.check()?))
    };
    let (bans, standing) = match looked() {
        Ok(looked) => looked,
        Err(error) => return vec![Finding::Bad(format!("sets: {error}"))],
    };
    let rule = match standing.state {
        State::InPlace => Finding::Good("rule: the table inet refract is in place".to_owned()),
        state => Finding::Notable(format!(
            "rule: the table inet refract is not as these flags want it ({state}); the daemon makes \
             it so"
        )),
    };
    let mptcp = not_to_be_stripped(flags).unwrap_or_else(|| match standing.strip {
        Strip::InPlace | Strip::NotWanted => stripped(),
        Strip::Missing => not_stripped_yet(),
        Strip::NotInKernel => {
            Finding::Notable(format!("MPTCP: cannot be stripped: {}; {SUBFLOWS}", standing.strip))
        }
    });
    let sets = Finding::Good(format!("sets: the kernel has nftables; {bans} bans"));
    vec![sets, rule, mptcp]
}

fn not_to_be_stripped(flags: &Flags) -> Option<Finding> {
    if !flags.proto.tcp {
        let sentence = "MPTCP: only UDP is enforced on, so there is none";
        return Some(Finding::Good(sentence.to_owned()));
    }
    let sentence = || format!("MPTCP: not stripped, as these flags say; {SUBFLOWS}");
    (!flags.strip_mptcp).then(|| Finding::Notable(sentence()))
}

fn not_stripped_yet() -> Finding {
    Finding::Notable("MPTCP: not stripped as these flags want it; the daemon sees to it".to_owned())
}

fn stripped() -> Finding {
    Finding::Good("MPTCP: stripped from handshakes with the protected ports".to_owned())
}

/// Bans that the other firewall holds, from an earlier run.
fn left_behind(chosen: Kind) -> Option<Finding> {
    // What keeps a backend from being opened was said of the chosen one.
    let mut others = every_backend().ok()?.into_iter();
    let mut other = others.find(|backend| backend.kind() != chosen)?;
    let bans = other.list().map_or(0, |bans| bans.len());
    let kind = other.kind();
    (bans > 0).then(|| {
        Finding::Notable(format!(
            "firewall: an earlier run left {bans} bans with {kind}; the daemon moves them over at \
             its start"
        ))
    })
}
