//! Which tools wake a listener on a live kernel, and which do not.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use refract_kernel::ruleset_events::RulesetEvents;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::Namespace;

/// An event waits, as `epoll` would see it.
fn is_readable(events: &RulesetEvents) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&now)).unwrap() == 1
}

#[test]
fn a_change_of_the_rules_is_heard_and_anything_else_is_not() {
    let namespace = Namespace::new();
    let mut events = namespace.inside(|| RulesetEvents::subscribe().unwrap());
    assert!(!events.drain().unwrap());
    for (command, is_heard) in [
        ("iptables-nft -I INPUT -p tcp --dport 443 -j DROP", true),
        ("iptables-nft -L", false),
        ("iptables-nft -F", true),
        ("ip6tables-nft -I INPUT -j ACCEPT", true),
        ("ip6tables-nft -D INPUT -j ACCEPT", true),
        ("nft add table inet other", true),
        ("nft add set inet other addresses '{ type ipv4_addr; flags timeout; }'", false),
        ("nft add element inet other addresses '{ 10.0.0.1 timeout 1h }'", false),
        ("nft list ruleset", false),
        ("nft flush ruleset", true),
        ("nft flush ruleset", false),
        ("iptables-legacy -I INPUT -p tcp --dport 443 -j DROP", false),
        ("ipset create somebodys hash:ip timeout 60", false),
        ("ipset add somebodys 10.0.0.1", false),
    ] {
        namespace.run(command);
        assert_eq!(events.drain().unwrap(), is_heard, "{command}");
        assert!(!is_readable(&events), "drained");
    }
    namespace.run("nft add table inet other");
    assert!(is_readable(&events));
}

#[test]
fn lost_events_count_as_a_change() {
    let namespace = Namespace::new();
    let mut events = namespace.inside(|| RulesetEvents::subscribe().unwrap());
    rustix::net::sockopt::set_socket_recv_buffer_size(&events, 4096).unwrap();
    let elements: Vec<String> =
        (0..2000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    let batch = tempfile::NamedTempFile::new().unwrap();
    namespace.run("nft add table inet other");
    namespace.run("nft add set inet other addresses '{ type ipv4_addr; }'");
    assert!(events.drain().unwrap());
    let add = format!("add element inet other addresses {{ {} }}\n", elements.join(", "));
    std::fs::write(&batch, add.repeat(20)).unwrap();
    namespace.run(&format!("nft -f {}", batch.path().display()));
    assert!(events.drain().unwrap(), "only elements came, but not all of them");
    assert!(!events.drain().unwrap());
}
