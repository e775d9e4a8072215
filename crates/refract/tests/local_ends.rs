//! The log names only the client's end of a connection. Here the server's end is one that no
//! interface has, or one that is bound to a network device: it is learned, and then the kernel's
//! evidence holds there as everywhere.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use support::{
    LabError, Result,
    evidence::Device,
    lab::{Host, Lab, SERVER_V4},
    peer::{Server, Talker},
    sidecar::Sidecar,
    witness,
};

const BOUND: Duration = Duration::from_secs(10);
const WINDOW: &str = "--window=1s";
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11));
const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 12));
/// Routed to the server as local addresses, and on none of its interfaces.
const ANYIP: &str = "203.0.113.128/25";
const SERVED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 200));

#[test]
fn an_address_that_no_interface_has_is_learned() -> Result<()> {
    let mut lab = Lab::new()?;
    let first = lab.add_client(&["198.51.100.11"])?;
    let second = lab.add_client(&["198.51.100.12"])?;
    lab.server().output("ip", &["route", "add", "local", ANYIP, "dev", "lo"])?;
    let _echo = Server::echo(lab.server(), 443)?;
    sharing_is_cut(&lab, &first, &second, SERVED)
}

#[test]
fn a_listener_that_is_bound_to_a_network_device_is_learned() -> Result<()> {
    let mut lab = Lab::new()?;
    let first = lab.add_client(&["198.51.100.11", "198.51.100.12"])?;
    let listener = lab.server().run(|| bound_listener("to-client1"))?;
    let echoing = lab.server().start_thread(move || {
        for connection in listener.incoming().map_while(std::io::Result::ok) {
            thread::spawn(move || std::io::copy(&mut &connection, &mut &connection));
        }
        Ok(())
    });
    sharing_is_cut(&lab, &first, &first, SERVER_V4.into())?;
    // It ends with the process; nothing waits for it.
    drop(echoing);
    Ok(())
}

/// Two devices that share an account at `served`: the second is cut, so both were verified.
fn sharing_is_cut(lab: &Lab, first: &Host, second: &Host, served: IpAddr) -> Result<()> {
    let daemon = Sidecar::start_asking(lab, &[WINDOW])?;
    let at = SocketAddr::new(served, 443);
    let mut verified = 0;
    let mut opened = |host: &Host, source: IpAddr| -> Result<Talker> {
        let talker = Talker::connect(host, source, at)?;
        talker.progress().wait_for_bytes(1, BOUND)?;
        daemon.log().accepted(talker.local(), "alice")?;
        verified += 1;
        daemon.status_once("the connection to be verified", |status| {
            Ok(status.count("verified")? == verified)
        })?;
        Ok(talker)
    };
    let held = opened(first, HOME)?;
    let shared = opened(second, AWAY)?;
    let mut senior = Device::new(&daemon, first, HOME, at, "alice");
    let mut junior = Device::new(&daemon, second, AWAY, at, "alice");
    let (record, _) = daemon.until_cut(&mut senior, &mut junior, BOUND)?;
    assert_eq!((record.action.as_str(), record.evidence.as_str()), ("ban", "kernel"));
    assert_eq!(record.source, AWAY.to_string());
    assert_eq!(witness::set_members(lab.server(), "refract_banned_users")?, [AWAY.to_string()]);
    shared.wait_for_reset()?;
    held.wait_for_answers()
}

fn bound_listener(device: &str) -> Result<TcpListener> {
    let what = format!("listen on {device}");
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(LabError::while_trying(&what))?;
    socket2::SockRef::from(&socket)
        .bind_device(Some(device.as_bytes()))
        .map_err(LabError::while_trying(&what))?;
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 443);
    bind(&socket, &any).map_err(LabError::while_trying(&what))?;
    listen(&socket, 16).map_err(LabError::while_trying(what))?;
    Ok(TcpListener::from(socket))
}
