//! The rule in other chains than INPUT, in a live kernel, with both implementations of iptables.
//! The second eye is iptables itself.

#![cfg(test)]

#[path = "support/iptables.rs"]
mod iptables;
mod support;

use std::path::Path;

use iptables::{VARIANTS, input_rules, make_sets, mangle_rules};
use refract_kernel::xtables::{NoIpv6, Protocol, Report, RulePlan, SetNames, State, Xtables};
use support::{Namespace, shell};

const V4: SetNames = SetNames { sources: "refract_banned_users", flows: "refract_banned_flows" };
const V6: SetNames = SetNames { sources: "refract_banned_users6", flows: "refract_banned_flows6" };
const TCP_443: &str =
    "-p tcp -m tcp --dport 443 -m set --match-set refract_banned_users src -j DROP";
const STRIP_443: &str = "-p tcp -m tcp --dport 443 --tcp-flags SYN SYN -m comment --comment refract \
                         -j TCPOPTSTRIP --strip-options 30";
/// A rule that an operator made of our set, and that no plan of ours makes.
const HAND_MADE: &str = "-m set --match-set refract_banned_users src -j DROP";

fn xtables(program: &str, chain: &str) -> Xtables {
    let plan = RulePlan::new(&[Protocol::Tcp], &[443..=443], V4, V6).unwrap();
    let plan = plan.in_chain(chain.parse().unwrap());
    Xtables::find(Some(Path::new(program)), plan).unwrap()
}

fn rules(program: &str, table: &str, chain: &str) -> Vec<String> {
    let listing = shell(&format!("{program} -w 5 -t {table} -S {chain}"));
    let start = format!("-A {chain} ");
    listing.lines().filter_map(|line| Some(line.strip_prefix(&start)?.to_owned())).collect()
}

fn with_each_variant(test: impl Fn(&str) + Sync) {
    for program in VARIANTS {
        Namespace::new().inside(|| {
            make_sets();
            test(program);
        });
    }
}

fn both(state: State) -> Report {
    Report { v4: state, v6: Ok(state) }
}

#[test]
fn a_chain_that_somebody_made_takes_the_rule_at_its_top_and_forward_the_one_against_mptcp() {
    with_each_variant(|program| {
        for tool in [program.to_owned(), program.replace("iptables", "ip6tables")] {
            shell(&format!("{tool} -w 5 -N DOCKER-USER && {tool} -w 5 -A DOCKER-USER -j RETURN"));
        }
        let xtables = xtables(program, "DOCKER-USER");
        assert_eq!(xtables.check().unwrap(), both(State::Missing));
        xtables.install().unwrap();
        xtables.install_strip().unwrap();
        assert_eq!(xtables.check().unwrap(), both(State::InPlace));
        assert!(!xtables.check_strip().unwrap().wants_repair());
        assert_eq!(rules(program, "filter", "DOCKER-USER"), [TCP_443, "-j RETURN"]);
        assert_eq!(rules(program, "mangle", "FORWARD"), [STRIP_443]);
        assert_eq!((input_rules(program), mangle_rules(program)), (vec![], vec![]));
        assert_eq!(xtables.references("refract_banned_users").unwrap(), 1);

        xtables.remove().unwrap();
        assert_eq!(xtables.remove_strip().unwrap(), 2);
        assert_eq!(rules(program, "filter", "DOCKER-USER"), ["-j RETURN"]);
        assert_eq!(rules(program, "mangle", "FORWARD"), [""; 0]);
    });
}

#[test]
fn another_chain_takes_the_rules_over_and_leaves_none_where_they_were() {
    with_each_variant(|program| {
        shell(&format!("{program} -w 5 -A FORWARD {HAND_MADE}"));
        for tool in [program.to_owned(), program.replace("iptables", "ip6tables")] {
            shell(&format!("{tool} -w 5 -N mine"));
        }
        let there = |chain| rules(program, "filter", chain);
        let stripped = |chain| rules(program, "mangle", chain);
        let chains = ["INPUT", "FORWARD", "mine"];
        for chain in chains.into_iter().chain(chains.into_iter().rev()) {
            let xtables = xtables(program, chain);
            xtables.install().unwrap();
            xtables.install_strip().unwrap();
            assert_eq!(xtables.references("refract_banned_users").unwrap(), 1);
            for other in chains {
                let is_ours = |rule: &&String| *rule == TCP_443;
                let expected = usize::from(chain == other);
                assert_eq!(
                    there(other).iter().filter(is_ours).count(),
                    expected,
                    "{chain} {other}"
                );
            }
            assert_eq!(stripped("INPUT").len(), usize::from(chain != "FORWARD"));
            assert_eq!(stripped("FORWARD").len(), usize::from(chain != "INPUT"));
        }
        // Whoever plans for INPUT removes all the same what is elsewhere, and only that.
        xtables(program, "mine").install().unwrap();
        xtables(program, "INPUT").remove().unwrap();
        assert_eq!((there("INPUT"), there("mine")), (vec![], vec![]));
        assert_eq!(there("FORWARD"), [HAND_MADE]);
    });
}

#[test]
fn a_chain_that_is_not_there_is_told_with_the_remedy_and_used_once_it_is() {
    with_each_variant(|program| {
        let xtables = xtables(program, "DOCKER-USER");
        for result in [xtables.check(), xtables.install()] {
            let sentence = result.unwrap_err().to_string();
            for part in ["DOCKER-USER", "Docker", "iptables -N DOCKER-USER", "--chain"] {
                assert!(sentence.contains(part), "no `{part}` in {sentence}");
            }
            assert_eq!(sentence.lines().count(), 1);
        }
        // There is nothing to remove, and nothing to refuse.
        assert_eq!(xtables.remove().unwrap(), both(State::Missing));
        assert_eq!(xtables.references("refract_banned_users").unwrap(), 0);
        // Docker before version 27 makes it for IPv4 only.
        let v6 = program.replace("iptables", "ip6tables");
        let in_ipv4 = |v4| Report { v4, v6: Err(NoIpv6::NoChain) };
        shell(&format!("{program} -w 5 -N DOCKER-USER"));
        assert_eq!(xtables.install().unwrap(), in_ipv4(State::Missing));
        assert_eq!(xtables.check().unwrap(), in_ipv4(State::InPlace));
        assert!(in_ipv4(State::InPlace).is_in_place());
        shell(&format!("{v6} -w 5 -N DOCKER-USER"));
        let expected = Report { v4: State::InPlace, v6: Ok(State::Missing) };
        assert_eq!(xtables.check().unwrap(), expected);
        xtables.install().unwrap();
        assert_eq!(xtables.check().unwrap(), both(State::InPlace));
        // IPv6 alone is no answer: that is not what Docker leaves.
        shell(&format!("{program} -w 5 -F DOCKER-USER; {program} -w 5 -X DOCKER-USER"));
        assert!(xtables.check().unwrap_err().to_string().contains("DOCKER-USER"));
    });
}
