//! Which connections are open, and whose each is.
//!
//! Takes connections that the kernel confirmed, and the users whom lines named for them; keeps for
//! each one owner at most. The first user who was confirmed for a connection owns it; once another
//! is named for it, it carries several and is nobody's evidence. Bounded: no entry makes room for
//! another, because each is an open connection; what does not fit is not taken. It judges nobody.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use crate::{
    accounts::Accounts,
    link::{Link, Sample},
    moment::Moment,
    network::Source,
    sighting::Peer,
};

/// The most connections that are kept: as many as a large host has open.
pub(super) const CAPACITY: usize = 262_144;

/// Whose a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The user whom the first confirmed line named, by the name that counts his places.
    User(Arc<[u8]>),
    /// Lines named different users for it.
    Several,
    /// It was there before this run, and no line that could be read back named it; or its address was
    /// exempt for a while.
    Older,
    /// A `rejected` line named it.
    Refused,
}

/// An open connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) link: Link,
    pub(super) owner: Owner,
    pub(super) source: Source,
    /// The user's own name, folded; the owner's is his group's, if he is in one.
    pub(super) named: Arc<[u8]>,
    /// When a line first named it.
    pub(super) opened: Moment,
    /// How its payload stood when it was looked at last, and when that was.
    pub(super) sample: Option<Sample>,
    pub(super) sampled: Moment,
    /// Its owner has connections open at as many sources as are kept for one user, and its source is
    /// none of them: the next line that names it is looked into again.
    pub(super) is_outside: bool,
}

/// A connection whose owner counts elsewhere under other rules.
#[derive(Debug)]
pub(super) struct Regrouped {
    pub(super) peer: Peer,
    pub(super) source: Source,
    pub(super) before: Arc<[u8]>,
    pub(super) after: Arc<[u8]>,
}

/// All open connections that anything is known of.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_peer: HashMap<Peer, Connection, RandomState>,
}

impl Connections {
    pub(super) fn len(&self) -> usize {
        self.by_peer.len()
    }

    pub(super) fn get(&self, peer: Peer) -> Option<&Connection> {
        self.by_peer.get(&peer)
    }

    pub(super) fn get_mut(&mut self, peer: Peer) -> Option<&mut Connection> {
        self.by_peer.get_mut(&peer)
    }

    /// Keeps `connection` in place of whatever had its peer before; `false` when there is no room.
    pub(super) fn keep(&mut self, connection: Connection) -> bool {
        let peer = connection.link.peer;
        if self.by_peer.len() >= CAPACITY && !self.by_peer.contains_key(&peer) {
            return false;
        }
        self.by_peer.insert(peer, connection);
        true
    }

    /// Drops the connection of `peer`, if it is the one with that cookie.
    pub(super) fn remove(&mut self, peer: Peer, cookie: u64) -> Option<Connection> {
        self.exact(peer, cookie)?;
        self.by_peer.remove(&peer)
    }

    /// The peers for which `is_wanted` holds and whose connections have an owner.
    pub(super) fn owned_peers(&self, is_wanted: impl Fn(&Peer) -> bool) -> Vec<Peer> {
        let is_owned = |it: &&Connection| matches!(it.owner, Owner::User(_));
        let peers = self.by_peer.values().filter(is_owned).map(|it| it.link.peer);
        peers.filter(is_wanted).collect()
    }

    /// Those for which `is_wanted` holds.
    pub(super) fn links(&self, is_wanted: impl Fn(&Connection) -> bool) -> Vec<Link> {
        self.by_peer.values().filter(|it| is_wanted(it)).map(|it| it.link).collect()
    }

    /// Gives the connections of users who count elsewhere under other rules to whoever they count as
    /// now; tells of each its source, its owner before and its owner now.
    pub(super) fn regroup(&mut self, accounts: &Accounts) -> Vec<Regrouped> {
        let mut moved = Vec::new();
        for (peer, connection) in &mut self.by_peer {
            let Owner::User(owner) = &mut connection.owner else { continue };
            let now = accounts.identity_of(&connection.named);
            if **owner != *now {
                let before = std::mem::replace(owner, now.into());
                let (peer, source, after) = (*peer, connection.source, Arc::clone(owner));
                moved.push(Regrouped { peer, source, before, after });
            }
        }
        moved
    }

    /// The owners, and where each connection of theirs comes from.
    pub(super) fn owned(&self) -> impl Iterator<Item = (&Arc<[u8]>, Source)> {
        self.by_peer.values().filter_map(|connection| match &connection.owner {
            Owner::User(owner) => Some((owner, connection.source)),
            Owner::Several | Owner::Older | Owner::Refused => None,
        })
    }

    /// The connection by its exact name.
    pub(super) fn exact(&self, peer: Peer, cookie: u64) -> Option<&Connection> {
        self.get(peer).filter(|it| it.link.cookie == cookie)
    }
}

/// What a sample says about the time since the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Movement {
    /// No payload moved.
    Still,
    /// Payload moved, last at `at`.
    Moved { at: Moment, bytes: u64 },
    /// Payload moved some time before `until`, and nobody can say when.
    Perhaps { until: Moment },
}

/// Compares two samples of a connection, the earlier one taken at `before_at`. The kernel dates the
/// last data that came, but not the last acknowledgement of any (one for a keepalive looks the same),
/// so a growth of what was acknowledged is dated only when the earlier sample is not older than
/// `fresh_since`.
pub(super) fn movement(
    before: Sample,
    before_at: Moment,
    after: Sample,
    fresh_since: Moment,
) -> Movement {
    let received = after.received.saturating_sub(before.received);
    let acknowledged = after.acknowledged.saturating_sub(before.acknowledged);
    let dated = before_at >= fresh_since;
    let bytes = received.saturating_add(acknowledged);
    let came = (received > 0).then_some(after.last_received);
    let taken = (acknowledged > 0).then_some(after.last_acknowledged.max(before_at));
    match (came, taken) {
        (None, None) => Movement::Still,
        (came, Some(at)) if dated => {
            Movement::Moved { at: came.map_or(at, |came| came.max(at)), bytes }
        }
        (Some(at), _) => Movement::Moved { at, bytes },
        (None, Some(until)) => Movement::Perhaps { until },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment::from_nanos(second * 1_000_000_000)
    }

    fn sample(received: u64, acknowledged: u64, came: u64, taken: u64) -> Sample {
        Sample { received, acknowledged, last_received: at(came), last_acknowledged: at(taken) }
    }

    #[test]
    fn growth_is_a_move_where_it_can_be_dated() {
        let before = sample(100, 1_000, 10, 10);
        for (after, before_at, expected) in [
            (sample(100, 1_000, 10, 19), 19, Movement::Still),
            (sample(150, 1_000, 17, 19), 1, Movement::Moved { at: at(17), bytes: 50 }),
            (sample(100, 1_600, 10, 19), 18, Movement::Moved { at: at(19), bytes: 600 }),
            (sample(150, 1_600, 17, 19), 18, Movement::Moved { at: at(19), bytes: 650 }),
            // Older samples: the data that came is dated, the acknowledgement is not.
            (sample(150, 1_600, 17, 19), 1, Movement::Moved { at: at(17), bytes: 650 }),
            (sample(100, 1_600, 10, 19), 1, Movement::Perhaps { until: at(19) }),
            // Counted down by a FIN.
            (sample(99, 999, 10, 19), 18, Movement::Still),
        ] {
            assert_eq!(movement(before, at(before_at), after, at(15)), expected, "{after:?}");
        }
    }

    #[test]
    fn a_connection_is_dropped_by_its_own_cookie_only() {
        let peer = Peer { address: [198, 51, 100, 7].into(), port: 1 };
        let link =
            Link { peer, local: "203.0.113.1:443".parse().unwrap(), interface: 0, cookie: 7 };
        let mut connections = Connections::default();
        let connection = Connection {
            link,
            owner: Owner::Older,
            source: Source::of(peer.address, 32, 64),
            named: Arc::default(),
            opened: at(1),
            sample: None,
            sampled: at(1),
            is_outside: false,
        };
        assert!(connections.keep(connection));
        assert!(connections.remove(peer, 8).is_none());
        assert!(connections.exact(peer, 7).is_some());
        assert!(connections.remove(peer, 7).is_some());
        assert_eq!(connections.len(), 0);
    }
}
