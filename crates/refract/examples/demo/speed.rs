//! How fast: from the write of a line to the reset that the client sees.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    BOUND, PACE, PORT, WINDOW,
    page::{headline, say},
    start,
    support::{
        LabError, Result,
        access_log::AccessLog,
        eventually,
        lab::{Host, Lab, SERVER_V4},
        peer::{Ending, Server, Talker},
    },
};

/// Offenders in the measurement.
const OFFENDERS: u32 = 50;
/// The offenders' addresses, and those of the users' first devices (RFC 2544).
const OFFENDING: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const HOLDING: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// An address that the client itself speaks from.
const CLIENT: &str = "198.51.100.11";

/// Measures it on the word of the log, with nothing but sockets: there the line is the proof.
pub(crate) fn measure(binary: &Path) -> Result<()> {
    headline("How fast");
    let mut lab = Lab::new()?;
    let client = lab.add_client(&[CLIENT])?;
    lab.own_prefix(&client, "198.18.0.0/15")?;
    let _echo = Server::echo(lab.server(), PORT)?;
    let log = AccessLog::open(lab.path("access.log"))?;
    let flags = [
        "--evidence=log".to_owned(),
        format!("--dport={PORT}"),
        format!("--window={}s", WINDOW.as_secs()),
        format!("--access.log={}", log.path().display()),
        format!("--block.log={}", lab.path("block.log").display()),
    ];
    let daemon = start(binary, &lab, &flags)?;
    let mut offenders = (0..).map(|index| Offender { index, client: &client, log: &log });
    // There may be no verdicts in the first window; the first one that falls is not counted.
    eventually("a first offender to be cut off", BOUND, || {
        offenders.next().map_or(Ok(None), |offender| offender.time_to_reset(PACE))
    })?;
    let mut taken = Vec::new();
    for offender in offenders.take(usize::try_from(OFFENDERS).unwrap_or_default()) {
        taken.push(offender.time_to_reset(BOUND)?.ok_or_else(|| {
            LabError::new(format!("offender {} was never cut off", offender.index))
        })?);
    }
    taken.sort_unstable();
    let micros = |at: usize| taken.get(at).map_or(0, Duration::as_micros);
    say(&format!(
        "{OFFENDERS} offenders, one by one, from the write of the log line to the reset that the \
         client sees:"
    ));
    say(&format!(
        "fastest {} us, median {} us, slowest {} us (a millionth of a second each), on this machine.",
        micros(0),
        micros(taken.len() / 2),
        micros(taken.len() - 1),
    ));
    say("`make bench` measures it with more care.");
    daemon.terminate(BOUND).map(drop)
}

/// A second source for a user whose place is held.
struct Offender<'lab> {
    index: u32,
    client: &'lab Host,
    log: &'lab AccessLog,
}

impl Offender<'_> {
    /// Connects, is given away by a line, and is reset; `None` if it is not within `bound`.
    fn time_to_reset(&self, bound: Duration) -> Result<Option<Duration>> {
        let user = format!("user{}@example.com", self.index);
        let nth = |first: Ipv4Addr| Ipv4Addr::from(u32::from(first) + self.index);
        self.log.accepted(SocketAddr::new(nth(HOLDING).into(), 40_000), &user)?;
        let server = SocketAddr::new(SERVER_V4.into(), PORT);
        let talker = Talker::connect(self.client, nth(OFFENDING).into(), server)?;
        talker.progress().wait_for_bytes(1, BOUND)?;
        let written = Instant::now();
        self.log.accepted(talker.local(), &user)?;
        Ok(match talker.progress().wait_for_end(bound) {
            Ok(Ending::Reset(when)) => Some(when.duration_since(written)),
            _ => None,
        })
    }
}
