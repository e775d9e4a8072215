//! Targets of bans, out of text.

use refract_kernel::ban::BanTarget;

pub(crate) fn host(address: &str) -> BanTarget {
    BanTarget::host(address.parse().unwrap())
}

pub(crate) fn network(address: &str, prefix: u8) -> BanTarget {
    BanTarget::Network { address: address.parse().unwrap(), prefix }
}

pub(crate) fn flow(address: &str, port: u16) -> BanTarget {
    BanTarget::Flow { address: address.parse().unwrap(), port }
}
