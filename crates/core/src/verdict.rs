//! What the roster says, and everything a record of it needs.
//!
//! The vocabulary between the [`Roster`](crate::Roster) and whoever enforces and writes down. A
//! verdict says who must go and on what evidence; it does nothing, and it never hears whether it
//! was carried out.

use std::time::Duration;

use crate::{
    network::Source,
    sighting::{Peer, Transport},
};

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Evidence {
    /// The log's word alone. It cannot see a connection end, nor the bytes that move on it, and
    /// any user can make it say what he likes.
    Log,
}

impl Evidence {
    /// The name in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
        }
    }
}

/// The answer to one sighting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing is wrong.
    Admit,
    /// Somebody must go.
    Evict(Eviction),
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
}

/// The rule that an eviction rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ground {
    /// More sources of one address family were live than the user has places.
    PlacesHeld,
    /// A source that the user was never at appeared in the other address family while a ban of his
    /// lasts: the banned device again.
    OtherFamily,
    /// A source that lost its place to a newcomer was heard again while its ban lasts.
    StillBanned,
}

impl Ground {
    /// The name in records, in `snake_case`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PlacesHeld => "places_held",
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
    /// How far Refract may go.
    pub measure: Measure,
}

/// How far Refract may go against an offender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Ban the source and kill its connections: nobody else is known there.
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
    /// The memory of who was seen where ran over within that time, so nobody can say whether
    /// others are there.
    UnknownNeighbours,
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
            Self::UnprovenAddress => "unproven_address",
        }
    }
}

/// One who stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incumbent {
    /// Where he is.
    pub source: Source,
    /// The last connection that his session was seen with.
    pub peer: Peer,
    /// How long ago his session began.
    pub age: Duration,
    /// How long ago his last line was.
    pub silence: Duration,
}
