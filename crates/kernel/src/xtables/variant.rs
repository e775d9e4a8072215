//! The two implementations of iptables: which of them a program is, and where distributions have both.
//!
//! Takes a path or a name; asks the program for its version, which makes nothing in the kernel. It looks
//! at no rule.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{
    ProgramFailure,
    chain::failed,
    program::{TIME_LIMIT, run},
};
use crate::error::Error;

/// Where `iptables` is looked for, in this order; the `PATH` of whoever started us is not trusted.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];

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

    /// The one that this is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::NfTables => Self::Legacy,
            Self::Legacy => Self::NfTables,
        }
    }

    /// What distributions call its `iptables` where they have both.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::NfTables => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }
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

/// Where a program of that name is, in the first of the usual directories that has one.
pub(super) fn usual_place(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists())
}

/// Asks a program which it is.
pub(super) fn variant_of(path: &Path) -> Result<Variant, Error> {
    let text = run(path, &["-V"], None, TIME_LIMIT)
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
