//! Who shares an address with an offender keeps everything: his connections, his bytes, his way in.
//!
//! The daemon asks the kernel; offices are one host with one address. The witnesses are the
//! connections themselves, each byte of which is compared, the sets, the records and the counters.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use support::{
    LabError, Result,
    evidence::{BOUND, Device, banned, online, unnamed},
    lab::{Host, Lab, SERVER_V4},
    peer::{CONNECT_BOUND, Server, connect_from},
    sidecar::{Record, Sidecar},
    witness,
};

const AT: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 443);
const BANNED: &str = "refract_banned_users";
const OFFICE: &str = "198.51.100.12";
const HOME: &str = "198.51.100.11";

/// A connection on which every byte is answered, and compared.
struct Colleague {
    over: Arc<AtomicBool>,
    working: JoinHandle<Result<u64>>,
}

impl Colleague {
    fn start(sidecar: &Sidecar, host: &Host, user: &str) -> Result<Self> {
        let source = SocketAddr::new(host.v4()?, 0);
        let mut connection = host.run(|| {
            connect_from(source, AT, CONNECT_BOUND).map_err(LabError::while_trying("connect"))
        })?;
        let local = connection.local_addr().map_err(LabError::while_trying("ask for its port"))?;
        sidecar.log().accepted(local, user)?;
        let who = format!("speak as {user} from {local}");
        connection.set_read_timeout(Some(BOUND)).map_err(LabError::while_trying(&who))?;
        let over = Arc::new(AtomicBool::new(false));
        let working = {
            let over = Arc::clone(&over);
            host.start_thread(move || {
                let (mut said, mut heard) = ([0; 512], [0; 512]);
                let mut bytes = 0;
                for round in 0u64.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    for (place, byte) in (0u64..).zip(said.iter_mut()) {
                        [*byte, ..] = (round + place).to_le_bytes();
                    }
                    connection.write_all(&said).map_err(LabError::while_trying(&who))?;
                    connection.read_exact(&mut heard).map_err(LabError::while_trying(&who))?;
                    if said != heard {
                        return Err(LabError::new(format!("{local} heard something else")));
                    }
                    bytes += said.len() as u64;
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(bytes)
            })
        };
        Ok(Self { over, working })
    }

    /// How many bytes came and went, if none was lost.
    fn bytes(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        self.working.join().map_err(|_| LabError::new("a colleague panicked"))?
    }
}

/// An office, somebody's home, and a server.
struct Stage {
    lab: Lab,
    office: Host,
    home: Host,
    _echo: Server,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let office = lab.add_client(&[OFFICE])?;
        let home = lab.add_client(&[HOME, "198.51.100.13"])?;
        let echo = Server::echo(lab.server(), 443)?;
        Ok(Self { lab, office, home, _echo: echo })
    }
}

#[test]
fn nine_colleagues_lose_no_byte_while_the_tenths_connections_die_on_sight() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let colleagues = colleagues(&sidecar, &stage.office, 9)?;
    let mut at_home = device(&sidecar, &stage.home, "sharer")?;
    let mut at_office = device(&sidecar, &stage.office, "sharer")?;
    let (first, _) = sidecar.until_cut(&mut at_home, &mut at_office, BOUND)?;
    assert_eq!((first.action.as_str(), first.reason.as_str()), ("kill", "proxy"));
    assert_eq!((first.source.as_str(), first.incumbents), (OFFICE, vec![HOME.to_owned()]));

    // He tries again and again.
    let tries = 12;
    for _ in 0..tries {
        let again = online(&sidecar, &stage.office, stage.office.v4()?, AT, "sharer")?;
        again.wait_for_reset()?;
        at_home.browse()?;
    }
    assert!(at_home.resets <= sidecar.asked(HOME)?, "reset without a question");
    at_home.open()[0].wait_for_answers()?;
    assert_eq!(banned(stage.lab.server())?, Vec::<String>::new());
    let status = sidecar.settled()?;
    assert_eq!(status.count("overlap")?, 1, "{status}");
    // What was in flight when the verdict fell may have been one more.
    assert!((tries..tries + 3).contains(&status.count("on_sight")?), "{status}");
    assert_eq!(
        status.lines_with("proxy source="),
        [format!("proxy source={OFFICE} users=8 (never banned)")]
    );
    let spared = ["shared_source", "unknown_neighbours", "proxy"].map(|it| status.count(it).ok());
    assert_eq!(spared, [Some(0), Some(0), Some(1)], "the verdict, and none of what followed");
    for colleague in colleagues {
        assert!(colleague.bytes()? > 10_000);
    }

    // Three records as they come, and then sums that leave nothing out.
    let on_sight = status.count("on_sight")?;
    let block_log = sidecar.block_log().to_owned();
    sidecar.stop()?;
    let records = witness::lines_with(&block_log, "\"action\":\"kill\"")?;
    let records: Vec<Record> =
        records.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (verdicts, sights): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| record.reason == "proxy");
    assert_eq!(verdicts.len(), 1, "{records:?}");
    assert!(sights.iter().all(|record| record.reason == "on_sight" && record.user == "sharer"));
    assert_eq!(sights.iter().filter(|record| record.repeats == 0).count(), 3, "{records:?}");
    // Two that fall into one read share a record, which names both.
    let repeats: u64 = sights.iter().map(|record| record.repeats).sum();
    assert!((4..=on_sight).contains(&(3 + repeats)), "{on_sight} in {records:?}");
    let killed: u32 = sights.iter().map(|record| record.killed).sum();
    assert!(u64::from(killed) >= tries, "{records:?}");
    Ok(())
}

#[test]
fn where_the_office_was_first_the_device_elsewhere_is_banned_and_the_office_keeps_all() -> Result<()>
{
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let colleagues = colleagues(&sidecar, &stage.office, 9)?;
    let tenth = Colleague::start(&sidecar, &stage.office, "sharer")?;
    let mut at_home = device(&sidecar, &stage.home, "sharer")?;
    let mut at_office = device(&sidecar, &stage.office, "sharer")?;
    let (record, _) = sidecar.until_cut(&mut at_office, &mut at_home, BOUND)?;
    assert_eq!((record.action.as_str(), record.source.as_str()), ("ban", HOME));
    assert_eq!(record.incumbents, [OFFICE]);
    for talker in at_home.open() {
        talker.wait_for_reset()?;
    }
    assert_eq!(banned(stage.lab.server())?, [HOME]);
    at_office.browse()?;
    assert!(at_office.resets <= sidecar.asked(OFFICE)?, "reset without a question");
    at_office.open()[0].wait_for_answers()?;
    for colleague in colleagues.into_iter().chain([tenth]) {
        assert!(colleague.bytes()? > 5_000);
    }
    Ok(())
}

#[test]
fn an_address_of_eight_users_is_a_proxy_and_not_even_by_order_banned() -> Result<()> {
    for (others, action) in [(7, "kill"), (6, "ban")] {
        let stage = Stage::new()?;
        let sidecar = Sidecar::start_asking(&stage.lab, &["--action=ban"])?;
        let colleagues = colleagues(&sidecar, &stage.office, others)?;
        let mut at_home = device(&sidecar, &stage.home, "sharer")?;
        let mut at_office = device(&sidecar, &stage.office, "sharer")?;
        let (record, _) = sidecar.until_cut(&mut at_home, &mut at_office, BOUND)?;
        assert_eq!((record.action.as_str(), record.source.as_str()), (action, OFFICE));
        let status = sidecar.settled()?;
        let shown = status.lines_with("proxy source=");
        if action == "kill" {
            assert_eq!(record.reason, "proxy");
            assert_eq!(shown, [format!("proxy source={OFFICE} users=8 (never banned)")]);
            assert_eq!(banned(stage.lab.server())?, Vec::<String>::new());
            for colleague in colleagues {
                assert!(colleague.bytes()? > 5_000);
            }
        } else {
            // One user less is an office, and the operator's order holds.
            assert_eq!(shown, Vec::<&str>::new());
            assert_eq!(banned(stage.lab.server())?, [OFFICE]);
        }
    }
    Ok(())
}

#[test]
fn a_ban_by_order_holds_up_whoever_is_there_but_resets_only_the_offender_and_what_is_nobodys()
-> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &["--action=ban", "--timeout=3s"])?;
    let server = stage.lab.server();
    let at = stage.office.v4()?;
    let bob = online(&sidecar, &stage.office, at, AT, "bob")?;
    let nobodys = unnamed(&stage.office, at, AT)?;
    let mut at_home = device(&sidecar, &stage.home, "sharer")?;
    at_home.browse()?;
    // A carrier of several: a mux server in front, say.
    let carrier = online(&sidecar, &stage.office, at, AT, "sharer")?;
    sidecar.log().accepted(carrier.local(), "carol")?;
    sidecar.settled()?;
    let mut at_office = device(&sidecar, &stage.office, "sharer")?;
    // Bob's second connection comes while the ban is being laid on.
    let (record, _) = thread::scope(|scope| {
        let over = Arc::new(AtomicBool::new(false));
        let came = scope.spawn({
            let (over, sidecar, stage) = (Arc::clone(&over), &sidecar, &stage);
            move || -> Result<Vec<_>> {
                let mut all = Vec::new();
                // Until it is shut out, or everything is over.
                while !over.load(Ordering::Relaxed) && all.len() < 400 {
                    let Ok(talker) = online(sidecar, &stage.office, at, AT, "bob") else { break };
                    all.push(talker);
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(all)
            }
        });
        let cut = sidecar.until_cut(&mut at_home, &mut at_office, BOUND);
        over.store(true, Ordering::Relaxed);
        let came = came.join().map_err(|_| LabError::new("bob panicked"))??;
        assert!(came.len() > 10);
        let cut = cut?;
        // Nobody but the offender was reset, and bob goes on where he was once the ban is over.
        witness::wait_for_member(server, BANNED, OFFICE, false, BOUND)?;
        for talker in came.iter().chain([&bob, &carrier]) {
            talker.wait_for_answers()?;
        }
        Ok::<_, LabError>(cut)
    })?;
    assert_eq!((record.action.as_str(), record.source.as_str()), ("ban", OFFICE));
    nobodys.wait_for_reset()?;
    for talker in at_office.open() {
        talker.wait_for_reset()?;
    }
    assert!(record.killed as usize > at_office.open().len(), "{record:?}");
    Ok(())
}

fn colleagues(sidecar: &Sidecar, office: &Host, count: u32) -> Result<Vec<Colleague>> {
    (0..count).map(|number| Colleague::start(sidecar, office, &format!("user-{number}"))).collect()
}

fn device<'a>(sidecar: &'a Sidecar, host: &'a Host, user: &str) -> Result<Device<'a>> {
    Ok(Device::new(sidecar, host, host.v4()?, AT, user))
}
