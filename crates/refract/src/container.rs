//! Whether this process runs in a container, and what to do there about what is missing.
//!
//! Takes the marks that container engines leave in a container's file system; makes the half of a
//! sentence that names a remedy. A container that shares the host's network is one all the same: only
//! whether somebody listens tells whose network it is, and others look for that.

use std::{env, path::Path};

/// What an engine puts at the root of every container: Docker, and Podman.
const MARKS: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];

/// Whether this is a container.
#[must_use]
pub fn is_one() -> bool {
    // Podman, LXC and systemd-nspawn set the variable.
    MARKS.iter().any(|mark| Path::new(mark).exists()) || env::var_os("container").is_some()
}

/// What it means in a container that nobody listens on a protected port.
pub const OTHER_NETWORK: &str = "this is a container, and nobody listens on a protected port in its \
                                 network: unless the proxy has yet to start, bans made here stop \
                                 nobody; run the container in the network in which the proxy listens, \
                                 with network_mode: host (docker run --network=host), or, where the \
                                 proxy has a network of its own, container:NAME";

/// What to do in a container about an access log that is not there.
pub const MOUNT_LOG: &str = "this is a container: if the log never comes, mount the directory that \
                             Xray writes it to, with volumes: /var/log/xray:/var/log/xray:ro (docker \
                             run --volume=…), and name the file with --access.log";

/// What to do about a directory that the block log cannot be written to.
#[must_use]
pub fn writable_place(is_container: bool) -> &'static str {
    if is_container {
        "mount a volume where the block log is to be, or name a place on one with --block.log"
    } else {
        "name a place that can be written to with --block.log"
    }
}

/// Where to remove what iptables made.
#[must_use]
pub fn where_iptables_is(is_container: bool) -> &'static str {
    if is_container {
        "as root on the host, outside this container, where iptables is"
    } else {
        "as root where iptables is"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_can_be_written_is_a_volume_in_a_container() {
        assert!(writable_place(true).contains("volume"));
        assert!(writable_place(false).contains("--block.log"));
    }

    #[test]
    fn iptables_is_outside_of_a_container() {
        assert!(where_iptables_is(true).contains("on the host"));
        assert!(!where_iptables_is(false).contains("host"));
    }
}
