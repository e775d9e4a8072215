//! From the end of a slot to the offender's ECONNRESET, beside the floor.
//!
//! In every slot a user begins to be at two sources at once, whose connections keep moving. With
//! `--ask=off` the end of the fifth slot is the proof, with no line near it. Users of the daemon and
//! of the floor alternate. What is measured is the time between the last slot's end and the reset
//! that the second sees; the first must never see one.

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
    deadline_floor::{self, Orders},
    slots::{self, LIFE_BOUND, SLOT, SLOTS_TO_CUT},
};
use crate::{
    measuring::{floor, nth, samples},
    support::{LabError, Result, access_log::AccessLog, lab::SERVER_V4, witness},
};

/// The first of those who come first.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// The first of those who come second.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// The ports that clients speak from.
pub(crate) const PORTS: [u16; 2] = [40_001, 40_002];
/// Between the connections of one user.
pub(crate) const STEP: Duration = Duration::from_millis(20);
/// Samples for each of the two with `--bench`.
const SAMPLES: u32 = 200;
/// And without.
const FEW_SAMPLES: u32 = 5;
/// The first users of each find it cold, and are not counted.
pub(crate) const WARM_UP: u32 = 2;
const FLOOR_SET: &str = "deadline_floor";
/// Where the daemon bans.
pub(crate) const DAEMON_SET: &str = "refract_banned_users";

/// One user's end.
struct Cut {
    source: Ipv4Addr,
    by_daemon: bool,
    after_deadline: Duration,
    /// Slots after the one that could have been the last.
    late: u64,
}

/// Whoever is to cut, and how he is told.
enum Cutter {
    Daemon(Arc<AccessLog>),
    Floor(Arc<Orders>),
}

/// Measures and prints.
pub(crate) fn measure(stage: &Stage, is_full: bool) -> Result<()> {
    let server = stage.lab.server();
    let socket = stage.lab.path("deadlines");
    let arguments = [
        FLOOR_SET.to_owned(),
        SocketAddr::new(SERVER_V4.into(), FLOOR_PORT).to_string(),
        socket.display().to_string(),
    ];
    let _floor = floor::start(server, FLOOR_SET, deadline_floor::WORD, &arguments)?;
    let orders = Arc::new(Orders::open(&socket)?);

    let wanted = WARM_UP + if is_full { SAMPLES } else { FEW_SAMPLES };
    let cuts = slots::one_a_slot(&stage.client, 2 * wanted, |number| {
        let cutter = if number % 2 == 0 {
            Cutter::Floor(Arc::clone(&orders))
        } else {
            Cutter::Daemon(Arc::clone(&stage.log))
        };
        move || live(number, &cutter)
    })?;
    let expected = |by_daemon| -> BTreeSet<String> {
        let own = cuts.iter().filter(|cut| cut.by_daemon == by_daemon);
        own.map(|cut| cut.source.to_string()).collect()
    };
    for (set, expected) in [(FLOOR_SET, expected(false)), (DAEMON_SET, expected(true))] {
        let banned: BTreeSet<String> = witness::set_members(server, set)?.into_iter().collect();
        if banned != expected {
            return Err(LabError::new(format!("in {set} are {banned:?}, not {expected:?}")));
        }
    }
    print(&cuts);
    Ok(())
}

/// One user from his first connection to the end of his second source.
fn live(number: u32, cutter: &Cutter) -> Result<Cut> {
    let (first, second) = (nth(FIRST, number), nth(SECOND, number));
    let user = format!("deadline{number:06}@example.com");
    let port = match cutter {
        Cutter::Daemon(_) => DAEMON_PORT,
        Cutter::Floor(_) => FLOOR_PORT,
    };
    let connect = |source, source_port| {
        let client = Client::connect(source, source_port, port)?;
        if let Cutter::Daemon(log) = cutter {
            log.accepted(client.local(), &user)?;
        }
        Ok::<_, LabError>(client)
    };
    let [source_port, _] = PORTS;
    let incumbent = connect(first, source_port)?;
    thread::sleep(STEP);
    let mut offender = connect(second, source_port)?;
    let last_slot = slots::slot_of(slots::now()) + SLOTS_TO_CUT;
    if let Cutter::Floor(orders) = cutter {
        orders.give(slots::end_of(last_slot), incumbent.local(), offender.local())?;
    }
    let incumbent = incumbent.read_on();
    let cut = offender.wait_for_reset(LIFE_BOUND)?;
    // Who is let be is let be for longer than that.
    thread::sleep(SLOT);
    let was_let_be = incumbent.let_go()?;
    let (true, Some(cut)) = (was_let_be, cut) else {
        let incumbent = if was_let_be { "let be" } else { "reset" };
        return Err(LabError::new(format!(
            "{user}: {first} was {incumbent}, {second} cut: {cut:?}"
        )));
    };
    Ok(Cut {
        source: second,
        by_daemon: matches!(cutter, Cutter::Daemon(_)),
        after_deadline: slots::since_deadline(cut),
        late: slots::slot_of(cut).saturating_sub(last_slot + 1),
    })
}

fn print(cuts: &[Cut]) {
    let warm = cuts.get(usize::try_from(2 * WARM_UP).unwrap_or_default()..).unwrap_or_default();
    let of = |by_daemon| -> Vec<Duration> {
        let own = warm.iter().filter(|cut| cut.by_daemon == by_daemon);
        own.map(|cut| cut.after_deadline).collect()
    };
    let (floor, refract) = (of(false), of(true));
    println!(
        "microseconds from the end of a slot of {SLOT:?}, on which no line falls, to ECONNRESET"
    );
    println!();
    samples::print_head("until");
    samples::print_row("floor", "offender sees ECONNRESET", &floor);
    samples::print_row("refract", "offender sees ECONNRESET", &refract);
    println!();
    samples::print_promises(&floor, &refract);
    let late = warm.iter().filter(|cut| cut.by_daemon && cut.late > 0).count();
    println!(
        "{late} of {} were cut later than at the first slot's end that could prove it; nobody else \
         was reset or banned",
        refract.len(),
    );
}
