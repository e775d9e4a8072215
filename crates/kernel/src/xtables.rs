//! The firewall rule: keeps "drop what is in our sets" at the top of chain INPUT.
//!
//! Takes a [`RulePlan`]; makes it so with the `iptables` and `ip6tables` of the host, and says what
//! was found. A rule is ours when it is in INPUT, matches one of our sets and drops, whatever its
//! ports: those are put right or removed, and no other rule is ever touched. It does not make sets,
//! does not decide when to look, and is called off the hot path only: each look starts a process
//! (about a millisecond).
//!
//! Changes go through `iptables-restore --noflush`, one transaction each: either variant swaps the
//! old rules for the new ones at once, so there is no unprotected moment and no rule is deleted by
//! a number that meanwhile means another.

mod program;
mod rule;

use std::{
    fmt,
    path::{Path, PathBuf},
};

pub use self::{
    program::ProgramFailure,
    rule::{IpFamily, Protocol, Rule, RulePlan, SetNames, State, ports_from_text, ports_to_text},
};
use self::{program::run, rule::Listing};
use crate::error::Error;

/// Where `iptables` is looked for, in this order; the `PATH` of whoever started us is not trusted.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];
/// How often a transaction that lost against another program's change is built anew.
const ATTEMPTS: usize = 3;
/// Operations, as the sentence about their failure names them.
const CHECK: &str = "check the rule with";
const INSTALL: &str = "install the rule with";
const REMOVE: &str = "remove the rule with";
/// Lists the IPv6 addresses of this network namespace; absent where the kernel runs without IPv6.
const IPV6_ADDRESSES: &str = "/proc/thread-self/net/if_inet6";

/// Which of the two implementations of `iptables` a program is. They do not see each other's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Through nftables: each change also wakes `NFNLGRP_NFTABLES`.
    NfTables,
    /// Through the old interface: changes wake nobody.
    Legacy,
}

impl Variant {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::NfTables, Self::Legacy];
}

impl fmt::Display for Variant {
    /// As `iptables -V` prints it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NfTables => "nf_tables",
            Self::Legacy => "legacy",
        })
    }
}

/// Why there is no rule for IPv6. Not an error: work goes on with IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoIpv6 {
    /// There is no `ip6tables` beside `iptables`.
    NoProgram,
    /// The kernel runs without IPv6.
    NoKernel,
}

impl NoIpv6 {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::NoProgram, Self::NoKernel];
}

impl fmt::Display for NoIpv6 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NoProgram => "there is no ip6tables beside iptables",
            Self::NoKernel => "the kernel runs without IPv6",
        })
    }
}

/// What was found in chain INPUT of both families.
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
            None => DIRECTORIES
                .iter()
                .map(|directory| Path::new(directory).join("iptables"))
                .find(|path| path.exists())
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

    /// Looks at chain INPUT once per family.
    pub fn check(&self) -> Result<Report, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            let listing = program.listing(CHECK, self.plan.sets(family))?;
            Ok(listing.state(&self.plan.rules(family)))
        })?;
        Ok(Report { v4, v6 })
    }

    /// Makes the planned rules the first ones of chain INPUT, each exactly once, and removes what
    /// else is ours there. Answers what it found; after `Ok` all is in place. A family that fails
    /// does not hold up the other.
    pub fn install(&self) -> Result<Report, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            program.replace(INSTALL, &self.plan, family, &self.plan.rules(family))
        })?;
        Ok(Report { v4, v6 })
    }

    /// Removes every rule of ours from chain INPUT and answers what it found. No table, nothing to
    /// do.
    pub fn remove(&self) -> Result<Report, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            match program.replace(REMOVE, &self.plan, family, &[]) {
                Err(Error::Program { source: ProgramFailure::NoTable, .. }) => Ok(State::Missing),
                found => found,
            }
        })?;
        Ok(Report { v4, v6 })
    }

    /// How many rules of ours refer to `set`. A set whose kernel reference count is larger is also
    /// used by somebody else: see [`Self::foreign_rules`].
    pub fn references(&self, set: &str) -> Result<usize, Error> {
        let (v4, v6) = self.each_family(|program, family| {
            Ok(program.listing(CHECK, self.plan.sets(family))?.references(set))
        })?;
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

    /// Acts on both families before it lets the error of one be the answer.
    fn each_family<T>(
        &self,
        act: impl Fn(&Program, IpFamily) -> Result<T, Error>,
    ) -> Result<(T, Result<T, NoIpv6>), Error> {
        let v4 = act(&self.v4, IpFamily::V4);
        let v6 = match &self.v6 {
            None => Ok(Err(NoIpv6::NoProgram)),
            Some(_) if !Path::new(IPV6_ADDRESSES).exists() => Ok(Err(NoIpv6::NoKernel)),
            Some(program) => act(program, IpFamily::V6).map(Ok),
        };
        Ok((v4?, v6?))
    }
}

/// One family's `iptables`.
#[derive(Debug)]
struct Program {
    path: PathBuf,
}

impl Program {
    /// Reads chain INPUT.
    fn listing(&self, operation: &'static str, sets: SetNames) -> Result<Listing, Error> {
        // The lock is waited for in seconds; the limit on the process is above that.
        let text = run(&self.path, &["-w", "5", "-S", "INPUT"], None, program::TIME_LIMIT)
            .map_err(|source| failed(operation, &self.path, source))?;
        Listing::parse(&text, sets)
            .ok_or_else(|| failed(operation, &self.path, ProgramFailure::Unintelligible))
    }

    /// Puts `wanted` in the place of all that is ours, and looks whether it came to be.
    fn replace(
        &self,
        operation: &'static str,
        plan: &RulePlan,
        family: IpFamily,
        wanted: &[Rule],
    ) -> Result<State, Error> {
        let mut listing = self.listing(operation, plan.sets(family))?;
        let found = listing.state(&plan.rules(family));
        let restore = self.sibling("restore");
        let mut lost = ProgramFailure::Unsettled;
        for _ in 0..ATTEMPTS {
            if listing.holds_exactly(wanted) {
                return Ok(found);
            }
            let batch = listing.replacement(wanted);
            match run(&restore, &["--wait=5", "--noflush"], Some(&batch), program::TIME_LIMIT) {
                Ok(_) => {}
                // What is to be deleted may just have been deleted by somebody else.
                Err(failure @ ProgramFailure::Exited { .. }) => lost = failure,
                Err(failure) => return Err(failed(operation, &restore, failure)),
            }
            listing = self.listing(operation, plan.sets(family))?;
        }
        if listing.holds_exactly(wanted) {
            return Ok(found);
        }
        Err(failed(operation, &restore, lost))
    }

    /// `iptables-legacy` → `iptables-legacy-restore`.
    fn sibling(&self, suffix: &str) -> PathBuf {
        self.path.with_file_name(format!("{}-{suffix}", self.name()))
    }

    /// The `…-save` of the implementation that `variant` is not.
    fn other_save(&self, variant: Variant) -> PathBuf {
        let other = match variant {
            Variant::NfTables => "legacy",
            Variant::Legacy => "nft",
        };
        let name = self.name();
        let family = name.split('-').next().unwrap_or_default();
        self.path.with_file_name(format!("{family}-{other}-save"))
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

fn variant_of(path: &Path) -> Result<Variant, Error> {
    let text = run(path, &["-V"], None, program::TIME_LIMIT)
        .map_err(|source| failed("ask the version of", path, source))?;
    // `iptables v1.8.9 (nf_tables)`; before 1.8 there was one implementation and no parenthesis.
    match text.trim_end().split_once(" v") {
        Some((_, version)) if version.ends_with("(nf_tables)") => Ok(Variant::NfTables),
        Some((_, version)) if version.starts_with(|first: char| first.is_ascii_digit()) => {
            Ok(Variant::Legacy)
        }
        _ => Err(failed("ask the version of", path, ProgramFailure::Unintelligible)),
    }
}

fn failed(operation: &'static str, program: &Path, source: ProgramFailure) -> Error {
    Error::Program { operation, program: program.to_owned(), source }
}
