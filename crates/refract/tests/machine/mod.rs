//! A machine that boots: Debian with its own systemd, in the network of a lab's server.
//!
//! Takes a lab; makes a container of a tree that `mmdebstrap` builds from the system's own package
//! sources, boots it with `systemd-nspawn`, and runs commands inside. The tree is built once and never
//! written to: what a machine changes is gone with it. The machine dies with this process. It knows
//! nothing of Refract.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::support::{LabError, Result, eventually, lab::Lab, process::Process};

/// What is in the tree beside the smallest Debian.
const PACKAGES: &str = "systemd,systemd-sysv,iptables,ipset,nftables,iproute2,logrotate,procps,rpm";
/// How long a boot may take; it takes a second on an idle machine.
const BOOT_BOUND: Duration = Duration::from_mins(2);
/// The calls of landlock(7), which `systemd-nspawn` lets through only if it is told.
const LANDLOCK: &str = "landlock_create_ruleset landlock_add_rule landlock_restrict_self";
/// The whole environment of a command inside.
const ENVIRONMENT: [&str; 4] = [
    "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "PAGER=cat",
];

/// A booted machine.
pub(crate) struct Machine<'lab> {
    lab: &'lab Lab,
    /// `unshare`, which takes everything with it when it ends.
    process: Process,
    /// The machine's first process, as its host numbers it.
    first: u32,
    cgroups: Vec<PathBuf>,
}

impl<'lab> Machine<'lab> {
    /// Boots one whose network is the lab's server's, and that finds `outside` at `inside`.
    pub(crate) fn boot(lab: &'lab Lab, binds: &[(&Path, &str)]) -> Result<Self> {
        let tree = tree()?;
        let cgroups = cgroups()?;
        let mut command = Command::new("sh");
        // A machine's systemd believes that all of its control group is its own.
        command.args(["-euc", ENTER_AND_RUN, "sh"]).arg(cgroups.len().to_string()).args(&cgroups);
        // With its first process everything in a process namespace ends.
        command.args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"]);
        command.args(["--network-namespace-path=/proc/self/ns/net", "--capability=CAP_NET_ADMIN"]);
        command.arg("--volatile=overlay");
        // Its own filter would hide Landlock from the machine, which a machine of its own has.
        command.arg(format!("--system-call-filter={LANDLOCK}"));
        command.args(["--machine=refract-test", "--console=pipe", "--link-journal=no"]);
        command.arg(format!("--directory={}", tree.display()));
        for (outside, inside) in binds {
            command.arg(format!("--bind={}:{inside}", outside.display()));
        }
        let process = Process::start(lab.server(), &command)?;
        let mut machine = Self { lab, process, first: 0, cgroups };
        machine.first = machine.wait_until_booted()?;
        Ok(machine)
    }

    /// Runs lines of shell inside and gives what they print; a command that fails ends them, and is an
    /// error with all that was printed.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        let output = self.finish(script)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(LabError::new(format!("`{script}`: {}\n{said}{complaint}", output.status)))
    }

    /// Whether lines of shell end well.
    pub(crate) fn succeeds(&self, script: &str) -> Result<bool> {
        Ok(self.finish(script)?.status.success())
    }

    /// A property of a unit, as `systemctl show` prints it.
    pub(crate) fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.run(&format!("systemctl show --property={name} --value {unit}"))?;
        Ok(value.trim().to_owned())
    }

    /// A file of the machine, as its host finds it.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.first))
    }

    fn finish(&self, script: &str) -> Result<std::process::Output> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.first));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]);
        command.args(["env", "-i"]).args(ENVIRONMENT).args(["sh", "-euc", script]);
        self.lab.server().finish(command)
    }

    /// The machine's first process is the child of `systemd-nspawn`, which is that of `unshare`.
    fn wait_until_booted(&mut self) -> Result<u32> {
        let trouble = |error: LabError, said: &str| {
            LabError::new(format!(
                "the machine does not boot (it takes root, control groups that can be written, and \
                 overlayfs): {error}\n{said}"
            ))
        };
        let booted = eventually("the machine to run", BOOT_BOUND, || {
            if let Some(status) = self.process.ended()? {
                return Err(LabError::new(format!("systemd-nspawn ended with {status}")));
            }
            let Some(first) = only_child(self.process.id()).and_then(only_child) else {
                return Ok(None);
            };
            // Before that it is still systemd-nspawn, outside of the tree.
            if !Path::new(&format!("/proc/{first}/root/run/systemd/private")).exists() {
                return Ok(None);
            }
            self.first = first;
            let state = self.finish("systemctl is-system-running")?;
            match String::from_utf8_lossy(&state.stdout).trim() {
                "running" => Ok(Some(first)),
                "degraded" => Err(LabError::new(self.run("systemctl --failed --no-pager")?)),
                _ => Ok(None),
            }
        });
        booted.map_err(|error| trouble(error, &self.process.said()))
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // `unshare` takes all the rest with it.
        let _ = self.process.signal(rustix::process::Signal::KILL);
        let _ = self.process.wait(BOOT_BOUND);
        // The last processes leave their groups in their own time.
        let _ = eventually("the control groups to be empty", BOOT_BOUND, || {
            Ok(self.cgroups.iter().all(|group| remove_group(group)).then_some(()))
        });
    }
}

/// Joins the `$1` control groups that follow, and becomes the command after them.
const ENTER_AND_RUN: &str = "
    count=$1
    shift
    while [ $count -gt 0 ]; do
        echo $$ >\"$1/cgroup.procs\"
        shift
        count=$((count - 1))
    done
    exec \"$@\"";

fn only_child(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// New control groups, one in each hierarchy that systemd uses (cgroups(7)).
fn cgroups() -> Result<Vec<PathBuf>> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("refract-test-{}-{count}", std::process::id());
    let roots = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let groups: Vec<PathBuf> = roots
        .into_iter()
        .map(Path::new)
        .filter(|root| root.join("cgroup.procs").exists())
        .map(|root| root.join(&name))
        .collect();
    for group in &groups {
        let what = format!("make the control group {}", group.display());
        fs::create_dir(group).map_err(LabError::while_trying(what))?;
    }
    if groups.is_empty() {
        return Err(LabError::new("no control groups are mounted at /sys/fs/cgroup"));
    }
    Ok(groups)
}

/// Whether the group is gone, with all that are in it.
fn remove_group(group: &Path) -> bool {
    let Ok(entries) = fs::read_dir(group) else { return !group.exists() };
    let inner = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_empty = inner.filter(|path| path.is_dir()).all(|path| remove_group(&path));
    is_empty && fs::remove_dir(group).is_ok()
}

/// The tree, built if it is not there: about a minute. Whoever asks meanwhile, from this process or
/// another, waits for it.
fn tree() -> Result<PathBuf> {
    let release = codename()?;
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tree = home.join(format!("machine-{release}"));
    let trouble = LabError::while_trying("have the tree to oneself");
    let one_at_a_time = fs::File::create(home.join("machine.lock"))
        .and_then(|lock| lock.lock().map(|()| lock))
        .map_err(trouble)?;
    let stamp = |tree: &Path| tree.join("etc/refract-test-packages");
    if fs::read_to_string(stamp(&tree)).is_ok_and(|packages| packages == PACKAGES) {
        return Ok(tree);
    }
    // Whoever is killed meanwhile leaves no half of a tree at the place of a whole one.
    let building = home.join(format!("machine-{release}-unfinished"));
    remove_tree(&building)?;
    let include = format!("--include={PACKAGES}");
    let mut build = Command::new("mmdebstrap");
    build.args(["--quiet", "--variant=minbase", &include, &release]).arg(&building);
    run(build)?;
    fs::write(stamp(&building), PACKAGES).map_err(LabError::while_trying("finish the tree"))?;
    remove_tree(&tree)?;
    fs::rename(&building, &tree).map_err(LabError::while_trying("keep the tree"))?;
    drop(one_at_a_time);
    Ok(tree)
}

/// Removes a tree, but nothing that is mounted in it.
fn remove_tree(tree: &Path) -> Result<()> {
    let mut remove = Command::new("rm");
    remove.args(["--recursive", "--force", "--one-file-system"]).arg(tree);
    run(remove)
}

fn run(mut command: Command) -> Result<()> {
    let what = format!("run {}", command.get_program().display());
    let output = command.output().map_err(LabError::while_trying(what.as_str()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::new(format!("cannot {what}: {}\n{said}", output.status)))
}

/// The release that runs here, for which binaries are built.
fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .ok_or_else(|| {
            LabError::new(
                "the machine is built for the release of Debian or Ubuntu that runs here, and \
                 /etc/os-release names none",
            )
        })
}
