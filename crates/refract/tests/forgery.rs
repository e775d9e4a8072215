//! A forged line has no power: nobody is banned, nobody is disconnected, nobody loses a place.
//!
//! Anybody whose traffic the proxy carries can make it write a line that he chose: with a line feed
//! in a name, or a header, or one spoofed datagram. Here such lines are written into the log of the
//! real daemon while the connections that they speak of, or do not, are real ones. The witnesses are
//! those connections, the sets, the block log and the daemon's counters; and each time a shared
//! account is cut afterwards, so that it is known that nothing was asleep.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    access_log::accepted_line,
    datagram::{Flow, UdpServer},
    eventually,
    evidence::{BOUND, Device, Status, banned, online, resident, unnamed},
    lab::{Lab, SERVER_V4},
    peer::{Server, Talker, connect_from},
    sidecar::Sidecar,
    stage::Stage,
    witness,
};

const AT: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 443);
const FIRST: &str = "--keep=first";
const LAST: &str = "--keep=last";
const WINDOW: Duration = Duration::from_secs(1);
/// Long enough for a verdict several times over.
const ENOUGH: Duration = Duration::from_secs(3);
/// How often an attacker repeats himself.
const OFTEN: Duration = Duration::from_millis(50);

/// Of the people's addresses, 198.18.1.0/24 are victims', 198.18.2.0/24 strangers' and 198.18.3.0/24
/// those of two who share.
impl Stage {
    fn victim<'a>(&'a self, sidecar: &'a Sidecar, number: u8) -> Device<'a> {
        Device::new(sidecar, &self.people, address([198, 18, 1, number]), AT, &victim(number))
    }

    /// Nothing was done to anybody so far; and then two who share are cut, so that it is known that
    /// it could have been.
    fn nothing_was_done(&self, sidecar: &Sidecar, keep: &str) -> Result<Status> {
        let status = sidecar.settled()?;
        let records = sidecar.records()?;
        assert!(records.is_empty(), "{}", sidecar.trouble("something was done"));
        assert_eq!(banned(self.lab.server())?, Vec::<String>::new());
        for nothing in ["overlap", "asked", "on_sight", "other_family", "offenders"] {
            assert_eq!(status.count(nothing)?, 0, "{nothing}: {status}");
        }
        let device = |last| {
            Device::new(
                sidecar,
                &self.people,
                address([198, 18, 3, last]),
                AT,
                "sharer@example.com",
            )
        };
        let (record, _) = sidecar.until_cut(&mut device(1), &mut device(2), BOUND)?;
        let goes = if keep == LAST { "198.18.3.1" } else { "198.18.3.2" };
        assert_eq!((record.action.as_str(), record.source.as_str()), ("ban", goes));
        Ok(status)
    }
}

#[test]
fn every_attack_of_the_corpus_changes_nothing_for_who_is_online() -> Result<()> {
    let mut lab = Lab::new()?;
    let home = lab.add_client(&["198.51.100.11"])?;
    let attacker = lab.add_client(&["198.51.100.21", "198.51.100.22", "6.6.6.6"])?;
    let people = lab.add_client(&["198.18.3.1", "198.18.3.2"])?;
    let _echo = Server::echo(lab.server(), 443)?;
    let sidecar = Sidecar::start_asking(&lab, &[])?;
    let mut alice = Device::new(&sidecar, &home, home.v4()?, AT, "alice@example.com");
    alice.browse()?;
    let mut lines = 0;
    let files = attacks()?;
    assert!(files.len() > 20, "{files:?}");

    // The worst case: whatever the attacks name is really connected, and moves.
    let named: BTreeSet<SocketAddr> = files
        .iter()
        .map(|file| peers_of(file))
        .collect::<Result<Vec<_>>>()?
        .concat()
        .into_iter()
        .collect();
    let attackers = ["198.51.100.21", "198.51.100.22", "6.6.6.6"];
    let named = named.into_iter().filter(|peer| {
        // One was recorded with alice's own credentials: that line is honest, and would be her.
        peer.to_string() != "198.51.100.21:44997"
            && attackers.contains(&peer.ip().to_string().as_str())
    });
    let attackers =
        named.map(|peer| Talker::connect_as(&attacker, peer, AT)).collect::<Result<Vec<_>>>()?;
    assert!(attackers.len() > 10, "{}", attackers.len());

    for _ in 0..3 {
        for file in &files {
            let attack = read(file)?;
            lines += memchr::memchr_iter(b'\n', &attack).count();
            sidecar.log().write(&attack)?;
            thread::sleep(OFTEN / 2);
            alice.browse()?;
        }
    }
    let status = sidecar.settled()?;
    assert!(sidecar.records()?.is_empty(), "{}", sidecar.trouble("something was done"));
    assert_eq!(banned(lab.server())?, Vec::<String>::new());
    assert!(status.count("lines")? >= lines as u64, "{status}");
    for counted in ["tainted", "invalid_names", "unverified"] {
        assert!(status.count(counted)? > 0, "{counted}: {status}");
    }
    for nothing in ["overlap", "asked", "on_sight"] {
        assert_eq!(status.count(nothing)?, 0, "{nothing}: {status}");
    }
    assert_eq!(alice.resets, 0);
    for talker in alice.open().iter().chain(&attackers) {
        talker.wait_for_answers()?;
    }
    let device = |last| {
        let source = address([198, 18, 3, last]);
        Device::new(&sidecar, &people, source, AT, "sharer@example.com")
    };
    sidecar.until_cut(&mut device(1), &mut device(2), BOUND)?;
    Ok(())
}

#[test]
fn a_line_for_a_peer_that_does_not_exist_does_nothing_to_anybody() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let mut alice = stage.victim(&sidecar, 1);
    let stranger =
        online(&sidecar, &stage.people, address([198, 18, 2, 1]), AT, "stranger@example.com")?;
    let next_port = SocketAddr::new(stranger.local().ip(), stranger.local().port() ^ 1);
    let begun = Instant::now();
    let mut forged = 0;
    while begun.elapsed() < ENOUGH {
        alice.browse()?;
        for peer in ["198.18.9.9:40000".parse().unwrap(), next_port] {
            sidecar.log().accepted(peer, &victim(1))?;
            forged += 1;
        }
        thread::sleep(OFTEN);
    }
    let status = stage.nothing_was_done(&sidecar, FIRST)?;
    assert_eq!(status.count("unverified")?, forged, "{status}");
    assert_eq!(alice.resets, 0);
    stranger.wait_for_answers()?;
    alice.open()[0].wait_for_answers()
}

#[test]
fn a_line_for_a_strangers_live_connection_does_nothing_to_him_nor_to_who_is_named() -> Result<()> {
    for keep in [FIRST, LAST] {
        let stage = Stage::new()?;
        let sidecar = Sidecar::start_asking(&stage.lab, &[keep])?;
        let mut alice = stage.victim(&sidecar, 1);
        alice.browse()?;
        let mut strangers = Vec::new();
        for number in 1..=4 {
            let stranger = unnamed(&stage.people, address([198, 18, 2, number]), AT)?;
            let own = accepted_line(stranger.local(), &format!("stranger-{number}"));
            let forged = accepted_line(stranger.local(), &victim(1));
            let lines = if number % 2 == 0 { own + &forged } else { forged + &own };
            sidecar.log().write(lines.as_bytes())?;
            strangers.push(stranger);
            alice.browse()?;
        }
        let begun = Instant::now();
        while begun.elapsed() < ENOUGH {
            alice.browse()?;
            for stranger in &strangers {
                sidecar.log().accepted(stranger.local(), &victim(1))?;
            }
            thread::sleep(OFTEN);
        }
        let status = stage.nothing_was_done(&sidecar, keep)?;
        assert!(status.count("carriers")? >= 8, "{status}");
        assert_eq!(alice.resets, 0);
        for talker in strangers.iter().chain(alice.open()) {
            talker.wait_for_answers()?;
        }
    }
    Ok(())
}

#[test]
fn the_attackers_own_connection_gives_his_words_no_weight() -> Result<()> {
    attackers_own_connections(FIRST)
}

#[test]
fn the_attackers_own_connection_gives_his_words_no_weight_where_the_last_login_wins() -> Result<()>
{
    attackers_own_connections(LAST)
}

/// How a forged line comes to name the attacker's own connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// It stands right behind a name that is none, as Xray writes it.
    BehindName,
    /// It stands alone, but the connection was refused before.
    Refused,
}

/// Every way, with a connection that is silent or kept moving (as one to a fallback server, which no
/// line ever names), against a user who is online or offline.
fn attackers_own_connections(keep: &str) -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[keep])?;
    let mut number = 0;
    let mut attacks = Vec::new();
    for way in [Way::BehindName, Way::Refused] {
        for moving in [false, true] {
            for is_online in [false, true] {
                number += 1;
                let own = unnamed(&stage.crowd, address([198, 19, 0, number]), AT)?;
                if !moving {
                    own.be_quiet();
                }
                attacks.push((way, is_online, own, stage.victim(&sidecar, number), victim(number)));
            }
        }
    }
    let injector = unnamed(&stage.crowd, address([198, 19, 1, 1]), AT)?;
    let begun = Instant::now();
    while begun.elapsed() < 2 * ENOUGH {
        for (way, is_online, own, device, user) in &mut attacks {
            let forged = accepted_line(own.local(), user);
            // Who was offline comes online in the midst of it.
            if *is_online || begun.elapsed() > ENOUGH {
                device.browse()?;
            }
            let lines = match way {
                Way::BehindName => refused_name(injector.local()) + &forged,
                Way::Refused => refused_user(own.local()) + &forged,
            };
            // What comes next is far enough from that to be believed.
            let others = accepted_line("198.18.9.9:40000", "nobody@example.com").repeat(3);
            sidecar.log().write((lines + &others).as_bytes())?;
        }
        thread::sleep(OFTEN);
    }
    let status = stage.nothing_was_done(&sidecar, keep)?;
    // The eight, and nobody else: each of them has had the word all along.
    assert_eq!(status.count("users")?, 8, "{status}");
    assert!(status.count("tainted")? > 100, "{status}");
    assert!(status.count("refused")? > 100, "{status}");
    for (way, _, own, device, user) in &attacks {
        assert_eq!(device.resets, 0, "{user}, {way:?}");
        own.talk_on();
        for talker in device.open().iter().chain([own]) {
            talker.wait_for_answers()?;
        }
    }
    Ok(())
}

#[test]
fn a_forged_refusal_takes_nobodys_connection_out_of_sight_and_a_forged_port_0_names_no_hider()
-> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let device =
        |last| Device::new(&sidecar, &stage.people, address([198, 18, 3, last]), AT, "sharer");
    let (mut senior, mut junior) = (device(1), device(2));
    let injector = unnamed(&stage.crowd, address([198, 19, 1, 1]), AT)?;
    let begun = Instant::now();
    let record = loop {
        senior.browse()?;
        junior.browse()?;
        // The two say in a name that is none that every connection of theirs was refused, and that
        // somebody else hides.
        let mut lines = String::new();
        for talker in senior.open().iter().chain(junior.open()) {
            lines += &(refused_name(injector.local()) + &refused_user(talker.local()));
        }
        lines += &(refused_name(injector.local()) + &accepted_line("198.18.1.1:0", &victim(1)));
        lines += &accepted_line("198.18.9.9:40000", "nobody@example.com").repeat(3);
        sidecar.log().write(lines.as_bytes())?;
        if let Some(record) = sidecar.records()?.into_iter().find(|it| it.action == "ban") {
            break record;
        }
        if begun.elapsed() > BOUND {
            return Err(sidecar.trouble("the two were not cut"));
        }
        thread::sleep(OFTEN);
    };
    assert_eq!(record.source, "198.18.3.2");
    assert!(senior.resets <= sidecar.asked("198.18.3.1")?, "reset without a question");
    let status = sidecar.settled()?;
    assert_eq!(status.count("hiding_users")?, 0, "{status}");
    Ok(())
}

#[test]
fn a_line_right_behind_one_that_is_too_long_is_nobodys_word() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let attacker = unnamed(&stage.crowd, address([198, 19, 0, 1]), AT)?;
    // Both in one write, and so in one read.
    let mut attack = vec![b'x'; 20_000];
    attack.push(b'\n');
    attack.extend(accepted_line(attacker.local(), &victim(1)).bytes());
    sidecar.log().write(&attack)?;
    let status =
        sidecar.status_once("the lines to be read", |status| Ok(status.count("lines")? == 1))?;
    assert_eq!((status.count("tainted")?, status.count("verified")?), (1, 0), "{status}");
    Ok(())
}

#[test]
fn a_line_for_a_handshake_that_was_never_finished_does_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    // As if the address were another's: the answers to its SYN reach nobody who would finish.
    let answers = ["-p", "tcp", "--sport", "443", "--tcp-flags", "SYN,ACK", "SYN,ACK"];
    stage.crowd.output("iptables", &[&["-I", "INPUT"], &answers[..], &["-j", "DROP"]].concat())?;
    let spoofed: SocketAddr = "198.19.0.1:41000".parse().unwrap();
    let mut alice = stage.victim(&sidecar, 1);
    let half_open = stage.crowd.start_thread(move || {
        Ok(connect_from(spoofed, AT, Duration::from_secs(6)).map(drop).map_err(|it| it.kind()))
    });
    let is_half_open = || {
        let wanted = spoofed.ip().to_string();
        stage.lab.server().output("ss", &["-Htn", "state", "syn-recv", "dst", &wanted])
    };
    eventually("a connection in SYN_RECV", BOUND, || {
        Ok((!is_half_open()?.is_empty()).then_some(()))
    })?;
    let begun = Instant::now();
    let mut forged = 0;
    while begun.elapsed() < ENOUGH {
        alice.browse()?;
        sidecar.log().accepted(spoofed, &victim(1))?;
        forged += 1;
        thread::sleep(OFTEN);
    }
    assert!(is_half_open()?.contains(":41000"), "it was half open all the time");
    let status = stage.nothing_was_done(&sidecar, FIRST)?;
    assert_eq!(status.count("unverified")?, forged, "{status}");
    assert_eq!(alice.resets, 0);
    alice.open()[0].wait_for_answers()?;
    assert_eq!(half_open.join().unwrap()?.err(), Some(std::io::ErrorKind::TimedOut));
    Ok(())
}

#[test]
fn one_spoofed_datagram_costs_at_most_that_flow() -> Result<()> {
    for proto in ["--proto=tcp", "--proto=tcp,udp"] {
        let stage = Stage::new()?;
        let _udp = UdpServer::echo(stage.lab.server(), AT)?;
        let sidecar = Sidecar::start_asking(&stage.lab, &[proto])?;
        let mut alice = stage.victim(&sidecar, 1);
        alice.browse()?;
        let bystander =
            online(&sidecar, &stage.people, address([198, 18, 2, 1]), AT, "bystander@example.com")?;
        let bystanders_flow = Flow::open(&stage.people, bystander.local().ip(), AT)?;
        let flow = Flow::open(&stage.people, address([198, 18, 1, 1]), AT)?;
        let udp = |peer: SocketAddr| accepted_line(format!("udp:{peer}"), &victim(1));
        sidecar.log().write(udp(flow.local()).as_bytes())?;
        // From a port of the bystander's that he does not use.
        let spoofed = SocketAddr::new(bystander.local().ip(), bystanders_flow.local().port() ^ 1);
        let begun = Instant::now();
        while begun.elapsed() < 3 * WINDOW {
            alice.browse()?;
            sidecar.log().write((udp(flow.local()) + &udp(spoofed)).as_bytes())?;
            thread::sleep(OFTEN);
        }
        if proto == "--proto=tcp" {
            let status = stage.nothing_was_done(&sidecar, FIRST)?;
            assert!(status.count("other_transport")? > 10, "{status}");
        } else {
            // A line that has been read need not be on record yet.
            sidecar.wait_for_record("a record of the flow", |it| it.action == "flow")?;
            sidecar.settled()?;
            for record in sidecar.records()? {
                assert_eq!(record.action, "flow", "{record:?}");
                assert_eq!((record.peers.as_slice(), record.killed), (&[spoofed][..], 0));
            }
            let members = witness::set_members(stage.lab.server(), "refract_banned_users")?;
            assert_eq!(members, Vec::<String>::new());
            let members = banned(stage.lab.server())?;
            assert_eq!(members, [format!("{},udp:{}", spoofed.ip(), spoofed.port())]);
        }
        flow.exchange()?;
        bystanders_flow.exchange()?;
        assert_eq!(alice.resets, 0);
        for talker in alice.open().iter().chain([&bystander]) {
            talker.wait_for_answers()?;
        }
    }
    Ok(())
}

#[test]
fn a_line_for_a_connection_older_than_the_daemon_does_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let older = unnamed(&stage.people, address([198, 18, 2, 1]), AT)?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let mut alice = stage.victim(&sidecar, 1);
    let begun = Instant::now();
    let mut forged = 0;
    while begun.elapsed() < ENOUGH {
        alice.browse()?;
        sidecar.log().accepted(older.local(), &victim(1))?;
        forged += 1;
        thread::sleep(OFTEN);
    }
    let status = stage.nothing_was_done(&sidecar, FIRST)?;
    assert_eq!(status.count("older")?, forged, "{status}");
    assert_eq!(alice.resets, 0);
    older.wait_for_answers()?;
    alice.open()[0].wait_for_answers()
}

#[test]
fn a_hundred_thousand_lines_that_the_kernel_contradicts_leave_nothing_behind() -> Result<()> {
    const LINES: u32 = 100_000;
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let mut alice = stage.victim(&sidecar, 1);
    alice.browse()?;
    let flood = |numbers: std::ops::Range<u32>| -> Result<Status> {
        let mut lines = String::new();
        for number in numbers {
            let [_, high, middle, low] = number.to_be_bytes();
            let peer = format!("100.{}.{middle}.{low}:4000", 64 + high);
            // The real user's name, and as many others.
            let user = if number % 2 == 0 { victim(1) } else { format!("user-{number}") };
            lines += &accepted_line(peer, &user);
            if lines.len() > 64 * 1024 {
                sidecar.log().write(lines.as_bytes())?;
                lines.clear();
            }
        }
        sidecar.log().write(lines.as_bytes())?;
        sidecar.settled()
    };
    flood(0..LINES / 10)?;
    let before = resident(sidecar.id()?)?;
    let status = flood(LINES / 10..LINES)?;
    let grown = resident(sidecar.id()?)?.saturating_sub(before);
    assert!(grown < 1_024, "the daemon grew by {grown} kB");
    assert_eq!(status.count("unverified")?, u64::from(LINES), "{status}");
    assert_eq!((status.count("users")?, status.count("connections")?), (1, 1), "{status}");
    alice.browse()?;
    stage.nothing_was_done(&sidecar, FIRST)?;
    assert_eq!(alice.resets, 0);
    Ok(())
}

fn victim(number: u8) -> String {
    format!("alice-{number}@example.com")
}

fn address(octets: [u8; 4]) -> IpAddr {
    octets.into()
}

/// What Xray writes when a client's name is none; a name of his that ends in a line feed, and whatever
/// he likes behind it, would stand there.
fn refused_name(peer: SocketAddr) -> String {
    let now = jiff::Timestamp::now().strftime("%Y/%m/%d %H:%M:%S%.6f");
    format!(
        "{now} from {peer} rejected  proxy/trojan: failed to read address and port > \
         common/protocol: invalid domain name: a\n"
    )
}

/// What Xray writes when a client does not know any user's id.
fn refused_user(peer: SocketAddr) -> String {
    let now = jiff::Timestamp::now().strftime("%Y/%m/%d %H:%M:%S%.6f");
    format!("{now} from {peer} rejected  proxy/vless/encoding: invalid request user id\n")
}

/// The recorded attacks, and what was recorded of headers that clients choose.
fn attacks() -> Result<Vec<PathBuf>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/corpus");
    let listing = fs::read_dir(&corpus).map_err(LabError::while_trying("list the corpus"))?;
    let mut files: Vec<PathBuf> = listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.to_string_lossy();
            ["inject", "proxyproto", "xff"].iter().any(|kind| name.contains(kind))
        })
        .collect();
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).map_err(LabError::while_trying(format!("read {}", file.display())))
}

/// Every peer that a file's lines name, whatever they say of it.
fn peers_of(file: &Path) -> Result<Vec<SocketAddr>> {
    let text = String::from_utf8_lossy(&read(file)?).into_owned();
    let words = text.split_whitespace().map(|word| word.trim_start_matches("tcp:"));
    let peers = words.filter_map(|word| word.parse::<SocketAddr>().ok());
    Ok(peers.filter(|peer| peer.port() > 1_024).collect())
}
