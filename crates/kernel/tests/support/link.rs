//! A cable between two namespaces.

use std::net::{TcpListener, TcpStream};

use crate::support::Namespace;

/// Joins them by a veth pair: each has an `eth0`, the first with `.1` and the second with `.2` of
/// 10.9.0.0/24, and likewise of `2001:db8:9::/64`. No link-local addresses, which would come late.
#[track_caller]
pub(crate) fn join(first: &Namespace, second: &Namespace) {
    first.run(&format!("ip link add eth0 type veth peer eth0 netns {second}"));
    for (namespace, last) in [(first, 1), (second, 2)] {
        namespace.run(&format!("ip addr add 10.9.0.{last}/24 dev eth0"));
        namespace.run(&format!("ip addr add 2001:db8:9::{last}/64 dev eth0 nodad"));
        namespace.run("ip link set eth0 addrgenmode none");
        namespace.run("ip link set eth0 up");
    }
    // The carrier comes a moment later, and with it the last of the addresses and routes.
    let listener = first.inside(|| TcpListener::bind("[2001:db8:9::1]:1").unwrap());
    second.inside(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    for namespace in [first, second] {
        namespace.run("ip link set eth0 up");
    }
}
