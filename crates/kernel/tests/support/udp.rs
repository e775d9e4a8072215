//! Single packets over loopback, which arrive at once or never.

use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
};

/// A packet from `from` to `to` arrives at once or never: loopback delivers before `send` returns.
pub(crate) fn arrives(from: (&str, u16), to: &UdpSocket) -> bool {
    let sender = UdpSocket::bind((from.0.parse::<IpAddr>().unwrap(), from.1)).unwrap();
    sender.send_to(b"?", to.local_addr().unwrap()).unwrap();
    match to.recv_from(&mut [0; 1]) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn server(address: &str) -> UdpSocket {
    let server = UdpSocket::bind((address.parse::<IpAddr>().unwrap(), 443)).unwrap();
    server.set_nonblocking(true).unwrap();
    server
}
