//! The ban sets against the live kernel, with `ipset`, `iptables` and real packets as second eye.
#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod support;
#[path = "support/targets.rs"]
mod targets;
#[path = "support/udp.rs"]
mod udp;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use refract_kernel::{
    Errno, Error,
    ban::{BanTarget, LONGEST_TIMEOUT, Unbannable},
    ban_set::{Carried, MAX_BANS, SetState},
    ban_sets::{BANNED_FLOWS, BANNED_USERS, BANNED_USERS6, BanSets, SetNames, Settings},
    ipset::IpSets,
    ipset_wire::{NewSet, Operation, SetFamily, Verb},
};
use support::{Namespace, shell};
use targets::{flow, host, network};
use udp::{arrives, server};

const MINUTE: Duration = Duration::from_mins(1);

fn settings(flows: bool) -> Settings {
    Settings { names: SetNames::default(), flows, default_timeout: MINUTE }
}

fn open() -> BanSets {
    BanSets::open(settings(true)).unwrap()
}

fn installed() -> BanSets {
    let mut sets = open();
    sets.install().unwrap();
    sets
}

#[track_caller]
fn ban(sets: &mut BanSets, target: BanTarget, timeout: Duration) {
    sets.ban(&[(target, timeout)]).pop().unwrap().unwrap();
}

/// What became of the set of banned users.
#[track_caller]
fn users(sets: &mut BanSets) -> SetState {
    let installed = sets.install().unwrap();
    installed.into_iter().find(|installed| installed.set == BANNED_USERS).unwrap().state
}

/// The entries of a set as `ipset` shows them, without their timeouts.
#[track_caller]
fn members(set: &str) -> BTreeSet<String> {
    listed(set).into_iter().map(|(member, _)| member).collect()
}

/// The entries of a set as `ipset` shows them, with their timeouts in seconds.
#[track_caller]
fn listed(set: &str) -> Vec<(String, Option<u32>)> {
    let saved = shell(&format!("ipset save {set}"));
    let entries = saved.lines().filter_map(|line| line.strip_prefix(&format!("add {set} ")));
    entries
        .map(|entry| match entry.split_once(" timeout ") {
            Some((member, rest)) => {
                (member.to_owned(), rest.split(' ').next().unwrap().parse().ok())
            }
            None => (entry.to_owned(), None),
        })
        .collect()
}

fn set_names() -> String {
    shell("ipset list -n")
}

#[test]
fn installing_makes_the_sets_and_installing_again_keeps_them() {
    Namespace::new().inside(|| {
        let mut sets = open();
        let first = sets.install().unwrap();
        assert_eq!(first.len(), 4);
        assert!(first.iter().all(|set| set.state == SetState::Created), "{first:?}");
        ban(&mut sets, host("203.0.113.9"), MINUTE);
        let second = open().install().unwrap();
        assert!(second.iter().all(|set| set.state == SetState::Kept), "{second:?}");
        assert_eq!(members(BANNED_USERS), BTreeSet::from(["203.0.113.9".to_owned()]));
        for (set, type_name, family) in [
            (BANNED_USERS, "hash:ip", "inet"),
            (BANNED_USERS6, "hash:net", "inet6"),
            (BANNED_FLOWS, "hash:ip,port", "inet"),
            ("refract_banned_flows6", "hash:ip,port", "inet6"),
        ] {
            let shown = shell(&format!("ipset list -t {set}"));
            assert!(shown.contains(&format!("Type: {type_name}\n")), "{shown}");
            let options = format!("family {family} hashsize 16384 maxelem 1048576 timeout 60");
            assert!(shown.contains(&options), "{shown}");
        }
    });
}

#[test]
fn without_udp_there_are_no_sets_of_flows() {
    Namespace::new().inside(|| {
        let mut sets = BanSets::open(settings(false)).unwrap();
        assert_eq!(sets.install().unwrap().len(), 2);
        assert_eq!(set_names(), format!("{BANNED_USERS}\n{BANNED_USERS6}\n"));
        assert_eq!(sets.missing().unwrap(), Vec::<String>::new());
        let refusal = sets.ban(&[(flow("203.0.113.9", 4433), MINUTE)]).pop().unwrap().unwrap_err();
        assert_eq!(refusal.to_string(), "the set refract_banned_flows does not exist");
    });
}

#[test]
fn bans_are_entries_with_their_timeouts() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        let bans = [
            (host("203.0.113.9"), Duration::from_millis(1)),
            (host("::ffff:203.0.113.10"), Duration::from_millis(59_001)),
            (network("203.0.113.23", 30), MINUTE),
            (network("2001:db8:1:2::7", 64), Duration::MAX),
            (host("2001:db8::7"), MINUTE),
            (flow("203.0.113.9", 4433), MINUTE),
            (flow("::ffff:203.0.113.9", 4434), MINUTE),
            (flow("2001:db8::7", 4433), MINUTE),
        ];
        let outcomes: Vec<_> = sets.ban(&bans).into_iter().map(Result::unwrap).collect();
        let clamped: Vec<_> = outcomes.iter().map(|banned| banned.clamped).collect();
        assert_eq!(clamped, [false, false, false, true, false, false, false, false]);
        assert_eq!(outcomes[0].timeout, Duration::from_secs(1));
        assert_eq!(outcomes[1].timeout, MINUTE);
        assert_eq!(outcomes[1].target, host("203.0.113.10"));
        assert_eq!(outcomes[3].timeout, LONGEST_TIMEOUT);

        let timeout = |set: &str, member: &str| {
            let entries = listed(set);
            let found = entries.iter().find(|(name, _)| name == member);
            found.unwrap_or_else(|| panic!("{member} in {entries:?}")).1.unwrap()
        };
        assert_eq!(timeout(BANNED_USERS, "203.0.113.9"), 1);
        assert!((58..=60).contains(&timeout(BANNED_USERS, "203.0.113.10")));
        for last in 20..24 {
            assert!(timeout(BANNED_USERS, &format!("203.0.113.{last}")) >= 58);
        }
        assert_eq!(listed(BANNED_USERS).len(), 6);
        assert!(timeout(BANNED_USERS6, "2001:db8:1:2::/64") >= 2_147_400);
        assert!(timeout(BANNED_USERS6, "2001:db8::7") >= 58);
        assert!(timeout(BANNED_FLOWS, "203.0.113.9,udp:4433") >= 58);
        assert!(timeout(BANNED_FLOWS, "203.0.113.9,udp:4434") >= 58);
        assert!(timeout("refract_banned_flows6", "2001:db8::7,udp:4433") >= 58);
    });
}

#[test]
fn what_cannot_be_banned_is_refused_and_the_rest_is_banned() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        let outcomes = sets.ban(&[
            (host("0.0.0.0"), MINUTE),
            (host("203.0.113.1"), MINUTE),
            (network("203.0.113.2", 0), MINUTE),
            (host("203.0.113.3"), Duration::ZERO),
            (network("203.0.113.4", 15), MINUTE),
            (host("2001:db8::1"), MINUTE),
            (flow("203.0.113.5", 0), MINUTE),
        ]);
        let refusals: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Ok(_) => None,
                Err(Error::Unbannable { source, .. }) => Some(*source),
                Err(other) => panic!("{other}"),
            })
            .collect();
        assert_eq!(
            refusals,
            [
                Some(Unbannable::Unspecified),
                None,
                Some(Unbannable::Everybody),
                Some(Unbannable::NoTime),
                Some(Unbannable::TooWide(16)),
                None,
                Some(Unbannable::PortZero),
            ]
        );
        assert_eq!(
            outcomes[0].as_ref().unwrap_err().to_string(),
            "cannot ban 0.0.0.0: it is, or begins with, the unspecified address"
        );
        assert_eq!(members(BANNED_USERS), BTreeSet::from(["203.0.113.1".to_owned()]));
        assert_eq!(members(BANNED_USERS6), BTreeSet::from(["2001:db8::1".to_owned()]));
        assert!(members(BANNED_FLOWS).is_empty());
    });
}

#[test]
fn the_widest_ipv4_network_is_banned_address_by_address() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        ban(&mut sets, network("198.51.100.9", 16), MINUTE);
        let shown = shell(&format!("ipset list -t {BANNED_USERS}"));
        assert!(shown.contains("Number of entries: 65536"), "{shown}");
        shell(&format!("ipset test {BANNED_USERS} 198.51.255.255"));
        assert!(sets.unban(network("198.51.0.0", 16)).unwrap());
        assert!(members(BANNED_USERS).is_empty());
    });
}

#[test]
fn a_ban_of_the_banned_refreshes_the_timeout() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        let timeout = || listed(BANNED_USERS).pop().unwrap().1.unwrap();
        ban(&mut sets, host("203.0.113.9"), MINUTE);
        assert!(timeout() <= 60);
        ban(&mut sets, host("203.0.113.9"), 10 * MINUTE);
        assert!((590..=600).contains(&timeout()));
        ban(&mut sets, host("203.0.113.9"), MINUTE);
        assert!(timeout() <= 60);
    });
}

#[test]
fn a_full_set_is_said_to_be_full_for_each_ban_that_did_not_fit() {
    Namespace::new().inside(|| {
        shell(&format!("ipset create {BANNED_USERS} hash:ip timeout 60 maxelem 2"));
        let mut sets = open();
        let bans: Vec<_> =
            (1..=4).map(|last| (host(&format!("203.0.113.{last}")), MINUTE)).collect();
        let outcomes = sets.ban(&bans);
        assert!(outcomes[0].is_ok() && outcomes[1].is_ok());
        for refused in &outcomes[2..] {
            let error = refused.as_ref().unwrap_err();
            assert_eq!(error.errno(), Some(Errno::IPSET_HASH_FULL));
            assert!(error.to_string().contains("the set refract_banned_users is full"), "{error}");
        }
        assert_eq!(members(BANNED_USERS).len(), 2);
        // A ban that is there is refreshed all the same.
        ban(&mut sets, host("203.0.113.1"), MINUTE);
    });
}

#[test]
fn every_address_of_a_banned_ipv6_network_is_dropped_and_no_other() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        for address in ["2001:db8:1:2::7", "2001:db8:1:2:ffff::8", "2001:db8:1:3::7"] {
            shell(&format!("ip -6 address add {address}/128 dev lo nodad"));
        }
        shell(&format!(
            "ip6tables -w -I INPUT -p udp --dport 443 -m set --match-set {BANNED_USERS6} src -j DROP"
        ));
        let server = server("::1");
        assert!(arrives(("2001:db8:1:2::7", 0), &server));
        ban(&mut sets, network("2001:db8:1:2::", 64), MINUTE);
        assert!(!arrives(("2001:db8:1:2::7", 0), &server));
        assert!(!arrives(("2001:db8:1:2:ffff::8", 0), &server));
        assert!(arrives(("2001:db8:1:3::7", 0), &server));
        let asked =
            [network("2001:db8:1:2::", 64), host("2001:db8:1:2::7"), host("2001:db8:1:3::7")];
        assert_eq!(sets.banned(&asked).unwrap(), [true, true, false]);
        shell(&format!("ipset test {BANNED_USERS6} 2001:db8:1:2:1234::1"));
    });
}

#[test]
fn of_a_banned_flow_only_its_port_is_dropped() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        shell(&format!(
            "iptables -w -I INPUT -p udp --dport 443 -m set --match-set {BANNED_FLOWS} src,src -j DROP"
        ));
        let server = server("127.0.0.1");
        ban(&mut sets, flow("127.0.0.2", 5001), MINUTE);
        assert!(!arrives(("127.0.0.2", 5001), &server));
        assert!(arrives(("127.0.0.2", 5002), &server));
        assert!(arrives(("127.0.0.3", 5001), &server));
        assert!(sets.unban(host("127.0.0.2")).unwrap());
        assert!(arrives(("127.0.0.2", 5001), &server));
    });
}

#[test]
fn unbanning_lifts_what_covers_the_address_and_says_whether_there_was_a_ban() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        for target in [
            host("203.0.113.9"),
            host("203.0.113.10"),
            network("2001:db8:1:2::", 64),
            network("2001:db8:1::", 48),
            network("2001:db8:2::", 48),
            flow("203.0.113.9", 4433),
            flow("203.0.113.9", 4434),
        ] {
            ban(&mut sets, target, MINUTE);
        }
        assert!(sets.unban(flow("203.0.113.9", 4433)).unwrap());
        assert_eq!(members(BANNED_FLOWS), BTreeSet::from(["203.0.113.9,udp:4434".to_owned()]));
        assert!(sets.unban(host("::ffff:203.0.113.9")).unwrap());
        assert_eq!(members(BANNED_USERS), BTreeSet::from(["203.0.113.10".to_owned()]));
        assert!(members(BANNED_FLOWS).is_empty());
        assert!(sets.unban(host("2001:db8:1:2::7")).unwrap());
        assert_eq!(members(BANNED_USERS6), BTreeSet::from(["2001:db8:2::/48".to_owned()]));
        assert!(!sets.unban(host("203.0.113.9")).unwrap());
        assert!(!sets.unban(flow("203.0.113.9", 4433)).unwrap());
    });
}

#[test]
fn a_list_of_1300_bans_is_what_ipset_lists() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        let mut bans: Vec<_> = (0..1300u32)
            .map(|n| (BanTarget::host(IpAddr::V4((0x0a00_0000 + 7 * n + 1).into())), MINUTE))
            .collect();
        bans.extend((0..1300u16).map(|n| {
            (
                BanTarget::Network {
                    address: [0x2001, 0xdb8, n, 0, 0, 0, 0, 1].into(),
                    prefix: 64,
                },
                MINUTE,
            )
        }));
        bans.extend((1..=1300u16).map(|port| (flow("203.0.113.9", port), MINUTE)));
        assert!(sets.ban(&bans).iter().all(Result::is_ok));
        let list = sets.list().unwrap();
        assert_eq!(list.len(), 3900);
        for set in [BANNED_USERS, BANNED_USERS6, BANNED_FLOWS] {
            let ours = list.iter().filter(|ban| sets.set_of(ban.target) == set);
            let ours: BTreeSet<_> = ours.map(|ban| ban.target.to_string()).collect();
            assert_eq!(ours.len(), 1300);
            assert_eq!(ours, members(set));
        }
        let bounds = Duration::from_secs(50)..=MINUTE;
        assert!(list.iter().all(|ban| bounds.contains(&ban.remaining.unwrap())));
        let targets: Vec<_> = list.iter().map(|ban| ban.target).collect();
        assert_eq!(sets.banned(&targets).unwrap(), vec![true; 3900]);
    });
}

#[test]
fn twenty_thousand_bans_never_wait_for_the_set_to_grow() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        for n in 0..20_000u32 {
            ban(&mut sets, BanTarget::host(IpAddr::V4((0x0a00_0001 + n).into())), MINUTE);
        }
        let shown = shell(&format!("ipset list -t {BANNED_USERS}"));
        assert!(shown.contains("Number of entries: 20000"), "{shown}");
        // An add stalls when it finds the hash too small; this one was never rebuilt.
        assert!(shown.contains("hashsize 16384 "), "{shown}");
    });
}

#[test]
fn a_set_that_is_gone_or_replaced_is_missed_and_an_empty_one_is_not() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        ban(&mut sets, host("203.0.113.9"), MINUTE);
        assert_eq!(sets.missing().unwrap(), Vec::<String>::new());
        shell("ipset flush");
        assert_eq!(sets.missing().unwrap(), Vec::<String>::new());
        assert_eq!(sets.banned(&[host("203.0.113.9")]).unwrap(), [false]);

        shell(&format!("ipset destroy {BANNED_USERS}"));
        assert_eq!(sets.missing().unwrap(), [BANNED_USERS]);
        let error = sets.ban(&[(host("203.0.113.9"), MINUTE)]).pop().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the set refract_banned_users does not exist");
        assert_eq!(sets.banned(&[host("203.0.113.9")]).unwrap(), [false]);
        assert!(!sets.unban(host("203.0.113.9")).unwrap());
        assert_eq!(users(&mut sets), SetState::Created);
        assert_eq!(sets.missing().unwrap(), Vec::<String>::new());

        for (set, other) in [
            (BANNED_USERS, "hash:ip"),
            (BANNED_USERS, "hash:ip family inet6 timeout 0"),
            (BANNED_USERS, "hash:ip,port timeout 0"),
            (BANNED_USERS, "bitmap:port timeout 0 range 1-9"),
            (BANNED_USERS6, "hash:net family inet6"),
            (BANNED_USERS6, "hash:net family inet timeout 0"),
            (BANNED_USERS6, "hash:ip family inet6 timeout 0"),
            (BANNED_USERS6, "list:set timeout 0"),
            (BANNED_FLOWS, "hash:ip,port family inet6 timeout 0"),
            (BANNED_FLOWS, "hash:ip,port"),
        ] {
            shell(&format!("ipset destroy {set}; ipset create {set} {other}"));
            assert_eq!(sets.missing().unwrap(), [set], "{other}");
            sets.install().unwrap();
            assert_eq!(sets.missing().unwrap(), Vec::<String>::new(), "{other}");
        }
    });
}

#[test]
fn a_set_of_our_type_with_other_options_is_replaced_and_its_bans_keep_their_time() {
    for options in [
        "hash:ip timeout 60 hashsize 16384",
        "hash:ip timeout 60 maxelem 1048576",
        "hash:ip timeout 60 hashsize 16384 maxelem 1048576 forceadd",
    ] {
        Namespace::new().inside(|| {
            shell(&format!("ipset create {BANNED_USERS} {options}"));
            shell(&format!("ipset add {BANNED_USERS} 203.0.113.9 timeout 500"));
            shell(&format!("ipset add {BANNED_USERS} 203.0.113.10 timeout 0"));
            let carried = Carried { entries: 2, ..Carried::default() };
            assert_eq!(users(&mut open()), SetState::Replaced(carried), "{options}");
            let mut entries = listed(BANNED_USERS);
            entries.sort();
            assert_eq!(entries[0], ("203.0.113.10".to_owned(), Some(0)));
            assert_eq!(entries[1].0, "203.0.113.9");
            assert!((490..=500).contains(&entries[1].1.unwrap()));
            assert_eq!(users(&mut open()), SetState::Kept, "{options}");
            assert_eq!(set_names().lines().count(), 4);
        });
    }
}

#[test]
fn entries_without_timeouts_get_the_default_one() {
    Namespace::new().inside(|| {
        shell(&format!("ipset create {BANNED_USERS} hash:ip hashsize 16384 maxelem 1048576"));
        shell(&format!("ipset add {BANNED_USERS} 203.0.113.9"));
        let error = open().ban(&[(host("203.0.113.10"), MINUTE)]).pop().unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::IPSET_TIMEOUT));
        let carried = Carried { entries: 1, ..Carried::default() };
        assert_eq!(users(&mut open()), SetState::Replaced(carried));
        let entries = listed(BANNED_USERS);
        assert_eq!(entries[0].0, "203.0.113.9");
        assert!((50..=60).contains(&entries[0].1.unwrap()));
    });
}

#[test]
fn entries_of_a_set_with_a_netmask_are_not_taken_for_addresses() {
    for mask in ["netmask 24", "bitmask 255.255.255.0"] {
        Namespace::new().inside(|| {
            shell(&format!(
                "ipset create {BANNED_USERS} hash:ip timeout 60 hashsize 16384 maxelem 1048576 {mask}"
            ));
            shell(&format!("ipset add {BANNED_USERS} 203.0.113.9"));
            let carried = Carried { left_behind: 1, ..Carried::default() };
            assert_eq!(users(&mut open()), SetState::Replaced(carried), "{mask}");
            assert!(members(BANNED_USERS).is_empty());
            // A new ban is of one address again.
            ban(&mut open(), host("203.0.113.9"), MINUTE);
            assert_eq!(members(BANNED_USERS), BTreeSet::from(["203.0.113.9".to_owned()]));
        });
    }
}

#[test]
fn a_set_of_the_other_family_which_the_kernel_would_silently_keep_is_replaced() {
    Namespace::new().inside(|| {
        shell(&format!("ipset create {BANNED_USERS} hash:ip family inet6 timeout 60"));
        shell(&format!("ipset add {BANNED_USERS} 2001:db8::7"));
        shell(&format!("ipset add {BANNED_USERS} 2001:db8::8"));
        // The trap: the kernel says Ok to the family that it does not give.
        let family = "hash:ip family inet timeout 60";
        shell(&format!("ipset create {BANNED_USERS} {family} -exist"));
        assert!(shell(&format!("ipset list -t {BANNED_USERS}")).contains("family inet6"));

        let SetState::Replaced(carried) = users(&mut open()) else { panic!("not replaced") };
        assert_eq!((carried.entries, carried.left_behind), (0, 2));
        let examples: BTreeSet<_> = carried.examples.into_iter().collect();
        assert_eq!(examples, BTreeSet::from([host("2001:db8::7"), host("2001:db8::8")]));
        assert!(shell(&format!("ipset list -t {BANNED_USERS}")).contains("family inet "));
        ban(&mut open(), host("203.0.113.9"), MINUTE);
    });
}

#[test]
fn of_an_unused_set_of_another_type_single_addresses_are_carried_over() {
    Namespace::new().inside(|| {
        shell(&format!("ipset create {BANNED_USERS} hash:net timeout 60 comment counters"));
        shell(&format!("ipset add {BANNED_USERS} 203.0.113.9 timeout 500 comment abuse"));
        shell(&format!("ipset add {BANNED_USERS} 198.51.100.0/24 timeout 500"));
        shell(&format!("ipset add {BANNED_USERS} 203.0.113.10 timeout 500 nomatch"));
        let carried =
            Carried { entries: 1, left_behind: 2, examples: vec![network("198.51.100.0", 24)] };
        assert_eq!(users(&mut open()), SetState::Replaced(carried));
        let entries = listed(BANNED_USERS);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].0, "203.0.113.9");
        assert!((490..=500).contains(&entries[0].1.unwrap()));
        assert_eq!(users(&mut open()), SetState::Kept);
        assert_eq!(set_names().lines().count(), 4);
    });
}

/// The rule on the set of banned users, by its name.
fn rule(action: &str, set: &str) {
    shell(&format!(
        "iptables -w {action} INPUT -p udp --dport 443 -m set --match-set {set} src -j DROP"
    ));
}

#[test]
fn a_used_set_of_another_type_is_reported_and_not_touched() {
    Namespace::new().inside(|| {
        shell(&format!("ipset create {BANNED_USERS} hash:net timeout 500"));
        shell(&format!("ipset add {BANNED_USERS} 127.0.0.2"));
        rule("-I", BANNED_USERS);
        rule("-A", BANNED_USERS);
        assert_eq!(
            users(&mut open()),
            SetState::InUse {
                type_name: "hash:net".to_owned(),
                family: SetFamily::Inet,
                references: 2
            }
        );
        let shown = shell(&format!("ipset list -t {BANNED_USERS}"));
        assert!(shown.contains("hash:net") && shown.contains("entries: 1"), "{shown}");
        assert_eq!(set_names().lines().count(), 4);
        assert!(!arrives(("127.0.0.2", 0), &server("127.0.0.1")));
    });
}

#[test]
fn a_used_set_of_another_type_is_migrated_through_temporary_sets_without_a_gap() {
    Namespace::new().inside(|| {
        let server = server("127.0.0.1");
        let banned = || !arrives(("127.0.0.2", 0), &server);
        shell(&format!("ipset create {BANNED_USERS} hash:net timeout 500"));
        shell(&format!("ipset add {BANNED_USERS} 127.0.0.2"));
        shell(&format!("ipset add {BANNED_USERS} 203.0.113.0/24"));
        rule("-I", BANNED_USERS);
        assert!(matches!(users(&mut open()), SetState::InUse { .. }));
        assert!(banned());

        let names = SetNames::temporary();
        let temporary = Settings { names: names.clone(), ..settings(false) };
        let mut temporary = BanSets::open(temporary).unwrap();
        temporary.install().unwrap();
        let copied = temporary.copy_from(BANNED_USERS).unwrap();
        assert_eq!((copied.entries, copied.left_behind), (1, 1));
        assert_eq!(copied.examples, [network("203.0.113.0", 24)]);
        rule("-I", &names.users);
        rule("-D", BANNED_USERS);
        assert!(banned());
        // The daemon ends here and starts anew: a temporary set that a rule names is left alone.
        assert!(matches!(users(&mut open()), SetState::Replaced(Carried { entries: 1, .. })));
        assert!(banned());
        rule("-I", BANNED_USERS);
        rule("-D", &names.users);
        assert!(banned());
        // The other temporary set was in use by nobody, so installing cleared it away.
        assert_eq!(temporary.uninstall().unwrap(), [names.users]);
        assert!(banned());
        assert_eq!(users(&mut open()), SetState::Kept);
        assert!((450..=500).contains(&listed(BANNED_USERS)[0].1.unwrap()));
    });
}

#[test]
fn copying_leaves_the_time_of_a_ban_that_is_there() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        shell("ipset create other hash:ip timeout 9");
        shell("ipset add other 203.0.113.9; ipset add other 203.0.113.10");
        ban(&mut sets, host("203.0.113.9"), 10 * MINUTE);
        let carried = Carried { entries: 2, ..Carried::default() };
        assert_eq!(sets.copy_from("other").unwrap(), carried);
        let mut entries = listed(BANNED_USERS);
        entries.sort();
        assert!(entries[0].1.unwrap() <= 9);
        assert!(entries[1].1.unwrap() > 500);
        let error = sets.copy_from("nothing").unwrap_err();
        assert_eq!(error.to_string(), "the set nothing does not exist");
    });
}

#[test]
fn while_a_set_in_use_is_replaced_nobody_slips_through() {
    const ROUNDS: usize = 100;
    Namespace::new().inside(|| {
        let server = server("127.0.0.1");
        let mut sets = installed();
        ban(&mut sets, host("127.0.0.2"), 10 * MINUTE);
        rule("-I", BANNED_USERS);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            // Asks the kernel without a pause, in a thread that inherits the namespace.
            let witness = scope.spawn(|| {
                let mut sets = open();
                let mut asked = 0u32;
                while !over.load(Ordering::Relaxed) {
                    let there = sets.banned(&[host("127.0.0.2")]).unwrap();
                    assert_eq!(there, [true], "not there when asked for the {asked}th time");
                    asked += 1;
                }
                asked
            });
            let mut tools = IpSets::open().unwrap();
            for _ in 0..ROUNDS {
                // Puts a set with another bound under the rule, the ban in it.
                let misfit = NewSet {
                    type_name: "hash:ip",
                    revision: 0,
                    family: SetFamily::Inet,
                    timeout: 60,
                    hash_size: 64,
                    max_elements: 64,
                };
                tools.create("misfit", &misfit).unwrap();
                let add = Operation {
                    verb: Verb::Add,
                    set: "misfit",
                    target: host("127.0.0.2"),
                    timeout: Some(600),
                };
                tools.each([add], |_, answer| answer.unwrap()).unwrap();
                tools.swap("misfit", BANNED_USERS).unwrap();
                tools.destroy("misfit").unwrap();
                assert!(matches!(users(&mut sets), SetState::Replaced(_)));
                assert!(!arrives(("127.0.0.2", 0), &server));
            }
            over.store(true, Ordering::Relaxed);
            let asked = witness.join().unwrap();
            assert!(asked as usize > ROUNDS, "the witness asked only {asked} times");
        });
        assert!(arrives(("127.0.0.3", 0), &server));
        let rules = shell("iptables -w -S INPUT");
        assert!(rules.contains(&format!("--match-set {BANNED_USERS} src -j DROP")), "{rules}");
        let shown = shell(&format!("ipset list -t {BANNED_USERS}"));
        assert!(shown.contains(&format!("maxelem {MAX_BANS} ")), "{shown}");
        assert!(shown.contains("References: 1\n"), "{shown}");
    });
}

#[test]
fn what_an_interrupted_replacement_left_is_cleared_away_or_put_in_place() {
    let good = "hash:ip timeout 60 hashsize 16384 maxelem 1048576";
    // It ended before the swap: the set still holds all bans, the spare perhaps some.
    Namespace::new().inside(|| {
        shell(&format!("ipset create {BANNED_USERS}.new {good}"));
        shell(&format!("ipset create {BANNED_USERS} {good} comment"));
        shell(&format!("ipset add {BANNED_USERS} 203.0.113.9"));
        assert_eq!(users(&mut open()), SetState::Kept);
        assert_eq!(set_names().lines().count(), 4);
        assert_eq!(members(BANNED_USERS).len(), 1);
    });
    // It ended between "destroy" and "rename": the bans are in the spare.
    Namespace::new().inside(|| {
        shell(&format!("ipset create {BANNED_USERS}.new {good}"));
        shell(&format!("ipset add {BANNED_USERS}.new 203.0.113.9"));
        shell(&format!("ipset create {BANNED_USERS}.tmp {good}"));
        assert_eq!(users(&mut open()), SetState::Kept);
        assert_eq!(set_names().lines().count(), 4);
        assert_eq!(members(BANNED_USERS), BTreeSet::from(["203.0.113.9".to_owned()]));
    });
}

#[test]
fn uninstalling_destroys_our_sets_and_no_other() {
    Namespace::new().inside(|| {
        shell("ipset create theirs hash:ip; ipset create refract_banned_users_of_mine hash:ip");
        let mut sets = installed();
        ban(&mut sets, host("203.0.113.9"), MINUTE);
        rule("-I", BANNED_USERS);
        let error = sets.uninstall().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot destroy refract_banned_users: in use by a firewall rule; remove the rule first"
        );
        assert_eq!(members(BANNED_USERS).len(), 1);
        assert_eq!(set_names().lines().count(), 3);
        rule("-D", BANNED_USERS);
        assert_eq!(sets.uninstall().unwrap(), [BANNED_USERS]);
        assert_eq!(sets.uninstall().unwrap(), Vec::<String>::new());
        let left: BTreeSet<_> = set_names().lines().map(str::to_owned).collect();
        let theirs = ["theirs".to_owned(), "refract_banned_users_of_mine".to_owned()];
        assert_eq!(left, BTreeSet::from(theirs));
    });
}

#[test]
fn without_the_capability_the_error_names_it() {
    Namespace::new().inside(|| {
        let mut sets = installed();
        let mut capabilities = rustix::thread::capabilities(None).unwrap();
        capabilities.effective -= rustix::thread::CapabilitySet::NET_ADMIN;
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        let error = BanSets::open(settings(true)).unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        // Also on a socket that was opened with it.
        let error = sets.ban(&[(host("203.0.113.9"), MINUTE)]).pop().unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::PERM));
        assert_eq!(sets.missing().unwrap_err().errno(), Some(Errno::PERM));
    });
}
