//! What the roster and the occupancy say, and everything a record of it needs.
//!
//! The vocabulary between the [`Roster`](crate::Roster) and the [`Occupancy`](crate::Occupancy), and
//! whoever enforces and writes down. A verdict says who must go, or is asked, and on what evidence; it
//! does nothing, and it never hears whether it was carried out.

use std::time::Duration;

use crate::{
    link::Link,
    moment::Moment,
    network::Source,
    overlap::SLOTS,
    sighting::{Peer, Transport},
};

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Evidence {
    /// The log's word alone. It cannot see a connection end, nor the bytes that move on it, and
    /// any user can make it say what he likes.
    Log,
    /// The log's claim, checked against the kernel's sockets and their counters.
    Kernel,
}

impl Evidence {
    /// The name in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Kernel => "kernel",
        }
    }
}

/// The answer to one sighting, or to what the counters showed at the end of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing is wrong.
    Admit,
    /// One connection is to be reset, to see whether a device is there that opens another.
    Ask(Question),
    /// Somebody must go.
    Evict(Eviction),
    /// Somebody would have to go, but whom that would hit nobody can say.
    Refrain(Abstention),
}

/// A source that only finishes what it had begun, perhaps: it is asked by a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The user as the last line from there wrote him: any bytes.
    pub user: Box<[u8]>,
    /// Who is asked.
    pub source: Source,
    /// The connection to reset: the one that moved last.
    pub link: Link,
    /// How many places the user has.
    pub places: usize,
    /// Why it is asked.
    pub proof: Proof,
}

/// A violation that is not acted upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abstention {
    /// The user as the last line wrote him: any bytes.
    pub user: Box<[u8]>,
    /// Why not.
    pub restraint: Restraint,
    /// From how many sources the user was at work within one window.
    pub sources: usize,
    /// The source that would have gone.
    pub source: Source,
    /// How many places the user has.
    pub places: usize,
    /// The violation.
    pub proof: Proof,
}

/// The numbers that a verdict on the kernel's evidence rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// How long a slot is.
    pub slot: Duration,
    /// Every source of the family that moved in one of the last slots, the most senior first.
    pub exhibits: Vec<Exhibit>,
}

/// One source, as it stood when the verdict fell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhibit {
    /// Where.
    pub source: Source,
    /// The connection that moved last, if any is open.
    pub peer: Option<Peer>,
    /// How many connections the user has open there.
    pub open: usize,
    /// How long ago the user was first seen there.
    pub seen: Duration,
    /// How long ago it arrived: its first move after a silence longer than the window.
    pub arrived: Duration,
    /// In which of the last slots it moved, the earliest first.
    pub moved: [bool; SLOTS as usize],
    /// Payload that was seen to move in each, bytes, in both directions; at least so much.
    pub bytes: [u64; SLOTS as usize],
    /// How long ago it was asked last.
    pub asked: Option<Duration>,
    /// How long after that question it began something.
    pub answered: Option<Duration>,
}

/// Who must go, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The user as this line wrote him: any bytes; escape them before they are printed.
    pub user: Box<[u8]>,
    /// The rule that was broken.
    pub ground: Ground,
    /// Who goes, the most senior first. Never empty.
    pub offenders: Vec<Offender>,
    /// Who holds the user's places once the offenders are gone, the most senior first: with
    /// [`Keep::Last`](crate::Keep::Last) that includes the newcomer.
    pub incumbents: Vec<Incumbent>,
    /// How many places the user has.
    pub places: usize,
    /// What all this rests on.
    pub evidence: Evidence,
    /// The numbers, where the kernel gave any.
    pub proof: Option<Proof>,
    /// The verdict that it carries on.
    pub basis: Option<Basis>,
}

/// An earlier verdict on the same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    /// The source that it hit; of several the most senior.
    pub source: Source,
    /// How long ago it fell.
    pub ago: Duration,
}

impl Basis {
    pub(crate) fn of(source: Source, fell: Moment, now: Moment) -> Self {
        Self { source, ago: now.saturating_since(fell) }
    }
}

/// The rule that an eviction rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ground {
    /// More sources of one address family were live than the user has places.
    PlacesHeld,
    /// More sources of one address family moved payload at once, slot after slot, than the user has
    /// places; and as many, where [`Policy::asking`](crate::Policy::asking) wants it, showed by what
    /// they began that a device is there.
    Overlap,
    /// A new connection from where the user's connections are being reset on sight.
    OnSight,
    /// A new connection of a user who has connections open at as many sources as are kept for one,
    /// from none of them.
    TooManySources,
    /// A source that the user was never at appeared in the other address family while a ban of his
    /// lasts: the banned device again.
    OtherFamily,
    /// A source that lost its place was heard again while its ban lasts: to a newcomer, on the log's
    /// word; on the kernel's evidence, from an address of it that the ban does not cover.
    StillBanned,
}

impl Ground {
    /// The name in records, in `snake_case`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PlacesHeld => "places_held",
            Self::Overlap => "overlap",
            Self::OnSight => "on_sight",
            Self::TooManySources => "too_many_sources",
            Self::OtherFamily => "other_family",
            Self::StillBanned => "still_banned",
        }
    }
}

/// One who must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offender {
    /// Where he is.
    pub source: Source,
    /// His connection: the one in this line, or the last one that his session was seen with.
    pub peer: Peer,
    /// The transport that was logged with the peer.
    pub transport: Transport,
    /// The inbound of this line or, for a session that lost its place, of the line that began it;
    /// absent when that named none.
    pub inbound: Option<Box<[u8]>>,
    /// The open connections that the user owns there; empty where only the log speaks.
    pub links: Vec<Link>,
    /// How far Refract may go.
    pub measure: Measure,
}

/// How far Refract may go against an offender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Ban the source and kill the connections from it. Nobody else is known there, unless the
    /// operator wants it banned whoever is ([`Action::Ban`](crate::Action::Ban)).
    Ban,
    /// Kill the offender's own connections only, for the reason given.
    Kill(Restraint),
}

impl Measure {
    /// The name in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Kill(_) => "kill",
        }
    }
}

/// Why a source must not be banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Restraint {
    /// Another user was seen there within [`Policy::forget_after`](crate::Policy::forget_after):
    /// a carrier's NAT, an office, a relay.
    SharedSource,
    /// The memory of who was seen where ran over, or was lost, within that time, so nobody can say
    /// whether others are there.
    UnknownNeighbours,
    /// So many users are at the source that it is a proxy of its own.
    Proxy,
    /// The user is at so many sources, most of them others' too, that a CDN is in front.
    BehindCdn,
    /// The user has connections open at as many sources as are kept for one: what a ban of another
    /// would hit is not known, and one connection is enough.
    TooManySources,
    /// As many sources of this user were banned within a minute as may be.
    UserBans,
    /// As many users were banned within a minute as may be.
    MaxBans,
    /// The operator wants nobody banned (`--action=kill`).
    ByOrder,
    /// The peer was logged with `udp:`: one spoofed datagram makes such a line, so the address may
    /// be anybody's.
    UnprovenAddress,
}

impl Restraint {
    /// The name in records, in `snake_case`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SharedSource => "shared_source",
            Self::UnknownNeighbours => "unknown_neighbours",
            Self::Proxy => "proxy",
            Self::BehindCdn => "behind_cdn",
            Self::TooManySources => "too_many_sources",
            Self::UserBans => "user_bans_reached",
            Self::MaxBans => "max_bans_reached",
            Self::ByOrder => "by_order",
            Self::UnprovenAddress => "unproven_address",
        }
    }
}

/// One who stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incumbent {
    /// Where he is.
    pub source: Source,
    /// The last connection that his session was seen with; on the kernel's evidence the one that
    /// moved last, while any is open.
    pub peer: Peer,
    /// How long ago his session began; on the kernel's evidence, how long ago he was first seen there.
    pub age: Duration,
    /// How long ago his last line was; on the kernel's evidence, his last move.
    pub silence: Duration,
}
