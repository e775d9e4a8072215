//! TCP servers and clients, and what holds for them.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

/// The wildcard addresses a server may listen on, each with an address to reach it by.
pub(crate) const LISTENERS: [(&str, &str); 3] =
    [("0.0.0.0:443", "127.0.0.1:443"), ("[::]:443", "[::1]:443"), ("[::]:443", "127.0.0.1:443")];

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A stream on which a byte that never comes is a failure and not a hang.
pub(crate) fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// A client of `listener`, connected to it at `to`, and the server's end.
pub(crate) fn pair(listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = patient(TcpStream::connect(to).unwrap());
    (client, patient(listener.accept().unwrap().0))
}

#[track_caller]
pub(crate) fn assert_alive(client: &mut TcpStream, server: &mut TcpStream) {
    let mut byte = [0];
    client.write_all(b"c").unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(b"s").unwrap();
    client.read_exact(&mut byte).unwrap();
}

#[track_caller]
pub(crate) fn assert_accepts(listener: &TcpListener, to: SocketAddr) {
    let (mut client, mut server) = pair(listener, to);
    assert_alive(&mut client, &mut server);
}

/// Ends both directions, and has seen both ends when it returns. Dropping would not do: a child that
/// another test is just starting may hold the socket a moment longer.
pub(crate) fn close_in_turn(mut first: &TcpStream, mut second: &TcpStream) {
    let mut rest = Vec::new();
    first.shutdown(Shutdown::Write).unwrap();
    second.read_to_end(&mut rest).unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    first.read_to_end(&mut rest).unwrap();
}
