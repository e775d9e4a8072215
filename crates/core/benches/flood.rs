//! Ten million users who come once each: what the roster's memory does, and what a line costs.
//!
//! Every line is from a user and a source of its own, which is the worst that can be written into
//! a log.
//!
//! `cargo bench -p refract-core --bench flood`

#![expect(clippy::disallowed_methods, reason = "the bench reads a clock, the crate does not")]

use std::{error::Error, fs, time::Instant};

use refract_core::{Evidence, Moment, Peer, Policy, Roster, Sighting, Transport};

const USERS: u64 = 10_000_000;
/// 50,000 lines a second.
const INTERVAL_NANOS: u64 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut roster = Roster::new(Policy::default());
    let started = Instant::now();
    for number in 0..USERS {
        let [_, a, b, c] = u32::try_from(number)?.to_be_bytes();
        let user = format!("flood-{number:08}@example.com");
        let sighting = Sighting {
            user: user.as_bytes(),
            peer: Peer { address: [100, a, b, c].into(), port: 1 },
            transport: Transport::Unstated,
            inbound: None,
        };
        let now = Moment::from_nanos(number * INTERVAL_NANOS);
        let _ = roster.observe(&sighting, Evidence::Log, now);
        if (number + 1) % (USERS / 5) == 0 {
            println!(
                "  {:>10} {:>8} users {:>6} MB resident",
                number + 1,
                roster.len(),
                resident()?
            );
        }
    }
    let each = started.elapsed().as_nanos() / u128::from(USERS);
    println!("  {each} ns a line; {:?}", roster.counters());
    Ok(())
}

/// Resident memory, MB (`/proc/self/status`).
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
