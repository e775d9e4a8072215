//! Which rights this process has, asked before anything is touched.
//!
//! Takes nothing but the process's own capability sets; makes a refusal that names what is missing
//! and the remedy. It raises and drops nothing.

use rustix::thread::{CapabilitySet, capabilities};

use crate::error::Error;

/// Refuses unless both capabilities that enforcing takes are effective.
///
/// `CAP_NET_ADMIN` is for everything over netlink and must stay effective in the thread that
/// destroys sockets; `CAP_NET_RAW` only because iptables opens a raw socket to ask for the `set`
/// match (both measured on Linux 6.18).
pub fn require_enforcing() -> Result<(), Error> {
    require(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN")?;
    require(CapabilitySet::NET_RAW, "CAP_NET_RAW")
}

/// Refuses unless `CAP_NET_ADMIN` is effective: enough to change the sets.
pub fn require_net_admin() -> Result<(), Error> {
    require(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN")
}

fn require(capability: CapabilitySet, name: &'static str) -> Result<(), Error> {
    let held = capabilities(None).map_err(|source| Error::Io {
        operation: "read",
        object: "the capabilities of this process".to_owned(),
        source: source.into(),
    })?;
    if held.effective.contains(capability) {
        Ok(())
    } else {
        Err(Error::MissingCapability { name })
    }
}
