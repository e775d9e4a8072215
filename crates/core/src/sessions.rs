//! One user's sessions, and the rule by which the log alone decides.
//!
//! Takes arrivals (this source, now); makes a [`Ruling`]. The rule, where the log is all there is:
//!
//! 1. A session is live for `window` after its last line, that instant not included.
//! 2. Live sessions hold the user's places, those of the two address families counted apart: the
//!    larger count decides, so a phone that uses both holds one place.
//! 3. A source that is not live is a newcomer. If a place in its family is free, it takes it.
//! 4. If none is free, that is a violation, at once and without grace. The newcomer is the
//!    offender and takes no place (`keep = first`), so each further line of his is a violation
//!    again for as long as the places are held; or (`keep = last`) he takes the place of the most
//!    senior, who is the offender and has lost it until the ban ends: lines of his that were
//!    already on their way are no new login.
//! 5. While a ban lasts, a source of the *other* family that this user never held a place at is
//!    taken for the banned device. With `keep = first` that is whoever appears: the incumbents were
//!    there before, and mostly on both families. With `keep = last` the device that has just come
//!    is as new as its two addresses, so a newcomer in the other family is *it*, until the places
//!    there are all held by sessions that began since the violation; the next one is the banned
//!    device.
//!
//! What rule 5 cannot know: an incumbent who uses the other family for the first time in a day
//! while somebody else's ban lasts is cut with him (`keep = first`). A source where the user ever
//! held a place, within the time that it is remembered, never is.
//!
//! It knows one user only, not his name, and not who else is at a source.

use std::time::Duration;

use crate::{
    few::Few,
    moment::Moment,
    network::{Family, Source},
    policy::{Keep, Policy},
    sighting::{Peer, Transport},
    tags::Tag,
    verdict::{Ground, Incumbent},
};

/// One line of this user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) source: Source,
    pub(crate) peer: Peer,
    pub(crate) transport: Transport,
}

/// How a line of a live session was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// It keeps its place.
    Renewed,
    /// It keeps its place, and it is time to tell the neighbours' table again.
    RenewedAndDue,
    /// There is no live session at that source.
    NotLive,
}

/// What is to be done about an arrival.
#[derive(Debug)]
pub(crate) enum Ruling {
    Admit,
    Evict { ground: Ground, offenders: Vec<Session> },
}

/// The user at a source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) source: Source,
    pub(crate) peer: Peer,
    pub(crate) transport: Transport,
    pub(crate) tag: Tag,
    began: Moment,
    last: Moment,
    noted: Moment,
    /// Until when it may not come back, having lost its place to a newcomer; the start of the clock
    /// for a session that did not.
    banned_until: Moment,
}

/// A violation whose ban lasts.
#[derive(Clone, Copy, Debug)]
struct Offence {
    at: Moment,
    until: Moment,
}

/// The last violation by an offender of each family.
#[derive(Clone, Copy, Debug, Default)]
struct Offences {
    v4: Option<Offence>,
    v6: Option<Offence>,
}

impl Offences {
    fn of(&mut self, family: Family) -> &mut Option<Offence> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    fn other_than(&self, family: Family) -> Option<Offence> {
        match family {
            Family::V4 => self.v6,
            Family::V6 => self.v4,
        }
    }
}

/// One user: where he is and was.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// In the order in which they began, the most senior first.
    by_seniority: Few<Session>,
    /// Elsewhere in memory: most users have none, and what each line reads should be small.
    offences: Option<Box<Offences>>,
    last: Moment,
}

impl Sessions {
    pub(crate) fn new(now: Moment) -> Self {
        Self { by_seniority: Few::new(), offences: None, last: now }
    }

    /// When any line of this user was last seen.
    pub(crate) const fn last(&self) -> Moment {
        self.last
    }

    /// Takes a line of a live session: the hot path.
    pub(crate) fn renew(&mut self, arrival: Arrival, policy: &Policy, now: Moment) -> Renewal {
        self.last = now;
        let Some(session) =
            self.by_seniority.iter_mut().find(|session| session.source == arrival.source)
        else {
            return Renewal::NotLive;
        };
        if !session.is_live(policy.window(), now) {
            return Renewal::NotLive;
        }
        session.peer = arrival.peer;
        session.transport = arrival.transport;
        session.last = now;
        if now.saturating_since(session.noted) < note_interval(policy) {
            return Renewal::Renewed;
        }
        session.noted = now;
        Renewal::RenewedAndDue
    }

    /// Judges an arrival at a source that is not live; the neighbours' table has just been told.
    pub(crate) fn judge(
        &mut self,
        arrival: Arrival,
        tag: Tag,
        policy: &Policy,
        now: Moment,
    ) -> Ruling {
        self.last = now;
        let newcomer = Session {
            source: arrival.source,
            peer: arrival.peer,
            transport: arrival.transport,
            tag,
            began: now,
            last: now,
            noted: now,
            banned_until: Moment::default(),
        };
        let family = arrival.source.family();
        let known = self.known(arrival.source, policy, now);
        if known.is_some_and(|session| session.is_banned(now)) {
            return Ruling::Evict { ground: Ground::StillBanned, offenders: vec![newcomer] };
        }
        if known.is_none() && self.is_banned_device(family, policy, now) {
            return Ruling::Evict { ground: Ground::OtherFamily, offenders: vec![newcomer] };
        }
        let held = self.live(family, policy, now).count();
        if held < policy.places() {
            self.begin(newcomer, policy, now);
            return Ruling::Admit;
        }
        *self.offences.get_or_insert_default().of(family) =
            Some(Offence { at: now, until: now.saturating_add(policy.timeout()) });
        let offenders = match policy.keep() {
            Keep::First => vec![newcomer],
            Keep::Last => {
                let offenders = self.oust(held + 1 - policy.places(), family, policy, now);
                self.begin(newcomer, policy, now);
                offenders
            }
        };
        Ruling::Evict { ground: Ground::PlacesHeld, offenders }
    }

    /// Who holds this user's places, in both families, the most senior first.
    pub(crate) fn incumbents(&self, policy: &Policy, now: Moment) -> Vec<Incumbent> {
        self.by_seniority
            .iter()
            .filter(|session| session.is_live(policy.window(), now))
            .map(|session| Incumbent {
                source: session.source,
                peer: session.peer,
                age: now.saturating_since(session.began),
                silence: now.saturating_since(session.last),
            })
            .collect()
    }

    /// Forgets the sources that were silent for too long.
    pub(crate) fn forget(&mut self, policy: &Policy, now: Moment) {
        self.by_seniority.retain(|session| !session.is_forgotten(policy, now));
    }

    fn known(&self, source: Source, policy: &Policy, now: Moment) -> Option<&Session> {
        self.by_seniority
            .iter()
            .find(|session| session.source == source && !session.is_forgotten(policy, now))
    }

    /// Whether a source of `family` that this user was never at is the device that is banned in
    /// the other family (rule 5).
    fn is_banned_device(&self, family: Family, policy: &Policy, now: Moment) -> bool {
        let Some(offence) = self
            .offences
            .as_ref()
            .and_then(|offences| offences.other_than(family))
            .filter(|offence| now < offence.until)
        else {
            return false;
        };
        match policy.keep() {
            Keep::First => true,
            Keep::Last => {
                let newer = self
                    .live(family, policy, now)
                    .filter(|session| session.began >= offence.at)
                    .count();
                newer >= policy.places()
            }
        }
    }

    fn live<'a>(
        &'a self,
        family: Family,
        policy: &'a Policy,
        now: Moment,
    ) -> impl Iterator<Item = &'a Session> {
        self.by_seniority.iter().filter(move |session| {
            session.source.family() == family && session.is_live(policy.window(), now)
        })
    }

    /// Takes their places from the `count` most senior live sessions of a family.
    fn oust(&mut self, count: usize, family: Family, policy: &Policy, now: Moment) -> Vec<Session> {
        let until = now.saturating_add(policy.timeout());
        self.by_seniority
            .iter_mut()
            .filter(|session| {
                session.source.family() == family && session.is_live(policy.window(), now)
            })
            .take(count)
            .map(|session| {
                session.banned_until = until;
                *session
            })
            .collect()
    }

    fn begin(&mut self, newcomer: Session, policy: &Policy, now: Moment) {
        self.by_seniority.retain(|session| session.source != newcomer.source);
        if self.by_seniority.len() >= policy.sources_per_user() {
            // Live ones are never forgotten for a newcomer: there are at most two places' worth of
            // them, and room for more than that.
            let silent = self
                .by_seniority
                .iter()
                .filter(|session| !session.is_live(policy.window(), now))
                .min_by_key(|session| session.last)
                .map(|session| session.source);
            self.by_seniority.retain(|session| Some(session.source) != silent);
        }
        self.by_seniority.push(newcomer);
    }
}

impl Session {
    fn is_live(&self, window: Duration, now: Moment) -> bool {
        self.banned_until == Moment::default() && now.saturating_since(self.last) < window
    }

    fn is_banned(&self, now: Moment) -> bool {
        now < self.banned_until
    }

    fn is_forgotten(&self, policy: &Policy, now: Moment) -> bool {
        now.saturating_since(self.last) >= policy.forget_after()
    }
}

/// How often the neighbours' table is told of a session that goes on: often enough for its entry
/// not to age much, seldom enough to cost nothing.
pub(crate) fn note_interval(policy: &Policy) -> Duration {
    policy.forget_after() / 24
}
