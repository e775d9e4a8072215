//! The daemon inside its sandbox: what it has given up, and that everything still works.
//!
//! The second eye is `/proc`: capabilities, `NoNewPrivs` and `Seccomp` of every thread. That files
//! are out of reach is seen when a link is turned to one of them. Every other test of the daemon runs
//! inside the sandbox too, since it is the default; here are those that are about it.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, chown, lchown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, getpgid, kill_process};
use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
use support::{
    LabError, Result,
    access_log::accepted_line,
    daemon::{self, Daemon},
    eventually,
    evidence::Status,
    lab::Lab,
    nft_table, witness,
};
use tempfile::TempDir;

const REFRACT: &str = env!("CARGO_BIN_EXE_refract");
const SET: &str = "refract_banned_users";
/// How long anything may take that is not itself the promise.
const BOUND: Duration = Duration::from_secs(10);
/// Bits of capabilities(7).
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

/// A lab with a directory for the log and one for what is written.
struct Scene {
    lab: Lab,
    log: PathBuf,
    block_log: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        for name in ["logs", "ours"] {
            fs::create_dir(lab.path(name)).map_err(LabError::while_trying("make a directory"))?;
        }
        let (log, block_log) = (lab.path("logs/access.log"), lab.path("ours/block.log"));
        File::create(&log).map_err(LabError::while_trying("make the log"))?;
        Ok(Self { lab, log, block_log })
    }

    fn flags(&self, more: &[&str]) -> Vec<String> {
        let mut flags = vec![
            "--evidence=log".to_owned(),
            "--firewall=iptables".to_owned(),
            format!("--access.log={}", self.log.display()),
            format!("--block.log={}", self.block_log.display()),
        ];
        flags.extend(more.iter().map(ToString::to_string));
        flags
    }

    fn start(&self, more: &[&str]) -> Result<Daemon> {
        Daemon::start(Path::new(REFRACT), self.lab.server(), &self.flags(more))
    }

    /// Whoever reads what was appended to `log` bans this offender.
    fn is_read(&self, log: &Path, number: u8) -> Result<()> {
        append(log, number)?;
        let offender = format!("198.18.0.{number}");
        witness::wait_for_member(self.lab.server(), SET, &offender, true, BOUND)
    }

    fn rules_come_back(&self, tool: &str) -> Result<()> {
        self.lab.server().output(tool, &["-F"])?;
        eventually("the rule", BOUND, || {
            let rules = witness::rules_of(self.lab.server(), tool)?;
            Ok(rules.iter().any(|rule| rule.contains(SET)).then_some(()))
        })
    }
}

/// Writes the lines of an [`offence`].
fn append(log: &Path, number: u8) -> Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .map_err(LabError::while_trying("open the log"))?;
    let lines = offence(number, "198.18");
    file.write_all(lines.as_bytes()).map_err(LabError::while_trying("write the log"))
}

/// Two lines that make an offender of the address `network`.0.`number`.
fn offence(number: u8, network: &str) -> String {
    let first = SocketAddr::from(([198, 51, 100, 1], 40_000));
    let user = format!("user{number}@example.com");
    accepted_line(first, &user) + &accepted_line(format!("{network}.0.{number}:40001"), &user)
}

/// One field of a `status` file of `/proc`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

/// Checks what a thread holds: `permitted`, and nothing that could come back.
#[track_caller]
fn check_rights(status: &str, permitted: u64) {
    for (name, expected) in [("CapEff", permitted), ("CapPrm", permitted), ("CapBnd", permitted)] {
        let held = u64::from_str_radix(field(status, name), 16).unwrap();
        assert_eq!(held, expected, "{name} of {}: {held:x}", field(status, "Name"));
    }
    assert_eq!(field(status, "NoNewPrivs"), "1");
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(LabError::while_trying(format!("read {}", path.display())))
}

/// The rule keepers of a lab: those of its network namespace. What one has forked looks like one
/// until it has become iptables, so they are looked for twice.
fn rule_keepers(daemon: &Daemon) -> BTreeSet<i32> {
    let first = rule_keepers_now(daemon);
    thread::sleep(Duration::from_millis(10));
    first.intersection(&rule_keepers_now(daemon)).copied().collect()
}

fn rule_keepers_now(daemon: &Daemon) -> BTreeSet<i32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let ours = namespace(&daemon.id().to_string());
    let is_one = |pid: &str| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let input = fs::read_link(format!("/proc/{pid}/fd/0")).unwrap_or_default();
        // It listens to a socket and leads a group.
        arguments.contains("\0rule-keeper\0")
            && input.to_string_lossy().starts_with("socket:")
            && namespace(pid) == ours
            && pid
                .parse()
                .ok()
                .and_then(Pid::from_raw)
                .is_some_and(|pid| getpgid(Some(pid)) == Ok(pid))
    };
    let processes = fs::read_dir("/proc").unwrap().map_while(std::result::Result::ok);
    processes
        .filter_map(|process| {
            let name = process.file_name().into_string().ok()?;
            name.parse().ok().filter(|_| is_one(&name))
        })
        .collect()
}

fn two_rule_keepers(daemon: &Daemon) -> Result<BTreeSet<i32>> {
    eventually("a rule keeper and one that stands by", BOUND, || {
        let keepers = rule_keepers(daemon);
        Ok((keepers.len() == 2).then_some(keepers))
    })
}

fn kill(pid: i32) -> Result<()> {
    let pid = Pid::from_raw(pid).ok_or_else(|| LabError::new("no process"))?;
    kill_process(pid, Signal::KILL).map_err(LabError::while_trying("kill a rule keeper"))
}

/// A directory that is not beneath the lab's parent, so out of the sandbox.
fn elsewhere() -> TempDir {
    tempfile::Builder::new().prefix("refract-elsewhere-").tempdir_in("/dev/shm").unwrap()
}

#[test]
fn every_thread_and_every_process_of_it_holds_only_what_it_needs() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&["--evidence=kernel", "--proto=tcp,udp"])?;
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.id()))
        .map_err(LabError::while_trying("list threads"))?;
    let mut names = BTreeSet::new();
    for one in threads.map_while(std::result::Result::ok) {
        let status = read(one.path().join("status"))?;
        check_rights(&status, NET_ADMIN | DAC_READ_SEARCH);
        for name in ["CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(field(&status, name), 16), Ok(0), "{name}");
        }
        assert_eq!(field(&status, "Seccomp"), "2");
        names.insert(field(&status, "Name").to_owned());
    }
    for name in ["refract", "refract-survey", "refract-state", "tracing-appende"] {
        assert!(names.contains(name), "no {name} in {names:?}");
    }
    for keeper in two_rule_keepers(&daemon)? {
        check_rights(
            &read(format!("/proc/{keeper}/status"))?,
            NET_ADMIN | NET_RAW | DAC_READ_SEARCH,
        );
    }
    let in_force = "capabilities CAP_NET_ADMIN CAP_DAC_READ_SEARCH, no_new_privs, landlock ABI ";
    assert!(daemon.messages().contains(&format!("sandbox: {in_force}")), "{}", daemon.messages());
    let status = Status::ask(&daemon)?;
    let lines = status.lines_with("sandbox ");
    assert!(lines.iter().any(|line| line.contains(in_force)), "{status}");
    assert!(lines.iter().all(|line| line.ends_with(", seccomp")), "{status}");
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn with_sandbox_off_it_keeps_what_it_was_started_with_and_says_so() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&["--sandbox=off"])?;
    let (ours, its) = (read("/proc/self/status")?, read(format!("/proc/{}/status", daemon.id()))?);
    for name in ["CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"] {
        assert_eq!(field(&its, name), field(&ours, name), "{name}");
    }
    daemon.wait_for_message("sandbox: off", BOUND)?;
    assert_eq!(rule_keepers(&daemon).len(), 1, "nobody needs to stand by");
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn the_log_is_followed_through_every_rotation() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    scene.is_read(&scene.log, 1)?;
    let tried = LabError::while_trying::<std::io::Error>;
    fs::rename(&scene.log, scene.log.with_extension("1")).map_err(tried("rename"))?;
    scene.is_read(&scene.log, 2)?;
    File::create(&scene.log).map_err(LabError::while_trying("truncate"))?;
    daemon.wait_for_message("the access log was truncated", BOUND)?;
    scene.is_read(&scene.log, 3)?;
    for number in [4, 5] {
        fs::remove_dir_all(scene.lab.path("logs")).map_err(LabError::while_trying("delete"))?;
        fs::create_dir(scene.lab.path("logs")).map_err(LabError::while_trying("make"))?;
        scene.is_read(&scene.log, number)?;
    }
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn a_log_behind_a_link_is_followed_to_the_links_next_target_nearby() -> Result<()> {
    let scene = Scene::new()?;
    for day in ["monday", "tuesday"] {
        fs::create_dir_all(scene.lab.path(&format!("days/{day}"))).unwrap();
        File::create(scene.lab.path(&format!("days/{day}/of-today.log"))).unwrap();
    }
    let link = scene.lab.path("logs/current.log");
    symlink("../days/monday/of-today.log", &link).unwrap();
    let daemon = scene.start(&[&format!("--access.log={}", link.display())])?;
    scene.is_read(&link, 1)?;
    let fresh = scene.lab.path("logs/fresh");
    symlink("../days/tuesday/of-today.log", &fresh).unwrap();
    fs::rename(&fresh, &link).map_err(LabError::while_trying("turn the link"))?;
    scene.is_read(&link, 2)?;
    fs::remove_dir_all(scene.lab.path("days/tuesday")).map_err(LabError::while_trying("delete"))?;
    fs::create_dir(scene.lab.path("days/tuesday")).map_err(LabError::while_trying("make"))?;
    scene.is_read(&link, 3)?;
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn what_lies_elsewhere_can_be_read_only_without_the_sandbox() -> Result<()> {
    let far = elsewhere();
    let policy = far.path().join("refract.toml");
    fs::write(&policy, "window = '7s'\n").unwrap();
    let log = far.path().join("access.log");
    File::create(&log).unwrap();
    for (flag, is_read) in [("--sandbox=on", false), ("--sandbox=off", true)] {
        let scene = Scene::new()?;
        let near = scene.lab.path("near.toml");
        fs::write(&near, "window = '6s'\n").unwrap();
        let config = scene.lab.path("refract.toml");
        symlink(&near, &config).unwrap();
        let link = scene.lab.path("logs/link.log");
        symlink(&scene.log, &link).unwrap();
        let daemon = scene.start(&[
            flag,
            &format!("--config={}", config.display()),
            &format!("--access.log={}", link.display()),
        ])?;
        let turn = |link: &Path, target: &Path| {
            let fresh = scene.lab.path("fresh");
            symlink(target, &fresh).unwrap();
            fs::rename(&fresh, link).unwrap();
        };
        turn(&config, &policy);
        let said = if is_read { "the policy was read again" } else { "Permission denied" };
        let sentence = daemon.wait_for_message(said, BOUND)?;
        assert_eq!(sentence.contains("start refract again"), !is_read, "{sentence}");
        turn(&config, &near);
        daemon.wait_for_message("the policy was read again and is in force", BOUND)?;

        turn(&link, &log);
        if is_read {
            scene.is_read(&log, 1)?;
        } else {
            let sentence = daemon.wait_for_message("cannot read the access log", BOUND)?;
            assert!(sentence.contains("leads out of the directories"), "{sentence}");
            turn(&link, &scene.log);
            daemon.wait_for_message("the access log is readable again", BOUND)?;
            scene.is_read(&scene.log, 2)?;
        }
        assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    }
    Ok(())
}

#[test]
fn the_policy_is_read_again_from_a_file_and_a_directory_that_were_replaced() -> Result<()> {
    let scene = Scene::new()?;
    let home = scene.lab.path("etc");
    fs::create_dir(&home).unwrap();
    let config = home.join("refract.toml");
    fs::write(&config, "limit = 2\n").unwrap();
    let daemon = scene.start(&[&format!("--config={}", config.display())])?;
    let in_force = |times: usize| {
        let what = format!("policy {times} in force");
        eventually(&what, BOUND, || {
            let said = daemon.messages();
            Ok((said.matches("the policy was read again").count() >= times).then_some(()))
        })
    };
    fs::write(home.join("fresh"), "limit = 3\n").unwrap();
    fs::rename(home.join("fresh"), &config).unwrap();
    in_force(1)?;
    fs::remove_dir_all(&home).unwrap();
    fs::create_dir(&home).unwrap();
    fs::write(&config, "limit = 1\n").unwrap();
    in_force(2)?;
    scene.is_read(&scene.log, 1)?;
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn block_log_and_state_file_are_written_into_a_directory_that_was_replaced() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&["--evidence=auto"])?;
    scene.is_read(&scene.log, 1)?;
    witness::wait_for_line(&scene.block_log, "198.18.0.1", BOUND)?;
    fs::rename(&scene.block_log, scene.block_log.with_extension("1")).unwrap();
    daemon.signal(Signal::HUP)?;
    daemon.wait_for_message("opened the block log again", BOUND)?;
    scene.is_read(&scene.log, 2)?;
    witness::wait_for_line(&scene.block_log, "198.18.0.2", BOUND)?;

    fs::remove_dir_all(scene.lab.path("ours")).unwrap();
    fs::create_dir(scene.lab.path("ours")).unwrap();
    daemon.signal(Signal::HUP)?;
    eventually("the block log", BOUND, || Ok(scene.block_log.exists().then_some(())))?;
    scene.is_read(&scene.log, 3)?;
    witness::wait_for_line(&scene.block_log, "198.18.0.3", BOUND)?;
    daemon.signal(Signal::TERM)?;
    assert!(daemon.wait(BOUND)?.success());
    assert!(scene.lab.path("ours/refract.state").exists(), "{}", daemon.messages());
    assert!(!daemon.messages().contains("cannot write"), "{}", daemon.messages());
    Ok(())
}

/// Whoever owns the directory of the block log puts a link to somebody's file in its place.
#[test]
fn a_strangers_link_in_the_place_of_the_block_log_is_not_written_through() -> Result<()> {
    for flag in ["--sandbox=on", "--sandbox=off"] {
        let scene = Scene::new()?;
        let theirs = scene.lab.path("theirs");
        fs::create_dir(&theirs).unwrap();
        let target = scene.lab.path("target");
        fs::write(&target, "as it was").unwrap();
        let link = theirs.join("block.log");
        let plant = || {
            symlink(&target, &link).unwrap();
            lchown(&link, Some(65_534), Some(65_534)).unwrap();
        };
        plant();
        let flag_for_log = format!("--block.log={}", link.display());
        let doctor = daemon::command(Path::new(REFRACT), &["doctor", &flag_for_log]);
        let doctor = String::from_utf8(scene.lab.server().finish(doctor)?.stdout).unwrap();
        assert!(doctor.contains("it is a link that user ID 65534 has made"), "{doctor}");
        let daemon = scene.start(&[flag, &flag_for_log])?;
        daemon.wait_for_message("it is a link that user ID 65534 has made", BOUND)?;
        scene.is_read(&scene.log, 1)?;
        assert_eq!(fs::read_to_string(&target).unwrap(), "as it was");

        // Once it is gone, records are written again; a later one is not followed either.
        fs::remove_file(&link).unwrap();
        scene.is_read(&scene.log, 2)?;
        witness::wait_for_line(&link, "198.18.0.2", BOUND)?;
        fs::remove_file(&link).unwrap();
        plant();
        daemon.signal(Signal::HUP)?;
        eventually("the second link to be told of", BOUND, || {
            Ok((daemon.messages().matches("user ID 65534 has made").count() >= 2).then_some(()))
        })?;
        scene.is_read(&scene.log, 3)?;
        assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
        assert_eq!(fs::read_to_string(&target).unwrap(), "as it was");
    }
    Ok(())
}

#[test]
fn rule_and_sets_come_back_however_often_the_rule_keeper_is_killed() -> Result<()> {
    for (flag, tool) in [
        ("--iptables=/usr/sbin/iptables-nft", "iptables-nft"),
        ("--iptables=/usr/sbin/iptables-legacy", "iptables-legacy"),
    ] {
        let scene = Scene::new()?;
        let daemon = scene.start(&[flag])?;
        scene.rules_come_back(tool)?;
        let mut met = two_rule_keepers(&daemon)?;
        // The one at work is the daemon's first child; each that takes its place started the next.
        for _ in 0..3 {
            let at_work = *two_rule_keepers(&daemon)?.first().unwrap();
            kill(at_work)?;
            eventually("its end", BOUND, || {
                Ok((!rule_keepers(&daemon).contains(&at_work)).then_some(()))
            })?;
            met.extend(two_rule_keepers(&daemon)?);
            scene.rules_come_back(tool)?;
        }
        assert!(met.len() >= 5, "{met:?}");
        scene.lab.server().output(
            "sh",
            &["-ec", &format!("{tool} -F; {tool} -t mangle -F; ipset destroy {SET}")],
        )?;
        daemon.wait_for_message("made the sets again", BOUND)?;
        scene.rules_come_back(tool)?;
        scene.is_read(&scene.log, 1)?;
        // Whether it is told to end or not, they end with it.
        if tool == "iptables-legacy" {
            daemon.kill()?;
        } else {
            assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
        }
        eventually("no rule keeper left", BOUND, || {
            let left = met.iter().find(|keeper| {
                fs::read_to_string(format!("/proc/{keeper}/cmdline"))
                    .is_ok_and(|arguments| arguments.contains("rule-keeper"))
            });
            Ok(left.is_none().then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn one_that_stands_by_is_replaced_and_when_both_are_killed_at_once_that_is_said() -> Result<()> {
    let scene = Scene::new()?;
    let daemon = scene.start(&[])?;
    two_rule_keepers(&daemon)?;
    let children = read(format!("/proc/{0}/task/{0}/children", daemon.id()))?;
    let spare = children.split_whitespace().nth(1).unwrap().parse().unwrap();
    kill(spare)?;
    daemon.wait_for_message("the process that stands by to keep the rule died", BOUND)?;
    eventually("another one that stands by", BOUND, || {
        let now = rule_keepers(&daemon);
        Ok((now.len() == 2 && !now.contains(&spare)).then_some(()))
    })?;
    scene.rules_come_back("iptables")?;
    for keeper in two_rule_keepers(&daemon)? {
        // Where the first has taken the other with it, so much the better.
        let _ = kill(keeper);
    }
    let sentence = daemon.wait_for_message("every rule keeper died", BOUND)?;
    assert!(sentence.contains("start refract again"), "{sentence}");
    // Bans need no rule keeper.
    scene.is_read(&scene.log, 1)?;
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn the_programs_that_keep_the_rule_write_nowhere() -> Result<()> {
    let scene = Scene::new()?;
    let far = elsewhere();
    let written = far.path().join("written");
    let tools = scene.lab.path("tools");
    fs::create_dir(&tools).unwrap();
    for name in ["iptables", "ip6tables"] {
        for suffix in ["", "-restore", "-save"] {
            let tool = tools.join(format!("{name}{suffix}"));
            let script = format!(
                "#!/bin/sh\necho x 2>&- > {}\nexec /usr/sbin/{name}-nft{suffix} \"$@\"\n",
                written.display()
            );
            fs::write(&tool, script).unwrap();
            fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let flag = format!("--iptables={}", tools.join("iptables").display());
    for (sandbox, writes) in [("--sandbox=on", false), ("--sandbox=off", true)] {
        let daemon = scene.start(&[&flag, sandbox])?;
        // The daemon itself has asked once, before it gave anything up.
        fs::remove_file(&written).unwrap();
        scene.rules_come_back("iptables-nft")?;
        assert_eq!(written.exists(), writes, "{sandbox}: {}", daemon.messages());
        assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    }
    Ok(())
}

#[test]
fn rights_over_files_of_others_are_kept_only_where_they_are_needed() -> Result<()> {
    let scene = Scene::new()?;
    // As Xray's installer has it: a directory and a log that only another user may enter and read.
    for (path, mode) in [(scene.lab.path("logs"), 0o700), (scene.log.clone(), 0o600)] {
        chown(&path, Some(65_534), Some(65_534)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let daemon = scene.start(&[])?;
    scene.is_read(&scene.log, 1)?;
    check_rights(&read(format!("/proc/{}/status", daemon.id()))?, NET_ADMIN | DAC_READ_SEARCH);
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());

    let beside = scene.lab.path("logs/block.log");
    let daemon = scene.start(&[&format!("--block.log={}", beside.display())])?;
    let status = read(format!("/proc/{}/status", daemon.id()))?;
    check_rights(&status, NET_ADMIN | DAC_READ_SEARCH | DAC_OVERRIDE);
    let sentence = daemon.wait_for_message("CAP_DAC_OVERRIDE is kept", BOUND)?;
    assert!(sentence.contains(&beside.display().to_string()), "{sentence}");
    scene.is_read(&scene.log, 2)?;
    witness::wait_for_line(&beside, "198.18.0.2", BOUND)?;
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn a_user_of_its_own_with_the_capabilities_it_was_given_needs_no_more() -> Result<()> {
    const USER: u32 = 65_534;
    let scene = Scene::new()?;
    // The log is somebody else's: reading it takes CAP_DAC_READ_SEARCH.
    fs::set_permissions(&scene.log, fs::Permissions::from_mode(0o600)).unwrap();
    chown(scene.lab.path("ours"), Some(USER), Some(USER)).unwrap();
    let program = scene.lab.path("refract");
    fs::copy(REFRACT, &program).map_err(LabError::while_trying("copy the program"))?;
    for path in [scene.lab.directory(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let given = "+net_admin,+net_raw,+dac_read_search";
    let mut command = daemon::command(
        Path::new("setpriv"),
        &[
            format!("--reuid={USER}"),
            format!("--regid={USER}"),
            "--clear-groups".to_owned(),
            format!("--inh-caps={given}"),
            format!("--ambient-caps={given}"),
            program.to_string_lossy().into_owned(),
        ],
    );
    command.args(scene.flags(&["--evidence=auto", "--iptables=/usr/sbin/iptables-nft"]));
    let daemon = Daemon::start_command(scene.lab.server(), &command)?;
    let held = |status: &str, name| u64::from_str_radix(field(status, name), 16).unwrap();
    let status = read(format!("/proc/{}/status", daemon.id()))?;
    for name in ["CapEff", "CapPrm"] {
        assert_eq!(held(&status, name), NET_ADMIN | DAC_READ_SEARCH, "{name}");
    }
    assert_eq!((held(&status, "CapAmb"), held(&status, "CapInh")), (0, 0));
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    for _ in 0..2 {
        let keepers = two_rule_keepers(&daemon)?;
        for keeper in &keepers {
            let status = read(format!("/proc/{keeper}/status"))?;
            for name in ["CapEff", "CapPrm", "CapAmb"] {
                assert_eq!(held(&status, name), NET_ADMIN | NET_RAW | DAC_READ_SEARCH, "{name}");
            }
        }
        scene.rules_come_back("iptables-nft")?;
        kill(*keepers.first().unwrap())?;
        eventually("its end", BOUND, || {
            Ok((!rule_keepers(&daemon).is_superset(&keepers)).then_some(()))
        })?;
    }
    scene.rules_come_back("iptables-nft")?;
    scene.is_read(&scene.log, 1)?;
    witness::wait_for_line(&scene.block_log, "198.18.0.1", BOUND)?;
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    assert!(scene.lab.path("ours/refract.state").exists());
    Ok(())
}

#[test]
fn with_nftables_one_capability_is_enough_and_the_table_comes_back() -> Result<()> {
    let scene = Scene::new()?;
    let flags = scene.flags(&["--firewall=nftables"]);
    let few = "-all,+net_admin,+dac_read_search";
    let daemon = Daemon::start_under(
        &["setpriv", "--bounding-set", few, "--inh-caps", "-all"],
        Path::new(REFRACT),
        scene.lab.server(),
        &flags,
    )?;
    check_rights(&read(format!("/proc/{}/status", daemon.id()))?, NET_ADMIN | DAC_READ_SEARCH);
    assert_eq!(rule_keepers(&daemon), BTreeSet::new(), "there is nothing to run");
    let is_banned = |number: u8| {
        eventually("the ban", BOUND, || {
            let members = nft_table::members(scene.lab.server(), SET)?;
            Ok(members.contains(&format!("198.18.0.{number}")).then_some(()))
        })
    };
    append(&scene.log, 1)?;
    is_banned(1)?;
    scene.lab.server().output("nft", &["delete", "table", "inet", "refract"])?;
    is_banned(1)?;
    append(&scene.log, 2)?;
    is_banned(2)?;
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn a_kernel_without_landlock_or_seccomp_is_named_and_everything_else_is_in_force() -> Result<()> {
    for (absent, sentence, in_force) in [
        (
            vec![libc::SYS_landlock_create_ruleset],
            "this kernel has no Landlock",
            "no_new_privs, no landlock, seccomp",
        ),
        (
            vec![libc::SYS_seccomp],
            "all system calls stay open to refract: Function not implemented",
            ", no seccomp",
        ),
    ] {
        let scene = Scene::new()?;
        let mut command = daemon::command(Path::new(REFRACT), &scene.flags(&["--access.log=-"]));
        command.stdin(Stdio::null());
        let output = scene.lab.server().run(move || without(&absent, command))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let named: Vec<&str> = said.lines().filter(|line| line.contains(sentence)).collect();
        assert!(matches!(named[..], [line] if line.contains("WARN")), "{said}");
        assert!(said.contains(in_force), "{said}");
        assert!(said.contains("the input has ended"), "{said}");
    }
    Ok(())
}

/// Runs `command` as on a kernel that does not have these system calls.
fn without(calls: &[i64], mut command: Command) -> Result<std::process::Output> {
    let filter = SeccompFilter::new(
        calls.iter().map(|call| (*call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        TargetArch::try_from(std::env::consts::ARCH).unwrap(),
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).map_err(LabError::while_trying("filter system calls"))?;
    command.output().map_err(LabError::while_trying("run refract"))
}

#[test]
fn doctor_says_what_this_kernel_has() -> Result<()> {
    let scene = Scene::new()?;
    let doctor = |more: &[&str]| {
        let mut arguments = vec![OsString::from("doctor")];
        arguments.extend(scene.flags(more).into_iter().map(OsString::from));
        scene.lab.server().finish(daemon::command(Path::new(REFRACT), &arguments))
    };
    let said = String::from_utf8_lossy(&doctor(&[])?.stdout).into_owned();
    assert!(said.contains("ok    sandbox: this kernel has Landlock ABI "), "{said}");
    let said = String::from_utf8_lossy(&doctor(&["--sandbox=off"])?.stdout).into_owned();
    assert!(said.contains("note  sandbox: off, as these flags say"), "{said}");
    Ok(())
}
