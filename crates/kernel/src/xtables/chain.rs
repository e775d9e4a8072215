//! One family's `iptables`: lists a chain, and changes it until it is as wanted.
//!
//! Takes a chain and a function that compares a listing with what is wanted; runs the program and
//! its siblings, a bounded number of times. It knows no rule, and each call starts a process.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    ProgramFailure, Variant,
    program::{TIME_LIMIT, lacking, run},
    rule::State,
};
use crate::error::Error;

/// How often a transaction that lost against another program's change is built anew.
const ATTEMPTS: usize = 3;

/// The longest name of a chain, bytes: iptables takes fewer than 29 (`XT_EXTENSION_MAXNAMELEN`,
/// `linux/netfilter/x_tables.h`).
const LONGEST_NAME: usize = 28;
/// Names that a rule can jump to and that are no chains.
const VERDICTS: [&str; 4] = ["ACCEPT", "DROP", "QUEUE", "RETURN"];

/// The name of a chain of table filter that clients' packets pass: INPUT, FORWARD, or one that
/// somebody made, such as Docker's DOCKER-USER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainName(String);

impl ChainName {
    /// The name as it is.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ChainName {
    /// What comes to the host itself passes INPUT.
    fn default() -> Self {
        Self(INPUT.to_owned())
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for ChainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain =
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !is_plain || text.is_empty() || text.len() > LONGEST_NAME || text.starts_with('-') {
            return Err(format!(
                "it takes the name of a chain, such as INPUT, FORWARD or DOCKER-USER: at most \
                 {LONGEST_NAME} letters, digits, dots, dashes and underscores"
            ));
        }
        if VERDICTS.contains(&text) {
            return Err("that is a verdict and no chain".to_owned());
        }
        if ["OUTPUT", "PREROUTING", "POSTROUTING"].contains(&text) {
            return Err("clients' packets do not pass that chain of table filter".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// The chain for what comes to the host itself.
pub(super) const INPUT: &str = "INPUT";
/// The chain for what is passed on to another host or network namespace.
pub(super) const FORWARD: &str = "FORWARD";
/// The chain that Docker makes for its users' rules; FORWARD leads to it.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// A chain that rules of ours are in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain<'n> {
    pub(super) table: &'static str,
    pub(super) name: &'n str,
}

impl Chain<'_> {
    /// The rules in what `iptables -S` prints of this chain, each as it stands after `-A` and the
    /// chain's name; `None` if the text is no listing.
    pub(super) fn rules(self, listing: &str) -> Option<impl Iterator<Item = &str> + use<'_>> {
        let (policy, rule) = (format!("-P {} ", self.name), format!("-A {} ", self.name));
        let made = format!("-N {}", self.name);
        // The policy of a chain that the kernel owns is always printed, even where no table is.
        let mut lines = listing.lines();
        lines.any(|line| line.starts_with(&policy) || line == made).then_some(())?;
        Some(listing.lines().filter_map(move |line| line.strip_prefix(&rule)))
    }

    /// Whether the kernel owns the chain, so that it is always there.
    fn is_built_in(self) -> bool {
        [INPUT, FORWARD].contains(&self.name)
    }

    /// The transaction that deletes the rules `listed`, as they were printed, and puts others at the
    /// top in their order, each given by its `arguments`.
    pub(super) fn replacement<'a>(
        self,
        listed: impl Iterator<Item = &'a str>,
        arguments: impl DoubleEndedIterator<Item = Vec<String>>,
    ) -> String {
        let mut batch = format!("*{}\n", self.table);
        for rule in listed {
            // iptables prints rules in the form in which it takes them.
            batch.extend(["-D ", self.name, " ", rule, "\n"]);
        }
        for rule in arguments.rev() {
            batch.extend(["-I ", self.name, " ", &rule.join(" "), "\n"]);
        }
        batch.push_str("COMMIT\n");
        batch
    }
}

/// How a listed chain compares with what is wanted of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) state: State,
    /// How many rules of ours there are.
    pub(super) ours: usize,
    /// What makes it as wanted; `None` where it is.
    pub(super) transaction: Option<String>,
}

/// One family's `iptables`.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
}

impl Program {
    /// Lists a chain and reads the listing.
    pub(super) fn look<T>(
        &self,
        operation: &'static str,
        chain: Chain<'_>,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        // The lock is waited for in seconds; the limit on the process is above that.
        let arguments = ["-w", "5", "-t", chain.table, "-S", chain.name];
        let text = run(&self.path, &arguments, None, TIME_LIMIT).map_err(|source| {
            // The name is all that it can stumble over. Over nftables it says of a chain that is
            // not there that it is incompatible (1.8.9).
            let is_absent = !chain.is_built_in()
                && matches!(
                    source,
                    ProgramFailure::NoMatchInKernel | ProgramFailure::Exited { .. }
                );
            let no_chain = || ProgramFailure::NoChain { chain: chain.name.to_owned() };
            failed(operation, &self.path, if is_absent { no_chain() } else { source })
        })?;
        read(&text).ok_or_else(|| failed(operation, &self.path, ProgramFailure::Unintelligible))
    }

    /// Runs transactions until the chain is as wanted, looks whether it came to be, and gives what
    /// it was like at first.
    pub(super) fn settle(
        &self,
        operation: &'static str,
        chain: Chain<'_>,
        compare: impl Fn(&str) -> Option<Comparison>,
    ) -> Result<Comparison, Error> {
        let found = self.look(operation, chain, &compare)?;
        let restore = self.sibling("restore");
        let mut lost = ProgramFailure::Unsettled { chain: chain.name.to_owned() };
        let mut transaction = found.transaction.clone();
        for _ in 0..ATTEMPTS {
            let Some(batch) = transaction else { return Ok(found) };
            match run(&restore, &["--wait=5", "--noflush"], Some(&batch), TIME_LIMIT) {
                Ok(_) => {}
                // What is to be deleted may just have been deleted by somebody else.
                Err(failure @ ProgramFailure::Exited { .. }) => lost = failure,
                // So may a chain.
                Err(failure @ ProgramFailure::NoMatchInKernel) if !chain.is_built_in() => {
                    lost = failure;
                }
                Err(failure) => return Err(failed(operation, &restore, failure)),
            }
            transaction = self.look(operation, chain, &compare)?.transaction;
        }
        if transaction.is_none() { Ok(found) } else { Err(failed(operation, &restore, lost)) }
    }

    /// Fails where the program or the kernel lacks what a transaction takes; makes none.
    pub(super) fn rehearse(&self, operation: &'static str, batch: &str) -> Result<(), Error> {
        let restore = self.sibling("restore");
        match lacking(&restore, &["--wait=5", "--test", "--noflush"], batch, TIME_LIMIT) {
            Some(failure) => Err(failed(operation, &restore, failure)),
            None => Ok(()),
        }
    }

    /// `iptables-legacy` → `iptables-legacy-restore`.
    pub(super) fn sibling(&self, suffix: &str) -> PathBuf {
        self.path.with_file_name(format!("{}-{suffix}", self.name()))
    }

    /// The `…-save` of the implementation that `variant` is not.
    pub(super) fn other_save(&self, variant: Variant) -> PathBuf {
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

pub(super) fn failed(operation: &'static str, program: &Path, source: ProgramFailure) -> Error {
    Error::Program { operation, program: program.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_chains_are_taken_and_nothing_else() {
        for name in ["INPUT", "FORWARD", "DOCKER-USER", "ufw-before-input", "a.b_c", "f2b"] {
            assert_eq!(name.parse::<ChainName>().unwrap().as_str(), name);
        }
        assert!("a".repeat(28).parse::<ChainName>().is_ok());
        for text in [
            "",
            " ",
            "-A",
            "a b",
            "INPUT\n",
            "a;b",
            "!x",
            "ü",
            "DROP",
            "RETURN",
            "OUTPUT",
            "PREROUTING",
            "a/b",
            "$x",
            "\"",
        ] {
            let sentence = text.parse::<ChainName>().expect_err(text);
            assert!(!sentence.is_empty(), "{text:?}");
        }
        assert!("a".repeat(29).parse::<ChainName>().is_err());
    }

    #[test]
    fn a_chain_that_somebody_made_is_read_as_one_that_the_kernel_owns() {
        let chain = Chain { table: "filter", name: "DOCKER-USER" };
        let listing = "-N DOCKER-USER\n-A DOCKER-USER -s 192.0.2.9/32 -j DROP\n";
        let rules: Vec<_> = chain.rules(listing).unwrap().collect();
        assert_eq!(rules, ["-s 192.0.2.9/32 -j DROP"]);
        assert!(chain.rules("-N DOCKER-USER-2\n").is_none());
        assert!(chain.rules("-P INPUT ACCEPT\n").is_none());
    }
}
