//! Rule and sets of iptables and ipset, kept in place by the real daemon: whoever takes them away, they
//! come back. What nftables has instead is in `upkeep_nftables.rs`.
//!
//! The second eye is the operator's: `iptables -S`, `ipset list`, the counters of a rule, real
//! connections. Verdicts rest on the log here, because two lines of it are all that a ban takes.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{
    LabError, Result,
    daemon::Daemon,
    eventually,
    knocker::Knocker,
    lab::SERVER_V4,
    peer::{Server, Talker},
    scene::{self, stop},
    witness,
};

const SET: &str = "refract_banned_users";
const SET6: &str = "refract_banned_users6";
/// How long anything may take that is not itself the promise.
const BOUND: Duration = Duration::from_secs(5);
/// The promise: back within a second; and what iptables itself takes on a busy machine.
const BACK_BOUND: Duration = Duration::from_millis(1_300);
const RULE: &str =
    "-A INPUT -p tcp -m tcp --dport 443 -m set --match-set refract_banned_users src -j DROP";
const RULE6: &str =
    "-A INPUT -p tcp -m tcp --dport 443 -m set --match-set refract_banned_users6 src -j DROP";
/// The rule against MPTCP.
const STRIP: &str = "-A INPUT -p tcp -m tcp --dport 443 --tcp-flags SYN SYN -m comment --comment \
                     refract -j TCPOPTSTRIP --strip-options 30";
/// Somebody else's rule.
const FOREIGN: &str = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";
/// Who gets banned here.
const OFFENDER: &str = "198.51.100.12";

/// One implementation of iptables: the flag that chooses it, and its programs for both families.
struct Variant {
    flag: Option<&'static str>,
    v4: &'static str,
    v6: &'static str,
}

/// What Refract finds by itself (iptables over nftables, where the tests run), and the other one.
const VARIANTS: [Variant; 2] = [
    Variant { flag: None, v4: "iptables", v6: "ip6tables" },
    Variant {
        flag: Some("--iptables=/usr/sbin/iptables-legacy"),
        v4: "iptables-legacy",
        v6: "ip6tables-legacy",
    },
];

/// A scene where the rule is iptables'.
struct Scene(scene::Scene);

impl Deref for Scene {
    type Target = scene::Scene;

    fn deref(&self) -> &scene::Scene {
        &self.0
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut scene::Scene {
        &mut self.0
    }
}

impl Scene {
    fn new(variant: &Variant) -> Result<Self> {
        let flags: Vec<&str> = ["--firewall=iptables"].into_iter().chain(variant.flag).collect();
        Ok(Self(scene::Scene::with(&flags)?))
    }

    /// Makes `offender` one, with an account of its own, and waits until it is banned.
    fn ban(&self, offender: &str) -> Result<()> {
        self.offend(offender)?;
        witness::wait_for_member(self.server(), SET, offender, true, BOUND)
    }

    fn members(&self) -> Result<Vec<String>> {
        let mut members = witness::set_members(self.server(), SET)?;
        members.sort();
        Ok(members)
    }

    fn rules(&self, tool: &str) -> Result<Vec<String>> {
        witness::rules_of(self.server(), tool)
    }

    /// Waits until the rules of both families begin with ours and hold no second one of ours.
    fn wait_for_rules(&self, variant: &Variant, bound: Duration) -> Result<()> {
        for (tool, rule) in [(variant.v4, RULE), (variant.v6, RULE6)] {
            eventually(&format!("our rule at the top of {tool}"), bound, || {
                Ok(is_first_and_once(&self.rules(tool)?, rule).then_some(()))
            })?;
        }
        Ok(())
    }
}

fn is_first_and_once(rules: &[String], rule: &str) -> bool {
    rules.first().is_some_and(|first| first == rule)
        && rules.iter().filter(|rule| rule.contains("refract_")).count() == 1
}

/// A script that destroys the IPv4 set. One in use cannot be destroyed, so it takes the rule away
/// until it is quicker than the keeper.
fn destroy_set(Variant { v4, .. }: &Variant) -> String {
    format!("for i in $(seq 500); do {v4} -F; ipset destroy {SET} 2>&- && exit; done; exit 1")
}

#[test]
fn the_rule_is_at_the_top_once_whatever_was_there_and_however_often_it_starts() -> Result<()> {
    for variant in &VARIANTS {
        let scene = Scene::new(variant)?;
        for tool in [variant.v4, variant.v6] {
            scene.shell(&format!("{tool} -A INPUT -p tcp --dport 22 -j ACCEPT"))?;
        }
        let both = |port: &str| [RULE, RULE6].map(|rule| rule.replace("443", port));
        let expect = |[rule, rule6]: [String; 2]| {
            assert_eq!(scene.rules(variant.v4)?, [&rule, FOREIGN]);
            assert_eq!(scene.rules(variant.v6)?, [&rule6, FOREIGN]);
            Ok::<_, LabError>(())
        };
        // An earlier run with another port leaves its rule, which the next run replaces.
        stop(scene.start(&["--dport=8443"])?)?;
        expect(both("8443"))?;
        for _ in 0..5 {
            let daemon = scene.start(&[])?;
            expect(both("443"))?;
            stop(daemon)?;
            expect(both("443"))?;
        }

        let daemon = scene.start(&["--dport=443,8443,2000-2010"])?;
        expect([RULE, RULE6].map(|rule| {
            rule.replace("-m tcp --dport 443", "-m multiport --dports 443,2000:2010,8443")
        }))?;
        stop(daemon)?;

        // One rule takes fifteen ports.
        let ports = |range: std::ops::Range<u16>| {
            range.map(|port| (1000 + 2 * port).to_string()).collect::<Vec<_>>().join(",")
        };
        let daemon = scene.start(&[&format!("--dport={}", ports(0..16)), "--proto=tcp,udp"])?;
        for (tool, set, flows) in
            [(variant.v4, SET, "refract_banned_flows"), (variant.v6, SET6, "refract_banned_flows6")]
        {
            let rules = |protocol: &str, set: &str, fields: &str| {
                let tail = format!("-m set --match-set {set} {fields} -j DROP");
                [
                    format!("-A INPUT -p {protocol} -m multiport --dports {} {tail}", ports(0..15)),
                    // A lone port needs no list.
                    format!("-A INPUT -p {protocol} -m {protocol} --dport 1030 {tail}"),
                ]
            };
            let mut expected = [
                rules("tcp", set, "src"),
                rules("udp", set, "src"),
                rules("udp", flows, "src,src"),
            ]
            .concat();
            expected.push(FOREIGN.to_owned());
            assert_eq!(scene.rules(tool)?, expected);
        }
        stop(daemon)?;
        stop(scene.start(&[])?)?;
        expect(both("443"))?;
    }
    Ok(())
}

#[test]
fn a_rule_or_set_that_somebody_takes_away_is_back_within_a_second_with_its_bans() -> Result<()> {
    for variant in &VARIANTS {
        let scene = Scene::new(variant)?;
        let daemon = scene.start(&[])?;
        scene.ban(OFFENDER)?;
        let Variant { v4, v6, .. } = variant;
        let delete = format!("{v4} -D {}", RULE.trim_start_matches("-A "));
        let flush = format!("{v4} -F; {v6} -F");
        // As ufw and firewalld reload: the table anew, with rules of their own.
        let reload = format!(
            "for tool in {v4} {v6}; do printf '*filter\\n:INPUT ACCEPT [0:0]\\n{FOREIGN}\\nCOMMIT\\n' \
             | $tool-restore; done"
        );
        let destroy = destroy_set(variant);
        let mut attacks = vec![flush.as_str(), &delete, &reload, &destroy];
        if variant.flag.is_none() {
            attacks.push("nft flush ruleset");
        }
        for attack in attacks {
            scene.shell(attack)?;
            let taken = Instant::now();
            scene.wait_for_rules(variant, BACK_BOUND)?;
            let left = BACK_BOUND.saturating_sub(taken.elapsed());
            witness::wait_for_member(scene.server(), SET, OFFENDER, true, left)?;
            eprintln!("{attack:?}: mended after {:?}", taken.elapsed());
        }
        // The restored ban has the time it had left, not a new minute.
        let listing = scene.shell(&format!("ipset list {SET} | grep '^{OFFENDER} '"))?;
        let left: u64 = listing.split_whitespace().nth(2).and_then(|t| t.parse().ok()).unwrap();
        assert!((1..60).contains(&left), "{listing}");
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn a_rule_pushed_from_the_top_is_moved_back_at_once_but_not_twice_in_a_row() -> Result<()> {
    for variant in &VARIANTS {
        let scene = Scene::new(variant)?;
        let daemon = scene.start(&[])?;
        let push = format!("{} -I INPUT {}", variant.v4, &FOREIGN["-A INPUT ".len()..]);
        scene.shell(&push)?;
        scene.wait_for_rules(variant, BACK_BOUND)?;
        // Until it says so, what comes in between is put right as a part of the same move.
        let said = daemon.wait_for_message("it is again at the top of INPUT", BOUND)?;
        assert!(said.ends_with(" found_v4=displaced found_v6=in-place"), "{said}");
        scene.shell(&push)?;
        // Two checks of the slower variant pass, and it stays where it is.
        let moved = eventually("a second move", Duration::from_millis(2_300), || {
            Ok(is_first_and_once(&scene.rules(variant.v4)?, RULE).then_some(()))
        });
        assert!(moved.is_err(), "the rule was moved twice within 30 s");
        assert_eq!(scene.rules(variant.v4)?, [FOREIGN, RULE, FOREIGN]);
        // A rule that is gone is another matter: that cannot wait.
        scene.shell(&format!("{} -F", variant.v4))?;
        scene.wait_for_rules(variant, BACK_BOUND)?;
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn the_rule_against_mptcp_comes_back_and_goes_when_it_is_not_wanted() -> Result<()> {
    for variant in &VARIANTS {
        let scene = Scene::new(variant)?;
        let foreign = STRIP.replace(" -m comment --comment refract", "");
        let tools = [variant.v4, variant.v6];
        for tool in tools {
            scene.shell(&format!("{tool} -t mangle {foreign}"))?;
        }
        let expect = |rules: &[&str]| {
            for tool in tools {
                eventually(&format!("{rules:?} in {tool}"), BACK_BOUND, || {
                    let found = witness::mangle_rules_of(scene.server(), tool)?;
                    Ok((found == rules).then_some(()))
                })?;
            }
            Ok::<_, LabError>(())
        };
        let daemon = scene.start(&[])?;
        daemon.wait_for_message("MPTCP is stripped from handshakes", BOUND)?;
        expect(&[STRIP, &foreign])?;
        for tool in tools {
            scene.shell(&format!("{tool} -t mangle -F INPUT"))?;
        }
        expect(&[STRIP])?;
        daemon.wait_for_message("the rule that strips MPTCP was not in place", BOUND)?;
        // Its place does not matter, and a second one is one too many.
        for tool in tools {
            scene.shell(&format!(
                "{tool} -t mangle {STRIP}; {tool} -t mangle {}",
                foreign.replacen("-A", "-I", 1)
            ))?;
        }
        expect(&[STRIP, &foreign])?;
        stop(daemon)?;
        expect(&[STRIP, &foreign])?;
        stop(scene.start(&["--strip-mptcp=false"])?)?;
        expect(&[&foreign])?;
        scene.wait_for_rules(variant, Duration::ZERO)?;
    }
    Ok(())
}

#[test]
fn a_ban_that_the_operator_lifted_stays_lifted_when_the_set_is_made_again() -> Result<()> {
    let scene = Scene::new(&VARIANTS[0])?;
    let daemon = scene.start(&[])?;
    for offender in ["198.51.100.12", "198.51.100.13", "198.51.100.14"] {
        scene.ban(offender)?;
    }
    scene.shell(&format!("ipset del {SET} 198.51.100.12"))?;
    assert_eq!(scene.refract(&["unban", "198.51.100.13"])?.status, Some(0));
    for lifted in ["198.51.100.12", "198.51.100.13"] {
        let sentence = format!("it stays lifted target={lifted}");
        daemon.wait_for_message(&sentence, Duration::from_secs(2))?;
    }
    scene.shell(&destroy_set(&VARIANTS[0]))?;
    witness::wait_for_member(scene.server(), SET, "198.51.100.14", true, BACK_BOUND)?;
    assert_eq!(scene.members()?, ["198.51.100.14"]);
    // And its device may be banned again for a new offence.
    scene.ban("198.51.100.12")?;
    stop(daemon)
}

/// A set of our name that is not as ours: how it came to be, and whether its ban can be carried.
const LEFTOVERS: [&str; 3] = [
    // No time for its entries, and too small.
    "create refract_banned_users hash:ip maxelem 64",
    "create refract_banned_users hash:ip timeout 300 maxelem 64 hashsize 64",
    "create refract_banned_users hash:net",
];

#[test]
fn a_leftover_set_that_only_our_rule_uses_is_replaced_and_no_packet_gets_through() -> Result<()> {
    for variant in &VARIANTS {
        for leftover in LEFTOVERS {
            let mut scene = Scene::new(variant)?;
            let client = scene.lab.add_client(&[OFFENDER])?;
            let tool = variant.v4;
            scene.shell(&format!(
                "ipset {leftover}; ipset add {SET} {OFFENDER}; \
                 {tool} {RULE}; {tool} -A INPUT -s {OFFENDER} -p tcp --dport 443 -j ACCEPT"
            ))?;
            // How many packets our rule stopped, and how many got by it.
            let counted = || {
                let text = scene.shell(&format!("{tool}-save -c -t filter"))?;
                let count = |what: &str| -> u64 {
                    let rule = text.lines().find(|line| line.contains(what));
                    let count = rule.and_then(|rule| rule.strip_prefix('[')?.split(':').next());
                    count.unwrap_or_else(|| panic!("no {what}:\n{text}")).parse().unwrap()
                };
                Ok::<_, LabError>((count("-j DROP"), count("-j ACCEPT")))
            };
            let knocker = Knocker::start(&client, OFFENDER);
            eventually("packets that are stopped", BOUND, || {
                Ok((counted()?.0 > 100).then_some(()))
            })?;
            let daemon = scene.start(&[])?;
            eventually("packets that are still stopped", BOUND, || {
                Ok((counted()?.0 > 100).then_some(()))
            })?;
            assert_eq!(counted()?.1, 0, "packets of a banned client got through ({leftover})");
            let header = scene.shell(&format!("ipset list {SET} -terse"))?;
            assert!(header.contains("Type: hash:ip\n"), "{header}");
            assert!(header.contains(" maxelem 1048576 timeout "), "{header}");
            assert_eq!(scene.members()?, [OFFENDER]);
            assert_eq!(witness::set_names(scene.server())?, [SET, SET6]);
            scene.wait_for_rules(variant, Duration::ZERO)?;

            // The counter would have told.
            scene.shell(&format!("ipset del {SET} {OFFENDER}"))?;
            eventually("packets that get through", BOUND, || Ok((counted()?.1 > 0).then_some(())))?;
            drop(knocker);
            stop(daemon)?;
        }
    }
    Ok(())
}

#[test]
fn a_leftover_set_of_another_type_that_nobody_uses_is_replaced() -> Result<()> {
    for (kind, entry, carried) in [
        ("hash:net", "198.51.100.12", true),
        ("hash:ip timeout 300 forceadd", "198.51.100.12", true),
        ("hash:ip,port", "198.51.100.12,tcp:443", false),
        ("list:set", "", false),
    ] {
        let scene = Scene::new(&VARIANTS[0])?;
        scene.shell(&format!("ipset create {SET} {kind}"))?;
        if !entry.is_empty() {
            scene.shell(&format!("ipset add {SET} {entry}"))?;
        }
        let daemon = scene.start(&[])?;
        let expected: &[&str] = if carried { &[OFFENDER] } else { &[] };
        assert_eq!(scene.members()?, expected, "{kind}");
        if carried || !entry.is_empty() {
            daemon.wait_for_message("replaced a set of our name", BOUND)?;
        }
        scene.ban("198.51.100.13")?;
        assert_eq!(witness::set_names(scene.server())?, [SET, SET6]);
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn a_set_that_a_foreign_rule_uses_is_refused_by_name_and_nothing_is_left_behind() -> Result<()> {
    for variant in &VARIANTS {
        for set in [SET, SET6] {
            let scene = Scene::new(variant)?;
            let (tool, family) =
                if set == SET { (variant.v4, "inet") } else { (variant.v6, "inet6") };
            let foreign = format!("-A FORWARD -m set --match-set {set} src -j DROP");
            scene.shell(&format!(
                "ipset create {set} hash:ip,port family {family}; {tool} {foreign}"
            ))?;
            let refused = scene.refused(&[], &[])?;
            refused.is_refusal(&[set, "hash:ip,port", &foreign]);
            assert_eq!(refused.err.lines().count(), 1, "{refused:?}");
            assert_eq!(witness::set_names(scene.server())?, [set], "something was left behind");
            assert_eq!(scene.rules(variant.v4)?, [] as [&str; 0]);
            assert_eq!(scene.rules(variant.v6)?, [] as [&str; 0]);
        }
    }
    Ok(())
}

#[test]
fn a_full_set_is_said_recorded_and_stops_nothing() -> Result<()> {
    let mut scene = Scene::new(&VARIANTS[0])?;
    let client = scene.lab.add_client(&[OFFENDER])?;
    scene.lab.own_prefix(&client, "198.18.0.0/24")?;
    let _echo = Server::echo(scene.server(), 443)?;
    let daemon = scene.start(&[])?;
    let batch = scene.lab.path("batch");
    let entries: Vec<String> = (0u32..1 << 20)
        .map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            format!("add {SET} 10.{a}.{b}.{c} timeout 600\n")
        })
        .collect();
    fs::write(&batch, entries.concat()).map_err(LabError::while_trying("write a batch"))?;
    scene.shell(&format!("ipset restore -exist < {}", batch.display()))?;

    // The kernel counts by region of its table (ip_set_hash_gen.h), so a set that holds all it can
    // still takes one address and refuses the next. One in two is refused.
    let server = SocketAddr::new(SERVER_V4.into(), 443);
    let mut refused = None;
    for last in 1..=64 {
        let source = IpAddr::from([198, 18, 0, last]);
        let talker = Talker::connect(&client, source, server)?;
        talker.progress().wait_for_bytes(100, BOUND)?;
        scene.offend_at(talker.local())?;
        talker.progress().wait_for_end(BOUND)?;
        let of = format!(" source={source} ");
        let record = witness::wait_for_line(&scene.block_log, &of, BOUND)?;
        assert!(record.contains(" killed=1 "), "{record}");
        if !record.ends_with("outcome=ok") {
            refused = Some(record);
            break;
        }
    }
    let record = refused.ok_or_else(|| LabError::new("a full set took 64 more"))?;
    for part in [" ban ", " outcome=failed error=\"", SET, "full"] {
        assert!(record.contains(part), "no `{part}` in {record}");
    }
    daemon.wait_for_message("enforcement failed", BOUND)?;

    scene.shell(&format!("ipset flush {SET}"))?;
    scene.ban("198.51.100.13")?;
    stop(daemon)
}

/// The process of the daemon that runs iptables.
fn rule_keeper(daemon: &Daemon) -> Result<Option<Pid>> {
    let id = daemon.id();
    let read = |path: String| fs::read_to_string(&path).map_err(LabError::while_trying(path));
    let children = read(format!("/proc/{id}/task/{id}/children"))?;
    Ok(children.split_whitespace().find_map(|child| {
        let arguments = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
        let pid = Pid::from_raw(child.parse().ok()?)?;
        arguments.contains("rule-keeper").then_some(pid)
    }))
}

#[test]
fn a_rule_keeper_that_is_killed_or_hangs_holds_no_ban_up_and_is_replaced() -> Result<()> {
    for variant in &VARIANTS {
        let scene = Scene::new(variant)?;
        let daemon = scene.start(&[])?;
        let find = || rule_keeper(&daemon);
        let keeper = eventually("the rule keeper", BOUND, find)?;
        let signal = |signal| kill_process(keeper, signal).map_err(LabError::while_trying("kill"));

        // Whatever it does, an enforcement does not wait for it.
        signal(Signal::STOP)?;
        scene.ban(OFFENDER)?;
        witness::wait_for_line(&scene.block_log, "outcome=ok", BOUND)?;
        signal(Signal::KILL)?;
        daemon.wait_for_message("the process that keeps the rule died (signal: 9", BOUND)?;
        scene.shell(&format!("{} -F", variant.v4))?;
        scene.wait_for_rules(variant, Duration::from_secs(3))?;
        let successor = eventually("another rule keeper", BOUND, find)?;
        assert_ne!(keeper, successor);
        // The successor's answers are heard: it is asked again and again.
        scene.shell(&format!("{} -F", variant.v4))?;
        scene.wait_for_rules(variant, BACK_BOUND)?;
        scene.shell(&format!("{} -F", variant.v4))?;
        scene.wait_for_rules(variant, BACK_BOUND)?;
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn after_a_crash_rule_and_bans_are_there_and_the_next_run_accounts_for_each() -> Result<()> {
    let scene = Scene::new(&VARIANTS[0])?;
    let daemon = scene.start(&[])?;
    scene.ban(OFFENDER)?;
    witness::wait_for_line(&scene.block_log, OFFENDER, BOUND)?;
    daemon.kill()?;
    scene.wait_for_rules(&VARIANTS[0], Duration::ZERO)?;
    assert_eq!(scene.members()?, [OFFENDER]);
    // As if the crash had come between the ban and its record.
    scene.shell(&format!(
        "ipset add {SET} 198.51.100.13; ipset add {SET6} 2001:db8:13::/64 timeout 50"
    ))?;

    for _ in 0..2 {
        let daemon = scene.start(&[])?;
        daemon.wait_for_message("took over the bans", BOUND)?;
        scene.accounts_for(OFFENDER, &["198.51.100.13", "2001:db8:13::/64"])?;
        assert_eq!(scene.members()?, [OFFENDER, "198.51.100.13"]);
        scene.wait_for_rules(&VARIANTS[0], Duration::ZERO)?;
        // What was taken over is kept as what was banned by this run.
        scene.shell(&destroy_set(&VARIANTS[0]))?;
        for banned in [OFFENDER, "198.51.100.13"] {
            witness::wait_for_member(scene.server(), SET, banned, true, BACK_BOUND)?;
        }
        daemon.kill()?;
    }
    Ok(())
}
