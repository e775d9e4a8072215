//! Who became exempt is let go of: his sources hold no places any more.
//!
//! Takes the word of whoever knows which addresses are exempt by now; takes their connections away
//! from their owners and forgets where those were only by them. It knows no allow list, and lifts
//! no ban.

use super::{Occupancy, connections::Owner, occupant::Occupant};
use crate::sighting::Peer;

impl Occupancy {
    /// From now on nobody is counted at an address for which `is_exempt` holds: what is open from
    /// there is nobody's, and a place that was held from there is free. New lines from there are
    /// not to be brought here.
    pub fn spare(&mut self, is_exempt: impl Fn(&Peer) -> bool) {
        for peer in self.connections.owned_peers(&is_exempt) {
            self.disown_as(peer, Owner::Older);
        }
        let everybody = self.occupants.len();
        self.occupants.sweep(everybody, |occupant| occupant.spare(&is_exempt));
    }
}

impl Occupant {
    /// Forgets where he was last by an exempt peer, and has nothing else open. What moved elsewhere
    /// in the same source until now may have been that peer's: it is no evidence. `false` when
    /// nothing is left.
    fn spare(&mut self, is_exempt: impl Fn(&Peer) -> bool) -> bool {
        let before = self.presences.len();
        self.presences.retain_mut(|presence| {
            let was_exempt = is_exempt(&presence.peer);
            if was_exempt && !presence.connections.is_empty() {
                presence.forget_slots();
            }
            !was_exempt || !presence.connections.is_empty()
        });
        if self.presences.len() < before {
            self.forget_turns();
        }
        !self.presences.is_empty()
    }
}
