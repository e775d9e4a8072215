//! A made-up device: what it does on which network, and how it leaves one for another.
//!
//! Takes a plan (activities, moves, shifts); opens, fills, closes and loses connections of a
//! [`World`]. A connection that is gone under its hands it opens again, from wherever it is by then.
//! It does not know why a connection went.

use std::net::IpAddr;

use crate::{
    random::Random,
    world::{STEP, World},
};

/// How long after the loss of a connection a device opens it again, milliseconds.
const REOPENED_AFTER: (u64, u64) = (50, 800);
/// How often a device tries while it cannot connect, milliseconds.
const TRIED_AGAIN_AFTER: (u64, u64) = (1_000, 5_000);

/// What somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Bursts of short connections, with pauses to read.
    Browsing,
    /// One long download.
    Streaming,
    /// A video in pieces: a burst every four to six seconds.
    Chunks,
    /// One long connection, small messages now and then.
    Chat,
    /// One carrier with everything on it; a line for each stream.
    Mux,
    /// Long sendings with pauses.
    Upload,
    /// A long connection whose reader stands still for long.
    StalledReader,
    /// A few seconds of work once a minute or so.
    Sync,
    /// Half a second of work every 10 to 30 s.
    ShortBursts,
}

/// How a network is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Every connection is closed.
    Closing,
    /// The link is gone, and the server does not know it.
    Losing,
    /// What is open goes on, from the one to the other number of milliseconds.
    Lingering(u64, u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) at: u64,
    pub(crate) to: usize,
    pub(crate) leave: Leave,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    pub(crate) v4: Option<IpAddr>,
    pub(crate) v6: Option<IpAddr>,
}

/// What a device is to do in its life.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) user: &'static str,
    pub(crate) networks: Vec<Network>,
    pub(crate) activities: Vec<Activity>,
    /// In order of time; the device begins on the first network.
    pub(crate) moves: Vec<Move>,
    /// When it is switched on and off; always on within.
    pub(crate) shifts: Vec<(u64, u64)>,
    /// Stalls of one to four seconds.
    pub(crate) bad_wifi: bool,
    /// How much later than usual it opens again what was reset.
    pub(crate) slow: u64,
}

/// One connection as its owner sees it.
#[derive(Clone, Debug)]
struct Flow {
    cookie: u64,
    network: usize,
    activity: usize,
    /// Data is on the way until then.
    busy_until: u64,
    gap: u64,
    next: u64,
    sends: bool,
    closes: u64,
    /// It was left behind on a network, and goes on there until then.
    lingers: Option<u64>,
}

/// A connection that was lost in the middle of something.
#[derive(Clone, Copy, Debug)]
struct Again {
    at: u64,
    activity: usize,
    rest: u64,
}

pub(crate) struct Device {
    pub(crate) plan: Plan,
    random: Random,
    network: usize,
    flows: Vec<Flow>,
    again: Vec<Again>,
    /// When each activity has its next event.
    next: Vec<u64>,
    /// When it may open connections again.
    ready: Vec<u64>,
    /// Lost links, by network, to which it may come back.
    lost: Vec<(usize, u64)>,
    moved: usize,
    on: bool,
    offline_until: u64,
    stalled_until: u64,
    next_stall: u64,
    /// Seconds in which payload of its moved, counted by the first step that saw it.
    pub(crate) busy_seconds: u64,
    last_busy: u64,
}

const NEVER: u64 = u64::MAX;

impl Device {
    pub(crate) fn new(plan: Plan, random: Random) -> Self {
        let count = plan.activities.len();
        Self {
            random,
            network: 0,
            flows: Vec::new(),
            again: Vec::new(),
            next: vec![0; count],
            ready: vec![0; count],
            lost: Vec::new(),
            moved: 0,
            on: false,
            offline_until: 0,
            stalled_until: 0,
            next_stall: 0,
            busy_seconds: 0,
            last_busy: NEVER,
            plan,
        }
    }

    /// The addresses that it may be seen from.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.plan.networks.iter().flat_map(|network| [network.v4, network.v6]).flatten()
    }

    /// When it is first switched on.
    pub(crate) fn arrival(&self) -> u64 {
        self.plan.shifts.first().map_or(0, |(from, _)| *from)
    }

    pub(crate) fn step(&mut self, world: &mut World) {
        let now = world.now;
        let on = self.plan.shifts.iter().any(|(from, to)| (*from..*to).contains(&now));
        if on != self.on {
            self.switch(on, world);
        }
        if !self.on {
            return;
        }
        while let Some(change) = self.plan.moves.get(self.moved).copied()
            && change.at <= now
        {
            self.moved += 1;
            self.change(change, world);
        }
        if self.plan.bad_wifi && now >= self.next_stall {
            self.stalled_until = now + self.random.between(1_000, 4_000);
            self.next_stall = self.stalled_until + self.random.between(3_000, 15_000);
        }
        if now < self.stalled_until {
            return;
        }
        self.carry(world);
        if now < self.offline_until {
            return;
        }
        self.reopen(world);
        for activity in 0..self.plan.activities.len() {
            self.act(activity, world);
        }
    }

    fn switch(&mut self, on: bool, world: &mut World) {
        self.on = on;
        for flow in self.flows.drain(..) {
            world.close(flow.cookie);
        }
        self.again.clear();
        for next in &mut self.next {
            *next = world.now + self.random.between(0, 500);
        }
    }

    fn change(&mut self, change: Move, world: &mut World) {
        let now = world.now;
        if change.to == self.network {
            return;
        }
        let left = self.network;
        let here = |flow: &Flow| flow.network == left && flow.lingers.is_none();
        match change.leave {
            Leave::Closing => {
                for flow in self.flows.extract_if(.., |flow| here(flow)) {
                    world.close(flow.cookie);
                }
            }
            Leave::Losing => {
                // Whatever still lingered there is lost with the rest.
                for flow in self.flows.extract_if(.., |flow| flow.network == left) {
                    world.lose(flow.cookie, now + self.random.between(60_000, 300_000));
                    self.lost.push((left, flow.cookie));
                }
            }
            Leave::Lingering(low, high) => {
                let until = now + self.random.between(low, high);
                for flow in self.flows.iter_mut().filter(|flow| here(flow)) {
                    flow.lingers = Some(until);
                    if flow.busy_until != NEVER {
                        // It goes on for longer than it would have: the worst that a network
                        // left behind can look like.
                        flow.busy_until = flow.busy_until.max(until);
                        flow.gap = flow.gap.min(400);
                        flow.next = flow.next.min(now + flow.gap);
                    }
                }
            }
        }
        self.network = change.to;
        let gap = match change.leave {
            Leave::Lingering(..) => self.random.between(0, 300),
            Leave::Closing => self.random.between(0, 1_500),
            Leave::Losing => self.random.between(500, 3_000),
        };
        self.offline_until = now + gap;
        for ready in &mut self.ready {
            *ready = now + gap + self.random.between(REOPENED_AFTER.0, REOPENED_AFTER.1);
        }
        // What the server has sent meanwhile reaches a device that is back.
        for (_, cookie) in self.lost.extract_if(.., |(network, _)| *network == change.to) {
            if self.random.chance(50) {
                world.find_again(cookie);
                world.payload(cookie, 0, 1_400);
            }
            world.lose(cookie, now + self.random.between(200, 8_000));
        }
    }

    /// Moves what is open, and finds out what is gone.
    fn carry(&mut self, world: &mut World) {
        let now = world.now;
        let mut gone = Vec::new();
        let mut busy = false;
        for flow in &mut self.flows {
            if !world.is_open(flow.cookie) {
                gone.push(flow.clone());
                continue;
            }
            if now >= flow.next && now < flow.busy_until {
                let bytes = self.random.between(200, 60_000);
                if flow.sends {
                    world.payload(flow.cookie, bytes, 0);
                } else {
                    let sent = if self.random.chance(10) { 80 } else { 0 };
                    world.payload(flow.cookie, sent, bytes);
                }
                flow.next = now + self.random.between(flow.gap / 2, flow.gap * 3 / 2);
                busy = true;
            }
            if flow.closes <= now || flow.lingers.is_some_and(|until| until <= now) {
                if flow.lingers.is_some() && self.random.chance(50) {
                    world.lose(flow.cookie, now + self.random.between(60_000, 300_000));
                } else {
                    world.close(flow.cookie);
                }
                flow.cookie = 0;
            }
        }
        if busy && self.last_busy != now / 1_000 {
            self.last_busy = now / 1_000;
            self.busy_seconds += 1;
        }
        self.flows.retain(|flow| flow.cookie != 0 && world.is_open(flow.cookie));
        for flow in gone {
            let late = self.random.between(REOPENED_AFTER.0, REOPENED_AFTER.1);
            let at = now + late + self.plan.slow;
            let ready = &mut self.ready[flow.activity];
            *ready = at.max(*ready);
            if flow.busy_until > now && flow.busy_until != NEVER {
                let rest = flow.busy_until - now;
                self.again.push(Again { at, activity: flow.activity, rest });
            }
        }
    }

    fn reopen(&mut self, world: &mut World) {
        let now = world.now;
        let due: Vec<Again> = self.again.extract_if(.., |again| again.at <= now).collect();
        for again in due {
            let kind = self.plan.activities[again.activity];
            if is_long(kind) && self.has(again.activity) {
                continue;
            }
            if let Some(flow) = self.open(again.activity, world) {
                flow.busy_until = now + again.rest.min(4_000);
                flow.closes = if is_long(kind) { NEVER } else { flow.busy_until + 2_000 };
            } else {
                let at = now + self.random.between(TRIED_AGAIN_AFTER.0, TRIED_AGAIN_AFTER.1);
                self.again.push(Again { at, ..again });
            }
        }
    }

    fn open(&mut self, activity: usize, world: &mut World) -> Option<&mut Flow> {
        let network = self.plan.networks[self.network];
        let address = match (network.v4, network.v6) {
            (Some(v4), Some(v6)) => Some(if self.random.chance(50) { v4 } else { v6 }),
            (v4, v6) => v4.or(v6),
        };
        let cookie = world.open(self.plan.user, address?)?;
        self.flows.push(Flow {
            cookie,
            network: self.network,
            activity,
            busy_until: 0,
            gap: self.random.between(60, 400),
            next: world.now + STEP,
            sends: false,
            closes: NEVER,
            lingers: None,
        });
        self.flows.last_mut()
    }

    /// Whether the activity has its connection where the device is.
    fn has(&self, activity: usize) -> bool {
        self.flows.iter().any(|flow| flow.activity == activity && flow.lingers.is_none())
    }

    /// The one connection of an activity that lives on one; opened when it is not there.
    fn only(&mut self, activity: usize, world: &mut World) -> Option<&mut Flow> {
        if !self.has(activity) {
            if world.now < self.ready[activity] {
                return None;
            }
            if self.open(activity, world).is_none() {
                let wait = self.random.between(TRIED_AGAIN_AFTER.0, TRIED_AGAIN_AFTER.1);
                self.ready[activity] = world.now + wait;
                return None;
            }
        }
        self.flows.iter_mut().find(|flow| flow.activity == activity && flow.lingers.is_none())
    }

    fn act(&mut self, activity: usize, world: &mut World) {
        let now = world.now;
        let kind = self.plan.activities[activity];
        if is_long(kind) && self.only(activity, world).is_none() {
            return;
        }
        if kind == Activity::Streaming {
            if let Some(flow) = self.only(activity, world) {
                flow.busy_until = NEVER;
            }
            return;
        }
        if now < self.next[activity] || now < self.ready[activity] {
            return;
        }
        let random = &mut self.random;
        let (busy, pause, count) = match kind {
            Activity::Browsing => {
                (random.around(2_500), random.around(5_000), random.between(2, 9))
            }
            Activity::Chunks => (random.between(500, 2_000), random.between(4_000, 6_000), 1),
            Activity::Chat => (random.between(50, 200), random.around(12_000), 1),
            Activity::Mux => (random.around(1_500), random.around(5_000), random.between(1, 7)),
            Activity::Upload => (random.between(5_000, 60_000), random.between(60_000, 90_000), 1),
            Activity::StalledReader => {
                (random.between(500, 4_000), random.between(10_000, 60_000), 1)
            }
            Activity::Sync => (random.between(1_000, 3_000), random.between(30_000, 120_000), 1),
            Activity::ShortBursts => (500, random.between(10_000, 30_000), 1),
            Activity::Streaming => return,
        };
        self.next[activity] = now + pause.max(STEP);
        if is_long(kind) {
            // A player opens a new connection for a piece now and then.
            if kind == Activity::Chunks && self.random.chance(15) {
                let ends = |flow: &Flow| flow.activity == activity && flow.lingers.is_none();
                for flow in self.flows.extract_if(.., |flow| ends(flow)) {
                    world.close(flow.cookie);
                }
            }
            let sends = match kind {
                Activity::Chat => self.random.chance(50),
                Activity::Upload => true,
                _ => false,
            };
            let Some(flow) = self.only(activity, world) else { return };
            flow.sends = sends;
            flow.busy_until = flow.busy_until.max(now + busy);
            flow.next = flow.next.min(now + STEP);
            let cookie = flow.cookie;
            if kind == Activity::Mux {
                for _ in 0..count {
                    world.log(cookie);
                }
            }
            return;
        }
        for n in 0..count {
            let idle = self.random.around(5_000);
            let share = self.random.between(busy / 3, busy + STEP);
            if n > 0 && self.random.chance(60) {
                // A page asks for more while it loads.
                let at = now + self.random.between(0, busy.max(STEP));
                self.again.push(Again { at, activity, rest: share });
                continue;
            }
            if let Some(flow) = self.open(activity, world) {
                flow.busy_until = now + share;
                flow.closes = flow.busy_until + idle;
            } else {
                let wait = self.random.between(TRIED_AGAIN_AFTER.0, TRIED_AGAIN_AFTER.1);
                self.next[activity] = now + wait;
                return;
            }
        }
    }
}

/// Whether it lives on one connection.
fn is_long(activity: Activity) -> bool {
    !matches!(activity, Activity::Browsing | Activity::Sync | Activity::ShortBursts)
}
