//! The device that was cut, back in the other address family.
//!
//! Takes a user of whom somebody was cut in one family, and the sources of the other at which he was
//! never seen before that. Each of those may be the cut device, which would go on there; it may as
//! well be the user himself, whose phone has left for its next network. So it is judged together
//! with the sources that stayed, as if they were of one family: it goes once somebody is known to be
//! at both. It takes less than between two who are not known to share, two slots instead of four,
//! unless he may be flapping between two networks.
//! Nobody is an offender for it that he was not before, and it acts on nobody.

use std::sync::Arc;

use super::{
    Occupancy, named,
    occupant::Occupant,
    presence::Presence,
    sentence::{Exhibited, incumbents},
};
use crate::{
    brake::Brakes,
    moment::Moment,
    network::{Family, Source},
    overlap::{self, AT_ONCE, CROSSING, Finding, RESTLESS, USUAL},
    policy::Keep,
    sessions::Offence,
    verdict::{Basis, Eviction, Evidence, Ground, Verdict},
};

impl Occupancy {
    /// Judges the sources of `family` at which the device that was cut in the other one may be, as
    /// they stand at the end of `slot`.
    pub(super) fn conclude_comebacks(
        &mut self,
        identity: &Arc<[u8]>,
        family: Family,
        places: usize,
        slot: u64,
        brakes: &mut Brakes,
        now: Moment,
    ) {
        let Some(occupant) = self.occupants.get::<[u8]>(identity) else { return };
        let Some(offence) = occupant.offence_beside(family, now) else { return };
        let suspects: Vec<Source> = occupant
            .suspects(family, now)
            .filter(|suspect| self.may_have_been_cut(occupant, suspect, offence, places, now))
            .map(|suspect| suspect.source)
            .collect();
        for suspect in suspects {
            let Some(occupant) = self.occupants.get::<[u8]>(identity) else { return };
            let members = occupant.stayed_beside(family, now).chain(occupant.at(suspect));
            let arrival = occupant.at(suspect).map(|it| it.arrival);
            let (at, seen): (Vec<Source>, Vec<_>) = members
                .map(|it| {
                    let mut seen = it.occupied(slot, self.measures, now);
                    // Who answered before it came may be the one who came.
                    seen.answered = seen.answered.filter(|answered| Some(*answered) > arrival);
                    (it.source, seen)
                })
                .unzip();
            if seen.len() <= places {
                continue;
            }
            let turns = occupant.turns_across(self.measures, now);
            // A phone that flaps between the two has both in many slots, and answers by and by.
            let is_flapping = turns.now < CROSSING && turns.lately >= RESTLESS;
            let patience = if is_flapping { USUAL } else { AT_ONCE };
            let turns = self.policy.asking().then_some(turns);
            match overlap::judge(&seen, places, turns, patience, self.measures.slot, now) {
                Finding::Calm | Finding::Undecided => {}
                Finding::Ask(numbers) => {
                    let sources = named(&at, &numbers);
                    self.ask_each(identity, &sources, &Exhibited::These(at), places, slot, now);
                }
                Finding::Violation(numbers) => {
                    let proven = named(&at, &numbers);
                    if proven.contains(&suspect) {
                        self.comes_back(identity, suspect, &proven, places, slot, brakes, now);
                    }
                }
            }
        }
    }

    /// The verdict on the one of `proven` that is the device that was cut.
    #[expect(clippy::too_many_arguments, reason = "a verdict says all of it")]
    fn comes_back(
        &mut self,
        identity: &Arc<[u8]>,
        source: Source,
        proven: &[Source],
        places: usize,
        slot: u64,
        brakes: &mut Brakes,
        now: Moment,
    ) {
        let exhibited = Exhibited::These(proven.to_vec());
        if self.refrain(identity, &[source], &exhibited, places, slot, now) {
            return;
        }
        let proof = self.proof(identity, &exhibited, slot, now);
        // No offence of its own: else the device's next address in the first family would be taken
        // for one that comes back, and so on.
        let Some(offender) = self.offend(identity, source, brakes, now) else { return };
        let Some(occupant) = self.occupants.get::<[u8]>(identity) else { return };
        let offence = occupant.offence_beside(source.family(), now);
        let Some(user) = occupant.at(source).map(|it| it.shown_as.clone()) else { return };
        let others = proven.iter().filter(|other| **other != source);
        let incumbents = incumbents(others.filter_map(|other| occupant.at(*other)), now);
        self.counters.other_family += 1;
        self.verdicts.push(Verdict::Evict(Eviction {
            user,
            ground: Ground::OtherFamily,
            offenders: vec![offender],
            incumbents,
            places,
            evidence: Evidence::Kernel,
            proof: Some(proof),
            basis: offence.map(|it| Basis::of(it.source, it.at, now)),
        }));
    }

    /// Whether a new source may be the device that was cut. With [`Keep::Last`] the device that stays
    /// is as new as its two addresses, so it is taken for that one until the places are held by
    /// sources that came since the violation.
    fn may_have_been_cut(
        &self,
        occupant: &Occupant,
        suspect: &Presence,
        offence: Offence,
        places: usize,
        now: Moment,
    ) -> bool {
        match self.policy.keep() {
            Keep::First => true,
            Keep::Last => {
                let newer = occupant.presences.iter().filter(|other| {
                    other.source != suspect.source
                        && other.source.family() == suspect.source.family()
                        && other.arrival >= offence.at
                        && other.acted_until <= now
                        && other.is_present(self.measures, now)
                });
                newer.count() >= places
            }
        }
    }
}
