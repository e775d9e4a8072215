//! The rule against MPTCP as data: which we want, which a listing holds, and how they compare. Pure.
//!
//! Takes ports and the text of `iptables -t mangle -S INPUT` (or FORWARD); makes arguments and the text of a
//! transaction for `iptables-restore`. It runs nothing.
//!
//! An MPTCP connection lives on when one of its subflows is reset, so a reset alone cuts nobody off.
//! Without its option (30, RFC 8684) a handshake makes a plain TCP connection: the server answers as
//! to any client, and the client falls back (section 3.7). Only packets with SYN are changed, because
//! both `MP_CAPABLE` and `MP_JOIN` are negotiated there: every other packet is spared the work, and a
//! connection from before the rule is not broken in the middle; it just gets no further subflow.
//!
//! In INPUT, where the drop rule is in INPUT: nat has been there before, so the port is the socket's
//! even after a REDIRECT from 443 to 8443, and what is only forwarded stays as it is. In FORWARD,
//! where the drop rule sees what is passed on: there the port is that of the network namespace it
//! is passed on to.

use std::{fmt, ops::RangeInclusive};

use super::{
    NoIpv6, ProgramFailure,
    chain::{Chain, Comparison, FORWARD, INPUT},
    ports::{ports_from_text, ports_to_text},
    rule::{Protocol, State, words},
};

/// The only table that takes the target.
pub(super) const TABLE: &str = "mangle";
/// The chains of it where a rule of ours may be.
pub(super) const CHAINS: [Chain<'static>; 2] =
    [Chain { table: TABLE, name: INPUT }, Chain { table: TABLE, name: FORWARD }];
/// The rule bears our name as its comment.
const NAME: &str = "refract";
/// `TCPOPT_MPTCP`, include/net/tcp.h; the kind that IANA assigned.
const OPTION: &str = "30";
/// The flags looked at, and those of them that are set.
const FLAGS: [&str; 2] = ["SYN", "SYN"];

/// Why MPTCP is not stripped in a family. Not an error: work goes on without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStrip {
    /// The program or the kernel does not have the target `TCPOPTSTRIP`.
    NoTarget,
    /// The program or the kernel does not have the match `comment`, which makes the rule known as
    /// ours.
    NoComment,
    /// The kernel does not have the table `mangle`.
    NoTable,
    /// The family is not there at all, so there is nothing to strip.
    NoIpv6(NoIpv6),
}

impl NoStrip {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NoTarget,
        Self::NoComment,
        Self::NoTable,
        Self::NoIpv6(NoIpv6::NoProgram),
        Self::NoIpv6(NoIpv6::NoKernel),
    ];

    /// What a failure to put the rule in place comes to, if it is that there can be none.
    pub(super) fn from_failure(failure: &ProgramFailure) -> Option<Self> {
        match failure {
            // An older iptables says only "No chain/target/match by that name".
            ProgramFailure::NoStripTarget | ProgramFailure::NoMatchInKernel => Some(Self::NoTarget),
            ProgramFailure::NoCommentMatch => Some(Self::NoComment),
            ProgramFailure::NoTable => Some(Self::NoTable),
            _ => None,
        }
    }
}

impl fmt::Display for NoStrip {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTarget => out.write_str(
                "iptables or the kernel has no target TCPOPTSTRIP (modprobe xt_TCPOPTSTRIP)",
            ),
            Self::NoComment => {
                out.write_str("iptables or the kernel has no match comment (modprobe xt_comment)")
            }
            Self::NoTable => out.write_str(
                "the kernel has no table mangle (modprobe iptable_mangle, ip6table_mangle)",
            ),
            Self::NoIpv6(absence) => absence.fmt(out),
        }
    }
}

/// How the rule against MPTCP stands in both families. Its place in the chain does not matter, so
/// it is never [`State::Displaced`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripReport {
    /// In `iptables`.
    pub v4: Result<State, NoStrip>,
    /// In `ip6tables`.
    pub v6: Result<State, NoStrip>,
}

impl StripReport {
    /// Whether there is a family where it could be and is not, or is too often.
    #[must_use]
    pub fn wants_repair(&self) -> bool {
        [self.v4, self.v6]
            .iter()
            .any(|found| matches!(found, Ok(state) if *state != State::InPlace))
    }

    /// Why a family that there is cannot have it.
    #[must_use]
    pub fn unavailable(&self) -> Option<NoStrip> {
        let absences = [self.v4, self.v6].into_iter().filter_map(Result::err);
        absences.into_iter().find(|absence| !matches!(absence, NoStrip::NoIpv6(_)))
    }
}

/// The worse of the states of two chains.
pub(super) fn worse(one: State, other: State) -> State {
    let badness = |state| match state {
        State::InPlace => 0,
        State::Displaced => 1,
        State::Surplus => 2,
        State::Missing => 3,
    };
    if badness(other) > badness(one) { other } else { one }
}

/// What stands after `-I` and the chain's name in the rule for one group of ports, one argument each.
fn arguments(ports: &[RangeInclusive<u16>]) -> Vec<String> {
    let mut arguments = vec!["-p", "tcp"];
    let text = ports_to_text(ports);
    match ports {
        [_] => arguments.extend(["--dport", &text]),
        _ => arguments.extend(["-m", "multiport", "--dports", &text, "-m", "tcp"]),
    }
    arguments.push("--tcp-flags");
    arguments.extend(FLAGS);
    arguments.extend(["-m", "comment", "--comment", NAME]);
    arguments.extend(["-j", "TCPOPTSTRIP", "--strip-options", OPTION]);
    arguments.into_iter().map(str::to_owned).collect()
}

/// The ports of a listed rule that has the parts of one of ours and no other, as either variant of
/// iptables prints it.
fn ports_of(words: &[String]) -> Option<Vec<RangeInclusive<u16>>> {
    let mut words = words.iter().map(String::as_str);
    let (mut protocol, mut ports, mut flags) = (None, None, None);
    let (mut comment, mut target, mut option) = (None, None, None);
    while let Some(word) = words.next() {
        let is_strange = match word {
            "-p" => protocol.replace(Protocol::from_name(words.next()?)?).is_some(),
            "--dport" | "--dports" => ports.replace(ports_from_text(words.next()?)?).is_some(),
            "--tcp-flags" => flags.replace([words.next()?, words.next()?]).is_some(),
            "--comment" => comment.replace(words.next()?).is_some(),
            "-m" => !["tcp", "multiport", "comment"].contains(&words.next()?),
            "-j" => target.replace(words.next()?).is_some(),
            "--strip-options" => option.replace(words.next()?).is_some(),
            _ => true,
        };
        if is_strange {
            return None;
        }
    }
    let is_ours = protocol == Some(Protocol::Tcp)
        && flags == Some(FLAGS)
        && comment == Some(NAME)
        && target == Some("TCPOPTSTRIP")
        && option == Some(OPTION);
    ports.filter(|_| is_ours)
}

/// Whether a rule of the chain strips options and bears our name, whatever else it says.
fn is_ours(words: &[String]) -> bool {
    let has = |pair: [&str; 2]| words.windows(2).any(|two| two == pair);
    has(["--comment", NAME]) && has(["-j", "TCPOPTSTRIP"])
}

/// Compares a listing with the `wanted` rules, one for each group of ports, and says what leaves
/// exactly those of ours. `None` if the text is no listing.
pub(super) fn compare(
    text: &str,
    chain: Chain<'_>,
    wanted: &[Vec<RangeInclusive<u16>>],
) -> Option<Comparison> {
    let listed = chain.rules(text)?;
    let ours: Vec<_> =
        listed.map(|text| (text, words(text))).filter(|(_, words)| is_ours(words)).collect();
    let found: Vec<_> = ours.iter().map(|(_, words)| ports_of(words)).collect();
    let holds = |ports| found.iter().flatten().any(|found| found == ports);

    let state = if !wanted.iter().all(holds) {
        State::Missing
    } else if found.len() > wanted.len() {
        State::Surplus
    } else {
        State::InPlace
    };
    // At the top, where no other rule has accepted the packet yet.
    let transaction = (state != State::InPlace).then(|| {
        let arguments = wanted.iter().map(|ports| arguments(ports));
        chain.replacement(ours.iter().map(|(text, _)| *text), arguments)
    });
    Some(Comparison { state, ours: found.len(), transaction })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIP_443: &str = "-A INPUT -p tcp -m tcp --dport 443 --tcp-flags SYN SYN -m comment \
                             --comment refract -j TCPOPTSTRIP --strip-options 30";
    const ACCEPT: &str = "-A INPUT -i lo -j ACCEPT";

    fn groups(texts: &[&str]) -> Vec<Vec<RangeInclusive<u16>>> {
        texts.iter().map(|text| ports_from_text(text).unwrap()).collect()
    }

    fn compared(rules: &[&str], wanted: &[&str]) -> Comparison {
        let text = format!("-P INPUT ACCEPT\n{}\n", rules.join("\n"));
        compare(&text, CHAINS[0], &groups(wanted)).unwrap()
    }

    #[track_caller]
    fn check_state(rules: &[&str], wanted: &[&str], expected: State) {
        let found = compared(rules, wanted);
        assert_eq!(found.state, expected, "{rules:#?}");
        assert_eq!(found.transaction.is_none(), expected == State::InPlace, "{rules:#?}");
    }

    #[test]
    fn an_empty_chain_gets_one_rule_for_each_group_of_ports() {
        let batch = compared(&[], &["443"]).transaction.unwrap();
        assert_eq!(
            batch,
            "*mangle\n\
             -I INPUT -p tcp --dport 443 --tcp-flags SYN SYN -m comment --comment refract \
             -j TCPOPTSTRIP --strip-options 30\n\
             COMMIT\n"
        );
        let both = ["443,2000:2010,8443", "9000:9010"];
        let batch = compared(&[ACCEPT], &both).transaction.unwrap();
        assert_eq!(
            batch,
            "*mangle\n\
             -I INPUT -p tcp --dport 9000:9010 --tcp-flags SYN SYN -m comment --comment refract \
             -j TCPOPTSTRIP --strip-options 30\n\
             -I INPUT -p tcp -m multiport --dports 443,2000:2010,8443 -m tcp --tcp-flags SYN SYN \
             -m comment --comment refract -j TCPOPTSTRIP --strip-options 30\n\
             COMMIT\n"
        );
    }

    #[test]
    fn a_transaction_deletes_all_of_ours_as_printed_and_nothing_of_others() {
        let stale = STRIP_443.replace("443", "8443");
        let rules = [ACCEPT, STRIP_443, &stale, STRIP_443];
        let delete = |rule: &str| format!("{}\n", rule.replacen("-A", "-D", 1));
        let deletions = [delete(STRIP_443), delete(&stale), delete(STRIP_443)].concat();
        assert_eq!(
            compared(&rules, &["443"]).transaction.unwrap(),
            format!(
                "*mangle\n{deletions}-I INPUT -p tcp --dport 443 --tcp-flags SYN SYN -m comment \
                 --comment refract -j TCPOPTSTRIP --strip-options 30\nCOMMIT\n"
            )
        );
        let removal = compared(&rules, &[]);
        assert_eq!(removal.transaction.unwrap(), format!("*mangle\n{deletions}COMMIT\n"));
        assert_eq!(removal.ours, 3);
        assert_eq!(compared(&[ACCEPT], &[]).transaction, None);
    }

    #[test]
    fn the_rule_is_in_place_wherever_in_the_chain_it_stands() {
        check_state(&[STRIP_443], &["443"], State::InPlace);
        check_state(&[ACCEPT, STRIP_443, ACCEPT], &["443"], State::InPlace);
        let list = "-A INPUT -p tcp -m multiport --dports 80,443 -m tcp --tcp-flags SYN SYN \
                    -m comment --comment refract -j TCPOPTSTRIP --strip-options 30";
        check_state(&[list, STRIP_443], &["443", "80,443"], State::InPlace);
        check_state(&[STRIP_443], &["443", "80,443"], State::Missing);
        check_state(&[], &["443"], State::Missing);
    }

    #[test]
    fn duplicates_and_rules_of_an_earlier_plan_are_surplus() {
        check_state(&[STRIP_443, STRIP_443], &["443"], State::Surplus);
        check_state(&[STRIP_443, &STRIP_443.replace("443", "80")], &["443"], State::Surplus);
        check_state(&[STRIP_443], &[], State::Surplus);
    }

    #[test]
    fn a_rule_that_differs_in_anything_is_not_the_wanted_one() {
        for (from, to) in [
            ("--dport 443", "--dport 444"),
            ("--dport", "--sport"),
            ("--tcp-flags SYN SYN", "--tcp-flags SYN,ACK SYN"),
            (" --tcp-flags SYN SYN", ""),
            ("--dport", "! --dport"),
            ("-p tcp", "! -p tcp"),
            ("-p tcp", "-i eth0 -p tcp"),
            ("--strip-options 30", "--strip-options 8"),
            ("--strip-options 30", "--strip-options 8,30"),
        ] {
            let other = STRIP_443.replacen(from, to, 1);
            assert_ne!(other, STRIP_443);
            check_state(&[&other], &["443"], State::Missing);
            check_state(&[&other, STRIP_443], &["443"], State::Surplus);
        }
    }

    #[test]
    fn rules_without_our_name_are_not_ours() {
        for foreign in [
            ACCEPT,
            &STRIP_443.replace(" -m comment --comment refract", ""),
            &STRIP_443.replace("--comment refract", "--comment refracted"),
            &STRIP_443.replace("--comment refract", "--comment \"refract or so\""),
            &STRIP_443.replace("--comment refract", "--comment \"--comment refract\""),
            &STRIP_443.replace("TCPOPTSTRIP --strip-options 30", "ACCEPT"),
            &STRIP_443.replace("-j", "-g"),
            &STRIP_443.replace("INPUT", "PREROUTING"),
        ] {
            let found = compared(&[foreign], &["443"]);
            assert_eq!((found.state, found.ours), (State::Missing, 0), "{foreign}");
            assert!(!found.transaction.unwrap().contains("-D "), "{foreign}");
        }
    }

    #[test]
    fn a_text_without_a_policy_of_the_chain_is_no_listing() {
        for text in ["", "hello\n", STRIP_443, "-P FORWARD ACCEPT\n"] {
            assert_eq!(compare(text, CHAINS[0], &[]), None, "{text:?}");
        }
    }

    #[test]
    fn a_report_tells_what_can_be_repaired_and_what_cannot_be_had() {
        let (missing, in_place) = (Ok(State::Missing), Ok(State::InPlace));
        let no_ipv6 = Err(NoStrip::NoIpv6(NoIpv6::NoKernel));
        for (v4, v6, wants_repair, unavailable) in [
            (in_place, in_place, false, None),
            (in_place, no_ipv6, false, None),
            (in_place, missing, true, None),
            (Ok(State::Surplus), no_ipv6, true, None),
            (Err(NoStrip::NoTarget), Err(NoStrip::NoTarget), false, Some(NoStrip::NoTarget)),
            (in_place, Err(NoStrip::NoTable), false, Some(NoStrip::NoTable)),
        ] {
            let report = StripReport { v4, v6 };
            assert_eq!(report.wants_repair(), wants_repair, "{report:?}");
            assert_eq!(report.unavailable(), unavailable, "{report:?}");
        }
    }
}
