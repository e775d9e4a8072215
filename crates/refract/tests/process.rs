//! The process as an operator meets it: signals, refusals, commands, flags, bad logs, full disks.
//!
//! Each test has a lab of its own; what is claimed of the kernel is looked up with `ipset` and
//! `iptables`, what is claimed of the process in its exit status, its words and `/proc`.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{FileTypeExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{
    LabError, Result,
    access_log::{AccessLog, accepted_line},
    daemon::{self, Daemon},
    eventually,
    evidence::Status,
    lab::Lab,
    nft_table,
    peer::Server,
    process::Process,
    witness,
};

const REFRACT: &str = env!("CARGO_BIN_EXE_refract");
const SET: &str = "refract_banned_users";
const SET6: &str = "refract_banned_users6";
/// How long anything may take that is not itself the promise.
const BOUND: Duration = Duration::from_secs(5);
/// The promise: a daemon with nothing else to do ends within this time.
const END_PROMISED: Duration = Duration::from_secs(1);
/// How long one may take to end that has two thousand records to write first, on a busy machine.
const END_BOUND: Duration = Duration::from_secs(10);

/// A lab with a server, an access log and a block log.
struct Scene {
    lab: Lab,
    log: AccessLog,
    block_log: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let log = AccessLog::open(lab.path("access.log"))?;
        let block_log = lab.path("block.log");
        Ok(Self { lab, log, block_log })
    }

    /// The flags of a daemon here, then `more`.
    fn flags(&self, more: &[&str]) -> Vec<String> {
        let mut flags = vec![
            "--evidence=log".to_owned(),
            format!("--access.log={}", self.log.path().display()),
            format!("--block.log={}", self.block_log.display()),
        ];
        flags.extend(more.iter().map(ToString::to_string));
        flags
    }

    fn start(&self, more: &[&str]) -> Result<Daemon> {
        Daemon::start(Path::new(REFRACT), self.lab.server(), &self.flags(more))
    }

    /// Runs `refract` with `arguments` to its end.
    fn refract(&self, arguments: &[&str]) -> Result<Ended> {
        self.finish(daemon::command(Path::new(REFRACT), arguments))
    }

    fn finish(&self, command: Command) -> Result<Ended> {
        Ok(Ended::from(self.lab.server().finish(command)?))
    }

    /// Writes the lines of an [`offence`] and waits until the offender is banned.
    fn ban(&self, number: u32) -> Result<String> {
        let (lines, offender) = offence(number);
        self.log.write(lines.as_bytes())?;
        witness::wait_for_member(self.lab.server(), SET, &offender, true, BOUND)?;
        Ok(offender)
    }

    fn shell(&self, script: &str) -> Result<String> {
        self.lab.server().output("sh", &["-ec", script])
    }

    fn records(&self) -> Result<Vec<String>> {
        witness::lines_with(&self.block_log, "")
    }

    /// Neither a table nor a set nor a rule of ours is here.
    fn assert_untouched(&self) -> Result<()> {
        let server = self.lab.server();
        assert_eq!(self.shell("ipset list -name")?, "");
        assert!(!nft_table::exists(server)?);
        for tool in ["iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"] {
            assert_eq!(witness::rules_of(server, tool)?, [] as [&str; 0], "{tool}");
            assert_eq!(witness::mangle_rules_of(server, tool)?, [] as [&str; 0], "{tool}");
        }
        Ok(())
    }
}

/// Two lines of the log that make an offender of 198.18.0.0/16, with an account of its own, and its
/// address.
fn offence(number: u32) -> (String, String) {
    let [_, _, high, low] = number.to_be_bytes();
    let offender = SocketAddr::from(([198, 18, high, low], 40_001));
    let user = format!("user{number}");
    let first = SocketAddr::from(([198, 51, 100, 1], 40_000));
    let lines = [accepted_line(first, &user), accepted_line(offender, &user)].concat();
    (lines, offender.ip().to_string())
}

/// How a command ended and what it printed.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ended {
    /// One sentence on stderr that has each of `parts`, and the exit status.
    #[track_caller]
    fn is_refusal(&self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("refract: "), "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "no `{part}` in {self:?}");
        }
    }
}

#[test]
fn sigterm_and_sigint_end_it_within_a_second_and_rule_and_bans_stay() -> Result<()> {
    let scene = Scene::new()?;
    for (signal, numbers) in [(Signal::TERM, 1..4), (Signal::INT, 4..7)] {
        // The quickest of three: what else this machine does is not the promise.
        let mut quickest = END_BOUND;
        for number in numbers {
            let daemon = scene.start(&[])?;
            scene.ban(number)?;
            let asked = Instant::now();
            daemon.signal(signal)?;
            assert!(daemon.wait(END_BOUND)?.success());
            quickest = quickest.min(asked.elapsed());
            let said = daemon.messages();
            assert!(said.contains("the rule and the bans stay in the kernel"), "{said}");
        }
        assert!(quickest < END_PROMISED, "{signal:?}: {quickest:?}");
    }
    assert_eq!(witness::set_members(scene.lab.server(), SET)?.len(), 6);
    assert_eq!(protected(&scene)?, "443");
    Ok(())
}

#[test]
fn what_sigusr1_makes_it_say_it_says_once_more_at_its_end() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    scene.ban(1)?;
    let asked = Status::ask(&daemon)?;
    assert_eq!((asked.count("lines")?, asked.count("bans")?), (2, 1), "{asked}");
    scene.ban(2)?;
    daemon.signal(Signal::TERM)?;
    assert!(daemon.wait(END_BOUND)?.success());
    // Its last words come after.
    daemon.wait_for_message("the rule and the bans stay in the kernel", BOUND)?;
    let said = daemon.messages();
    assert_eq!(said.matches("status: evidence=").count(), 2, "{said}");
    let last = Status::last_in(&said).ok_or_else(|| LabError::new(format!("no status: {said}")))?;
    assert_eq!((last.count("lines")?, last.count("bans")?), (4, 2), "{last}");
    assert_eq!(last.lines_with("").len(), asked.lines_with("").len(), "{asked}\n{last}");
    for counter in [
        "oversized",
        "rotations",
        "truncations",
        "overflows",
        "shared_source",
        "unknown_neighbours",
        "proxy",
        "evicted_users",
        "evicted_neighbours",
        "dropped_users",
        "dropped_neighbours",
        "forgotten_users",
    ] {
        assert_eq!(last.count(counter)?, 0, "{counter}");
    }
    Ok(())
}

#[test]
fn a_sigterm_in_the_middle_of_a_burst_loses_no_record() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&["--max-bans=0"])?;
    let burst: Vec<String> = (0..2_000).map(|number| offence(number).0).collect();
    scene.log.write(burst.concat().as_bytes())?;
    eventually("the first ban of the burst", BOUND, || {
        Ok(witness::set_members(scene.lab.server(), SET)?.pop())
    })?;
    daemon.signal(Signal::TERM)?;
    assert!(daemon.wait(END_BOUND)?.success());
    let members = witness::set_members(scene.lab.server(), SET)?;
    let recorded: HashSet<String> = scene
        .records()?
        .iter()
        .filter(|record| record.contains(" ban ") && record.ends_with("outcome=ok"))
        .filter_map(|record| Some(record.split_once(" source=")?.1.split(' ').next()?.to_owned()))
        .collect();
    assert_eq!(recorded, members.into_iter().collect());
    Ok(())
}

#[test]
fn a_flood_of_lines_drowns_no_violation_and_sigterm_is_heard_in_it() -> Result<()> {
    const LINES_A_CHUNK: u32 = 10_000;
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    let chunks: Vec<String> = (0..10)
        .map(|chunk| {
            let line = |number: u32| {
                let [_, a, b, c] = (chunk * LINES_A_CHUNK + number).to_be_bytes();
                let peer = SocketAddr::from(([10, a, b, c], 40_000));
                accepted_line(peer, &format!("flood{chunk}-{number}@example.com"))
            };
            (0..LINES_A_CHUNK).map(line).collect()
        })
        .collect();
    let before = Spent::by(&daemon)?;
    let over = AtomicBool::new(false);
    let flooded = thread::scope(|scope| {
        // 200,000 lines a second, for as long as the rest takes.
        let flood = scope.spawn(|| {
            let (began, mut written) = (Instant::now(), 0);
            while !over.load(Ordering::Relaxed) {
                scene.log.write(chunks[written % chunks.len()].as_bytes())?;
                written += 1;
                let due = Duration::from_millis(50) * u32::try_from(written).unwrap_or(u32::MAX);
                thread::sleep(due.saturating_sub(began.elapsed()));
            }
            Ok((written, began.elapsed()))
        });
        // The flood is to have lasted; that it did is not an event.
        thread::sleep(Duration::from_secs(2));
        let (lines, offender) = offence(7);
        let banned = scene.log.write(lines.as_bytes()).and_then(|()| {
            // It stands behind whatever a busy machine has not read yet.
            witness::wait_for_member(scene.lab.server(), SET, &offender, true, 4 * BOUND)
        });
        let after = Spent::by(&daemon);
        let ended = daemon.signal(Signal::TERM).and_then(|()| daemon.wait(END_BOUND));
        over.store(true, Ordering::Relaxed);
        let flooded = flood.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        banned?;
        assert!(ended?.success());
        let after = after?;
        eprintln!(
            "{} ms of processor time before SIGTERM, resident {} to {} KiB",
            (after.ticks - before.ticks) * 10,
            before.resident,
            after.resident
        );
        assert!(after.resident < before.resident + 64 * 1024, "{} KiB", after.resident);
        flooded
    });
    let (written, took) = flooded?;
    eprintln!("{} lines in {took:?}", written * 10_000);
    let said = daemon.messages();
    assert!(said.contains("the rule and the bans stay in the kernel"), "{said}");
    Ok(())
}

#[test]
fn a_flood_of_offenders_waits_in_the_log_and_not_in_memory() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    let before = Spent::by(&daemon)?;
    // Two hundred users, and a source of its own for nearly every line.
    let lines: String = (0..300_000u32)
        .map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            let peer = SocketAddr::from(([10, a, b, c], 40_000));
            accepted_line(peer, &format!("shared-{}@example.com", number % 200))
        })
        .collect();
    scene.log.write(lines.as_bytes())?;
    // Line 400 is the third source of its user.
    witness::wait_for_member(scene.lab.server(), SET, "10.0.1.144", true, BOUND)?;
    let after = Spent::by(&daemon)?;
    assert!(after.resident < before.resident + 64 * 1024, "{} KiB", after.resident);
    daemon.signal(Signal::TERM)?;
    assert!(daemon.wait(END_BOUND)?.success());
    let after_end = daemon.messages();
    assert!(after_end.contains("the rule and the bans stay in the kernel"), "{after_end}");
    Ok(())
}

/// What a process has used so far, from `/proc`.
struct Spent {
    /// Processor time, all threads, in ticks of 10 ms.
    ticks: u64,
    /// KiB.
    resident: u64,
    /// Times that its threads gave the processor up by themselves.
    waits: u64,
}

impl Spent {
    fn by(daemon: &Daemon) -> Result<Self> {
        let id = daemon.id();
        let read = |path: String| fs::read_to_string(&path).map_err(LabError::while_trying(path));
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let stat = read(format!("/proc/{id}/stat"))?;
        // After the name in parentheses, fields 14 and 15 of proc(5) are the 12th and 13th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let mut waits = 0;
        let tasks = fs::read_dir(format!("/proc/{id}/task"))
            .map_err(LabError::while_trying("list threads"))?;
        for task in tasks {
            let task = task.map_err(LabError::while_trying("list threads"))?;
            let status = read(format!("{}/status", task.path().display()))?;
            waits += field(&status, "voluntary_ctxt_switches:");
        }
        Ok(Self {
            ticks: fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap(),
            resident: field(&read(format!("/proc/{id}/status"))?, "VmRSS:"),
            waits,
        })
    }
}

#[test]
fn an_idle_daemon_wakes_a_handful_of_times_a_second_and_uses_no_time() -> Result<()> {
    let scene = Scene::new()?;
    // Every directory on the way to the log is watched, and in /tmp there is always something up.
    let quiet = tempfile::Builder::new().prefix("refract-lab-").tempdir_in("/dev/shm");
    let quiet = quiet.map_err(LabError::while_trying("make a directory in /dev/shm"))?;
    let log = AccessLog::open(quiet.path().join("access.log"))?;
    let daemon = scene.start(&[&format!("--access.log={}", log.path().display())])?;
    let before = Spent::by(&daemon)?;
    // What is measured is that nothing happens: only time can show it.
    thread::sleep(Duration::from_secs(3));
    let after = Spent::by(&daemon)?;
    assert!(after.waits - before.waits <= 15, "{} wakes in 3 s", after.waits - before.waits);
    assert!(after.ticks - before.ticks <= 3, "{} ticks in 3 s", after.ticks - before.ticks);
    Ok(())
}

#[test]
fn a_million_users_who_come_once_take_no_memory_that_a_quarter_of_them_did_not() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&["--dry-run"])?;
    let mut resident = Vec::new();
    for part in 0..4 {
        for chunk in 0..25 {
            let lines: Vec<String> = (0..10_000u32)
                .map(|number| {
                    let [_, a, b, c] = (chunk * 10_000 + number).to_be_bytes();
                    let peer = SocketAddr::from(([10, a, b, c], 40_000));
                    accepted_line(peer, &format!("{part}-{chunk}-{number}@example.com"))
                })
                .collect();
            scene.log.write(lines.concat().as_bytes())?;
        }
        // Once it has acted on what comes last, it has read all.
        let (lines, offender) = offence(part);
        scene.log.write(lines.as_bytes())?;
        witness::wait_for_line(&scene.block_log, &offender, 4 * BOUND)?;
        resident.push(Spent::by(&daemon)?.resident);
    }
    eprintln!("resident after each 250,000 users: {resident:?} KiB");
    assert!(resident[3] < resident[0] + 8 * 1024, "{resident:?} KiB");
    Ok(())
}

#[test]
fn sighup_opens_the_block_log_again_after_a_rename() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    let first = scene.ban(1)?;
    witness::wait_for_line(&scene.block_log, &first, BOUND)?;
    let renamed = scene.lab.path("block.log.1");
    fs::rename(&scene.block_log, &renamed).map_err(LabError::while_trying("rename"))?;
    daemon.signal(Signal::HUP)?;
    daemon.wait_for_message("opened the block log again", BOUND)?;
    let second = scene.ban(2)?;
    witness::wait_for_line(&scene.block_log, &second, BOUND)?;
    assert_eq!(witness::lines_with(&renamed, "source=")?.len(), 1);
    assert_eq!(scene.records()?.len(), 1);
    let mode = fs::metadata(&scene.block_log).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    Ok(())
}

/// The one port that the rule in place is about.
fn protected(scene: &Scene) -> Result<String> {
    let (script, before) = if nft_table::is_under_test() {
        ("nft list chain inet refract input | grep refract", "dport ")
    } else {
        ("iptables -S INPUT | grep refract_", "--dport ")
    };
    let found = scene.shell(script)?;
    let port = found.split(before).nth(1).and_then(|text| text.split(' ').next());
    Ok(port.unwrap_or_default().to_owned())
}

#[test]
fn it_refuses_before_it_touches_anything() -> Result<()> {
    let scene = Scene::new()?;
    let flags = scene.flags(&["--firewall=iptables"]);
    for (dropped, name) in [("-net_admin", "CAP_NET_ADMIN"), ("-net_raw", "CAP_NET_RAW")] {
        let mut command = daemon::command(Path::new("setpriv"), &[] as &[&str]);
        command.args(["--bounding-set", dropped, "--inh-caps", dropped, REFRACT]).args(&flags);
        scene.finish(command)?.is_refusal(1, &[name, " is missing", ": run refract as root"]);
        scene.assert_untouched()?;
    }
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel/tests/broken_programs");
    for (program, parts) in [
        ("failing/iptables", ["broken", "it ended with exit status: 1"]),
        ("garbage/iptables", ["garbage/iptables", "its answer is not that of an iptables"]),
        ("lying/iptables", ["lying/iptables", "its answer is not that of an iptables"]),
        ("nowhere/iptables", ["nowhere/iptables", "install the package iptables"]),
    ] {
        let flag = format!("--iptables={}", programs.join(program).display());
        let flags = scene.flags(&[&flag, "--firewall=iptables"]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        scene.refract(&flags)?.is_refusal(1, &parts);
        scene.assert_untouched()?;
    }
    // This one only shows itself when the rule is to be put in place.
    let stubborn = format!("--iptables={}", programs.join("stubborn/iptables").display());
    let flags = scene.flags(&[&stubborn, "--firewall=iptables"]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let ended = scene.refract(&flags)?;
    assert_eq!(ended.status, Some(1));
    assert!(ended.err.contains("somebody else keeps changing chain INPUT"), "{ended:?}");
    scene.assert_untouched()
}

#[test]
fn a_second_daemon_and_an_uninstall_are_refused_while_one_runs() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    let offender = scene.ban(1)?;
    let flags = scene.flags(&["--dport=8443"]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let sentence = ["another refract already runs in this network namespace", "stop it first"];
    scene.refract(&flags)?.is_refusal(1, &sentence);
    scene.refract(&["uninstall"])?.is_refusal(1, &sentence);
    assert_eq!(protected(&scene)?, "443");
    assert_eq!(witness::set_members(scene.lab.server(), SET)?, [offender]);
    // A dry run touches nothing, so it may run beside it.
    let dry = scene.start(&["--dry-run"])?;
    assert!(dry.terminate(END_BOUND)?.success());
    assert!(daemon.terminate(END_BOUND)?.success());
    Ok(())
}

#[test]
fn uninstall_removes_what_is_ours_of_both_variants_and_nothing_else() -> Result<()> {
    let scene = Scene::new()?;
    let tools = ["iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"];
    let foreign = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";
    scene.shell(
        "ipset create refract hash:ip; ipset create mine hash:ip; ipset add mine 192.0.2.9",
    )?;
    let foreign_mangle = "-A INPUT -p tcp -m tcp --dport 443 --tcp-flags SYN SYN -j TCPOPTSTRIP \
                          --strip-options 30";
    for tool in tools {
        scene.shell(&format!("{tool} {foreign}; {tool} -t mangle {foreign_mangle}"))?;
    }
    let save = "for tool in iptables ip6tables; do test -e $tool || $tool-nft-save > $tool; done";
    let restore = "for tool in iptables ip6tables; do $tool-nft-restore < $tool; done";
    for variant in ["/usr/sbin/iptables-nft", "/usr/sbin/iptables-legacy"] {
        let binary = format!("--iptables={variant}");
        let daemon = scene.start(&["--firewall=iptables", "--proto=tcp,udp", &binary])?;
        assert!(daemon.terminate(END_BOUND)?.success());
        // The next one takes them away, and a firewall that is restored brings them back.
        scene.shell(&format!("cd {}; {save}", scene.lab.directory().display()))?;
    }
    scene.shell(&format!("cd {}; {restore}", scene.lab.directory().display()))?;
    for tool in tools {
        assert_eq!(witness::rules_of(scene.lab.server(), tool)?.len(), 4, "{tool}");
        assert_eq!(witness::mangle_rules_of(scene.lab.server(), tool)?.len(), 2, "{tool}");
    }
    let ended = scene.refract(&["uninstall"])?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for part in ["iptables-legacy", "destroyed the set refract_banned_users6", "banned_flows"] {
        assert!(ended.out.contains(part), "{ended:?}");
    }
    for tool in tools {
        assert_eq!(witness::rules_of(scene.lab.server(), tool)?, [foreign], "{tool}");
        let mangle = witness::mangle_rules_of(scene.lab.server(), tool)?;
        assert_eq!(mangle, [foreign_mangle], "{tool}");
    }
    assert_eq!(scene.shell("ipset list -name | sort")?, "mine\nrefract\n");
    assert!(scene.shell("ipset list mine")?.ends_with("192.0.2.9\n"));
    let again = scene.refract(&["uninstall"])?;
    assert_eq!(again.status, Some(0), "{again:?}");
    assert!(again.out.contains("there is nothing of refract's"), "{again:?}");
    Ok(())
}

#[test]
fn the_commands_answer_the_same_with_a_daemon_and_without() -> Result<()> {
    for format in ["text", "json"] {
        let scene = Scene::new()?;
        let empty = scene.refract(&["list"])?;
        assert_eq!((empty.status, empty.out.as_str()), (Some(0), "no bans\n"));
        let block_log = format!("--block.log={}", scene.block_log.display());
        scene
            .refract(&["why", &block_log, "198.18.0.1"])?
            .is_refusal(1, &["cannot read the block log"]);

        let mut daemon = Some(scene.start(&[&format!("--block.format={format}")])?);
        for round in [0, 10] {
            let bans: Vec<String> = if daemon.is_some() {
                (1..=4).map(|number| scene.ban(number)).collect::<Result<_>>()?
            } else {
                let bans: Vec<String> =
                    (1..=4).map(|last| format!("198.18.{round}.{last}")).collect();
                for ban in &bans {
                    witness::add_member(scene.lab.server(), SET, ban, 50)?;
                }
                bans
            };
            witness::add_member(scene.lab.server(), SET6, "2001:db8:9::/64", 3700)?;
            let list = scene.refract(&["list"])?;
            let shown: Vec<_> =
                list.out.lines().map(|line| line.split_once(' ').unwrap()).collect();
            assert_eq!(shown.len(), 5, "{list:?}");
            assert_eq!(shown[4].0, "2001:db8:9::/64");
            assert!(shown[4].1.trim().starts_with("1h01m"), "{list:?}");
            assert!(shown[..4].iter().all(|(who, left)| {
                bans.iter().any(|ban| ban == who) && left.trim().ends_with('s')
            }));

            let ended = scene.refract(&["unban", &bans[0], "192.0.2.1"])?;
            ended.is_refusal(1, &["not banned: 192.0.2.1\n"]);
            assert_eq!(ended.out, format!("lifted {}\n", bans[0]));
            scene.refract(&["unban", "alice"])?.is_refusal(1, &["\"alice\" is not an address"]);
            assert_eq!(scene.refract(&["unban", &bans[1], &bans[2]])?.status, Some(0));
            let left = witness::set_members(scene.lab.server(), SET)?;
            assert_eq!(left, [bans[3].clone()]);
            assert_eq!(scene.refract(&["unban", "--all"])?.status, Some(0));
            for set in [SET, SET6] {
                assert_eq!(witness::set_members(scene.lab.server(), set)?, [] as [&str; 0]);
            }
            assert_eq!(scene.refract(&["unban", "--all"])?.status, Some(0));

            witness::wait_for_line(&scene.block_log, "198.18.0.4", BOUND)?;
            let why = scene.refract(&["why", &block_log, "198.18.0.1"])?;
            assert_eq!(why.status, Some(0), "{why:?}");
            assert_eq!(why.out.lines().count(), 1, "{why:?}");
            assert!(why.out.contains("user1") && why.out.contains("198.18.0.1"), "{why:?}");
            assert_eq!(
                scene.refract(&["why", &block_log, "198.18.0.0/24"])?.out.lines().count(),
                4
            );
            let none = scene.refract(&["why", &block_log, "198.18.9.9"])?;
            assert!(none.out.starts_with("no record of 198.18.9.9"), "{none:?}");
            scene.refract(&["why", "alice"])?.is_refusal(1, &["\"alice\" is not an address"]);
            if let Some(daemon) = daemon.take() {
                assert!(daemon.terminate(END_BOUND)?.success());
            }
        }
    }
    Ok(())
}

#[test]
fn a_reader_that_goes_away_hears_no_panic() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    assert!(daemon.terminate(END_BOUND)?.success());
    // More than a pipe holds.
    let (program, before) = if nft_table::is_under_test() {
        ("nft -f -", format!("add element inet refract {} {{ ", SET.trim_start_matches("refract_")))
    } else {
        ("ipset restore", format!("add {SET} "))
    };
    let after = if nft_table::is_under_test() { " }" } else { "" };
    let entries: Vec<String> = (0..20_000u32)
        .map(|number| format!("{before}10.0.{}.{}{after}\n", number >> 8, number & 255))
        .collect();
    let batch = scene.lab.path("batch");
    fs::write(&batch, entries.concat()).map_err(LabError::while_trying("write a batch"))?;
    scene.shell(&format!("{program} < {}", batch.display()))?;
    for script in ["list | head -n 1", "list | true", "unban --all | head -n 1", "--help | true"] {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{REFRACT} {script}; echo ${{PIPESTATUS[0]}} >&2")]);
        let ended = scene.finish(command)?;
        assert_eq!(ended.err, "0\n", "{script}: {ended:?}");
    }
    assert_eq!(witness::set_members(scene.lab.server(), SET)?, [] as [&str; 0]);
    Ok(())
}

#[test]
fn doctor_says_line_by_line_what_is_wrong_and_its_status_says_whether() -> Result<()> {
    let scene = Scene::new()?;
    // What it says of nftables is in `firewalls.rs`.
    let flags = scene.flags(&["--firewall=iptables"]);
    let doctor = |more: &[&str]| {
        let mut arguments = vec!["doctor"];
        arguments.extend(flags.iter().map(String::as_str));
        arguments.extend(more);
        scene.refract(&arguments)
    };
    // What else there is to say of it depends on whether this machine is a container.
    assert!(doctor(&[])?.out.contains(" listener: "));
    let echo = Server::echo(scene.lab.server(), 443)?;
    let well = doctor(&[])?;
    assert_eq!(well.status, Some(0), "{well:?}");
    assert!(!well.out.contains("BAD"), "{well:?}");
    assert!(well.out.contains("note  daemon: none runs"), "{well:?}");
    assert!(well.out.contains("note  rule: not in place"), "{well:?}");
    assert!(well.out.contains("note  MPTCP: not stripped as these flags want"), "{well:?}");
    scene.assert_untouched()?;

    let daemon = scene.start(&["--firewall=iptables"])?;
    let (lines, offender) = offence(1);
    scene.log.write(lines.as_bytes())?;
    witness::wait_for_line(&scene.block_log, &offender, BOUND)?;
    let well = doctor(&[])?;
    assert_eq!(well.status, Some(0), "{well:?}");
    for part in [
        "ok    listener: somebody listens on a protected port",
        "ok    daemon: runs",
        "1 bans",
        "ok    rule: at the top of INPUT",
        "ok    MPTCP: stripped from handshakes",
        "is readable\n",
    ] {
        assert!(well.out.contains(part), "no `{part}` in {well:?}");
    }
    assert!(daemon.terminate(END_BOUND)?.success());

    for (flag, finding) in [
        // How it goes on depends on whether this machine is a container.
        ("--access.log=/nonexistent/access.log", "BAD   access log: "),
        ("--block.log=/nonexistent/block.log", "BAD   block log: cannot write /nonexistent"),
        ("--iptables=/nonexistent/iptables", "BAD   rule: "),
    ] {
        let ill = doctor(&[flag])?;
        assert_eq!(ill.status, Some(1), "{ill:?}");
        let path = flag.split('=').next_back().unwrap();
        let is_told = |line: &str| line.starts_with(finding) && line.contains(path);
        assert!(ill.out.lines().any(is_told), "{ill:?}");
        assert_eq!(ill.out.lines().filter(|line| line.starts_with("BAD")).count(), 1, "{ill:?}");
        assert_eq!(ill.err, "");
        let is_unread = ill.out.contains("note  recent lines: none could be read");
        assert_eq!(is_unread, flag.starts_with("--access.log"), "{ill:?}");
    }
    drop(echo);
    Ok(())
}

/// Every flag that takes a value, its variable, and values that it refuses.
const NONSENSE: [(&str, &str, &[&str]); 27] = [
    (
        "proto",
        "it takes tcp, udp or tcp,udp",
        &["", " ", "-1", "TCP", "sctp", "tcp,", "ü", "/etc/passwd"],
    ),
    (
        "dport",
        "it takes ports and ranges from 1 to 65535",
        &[
            "",
            " ",
            "-1",
            "0",
            "65536",
            "443,",
            "9-3",
            "99999999999999999999",
            "+1",
            "٤٤٣",
            "/etc/passwd",
            "1-",
            "4\n43",
        ],
    ),
    (
        "window",
        "it takes a duration",
        &["", " ", "-5s", "0s", "5", "25h", "99999999999999999999h", "fünf", "/etc/passwd"],
    ),
    (
        "timeout",
        "it takes a duration",
        &["", " ", "-5s", "0s", "5", "99999999999999999999h", "∞", "/etc/passwd"],
    ),
    ("access.log", "it takes the path of a file", &["", " ", "\t"]),
    ("block.log", "it takes the path of a file", &["", " "]),
    ("block.format", "it takes text or json", &["", " ", "-1", "JSON", "ü", "/etc/passwd"]),
    ("log.format", "it takes text or json", &["", " ", "-1", "JSON", "ü", "/etc/passwd"]),
    (
        "limit",
        "it takes a whole number from 1 to 256",
        &["", " ", "-1", "00x", "257", "99999999999999999999", "1.5", "+1", "١", "UNLIMITED"],
    ),
    ("keep", "it takes first or last", &["", " ", "-1", "FIRST", "ü", "/etc/passwd"]),
    (
        "allow",
        "it takes networks such as",
        &["-1", "x", "10.0.0.0/33", "10.0.0.0/-1", "1.2.3", "::/129", "ü", "/etc/passwd"],
    ),
    (
        "ipv4-prefix",
        "it takes a whole number from 8 to 32",
        &["", " ", "-1", "7", "33", "99999999999999999999", "/24", "ü"],
    ),
    (
        "ipv6-prefix",
        "it takes a whole number from 16 to 128",
        &["", " ", "-1", "15", "129", "99999999999999999999", "/64", "ü"],
    ),
    (
        "max-bans",
        "it takes a whole number from 0 to 1000000",
        &["", " ", "-1", "1000001", "99999999999999999999", "ü", "/etc/passwd"],
    ),
    (
        "user-bans",
        "it takes a whole number from 0 to 1000",
        &["", " ", "-1", "1001", "99999999999999999999", "ü", "unlimited"],
    ),
    (
        "shared-source-users",
        "it takes a whole number from 2 to 10000",
        &["", " ", "-1", "1", "10001", "99999999999999999999", "ü"],
    ),
    (
        "cdn-sources",
        "it takes a whole number from 2 to 1000",
        &["", " ", "-1", "1", "1001", "99999999999999999999", "ü"],
    ),
    ("config", "it takes the path of a file", &["", " ", "\t"]),
    ("evidence", "it takes auto or kernel or log", &["", " ", "-1", "LOG", "ü"]),
    ("action", "it takes auto or ban or kill", &["", " ", "-1", "BAN", "ü", "drop"]),
    ("ask", "it takes on or off", &["", " ", "-1", "2", "ON", "ü"]),
    ("state.file", "it takes the path of a file", &["", " ", "-"]),
    ("firewall", "it takes auto or iptables or nftables", &["", " ", "-1", "NFTABLES", "nft", "ü"]),
    ("chain", "it takes the name of a chain", &["", " ", "-1", "a b", "-F", "ü", "/etc/passwd"]),
    (
        "iptables",
        "it takes the absolute path of a program whose name begins with iptables, such as \
         /usr/sbin/iptables-legacy",
        &[
            "",
            " ",
            "-1",
            "iptables",
            "./iptables",
            "ü",
            "/",
            "/nope",
            "/bin/ls",
            "/etc",
            "/usr/sbin/ip6tables",
            "/usr/sbin/iptables/..",
        ],
    ),
    ("sandbox", "it takes on or off", &["", " ", "-1", "ON", "half", "ü"]),
    (
        "netns",
        "it takes a name as `ip netns list` shows it",
        &["", ".", "..", "a/b", "./a", "a/", "ü/", "run/netns/x"],
    ),
];

/// Switches, whose value is joined to them.
const SWITCHES: [(&str, &str, &[&str]); 3] = [
    ("udp-ban", "it takes true or false", &[" ", "-1", "2", "TRUE", "ü", "/etc/passwd"]),
    ("strip-mptcp", "it takes true or false", &[" ", "-1", "2", "TRUE", "ü", "/etc/passwd"]),
    ("dry-run", "it takes true or false", &[" ", "-1", "2", "TRUE", "ü", "/etc/passwd"]),
];

#[test]
fn every_flag_and_variable_refuses_nonsense_in_one_sentence_that_names_them() -> Result<()> {
    let scene = Scene::new()?;
    for (switch, (flag, takes, values)) in
        NONSENSE.map(|row| (false, row)).into_iter().chain(SWITCHES.map(|row| (true, row)))
    {
        let variable = format!("REFRACT_{}", flag.replace(['.', '-'], "_").to_uppercase());
        for value in values {
            let named = format!("refract: --{flag} ({variable}) cannot be {value:?}: ");
            let parts = [named.as_str(), takes];
            scene.refract(&[&format!("--{flag}={value}")])?.is_refusal(2, &parts);
            if !switch {
                scene.refract(&[&format!("--{flag}"), value])?.is_refusal(2, &parts);
            }
            let mut command = daemon::command(Path::new(REFRACT), &[] as &[&str]);
            command.env(&variable, value);
            scene.finish(command)?.is_refusal(2, &parts);
        }
        if !switch {
            let ended = scene.refract(&[&format!("--{flag}")])?;
            ended.is_refusal(2, &[&format!("--{flag} ({variable}) ")]);
        }
    }
    for (arguments, parts) in [
        (&["--nope"][..], &["there is no --nope; refract --help"][..]),
        (&["--no\npe"], &["there is no --no\\npe;"]),
        (&["-x"], &["there is no -x;"]),
        (&["nonsense"], &["there is no command \"nonsense\";"]),
        (&["--dry-run", "false"], &["as in --dry-run=false"]),
        (&["--dport=443", "list"], &["list is a command and comes first"]),
        (&["list", "--dport=443"], &["there is no --dport"]),
        (&["why"], &["<ADDRESS> is missing"]),
        (&["unban"], &["<SOURCE>... is missing"]),
        (&["unban", "--all", "192.0.2.1"], &["--all", "cannot be used with"]),
        (&["uninstall", "--iptables=/bin/ls"], &["--iptables (REFRACT_IPTABLES) cannot be"]),
        (&["doctor", "--limit=257"], &["--limit (REFRACT_LIMIT) cannot be \"257\""]),
        (&["why", "--block.log=", "192.0.2.1"], &["--block.log (REFRACT_BLOCK_LOG)"]),
    ] {
        scene.refract(arguments)?.is_refusal(2, parts);
    }
    for prefix in ["--dport=", "--access.log=/tmp/"] {
        let mut bytes = prefix.as_bytes().to_vec();
        bytes.push(0xff);
        let argument = [OsString::from_vec(bytes)];
        let ended = scene.finish(daemon::command(Path::new(REFRACT), &argument))?;
        ended.is_refusal(2, &["cannot be", "\\xff", "it takes text in UTF-8"]);
    }
    let mut command = daemon::command(Path::new(REFRACT), &[] as &[&str]);
    command.env("REFRACT_DPORT", OsString::from_vec(vec![0xff]));
    scene.finish(command)?.is_refusal(2, &["REFRACT_DPORT cannot be", "it takes text in UTF-8"]);
    scene.assert_untouched()
}

#[test]
fn the_last_of_several_flags_counts_in_either_spelling_and_beats_the_variable() -> Result<()> {
    let scene = Scene::new()?;
    let flags = scene.flags(&["--dport=1", "--limit", "3", "--dport", "8443", "--timeout=100000h"]);
    let mut command = daemon::command(Path::new(REFRACT), &flags);
    command.env("REFRACT_DPORT", "2").env("REFRACT_WINDOW", "1h30m").env("REFRACT_ALLOW", "");
    let daemon = Daemon::start_command(scene.lab.server(), &command)?;
    let ready = daemon.wait_for_message("ready", BOUND)?;
    for part in ["dport=8443", "limit=3", "window=5400s"] {
        assert!(ready.contains(part), "no `{part}` in {ready}");
    }
    daemon.wait_for_message("longer than the kernel can hold: bans last 2147483s", BOUND)?;
    assert_eq!(protected(&scene)?, "8443");
    assert!(daemon.terminate(END_BOUND)?.success());
    Ok(())
}

#[test]
fn a_timeout_that_no_clock_can_hold_bans_for_as_long_as_the_kernel_can() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&["--timeout=9223372036854775807s"])?;
    let offender = scene.ban(1)?;
    let record = witness::wait_for_line(&scene.block_log, &offender, BOUND)?;
    assert!(record.contains(" timeout=2147483s "), "{record}");
    let left = witness::seconds_left(scene.lab.server(), SET, &offender)?.unwrap();
    assert!((2_147_400..=2_147_483).contains(&left), "{left}");
    assert!(daemon.terminate(END_BOUND)?.success());
    Ok(())
}

#[test]
fn a_block_log_that_cannot_be_written_is_said_once_and_holds_nothing_up() -> Result<()> {
    let scene = Scene::new()?;
    let fifo = scene.lab.path("fifo");
    scene.shell(&format!("mkfifo {}", fifo.display()))?;
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    let directory = scene.lab.path("directory");
    fs::create_dir(&directory).map_err(LabError::while_trying("make a directory"))?;
    let mut number = 0;
    for block_log in [&fifo, &directory, &scene.lab.path("missing/block.log")] {
        let flag = format!("--block.log={}", block_log.display());
        let daemon = scene.start(&[&flag])?;
        for _ in 0..3 {
            number += 1;
            let offender = scene.ban(number)?;
            daemon.wait_for_message(&format!("source=\"{offender}\""), BOUND)?;
        }
        let said = daemon.messages();
        let sentence = format!("cannot open the block log {}", block_log.display());
        assert_eq!(said.matches(&sentence).count(), 1, "{said}");
        assert!(daemon.terminate(END_BOUND)?.success());
    }
    Ok(())
}

#[test]
fn a_full_disk_is_said_once_and_no_record_is_glued_to_a_torn_one() -> Result<()> {
    let scene = Scene::new()?;
    let disk = scene.lab.path("disk");
    fs::create_dir(&disk).map_err(LabError::while_trying("make a directory"))?;
    // The disk is the daemon's alone: it is mounted in a namespace that ends with it.
    let script = format!("mount -t tmpfs -o size=8k disk {}; exec \"$@\"", disk.display());
    let mut arguments =
        ["--mount", "sh", "-ec", &script, "sh", REFRACT].map(str::to_owned).to_vec();
    arguments.extend(scene.flags(&[&format!("--block.log={}/block.log", disk.display())]));
    let command = daemon::command(Path::new("unshare"), &arguments);
    let daemon = Daemon::start_command(scene.lab.server(), &command)?;
    let seen = PathBuf::from(format!("/proc/{}/root{}", daemon.id(), disk.display()));
    let filler = seen.join("filler");
    fs::write(&filler, [0; 4096]).map_err(LabError::while_trying("fill the disk"))?;

    let log = seen.join("block.log");
    // 4 KiB are left: sixteen records, and with this line before them half of another one.
    let mut earlier = OpenOptions::new().append(true).open(&log).unwrap();
    writeln!(earlier, "{}", "-".repeat(100)).map_err(LabError::while_trying("write"))?;
    let full = "cannot write to the block log";
    let mut number = 0;
    while !daemon.messages().contains(full) {
        number += 1;
        assert!(number < 60, "the disk does not fill");
        let offender = scene.ban(number)?;
        daemon.wait_for_message(&format!("source=\"{offender}\""), BOUND)?;
    }
    for _ in 0..3 {
        number += 1;
        scene.ban(number)?;
    }
    fs::remove_file(&filler).map_err(LabError::while_trying("free the disk"))?;
    let saved = scene.ban(number + 1)?;
    daemon.wait_for_message("the block log is written again", BOUND)?;
    let record = witness::wait_for_line(&log, &format!("source={saved} "), BOUND)?;
    assert_eq!(record.matches(" ban user=").count(), 1, "glued: {record}");
    let records = witness::lines_with(&log, " ban user=")?;
    let torn = records.iter().filter(|record| !record.ends_with("outcome=ok")).count();
    assert_eq!(torn, 1, "{records:#?}");
    let said = daemon.messages();
    assert_eq!(said.matches(full).count(), 1, "{said}");
    assert!(daemon.terminate(END_BOUND)?.success());
    Ok(())
}

#[test]
fn a_log_of_rubbish_hides_no_violation_and_panics_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    let mut random = vec![0; 2 << 20];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    random.push(b'\n');
    let endless = [vec![b'x'; 10 << 20], b"\n".to_vec()].concat();
    let zeros = [vec![0; 100_000], b"\n".to_vec()].concat();
    let mut before = Spent::by(&daemon)?.resident;
    for (number, rubbish) in (1u32..).zip([random, endless, zeros, b"\r\n\n\n\n".to_vec()]) {
        scene.log.write(&rubbish)?;
        scene.ban(number)?;
        if number == 1 {
            before = Spent::by(&daemon)?.resident;
        }
    }
    let after = Spent::by(&daemon)?.resident;
    assert!(after < before + 4 * 1024, "10 MB without a line end: {before} to {after} KiB");
    let said = daemon.messages();
    assert!(!said.contains("panicked"), "{said}");
    assert!(daemon.terminate(END_BOUND)?.success());
    Ok(())
}

#[test]
fn a_log_that_is_not_there_yet_is_waited_for_and_read_from_its_start() -> Result<()> {
    for path in ["later.log", "not/yet/there/later.log"] {
        let scene = Scene::new()?;
        let path = scene.lab.path(path);
        let daemon = scene.start(&[&format!("--access.log={}", path.display())])?;
        daemon.wait_for_message("the access log is not there; waiting for it", BOUND)?;
        fs::create_dir_all(path.parent().unwrap()).map_err(LabError::while_trying("make it"))?;
        let (lines, offender) = offence(1);
        fs::write(&path, lines).map_err(LabError::while_trying("write the log"))?;
        witness::wait_for_member(scene.lab.server(), SET, &offender, true, BOUND)?;
        assert!(daemon.terminate(END_BOUND)?.success());
    }
    Ok(())
}

#[test]
fn an_unprivileged_dry_run_says_that_it_may_not_read_and_touches_nothing() -> Result<()> {
    let scene = Scene::new()?;
    // The directory may be entered by anybody, the log (mode 0600) may not be read.
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    open(scene.lab.directory());
    let program = scene.lab.path("refract");
    fs::copy(REFRACT, &program).map_err(LabError::while_trying("copy the program"))?;
    open(&program);
    let mut arguments =
        ["--reuid=65534", "--regid=65534", "--clear-groups", &program.to_string_lossy()]
            .map(str::to_owned)
            .to_vec();
    arguments.extend(scene.flags(&["--dry-run"]));
    let command = daemon::command(Path::new("setpriv"), &arguments);
    let daemon = Daemon::start_command(scene.lab.server(), &command)?;
    daemon.wait_for_message("permission denied; run as root", BOUND)?;
    scene.assert_untouched()?;
    assert!(daemon.terminate(END_BOUND)?.success());
    Ok(())
}

#[test]
fn a_fifo_is_followed_and_standard_input_is_read_to_its_end() -> Result<()> {
    let scene = Scene::new()?;
    let fifo = scene.lab.path("fifo");
    scene.shell(&format!("mkfifo {}", fifo.display()))?;
    let daemon = scene.start(&[&format!("--access.log={}", fifo.display())])?;
    // A writer may come, go and come again.
    for number in [1, 2] {
        let (lines, offender) = offence(number);
        let mut writer = OpenOptions::new().write(true).open(&fifo).unwrap();
        writer.write_all(lines.as_bytes()).map_err(LabError::while_trying("write"))?;
        drop(writer);
        witness::wait_for_member(scene.lab.server(), SET, &offender, true, BOUND)?;
    }
    assert!(daemon.terminate(END_BOUND)?.success());

    let input = scene.lab.path("input");
    let (lines, offender) = offence(3);
    fs::write(&input, lines).map_err(LabError::while_trying("write"))?;
    for (how, number) in [("cat {} | \"$@\"", 1), ("\"$@\" < {}", 2)] {
        let script = how.replace("{}", &input.to_string_lossy());
        let mut arguments = ["-c", &script, "sh", REFRACT].map(str::to_owned).to_vec();
        arguments.extend(scene.flags(&["--access.log=-"]));
        let process =
            Process::start(scene.lab.server(), &daemon::command(Path::new("sh"), &arguments))?;
        assert!(process.wait(BOUND)?.success(), "{}", process.said());
        // What it had begun was finished before it ended.
        assert_eq!(witness::lines_with(&scene.block_log, &offender)?.len(), number);
    }
    Ok(())
}

#[test]
fn what_it_says_as_json_is_one_object_a_line_and_nothing_is_coloured() -> Result<()> {
    for format in ["json", "text"] {
        let scene = Scene::new()?;
        let daemon = scene.start(&[&format!("--log.format={format}")])?;
        // Attackers' bytes: a quote, an escape sequence, a byte that is no UTF-8.
        let line = |last: u8| {
            let peer = SocketAddr::from(([198, 18, 0, last], 40_000));
            let line = accepted_line(peer, "al\"ice\u{1b}[31m\\X");
            let mut line = line.into_bytes();
            line.insert(line.len() - 1, 0xff);
            line
        };
        scene.log.write(&[line(1), line(2)].concat())?;
        witness::wait_for_member(scene.lab.server(), SET, "198.18.0.2", true, BOUND)?;
        witness::wait_for_line(&scene.block_log, "198.18.0.2", BOUND)?;
        daemon.signal(Signal::TERM)?;
        assert!(daemon.wait(END_BOUND)?.success());
        daemon.wait_for_message("stopped; the rule and the bans stay", BOUND)?;
        let said = daemon.messages();
        assert!(!said.contains('\u{1b}'), "{said:?}");
        if format == "json" {
            for line in said.lines() {
                let value: serde_json::Value =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                for key in ["timestamp", "level", "message"] {
                    assert!(value.get(key).is_some_and(serde_json::Value::is_string), "{line}");
                }
            }
        }
    }
    Ok(())
}
