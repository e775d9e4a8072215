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
    Evict {
        ground: Ground,
        offenders: Vec<Session>,
        /// What it carries on: where the user offended before, and when.
        basis: Option<(Source, Moment)>,
    },
}

/// The user at a source: the source of the peer, which is not kept beside it, because what each
/// line reads should be small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
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

/// A violation whose consequences last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offence {
    pub(crate) at: Moment,
    pub(crate) until: Moment,
    /// Who went; of several the most senior.
    pub(crate) source: Source,
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
    /// Elsewhere in memory: most users have none.
    offences: Option<Box<Offences>>,
}

impl Sessions {
    pub(crate) const fn new() -> Self {
        Self { by_seniority: Few::new(), offences: None }
    }

    /// When a source that held a place was last heard.
    pub(crate) fn last(&self) -> Moment {
        self.by_seniority.iter().map(|session| session.last).max().unwrap_or_default()
    }

    /// Takes a line of a live session: the hot path.
    pub(crate) fn renew(&mut self, arrival: Arrival, policy: &Policy, now: Moment) -> Renewal {
        let Some(session) =
            self.by_seniority.iter_mut().find(|session| session.is_at(arrival.source))
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
        let newcomer = Session {
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
        if let Some(session) = known.filter(|session| session.is_banned(now)) {
            let since = session.banned_until.saturating_sub(policy.timeout());
            return Ruling::Evict {
                ground: Ground::StillBanned,
                offenders: vec![newcomer],
                basis: Some((arrival.source, since)),
            };
        }
        if known.is_none()
            && let Some(offence) = self.as_banned_device(family, policy, now)
        {
            return Ruling::Evict {
                ground: Ground::OtherFamily,
                offenders: vec![newcomer],
                basis: Some((offence.source, offence.at)),
            };
        }
        let held = self.live(family, policy, now).count();
        if held < policy.places() {
            self.begin(newcomer, arrival.source, policy, now);
            return Ruling::Admit;
        }
        let offenders = match policy.keep() {
            Keep::First => vec![newcomer],
            Keep::Last => {
                let offenders = self.oust(held + 1 - policy.places(), family, policy, now);
                self.begin(newcomer, arrival.source, policy, now);
                offenders
            }
        };
        let source = offenders.first().map(|session| policy.source(session.peer.address));
        let until = now.saturating_add(policy.timeout());
        *self.offences.get_or_insert_default().of(family) =
            source.map(|source| Offence { at: now, until, source });
        Ruling::Evict { ground: Ground::PlacesHeld, offenders, basis: None }
    }

    /// Who holds this user's places, in both families, the most senior first.
    pub(crate) fn incumbents(&self, policy: &Policy, now: Moment) -> Vec<Incumbent> {
        self.by_seniority
            .iter()
            .filter(|session| session.is_live(policy.window(), now))
            .map(|session| Incumbent {
                source: policy.source(session.peer.address),
                peer: session.peer,
                age: now.saturating_since(session.began),
                silence: now.saturating_since(session.last),
            })
            .collect()
    }

    /// Forgets the sources that were last heard from an exempt peer; `false` when there is none
    /// left.
    pub(crate) fn spare(&mut self, is_exempt: impl Fn(&Peer) -> bool) -> bool {
        self.by_seniority.retain(|session| !is_exempt(&session.peer));
        self.by_seniority.len() > 0
    }

    /// Forgets the sources that were silent for too long; `false` when there is none left.
    pub(crate) fn forget(&mut self, policy: &Policy, now: Moment) -> bool {
        self.by_seniority.retain(|session| !session.is_forgotten(policy, now));
        self.by_seniority.len() > 0
    }

    fn known(&self, source: Source, policy: &Policy, now: Moment) -> Option<&Session> {
        self.by_seniority
            .iter()
            .find(|session| session.is_at(source) && !session.is_forgotten(policy, now))
    }

    /// The offence for which a source of `family` that this user was never at is banned already, if
    /// it is the device that went in the other family (rule 5).
    fn as_banned_device(&self, family: Family, policy: &Policy, now: Moment) -> Option<Offence> {
        let offence = self
            .offences
            .as_ref()
            .and_then(|offences| offences.other_than(family))
            .filter(|offence| now < offence.until)?;
        let is_it = match policy.keep() {
            Keep::First => true,
            Keep::Last => {
                let newer = self
                    .live(family, policy, now)
                    .filter(|session| session.began >= offence.at)
                    .count();
                newer >= policy.places()
            }
        };
        is_it.then_some(offence)
    }

    fn live<'a>(
        &'a self,
        family: Family,
        policy: &'a Policy,
        now: Moment,
    ) -> impl Iterator<Item = &'a Session> {
        self.by_seniority.iter().filter(move |session| {
            Family::from(session.peer.address) == family && session.is_live(policy.window(), now)
        })
    }

    /// Takes their places from the `count` most senior live sessions of a family.
    fn oust(&mut self, count: usize, family: Family, policy: &Policy, now: Moment) -> Vec<Session> {
        let until = now.saturating_add(policy.timeout());
        self.by_seniority
            .iter_mut()
            .filter(|session| {
                Family::from(session.peer.address) == family
                    && session.is_live(policy.window(), now)
            })
            .take(count)
            .map(|session| {
                session.banned_until = until;
                *session
            })
            .collect()
    }

    fn begin(&mut self, newcomer: Session, source: Source, policy: &Policy, now: Moment) {
        self.by_seniority.retain(|session| !session.is_at(source));
        if self.by_seniority.len() >= policy.sources_per_user() {
            // Live ones are never forgotten for a newcomer: there are at most two places' worth of
            // them, and room for more than that.
            let silent = self
                .by_seniority
                .iter()
                .filter(|session| !session.is_live(policy.window(), now))
                .min_by_key(|session| session.last)
                .map(|session| policy.source(session.peer.address));
            if let Some(silent) = silent {
                self.by_seniority.retain(|session| !session.is_at(silent));
            }
        }
        self.by_seniority.push(newcomer);
    }
}

impl Session {
    fn is_at(&self, source: Source) -> bool {
        source.network().contains(self.peer.address)
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Terms;

    fn at_second(second: u64) -> Moment {
        Moment::default().saturating_add(Duration::from_secs(second))
    }

    fn arrival(policy: &Policy, number: u16) -> Arrival {
        let [high, low] = number.to_be_bytes();
        let peer = Peer { address: [198, 18, high, low].into(), port: 1 };
        Arrival { source: policy.source(peer.address), peer, transport: Transport::Unstated }
    }

    #[test]
    fn a_traveller_is_remembered_at_so_many_sources_and_no_more() {
        let policy = Policy::default();
        let mut sessions = Sessions::new();
        for number in 0..1_000 {
            let now = at_second(u64::from(number) * 10);
            let ruling = sessions.judge(arrival(&policy, number), Tag::default(), &policy, now);
            assert!(matches!(ruling, Ruling::Admit));
            assert!(sessions.by_seniority.len() <= policy.sources_per_user());
        }
        assert_eq!(sessions.by_seniority.len(), policy.sources_per_user());
        let oldest = 1_000 - u16::try_from(policy.sources_per_user()).unwrap();
        let now = at_second(9_990);
        assert!(sessions.known(arrival(&policy, oldest).source, &policy, now).is_some());
        assert!(sessions.known(arrival(&policy, oldest - 1).source, &policy, now).is_none());
    }

    #[test]
    fn a_full_memory_never_costs_a_live_session_its_place() {
        let policy = Policy::new(Terms { places: 3, ..Terms::default() }).unwrap();
        let mut sessions = Sessions::new();
        for number in 0..500 {
            let now = at_second(u64::from(number) * 10);
            // Two stay, the third place is taken by one after the other.
            for stays in [1_000, 1_001] {
                if sessions.renew(arrival(&policy, stays), &policy, now) == Renewal::NotLive {
                    let arrival = arrival(&policy, stays);
                    let ruling = sessions.judge(arrival, Tag::default(), &policy, now);
                    assert!(matches!(ruling, Ruling::Admit), "{number}");
                }
            }
            for step in 0..3u64 {
                let now = at_second(u64::from(number) * 10 + step * 4);
                for stays in [1_000, 1_001] {
                    let renewal = sessions.renew(arrival(&policy, stays), &policy, now);
                    assert_ne!(renewal, Renewal::NotLive, "{number}, {step}");
                }
            }
            let now = at_second(u64::from(number) * 10 + 8);
            let ruling = sessions.judge(arrival(&policy, number), Tag::default(), &policy, now);
            assert!(matches!(ruling, Ruling::Admit), "{number}");
        }
    }

    /// What a user costs in memory; the roster holds up to `Policy::users` of them.
    #[test]
    fn a_user_with_one_source_fits_two_cache_lines() {
        assert!(size_of::<Sessions>() <= 128 - 32 - 8, "{}", size_of::<Sessions>());
    }
}
