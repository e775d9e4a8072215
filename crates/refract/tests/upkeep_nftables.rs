//! The table of nftables, kept in place by the real daemon: whoever takes it away, it comes back.
//!
//! The second eye is the operator's: `nft list table inet refract`, real connections. Verdicts rest on
//! the log here, because two lines of it are all that a ban takes. The counterpart of `upkeep.rs`.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    daemon::Daemon,
    eventually,
    knocker::Knocker,
    nft_table,
    peer::{Server, Talker},
    scene::{Scene, stop},
    witness,
};

const NFTABLES: &str = "--firewall=nftables";
const SET: &str = "refract_banned_users";
const SET6: &str = "refract_banned_users6";
const OFFENDER: &str = "198.51.100.12";
/// How long anything may take that is not itself the promise.
const BOUND: Duration = Duration::from_secs(10);
/// The promise: back within a second; and what `nft` itself takes on a busy machine.
const BACK_BOUND: Duration = Duration::from_millis(1_300);

/// The table as it is to be for TCP on port 443.
const TABLE: &str = "\
table inet refract {
	set banned_users {
		type ipv4_addr
		size 1048576
		timeout 1m
	}
	set banned_users6 {
		type ipv6_addr
		size 1048576
		timeout 1m
	}
	set banned_networks6_64 {
		type ipv6_addr
		size 1048576
		timeout 1m
	}
	chain banned {
		ip saddr @banned_users counter drop comment \"refract\"
		ip6 saddr @banned_users6 counter drop comment \"refract\"
		ip6 saddr & ffff:ffff:ffff:ffff:: == @banned_networks6_64 counter drop comment \"refract\"
		tcp flags syn reset tcp option mptcp comment \"refract\"
	}
	chain input {
		type filter hook input priority filter - 10; policy accept;
		tcp dport 443 jump banned comment \"refract\"
	}
}
";

/// The sets and chains of the table, without their elements and counts.
fn table(scene: &Scene) -> Result<String> {
    scene.shell("nft -s -t list table inet refract")
}

/// What is in a listing, in an order of its own: that of the kernel tells what was made last.
fn parts(listing: &str) -> Vec<String> {
    let lines = listing.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.filter(|line| *line != "table inet refract {");
    let mut parts: Vec<String> =
        lines.collect::<Vec<_>>().join("\n").split("\n}\n").map(str::to_owned).collect();
    parts.sort();
    parts
}

fn wait_for_table(scene: &Scene, bound: Duration) -> Result<()> {
    eventually("the table as it is to be", bound, || {
        Ok((nft_table::exists(scene.server())? && parts(&table(scene)?) == parts(TABLE))
            .then_some(()))
    })
}

fn members(scene: &Scene, set: &str) -> Result<Vec<String>> {
    let mut members = nft_table::members(scene.server(), set)?;
    members.sort();
    Ok(members)
}

fn wait_for_member(scene: &Scene, set: &str, member: &str, bound: Duration) -> Result<()> {
    eventually(&format!("{member} in {set}"), bound, || {
        Ok(members(scene, set)?.iter().any(|found| found == member).then_some(()))
    })
}

fn ban(scene: &Scene, offender: &str) -> Result<()> {
    scene.offend(offender)?;
    wait_for_member(scene, SET, offender, BOUND)
}

#[test]
fn the_table_is_there_once_whatever_was_there_and_however_often_it_starts() -> Result<()> {
    let scene = Scene::new()?;
    // Tables of others, one of them nearly of our name, stay as they are.
    scene.shell(
        "nft add table ip refract; nft add table inet filter; \
         nft add chain inet filter input \'{ type filter hook input priority 0; }\'; \
         nft add rule inet filter input tcp dport 22 accept",
    )?;
    let others = || scene.shell("nft list table ip refract; nft list table inet filter");
    let before = others()?;
    // An earlier run with another port and UDP leaves its rules, which the next run replaces.
    stop(scene.start(&[NFTABLES, "--dport=8443,9000-9010", "--proto=tcp,udp"])?)?;
    let listing = scene.shell("nft list table inet refract")?;
    for part in ["tcp dport 8443 jump banned", "udp dport 9000-9010 jump banned", "@banned_flows6 "]
    {
        assert!(listing.contains(part), "no `{part}` in {listing}");
    }
    for _ in 0..3 {
        let daemon = scene.start(&[NFTABLES])?;
        wait_for_table(&scene, Duration::ZERO)?;
        stop(daemon)?;
        wait_for_table(&scene, Duration::ZERO)?;
    }
    stop(scene.start(&[NFTABLES, "--strip-mptcp=false"])?)?;
    assert!(!table(&scene)?.contains("mptcp"));
    assert_eq!(others()?, before);
    assert_eq!(scene.shell("ipset list -name")?, "");
    assert_eq!(scene.shell("iptables -S | grep -v ^-P || true")?, "");
    Ok(())
}

#[test]
fn a_table_rule_or_set_that_somebody_takes_away_is_back_within_a_second_with_its_bans() -> Result<()>
{
    let scene = Scene::new()?;
    let daemon = scene.start(&[NFTABLES])?;
    ban(&scene, OFFENDER)?;
    scene.offend("2001:db8:12::2")?;
    wait_for_member(&scene, SET6, "2001:db8:12::/64", BOUND)?;
    for attack in [
        "nft flush ruleset",
        "nft delete table inet refract",
        // As firewalld and ufw reload: everything anew, with rules of their own.
        "printf 'flush ruleset\ntable inet filter { chain input { type filter hook input priority 0; \
         tcp dport 22 accept; }; }\n' | nft -f -",
        "nft flush chain inet refract input",
        "nft flush chain inet refract banned",
        "nft flush table inet refract",
        "nft flush chain inet refract input; nft delete chain inet refract input",
        "printf 'flush chain inet refract banned\ndelete set inet refract banned_users\n' | nft -f -",
        "nft insert rule inet refract input tcp dport 443 accept",
        "nft add rule inet refract banned accept",
        "nft add table inet refract \'{ flags dormant; }\'",
    ] {
        scene.shell(attack)?;
        let taken = Instant::now();
        wait_for_table(&scene, BACK_BOUND)?;
        for (set, member) in [(SET, OFFENDER), (SET6, "2001:db8:12::/64")] {
            wait_for_member(&scene, set, member, BACK_BOUND.saturating_sub(taken.elapsed()))?;
        }
        eprintln!("{attack:?}: mended after {:?}", taken.elapsed());
    }
    // The restored ban has the time it had left, not a new minute.
    let left = nft_table::seconds_left(scene.server(), SET, OFFENDER)?.unwrap();
    assert!((1..60).contains(&left), "{left}");
    assert_eq!(rule_keepers(&daemon)?, 0, "nftables takes no other process");
    stop(daemon)
}

/// The daemon's processes that run iptables.
fn rule_keepers(daemon: &Daemon) -> Result<usize> {
    let id = daemon.id();
    let path = format!("/proc/{id}/task/{id}/children");
    let children = fs::read_to_string(&path).map_err(LabError::while_trying(path))?;
    Ok(children.split_whitespace().count())
}

#[test]
fn bans_that_others_add_and_rules_of_others_elsewhere_cost_no_repair() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[NFTABLES])?;
    scene.shell(
        "nft add element inet refract banned_users \'{ 198.51.100.50 }\'; \
         nft add table inet mine; nft add chain inet mine c; nft add rule inet mine c accept; \
         iptables -I INPUT -p tcp --dport 22 -j ACCEPT",
    )?;
    // It has looked by then: this is mended, and nothing else was.
    scene.shell("nft flush chain inet refract input")?;
    wait_for_table(&scene, BACK_BOUND)?;
    let message = daemon.wait_for_message("were not in place; they are again", BOUND)?;
    assert!(message.contains("found=missing"), "{message}");
    assert_eq!(daemon.messages().matches("were not in place").count(), 1, "{}", daemon.messages());
    assert_eq!(members(&scene, SET)?, ["198.51.100.50"]);
    stop(daemon)
}

#[test]
fn a_ban_that_the_operator_lifted_stays_lifted_when_the_table_is_made_again() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[NFTABLES])?;
    for offender in ["198.51.100.12", "198.51.100.13", "198.51.100.14"] {
        ban(&scene, offender)?;
    }
    scene.shell("nft delete element inet refract banned_users \'{ 198.51.100.12 }\'")?;
    assert_eq!(scene.refract(&["unban", "198.51.100.13"])?.status, Some(0));
    for lifted in ["198.51.100.12", "198.51.100.13"] {
        daemon.wait_for_message(&format!("it stays lifted target={lifted}"), BOUND)?;
    }
    scene.shell("nft delete table inet refract")?;
    wait_for_member(&scene, SET, "198.51.100.14", BACK_BOUND)?;
    assert_eq!(members(&scene, SET)?, ["198.51.100.14"]);
    // And its device may be banned again for a new offence.
    ban(&scene, "198.51.100.12")?;
    stop(daemon)
}

#[test]
fn rules_that_are_mended_put_no_ban_back_that_was_lifted_a_moment_ago() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[NFTABLES])?;
    ban(&scene, OFFENDER)?;
    scene.shell(
        "nft delete element inet refract banned_users \'{ 198.51.100.12 }\'; \
         nft flush chain inet refract input",
    )?;
    wait_for_table(&scene, BACK_BOUND)?;
    daemon.wait_for_message("it stays lifted target=198.51.100.12", BOUND)?;
    assert_eq!(members(&scene, SET)?, [""; 0]);
    stop(daemon)
}

#[test]
fn a_leftover_set_that_is_not_as_ours_is_replaced_at_once_with_its_bans() -> Result<()> {
    for leftover in [
        "type ipv4_addr; elements = { 198.51.100.12 };",
        "type ipv4_addr; flags timeout; size 64; elements = { 198.51.100.12 timeout 5m };",
        "type ipv4_addr; flags timeout; timeout 5m; elements = { 198.51.100.12 };",
    ] {
        let mut scene = Scene::new()?;
        let client = scene.lab.add_client(&[OFFENDER])?;
        scene.shell(&format!(
            "nft -f - <<'END'
            table inet refract {{
                set banned_users {{ {leftover} }}
                chain input {{
                    type filter hook input priority -10;
                    tcp dport 443 ip saddr @banned_users counter drop
                }}
            }}
            table inet mine {{
                chain input {{
                    type filter hook input priority 0;
                    ip saddr {OFFENDER} tcp dport 443 counter accept
                }}
            }}
END"
        ))?;
        let counted = |chain: &str| packets(&scene, chain);
        let knocker = Knocker::start(&client, OFFENDER);
        eventually("packets that are stopped", BOUND, || {
            Ok((counted("refract input")? > 100).then_some(()))
        })?;
        let daemon = scene.start(&[NFTABLES])?;
        eventually("packets that are still stopped", BOUND, || {
            Ok((counted("refract banned")? > 100).then_some(()))
        })?;
        let passed = counted("mine input")?;
        assert_eq!(passed, 0, "packets of a banned client got through ({leftover})");
        assert_eq!(members(&scene, SET)?, [OFFENDER]);
        wait_for_table(&scene, Duration::ZERO)?;

        // The counter would have told.
        scene.shell(&format!("nft delete element inet refract banned_users '{{ {OFFENDER} }}'"))?;
        eventually("packets that get through", BOUND, || {
            Ok((counted("mine input")? > 100).then_some(()))
        })?;
        drop(knocker);
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn after_a_crash_table_and_bans_are_there_and_the_next_run_accounts_for_each() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[NFTABLES])?;
    ban(&scene, OFFENDER)?;
    witness::wait_for_line(&scene.block_log, OFFENDER, BOUND)?;
    daemon.kill()?;
    wait_for_table(&scene, Duration::ZERO)?;
    assert_eq!(members(&scene, SET)?, [OFFENDER]);
    // As if the crash had come between the ban and its record.
    scene.shell(
        "nft add element inet refract banned_users \'{ 198.51.100.13 }\'; \
         nft add element inet refract banned_networks6_64 \'{ 2001:db8:13:: timeout 50s }\'",
    )?;

    for _ in 0..2 {
        let daemon = scene.start(&[NFTABLES])?;
        daemon.wait_for_message("took over the bans", BOUND)?;
        scene.accounts_for(OFFENDER, &["198.51.100.13", "2001:db8:13::/64"])?;
        assert_eq!(members(&scene, SET)?, [OFFENDER, "198.51.100.13"]);
        // What was taken over is kept as what was banned by this run.
        scene.shell("nft flush ruleset")?;
        for banned in [OFFENDER, "198.51.100.13"] {
            wait_for_member(&scene, SET, banned, BACK_BOUND)?;
        }
        daemon.kill()?;
    }
    Ok(())
}

#[test]
fn a_full_set_is_said_recorded_and_stops_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let client = scene.lab.add_client(&[OFFENDER])?;
    let _echo = Server::echo(scene.server(), 443)?;
    let daemon = scene.start(&[NFTABLES])?;
    let batch = scene.lab.path("batch");
    let addresses = (0u32..1 << 20).map(|number| {
        let [_, a, b, c] = number.to_be_bytes();
        format!("10.{a}.{b}.{c} timeout 10m")
    });
    let addresses: Vec<String> = addresses.collect();
    let batches = addresses
        .chunks(1 << 16)
        .map(|some| format!("add element inet refract banned_users {{ {} }}\n", some.join(",")));
    fs::write(&batch, batches.collect::<String>())
        .map_err(LabError::while_trying("write a batch"))?;
    scene.shell(&format!("nft -f {}", batch.display()))?;

    let server = SocketAddr::new(IpAddr::from(support::lab::SERVER_V4), 443);
    let talker = Talker::connect(&client, client.v4()?, server)?;
    talker.progress().wait_for_bytes(100, BOUND)?;
    scene.offend_at(talker.local())?;
    talker.wait_for_reset()?;
    let record = witness::wait_for_line(&scene.block_log, OFFENDER, BOUND)?;
    for part in [" ban ", " killed=1 ", " outcome=failed error=\"", "banned_users", "full"] {
        assert!(record.contains(part), "no `{part}` in {record}");
    }
    daemon.wait_for_message("enforcement failed", BOUND)?;
    scene.shell("nft flush set inet refract banned_users")?;
    ban(&scene, "198.51.100.13")?;
    stop(daemon)
}

#[test]
fn another_plan_takes_over_at_once() -> Result<()> {
    let mut scene = Scene::new()?;
    let client = scene.lab.add_client(&[OFFENDER])?;
    let daemon = scene.start(&[NFTABLES, "--timeout=10m"])?;
    ban(&scene, OFFENDER)?;
    stop(daemon)?;
    scene.shell(&format!(
        "nft add table inet mine; \
         nft add chain inet mine input '{{ type filter hook input priority 0; }}'; \
         nft add rule inet mine input ip saddr {OFFENDER} tcp dport 443 counter accept"
    ))?;
    let passed = || packets(&scene, "mine input");
    let knocker = Knocker::start(&client, OFFENDER);
    for flags in [&["--dport=443,8443"][..], &["--dport=400-500"], &["--proto=tcp,udp"], &[]] {
        let daemon = scene.start(&[&[NFTABLES], flags].concat())?;
        eventually("packets that are still stopped", BOUND, || {
            Ok((packets(&scene, "refract banned")? > 100).then_some(()))
        })?;
        stop(daemon)?;
    }
    drop(knocker);
    assert_eq!(passed()?, 0, "packets of a banned client got through");
    Ok(())
}

/// What the rules of a chain have counted.
fn packets(scene: &Scene, chain: &str) -> Result<u64> {
    let listing = scene.shell(&format!("nft list chain inet {chain}"))?;
    let counts = listing.split("counter packets ").skip(1);
    Ok(counts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}
