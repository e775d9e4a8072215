//! A made-up server: a kernel with sockets, a log with its lines, and the real [`Occupancy`].
//!
//! Takes what devices do to their connections; keeps the counters as the kernel would, writes lines
//! (some late, some never), asks the occupancy slot by slot, does what its verdicts say, and tells
//! what became of whom. It knows no device: whoever opened a connection finds out that it is gone.

use std::{net::IpAddr, sync::Arc, time::Duration};

use refract_core::{
    AccountTerms, Accounts, Brakes, Claim, Eviction, Found, Link, Measure, Moment, Occupancy, Peer,
    Places, Policy, Sample, Sighting, Source, Terms, Transport, Verdict,
};

use crate::random::Random;

/// How finely time is cut, milliseconds.
pub(crate) const STEP: u64 = 50;
/// TCP's keepalive as Go sets it, milliseconds: what it brings is an acknowledgement, no payload.
const KEEPALIVE: u64 = 15_000;
/// How long the kernel keeps the side that closed first in `TIME_WAIT`, milliseconds.
const TIME_WAIT: u64 = 60_000;

/// How well the log is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogHabit {
    /// Lines that never come, of a hundred.
    pub(crate) lost: u64,
    /// Lines, of a hundred, that hold themselves up, and with them all that come after, for up to
    /// four seconds: a log has one writer.
    pub(crate) late: u64,
}

impl LogHabit {
    pub(crate) const GOOD: Self = Self { lost: 0, late: 0 };
    pub(crate) const BAD: Self = Self { lost: 5, late: 20 };
}

#[derive(Clone, Debug)]
struct Socket {
    link: Link,
    user: &'static str,
    sample: Sample,
    /// When the client was heard last, by payload or keepalive.
    heard: u64,
    /// Nothing gets through any more; the server gives up then.
    lost: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    due: u64,
    user: &'static str,
    peer: Peer,
}

/// Somebody was cut off.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    /// When, milliseconds.
    pub(crate) at: u64,
    pub(crate) source: Source,
    pub(crate) eviction: Eviction,
}

/// The server.
pub(crate) struct World {
    pub(crate) occupancy: Occupancy,
    brakes: Brakes,
    terms: Terms,
    random: Random,
    habit: LogHabit,
    /// Milliseconds since the start.
    pub(crate) now: u64,
    cookies: u64,
    sockets: Vec<Socket>,
    /// Connections that the server closed first, and until when they are seen.
    waiting: Vec<(Link, u64)>,
    coming: Vec<Line>,
    /// The writer of the log stands still.
    held_until: u64,
    written: Vec<Line>,
    bans: Vec<(Source, u64)>,
    /// Everybody who was cut off so far.
    pub(crate) cuts: Vec<Cut>,
    /// Questions that were put, with their moments.
    pub(crate) questions: Vec<(u64, Source)>,
}

pub(crate) fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

impl World {
    pub(crate) fn new(terms: Terms, habit: LogHabit, random: Random) -> Self {
        let mut world = Self {
            occupancy: occupancy(terms),
            brakes: Brakes::new(10, 600),
            terms,
            random,
            habit,
            now: 0,
            cookies: 0,
            sockets: Vec::new(),
            waiting: Vec::new(),
            coming: Vec::new(),
            held_until: 0,
            written: Vec::new(),
            bans: Vec::new(),
            cuts: Vec::new(),
            questions: Vec::new(),
        };
        world.occupancy.begin(at(0));
        world
    }

    /// The source that an address is in.
    pub(crate) fn source(&self, address: IpAddr) -> Source {
        self.occupancy.policy().source(address)
    }

    /// A client connects and sends its first bytes; `None` while it is banned.
    pub(crate) fn open(&mut self, user: &'static str, address: IpAddr) -> Option<u64> {
        let source = self.source(address);
        if self.bans.iter().any(|(banned, until)| *banned == source && self.now < *until) {
            return None;
        }
        self.cookies += 1;
        let port = u16::try_from(1_024 + self.cookies % 60_000).unwrap();
        let local = if address.is_ipv4() { "203.0.113.1:443" } else { "[2001:db8::1]:443" };
        let now = at(self.now);
        self.sockets.push(Socket {
            link: Link {
                peer: Peer { address, port },
                local: local.parse().unwrap(),
                interface: 0,
                cookie: self.cookies,
            },
            user,
            sample: Sample {
                received: 600,
                acknowledged: 0,
                last_received: now,
                last_acknowledged: now,
            },
            heard: self.now,
            lost: None,
        });
        self.log(self.cookies);
        Some(self.cookies)
    }

    /// A stream begins on the connection, and that is logged.
    pub(crate) fn log(&mut self, cookie: u64) {
        if self.random.chance(self.habit.lost) {
            return;
        }
        if self.random.chance(self.habit.late) {
            self.held_until = self.held_until.max(self.now + self.random.between(500, 4_000));
        }
        let due = self.held_until.max(self.now + self.random.between(1, 40));
        let Some(socket) = self.sockets.iter().find(|it| it.link.cookie == cookie) else { return };
        let line = Line { due, user: socket.user, peer: socket.link.peer };
        self.coming.push(line);
    }

    pub(crate) fn is_open(&self, cookie: u64) -> bool {
        self.sockets.iter().any(|it| it.link.cookie == cookie)
    }

    /// The client sends so many bytes, and acknowledges so many.
    pub(crate) fn payload(&mut self, cookie: u64, sent: u64, acknowledged: u64) {
        let now = at(self.now);
        let Some(socket) = self.sockets.iter_mut().find(|it| it.link.cookie == cookie) else {
            return;
        };
        if socket.lost.is_some() {
            return;
        }
        let sample = &mut socket.sample;
        if sent > 0 {
            sample.received += sent;
            sample.last_received = now;
        }
        if acknowledged > 0 {
            sample.acknowledged += acknowledged;
        }
        sample.last_acknowledged = now;
        socket.heard = self.now;
    }

    /// The connection is closed in order.
    pub(crate) fn close(&mut self, cookie: u64) {
        let by_server = self.random.chance(30);
        if let Some(socket) = self.remove(cookie)
            && by_server
        {
            self.waiting.push((socket.link, self.now + TIME_WAIT));
        }
    }

    /// The client is gone, and the server does not know it; it gives up at `until`.
    pub(crate) fn lose(&mut self, cookie: u64, until: u64) {
        if let Some(socket) = self.sockets.iter_mut().find(|it| it.link.cookie == cookie) {
            socket.lost = Some(until);
        }
    }

    /// The client is back where it was: what was on the way reaches it.
    pub(crate) fn find_again(&mut self, cookie: u64) {
        if let Some(socket) = self.sockets.iter_mut().find(|it| it.link.cookie == cookie) {
            socket.lost = None;
        }
    }

    fn remove(&mut self, cookie: u64) -> Option<Socket> {
        let place = self.sockets.iter().position(|it| it.link.cookie == cookie)?;
        let socket = self.sockets.swap_remove(place);
        // Now and then the news of an end is lost.
        if !self.random.chance(2) {
            let sample = self.random.chance(90).then_some(socket.sample);
            self.occupancy.closed(socket.link.peer, cookie, sample, at(self.now));
        }
        Some(socket)
    }

    /// Lets a step pass.
    pub(crate) fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        self.waiting.retain(|(_, until)| now < *until);
        let over: Vec<u64> = self
            .sockets
            .iter()
            .filter(|it| it.lost.is_some_and(|until| until <= now))
            .map(|it| it.link.cookie)
            .collect();
        for cookie in over {
            self.remove(cookie);
        }
        for socket in &mut self.sockets {
            if socket.lost.is_none() && now - socket.heard >= KEEPALIVE {
                socket.heard = now;
                socket.sample.last_acknowledged = at(now);
            }
        }
        self.read_log();
        if self.occupancy.due().is_some_and(|due| due <= at(now)) {
            while let Some(link) = self.occupancy.probe(&mut self.brakes, at(now)) {
                let found = self.sockets.iter().find(|it| it.link == link);
                let sample = found.map(|it| it.sample);
                self.occupancy.probed(&link, sample, at(now));
            }
        }
        if now.is_multiple_of(250) {
            self.occupancy.tick(at(now));
        }
        let verdicts = self.occupancy.verdicts();
        self.obey(verdicts);
    }

    fn read_log(&mut self) {
        let now = self.now;
        let mut due: Vec<Line> = self.coming.extract_if(.., |line| line.due <= now).collect();
        due.sort_by_key(|line| line.due);
        for line in due {
            self.written.push(line);
            let sighting = sighting(&line);
            if self.occupancy.claim(&sighting, false) != Claim::LookUp {
                continue;
            }
            let found = self.look_up(line.peer);
            let verdict =
                self.occupancy.confirm(&sighting, found.as_ref(), &mut self.brakes, at(now));
            let mut verdicts = vec![verdict];
            verdicts.extend(self.occupancy.verdicts());
            self.obey(verdicts);
        }
    }

    fn look_up(&self, peer: Peer) -> Option<Found> {
        let open = self.sockets.iter().find(|it| it.link.peer == peer);
        let open = open.map(|it| Found { link: it.link, sample: Some(it.sample) });
        let waiting = || self.waiting.iter().find(|(link, _)| link.peer == peer);
        open.or_else(|| waiting().map(|(link, _)| Found { link: *link, sample: None }))
    }

    fn obey(&mut self, verdicts: Vec<Verdict>) {
        for verdict in verdicts {
            match verdict {
                Verdict::Ask(question) => {
                    self.questions.push((self.now, question.source));
                    self.remove(question.link.cookie);
                }
                Verdict::Evict(eviction) => self.evict(&eviction),
                _ => {}
            }
        }
    }

    fn evict(&mut self, eviction: &Eviction) {
        let until = self.now + u64::try_from(self.terms.timeout.as_millis()).unwrap();
        for offender in &eviction.offenders {
            let mut gone: Vec<u64> = offender.links.iter().map(|link| link.cookie).collect();
            if offender.measure == Measure::Ban {
                self.bans.push((offender.source, until));
                let there = self.sockets.iter().map(|it| it.link).filter(|link| {
                    self.source(link.peer.address) == offender.source
                        && self.occupancy.may_destroy(&eviction.user, link.peer, link.cookie)
                });
                gone.extend(there.map(|link| link.cookie).collect::<Vec<_>>());
            }
            for cookie in gone {
                self.remove(cookie);
            }
            let source = offender.source;
            self.cuts.push(Cut { at: self.now, source, eviction: eviction.clone() });
        }
    }

    /// Refract is started anew: what it wrote down is read, then what is open, then the log.
    pub(crate) fn restart(&mut self) {
        let mut standings = Vec::new();
        loop {
            let some = self.occupancy.standings(16);
            if some.is_empty() {
                break;
            }
            standings.extend(some);
        }
        let now = at(self.now);
        self.occupancy = occupancy(self.terms);
        for standing in &standings {
            self.occupancy.restore(standing, now);
        }
        for socket in &self.sockets {
            let found = Found { link: socket.link, sample: Some(socket.sample) };
            self.occupancy.older(&found, now);
        }
        for line in &self.written {
            self.occupancy.adopt(&sighting(line), false, at(line.due));
        }
        self.occupancy.begin(now);
    }
}

fn occupancy(terms: Terms) -> Occupancy {
    let default = Places::Limited(terms.places);
    let accounts = AccountTerms { default, ..AccountTerms::default() };
    Occupancy::new(Policy::new(terms).unwrap(), Arc::new(Accounts::new(accounts).unwrap()))
}

fn sighting(line: &Line) -> Sighting<'static> {
    Sighting {
        user: line.user.as_bytes(),
        peer: line.peer,
        transport: Transport::Unstated,
        inbound: Some(b"vless"),
    }
}

/// The default rules, for a handful of users.
pub(crate) fn terms() -> Terms {
    Terms { users: 64, window: Duration::from_secs(5), ..Terms::default() }
}
