//! Samples in, rows and percentiles out; beside them, whether a promise was kept.
//!
//! It measures nothing. A promise that was not kept is printed and fails nothing, because a busy
//! machine measures itself.

use std::{fmt::Write as _, time::Duration};

/// The median may be this many times the floor's,
const MOST_FLOORS: f64 = 2.0;
/// and the 99th percentile has to be below this.
const SLOWEST: Duration = Duration::from_millis(1);

/// The line above the rows; `what` is the heading of the second column.
pub(crate) fn print_head(what: &str) {
    println!(
        "{:<10}{what:<28}{:>8}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "", "samples", "min", "p50", "p90", "p99", "max"
    );
}

/// One row, in microseconds.
pub(crate) fn print_row(subject: &str, what: &str, samples: &[Duration]) {
    let sorted = sorted(samples);
    let mut row = format!("{:>8}", sorted.len());
    for per_mille in [0, 500, 900, 990, 1_000] {
        let nanos = percentile(&sorted, per_mille).as_nanos();
        // Tenths of a microsecond are as far as the clock is worth printing.
        let _ = write!(row, "{:>8}.{}", nanos / 1_000, nanos % 1_000 / 100);
    }
    println!("{subject:<10}{what:<28}{row}");
}

/// What is promised of the time until ECONNRESET, and whether this run kept it.
pub(crate) fn print_promises(floor: &[Duration], refract: &[Duration]) {
    let (floor, refract) = (sorted(floor), sorted(refract));
    let ratio = percentile(&refract, 500).as_secs_f64() / percentile(&floor, 500).as_secs_f64();
    println!(
        "p50 is {ratio:.2} x the floor's; at most {MOST_FLOORS} x: {}",
        kept(ratio <= MOST_FLOORS)
    );
    let slow = percentile(&refract, 990);
    println!(
        "p99 is {:.3} ms, the floor's {:.3} ms; below 1 ms: {}",
        slow.as_secs_f64() * 1e3,
        percentile(&floor, 990).as_secs_f64() * 1e3,
        kept(slow < SLOWEST)
    );
}

/// The word for a promise.
pub(crate) const fn kept(is_kept: bool) -> &'static str {
    if is_kept { "kept" } else { "NOT KEPT" }
}

/// Half of the samples took no longer.
pub(crate) fn median(samples: &[Duration]) -> Duration {
    percentile(&sorted(samples), 500)
}

fn sorted(samples: &[Duration]) -> Vec<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted
}

/// By nearest rank.
fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    let rank = (sorted.len() * per_mille).div_ceil(1_000).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}
