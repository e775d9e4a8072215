//! How many lines a second one core reads and decides.
//!
//! Makes the log of [`refract_core::synthetic`] (in the directory given as an argument, else in
//! the temporary one), reads it back from the file in blocks, and takes the median and the best of
//! nine runs of each stage; beside it stands `wc -l` on the same file.
//!
//! `cargo bench -p refract-core --bench throughput`

#![expect(clippy::disallowed_types, reason = "the bench reads a file, the crate does not")]
#![expect(clippy::disallowed_methods, reason = "the bench reads a clock, the crate does not")]

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::{Read, Write as _},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use refract_core::{
    Batch, Evidence, Exemptions, Moment, Policy, Roster, Verdict, access,
    synthetic::{LINE_INTERVAL_NANOS, Shape, SyntheticLog},
};

const RUNS: usize = 9;
const BLOCK: usize = 256 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo passes `--bench`.
    let directory =
        env::args_os().skip(1).find(|argument| !argument.as_encoded_bytes().starts_with(b"--"));
    let directory = directory.map_or_else(env::temp_dir, Into::into);
    let path = directory.join(format!("refract-throughput-{}.log", std::process::id()));
    let shape = Shape::default();
    let bytes = generate(&path, shape)?;
    println!(
        "{} lines, {bytes} bytes, {} users, {} of them at two sources",
        shape.lines, shape.users, shape.sharers
    );
    let measured = measure(&path, shape);
    fs::remove_file(&path)?;
    measured
}

fn measure(path: &Path, shape: Shape) -> Result<(), Box<dyn Error>> {
    report("wc -l", shape.lines, &mut || {
        let done = Command::new("wc").arg("-l").arg(path).output()?;
        Ok(String::from_utf8_lossy(&done.stdout).split(' ').next().unwrap_or_default().to_owned())
    })?;
    report("split", shape.lines, &mut || {
        let mut lines = 0u64;
        each_line(path, |_| lines += 1)?;
        Ok(format!("{lines} lines"))
    })?;
    report("split, parse", shape.lines, &mut || {
        let mut taken = 0u64;
        each_line(path, |line| taken += u64::from(access::parse(line).is_ok()))?;
        Ok(format!("{taken} sightings"))
    })?;
    report("split, parse, exempt, decide", shape.lines, &mut || {
        let exemptions = exemptions()?;
        let mut roster = Roster::new(Policy::default());
        let (mut number, mut evictions) = (0, 0u64);
        let mut batch = Batch::default();
        let mut count = |verdict| evictions += u64::from(matches!(verdict, Verdict::Evict(_)));
        each_line(path, |line| {
            number += 1;
            let Ok(sighting) = access::parse(line) else { return };
            if exemptions.reason(sighting.peer.address).is_some() {
                return;
            }
            let now = Moment::from_nanos(number * LINE_INTERVAL_NANOS);
            batch.push(&sighting, now);
            if batch.is_full() {
                batch.decide(&mut roster, Evidence::Log, &mut count);
            }
        })?;
        batch.decide(&mut roster, Evidence::Log, &mut count);
        Ok(format!("{evictions} evictions, {} users", roster.len()))
    })
}

/// A host with an address of each family, a gateway, and an operator's own networks allowed.
fn exemptions() -> Result<Exemptions, Box<dyn Error>> {
    let mut exemptions = Exemptions::new(vec!["10.0.0.0/8".parse()?, "192.0.2.7".parse()?]);
    exemptions.set_host(
        vec!["203.0.113.1".parse()?, "2001:db8:ffff::1".parse()?],
        vec!["203.0.113.254".parse()?],
    );
    Ok(exemptions)
}

fn report(
    stage: &str,
    lines: u64,
    run: &mut dyn FnMut() -> Result<String, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut times = [Duration::ZERO; RUNS];
    let mut outcome = String::new();
    for time in &mut times {
        let started = Instant::now();
        outcome = run()?;
        *time = started.elapsed();
    }
    times.sort_unstable();
    let best = times.first().copied().unwrap_or_default();
    let median = times.get(RUNS / 2).copied().unwrap_or_default();
    for (name, time) in [("median", median), ("best", best)] {
        let nanos = u64::try_from(time.as_nanos())?.max(1);
        let per_second = u128::from(lines) * 1_000_000_000 / u128::from(nanos);
        let (whole, tenth) = (per_second / 1_000_000, per_second / 100_000 % 10);
        println!(
            "{stage:30} {name:6} {whole:>3}.{tenth} M lines/s {:>4} ns/line  {outcome}",
            nanos / lines
        );
    }
    Ok(())
}

fn generate(path: &Path, shape: Shape) -> Result<usize, Box<dyn Error>> {
    let mut file = File::create(path)?;
    let mut log = SyntheticLog::new(shape);
    let (mut block, mut bytes) = (Vec::with_capacity(2 * BLOCK), 0);
    while log.append_line(&mut block) {
        if block.len() >= BLOCK {
            file.write_all(&block)?;
            bytes += block.len();
            block.clear();
        }
    }
    file.write_all(&block)?;
    Ok(bytes + block.len())
}

fn each_line(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), Box<dyn Error>> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    let mut held = 0;
    loop {
        let read = file.read(block.get_mut(held..).unwrap_or_default())?;
        if read == 0 {
            return Ok(());
        }
        let filled = block.get(..held + read).unwrap_or_default();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', filled) {
            each(filled.get(start..end).unwrap_or_default());
            start = end + 1;
        }
        held += read;
        block.copy_within(start..held, 0);
        held -= start;
    }
}
