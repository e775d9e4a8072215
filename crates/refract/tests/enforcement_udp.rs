//! What is done to an offender over UDP: packets are dropped and flows forgotten, while the
//! server's one socket serves everybody else.
//!
//! The daemon is the real one, the datagrams are real; the witnesses are their answers, the rule's
//! counters, `ipset list` and `conntrack -L`.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use support::{
    Result,
    access_log::accepted_line,
    datagram::{Flow, UdpServer},
    eventually,
    lab::{Host, Lab, SERVER_V4, SERVER_V6},
    peer::{Server, Talker},
    sidecar::Sidecar,
    witness,
};

const BOUND: Duration = Duration::from_secs(5);
const BANNED: &str = "refract_banned_users";
const BANNED6: &str = "refract_banned_users6";
const FLOWS: &str = "refract_banned_flows";
const FLOWS6: &str = "refract_banned_flows6";

/// A server on UDP and TCP port 443 in both families, and three devices in different places.
struct Scene {
    lab: Lab,
    incumbent: Host,
    newcomer: Host,
    other: Host,
    _servers: [UdpServer; 2],
    _echo: Server,
}

impl Scene {
    fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let incumbent = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
        let newcomer = lab.add_client(&["198.51.100.12", "2001:db8:12::2"])?;
        let other = lab.add_client(&["198.51.100.13", "2001:db8:13::2"])?;
        witness::track_connections(lab.server())?;
        let servers = [
            UdpServer::echo(lab.server(), SocketAddr::new(SERVER_V4.into(), 443))?,
            UdpServer::echo(lab.server(), SocketAddr::new(SERVER_V6.into(), 443))?,
        ];
        let echo = Server::echo(lab.server(), 443)?;
        Ok(Self { lab, incumbent, newcomer, other, _servers: servers, _echo: echo })
    }

    fn server(&self) -> &Host {
        self.lab.server()
    }
}

/// A family: the server's address, the set of it, the newcomer's address and how the set shows it.
const FAMILIES: [(IpAddr, &str, &str, &str); 2] = [
    (IpAddr::V4(SERVER_V4), BANNED, FLOWS, "198.51.100.12"),
    (IpAddr::V6(SERVER_V6), BANNED6, FLOWS6, "2001:db8:12::/64"),
];

fn own(host: &Host, server: IpAddr) -> Result<IpAddr> {
    if server.is_ipv4() { host.v4() } else { host.v6() }
}

#[test]
fn a_banned_address_is_dropped_and_its_flows_are_forgotten_while_the_socket_serves_on() -> Result<()>
{
    let scene = Scene::new()?;
    let sidecar = Sidecar::start(&scene.lab, &["--proto=udp"])?;
    for (server, set, _, member) in FAMILIES {
        let at = SocketAddr::new(server, 443);
        let source = own(&scene.newcomer, server)?;
        let held = Flow::open(&scene.incumbent, own(&scene.incumbent, server)?, at)?;
        let named = Flow::open(&scene.newcomer, source, at)?;
        let unnamed = Flow::open(&scene.newcomer, source, at)?;
        let tcp = Talker::connect(&scene.newcomer, source, at)?;
        assert_eq!(witness::tracked_flows(scene.server(), source)?.len(), 2);
        let user = format!("user-of-{member}");

        // A TCP peer is none of its business, and takes no place.
        let over_tcp = format!("tcp:{}", SocketAddr::new(own(&scene.other, server)?, 1));
        assert!(sidecar.take(accepted_line(over_tcp, &user))?.is_empty());
        let lines = accepted_line(held.local(), &user) + &accepted_line(named.local(), &user);
        let record = sidecar.take_one(lines)?;
        assert_eq!((record.action.as_str(), record.outcome.as_str()), ("ban", "ok"));
        assert_eq!((record.killed, record.flows), (0, 2), "{record:?}");
        assert!(witness::set_members(scene.server(), set)?.contains(&member.to_owned()));
        assert_eq!(witness::tracked_flows(scene.server(), source)?, Vec::<u16>::new());
        assert_dropped(scene.server(), set, &named)?;
        assert_dropped(scene.server(), set, &unnamed)?;

        held.exchange()?;
        assert_eq!(witness::tracked_flows(scene.server(), held.local().ip())?.len(), 1);
        Flow::open(&scene.other, own(&scene.other, server)?, at)?;
        tcp.wait_for_answers()?;
        Talker::connect(&scene.newcomer, source, at)?.wait_for_answers()?;
    }
    Ok(())
}

#[test]
fn a_peer_logged_with_udp_costs_the_flow_and_not_the_address() -> Result<()> {
    let scene = Scene::new()?;
    let sidecar = Sidecar::start(&scene.lab, &["--proto=udp"])?;
    for (server, set, flows, member) in FAMILIES {
        let at = SocketAddr::new(server, 443);
        let source = own(&scene.newcomer, server)?;
        let held = Flow::open(&scene.incumbent, own(&scene.incumbent, server)?, at)?;
        let named = Flow::open(&scene.newcomer, source, at)?;
        let unnamed = Flow::open(&scene.newcomer, source, at)?;
        let user = format!("user-of-{member}");
        let udp = |flow: &Flow| accepted_line(format!("udp:{}", flow.local()), &user);

        let record = sidecar.take_one(udp(&held) + &udp(&named))?;
        assert_eq!((record.action.as_str(), record.outcome.as_str()), ("flow", "ok"));
        assert_eq!((record.killed, record.flows), (0, 1), "{record:?}");
        assert_eq!(
            witness::set_members(scene.server(), flows)?,
            [format!("{source},udp:{}", named.local().port())]
        );
        assert!(!witness::set_members(scene.server(), set)?.contains(&member.to_owned()));
        let left = witness::tracked_flows(scene.server(), source)?;
        assert_eq!(left, [unnamed.local().port()]);
        assert_dropped(scene.server(), flows, &named)?;
        unnamed.exchange()?;
        held.exchange()?;
        Flow::open(&scene.newcomer, source, at)?;
    }
    Ok(())
}

#[test]
fn with_udp_ban_a_peer_logged_with_udp_costs_the_address() -> Result<()> {
    let scene = Scene::new()?;
    let sidecar = Sidecar::start(&scene.lab, &["--proto=udp", "--udp-ban"])?;
    for (server, set, flows, member) in FAMILIES {
        let at = SocketAddr::new(server, 443);
        let source = own(&scene.newcomer, server)?;
        let held = Flow::open(&scene.incumbent, own(&scene.incumbent, server)?, at)?;
        let named = Flow::open(&scene.newcomer, source, at)?;
        let unnamed = Flow::open(&scene.newcomer, source, at)?;
        let user = format!("user-of-{member}");
        let udp = |flow: &Flow| accepted_line(format!("udp:{}", flow.local()), &user);

        let record = sidecar.take_one(udp(&held) + &udp(&named))?;
        assert_eq!((record.action.as_str(), record.flows), ("ban", 2), "{record:?}");
        assert!(witness::set_members(scene.server(), set)?.contains(&member.to_owned()));
        assert_eq!(witness::set_members(scene.server(), flows)?, Vec::<String>::new());
        assert_dropped(scene.server(), set, &named)?;
        assert_dropped(scene.server(), set, &unnamed)?;
        held.exchange()?;
    }
    Ok(())
}

#[test]
fn with_both_transports_an_offender_loses_both_however_the_log_names_him() -> Result<()> {
    let scene = Scene::new()?;
    let sidecar = Sidecar::start(&scene.lab, &["--proto=tcp,udp"])?;
    let at = SocketAddr::new(SERVER_V4.into(), 443);
    let held = Talker::connect(&scene.incumbent, scene.incumbent.v4()?, at)?;
    for (prefix, host) in [("", &scene.newcomer), ("tcp:", &scene.other)] {
        let source = host.v4()?;
        let tcp = Talker::connect(host, source, at)?;
        let udp = Flow::open(host, source, at)?;
        let user = format!("user-of-{source}");
        let lines = accepted_line(format!("{prefix}{}", held.local()), &user)
            + &accepted_line(format!("{prefix}{}", tcp.local()), &user);
        let record = sidecar.take_one(lines)?;
        assert_eq!(record.action, "ban");
        assert_eq!((record.killed, record.flows), (1, 1), "{record:?}");
        tcp.wait_for_reset()?;
        assert_eq!(witness::tracked_flows(scene.server(), source)?, Vec::<u16>::new());
        assert_dropped(scene.server(), BANNED, &udp)?;
        held.wait_for_answers()?;
    }
    Flow::open(&scene.incumbent, scene.incumbent.v4()?, at)?.exchange()
}

/// What the flow sends is eaten by our rule, whose set is `set`.
#[track_caller]
fn assert_dropped(server: &Host, set: &str, flow: &Flow) -> Result<()> {
    let dropped = witness::packets_dropped(server, set)?;
    flow.send()?;
    eventually("the datagram to be dropped", BOUND, || {
        Ok((witness::packets_dropped(server, set)? > dropped).then_some(()))
    })
}
