//! Refract at work, for somebody who has never seen it: `make demo`.
//!
//! Makes a network of its own out of namespaces, runs the real daemon in it beside a real proxy
//! (V2Ray or Xray when there is one, plain TCP connections and lines in Xray's format otherwise),
//! and shows three things: two devices that share one account, a phone that changes its network, and
//! a line that somebody forged. Needs no root: without it, it starts itself again under
//! `unshare -Urn`. Takes the path of the `refract` binary, or finds the one that was built with it.
//! Changes nothing outside its network, leaves nothing behind and installs nothing: what is missing
//! is named.
//!
//! | room | what it does |
//! |---|---|
//! | [`acts`] | the story |
//! | [`entrance`] | the proxy, or what stands for one, and the devices that use it |
//! | [`page`] | lines of bounded width on standard output |
//! | [`speed`] | how fast |

mod acts;
mod entrance;
mod page;
mod speed;
#[expect(dead_code, reason = "the demo uses its part of the lab")]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use page::{headline, say};
use support::{
    LabError, Result,
    daemon::{self, Daemon},
    lab::Lab,
};

/// The protected port.
const PORT: u16 = 443;
/// Short, so that the demo is.
const WINDOW: Duration = Duration::from_secs(2);
/// How often a device asks for something new.
const PACE: Duration = Duration::from_millis(200);
/// How long anything may take before the demo gives up.
const BOUND: Duration = Duration::from_secs(20);
/// Programs that the demo runs, and the Debian packages they come in.
const NEEDS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("ipset", "ipset"),
    ("iptables", "iptables"),
    ("setpriv", "util-linux"),
    ("ss", "iproute2"),
    ("unshare", "util-linux"),
];
/// Where system programs are, which the search path of most users leaves out.
const SYSTEM_PROGRAMS: [&str; 2] = ["/usr/sbin", "/sbin"];

fn main() -> ExitCode {
    let demo = prepare().and_then(|()| binary()).and_then(|binary| {
        let begun = Instant::now();
        acts::show(&binary)?;
        speed::measure(&binary)?;
        headline("That was it");
        say(&format!(
            "{:.0} seconds; the network, the set and the rule are gone with the demo.",
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    });
    match demo {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes sure that everything is there and allowed. Goes on in a new process, with the same
/// arguments, where it takes a longer search path or the root of a user namespace of its own.
fn prepare() -> Result<()> {
    let ourselves = env::current_exe().map_err(LabError::while_trying("find this program"))?;
    let mut path: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    if SYSTEM_PROGRAMS.iter().any(|folder| !path.contains(&folder.into())) {
        path.extend(SYSTEM_PROGRAMS.map(PathBuf::from));
        let path = env::join_paths(path).map_err(LabError::while_trying("take PATH"))?;
        let error = Command::new(ourselves).args(env::args_os().skip(1)).env("PATH", path).exec();
        return Err(LabError::new(format!("cannot start itself again: {error}")));
    }
    let is_there = |program: &str| path.iter().any(|folder| folder.join(program).is_file());
    let missing: Vec<_> = NEEDS.into_iter().filter(|(program, _)| !is_there(program)).collect();
    if !missing.is_empty() {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        let packages: BTreeSet<_> = missing.iter().map(|(_, package)| *package).collect();
        return Err(LabError::new(format!(
            "not installed: {}. On Debian or Ubuntu: sudo apt-get install {}",
            programs.join(", "),
            packages.into_iter().collect::<Vec<_>>().join(" "),
        )));
    }

    let is_root = rustix::process::geteuid().is_root();
    let kind = if is_root { "-n" } else { "-Urn" };
    let tried = Command::new("unshare")
        .args([kind, "ip", "link", "set", "lo", "up"])
        .output()
        .map_err(LabError::while_trying("run unshare"))?;
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        let remedy = if is_root {
            "in a container, give it the capabilities SYS_ADMIN and NET_ADMIN".to_owned()
        } else {
            format!("try again as root: sudo {}", ourselves.display())
        };
        return Err(LabError::new(format!(
            "a network namespace cannot be made here ({}); {remedy}",
            said.trim()
        )));
    }
    if is_root {
        return Ok(());
    }
    let error =
        Command::new("unshare").arg(kind).arg(ourselves).args(env::args_os().skip(1)).exec();
    Err(LabError::new(format!("cannot run unshare: {error}")))
}

/// The binary that was named, or the one beside this program (`target/PROFILE/refract`).
fn binary() -> Result<PathBuf> {
    let named = env::args_os().nth(1).map(PathBuf::from);
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("refract"));
    named
        .or_else(beside)
        .filter(|path| path.is_file())
        .ok_or_else(|| LabError::new("no refract binary: build it, or name its path"))
}

/// Runs the daemon with these flags and no other settings: this machine's policy file is not the
/// demo's.
fn start(binary: &Path, lab: &Lab, flags: &[String]) -> Result<Daemon> {
    let policy = lab.path("refract.toml");
    fs::write(&policy, "").map_err(LabError::while_trying("make an empty policy file"))?;
    let mut command = daemon::command(binary, flags);
    command.env("REFRACT_CONFIG", policy);
    Daemon::start_command(lab.server(), &command)
}
