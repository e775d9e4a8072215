//! MPTCP servers and clients, and whether a connection is MPTCP.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with, sockopt,
};

use crate::support::Namespace;

/// A listener, or a client that is connected, which would rather speak MPTCP.
fn mptcp_socket(address: SocketAddr) -> rustix::fd::OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mptcp = Some(ipproto::MPTCP);
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, mptcp).unwrap()
}

pub(crate) fn mptcp_listener(at: &str) -> TcpListener {
    let address = at.parse().unwrap();
    let socket = mptcp_socket(address);
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &address).unwrap();
    listen(&socket, 8).unwrap();
    socket.into()
}

pub(crate) fn mptcp_client(server: SocketAddr) -> TcpStream {
    let socket = mptcp_socket(server);
    connect(&socket, &server).unwrap();
    socket.into()
}

/// Whether the connection is MPTCP, as both ends see it; `None` when they do not agree.
pub(crate) fn is_mptcp(
    server: &Namespace,
    client: &Namespace,
    listener: &TcpListener,
) -> Option<bool> {
    is_mptcp_to(listener.local_addr().unwrap(), server, client, listener)
}

/// As [`is_mptcp`], where the client reaches the listener at another `address` than its own.
pub(crate) fn is_mptcp_to(
    address: SocketAddr,
    server: &Namespace,
    client: &Namespace,
    listener: &TcpListener,
) -> Option<bool> {
    let mut talking = client.inside(|| mptcp_client(address));
    let (mut accepted, _) = listener.accept().unwrap();
    talking.write_all(b"refract").unwrap();
    let mut heard = [0; 7];
    accepted.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"refract");

    // What was accepted is a plain socket where the handshake was plain.
    let protocol = sockopt::socket_protocol(&accepted).unwrap();
    // Of a subflow `ss` shows `M` where the other end took part (MPTCP_SUBFLOW_FLAG_MCAP_REM,
    // linux/mptcp.h). A client that fell back shows only what it asked for.
    let port = talking.local_addr().unwrap().port();
    let subflows = |namespace: &Namespace, ends: String| {
        let shown = namespace.run(&format!("ss -HtniO state established '{ends}'"));
        assert_eq!(shown.lines().count(), 1, "{shown}");
        shown.contains(" tcp-ulp-mptcp flags:M")
    };
    let connections = server.run(&format!("ss -HMn state established 'dport = :{port}'"));
    let seen = [
        protocol == Some(ipproto::MPTCP),
        subflows(server, format!("dport = :{port}")),
        subflows(client, format!("sport = :{port}")),
        !connections.is_empty(),
    ];
    assert!(seen[0] || protocol == Some(ipproto::TCP));
    seen.iter().all(|one| *one == seen[0]).then_some(seen[0])
}
