//! What the verbs of the ban sets cost, in a namespace of its own: `cargo bench --bench ban`.
#![expect(clippy::unwrap_used, reason = "a measurement ends at what it did not expect")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use refract_kernel::{
    ban::BanTarget,
    ban_sets::{BanSets, SetNames, Settings},
    nftables::{Hook, NftPlan, NftTable},
    xtables::Protocol,
};
use support::Namespace;

const TIMEOUT: Duration = Duration::from_mins(10);
const SINGLE: u32 = 20_000;
const MANY: u32 = 260_000;
const STORM: u32 = 2_000;

fn main() {
    Namespace::new().inside(with_ipset);
    Namespace::new().inside(with_nftables);
}

fn with_nftables() {
    let plan = NftPlan {
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        ports: vec![443..=443],
        hook: Hook::Input,
        strip_mptcp: true,
        ipv6_prefix: 64,
        flows: true,
        default_timeout: TIMEOUT,
    };
    let mut table = NftTable::open(plan).unwrap();
    println!("nftables:");
    each("install, from nothing", 1, |_| assert!(table.install().unwrap().made_table));
    each("ban, one new address at a time", SINGLE, |n| {
        assert!(table.ban(&[(address(n), TIMEOUT)]).iter().all(Result::is_ok));
    });
    each("ban again, one at a time", SINGLE, |n| {
        assert!(table.ban(&[(address(n), TIMEOUT)]).iter().all(Result::is_ok));
    });
    each("ban, 2,000 new addresses at once", 5, |n| {
        let bans: Vec<_> =
            (0..STORM).map(|ban| (address(SINGLE + n * STORM + ban), TIMEOUT)).collect();
        assert!(table.ban(&bans).iter().all(Result::is_ok));
    });
    let asked: Vec<_> = (0..100).map(address).collect();
    each("banned, 100 addresses", 1_000, |_| {
        assert!(table.banned(&asked).unwrap().iter().all(|there| *there));
    });
    each("missing, five sets", SINGLE, |_| assert!(table.missing().unwrap().is_empty()));
    each("check", 1_000, |_| assert!(!table.check().unwrap().wants_repair()));
    let count = (SINGLE + 5 * STORM) as usize;
    println!("with {count} bans:");
    each("list", 5, |_| assert_eq!(table.list().unwrap().len(), count));
    each("install, nothing to do", 5, |_| assert!(!table.install().unwrap().made_table));
    each("uninstall", 1, |_| assert!(!table.uninstall().unwrap().is_empty()));
}

fn with_ipset() {
    println!("ipset:");
    let settings = Settings { names: SetNames::default(), flows: true, default_timeout: TIMEOUT };
    let mut sets = BanSets::open(settings).unwrap();
    sets.install().unwrap();

    each("ban, one new address at a time", SINGLE, |n| {
        assert!(sets.ban(&[(address(n), TIMEOUT)]).iter().all(Result::is_ok));
    });
    each("ban again, one at a time", SINGLE, |n| {
        assert!(sets.ban(&[(address(n), TIMEOUT)]).iter().all(Result::is_ok));
    });
    each("ban, 2,000 new addresses at once", 5, |n| {
        let bans: Vec<_> =
            (0..STORM).map(|ban| (address(SINGLE + n * STORM + ban), TIMEOUT)).collect();
        assert!(sets.ban(&bans).iter().all(Result::is_ok));
    });
    each("missing, four sets", SINGLE, |_| assert!(sets.missing().unwrap().is_empty()));

    let bans: Vec<_> = (0..MANY).map(|ban| (address(ban), TIMEOUT)).collect();
    assert!(sets.ban(&bans).iter().all(Result::is_ok));
    println!("with {MANY} bans:");
    each("ban again, one at a time", SINGLE, |n| {
        assert!(sets.ban(&[(address(n), TIMEOUT)]).iter().all(Result::is_ok));
    });
    each("missing, four sets", SINGLE, |_| assert!(sets.missing().unwrap().is_empty()));
    let asked: Vec<_> = (0..100).map(address).collect();
    each("banned, 100 addresses", 1_000, |_| {
        assert!(sets.banned(&asked).unwrap().iter().all(|there| *there));
    });
    each("list", 5, |_| assert_eq!(sets.list().unwrap().len(), bans.len()));
    each("unban", 5, |n| assert!(sets.unban(address(n)).unwrap()));
    each("install, nothing to do", 5, |_| assert_eq!(sets.install().unwrap().len(), 4));
    each("uninstall", 1, |_| assert_eq!(sets.uninstall().unwrap().len(), 4));
}

fn address(n: u32) -> BanTarget {
    // From 10.0.0.1 on, scattered so that neighbours do not come one after another.
    let scattered = n.wrapping_mul(0x9e37_79b1) & 0x00ff_ffff;
    BanTarget::host(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | scattered)))
}

/// Times `work` for 0 to `rounds`, and prints the median, the 99th percentile and the longest.
fn each(name: &str, rounds: u32, mut work: impl FnMut(u32)) {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|round| {
            let start = Instant::now();
            work(round);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() - 1) * percent / 100).copied();
    let [median, late, longest] = [50, 99, 100].map(|percent| at(percent).unwrap_or_default());
    println!("{name:34} p50 {median:>9.2?}  p99 {late:>9.2?}  max {longest:>9.2?}  (n {rounds})");
}
