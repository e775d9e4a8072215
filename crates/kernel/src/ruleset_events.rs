//! Hears when somebody changes the nftables rules, whoever it is and by whatever tool.
//!
//! Takes nothing; says "something changed" after `nft` and `iptables-nft`. It does not say what:
//! whoever cares looks for himself. The kernel is silent about iptables-legacy and ipset (tried),
//! so this hurries a check up and does not replace it.

use std::os::fd::{AsFd, BorrowedFd};

use crate::{
    error::Error,
    netlink::{Family, Socket},
};

/// `NFNLGRP_NFTABLES` (7) as a bit of the bind mask, linux/netfilter/nfnetlink.h.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES`, in the message type's high byte.
const NFTABLES: u8 = 10;
/// The last of the messages about tables, chains and rules: `NFT_MSG_DELRULE`,
/// `linux/netfilter/nf_tables.h`. Those after it are about sets and their elements, which come and
/// go by the thousand on some hosts, and about the generation that follows every change.
const LAST_RULE_MESSAGE: u8 = 8;

/// A subscription to changes of tables, chains and rules.
#[derive(Debug)]
pub struct RulesetEvents {
    socket: Socket,
}

impl RulesetEvents {
    /// Subscribes in the network namespace of the calling thread. Takes `CAP_NET_ADMIN`.
    pub fn subscribe() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open_with_groups(Family::Netfilter, NFTABLES_GROUP)? })
    }

    /// Takes all waiting events, without blocking. `true`: the rules changed, or events were lost
    /// and they may have.
    pub fn drain(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        let whole = self.socket.events(|message| changed |= is_about_rules(message.kind))?;
        Ok(changed || !whole)
    }
}

/// Readable when an event waits.
impl AsFd for RulesetEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_about_rules(kind: u16) -> bool {
    let [subsystem, message] = kind.to_be_bytes();
    subsystem == NFTABLES && message <= LAST_RULE_MESSAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_chains_and_rules_count_and_set_elements_do_not() {
        // NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE.
        for kind in [0x0a00, 0x0a02, 0x0a03, 0x0a05, 0x0a06, 0x0a08] {
            assert!(is_about_rules(kind), "{kind:#06x}");
        }
        // NEWSET, NEWSETELEM, DELSETELEM, NEWGEN, and a message of another subsystem (ctnetlink).
        for kind in [0x0a09, 0x0a0c, 0x0a0e, 0x0a0f, 0x0100] {
            assert!(!is_about_rules(kind), "{kind:#06x}");
        }
    }
}
