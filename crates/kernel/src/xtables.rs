//! The firewall rule: keeps "drop what is in our sets" at the top of chain INPUT, or of another that
//! the plan names; and the rule against MPTCP beside it, in table mangle.
//!
//! Takes a [`RulePlan`]; makes it so with the `iptables` and `ip6tables` of the host, and says what
//! was found. A rule is ours when it is in INPUT, matches one of our sets and drops; when it is in
//! another chain and just as we would make it; or when it is in mangle INPUT or FORWARD, strips TCP
//! options and bears our name as its comment; whatever its ports. Those are put right or removed, and
//! no other rule is ever touched. It does not make sets, does not decide when to look, and is called
//! off the hot path only: each look starts a process (about a millisecond).
//!
//! Changes go through `iptables-restore --noflush`, one transaction each: either variant swaps the
//! old rules for the new ones at once, so there is no unprotected moment and no rule is deleted by
//! a number that meanwhile means another.

mod chain;
mod elsewhere;
mod ports;
mod program;
mod rule;
mod strip;
mod variant;

use std::{fmt, fs, io, path::Path};

pub(crate) use self::rule::check_plan;
pub use self::{
    chain::ChainName,
    ports::{ports_from_text, ports_to_text},
    program::ProgramFailure,
    rule::{IpFamily, Protocol, Rule, RulePlan, SetNames, State},
    strip::{NoStrip, StripReport},
    variant::Variant,
};
use self::{
    chain::{Program, failed},
    program::run,
    rule::Listing,
    variant::{usual_place, variant_of},
};
use crate::error::Error;

/// Operations, as the sentence about their failure names them.
const CHECK: &str = "check the rule with";
const INSTALL: &str = "install the rule with";
const REMOVE: &str = "remove the rule with";
const CHECK_STRIP: &str = "check the rule against MPTCP with";
const INSTALL_STRIP: &str = "install the rule against MPTCP with";
const REMOVE_STRIP: &str = "remove the rule against MPTCP with";
/// Lists the IPv6 addresses of this network namespace; absent where the kernel runs without IPv6.
const IPV6_ADDRESSES: &str = "/proc/thread-self/net/if_inet6";

/// Why there is no rule for IPv6. Not an error: work goes on with IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoIpv6 {
    /// There is no `ip6tables` beside `iptables`.
    NoProgram,
    /// The kernel runs without IPv6.
    NoKernel,
    /// The plan's chain is there in `iptables` only: Docker makes DOCKER-USER for IPv6 from version
    /// 27 on, and forwards none before.
    NoChain,
}

impl NoIpv6 {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NoProgram, Self::NoKernel, Self::NoChain];
}

impl fmt::Display for NoIpv6 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NoProgram => "there is no ip6tables beside iptables",
            Self::NoKernel => "the kernel runs without IPv6",
            Self::NoChain => "ip6tables has no chain of that name",
        })
    }
}

/// What was found in the plan's chain of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// In `iptables`.
    pub v4: State,
    /// In `ip6tables`, or why there is none.
    pub v6: Result<State, NoIpv6>,
}

impl Report {
    /// Whether every family that there is has exactly the planned rules at the top.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.v4 == State::InPlace && !matches!(self.v6, Ok(state) if state != State::InPlace)
    }
}

/// The `iptables` programs of this host, and what they are to keep.
#[derive(Debug)]
pub struct Xtables {
    plan: RulePlan,
    variant: Variant,
    v4: Program,
    v6: Option<Program>,
}

impl Xtables {
    /// Finds the programs: `program` if given, an absolute path such as
    /// `/usr/sbin/iptables-legacy`, else `iptables` in the usual directories. The names of its
    /// siblings (`ip6tables…`, `…-restore`, `…-save`) follow from its own.
    pub fn find(program: Option<&Path>, plan: RulePlan) -> Result<Self, Error> {
        let path = match program {
            Some(path) => path.to_owned(),
            None => usual_place("iptables")
                .ok_or_else(|| failed("find", Path::new("iptables"), ProgramFailure::NotFound))?,
        };
        let named = |name: &str| path.with_file_name(name);
        let Some(suffix) = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix("iptables"))
            .filter(|_| path.is_absolute())
        else {
            return Err(failed("use", &path, ProgramFailure::Misnamed));
        };
        let v6 = named(&format!("ip6tables{suffix}"));
        let xtables = Self {
            variant: variant_of(&path)?,
            v6: v6.exists().then_some(Program { path: v6 }),
            v4: Program { path },
            plan,
        };
        Ok(xtables)
    }

    /// Finds the programs of one implementation in the usual directories, by the name that
    /// distributions give them; `None` where there are none, or where that name leads to the other
    /// implementation.
    pub fn find_variant(variant: Variant, plan: RulePlan) -> Result<Option<Self>, Error> {
        let Some(path) = usual_place(variant.program()) else { return Ok(None) };
        let found = Self::find(Some(&path), plan)?;
        Ok((found.variant == variant).then_some(found))
    }

    /// Which implementation it is.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The path of `iptables`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.v4.path
    }

    /// Looks at the plan's chain once per family.
    pub fn check(&self) -> Result<Report, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            program.look(CHECK, self.plan.chain(), |text| {
                let listing = Listing::parse(text, self.plan.chain(), self.plan.sets(family))?;
                Some(listing.state(&self.plan.rules(family)))
            })
        })?;
        Ok(Report { v4, v6 })
    }

    /// Makes the planned rules the first ones of the plan's chain, each exactly once, and removes
    /// what else is ours there; then what is ours in other chains. Answers what it found; after `Ok`
    /// all is in place. A family that fails does not hold up the other.
    pub fn install(&self) -> Result<Report, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            let found = program.replace(INSTALL, &self.plan, family, &self.plan.rules(family))?;
            program.remove_elsewhere(INSTALL, &self.plan, family)?;
            Ok(found)
        })?;
        Ok(Report { v4, v6 })
    }

    /// Removes every rule of ours from every chain and answers what it found in the plan's. No table
    /// or no chain, nothing to do.
    pub fn remove(&self) -> Result<Report, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            if !self.may_have(rule::TABLE, family) {
                return Ok(State::Missing);
            }
            let found = match program.replace(REMOVE, &self.plan, family, &[]) {
                Err(error) if is_nowhere(&error) => State::Missing,
                found => found?,
            };
            program.remove_elsewhere(REMOVE, &self.plan, family)?;
            Ok(found)
        })?;
        Ok(Report { v4, v6 })
    }

    /// Looks once per family whether MPTCP is stripped on the planned ports; where it is not, also
    /// whether it could be.
    pub fn check_strip(&self) -> Result<StripReport, Error> {
        let planned = self.plan.groups_of_tcp_ports();
        self.each_family_to_strip(|program, family| {
            if !self.may_have(strip::TABLE, family) {
                return Ok(if planned.is_empty() { State::InPlace } else { State::Missing });
            }
            let mut worst = State::InPlace;
            for chain in strip::CHAINS.into_iter().filter(|chain| self.plan.strips_in(chain.name)) {
                let found = program
                    .look(CHECK_STRIP, chain, |text| strip::compare(text, chain, &planned))?;
                if let (State::Missing, Some(batch)) = (found.state, found.transaction) {
                    program.rehearse(CHECK_STRIP, &batch)?;
                }
                worst = strip::worse(worst, found.state);
            }
            Ok(worst)
        })
    }

    /// Sees that MPTCP is stripped from every handshake with a planned TCP port, by one rule for
    /// each group of ports, and removes what else is ours of that kind. Answers what it found;
    /// after `Ok(Ok(_))` of a family it is in place there. A family that fails does not hold up the
    /// other.
    pub fn install_strip(&self) -> Result<StripReport, Error> {
        let planned = self.plan.groups_of_tcp_ports();
        self.each_family_to_strip(|program, _| {
            let mut worst = State::InPlace;
            for chain in strip::CHAINS {
                let wanted = if self.plan.strips_in(chain.name) { planned.as_slice() } else { &[] };
                let compare = |text: &str| strip::compare(text, chain, wanted);
                let found = program.settle(INSTALL_STRIP, chain, compare)?.state;
                worst = strip::worse(worst, found);
            }
            Ok(worst)
        })
    }

    /// Removes every rule of ours against MPTCP, and says how many there were. No table, nothing to
    /// do.
    pub fn remove_strip(&self) -> Result<usize, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            if !self.may_have(strip::TABLE, family) {
                return Ok(0);
            }
            let mut removed = 0;
            for chain in strip::CHAINS {
                let compare = |text: &str| strip::compare(text, chain, &[]);
                removed += match program.settle(REMOVE_STRIP, chain, compare) {
                    Err(error) if is_nowhere(&error) => 0,
                    found => found?.ours,
                };
            }
            Ok(removed)
        })?;
        Ok(v4 + v6.unwrap_or_default())
    }

    /// How many rules of ours there are that drop, in whichever chain. No table, none.
    pub fn count(&self) -> Result<usize, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            if self.may_have(rule::TABLE, family) {
                program.count(CHECK, &self.plan, family, None)
            } else {
                Ok(0)
            }
        })?;
        Ok(v4 + v6.unwrap_or_default())
    }

    /// How many rules of ours there are against MPTCP. No table, none.
    pub fn count_strip(&self) -> Result<usize, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            if !self.may_have(strip::TABLE, family) {
                return Ok(0);
            }
            let mut count = 0;
            for chain in strip::CHAINS {
                let compare = |text: &str| strip::compare(text, chain, &[]);
                count += match program.look(CHECK_STRIP, chain, compare) {
                    Err(error) if is_nowhere(&error) => 0,
                    found => found?.ours,
                };
            }
            Ok(count)
        })?;
        Ok(v4 + v6.unwrap_or_default())
    }

    /// How many rules of ours refer to `set`. A set whose kernel reference count is larger is also
    /// used by somebody else: see [`Self::foreign_rules`].
    pub fn references(&self, set: &str) -> Result<usize, Error> {
        let (v4, v6) = self
            .each_family(|program, family| program.count(CHECK, &self.plan, family, Some(set)))?;
        Ok(v4 + v6.unwrap_or_default())
    }

    /// The rules that refer to `set` and are not ours, for an error message: in every table and
    /// chain, of both implementations where both are installed, each with its program and table.
    /// Best effort: a program that fails is passed over.
    #[must_use]
    pub fn foreign_rules(&self, set: &str) -> Vec<String> {
        let mut rules = Vec::new();
        for (program, family) in [(Some(&self.v4), IpFamily::V4), (self.v6.as_ref(), IpFamily::V6)]
        {
            let Some(program) = program else { continue };
            let ours = self.plan.sets(family);
            for (save, ours) in
                [(program.sibling("save"), Some(ours)), (program.other_save(self.variant), None)]
            {
                if save.exists()
                    && let Ok(text) = run(&save, &[], None, program::TIME_LIMIT)
                {
                    let found = rule::references_in_save(&text, set, ours);
                    let name = save.file_name().unwrap_or_default().to_string_lossy();
                    rules.extend(found.map(|rule| format!("{name}: {rule}")));
                }
            }
        }
        rules
    }

    /// As [`Self::each_family`]; that a family can have no such rule is an answer, not an error.
    fn each_family_to_strip(
        &self,
        act: impl Fn(&Program, IpFamily) -> Result<State, Error>,
    ) -> Result<StripReport, Error> {
        let (v4, v6) = self.each_family(|program, family| match act(program, family) {
            Ok(state) => Ok(Ok(state)),
            Err(error) => match &error {
                Error::Program { source, .. } => {
                    NoStrip::from_failure(source).map(Err).ok_or(error)
                }
                _ => Err(error),
            },
        })?;
        Ok(StripReport { v4, v6: v6.map_err(NoStrip::NoIpv6).flatten() })
    }

    /// Legacy iptables makes the table by merely looking; that is not worth it where none can hold
    /// a rule. Where it cannot be told, looking is the way to tell.
    fn may_have(&self, table: &str, family: IpFamily) -> bool {
        let names = match family {
            IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
            IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        match (self.variant, fs::read_to_string(names)) {
            (Variant::Legacy, Ok(tables)) => tables.lines().any(|name| name == table),
            (Variant::Legacy, Err(error)) => error.kind() != io::ErrorKind::NotFound,
            (Variant::NfTables, _) => true,
        }
    }

    /// Acts on both families before it lets the error of one be the answer.
    fn each_family<T>(
        &self,
        act: impl Fn(&Program, IpFamily) -> Result<T, Error>,
    ) -> Result<(T, Result<T, NoIpv6>), Error> {
        let v4 = act(&self.v4, IpFamily::V4);
        let v6 = match &self.v6 {
            None => Ok(Err(NoIpv6::NoProgram)),
            Some(_) if !Path::new(IPV6_ADDRESSES).exists() => Ok(Err(NoIpv6::NoKernel)),
            Some(program) => match act(program, IpFamily::V6) {
                Err(error) if v4.is_ok() && lacks_chain(&error) => Ok(Err(NoIpv6::NoChain)),
                done => done.map(Ok),
            },
        };
        Ok((v4?, v6?))
    }
}

/// There is no such table or chain, so no rule can be there either.
fn is_nowhere(error: &Error) -> bool {
    lacks_chain(error) || matches!(error, Error::Program { source: ProgramFailure::NoTable, .. })
}

fn lacks_chain(error: &Error) -> bool {
    matches!(error, Error::Program { source: ProgramFailure::NoChain { .. }, .. })
}

impl Program {
    /// Puts `wanted` in the place of all that is ours in the plan's chain.
    fn replace(
        &self,
        operation: &'static str,
        plan: &RulePlan,
        family: IpFamily,
        wanted: &[Rule],
    ) -> Result<State, Error> {
        let (chain, sets, planned) = (plan.chain(), plan.sets(family), plan.rules(family));
        let compare =
            |text: &str| Some(Listing::parse(text, chain, sets)?.compare(&planned, wanted));
        Ok(self.settle(operation, chain, compare)?.state)
    }
}
