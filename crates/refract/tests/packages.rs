//! The packages and the unit, as an operator has them: built, installed on a machine that boots
//! systemd, started, upgraded, removed, purged.
//!
//! The machine is a small Debian in the network of a lab's server, beside a real proxy whose log only
//! root may read. Every claim is checked by somebody else than Refract: dpkg, rpm, systemd, logrotate,
//! ipset, iptables, and devices that are cut.

mod machine;
#[path = "../examples/manual/pages.rs"]
mod pages;
#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    net::IpAddr,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use machine::Machine;
use refract::sandbox::landlock_of_this_kernel;
use support::{
    LabError, Result, eventually,
    guide::Guide,
    lab::{Host, Lab, SERVER_V4},
    nft_table,
    proxy::{ALICE, BOB, Device, Program, Protocol, ProxyServer, REQUEST_BOUND, User},
    witness,
};

const PORT: u16 = 8443;
const BANNED: &str = "refract_banned_users";
/// How long two devices may share an account. It takes about two windows of 5 s.
const CUT_BOUND: Duration = Duration::from_mins(1);
/// How long anything may take that systemd does by itself.
const SYSTEMD_BOUND: Duration = Duration::from_mins(1);
/// What the unit may give a process: `CAP_DAC_READ_SEARCH` (2), `CAP_NET_ADMIN` (12) and
/// `CAP_NET_RAW` (13), by linux/capability.h.
const CAPABILITIES: u64 = 1 << 2 | 1 << 12 | 1 << 13;

#[test]
fn the_same_sources_make_the_same_packages() -> Result<()> {
    let directory = temporary()?;
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    for out in [&first, &second] {
        // What is written at another time, elsewhere, is to be the same.
        build(out, "1.0.0")?;
    }
    for package in packages(&first, "1.0.0") {
        let name = package.file_name().unwrap_or_default();
        let [one, other] = [&package, &second.join(name)].map(|path| {
            fs::read(path).map_err(LabError::while_trying(format!("read {}", path.display())))
        });
        assert!(one? == other?, "{} is another each time", name.display());
    }
    Ok(())
}

#[test]
fn both_packages_install_the_same_files_as_root() -> Result<()> {
    let directory = temporary()?;
    build(directory.path(), "1.0.0")?;
    let [deb, rpm] = packages(directory.path(), "1.0.0");
    no_library_is_needed(&deb, &rpm)?;
    what_is_linked_in_is_named(&deb)?;
    let listing = output(Command::new("dpkg-deb").arg("--contents").arg(&deb))?;
    let mut of_deb = Vec::new();
    for line in listing.lines().filter(|line| !line.starts_with('d')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "root/root", "{line}");
        of_deb.push(words[5].trim_start_matches('.').to_owned());
    }
    let query = ["-qp", "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILENAMES}\n]"];
    let listing = output(Command::new("rpm").args(query).arg(&rpm))?;
    let mut of_rpm = Vec::new();
    for line in listing.lines().filter(|line| !line.starts_with('d')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "root", "{line}");
        // Each has its own place for what is not zsh's.
        of_rpm.push(words[2].replace("site-functions", "vendor-completions"));
    }
    of_deb.sort();
    of_rpm.sort();
    assert_eq!(of_deb, of_rpm);
    for wanted in [
        "/opt/refract/refract",
        "/usr/bin/refract",
        "/usr/lib/systemd/system/refract.service",
        "/usr/lib/sysusers.d/refract.conf",
        "/etc/default/refract",
        "/etc/logrotate.d/refract",
        "/usr/share/doc/refract/examples/refract.toml",
        "/usr/share/doc/refract/copyright",
        "/usr/share/doc/refract/THIRD-PARTY-LICENSES.txt",
        "/usr/share/doc/refract/refract.cdx.json",
        "/usr/share/man/man8/refract.8.gz",
        "/usr/share/bash-completion/completions/refract",
        "/usr/share/zsh/vendor-completions/_refract",
        "/usr/share/fish/vendor_completions.d/refract.fish",
    ] {
        assert!(of_deb.iter().any(|path| path == wanted), "no {wanted} in {of_deb:#?}");
    }
    let sums = output(Command::new("rpm").args(["--checksig", "--nosignature"]).arg(&rpm))?;
    assert!(sums.contains("digests OK"), "{sums}");
    let configuration = output(Command::new("rpm").args(["-qp", "--configfiles"]).arg(&rpm))?;
    let conffiles = output(Command::new("dpkg-deb").arg("--info").arg(&deb).arg("conffiles"))?;
    assert_eq!(configuration, conffiles);
    Ok(())
}

/// Neither package asks for a C library, and the program names none.
fn no_library_is_needed(deb: &Path, rpm: &Path) -> Result<()> {
    let depends = output(Command::new("dpkg-deb").arg("--field").arg(deb).arg("Depends"))?;
    assert_eq!(depends, "systemd | systemd-standalone-sysusers\n");
    let requires = output(Command::new("rpm").args(["-qp", "--requires"]).arg(rpm))?;
    assert!(!requires.contains(".so"), "{requires}");
    let unpacked = unpacked(deb)?;
    let program = unpacked.path().join("opt/refract/refract");
    let dynamic = output(Command::new("readelf").args(["--wide", "--dynamic"]).arg(&program))?;
    assert!(!dynamic.contains("NEEDED"), "{dynamic}");
    Ok(())
}

/// What the bill of materials has the list of licences has too, and nothing is of whoever built it.
fn what_is_linked_in_is_named(deb: &Path) -> Result<()> {
    let unpacked = unpacked(deb)?;
    let read = |path: &str| {
        let path = unpacked.path().join(path);
        fs::read(&path).map_err(LabError::while_trying(format!("read {}", path.display())))
    };
    let licences = read("usr/share/doc/refract/THIRD-PARTY-LICENSES.txt")?;
    let licences = String::from_utf8_lossy(&licences);
    let bill: serde_json::Value =
        serde_json::from_slice(&read("usr/share/doc/refract/refract.cdx.json")?)
            .map_err(LabError::while_trying("parse the bill of materials"))?;
    let components = bill.get("components").and_then(serde_json::Value::as_array);
    let mut ours_and_theirs = Vec::new();
    for component in components.into_iter().flatten() {
        let text = |field: &str| component.get(field).and_then(|text| text.as_str()).unwrap_or("");
        let (name, version) = (text("name"), text("version"));
        let listed = match name {
            "refract-core" | "refract-kernel" => continue,
            "rust-std" => "the standard library of Rust: ".to_owned(),
            "glibc" => format!("the GNU C Library ({version}): "),
            "libgcc" => format!("the runtime library of GCC ({version}): "),
            _ => format!("  {name} {version}: "),
        };
        assert!(!version.is_empty() && licences.contains(&listed), "no {listed:?} in {licences}");
        ours_and_theirs.push(name);
    }
    for wanted in ["clap", "landlock", "rust-std", "glibc", "libgcc"] {
        assert!(ours_and_theirs.contains(&wanted), "no {wanted} in {bill:#}");
    }
    let program = read("opt/refract/refract")?;
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    let top = env!("CARGO_MANIFEST_DIR").trim_end_matches("crates/refract");
    for path in [home.unwrap_or_default(), top.to_owned()] {
        let found = memchr::memmem::find(&program, path.as_bytes());
        assert!(found.is_none() && !path.is_empty(), "the program holds {path:?}");
    }
    Ok(())
}

#[test]
fn the_manual_page_is_clean_roff_and_names_every_flag_and_command() -> Result<()> {
    let directory = temporary()?;
    pages::write_all(directory.path()).map_err(LabError::while_trying("write the manual"))?;
    let page = directory.path().join("refract.8");
    // Every warning; without overstriking, and in lines that break no name.
    let output = Command::new("groff")
        .args(["-man", "-ww", "-Tascii", "-P-cbou", "-rLL=200n"])
        .arg(&page)
        .output()
        .map_err(LabError::while_trying("run groff"))?;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8_lossy(&output.stdout);
    let command = <refract::cli::Cli as clap::CommandFactory>::command();
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        assert!(text.contains(&format!("--{flag}")), "no --{flag} in\n{text}");
    }
    for mut command in command.get_subcommands().cloned() {
        let name = format!("refract {}", command.get_name());
        let line = text.lines().find(|line| line.trim_start().starts_with(&name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        // "Usage: unban [OPTIONS] [SOURCE]..."; what must be given has no brackets on the page.
        let usage = command.render_usage().to_string();
        for argument in usage.split_whitespace().skip(2).filter(|word| *word != "[OPTIONS]") {
            let wanted = argument.replace(['<', '>'], "");
            assert!(line.split_whitespace().any(|word| word == wanted), "{line}, but {usage}");
        }
    }
    Ok(())
}

#[test]
fn an_operator_installs_runs_upgrades_removes_and_purges_it() -> Result<()> {
    let mut lab = Lab::new()?;
    let hosts = ["198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.14"]
        .map(|address| lab.add_client(&[address]));
    let [one, two, three, four] = hosts;
    let (one, two, three, four) = (one?, two?, three?, four?);
    let built = temporary()?;
    build(built.path(), "1.0.0")?;
    build(built.path(), "1.0.1")?;
    let program = Program::find()?;
    let proxy = ProxyServer::start(&lab, &program, Protocol::Vless, PORT)?;
    let machine =
        Machine::boot(&lab, &[(built.path(), "/packages"), (lab.directory(), "/var/log/xray")])?;
    let scene = Scene { lab: &lab, machine: &machine, program: &program, proxy: &proxy };
    let story = || {
        scene.install()?;
        scene.start()?;
        scene.is_confined()?;
        scene.share(&ALICE, &one, &two)?;
        scene.is_banned("198.51.100.12", "alice@example.com")?;
        scene.rotate()?;
        scene.share(&BOB, &three, &four)?;
        scene.is_banned("198.51.100.14", "bob@example.com")?;
        scene.rotated_log_has_alice_alone()?;
        scene.reload()?;
        scene.restart()?;
        scene.watchdog_ends_a_loop_that_is_stuck()?;
        scene.killed_it_comes_again()?;
        scene.a_senseless_command_line_is_not_tried_again()?;
        scene.legacy_iptables_shares_its_lock()?;
        scene.upgrade()?;
        scene.remove()?;
        scene.purge_halfway_through_an_upgrade()?;
        scene.purge()?;
        scene.purge_with_nftables()?;
        scene.purge_while_the_user_is_at_work()?;
        scene.purge_leaves_a_user_that_it_has_not_made()?;
        scene.rpm()
    };
    let told = panic::catch_unwind(AssertUnwindSafe(story));
    if !matches!(told, Ok(Ok(()))) {
        eprintln!("the machine's journal:\n{}", scene.journal());
    }
    told.unwrap_or_else(|cause| panic::resume_unwind(cause))
}

#[test]
fn an_archive_is_installed_and_taken_away_as_the_document_says() -> Result<()> {
    let lab = Lab::new()?;
    let built = temporary()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/dist");
    output(Command::new(script).arg("").arg(built.path()))?;
    let machine = Machine::boot(&lab, &[(built.path(), "/packages")])?;
    let document = Guide::document("docs/releases.md")?;
    let block = |text: &str| -> Result<String> {
        let block = document.block("sh", text)?.replace("sudo ", "");
        Ok(block.replace("x86_64-unknown", &format!("{}-unknown", std::env::consts::ARCH)))
    };
    let [unpack, install, once] =
        [block("tar -xzf")?, block("daemon-reload")?, block("refract.default")?];
    machine.run(&format!("cd /packages\n{unpack}{install}{once}"))?;
    assert!(machine.run("refract --version")?.starts_with("refract "));
    // As with a package from here on.
    let unit = "/etc/systemd/system/refract.service";
    assert_eq!(machine.run(&format!("systemd-analyze verify --man=no {unit} 2>&1"))?, "");
    assert!(!machine.succeeds("systemctl is-active refract")?);
    machine.run(&format!("install -D /dev/null /var/log/xray/access.log\n{}", doctor()?))?;
    machine.run("logrotate --debug /etc/logrotate.d/refract")?;
    machine.run("systemctl enable --now --quiet refract")?;
    assert_eq!(machine.property("refract", "ActiveState")?, "active");
    let owner = machine.run("stat -c '%a %U' /var/log/refract/block.log")?;
    assert_eq!(owner, "640 refract\n");
    assert!(witness::sets(lab.server())?.iter().any(|set| set == BANNED));
    // An upgrade is the same once more.
    let before = machine.property("refract", "MainPID")?;
    machine.run(&format!("cd /packages\n{unpack}{install}{}", block("systemctl try-restart")?))?;
    assert_eq!(machine.property("refract", "ActiveState")?, "active");
    assert_ne!(machine.property("refract", "MainPID")?, before);
    machine.run(&block("refract uninstall")?)?;
    kernel_has_nothing(lab.server())?;
    machine.run(&block("userdel refract")?)?;
    assert_eq!(traces(&machine)?, "");
    Ok(())
}

#[test]
fn documents_name_the_files_that_are_made() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let deb = format!("sudo apt-get install ./target/packages/refract_{version}_amd64.deb\n");
    assert!(Guide::document("README.md")?.block("sh", "make deb")?.contains(&deb), "{deb}");
    let copied = format!("sudo apt-get install ./refract_{version}_amd64.deb\n");
    Guide::document("docs/install/systemd.md")?.block("sh", &copied)?;
    let archive = format!("refract-{version}-x86_64-unknown-linux-gnu");
    Guide::document("docs/releases.md")?.block("sh", &archive)?;
    // `make deb` puts the package where the README finds it.
    let mut make = Command::new("make");
    make.args(["--dry-run", "--directory", concat!(env!("CARGO_MANIFEST_DIR"), "/../..")]);
    let would = output(make.arg("deb").env_remove("CARGO_TARGET_DIR"))?;
    assert!(would.contains("./packaging/make-packages \"\" target/packages deb"), "{would}");
    Ok(())
}

/// Where the operator is at work.
struct Scene<'a> {
    lab: &'a Lab,
    machine: &'a Machine<'a>,
    program: &'a Program,
    proxy: &'a ProxyServer,
}

impl Scene<'_> {
    /// Nothing starts by itself, and the unit is what it should be.
    fn install(&self) -> Result<()> {
        let machine = self.machine;
        let said = machine.run(
            "apt-get install -y -q /packages/refract_1.0.0_$(dpkg --print-architecture).deb",
        )?;
        assert!(said.contains("systemctl enable --now refract"), "{said}");
        assert!(!machine.succeeds("systemctl is-active refract")?);
        assert!(!machine.succeeds("systemctl is-enabled refract")?);
        assert_eq!(machine.run("readlink -f /usr/bin/refract")?.trim(), "/opt/refract/refract");
        assert!(machine.run("refract --version")?.starts_with("refract "));
        assert_eq!(machine.run("dpkg --verify refract")?, "");
        let unit = "/usr/lib/systemd/system/refract.service";
        // There is no man here to find the page with.
        let verified = machine.run(&format!("systemd-analyze verify --man=no {unit} 2>&1"))?;
        assert_eq!(verified, "");
        // Tenths: 20 is an exposure of 2.0.
        machine.run(&format!(
            "systemd-analyze security --offline=true --threshold=20 --no-pager {unit}"
        ))?;
        machine.run("logrotate --debug /etc/logrotate.d/refract")?;
        machine.run("bash -n /usr/share/bash-completion/completions/refract")?;
        Ok(())
    }

    /// As `docs/install/systemd.md` says it.
    fn start(&self) -> Result<()> {
        let log = self.proxy.access_log().file_name().unwrap_or_default().display().to_string();
        let settings = format!(
            "REFRACT_DPORT={PORT}\nREFRACT_ACCESS_LOG=/var/log/xray/{log}\nREFRACT_TIMEOUT=1h\n\
             REFRACT_DRY_RUN=true\n"
        );
        let machine = self.machine;
        machine.run(&format!("cat >>/etc/default/refract <<'END'\n{settings}END"))?;
        machine.run("cp /usr/share/doc/refract/examples/refract.toml /etc/refract/refract.toml")?;
        let in_force = machine.run("refract check")?;
        assert!(in_force.contains("window"), "{in_force}");
        let doctor = machine.run(&doctor()?)?;
        assert!(!doctor.is_empty());
        machine.run("systemctl enable --now --quiet refract")?;
        self.is_active()?;
        let status = self.status()?;
        assert!(status.starts_with("dry run; evidence: kernel"), "{status}");
        assert_eq!(witness::sets(self.lab.server())?, [""; 0]);
        machine.run("sed -i /^REFRACT_DRY_RUN/d /etc/default/refract")?;
        machine.run("systemctl restart refract")?;
        self.is_active()?;
        let status = self.status()?;
        assert!(status.starts_with("evidence: kernel"), "{status}");
        assert!(status.contains("bans in force: 0"), "{status}");
        let shown = machine.run("systemctl status --no-pager refract")?;
        assert!(shown.contains("Status: \"evidence: kernel"), "{shown}");
        Ok(())
    }

    /// A user of its own, with no more than it needs.
    fn is_confined(&self) -> Result<()> {
        let machine = self.machine;
        let process = self.process()?;
        let status = machine.run(&format!("cat /proc/{process}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let user = machine.run("id -u refract")?;
        assert_eq!(field("Uid").split_whitespace().next(), Some(user.trim()), "{status}");
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()));
        for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"] {
            let held = u64::from_str_radix(&field(set), 16)
                .map_err(LabError::while_trying(format!("read {set} in\n{status}")))?;
            assert_eq!(held & !CAPABILITIES, 0, "{set} in\n{status}");
        }
        // The unit's filter lets the daemon confine itself.
        let Some(abi) = landlock_of_this_kernel() else {
            return Err(LabError::new(
                "this kernel has no Landlock, with which the unit is to be tested (it takes 5.13, \
                 and landlock among the kernel parameter lsm=)",
            ));
        };
        self.journal_says(&format!("no_new_privs, landlock ABI {abi}, seccomp"), 1)?;
        let modes = machine.run("stat -c '%a %U %n' /var/log/refract /var/lib/refract")?;
        assert_eq!(modes, "750 refract /var/log/refract\n750 refract /var/lib/refract\n");
        Ok(())
    }

    /// Two devices use one account, until the second is cut.
    fn share(&self, user: &User, first: &Host, second: &Host) -> Result<()> {
        let one = self.device(first, user)?;
        let download = one.stream(REQUEST_BOUND)?;
        thread::scope(|scope| {
            let (over, is_over) = mpsc::channel::<()>();
            let first = &one;
            let asking = scope.spawn(move || first.ask_until(&is_over));
            let two = self.device(second, user)?;
            let cut = two.share_until_cut(CUT_BOUND);
            drop(over);
            let asked = asking.join().unwrap_or_else(|cause| panic::resume_unwind(cause));
            cut.and(asked)
        })?;
        assert_eq!(download.progress().ending(), None, "the first device was cut too");
        Ok(())
    }

    fn device<'host>(&self, host: &'host Host, user: &User) -> Result<Device<'host>> {
        let addresses = (host.v4()?, IpAddr::V4(SERVER_V4));
        Device::start(self.lab, self.program, self.proxy, host, addresses, user)
    }

    /// The kernel has the ban, the block log its reason, systemd its number.
    fn is_banned(&self, address: &str, user: &str) -> Result<()> {
        witness::wait_for_member(self.lab.server(), BANNED, address, true, REQUEST_BOUND)?;
        let block_log = self.machine.path("/var/log/refract/block.log");
        let record = witness::wait_for_line(&block_log, user, REQUEST_BOUND)?;
        assert!(record.contains(address) && record.contains("ban"), "{record}");
        let why = self.machine.run(&format!("refract why {address}"))?;
        assert!(why.contains(user), "{why}");
        let list = self.machine.run("refract list")?;
        assert!(list.contains(address), "{list}");
        let bans = witness::set_members(self.lab.server(), BANNED)?.len();
        self.status_says(&format!("bans in force: {bans};"))
    }

    /// What logrotate moves away is written no more.
    fn rotate(&self) -> Result<()> {
        let machine = self.machine;
        machine.run("logrotate --force /etc/logrotate.d/refract")?;
        self.journal_says("opened the block log again", 1)?;
        let modes = machine.run("stat -c '%a %U' /var/log/refract/block.log")?;
        assert_eq!(modes, "640 refract\n");
        assert_eq!(machine.run("cat /var/log/refract/block.log")?, "");
        Ok(())
    }

    fn rotated_log_has_alice_alone(&self) -> Result<()> {
        let old = self.machine.run("cat /var/log/refract/block.log.1")?;
        let new = self.machine.run("cat /var/log/refract/block.log")?;
        assert!(old.contains(ALICE.email) && !old.contains(BOB.email), "{old}");
        assert!(new.contains(BOB.email) && !new.contains(ALICE.email), "{new}");
        Ok(())
    }

    /// The policy is another, and the process the same.
    fn reload(&self) -> Result<()> {
        let machine = self.machine;
        let before = self.process()?;
        machine.run("sed -i 's/^user-bans = .*/user-bans = 20/' /etc/refract/refract.toml")?;
        machine.run("refract check")?;
        machine.run("systemctl reload refract")?;
        self.journal_says("opened the block log again", 2)?;
        self.journal_says("the policy was read again", 1)?;
        self.is_active()?;
        assert_eq!(self.process()?, before);
        Ok(())
    }

    fn restart(&self) -> Result<()> {
        let before = self.process()?;
        self.machine.run("systemctl restart refract")?;
        assert_ne!(self.process()?, before);
        self.bans_are_kept()
    }

    /// Stopped, a process reports nothing, and so does one that is stuck.
    fn watchdog_ends_a_loop_that_is_stuck(&self) -> Result<()> {
        let machine = self.machine;
        machine.run(
            "mkdir -p /run/systemd/system/refract.service.d
             printf '[Service]\\nWatchdogSec=4s\\n' >/run/systemd/system/refract.service.d/test.conf
             systemctl daemon-reload
             systemctl restart refract",
        )?;
        let before = self.process()?;
        machine.run(&format!("kill -STOP {before}"))?;
        self.comes_again(before)?;
        self.journal_says("Watchdog timeout", 1)?;
        self.bans_are_kept()?;
        machine.run(
            "rm -r /run/systemd/system/refract.service.d
             systemctl daemon-reload
             systemctl restart refract",
        )?;
        assert_eq!(machine.property("refract", "WatchdogUSec")?, "30s");
        Ok(())
    }

    fn killed_it_comes_again(&self) -> Result<()> {
        let before = self.process()?;
        self.machine.run(&format!("kill -KILL {before}"))?;
        self.comes_again(before)?;
        self.bans_are_kept()
    }

    /// Another start does not make sense of it; what the operator mends does.
    fn a_senseless_command_line_is_not_tried_again(&self) -> Result<()> {
        let machine = self.machine;
        machine.run("echo 'REFRACT_ARGS=\"--window=never --limit=1\"' >>/etc/default/refract")?;
        assert!(!machine.succeeds(&doctor()?)?, "doctor is not told of REFRACT_ARGS");
        assert!(!machine.succeeds("systemctl restart refract")?);
        eventually("the unit to have failed", SYSTEMD_BOUND, || {
            Ok((machine.property("refract", "ActiveState")? == "failed").then_some(()))
        })?;
        self.journal_says("--window (REFRACT_WINDOW) cannot be \"never\"", 1)?;
        machine.run(
            "sed -i 's/^REFRACT_ARGS=.*/REFRACT_ARGS=\"--limit=1 --window=5s\"/' /etc/default/refract",
        )?;
        machine.run("systemctl restart refract")?;
        self.bans_are_kept()
    }

    /// It waits for the lock of others' iptables, which is not its to make.
    fn legacy_iptables_shares_its_lock(&self) -> Result<()> {
        let machine = self.machine;
        machine.run("echo REFRACT_IPTABLES=/usr/sbin/iptables-legacy >>/etc/default/refract")?;
        machine.run("systemctl restart refract")?;
        self.bans_are_kept()?;
        let rules = machine.run("iptables-legacy -S INPUT")?;
        assert!(rules.contains(BANNED), "{rules}");
        // While another holds it a start fails, and systemd tries again.
        let locked = "flock /run/xtables.lock systemctl restart refract";
        assert!(!machine.succeeds(locked)?, "{locked}");
        self.journal_says("another program held the lock of iptables", 1)?;
        eventually("another start", SYSTEMD_BOUND, || {
            let state = machine.property("refract", "ActiveState")?;
            Ok((state == "active").then_some(()))
        })?;
        self.bans_are_kept()
    }

    /// The operator's settings stay, and so do the bans.
    fn upgrade(&self) -> Result<()> {
        let machine = self.machine;
        let settings = machine.run("cat /etc/default/refract /etc/refract/refract.toml")?;
        let before = self.process()?;
        machine.run(
            "apt-get install -y -q /packages/refract_1.0.1_$(dpkg --print-architecture).deb",
        )?;
        assert_eq!(machine.run("dpkg-query -f '${Version}' -W refract")?, "1.0.1");
        self.is_active()?;
        assert_ne!(self.process()?, before, "the old program still runs");
        assert_eq!(machine.run("cat /etc/default/refract /etc/refract/refract.toml")?, settings);
        assert!(machine.succeeds("systemctl is-enabled refract")?);
        self.bans_are_kept()
    }

    /// What the kernel had of it is gone; what the operator wrote is not, nor what was recorded.
    fn remove(&self) -> Result<()> {
        let machine = self.machine;
        machine.run("apt-get remove -y -q refract")?;
        kernel_has_nothing(self.lab.server())?;
        assert!(!machine.succeeds("systemctl cat refract")?);
        assert!(!machine.succeeds("pgrep -x refract")?);
        for kept in
            ["/etc/default/refract", "/etc/refract/refract.toml", "/var/log/refract/block.log"]
        {
            assert!(machine.succeeds(&format!("test -s {kept}"))?, "{kept}");
        }
        assert!(machine.succeeds("id refract")?);
        Ok(())
    }

    /// dpkg runs no prerm of a package that it has unpacked and not configured.
    fn purge_halfway_through_an_upgrade(&self) -> Result<()> {
        let machine = self.machine;
        machine.run(
            "apt-get install -y -q /packages/refract_1.0.0_$(dpkg --print-architecture).deb
             systemctl enable --now --quiet refract
             dpkg --unpack /packages/refract_1.0.1_$(dpkg --print-architecture).deb",
        )?;
        assert_eq!(machine.run("dpkg-query -f '${db:Status-Status}' -W refract")?, "unpacked");
        self.is_active()?;
        let said = machine.run("dpkg --purge refract 2>&1")?;
        assert!(said.contains("refract: its rules and sets stay in the kernel"), "{said}");
        assert!(!machine.succeeds("pgrep -x refract")?);
        self.package_is_gone()?;
        assert!(!machine.succeeds("getent passwd refract || getent group refract")?);
        assert!(!witness::sets(self.lab.server())?.is_empty());
        // What was said to take them out, the next purge does.
        Ok(())
    }

    /// Nothing is left, wherever it was; first from a daemon that runs.
    fn purge(&self) -> Result<()> {
        let machine = self.machine;
        machine.run(
            "apt-get install -y -q /packages/refract_1.0.1_$(dpkg --print-architecture).deb",
        )?;
        assert!(!machine.succeeds("systemctl is-enabled refract")?);
        machine.run("systemctl start refract")?;
        self.is_active()?;
        machine.run("apt-get purge -y -q refract")?;
        kernel_has_nothing(self.lab.server())?;
        self.package_is_gone()?;
        assert!(!machine.succeeds("getent passwd refract || getent group refract")?);
        Ok(())
    }

    /// The other firewall leaves nothing either.
    fn purge_with_nftables(&self) -> Result<()> {
        let machine = self.machine;
        machine.run(
            "apt-get install -y -q /packages/refract_1.0.1_$(dpkg --print-architecture).deb
             echo REFRACT_FIREWALL=nftables >>/etc/default/refract
             systemctl start refract",
        )?;
        self.is_active()?;
        assert!(nft_table::exists(self.lab.server())?);
        assert_eq!(witness::sets(self.lab.server())?, [""; 0]);
        let said = machine.run("apt-get purge -y -q refract")?;
        assert!(said.contains("deleted the table inet refract"), "{said}");
        kernel_has_nothing(self.lab.server())?;
        self.package_is_gone()
    }

    /// A user of whom a process runs cannot be removed, and the package goes all the same.
    fn purge_while_the_user_is_at_work(&self) -> Result<()> {
        let machine = self.machine;
        machine.run(
            "apt-get install -y -q /packages/refract_1.0.1_$(dpkg --print-architecture).deb",
        )?;
        let process = machine.run(
            "setpriv --reuid=refract --regid=refract --clear-groups sleep 600 >/dev/null 2>&1 &
             echo $!",
        )?;
        let is_his = format!("test \"$(stat -c %U /proc/{})\" = refract", process.trim());
        eventually("the process to be the user's", SYSTEMD_BOUND, || {
            Ok(machine.succeeds(&is_his)?.then_some(()))
        })?;
        let said = machine.run("apt-get purge -y -q refract 2>&1")?;
        assert_eq!(said.matches("refract: its user stays").count(), 1, "{said}");
        self.package_is_gone()?;
        machine.run(&format!("kill {process}"))?;
        eventually("the user to be free", SYSTEMD_BOUND, || {
            Ok(machine.succeeds("userdel refract")?.then_some(()))
        })
    }

    /// Somebody of that name logs in here: his account is not the package's to take away.
    fn purge_leaves_a_user_that_it_has_not_made(&self) -> Result<()> {
        let machine = self.machine;
        machine.run(
            "useradd --create-home --home-dir /home/somebody --shell /bin/sh refract
             apt-get install -y -q /packages/refract_1.0.1_$(dpkg --print-architecture).deb",
        )?;
        let said = machine.run("apt-get purge -y -q refract 2>&1")?;
        assert!(said.contains("refract: the user refract stays, which this package"), "{said}");
        self.package_is_gone()?;
        machine.run("id refract && test -d /home/somebody && getent group refract")?;
        machine.run("userdel --remove refract").map(drop)
    }

    /// Neither dpkg nor the file system has anything left of it.
    fn package_is_gone(&self) -> Result<()> {
        let known = self.machine.run("dpkg-query -f '${db:Status-Status}' -W refract || true")?;
        assert!(matches!(known.as_str(), "" | "not-installed"), "{known}");
        assert_eq!(traces(self.machine)?, "");
        Ok(())
    }

    /// The other package, on a system whose own packages rpm does not know.
    fn rpm(&self) -> Result<()> {
        let machine = self.machine;
        machine.run("rpm -i --nodeps /packages/refract-1.0.0-1.$(rpm --eval '%{_arch}').rpm")?;
        assert!(!machine.succeeds("systemctl is-active refract")?);
        machine.run(&format!("echo REFRACT_DPORT={PORT} >>/etc/default/refract"))?;
        machine.run("systemctl enable --now --quiet refract")?;
        self.is_active()?;
        let before = self.process()?;
        machine.run("rpm -U --nodeps /packages/refract-1.0.1-1.$(rpm --eval '%{_arch}').rpm")?;
        self.is_active()?;
        assert_ne!(self.process()?, before);
        assert!(machine.succeeds(&format!("grep -q ^REFRACT_DPORT={PORT} /etc/default/refract"))?);
        self.moves_to_another_network_namespace()?;
        machine.run("rpm -e refract")?;
        kernel_has_nothing(self.lab.server())?;
        assert_eq!(machine.run("nsenter --net=/run/netns/xray ipset list -name")?, "");
        assert!(!machine.succeeds("systemctl cat refract")?);
        assert!(machine.succeeds("test -s /etc/default/refract.rpmsave")?);
        Ok(())
    }

    /// By the drop-in that is shipped as an example.
    fn moves_to_another_network_namespace(&self) -> Result<()> {
        let machine = self.machine;
        machine.run(
            "systemctl stop refract
             refract uninstall
             ip netns add xray
             mkdir -p /etc/systemd/system/refract.service.d
             cp /usr/share/doc/refract/examples/network-namespace.conf \
                /etc/systemd/system/refract.service.d/
             systemctl daemon-reload
             systemctl start refract",
        )?;
        self.is_active()?;
        kernel_has_nothing(self.lab.server())?;
        let sets = || machine.run("nsenter --net=/run/netns/xray ipset list -name");
        assert!(sets()?.contains(BANNED));
        // Another namespace gets the name.
        let before = self.process()?;
        machine.run("ip netns delete xray; ip netns add xray")?;
        self.comes_again(before)?;
        self.journal_says("the network namespace /run/netns/xray is", 1)?;
        assert!(sets()?.contains(BANNED));
        kernel_has_nothing(self.lab.server())
    }

    fn bans_are_kept(&self) -> Result<()> {
        self.is_active()?;
        let mut members = witness::set_members(self.lab.server(), BANNED)?;
        members.sort();
        assert_eq!(members, ["198.51.100.12", "198.51.100.14"]);
        // With whichever iptables, and with one of them.
        let saved = "iptables-nft-save; iptables-legacy-save";
        let rules = self.lab.server().output("sh", &["-ec", saved])?;
        assert_eq!(rules.matches(&format!("--match-set {BANNED} src")).count(), 1, "{rules}");
        self.status_says("bans in force: 2;")
    }

    fn is_active(&self) -> Result<()> {
        let state = self.machine.property("refract", "ActiveState")?;
        if state == "active" { Ok(()) } else { Err(LabError::new(format!("refract is {state}"))) }
    }

    /// After its end systemd starts it again.
    fn comes_again(&self, before: u32) -> Result<()> {
        eventually("another process", SYSTEMD_BOUND, || {
            // None is process 0, and between two questions much may happen.
            let now = self.process()?;
            let is_active = self.machine.property("refract", "ActiveState")? == "active";
            Ok((now != before && now != 0 && now == self.process()? && is_active).then_some(()))
        })
    }

    fn process(&self) -> Result<u32> {
        let text = self.machine.property("refract", "MainPID")?;
        text.parse().map_err(LabError::while_trying(format!("take {text} for a process")))
    }

    fn status(&self) -> Result<String> {
        self.machine.property("refract", "StatusText")
    }

    fn status_says(&self, text: &str) -> Result<()> {
        let what = format!("the status to say \"{text}\"");
        eventually(&what, SYSTEMD_BOUND, || Ok(self.status()?.contains(text).then_some(())))
            .map_err(|error| LabError::new(format!("{error}: {:?}", self.status())))
    }

    fn journal_says(&self, text: &str, times: usize) -> Result<()> {
        let what = format!("\"{text}\" in the journal, {times} times");
        eventually(&what, SYSTEMD_BOUND, || {
            Ok((self.journal().matches(text).count() >= times).then_some(()))
        })
    }

    fn journal(&self) -> String {
        let journal = self.machine.run("journalctl --no-pager --unit=refract --output=short");
        journal.unwrap_or_else(|error| error.to_string())
    }
}

/// Files that bear our name, but those of the machine's bookkeeping and the proxy's log.
fn traces(machine: &Machine<'_>) -> Result<String> {
    machine.run(
        "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /run/systemd -prune \\
            -o -path /packages -prune -o -path /var/log/xray -prune -o -path /var/log/journal \\
            -prune -o -name '*refract*' ! -name refract-test-packages -print",
    )
}

fn kernel_has_nothing(server: &Host) -> Result<()> {
    assert_eq!(witness::sets(server)?, [""; 0]);
    assert!(!nft_table::exists(server)?, "there is a table of nftables");
    for tool in ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"]
    {
        let rules = server.output(tool, &[])?;
        assert!(!rules.contains("refract"), "{tool}:\n{rules}");
    }
    Ok(())
}

/// How `docs/install/systemd.md` has doctor asked.
fn doctor() -> Result<String> {
    let block = Guide::document("docs/install/systemd.md")?.block("sh", "refract doctor")?;
    Ok(block.replace("sudo ", ""))
}

/// Builds both packages into `out`.
fn build(out: &Path, version: &str) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/make-packages");
    let mut command = Command::new(script);
    command.arg("").arg(out).args(["deb", "rpm"]);
    output(command.env("VERSION", version).env("SOURCE_DATE_EPOCH", "1700000000")).map(drop)
}

/// What the package installs.
fn unpacked(deb: &Path) -> Result<tempfile::TempDir> {
    let directory = temporary()?;
    output(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(directory.path()))?;
    Ok(directory)
}

/// The `.deb` and the `.rpm` of a version.
fn packages(out: &Path, version: &str) -> [PathBuf; 2] {
    let is_arm = cfg!(target_arch = "aarch64");
    let (debian, rpm) = if is_arm { ("arm64", "aarch64") } else { ("amd64", "x86_64") };
    [
        out.join(format!("refract_{version}_{debian}.deb")),
        out.join(format!("refract-{version}-1.{rpm}.rpm")),
    ]
}

fn output(command: &mut Command) -> Result<String> {
    let what = format!("run {}", command.get_program().display());
    let output = command.output().map_err(LabError::while_trying(what.as_str()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::new(format!("cannot {what}: {}: {said}", output.status)))
}

fn temporary() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("refract-packages-")
        .tempdir()
        .map_err(LabError::while_trying("make a directory"))
}
