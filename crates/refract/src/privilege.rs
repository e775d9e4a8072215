//! Which rights this process has, asked before anything is touched.
//!
//! Takes nothing but the process's own capability sets; makes a refusal that names what is missing
//! and the remedy. It raises and drops nothing.

use rustix::thread::{CapabilitySet, capabilities};

use crate::error::Error;

/// Refuses unless `CAP_NET_ADMIN` is effective: all that netlink takes, and so all that enforcing
/// takes with nftables. It must stay effective in the thread that destroys sockets (measured on Linux
/// 6.18).
pub fn require_net_admin() -> Result<(), Error> {
    require(CapabilitySet::NET_ADMIN, Error::MissingCapability { name: "CAP_NET_ADMIN" })
}

/// Refuses unless `CAP_NET_RAW` is effective: iptables opens a raw socket to ask for the `set` match
/// (measured on Linux 6.18).
pub fn require_net_raw() -> Result<(), Error> {
    require(CapabilitySet::NET_RAW, Error::MissingNetRaw)
}

fn require(capability: CapabilitySet, refusal: Error) -> Result<(), Error> {
    let held = capabilities(None).map_err(|source| Error::Io {
        operation: "read",
        object: "the capabilities of this process".to_owned(),
        source: source.into(),
    })?;
    if held.effective.contains(capability) { Ok(()) } else { Err(refusal) }
}
