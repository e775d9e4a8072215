//! Which firewall is chosen, what moves when another is, and in which chain the rule is.
//!
//! The daemon is the real one, over both firewalls; the second eyes are `nft`, `ipset`, `iptables`,
//! their counters, and real connections that come to the server or are passed on by it.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    daemon::Daemon,
    eventually,
    knocker::Knocker,
    lab::{Host, SERVER_V4},
    nft_table,
    peer::{Server, Talker, connect_from},
    scene::{Ended, Scene, stop},
};

const AUTO: &str = "--firewall=auto";
const IPTABLES: &str = "--firewall=iptables";
const NFTABLES: &str = "--firewall=nftables";
const SET: &str = "refract_banned_users";
const SET6: &str = "refract_banned_users6";
const OFFENDER: &str = "198.51.100.12";
const BOUND: Duration = Duration::from_secs(10);
/// The promise: back within a second; and what iptables itself takes on a busy machine.
const BACK_BOUND: Duration = Duration::from_millis(1_300);
const RULE: &str = "-p tcp -m tcp --dport 443 -m set --match-set refract_banned_users src -j DROP";

/// What to do about an iptables that does not work.
const MEND: &str = "mend it, name another with --iptables=PATH, or use --firewall=nftables, which \
                    needs no program";
/// Runs what follows where no program of iptables is to be found: all of them lie in one directory.
const WITHOUT_IPTABLES: [&str; 5] =
    ["unshare", "--mount", "sh", "-ec", "mount -t tmpfs none /usr/sbin; exec \"$0\" \"$@\""];
const WITHOUT_NET_RAW: [&str; 5] =
    ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];

/// The members of a set of ipset, whichever firewall the tests are about.
fn ipset_members(scene: &Scene, set: &str) -> Result<Vec<String>> {
    let script = format!("ipset list {set} 2>&- | sed '1,/^Members:/d' | cut -d' ' -f1");
    let mut members: Vec<String> = scene.shell(&script)?.lines().map(str::to_owned).collect();
    members.sort();
    Ok(members)
}

fn table_members(scene: &Scene, set: &str) -> Result<Vec<String>> {
    let mut members = nft_table::members(scene.server(), set)?;
    members.sort();
    Ok(members)
}

fn ipset_seconds(scene: &Scene, set: &str, member: &str) -> Result<u64> {
    let found = scene.shell(&format!("ipset list {set} | grep '^{member} timeout '"))?;
    let seconds = found.trim().rsplit(' ').next().unwrap_or_default();
    seconds.parse().map_err(LabError::while_trying(format!("read {found}")))
}

/// Bans by the log's word, and waits until the ban is in one firewall or the other.
fn ban(scene: &Scene, offender: &str) -> Result<()> {
    scene.offend(offender)?;
    let member = if offender.contains(':') { "2001:db8:12::/64" } else { offender };
    let set = if offender.contains(':') { SET6 } else { SET };
    eventually(&format!("{member} in a set"), BOUND, || {
        let mut members = ipset_members(scene, set)?;
        members.extend(table_members(scene, set)?);
        Ok(members.iter().any(|found| found == member).then_some(()))
    })
}

/// The rules of ours in every chain that iptables of this variant knows.
fn our_rules(scene: &Scene, program: &str) -> Result<Vec<String>> {
    let script = format!(
        "for tool in {program} {}; do $tool -S; $tool -t mangle -S; done | grep refract || true",
        program.replace("iptables", "ip6tables")
    );
    Ok(scene.shell(&script)?.lines().map(str::to_owned).collect())
}

/// Nothing of ours is left with iptables and ipset.
fn assert_no_iptables(scene: &Scene) -> Result<()> {
    for program in ["iptables", "iptables-legacy"] {
        assert_eq!(our_rules(scene, program)?, [""; 0], "{program}");
    }
    assert_eq!(scene.shell("ipset list -name")?, "");
    Ok(())
}

/// What the daemon says of its choice at the start.
fn choice(daemon: &Daemon) -> Result<String> {
    daemon.wait_for_message("the firewall is", BOUND)
}

fn broken(program: &str) -> String {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel/tests/broken_programs");
    format!("--iptables={}", programs.join(program).join("iptables").display())
}

#[test]
fn auto_takes_iptables_where_it_works_and_says_so() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[AUTO])?;
    let said = choice(&daemon)?;
    assert!(
        said.contains("the firewall is iptables because=\"iptables and ipset work here\""),
        "{said}"
    );
    assert!(!nft_table::exists(scene.server())?);
    assert_eq!(our_rules(&scene, "iptables")?.len(), 4);
    stop(daemon)
}

#[test]
fn an_iptables_that_does_not_work_makes_auto_say_why_and_take_nftables() -> Result<()> {
    for (program, why) in [
        ("failing", "it ended with exit status: 1: this iptables is broken"),
        ("garbage", "its answer is not that of an iptables"),
        ("lying", "its answer is not that of an iptables"),
        // This one only shows itself when the rule is to be put in place.
        ("stubborn", "somebody else keeps changing chain INPUT"),
        ("nowhere", "install the package iptables"),
    ] {
        let scene = Scene::new()?;
        let daemon = scene.start(&[AUTO, &broken(program)])?;
        let said = choice(&daemon)?;
        for part in ["the firewall is nftables", "iptables cannot be used: ", why] {
            assert!(said.contains(part), "no `{part}` in {said}");
        }
        assert!(!daemon.messages().contains(MEND), "what it does anyway is no remedy");
        let named = broken(program).replace("--iptables=", "");
        let warned = format!("{named}, which --iptables names, cannot be used: ");
        let warned = daemon.wait_for_message(&warned, BOUND)?;
        for part in ["WARN", why] {
            assert!(warned.contains(part), "no `{part}` in {warned}");
        }
        assert!(nft_table::exists(scene.server())?);
        assert_no_iptables(&scene)?;
        ban(&scene, OFFENDER)?;
        stop(daemon)?;
        // Whoever ordered it is refused, with one sentence, and nothing is left.
        let scene = Scene::new()?;
        let refused = scene.refused(&[], &[IPTABLES, &broken(program)])?;
        refused.is_refusal(&[why]);
        let is_told = ["failing", "garbage", "lying"].contains(&program);
        assert_eq!(refused.err.matches(MEND).count(), usize::from(is_told), "{refused:?}");
        assert_no_iptables(&scene)?;
        assert!(!nft_table::exists(scene.server())?);
    }
    Ok(())
}

#[test]
fn an_iptables_that_fails_only_at_the_change_comes_with_the_remedy_too() -> Result<()> {
    let scene = Scene::new()?;
    for (name, script) in [
        ("iptables", "exec /usr/sbin/iptables-nft \"$@\""),
        ("iptables-restore", "echo 'it does not suit me' >&2; exit 3"),
    ] {
        let path = scene.lab.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .map_err(LabError::while_trying("write a program"))?;
    }
    let program = format!("--iptables={}", scene.lab.path("iptables").display());
    let refused = scene.refused(&[], &[IPTABLES, &program])?;
    refused.is_refusal(&["it ended with exit status: 3: it does not suit me; ", MEND]);
    assert_no_iptables(&scene)
}

#[test]
fn an_iptables_that_hangs_is_given_up_in_time() -> Result<()> {
    let scene = Scene::new()?;
    let flags = scene.flags(&[AUTO, &broken("hanging")]);
    let command = support::daemon::command(Path::new(env!("CARGO_BIN_EXE_refract")), &flags);
    let process = support::process::Process::start(scene.server(), &command)?;
    let patience = Duration::from_secs(40);
    let said =
        process.wait_for_line("its choice", patience, |line| line.contains("the firewall is"))?;
    for part in ["nftables", "it was stopped after 10 s without an answer"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    process.wait_for_line("that it is ready", BOUND, |line| line.contains(" ready "))?;
    Ok(())
}

#[test]
fn without_net_raw_auto_takes_nftables_and_iptables_is_refused_with_the_remedy() -> Result<()> {
    let scene = Scene::new()?;
    let refused = scene.refused(&WITHOUT_NET_RAW, &[IPTABLES])?;
    refused.is_refusal(&["CAP_NET_RAW is missing", "--firewall=nftables"]);
    let daemon = scene.start_under(&WITHOUT_NET_RAW, &[AUTO])?;
    let said = choice(&daemon)?;
    for part in ["the firewall is nftables", "CAP_NET_RAW is missing, which iptables takes"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    ban(&scene, OFFENDER)?;
    assert_eq!(table_members(&scene, SET)?, [OFFENDER]);
    stop(daemon)?;
    // And so are the commands: the ban is shown, lifted, and all is taken away.
    let under = |arguments: &[&str]| -> Result<Ended> {
        let mut all = WITHOUT_NET_RAW[1..].to_vec();
        all.push(env!("CARGO_BIN_EXE_refract"));
        all.extend(arguments);
        scene.run("setpriv", &all)
    };
    assert!(under(&["list"])?.out.contains(OFFENDER));
    assert_eq!(under(&["unban", OFFENDER])?.out, format!("lifted {OFFENDER}\n"));
    let removed = under(&["uninstall"])?.out;
    let unseen = "did not look for rules of iptables: CAP_NET_RAW is missing";
    assert_eq!(removed, format!("deleted the table inet refract\n{unseen}\n"));
    assert!(!nft_table::exists(scene.server())?);
    Ok(())
}

#[test]
fn an_uninstall_that_cannot_use_iptables_says_where_it_can() -> Result<()> {
    let scene = Scene::new()?;
    stop(scene.start(&[IPTABLES])?)?;
    let sentence = "there are sets of refract's that rules of iptables look up, and those cannot be \
                    removed from here, since";
    for (wrapper, why) in [
        (&WITHOUT_NET_RAW[..], "CAP_NET_RAW is missing"),
        (&WITHOUT_IPTABLES[..], "there is no iptables"),
    ] {
        // In a container, what to do is to be done outside of it.
        let inside = [&["env", "container=docker"], wrapper].concat();
        let mut all = inside[1..].to_vec();
        all.extend([env!("CARGO_BIN_EXE_refract"), "uninstall"]);
        let refused = scene.run(inside[0], &all)?;
        refused.is_refusal(&[
            sentence,
            why,
            "run `refract uninstall` as root on the host, outside this container, where iptables is",
        ]);
        for useless in ["--firewall", "cap_add", "remove the rule first"] {
            assert!(!refused.err.contains(useless), "{refused:?}");
        }
        assert_eq!(our_rules(&scene, "iptables")?.len(), 4);
        assert!(scene.shell("ipset list -name")?.contains(SET));
    }
    // The remedy that was said.
    assert_eq!(scene.refract(&["uninstall"])?.status, Some(0));
    assert_no_iptables(&scene)
}

#[test]
fn an_uninstall_for_which_iptables_is_broken_says_what_stays_and_what_to_do() -> Result<()> {
    let scene = Scene::new()?;
    stop(scene.start(&[IPTABLES])?)?;
    let uninstall = [env!("CARGO_BIN_EXE_refract"), "uninstall"];
    // Every program of iptables that it would look for ends at once, and says nothing.
    let broken = "mount -t tmpfs none /usr/sbin
                  for name in iptables ip6tables iptables-nft ip6tables-nft iptables-legacy \
                      ip6tables-legacy; do
                      printf '#!/bin/sh\\nexit 1\\n' >/usr/sbin/$name
                      chmod 755 /usr/sbin/$name
                  done
                  exec \"$0\" \"$@\"";
    let wrapper = ["--mount", "sh", "-ec", broken];
    let refused = scene.run("unshare", &[&wrapper[..], &uninstall].concat())?;
    refused.is_refusal(&[
        "it ended with exit status: 1: it did not say why; so the rule that looks up refract's sets \
         is still there, and so are they",
        "mend iptables, or name one that works with --iptables=PATH",
    ]);
    assert!(!refused.err.contains("--firewall"), "{refused:?}");
    assert_eq!(our_rules(&scene, "iptables")?.len(), 4);
    assert!(scene.shell("ipset list -name")?.contains(SET));
    // The remedy that was said.
    let works = scene.lab.path("works").display().to_string();
    scene.shell(&format!(
        "mkdir {works}; cp /usr/sbin/xtables-nft-multi {works}
         for tool in iptables ip6tables; do
             for name in $tool $tool-restore $tool-save; do
                 ln -s xtables-nft-multi {works}/$name
             done
         done"
    ))?;
    let named = format!("--iptables={works}/iptables");
    let removed = scene.run("unshare", &[&wrapper[..], &uninstall, &[&named]].concat())?;
    assert_eq!(removed.status, Some(0), "{removed:?}");
    assert_no_iptables(&scene)
}

#[test]
fn without_an_iptables_on_the_machine_auto_takes_nftables() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start_under(&WITHOUT_IPTABLES, &[AUTO])?;
    let said = choice(&daemon)?;
    for part in ["the firewall is nftables", "cannot find iptables", "install the package iptables"]
    {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    assert!(!daemon.messages().contains("--iptables names"), "nobody named one");
    ban(&scene, OFFENDER)?;
    stop(daemon)
}

/// What a daemon is run under for its `which` calls of socket(2) to be answered as by a kernel without
/// netfilter (`when` of `strace`). No kernel here lacks what the tests need, so it takes an `strace` to be told so.
fn without_netfilter_at(which: &str) -> Vec<String> {
    let calls = "strace -D -qq -o /dev/null -e trace=socket -e";
    let inject = format!("inject=socket:error=EPROTONOSUPPORT:when={which}");
    calls.split(' ').map(str::to_owned).chain([inject]).collect()
}

/// At which call of socket(2) the daemon opens its sockets of netfilter, in their order.
fn netfilter_sockets(flag: &str) -> Result<Vec<usize>> {
    let scene = Scene::new()?;
    let calls = scene.lab.path("calls");
    let path = calls.display().to_string();
    let strace = ["strace", "-D", "-qq", "-o", &path, "-e", "trace=socket"];
    let daemon = scene.start_under(&strace, &[flag])?;
    let read =
        || fs::read_to_string(&calls).map_err(LabError::while_trying("read what strace saw"));
    let found = eventually("the sockets of netfilter", BOUND, || {
        let calls = read()?;
        let calls = calls.lines().filter(|line| line.starts_with("socket("));
        let places = calls.enumerate().filter(|(_, call)| call.contains("NETLINK_NETFILTER"));
        let places: Vec<usize> = places.map(|(place, _)| place + 1).collect();
        Ok((places.len() >= 2).then_some(places))
    })?;
    stop(daemon)?;
    Ok(found)
}

#[test]
fn a_kernel_without_ipset_or_nftables_is_told_with_the_remedy() -> Result<()> {
    // The first one hears of changes; the next is the one that bans go through.
    let [_, ipset, ..] = netfilter_sockets(IPTABLES)?[..] else { panic!("no socket for ipset") };
    let [_, nftables, ..] = netfilter_sockets(NFTABLES)?[..] else { panic!("none for nftables") };
    let scene = Scene::new()?;
    let no_ipset = without_netfilter_at(&ipset.to_string());
    let no_ipset: Vec<&str> = no_ipset.iter().map(String::as_str).collect();
    let refused = scene.refused(&no_ipset, &[IPTABLES])?;
    refused.is_refusal(&["the kernel has no ipset: load it with `modprobe ip_set`"]);

    let no_nftables = without_netfilter_at(&nftables.to_string());
    let no_nftables: Vec<&str> = no_nftables.iter().map(String::as_str).collect();
    let refused = scene.refused(&no_nftables, &[NFTABLES])?;
    refused.is_refusal(&["the kernel has no nftables: load it with `modprobe nf_tables`"]);

    let daemon = scene.start_under(&no_ipset, &[AUTO])?;
    let said = choice(&daemon)?;
    for part in ["the firewall is nftables", "the kernel has no ipset", "modprobe ip_set"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    ban(&scene, OFFENDER)?;
    stop(daemon)?;
    assert_eq!(scene.refract(&["uninstall"])?.status, Some(0));

    // A kernel that has neither.
    let neither = without_netfilter_at(&format!("{ipset}+"));
    let neither: Vec<&str> = neither.iter().map(String::as_str).collect();
    scene.refused(&neither, &[AUTO])?.is_refusal(&[
        "no firewall can be used here",
        "the kernel has no ipset",
        "the kernel has no nftables",
    ]);
    assert_no_iptables(&scene)?;
    assert!(!nft_table::exists(scene.server())?);
    Ok(())
}

#[test]
fn bans_move_to_the_other_firewall_and_back_without_a_packet_getting_through() -> Result<()> {
    for program in ["iptables", "iptables-legacy"] {
        let mut scene = Scene::new()?;
        let client = scene.lab.add_client(&[OFFENDER])?;
        let binary = format!("--iptables=/usr/sbin/{program}");
        let with_iptables = [IPTABLES, "--timeout=5m", &binary];
        let with_nftables = [NFTABLES, "--timeout=1m", &binary];
        let daemon = scene.start(&with_iptables)?;
        ban(&scene, OFFENDER)?;
        ban(&scene, "2001:db8:12::2")?;
        stop(daemon)?;
        // What gets by either firewall of ours would be counted here.
        scene.shell(&format!("{program} -A INPUT -s {OFFENDER} -p tcp --dport 443 -j ACCEPT"))?;
        let passed = || -> Result<u64> {
            let rules = scene.shell(&format!("{program}-save -c -t filter"))?;
            let rule = rules.lines().find(|line| line.ends_with("-j ACCEPT"));
            let count = rule.and_then(|rule| rule.strip_prefix('[')?.split(':').next());
            count.unwrap_or_default().parse().map_err(LabError::while_trying("read a counter"))
        };
        let dropped = || nft_table::packets_dropped(scene.server(), SET);
        let knocker = Knocker::start(&client, OFFENDER);
        for round in 0..3 {
            let daemon = scene.start(&with_nftables)?;
            daemon
                .wait_for_message("moved the bans of an earlier run with iptables bans=2", BOUND)?;
            assert_no_iptables(&scene)?;
            assert_eq!(table_members(&scene, SET)?, [OFFENDER]);
            assert_eq!(table_members(&scene, SET6)?, ["2001:db8:12::/64"]);
            let left = nft_table::seconds_left(scene.server(), SET, OFFENDER)?.unwrap();
            assert!((200..=300).contains(&left), "not the time that it had left: {left}");
            let before = dropped()?;
            eventually("packets that the table stops", BOUND, || {
                Ok((dropped()? > before + 100).then_some(()))
            })?;
            stop(daemon)?;

            let daemon = scene.start(&with_iptables)?;
            daemon
                .wait_for_message("moved the bans of an earlier run with nftables bans=2", BOUND)?;
            daemon.wait_for_message("deleted the table inet refract of an earlier run", BOUND)?;
            assert!(!nft_table::exists(scene.server())?);
            assert_eq!(ipset_members(&scene, SET)?, [OFFENDER]);
            assert_eq!(ipset_members(&scene, SET6)?, ["2001:db8:12::/64"]);
            let left = ipset_seconds(&scene, SET, OFFENDER)?;
            assert!((200..=300).contains(&left), "not the time that it had left: {left}");
            // One rule for each family, and one against MPTCP.
            assert_eq!(our_rules(&scene, program)?.len(), 4, "round {round}");
            stop(daemon)?;
            assert_eq!(passed()?, 0, "packets of a banned client got through in round {round}");
        }
        // The counter would have told.
        assert_eq!(scene.refract(&["unban", "--all"])?.status, Some(0));
        eventually("packets that get through", BOUND, || Ok((passed()? > 0).then_some(())))?;
        drop(knocker);
    }
    Ok(())
}

/// Runs `refract doctor` in a scene, by way of `wrapper` if that is not empty.
fn doctor(scene: &Scene, wrapper: &[&str], more: &[&str]) -> Result<Ended> {
    let flags = scene.flags(more);
    let mut all: Vec<&str> = wrapper.to_vec();
    all.extend([env!("CARGO_BIN_EXE_refract"), "doctor"]);
    all.extend(flags.iter().map(String::as_str));
    scene.run(all[0], &all[1..])
}

#[test]
fn a_change_of_the_iptables_takes_the_rules_of_the_other_one_away() -> Result<()> {
    let (nft, legacy) = ("/usr/sbin/iptables-nft", "/usr/sbin/iptables-legacy");
    let own = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";
    for (old, kind, new, flag) in [
        (legacy, "legacy", "/usr/sbin/iptables", AUTO),
        (legacy, "legacy", nft, IPTABLES),
        (nft, "nf_tables", legacy, AUTO),
    ] {
        let mut scene = Scene::new()?;
        let client = scene.lab.add_client(&[OFFENDER])?;
        let _echo = Server::echo(scene.server(), 443)?;
        let with = |program: &str| format!("--iptables={program}");
        let daemon = scene.start(&[IPTABLES, "--proto=tcp,udp", &with(old)])?;
        ban(&scene, OFFENDER)?;
        stop(daemon)?;
        // Another earlier run had it in another chain.
        scene.shell(&format!("{old} -A FORWARD {RULE}; {old} {own}"))?;
        assert!(!reaches(&client, SERVER_V4.into())?);

        let next = [flag, "--dport=8443", &with(new)];
        let looked = doctor(&scene, &[], &next)?.out;
        let found = format!("note  rule: an earlier run left 9 rules with {old}, ");
        assert!(looked.contains(&found), "no `{found}` in {looked}");
        assert_eq!(our_rules(&scene, old)?.len(), 9, "doctor changed something");

        let daemon = scene.start(&next)?;
        for what in ["the rule", "the rule against MPTCP"] {
            let line =
                format!("of an earlier run with iptables ({kind}): removed {what} from {old}");
            let said = daemon.wait_for_message(&line, BOUND)?;
            assert!(said.contains("INFO"), "{said}");
        }
        assert_eq!(our_rules(&scene, old)?, [""; 0]);
        assert!(scene.shell(&format!("{old} -S INPUT"))?.contains(own));
        let rules = our_rules(&scene, new)?;
        assert_eq!(rules.len(), 4, "{rules:#?}");
        assert!(rules.iter().all(|rule| rule.contains("--dport 8443 ")), "{rules:#?}");
        assert_eq!(ipset_members(&scene, SET)?, [OFFENDER], "the bans stay");
        assert!(reaches(&client, SERVER_V4.into())?, "on a port that is not protected any more");
        assert!(!doctor(&scene, &[], &next)?.out.contains("an earlier run"));
        stop(daemon)?;

        let daemon = scene.start(&next)?;
        let said = daemon.messages();
        assert!(!said.contains("of an earlier run"), "{said}");
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn looking_for_rules_of_the_other_iptables_makes_no_table() -> Result<()> {
    let scene = Scene::new()?;
    let tables = || scene.shell("cd /proc/net; grep . ip_tables_names ip6_tables_names || true");
    let flags = [IPTABLES, "--iptables=/usr/sbin/iptables-nft"];
    stop(scene.start(&flags)?)?;
    doctor(&scene, &[], &flags)?;
    assert_eq!(tables()?, "");
    scene.shell("iptables-legacy -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT")?;
    stop(scene.start(&flags)?)?;
    doctor(&scene, &[], &flags)?;
    assert_eq!(scene.refract(&["uninstall"])?.status, Some(0));
    assert_eq!(tables()?, "ip_tables_names:filter\n");
    Ok(())
}

#[test]
fn another_iptables_that_is_not_there_or_broken_holds_nothing_up() -> Result<()> {
    let scene = Scene::new()?;
    let folder = scene.lab.path("sbin");
    let script = format!(
        "cp -a /usr/sbin/*tables* {0}; rm {0}/*legacy*; mount --bind {0} /usr/sbin; exec \"$0\" \"$@\"",
        folder.display()
    );
    fs::create_dir(&folder).map_err(LabError::while_trying("make a directory"))?;
    let absent = ["unshare", "--mount", "sh", "-ec", &script];
    let script = "mount --bind /bin/false /usr/sbin/xtables-legacy-multi; exec \"$0\" \"$@\"";
    let broken = ["unshare", "--mount", "sh", "-ec", script];
    let flags = [IPTABLES, "--iptables=/usr/sbin/iptables-nft", "--dport=8443"];
    for (wrapper, warning) in [
        (&absent, None),
        (&broken, Some("a rule that an earlier run may have left with iptables (legacy)")),
    ] {
        stop(scene.start(&[IPTABLES, "--iptables=/usr/sbin/iptables-legacy"])?)?;
        let daemon = scene.start_under(wrapper, &flags)?;
        if let Some(warning) = warning {
            let said = daemon.wait_for_message(warning, BOUND)?;
            for part in ["WARN", "it ended with exit status: 1", "then start refract again"] {
                assert!(said.contains(part), "no `{part}` in {said}");
            }
        }
        let said = daemon.messages();
        assert_eq!(said.contains("an earlier run"), warning.is_some(), "{said}");
        assert_eq!(our_rules(&scene, "iptables-nft")?.len(), 4);
        assert_eq!(our_rules(&scene, "iptables-legacy")?.len(), 4);
        stop(daemon)?;
    }
    // The remedy that was said.
    stop(scene.start(&flags)?)?;
    assert_eq!(our_rules(&scene, "iptables-legacy")?, [""; 0]);
    Ok(())
}

#[test]
fn where_the_old_iptables_is_not_there_bans_are_copied_and_what_stays_is_said() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[IPTABLES])?;
    ban(&scene, OFFENDER)?;
    stop(daemon)?;
    let daemon = scene.start_under(&WITHOUT_IPTABLES, &[AUTO])?;
    let said = daemon.wait_for_message("what an earlier run with iptables left", BOUND)?;
    for part in [
        "in use by a firewall rule",
        "its bans were copied",
        "`refract uninstall` where iptables works",
    ] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    assert_eq!(table_members(&scene, SET)?, [OFFENDER]);
    assert_eq!(ipset_members(&scene, SET)?, [OFFENDER]);

    // Both hold the ban: it is listed once, and lifted from both.
    let listed = scene.refract(&["list"])?.out;
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert_eq!(scene.refract(&["unban", OFFENDER])?.out, format!("lifted {OFFENDER}\n"));
    assert_eq!(table_members(&scene, SET)?, [""; 0]);
    assert_eq!(ipset_members(&scene, SET)?, [""; 0]);
    let none = scene.refract(&["unban", "--all"])?;
    assert_eq!((none.status, none.out.as_str()), (Some(0), "there was no ban to lift\n"));
    stop(daemon)?;

    // The remedy that was said: both are removed.
    let removed = scene.refract(&["uninstall"])?;
    for part in ["deleted the table inet refract", "removed the rule from", "destroyed the set"] {
        assert!(removed.out.contains(part), "no `{part}` in {removed:?}");
    }
    assert_no_iptables(&scene)?;
    assert!(!nft_table::exists(scene.server())?);
    let nothing = scene.refract(&["uninstall"])?;
    assert_eq!(nothing.out, "there is nothing of refract's in this network namespace\n");
    Ok(())
}

#[test]
fn a_rule_against_mptcp_does_not_outlive_the_sets_of_an_earlier_run() -> Result<()> {
    for program in ["iptables", "iptables-legacy"] {
        let scene = Scene::new()?;
        stop(scene.start(&[IPTABLES, &format!("--iptables=/usr/sbin/{program}")])?)?;
        let flush = "for tool in iptables ip6tables iptables-legacy ip6tables-legacy; do $tool -F INPUT; \
                     done; ipset destroy";
        scene.shell(flush)?;
        assert_eq!(our_rules(&scene, program)?.len(), 2, "those against MPTCP, {program}");
        let daemon = scene.start(&[NFTABLES])?;
        daemon.wait_for_message("removed the rule against MPTCP", BOUND)?;
        assert_no_iptables(&scene)?;
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn doctor_examines_the_firewall_that_would_be_chosen() -> Result<()> {
    let scene = Scene::new()?;
    let doctor = |wrapper: &[&str], more: &[&str]| doctor(&scene, wrapper, more);
    let finds = |ended: &Ended, parts: &[&str]| {
        for part in parts {
            assert!(ended.out.contains(part), "no `{part}` in {ended:?}");
        }
        let is_bad = ended.out.contains("BAD");
        assert_eq!(ended.status, Some(i32::from(is_bad)), "{ended:?}");
    };
    finds(&doctor(&[], &[AUTO])?, &["ok    firewall: iptables (iptables and ipset work here)"]);
    finds(
        &doctor(&[], &[NFTABLES])?,
        &[
            "ok    firewall: nftables",
            "ok    sets: the kernel has nftables; 0 bans",
            "note  rule: the table inet refract is not as these flags want it (missing)",
            "note  MPTCP: not stripped as these flags want it",
        ],
    );
    assert!(!nft_table::exists(scene.server())?, "it changes nothing");
    assert_no_iptables(&scene)?;

    let daemon = scene.start(&[NFTABLES])?;
    ban(&scene, OFFENDER)?;
    finds(
        &doctor(&[], &[NFTABLES])?,
        &[
            "ok    sets: the kernel has nftables; 1 bans",
            "ok    rule: the table inet refract is in place",
            "ok    MPTCP: stripped from handshakes",
        ],
    );
    finds(
        &doctor(&[], &[IPTABLES])?,
        &[
            "ok    sets: the kernel has ipset; 0 bans",
            "note  firewall: an earlier run left 1 bans with nftables",
        ],
    );
    stop(daemon)?;
    finds(
        &doctor(&WITHOUT_NET_RAW, &[AUTO])?,
        &[
            "ok    rights: CAP_NET_ADMIN; CAP_NET_RAW, which iptables takes, is missing",
            "ok    firewall: nftables (iptables cannot be used: CAP_NET_RAW is missing",
        ],
    );
    finds(&doctor(&WITHOUT_NET_RAW, &[IPTABLES])?, &["BAD   rights: CAP_NET_RAW is missing"]);
    finds(
        &doctor(&[], &[AUTO, &broken("failing")])?,
        &["note  firewall: nftables (iptables cannot be used: ", "this iptables is broken"],
    );
    finds(&doctor(&[], &[IPTABLES, &broken("failing")])?, &["BAD   rule: ", MEND]);
    doctor(&[], &[NFTABLES, "--chain=mine"])?
        .is_refusal_with(2, &["nftables has no chain mine to hook: use --chain=INPUT"]);
    finds(&doctor(&[], &[AUTO, "--chain=mine"])?, &["BAD   firewall: ", "there is no chain mine"]);
    Ok(())
}

/// A server that passes packets on to a proxy in a network namespace of its own, as a bridged
/// container is.
struct Bridged {
    scene: Scene,
    proxy: Host,
    offender: Host,
    other: Host,
    _echo: Server,
}

const PROXY: &str = "198.51.100.80";

fn reaches(from: &Host, at: IpAddr) -> Result<bool> {
    let (source, at) = (SocketAddr::new(from.v4()?, 0), SocketAddr::new(at, 443));
    // Where nothing drops it, the answer comes at once.
    from.run(|| Ok(connect_from(source, at, Duration::from_secs(1)).is_ok()))
}

impl Bridged {
    fn new() -> Result<Self> {
        let mut scene = Scene::new()?;
        let proxy = scene.lab.add_client(&[PROXY])?;
        let offender = scene.lab.add_client(&[OFFENDER])?;
        let other = scene.lab.add_client(&["198.51.100.13"])?;
        scene.shell("sysctl -qw net.ipv4.ip_forward=1")?;
        let echo = Server::echo(&proxy, 443)?;
        Ok(Self { scene, proxy, offender, other, _echo: echo })
    }

    /// Whether the offender reaches the proxy.
    fn offender_gets_through(&self) -> Result<bool> {
        reaches(&self.offender, self.proxy.v4()?)
    }

    /// The offender does not reach the proxy, and the other one does.
    fn assert_shut_out(&self) -> Result<()> {
        assert!(!self.offender_gets_through()?, "the offender got through");
        assert!(reaches(&self.other, self.proxy.v4()?)?, "somebody else was shut out");
        Ok(())
    }
}

#[test]
fn a_ban_in_forward_keeps_an_offender_from_a_proxy_that_packets_are_passed_on_to() -> Result<()> {
    for firewall in [IPTABLES, NFTABLES] {
        let bridged = Bridged::new()?;
        let scene = &bridged.scene;
        scene.shell("for tool in iptables ip6tables; do $tool -N DOCKER-USER; done")?;
        scene.shell("iptables -A FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -j RETURN")?;
        // In INPUT a ban does not keep anybody from there.
        let daemon = scene.start(&[firewall])?;
        ban(scene, OFFENDER)?;
        assert!(bridged.offender_gets_through()?);
        stop(daemon)?;
        for chain in ["FORWARD", "DOCKER-USER"] {
            let flag = format!("--chain={chain}");
            let daemon = scene.start(&[firewall, &flag])?;
            bridged.assert_shut_out()?;
            // The server itself is not what that chain protects.
            let _own = Server::echo(scene.server(), 443)?;
            Talker::connect(
                &bridged.offender,
                bridged.offender.v4()?,
                SocketAddr::new(SERVER_V4.into(), 443),
            )?
            .wait_for_answers()?;
            if firewall == IPTABLES {
                let listing = scene.shell("iptables -S; iptables -t mangle -S | grep refract")?;
                assert_eq!(listing.matches(RULE).count(), 1, "one rule, not two:\n{listing}");
                assert!(listing.contains(&format!("-A {chain} {RULE}")), "{listing}");
                assert!(
                    listing.contains("-A FORWARD -p tcp -m tcp --dport 443 --tcp-flags SYN SYN")
                );
                assert!(!listing.contains("-A INPUT"), "{listing}");
            } else {
                let table = scene.shell("nft list table inet refract")?;
                assert!(table.contains("type filter hook forward priority filter - 10"), "{table}");
                assert!(!table.contains("hook input"), "{table}");
            }
            let status = eventually_status(&daemon)?;
            let name = firewall.trim_start_matches("--firewall=");
            assert!(status.contains(&format!("firewall={name} chain={chain} ")), "{status}");
            stop(daemon)?;
        }
        // Back in INPUT, nothing is left in the other chains.
        stop(scene.start(&[firewall])?)?;
        assert!(bridged.offender_gets_through()?);
        stop(scene.start(&[firewall, "--chain=DOCKER-USER"])?)?;
        assert_eq!(scene.refract(&["uninstall"])?.status, Some(0));
        assert!(bridged.offender_gets_through()?);
        assert_no_iptables(scene)?;
        assert_eq!(
            scene.shell("iptables -S DOCKER-USER")?,
            "-N DOCKER-USER\n-A DOCKER-USER -j RETURN\n"
        );
    }
    Ok(())
}

/// The line about the firewall in a look inside.
fn eventually_status(daemon: &Daemon) -> Result<String> {
    daemon.signal(rustix::process::Signal::USR1)?;
    daemon.wait_for_message("status: firewall=", BOUND)
}

#[test]
fn a_chain_that_is_not_there_is_refused_and_one_that_vanishes_is_repaired_when_it_is_back()
-> Result<()> {
    for program in ["iptables", "iptables-legacy"] {
        let scene = Scene::new()?;
        let binary = format!("--iptables=/usr/sbin/{program}");
        for firewall in [IPTABLES, AUTO] {
            let refused = scene.refused(&[], &[firewall, "--chain=DOCKER-USER", &binary])?;
            refused.is_refusal(&["there is no chain DOCKER-USER", "Docker makes", "--chain"]);
        }
        scene
            .refused(&[], &[NFTABLES, "--chain=mine"])?
            .is_refusal_with(2, &["nftables has no chain mine to hook: use --chain=INPUT"]);
        assert_no_iptables(&scene)?;
        assert!(!nft_table::exists(scene.server())?);

        let both = |script: &str| {
            let tools = [program.to_owned(), program.replace("iptables", "ip6tables")];
            tools.iter().try_for_each(|tool| scene.shell(&script.replace("TOOL", tool)).map(drop))
        };
        // Docker before version 27 makes it for IPv4 only.
        scene.shell(&format!("{program} -N DOCKER-USER; {program} -A FORWARD -j DOCKER-USER"))?;
        let daemon = scene.start(&[IPTABLES, "--chain=DOCKER-USER", &binary])?;
        daemon.wait_for_message("ip6tables has no chain of that name", BOUND)?;
        let v6 = program.replace("iptables", "ip6tables");
        scene.shell(&format!("{v6} -N DOCKER-USER; {v6} -A FORWARD -j DOCKER-USER"))?;
        eventually("the rule for IPv6", BACK_BOUND, || {
            let rules = scene.shell(&format!("{v6} -S DOCKER-USER"))?;
            Ok(rules.contains("refract_banned_users6").then_some(()))
        })?;
        ban(&scene, OFFENDER)?;
        let is_there = || -> Result<Option<()>> {
            let rules = scene.shell(&format!("{program} -S DOCKER-USER 2>&1 || true"))?;
            Ok(rules.contains(&format!("-A DOCKER-USER {RULE}")).then_some(()))
        };
        eventually("the rule", BOUND, is_there)?;
        // As when Docker restarts: it is gone with what was in it, and made anew.
        both("TOOL -F FORWARD; TOOL -F DOCKER-USER; TOOL -X DOCKER-USER")?;
        daemon.wait_for_message("there is no chain DOCKER-USER", BOUND)?;
        both("TOOL -N DOCKER-USER; TOOL -A DOCKER-USER -j RETURN; TOOL -A FORWARD -j DOCKER-USER")?;
        let back = Instant::now();
        eventually("the rule again", BACK_BOUND, is_there)?;
        eprintln!("{program}: mended after {:?}", back.elapsed());
        assert_eq!(ipset_members(&scene, SET)?, [OFFENDER]);
        daemon.wait_for_message("it is again at the top of DOCKER-USER", BOUND)?;
        stop(daemon)?;
    }
    Ok(())
}

#[test]
fn a_rule_of_an_operators_own_that_looks_our_sets_up_is_left_alone() -> Result<()> {
    let scene = Scene::new()?;
    let own = "-A FORWARD -m set --match-set refract_banned_users src -j DROP";
    stop(scene.start(&[IPTABLES])?)?;
    scene.shell(&format!("iptables {own}"))?;
    for chain in ["--chain=FORWARD", "--chain=INPUT"] {
        stop(scene.start(&[IPTABLES, chain])?)?;
        assert!(scene.shell("iptables -S FORWARD")?.contains(own));
    }
    let refused = scene.refract(&["uninstall"])?;
    refused.is_refusal(&["refract_banned_users", "in use by a firewall rule"]);
    assert!(refused.out.contains("removed the rule from"), "{refused:?}");
    assert_eq!(scene.shell("iptables -S FORWARD")?, format!("-P FORWARD ACCEPT\n{own}\n"));
    Ok(())
}

#[test]
fn what_only_the_next_start_changes_is_named_and_left_as_it_is() -> Result<()> {
    let scene = Scene::new()?;
    let file = scene.lab.path("refract.toml");
    fs::write(&file, "firewall = 'nftables'").map_err(LabError::while_trying("write a policy"))?;
    let config = format!("--config={}", file.display());
    // The variable that the tests set would beat the file.
    let flags = scene.flags(&[&config]);
    let mut command = support::daemon::command(Path::new(env!("CARGO_BIN_EXE_refract")), &flags);
    command.env_remove("REFRACT_FIREWALL");
    let daemon = Daemon::start_command(scene.server(), &command)?;
    assert!(choice(&daemon)?.contains("the firewall is nftables"));
    fs::write(&file, "firewall = 'iptables'\nchain = 'FORWARD'")
        .map_err(LabError::while_trying("write a policy"))?;
    let said =
        daemon.wait_for_message("these change with the next start of refract only", BOUND)?;
    assert!(said.contains("firewall,chain"), "{said}");
    ban(&scene, OFFENDER)?;
    assert_eq!(table_members(&scene, SET)?, [OFFENDER]);
    assert!(scene.shell("nft list table inet refract")?.contains("hook input"));
    stop(daemon)
}
