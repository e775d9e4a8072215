//! What is done to each offender, and why that.
//!
//! Takes the evictions of one read; makes one case for each source of a user, asking the brakes
//! where the verdict has not done so. It carries nothing out.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use refract_core::{
    Brakes, Eviction, Evidence, Exemptions, Ground, Measure, Moment, Offender, Permit, Restraint,
    Source,
};
use tracing::warn;

use super::{Enforcer, case::Case};
use crate::audit::Action;

/// The brake is said to hold at most this often.
const BRAKE_PAUSE: Duration = Duration::from_mins(1);

impl Enforcer {
    pub(super) fn open_cases(
        &mut self,
        evictions: Vec<Eviction>,
        exemptions: &Exemptions,
        brakes: &mut Brakes,
        read_at: Instant,
        now: Moment,
    ) -> Vec<Case> {
        let mut cases: Vec<Case> = Vec::with_capacity(evictions.len());
        let mut by_source: HashMap<Source, Vec<usize>> = HashMap::new();
        for eviction in evictions {
            // A session may be older than the address's exemption.
            let liable = |offender: &&Offender| exemptions.reason(offender.peer.address).is_none();
            for offender in eviction.offenders.iter().filter(liable) {
                let known = by_source.entry(offender.source).or_default();
                let same = known.iter().copied().find(|index| {
                    cases.get(*index).is_some_and(|case| case.is_of(&eviction, offender))
                });
                let index = same.unwrap_or_else(|| {
                    let action = self.action(&eviction, offender, brakes, now);
                    let timeout = self.terms.timeout;
                    cases.push(Case::open(&eviction, offender, action, timeout, read_at));
                    known.push(cases.len() - 1);
                    cases.len() - 1
                });
                if let Some(case) = cases.get_mut(index) {
                    case.name(offender, exemptions);
                }
            }
        }
        cases
    }

    /// What is done to an offender, and why that. Where the kernel gave evidence the brakes have
    /// been asked already.
    fn action(
        &mut self,
        eviction: &Eviction,
        offender: &Offender,
        brakes: &mut Brakes,
        now: Moment,
    ) -> (Action, &'static str) {
        let mut measure = offender.measure;
        if measure == Measure::Ban
            && eviction.evidence == Evidence::Log
            && let Permit::Withheld(restraint) = brakes.permit(&eviction.user, now)
        {
            measure = Measure::Kill(restraint);
        }
        if let Measure::Kill(Restraint::MaxBans) = measure {
            self.say_that_the_brake_holds(now);
        }
        match measure {
            Measure::Ban => (Action::Ban, eviction.ground.name()),
            // The flow is dropped; the address, which one forged datagram may have named, is not.
            Measure::Kill(Restraint::UnprovenAddress) => (Action::Flow, eviction.ground.name()),
            Measure::Kill(_) if eviction.ground == Ground::OnSight => {
                (Action::Kill, eviction.ground.name())
            }
            Measure::Kill(restraint) => (Action::Kill, restraint.name()),
        }
    }

    fn say_that_the_brake_holds(&mut self, now: Moment) {
        let rested = |said| now.saturating_since(said) >= BRAKE_PAUSE;
        if self.brake_said.is_none_or(rested) {
            self.brake_said = Some(now);
            warn!(
                "as many users as --max-bans allows were banned within a minute: further offenders \
                 are disconnected but not banned until the minute is over"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use refract_core::{Peer, Proof, Transport};

    use super::{super::Terms, *};
    use crate::cli::Protocols;

    fn eviction(ground: Ground, measure: Measure) -> Eviction {
        let peer = Peer { address: "198.51.100.12".parse().unwrap(), port: 41_879 };
        let proof = Proof { slot: Duration::from_millis(250), exhibits: Vec::new() };
        Eviction {
            user: (*b"alice").into(),
            ground,
            offenders: vec![Offender {
                source: Source::of(peer.address, 32, 64),
                peer,
                transport: Transport::Unstated,
                inbound: None,
                links: Vec::new(),
                measure,
            }],
            incumbents: Vec::new(),
            places: 1,
            evidence: Evidence::Kernel,
            proof: (ground == Ground::Overlap).then_some(proof),
            basis: None,
        }
    }

    #[test]
    fn a_verdict_keeps_its_own_case_beside_resets_on_sight_in_whichever_order() {
        let by_order = Measure::Kill(Restraint::Proxy);
        let [verdict, ban, sight] = [
            eviction(Ground::Overlap, by_order),
            eviction(Ground::Overlap, Measure::Ban),
            eviction(Ground::OnSight, by_order),
        ];
        let (kill, gone) = ((Action::Kill, "proxy"), (Action::Kill, "on_sight"));
        for (evictions, expected) in [
            (vec![&sight, &verdict, &sight], vec![gone, kill]),
            (vec![&verdict, &sight, &sight], vec![kill, gone]),
            (vec![&sight, &ban], vec![gone, (Action::Ban, "overlap")]),
        ] {
            let terms = Terms {
                protocols: Protocols { tcp: true, udp: false },
                ports: "443".parse().unwrap(),
                timeout: Duration::from_mins(1),
                ipv6_prefix: 64,
            };
            let mut enforcer = Enforcer::new(terms);
            let evictions: Vec<Eviction> = evictions.into_iter().cloned().collect();
            let cases = enforcer.open_cases(
                evictions,
                &Exemptions::new(Vec::new()),
                &mut Brakes::new(10, 600),
                Instant::now(),
                Moment::default(),
            );
            let records: Vec<_> = cases.into_iter().map(|case| case.record(true)).collect();
            let told: Vec<_> = records.iter().map(|it| (it.action, it.reason)).collect();
            assert_eq!(told, expected);
            for record in records {
                assert_eq!(record.proof.is_some(), record.reason != "on_sight");
            }
        }
    }
}
