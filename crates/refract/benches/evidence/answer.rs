//! From the line that answers a question to the offender's ECONNRESET, beside the floor.
//!
//! In every slot a user begins to be at two sources, each with one long connection that moves, and
//! logs nothing more. At the end of the fifth slot the first is asked: its connection is reset. It
//! connects again at once, and the line about that proves nobody yet, but has the second asked. That
//! connects again at once, too, and the line about it is the proof: what is measured is the time from
//! the `write(2)` of that line to the reset that the second sees on its *new* connection, which is the
//! verdict. The floor's users do the same without being asked, and that line is all that it takes.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    DAEMON_PORT, FLOOR_PORT, Stage,
    clients::Client,
    deadline::{DAEMON_SET, PORTS, STEP, WARM_UP},
    slots::{self, LIFE_BOUND, SLOT, SLOTS_TO_CUT},
};
use crate::{
    measuring::{floor, log_floor, nth, samples},
    support::{LabError, Result, access_log::AccessLog, lab::SERVER_V4, witness},
};

/// The first of the daemon's users who come first.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 64, 0);
/// The first of those who come second.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 19, 64, 0);
/// The first of the floor's users who come first.
const FLOOR_FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 128, 0);
/// The first of those who come second.
const FLOOR_SECOND: Ipv4Addr = Ipv4Addr::new(198, 19, 128, 0);
/// Samples for each of the two with `--bench`.
const SAMPLES: u32 = 200;
/// And without.
const FEW_SAMPLES: u32 = 5;
const FLOOR_SET: &str = "answer_floor";

/// What one user saw.
struct Answer {
    /// Where the second was.
    source: Ipv4Addr,
    by_daemon: bool,
    /// From the end of the slot to the reset that is the first question.
    asked: Duration,
    /// From the write of the line that answers it to the reset that is the second.
    asked_next: Duration,
    /// From the write of the line that answers that one to the reset that is the verdict; `None` when
    /// there was none.
    cut: Option<Duration>,
    /// The first was let be once it had answered.
    was_let_be: bool,
}

/// Measures and prints.
pub(crate) fn measure(stage: &Stage, is_full: bool) -> Result<()> {
    let server = stage.lab.server();
    let floor_log = Arc::new(AccessLog::open(stage.lab.path("floor.log"))?);
    let arguments = [
        floor_log.path().display().to_string(),
        FLOOR_SET.to_owned(),
        SocketAddr::new(SERVER_V4.into(), FLOOR_PORT).to_string(),
        SocketAddr::new(FLOOR_SECOND.into(), PORTS[1]).to_string(),
    ];
    let _floor = floor::start(server, FLOOR_SET, log_floor::WORD, &arguments)?;

    let wanted = WARM_UP + if is_full { SAMPLES } else { FEW_SAMPLES };
    let answers = slots::one_a_slot(&stage.client, 2 * wanted, |number| {
        let by_daemon = number % 2 == 1;
        let log = Arc::clone(if by_daemon { &stage.log } else { &floor_log });
        move || live(number / 2, by_daemon, &log)
    })?;
    let expected = |by_daemon| -> BTreeSet<String> {
        let own = answers.iter().filter(|it| it.by_daemon == by_daemon && it.cut.is_some());
        own.map(|answer| answer.source.to_string()).collect()
    };
    for (set, expected) in [(FLOOR_SET, expected(false)), (DAEMON_SET, expected(true))] {
        let banned: BTreeSet<String> = witness::set_members(server, set)?.into_iter().collect();
        if banned != expected {
            return Err(LabError::new(format!("in {set} are {banned:?}, not {expected:?}")));
        }
    }
    print(&answers);
    Ok(())
}

/// One user from his first connection to the end of his second source.
fn live(number: u32, by_daemon: bool, log: &AccessLog) -> Result<Answer> {
    let (first, second, port) = if by_daemon {
        (FIRST, SECOND, DAEMON_PORT)
    } else {
        (FLOOR_FIRST, FLOOR_SECOND, FLOOR_PORT)
    };
    let (first, second) = (nth(first, number), nth(second, number));
    let user = format!("answer{number:06}@example.com");
    let [port_before, port_after] = PORTS;
    let mut asked = Client::connect(first, port_before, port)?;
    if by_daemon {
        log.accepted(asked.local(), &user)?;
    }
    thread::sleep(STEP);
    let mut offender = Client::connect(second, port_before, port)?;
    if by_daemon {
        log.accepted(offender.local(), &user)?;
    }
    let last_slot = slots::slot_of(slots::now()) + SLOTS_TO_CUT;
    let (asked_at, answering, asked_next) = if by_daemon {
        // It listens from before the answer on, so that nothing is started meanwhile.
        let asked_next = thread::spawn(move || offender.wait_for_reset(LIFE_BOUND));
        let asked_at = asked
            .wait_for_reset(LIFE_BOUND)?
            .ok_or_else(|| LabError::new(format!("{user} was never asked")))?;
        let answering = Client::connect(first, port_after, port)?;
        let written = slots::now();
        log.accepted(answering.local(), &user)?;
        let asked_next = slots::join(asked_next)?
            .ok_or_else(|| LabError::new(format!("{user}'s second device was never asked")))?;
        (asked_at, answering, asked_next.saturating_sub(written))
    } else {
        slots::sleep_until(slots::end_of(last_slot))?;
        (slots::now(), Client::connect(first, port_after, port)?, Duration::ZERO)
    };
    let answering = answering.read_on();
    let mut offender = Client::connect(second, port_after, port)?;
    let written = slots::now();
    log.accepted(offender.local(), &user)?;
    let cut = offender.wait_for_reset(LIFE_BOUND)?;
    // Who has answered is let be for longer than that.
    thread::sleep(SLOT);
    Ok(Answer {
        source: second,
        by_daemon,
        asked: slots::since_deadline(asked_at),
        asked_next,
        cut: cut.map(|cut| cut.saturating_sub(written)),
        was_let_be: answering.let_go()?,
    })
}

fn print(answers: &[Answer]) {
    let warm = answers.get(usize::try_from(2 * WARM_UP).unwrap_or_default()..).unwrap_or_default();
    let of = |by_daemon, time: fn(&Answer) -> Option<Duration>| -> Vec<Duration> {
        let own = warm.iter().filter(|it| it.by_daemon == by_daemon && it.was_let_be);
        own.filter(|it| it.cut.is_some()).filter_map(time).collect()
    };
    let (floor, refract) = (of(false, |it| it.cut), of(true, |it| it.cut));
    println!(
        "microseconds from the write(2) of the line that answers the second question, and of both \
         questions"
    );
    println!();
    samples::print_head("until");
    samples::print_row("floor", "offender sees ECONNRESET", &floor);
    samples::print_row("refract", "offender sees ECONNRESET", &refract);
    samples::print_row("refract", "slot's end to the question", &of(true, |it| Some(it.asked)));
    samples::print_row("refract", "an answer to the next one", &of(true, |it| Some(it.asked_next)));
    println!();
    samples::print_promises(&floor, &refract);
    let late = refract.iter().filter(|time| **time >= SLOT / 2).count();
    let missed = warm.iter().filter(|it| it.cut.is_none() || !it.was_let_be).count();
    println!(
        "{late} of {} had to wait for the next slot's end; {missed} more answered and were not \
         believed, and are not in the numbers; nobody else was banned",
        refract.len()
    );
}
