//! The cases that one survey serves, and how far it is.
//!
//! Takes cases whose named connections are dealt with; asks the surveyor, twice with a pause, for
//! everything else that their sources have open, and destroys it in slices. It decides neither when
//! a round begins nor what is written down.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use refract_core::Source;
use refract_kernel::sock_diag::{Connection, SockDiag};

use super::{MayDestroy, SLICE, Terms, case::Case};
use crate::{
    endpoints::Endpoints,
    survey::{Findings, Request, Surveyor},
};

/// Passes over a banned source's connections.
const PASSES: u8 = 2;
/// Pause before the second pass: what was being opened has come to an end or been found by then.
const PASS_PAUSE: Duration = Duration::from_millis(2);

/// Cases that are being surveyed together.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) cases: Vec<Case>,
    request: Request,
    /// The case of each banned network.
    by_network: HashMap<(IpAddr, u8), usize>,
    ipv6_prefix: u8,
    pass: u8,
    stage: Stage,
    found: Vec<Connection>,
}

/// What a round is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The surveyor walks the table.
    Surveying,
    /// Its findings are destroyed, a slice a turn.
    Destroying,
    /// The next pass begins then.
    Resting(Instant),
}

impl Round {
    /// Asks for the first survey.
    pub(super) fn begin(cases: Vec<Case>, terms: &Terms, surveyor: &Surveyor) -> Self {
        let mut request = Request::default();
        let mut by_network = HashMap::new();
        for (index, case) in cases.iter().enumerate() {
            by_network.extend(case.networks().map(|network| (network, index)));
            if terms.protocols.tcp {
                request.tcp.extend(case.networks());
            }
            request.udp.extend(case.networks());
            request.flows.extend(case.flows());
            request.mptcp.extend(case.may_survive());
        }
        let mut round = Self {
            cases,
            request,
            by_network,
            ipv6_prefix: terms.ipv6_prefix,
            pass: 1,
            stage: Stage::Surveying,
            found: Vec::new(),
        };
        round.survey(surveyor);
        round
    }

    /// When there is something to do besides taking findings.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.stage {
            Stage::Surveying => None,
            Stage::Destroying => Some(now),
            Stage::Resting(until) => Some(until),
        }
    }

    /// Does the next bit of work; `true` when the round is over.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        findings: Option<Findings>,
        surveyor: &Surveyor,
        (sockets, endpoints): (&mut SockDiag, &mut Endpoints),
        may_destroy: MayDestroy<'_>,
    ) -> bool {
        match self.stage {
            Stage::Surveying => {
                let Some(findings) = findings else { return false };
                self.take(findings);
            }
            Stage::Resting(until) if now < until => return false,
            Stage::Resting(_) => {
                self.survey(surveyor);
                return false;
            }
            Stage::Destroying => {}
        }
        for _ in 0..SLICE {
            let Some(connection) = self.found.pop() else { break };
            let case = self.case_of(connection.remote().ip());
            if let Some(case) = case.and_then(|index| self.cases.get_mut(index))
                && may_destroy(&case.user, &connection)
            {
                case.kill(&connection, sockets, endpoints);
            }
        }
        if !self.found.is_empty() {
            return false;
        }
        if self.pass < PASSES {
            self.pass += 1;
            self.stage = Stage::Resting(now + PASS_PAUSE);
            return false;
        }
        true
    }

    fn survey(&mut self, surveyor: &Surveyor) {
        self.stage = Stage::Surveying;
        if !surveyor.request(self.request.clone()) {
            self.take(Findings {
                troubles: vec!["the surveying thread is gone".to_owned()],
                ..Findings::default()
            });
        }
    }

    fn take(&mut self, findings: Findings) {
        self.stage = Stage::Destroying;
        self.found = findings.connections;
        for client in findings.flows {
            let case = self
                .case_of(client.ip())
                .or_else(|| self.cases.iter().position(|case| case.names(client)));
            if let Some(case) = case.and_then(|index| self.cases.get_mut(index)) {
                case.flow_deleted();
            }
        }
        for client in findings.mptcp {
            if let Some(case) = self.cases.iter_mut().find(|case| case.names(client)) {
                case.survived(client);
            }
        }
        for trouble in findings.troubles {
            for case in &mut self.cases {
                case.trouble(trouble.clone());
            }
        }
    }

    /// The case whose ban covers `address`: as itself, or as a part of its IPv6 source.
    fn case_of(&self, address: IpAddr) -> Option<usize> {
        let exact = (address, if address.is_ipv4() { 32 } else { 128 });
        let source = Source::of(address, 32, self.ipv6_prefix).network();
        self.by_network
            .get(&exact)
            .or_else(|| self.by_network.get(&(source.address(), source.prefix())))
            .copied()
    }
}
