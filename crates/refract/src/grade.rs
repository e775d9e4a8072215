//! What verdicts on TCP rest on: the kernel's evidence, or the log's word.
//!
//! Takes the flag and answers of the witness; makes the grade and its reason, and tells its one
//! change. `auto` is the kernel's from the moment somebody was seen to listen on a protected port,
//! and stays so: a proxy that is restarted must not weaken it. It judges nobody.

use std::time::{Duration, Instant};

use refract_core::Evidence;

use crate::cli::{EvidenceFlag, Protocols};

/// Before the first listener is seen, lines are not read more than this long after a look for one.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The grade and why it is that.
#[derive(Debug)]
pub struct Grade {
    /// What verdicts rest on.
    pub evidence: Evidence,
    /// Why.
    pub reason: &'static str,
    may_change: bool,
    looked: Option<Instant>,
}

impl Grade {
    /// The grade before anything was looked at.
    #[must_use]
    pub fn new(flag: EvidenceFlag, protocols: Protocols) -> Self {
        let grade =
            |evidence, reason, may_change| Self { evidence, reason, may_change, looked: None };
        match flag {
            EvidenceFlag::Log => grade(Evidence::Log, "--evidence=log", false),
            _ if !protocols.tcp => {
                grade(Evidence::Log, "UDP has no connections that could be asked about", false)
            }
            EvidenceFlag::Kernel => grade(Evidence::Kernel, "--evidence=kernel", false),
            EvidenceFlag::Auto => grade(
                Evidence::Log,
                "nobody listens for TCP on a protected port in this network namespace",
                true,
            ),
        }
    }

    /// Whether the kernel may ever be asked.
    #[must_use]
    pub fn wants_kernel(&self) -> bool {
        self.may_change || self.evidence == Evidence::Kernel
    }

    /// Whether it is what it is because nobody was seen to listen yet.
    #[must_use]
    pub fn is_for_want_of_a_listener(&self) -> bool {
        self.may_change
    }

    /// Looks for a listener, at most every tenth of a second unless a verdict hangs on it. `true`
    /// when the grade has changed.
    pub fn look(
        &mut self,
        at_once: bool,
        now: Instant,
        has_listener: impl FnOnce() -> bool,
    ) -> bool {
        let rested = |looked| now.saturating_duration_since(looked) >= LOOK_PAUSE;
        if !self.may_change || !(at_once || self.looked.is_none_or(rested)) {
            return false;
        }
        self.looked = Some(now);
        if !has_listener() {
            return false;
        }
        self.may_change = false;
        self.evidence = Evidence::Kernel;
        self.reason = "somebody listens for TCP on a protected port";
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Protocols = Protocols { tcp: true, udp: false };

    #[test]
    fn auto_is_the_kernels_once_somebody_listens_and_stays_so() {
        let now = Instant::now();
        let mut grade = Grade::new(EvidenceFlag::Auto, TCP);
        assert!(!grade.look(false, now, || false));
        assert_eq!(grade.evidence, Evidence::Log);
        assert!(!grade.look(false, now, || true), "it was looked at just now");
        assert!(grade.look(true, now, || true), "unless a verdict hangs on it");
        assert_eq!(grade.evidence, Evidence::Kernel);
        assert!(!grade.look(true, now, || panic!("nothing is left to be seen")));
        assert_eq!(grade.evidence, Evidence::Kernel);
    }

    #[test]
    fn an_order_is_an_order_and_udp_has_only_the_log() {
        for (flag, protocols, evidence) in [
            (EvidenceFlag::Log, TCP, Evidence::Log),
            (EvidenceFlag::Kernel, TCP, Evidence::Kernel),
            (EvidenceFlag::Kernel, Protocols { tcp: false, udp: true }, Evidence::Log),
            (EvidenceFlag::Auto, Protocols { tcp: false, udp: true }, Evidence::Log),
        ] {
            let mut grade = Grade::new(flag, protocols);
            assert!(!grade.look(true, Instant::now(), || true));
            assert_eq!(grade.evidence, evidence);
        }
    }
}
