//! Surroundings in which Refract cannot do its work, or not all of it: each is one sentence with what
//! to do about it.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use support::{
    LabError, Result,
    daemon::{self, Daemon},
    lab::Lab,
    witness,
};

const REFRACT: &str = env!("CARGO_BIN_EXE_refract");
/// How long anything may take that is not itself the promise.
const BOUND: Duration = Duration::from_secs(10);

/// A lab with an access log.
struct Scene {
    lab: Lab,
    log: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let log = lab.path("access.log");
        File::create(&log).map_err(LabError::while_trying("make the log"))?;
        Ok(Self { lab, log })
    }

    fn flags(&self, more: &[&str]) -> Vec<String> {
        let mut flags = vec![
            "--evidence=log".to_owned(),
            "--firewall=iptables".to_owned(),
            format!("--access.log={}", self.log.display()),
            format!("--block.log={}", self.lab.path("block.log").display()),
        ];
        flags.extend(more.iter().map(ToString::to_string));
        flags
    }

    /// Refract under a program that changes its surroundings first.
    fn under(&self, wrapper: &[&str], more: &[&str]) -> Command {
        let mut command = daemon::command(Path::new(wrapper[0]), &wrapper[1..]);
        command.arg(REFRACT).args(self.flags(more));
        command
    }

    fn refused_under(&self, wrapper: &[&str]) -> Result<Output> {
        let ended = self.lab.server().finish(self.under(wrapper, &[]))?;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert_eq!(witness::set_names(self.lab.server())?, [""; 0], "it touched something");
        assert_eq!(witness::rules_of(self.lab.server(), "iptables")?, [""; 0]);
        Ok(ended)
    }
}

#[track_caller]
fn is_one_sentence(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
}

#[test]
fn rights_over_another_network_than_this_ones_are_none() -> Result<()> {
    let scene = Scene::new()?;
    // Root of a user namespace of its own, in a network namespace that is not that one's.
    let refused = scene.refused_under(&["unshare", "--user", "--map-root-user"])?;
    is_one_sentence(
        &refused,
        &[
            "resetting connections is not permitted here, although CAP_NET_ADMIN is held",
            "run refract in the user namespace that owns this network namespace",
        ],
    );
    Ok(())
}

#[test]
fn commands_that_hold_a_right_which_does_not_count_here_say_where_it_would() -> Result<()> {
    let scene = Scene::new()?;
    for (arguments, act) in [
        (&["list"][..], "listing bans"),
        (&["unban", "198.51.100.12"], "lifting bans"),
        (&["unban", "--all"], "lifting bans"),
        (&["uninstall"], "removing rules and sets"),
    ] {
        // Root of a user namespace of its own, in a network namespace that is not that one's.
        let mut command = daemon::command(Path::new("unshare"), &["--user", "--map-root-user"]);
        command.arg(REFRACT).args(arguments);
        let refused = scene.lab.server().finish(command)?;
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let sentence = format!("{act} is not permitted here, although CAP_NET_ADMIN is held");
        is_one_sentence(&refused, &[&sentence, "in the user namespace that owns this network"]);
    }
    Ok(())
}

#[test]
fn doctor_calls_no_firewall_good_that_nobody_may_speak_to() -> Result<()> {
    let scene = Scene::new()?;
    let doctor = |wrapper: &[&str], firewall: &str| -> Result<String> {
        let mut command = daemon::command(Path::new(wrapper[0]), &wrapper[1..]);
        command.args([REFRACT, "doctor"]).args(scene.flags(&[firewall]));
        let ended = scene.lab.server().finish(command)?;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    };
    let elsewhere = "is not permitted here, although CAP_NET_ADMIN is held: run refract in the user \
                     namespace that owns this network namespace";
    for (firewall, spoken_to) in [
        ("--firewall=auto", "nftables"),
        ("--firewall=nftables", "nftables"),
        ("--firewall=iptables", "ipset"),
    ] {
        // Root of a user namespace of its own, in a network namespace that is not that one's.
        let held = doctor(&["unshare", "--user", "--map-root-user"], firewall)?;
        let not_held = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
        let not_held = doctor(&not_held, firewall)?;
        for (found, parts) in [
            (
                &held,
                [
                    format!("BAD   sockets: resetting connections {elsewhere}"),
                    format!("BAD   firewall: speaking to {spoken_to} {elsewhere}"),
                ],
            ),
            (
                &not_held,
                [
                    "BAD   sockets: resetting connections takes CAP_NET_ADMIN\n".to_owned(),
                    "BAD   firewall: cannot speak ".to_owned(),
                ],
            ),
        ] {
            for part in parts {
                assert!(found.contains(&part), "no `{part}` in {found}");
            }
            assert!(!found.contains("ok    firewall"), "{found}");
        }
        assert!(!held.contains("it takes CAP_NET_ADMIN"), "{held}");
    }
    Ok(())
}

#[test]
fn in_a_user_namespace_that_owns_its_network_everything_works() -> Result<()> {
    let scene = Scene::new()?;
    let wrapper = ["unshare", "--user", "--map-root-user", "--net"];
    let lock = format!("XTABLES_LOCKFILE={}", scene.lab.path("xtables.lock").display());
    let script = "ip link set lo up; exec \"$@\"";
    let wrapper = [&["env", &lock], &wrapper[..], &["sh", "-ec", script, "sh"]].concat();
    let daemon = Daemon::start_command(scene.lab.server(), &scene.under(&wrapper, &[]))?;
    daemon.wait_for_message("the rule is at the top of INPUT", BOUND)?;
    daemon.wait_for_message("sandbox: capabilities CAP_NET_ADMIN", BOUND)?;
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn without_a_capability_the_refusal_names_it_and_the_ways_to_get_it() -> Result<()> {
    for (dropped, name, container) in [
        ("-net_admin", "CAP_NET_ADMIN", "cap_add CAP_NET_ADMIN"),
        ("-net_raw", "CAP_NET_RAW", "cap_add NET_RAW"),
    ] {
        let scene = Scene::new()?;
        let wrapper = ["setpriv", "--bounding-set", dropped, "--inh-caps", dropped];
        let refused = scene.refused_under(&wrapper)?;
        let unit = format!("AmbientCapabilities={name}");
        is_one_sentence(&refused, &[name, "run refract as root", &unit, container]);
    }
    Ok(())
}

#[test]
fn a_log_directory_that_is_read_only_is_said_and_enforcement_goes_on() -> Result<()> {
    let scene = Scene::new()?;
    let folder = scene.lab.path("logs");
    fs::create_dir(&folder).map_err(LabError::while_trying("make a directory"))?;
    let script = format!("mount -t tmpfs -o ro logs {}; exec \"$@\"", folder.display());
    let wrapper = ["unshare", "--mount", "sh", "-ec", &script, "sh"];
    let block_log = folder.join("block.log");
    let flag = format!("--block.log={}", block_log.display());
    let daemon = Daemon::start_command(scene.lab.server(), &scene.under(&wrapper, &[&flag]))?;
    let sentence = daemon.wait_for_message("cannot open the block log", BOUND)?;
    for part in ["Read-only file system", "with --block.log"] {
        assert!(sentence.contains(part), "no `{part}` in {sentence}");
    }
    assert!(!daemon.messages().contains("CAP_DAC_OVERRIDE"), "no right mends that");
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}

#[test]
fn a_log_that_was_not_mounted_is_said_with_its_directory() -> Result<()> {
    let scene = Scene::new()?;
    let nowhere = scene.lab.path("not/mounted/access.log");
    let flag = format!("--access.log={}", nowhere.display());
    let server = scene.lab.server();
    let daemon = Daemon::start(Path::new(REFRACT), server, &scene.flags(&[&flag]))?;
    let sentence = daemon.wait_for_message("the access log is not there", BOUND)?;
    for part in ["mount", "--access.log"] {
        assert!(sentence.contains(part), "no `{part}` in {sentence}");
    }
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());

    let flag = format!("--access.log={}", scene.lab.path("other.log").display());
    let daemon = Daemon::start(Path::new(REFRACT), server, &scene.flags(&[&flag]))?;
    let sentence = daemon.wait_for_message("the access log is not there", BOUND)?;
    assert!(sentence.contains("if Xray writes another one"), "{sentence}");
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());

    // Where nothing is but the root, there is nothing to draw the sandbox around.
    let flag = "--access.log=/refract-is-not-mounted/access.log";
    let daemon = Daemon::start(Path::new(REFRACT), server, &scene.flags(&[flag]))?;
    let sentence = daemon.wait_for_message("so refract may read wherever its user may", BOUND)?;
    assert!(sentence.contains("make the directory, then start refract again"), "{sentence}");
    assert!(daemon.terminate(support::daemon::FAREWELL_BOUND)?.success());
    Ok(())
}
