//! A cable between two namespaces.

use std::net::{TcpListener, TcpStream};

use crate::support::Namespace;

/// Joins them by a veth pair: each has an `eth0`, the first with `.1` and the second with `.2` of
/// 10.9.0.0/24, and likewise of `2001:db8:9::/64`. No link-local addresses, which would come late.
#[track_caller]
pub(crate) fn join(first: &Namespace, second: &Namespace) {
    join_by(["eth0", "eth0"], 9, first, second);
}

/// As [`join`], by devices of these names and on 10.`network`.0.0/24 and `2001:db8:network::/64`.
#[track_caller]
pub(crate) fn join_by(devices: [&str; 2], network: u8, first: &Namespace, second: &Namespace) {
    let ends = [(first, devices[0], 1), (second, devices[1], 2)];
    first.run(&format!("ip link add {} type veth peer {} netns {second}", devices[0], devices[1]));
    for (namespace, device, last) in ends {
        namespace.run(&format!("ip addr add 10.{network}.0.{last}/24 dev {device}"));
        namespace.run(&format!("ip addr add 2001:db8:{network}::{last}/64 dev {device} nodad"));
        namespace.run(&format!("ip link set {device} addrgenmode none"));
        namespace.run(&format!("ip link set {device} up"));
    }
    // The carrier comes a moment later, and with it the last of the addresses and routes.
    let address = format!("[2001:db8:{network}::1]:1");
    let listener = first.inside(|| TcpListener::bind(address).unwrap());
    second.inside(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    for (namespace, device, _) in ends {
        namespace.run(&format!("ip link set {device} up"));
    }
}
