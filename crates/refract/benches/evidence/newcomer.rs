//! What one look for a newcomer takes, with 20,000 sockets open on the protected port.
//!
//! Takes no daemon: it calls [`Witness`] as the daemon does, in a host of its own. The connections
//! are held by child processes, because one may not open so many files. Their local ends are eight,
//! and each in turn is asked for where the *last* that is tried has to be the right one, because the
//! witness tries first what was right before.

use std::{
    env,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use refract::{clock::Clock, ports::Ports, witness::Witness};
use refract_core::{Found, Peer};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::{
    measuring::samples,
    support::{
        LabError, Result,
        lab::{Host, Lab},
    },
};

/// The first argument that makes this program hold connections.
pub(crate) const WORD: &str = "--hold-connections";
/// Child processes.
const HOLDERS: u8 = 4;
/// Local addresses that one of them listens on.
const ADDRESSES: u8 = 2;
/// Connections that one of them holds with `--bench`, both ends of each.
const HELD: u16 = 5_000;
/// And without.
const FEW_HELD: u16 = 50;
const PORT: u16 = 443;
const CLIENT_PORT: u16 = 40_001;
/// Looks in one row with `--bench`.
const LOOKS: u32 = 20_000;
/// The median look may take this long, where there are eight pairs of address and port or fewer.
const LONGEST: Duration = Duration::from_micros(10);

/// Measures and prints.
pub(crate) fn measure(is_full: bool) -> Result<()> {
    let lab = Lab::new()?;
    let server = lab.server();
    server.output("sysctl", &["-qw", "net.ipv4.tcp_max_syn_backlog=8192"])?;
    let held = if is_full { HELD } else { FEW_HELD };
    let looks = if is_full { LOOKS } else { 500 };
    let _holders = (0..HOLDERS)
        .map(|holder| Holder::start(server, holder, held))
        .collect::<Result<Vec<Holder>>>()?;
    let listing = server.output("ss", &["-Htn", "state", "established", "sport", "443"])?;
    println!(
        "microseconds for one look for a connection; {} are open on the port",
        listing.lines().count()
    );
    println!();
    samples::print_head("pairs of address and port");
    let rows = server.run(|| looks_at(held, looks))?;
    for (name, what, taken) in &rows {
        samples::print_row(name, what, taken);
    }
    println!();
    let slowest = rows.iter().map(|(_, _, taken)| samples::median(taken)).max().unwrap_or_default();
    println!(
        "the slowest p50 is {:.1} µs; at most {LONGEST:?} with eight pairs: {}",
        slowest.as_secs_f64() * 1e6,
        samples::kept(slowest <= LONGEST)
    );
    Ok(())
}

type Row = (&'static str, &'static str, Vec<Duration>);

fn looks_at(held: u16, looks: u32) -> Result<Vec<Row>> {
    let all: Vec<IpAddr> = (0..HOLDERS * ADDRESSES).map(|place| local(place).into()).collect();
    let one = all.get(..1).unwrap_or_default();
    let of_one = |n: u32| Some((0, numbered(n, held)));
    let of_all = |n: u32| u8::try_from(n % 8).ok().map(|place| (place, numbered(n / 8, held)));
    Ok(vec![
        ("1 pair", "found", look(one, looks, 1, of_one)?),
        ("1 pair", "not found", look(one, looks, 1, |_| None)?),
        ("8 pairs", "found at the first", look(&all, looks, 1, of_one)?),
        ("8 pairs", "found at the last", look(&all, looks, 8, of_all)?),
        ("8 pairs", "not found", look(&all, looks, 8, |_| None)?),
    ])
}

/// Looks for connections, each given as the place of its local end and its number there, or for
/// one that there is not; `tries` is how many pairs are tried for each.
fn look(
    addresses: &[IpAddr],
    looks: u32,
    tries: u64,
    which: impl Fn(u32) -> Option<(u8, u16)>,
) -> Result<Vec<Duration>> {
    let ports: Ports = "443".parse().map_err(LabError::while_trying("take a port"))?;
    let mut witness = Witness::open(&ports, Clock::start())
        .map_err(LabError::while_trying("look at the kernel's sockets"))?;
    witness.refresh(addresses, &ports);
    let mut taken = Vec::new();
    let warm_up = looks / 10;
    for n in 0..looks + warm_up {
        let wanted = which(n);
        let address = match wanted {
            Some((place, number)) => remote(place, number),
            None => Ipv4Addr::new(127, 9, 9, 9),
        };
        let before = witness.lookups;
        let began = Instant::now();
        let found = witness.look_up(Peer { address: address.into(), port: CLIENT_PORT }, began);
        let elapsed = began.elapsed();
        let local = wanted.map(|(place, _)| SocketAddr::new(local(place).into(), PORT));
        let is_right = found.map(|Found { link, .. }| link.local) == local;
        if n < warm_up {
            continue;
        }
        if !is_right || witness.lookups - before != tries {
            return Err(LabError::new(format!("{wanted:?} took another look than it was to take")));
        }
        taken.push(elapsed);
    }
    Ok(taken)
}

/// Spreads looks over the connections, so that the next one is not the last one's neighbour.
fn numbered(n: u32, held: u16) -> u16 {
    let of_each = u32::from(held) / u32::from(ADDRESSES);
    u16::try_from(n.wrapping_mul(2_654_435_761) % of_each).unwrap_or_default()
}

fn local(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 1 + place)
}

fn remote(place: u8, number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 10 + place, high, low)
}

/// Holds connections of a dual-stack socket until its standard input ends.
pub(crate) fn hold(arguments: &[String]) -> Result<()> {
    let [holder, held] = arguments else {
        return Err(LabError::new(format!("{WORD} takes HOLDER COUNT")));
    };
    let holder: u8 = holder.parse().map_err(LabError::while_trying("read HOLDER"))?;
    let held: u16 = held.parse().map_err(LabError::while_trying("read COUNT"))?;
    let what = "hold a connection";
    let mut connections = Vec::new();
    for place in holder * ADDRESSES..(holder + 1) * ADDRESSES {
        let mapped = SocketAddr::new(local(place).to_ipv6_mapped().into(), PORT);
        let listener = TcpListener::bind(mapped).map_err(LabError::while_trying(what))?;
        for number in 0..held / u16::from(ADDRESSES) {
            let connect_one = || {
                let client = socket(AddressFamily::INET, SocketType::STREAM, None)?;
                let source = SocketAddr::new(remote(place, number).into(), CLIENT_PORT);
                bind(&client, &source)?;
                connect(&client, &SocketAddr::new(local(place).into(), PORT))?;
                Ok::<_, std::io::Error>((client, listener.accept()?))
            };
            connections.push(connect_one().map_err(LabError::while_trying(what))?);
        }
    }
    println!("holding");
    std::io::stdin().read_to_end(&mut Vec::new()).map_err(LabError::while_trying(what))?;
    Ok(())
}

/// A child that holds connections; it ends when dropped.
struct Holder(Child);

impl Holder {
    fn start(server: &Host, holder: u8, held: u16) -> Result<Self> {
        let what = "start a process that holds connections";
        let mut command = Command::new(env::current_exe().map_err(LabError::while_trying(what))?);
        command.args([WORD, &holder.to_string(), &held.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = server.spawn(command)?;
        let mut ready = [0; "holding".len()];
        let out = child.stdout.as_mut().ok_or_else(|| LabError::new("a child without a pipe"))?;
        out.read_exact(&mut ready).map_err(LabError::while_trying(what))?;
        Ok(Self(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends with its standard input.
        let _ = self.0.wait();
    }
}
