//! The real proxy in the lab, without the daemon: what the end-to-end test builds on.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{net::IpAddr, time::Duration};

use support::{
    Result,
    lab::{Lab, SERVER_V4, SERVER_V6},
    peer::Ending,
    proxy::{ALICE, BOB, Device, Program, Protocol, ProxyServer},
    witness,
};

const PORT: u16 = 8443;
const BOUND: Duration = Duration::from_secs(10);

#[test]
fn two_devices_of_one_account_fetch_through_vless_and_the_log_names_both() -> Result<()> {
    two_devices_of_one_account(Protocol::Vless)
}

#[test]
fn two_devices_of_one_account_fetch_through_vmess_and_the_log_names_both() -> Result<()> {
    two_devices_of_one_account(Protocol::Vmess)
}

fn two_devices_of_one_account(protocol: Protocol) -> Result<()> {
    let mut lab = Lab::new()?;
    let first = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
    let second = lab.add_client(&["198.51.100.12", "2001:db8:12::2"])?;
    let program = Program::find()?;
    let server = ProxyServer::start(&lab, &program, protocol, PORT)?;
    for (server_address, first_address, second_address) in [
        (IpAddr::from(SERVER_V4), first.v4()?, second.v4()?),
        (IpAddr::from(SERVER_V6), first.v6()?, second.v6()?),
    ] {
        let device = |host, source| {
            Device::start(&lab, &program, &server, host, (source, server_address), &ALICE)
        };
        let one = device(&first, first_address)?;
        let two = device(&second, second_address)?;
        one.fetch(100_000, BOUND)?;
        let stream = one.stream(BOUND)?;
        stream.progress().wait_for_bytes(10_000, BOUND)?;
        two.fetch(100_000, BOUND)?;
        let another = two.stream(BOUND)?;
        another.progress().wait_for_bytes(10_000, BOUND)?;
        stream.progress().wait_for_bytes(10_000, BOUND)?;

        for source in [first_address, second_address] {
            let peers = witness::established_with(lab.server(), source)?;
            assert!(!peers.is_empty(), "{source} streams, so it has a connection");
            for peer in peers {
                let from = format!("{peer} accepted tcp:10.77.0.1:80 ");
                let line = witness::wait_for_line(server.access_log(), &from, BOUND)?;
                assert!(line.ends_with("email: alice@example.com"), "{line}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_device_whose_connection_is_reset_loses_its_stream_and_the_other_does_not() -> Result<()> {
    let mut lab = Lab::new()?;
    let first = lab.add_client(&["198.51.100.11"])?;
    let second = lab.add_client(&["198.51.100.12"])?;
    let program = Program::find()?;
    let server = ProxyServer::start(&lab, &program, Protocol::Vless, PORT)?;
    let device = |host, source, user| {
        let addresses = (source, IpAddr::from(SERVER_V4));
        Device::start(&lab, &program, &server, host, addresses, user)
    };
    let alice = device(&first, first.v4()?, &ALICE)?;
    let bob = device(&second, second.v4()?, &BOB)?;
    let kept = alice.stream(BOUND)?;
    let cut = bob.stream(BOUND)?;
    cut.progress().wait_for_bytes(1, BOUND)?;

    lab.server().output("ss", &["-K", "-tn", "dst", &second.v4()?.to_string()])?;
    let ending = cut.progress().wait_for_end(BOUND)?;
    assert!(matches!(ending, Ending::Reset(_) | Ending::Closed(_)), "{ending:?}");
    kept.progress().wait_for_bytes(10_000, BOUND)?;
    assert_eq!(kept.progress().ending(), None);
    bob.fetch(1_000, BOUND)
}
