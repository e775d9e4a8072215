//! `--netns`: a daemon and its commands that act in another network namespace than they are started
//! in, and notice when the name means another one.
//!
//! The other namespace is a client's of the lab: what the daemon does must be seen at the server and
//! not there.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use support::{
    LabError, Result,
    daemon::{self, Daemon},
    lab::{Host, Lab},
    nft_table,
    sidecar::Sidecar,
    stage::{JUNIOR, Stage},
    witness,
};

const REFRACT: &str = env!("CARGO_BIN_EXE_refract");
/// How long anything may take that is not itself the promise.
const BOUND: Duration = Duration::from_secs(10);
const BANNED: &str = "refract_banned_users";

/// `--netns=` with the namespace of `host`.
fn netns(host: &Host) -> String {
    format!("--netns={}", host.namespace_path().display())
}

fn refract(host: &Host, arguments: &[&str]) -> Result<Output> {
    host.finish(daemon::command(Path::new(REFRACT), arguments))
}

#[track_caller]
fn is_refusal(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
}

/// The rule and the sets are `here`, and nothing of the kind is `there`.
#[track_caller]
fn is_here_alone(here: &Host, there: &Host) -> Result<()> {
    assert!(witness::rule_for(here, BANNED)?.is_some());
    assert_eq!(witness::rule_for(there, BANNED)?, None);
    assert_eq!(witness::set_names(there)?, [""; 0]);
    Ok(())
}

/// A lab with a log, and the flags of a daemon there.
fn lab_with_flags() -> Result<(Lab, Vec<String>)> {
    let lab = Lab::new()?;
    let log = lab.path("access.log");
    File::create(&log).map_err(LabError::while_trying("make the log"))?;
    let flags = vec![
        "--evidence=log".to_owned(),
        format!("--access.log={}", log.display()),
        format!("--block.log={}", lab.path("block.log").display()),
    ];
    Ok((lab, flags))
}

#[test]
fn a_daemon_started_elsewhere_cuts_an_offender_and_every_command_finds_what_it_did() -> Result<()> {
    let stage = Stage::new()?;
    let (server, elsewhere) = (stage.lab.server(), &stage.crowd);
    let there = netns(server);
    let enter = format!("--net={}", elsewhere.namespace_path().display());
    let flags = ["--evidence=kernel", "--window=1s", there.as_str()];
    let sidecar = Sidecar::start_under(&["nsenter", &enter], &stage.lab, &flags)?;
    stage.sharers_are_cut(&sidecar, "alice@example.com")?;
    is_here_alone(server, elsewhere)?;
    let namespace_of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    let ours = File::open(server.namespace_path()).map_err(LabError::while_trying("open"))?;
    let metadata = ours.metadata().map_err(LabError::while_trying("look at it"))?;
    let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
    let its = namespace_of(&sidecar.id()?.to_string()).map_err(LabError::while_trying("look"))?;
    assert_eq!(its, PathBuf::from(format!("net:[{inode}]")));

    let run = |arguments: &[&str]| -> Result<String> {
        let ended = refract(elsewhere, &[arguments, &[there.as_str()]].concat())?;
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned()
            + &String::from_utf8_lossy(&ended.stderr))
    };
    let junior = JUNIOR.to_string();
    assert!(run(&["list"])?.contains(&junior));
    assert!(run(&["doctor"])?.contains("ok    daemon: runs in this network namespace"));
    assert!(run(&["unban", &junior])?.contains(&format!("lifted {junior}")));
    assert!(run(&["uninstall"])?.contains("another refract already runs"));
    sidecar.stop()?;
    let said = run(&["uninstall"])?;
    let removed = if nft_table::is_under_test() {
        ["deleted the table inet refract"; 2]
    } else {
        ["removed the rule", "destroyed the set"]
    };
    assert!(removed.iter().all(|what| said.contains(what)), "{said}");
    assert_eq!(witness::set_names(server)?, [""; 0]);
    assert_eq!(witness::rule_for(server, BANNED)?, None);
    Ok(())
}

#[test]
fn what_names_no_namespace_is_refused_with_the_remedy() -> Result<()> {
    let (lab, flags) = lab_with_flags()?;
    let file = lab.path("access.log");
    let start = |netns: &str| {
        let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
        all.push(netns);
        refract(lab.server(), &all)
    };
    is_refusal(
        &start("--netns=refract-has-no-such")?,
        &["there is no network namespace /run/netns/refract-has-no-such", "`ip netns list`"],
    );
    is_refusal(&start("--netns=/proc/999999999/ns/net")?, &["there is no network namespace"]);
    is_refusal(&start(&format!("--netns={}", file.display()))?, &["is not a network namespace"]);
    is_refusal(&start("--netns=/proc/self/ns/mnt")?, &["is not a network namespace"]);
    for command in ["list", "doctor", "uninstall"] {
        let ended = refract(lab.server(), &[command, "--netns=refract-has-no-such"])?;
        is_refusal(&ended, &["there is no network namespace"]);
    }
    let mistaken = start("--netns=run/netns/x")?;
    assert_eq!(mistaken.status.code(), Some(2));

    // Without the right to enter it; its own is entered without any.
    let mut other = Lab::new()?;
    let elsewhere = other.add_client(&["198.51.100.7"])?;
    for (host, entered) in [(&elsewhere, false), (lab.server(), true)] {
        let mut command = daemon::command(Path::new("setpriv"), &[] as &[&str]);
        command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", REFRACT]);
        command.args(&flags).args([netns(host).as_str(), "--access.log=-"]);
        let ended = lab.server().finish(command)?;
        if entered {
            assert!(ended.status.success(), "{ended:?}");
        } else {
            is_refusal(&ended, &["is not permitted", "CAP_SYS_ADMIN", "NetworkNamespacePath="]);
        }
    }
    Ok(())
}

/// A process with a network namespace of its own.
struct Owner(Child);

impl Owner {
    fn new() -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(LabError::while_trying("run unshare"))?;
        // Its line proves that the namespace is made.
        let mut byte = [0];
        let out = child.stdout.as_mut().ok_or_else(|| LabError::new("no pipe"))?;
        std::io::Read::read_exact(out, &mut byte).map_err(LabError::while_trying("wait for it"))?;
        Ok(Self(child))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the daemon has ended because of what `said` says.
#[track_caller]
fn ends(daemon: &Daemon, said: &str) -> Result<()> {
    let sentence = daemon.wait_for_message(said, BOUND)?;
    assert!(sentence.contains("start refract again"), "{sentence}");
    assert_eq!(daemon.wait(BOUND)?.code(), Some(1));
    // What was in force stays, as at any other end.
    daemon.wait_for_message("the rule and the bans stay in the kernel", BOUND).map(drop)
}

#[test]
fn it_ends_when_the_process_whose_namespace_it_is_in_has_ended() -> Result<()> {
    for (link, sandbox) in [(false, "on"), (true, "on"), (true, "off")] {
        let (lab, mut flags) = lab_with_flags()?;
        let owner = Owner::new()?;
        let path = if link {
            symlink(owner.path(), lab.path("netns")).unwrap();
            lab.path("netns")
        } else {
            owner.path()
        };
        flags.push(format!("--netns={}", path.display()));
        flags.push(format!("--sandbox={sandbox}"));
        let daemon = Daemon::start(Path::new(REFRACT), lab.server(), &flags)?;
        drop(owner);
        ends(&daemon, "is gone with its process")?;
    }
    Ok(())
}

#[test]
fn it_ends_when_the_name_leads_to_another_namespace() -> Result<()> {
    let (lab, mut flags) = lab_with_flags()?;
    let [first, second] = [Owner::new()?, Owner::new()?];
    let link = lab.path("netns");
    symlink(first.path(), &link).unwrap();
    flags.push(format!("--netns={}", link.display()));
    let daemon = Daemon::start(Path::new(REFRACT), lab.server(), &flags)?;
    symlink(second.path(), lab.path("fresh")).unwrap();
    fs::rename(lab.path("fresh"), &link).unwrap();
    ends(&daemon, "leads elsewhere now")
}

#[test]
fn it_ends_when_a_name_of_ip_netns_is_given_to_another_namespace_or_goes() -> Result<()> {
    for (what, said) in [
        ("umount /run/netns/box; mount --bind $SECOND /run/netns/box", "is another one now"),
        ("umount /run/netns/box; rm /run/netns/box", "is gone"),
    ] {
        let (lab, flags) = lab_with_flags()?;
        let [first, second] = [Owner::new()?, Owner::new()?];
        // Names are files in one directory of the machine: here one that only the daemon sees.
        let script = format!(
            "mkdir -p /run/netns; mount -t tmpfs names /run/netns; touch /run/netns/box; \
             mount --bind {} /run/netns/box; exec \"$@\"",
            first.path().display()
        );
        let mut arguments =
            ["--mount", "sh", "-ec", &script, "sh", REFRACT].map(str::to_owned).to_vec();
        arguments.extend(flags);
        arguments.push("--netns=box".to_owned());
        let command = daemon::command(Path::new("unshare"), &arguments);
        let daemon = Daemon::start_command(lab.server(), &command)?;
        let what = what.replace("$SECOND", &second.path().to_string_lossy());
        let inside = format!("--mount=/proc/{}/ns/mnt", daemon.id());
        lab.server().output("nsenter", &[&inside, "sh", "-ec", &what])?;
        ends(&daemon, said)?;
    }
    Ok(())
}

#[test]
fn a_variable_and_the_policy_file_name_it_too() -> Result<()> {
    let (mut lab, flags) = lab_with_flags()?;
    let elsewhere = lab.add_client(&["198.51.100.7"])?;
    let config = lab.path("refract.toml");
    let path = lab.server().namespace_path().display();
    fs::write(&config, format!("netns = \"{path}\"\nsandbox = \"off\"\n")).unwrap();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let named = format!("--config={}", config.display());
    let mut by_file = daemon::command(Path::new(REFRACT), &flags);
    by_file.arg(&named);
    let mut by_variable = daemon::command(Path::new(REFRACT), &flags);
    by_variable.env("REFRACT_NETNS", lab.server().namespace_path());
    for (command, sandbox) in [(by_file, "sandbox: off"), (by_variable, "sandbox: capabilities")] {
        let daemon = Daemon::start_command(&elsewhere, &command)?;
        is_here_alone(lab.server(), &elsewhere)?;
        assert!(daemon.messages().contains(sandbox), "{}", daemon.messages());
        assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
        refract(lab.server(), &["uninstall"])?;
    }
    Ok(())
}
