//! What the table is to protect, and the words for how it stands. Pure.
//!
//! Takes what a caller wants; refuses what nobody can want. It knows no rule: how a plan becomes one
//! is the business of [`design`](super::design).

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, time::Duration};

use super::sets::BanSet;
use crate::{
    error::Error,
    xtables::{Protocol, check_plan},
};

/// Where packets are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What comes to this host.
    Input,
    /// What is passed on, as to a proxy in a bridged container. The ports are those of the proxy:
    /// destination nat has been there before.
    Forward,
}

impl Hook {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Input, Self::Forward];
}

impl fmt::Display for Hook {
    /// As `nft` writes it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Input => "input",
            Self::Forward => "forward",
        })
    }
}

/// What the table is to protect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftPlan {
    /// Transports that are enforced, each once.
    pub protocols: Vec<Protocol>,
    /// Local ports: from 1 on, ascending and apart.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Where packets are looked at.
    pub hook: Hook,
    /// MPTCP is stripped from handshakes with the TCP ports.
    pub strip_mptcp: bool,
    /// Leading bits of an IPv6 address that are one device, 1 to 128: bans of such networks have
    /// their set from the beginning. Those of other networks get one when the first is made.
    pub ipv6_prefix: u8,
    /// UDP is enforced: the two sets of flows are wanted too.
    pub flows: bool,
    /// How long an element lasts that was made without a timeout, by an operator's
    /// `nft add element`.
    pub default_timeout: Duration,
}

impl NftPlan {
    /// Refuses a plan that nobody can want.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_plan(&self.protocols, &self.ports)?;
        if !(1..=128).contains(&self.ipv6_prefix) {
            return Err(Error::Plan { reason: "an IPv6 prefix has from 1 to 128 bits" });
        }
        Ok(())
    }

    /// The sets that there are in any case.
    pub(crate) fn sets(&self) -> BTreeSet<BanSet> {
        let mut sets = BTreeSet::from([BanSet::Users, BanSet::Users6]);
        if self.ipv6_prefix < 128 {
            sets.insert(BanSet::Networks6(self.ipv6_prefix));
        }
        if self.flows {
            sets.extend([BanSet::Flows, BanSet::Flows6]);
        }
        sets
    }

    pub(crate) fn wants_strip(&self) -> bool {
        self.strip_mptcp && self.protocols.contains(&Protocol::Tcp)
    }
}

/// How the table stands, the rule against MPTCP aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Chains, rules and ports are as planned, and the sets are there.
    InPlace,
    /// The table or our chain in it is not there, or is empty: nobody is kept out.
    Missing,
    /// Something of it is not as planned.
    Altered,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::InPlace, Self::Missing, Self::Altered];
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::InPlace => "in-place",
            Self::Missing => "missing",
            Self::Altered => "altered",
        })
    }
}

/// How the rule against MPTCP stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strip {
    /// It is not planned.
    NotWanted,
    /// It is there, once.
    InPlace,
    /// It is not, or more than once.
    Missing,
    /// The kernel does not have it: it came with Linux 5.18. Not an error: work goes on without.
    NotInKernel,
}

impl Strip {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NotWanted, Self::InPlace, Self::Missing, Self::NotInKernel];
}

impl fmt::Display for Strip {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NotWanted => "not wanted",
            Self::InPlace => "in-place",
            Self::Missing => "missing",
            Self::NotInKernel => "the kernel's nftables cannot reset a TCP option (Linux 5.18 can)",
        })
    }
}

/// How all of it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Chains, rules, ports and sets.
    pub state: State,
    /// The rule against MPTCP.
    pub strip: Strip,
}

impl Standing {
    /// Whether installing would change anything.
    #[must_use]
    pub fn wants_repair(self) -> bool {
        self.state != State::InPlace || self.strip == Strip::Missing
    }
}
