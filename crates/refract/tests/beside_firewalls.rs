//! Beside a real ufw, and rules that are saved and restored: bans and rule outlive both.
//!
//! ufw is Debian's, run as an operator runs it, in the lab's network namespace and in a mount
//! namespace of its own, where its settings are copies. The witness is a client who stays shut out
//! and one who does not. With either firewall of Refract's.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use support::{
    LabError, Result,
    access_log::accepted_line,
    eventually,
    guide::Guide,
    lab::{Host, Lab, SERVER_V4},
    nft_table,
    peer::{Server, Talker},
    sidecar::Sidecar,
    witness,
};

const AT: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 443);
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11));
const AWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 12));
/// How long the rule may be away.
const REPAIR_BOUND: Duration = Duration::from_secs(10);
/// What the daemon says when the rule was gone.
const REPAIRED: &str = "it is again at the top of INPUT";
const BANNED: &str = "refract_banned_users";
const BANNED6: &str = "refract_banned_users6";

/// A server on 443, a client with two addresses, and a ban on the second.
struct Stage {
    lab: Lab,
    client: Host,
    _echo: Server,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.add_client(&["198.51.100.11", "198.51.100.12"])?;
        let echo = Server::echo(lab.server(), 443)?;
        Ok(Self { lab, client, _echo: echo })
    }

    fn ban(&self) -> Result<Sidecar> {
        let sidecar = Sidecar::start(&self.lab, &["--timeout=10m"])?;
        let line = |source| accepted_line(SocketAddr::new(source, 40_000), "alice@example.com");
        let record = sidecar.take_one(line(HOME) + &line(AWAY))?;
        assert_eq!((record.action, record.source), ("ban".to_owned(), AWAY.to_string()));
        Ok(sidecar)
    }

    /// The rule comes first for both families, and shuts out exactly whom it should.
    fn assert_ban_holds(&self, after: &str) -> Result<()> {
        let host = self.lab.server();
        for set in [BANNED, BANNED6] {
            eventually(&format!("the rule for {set} after {after}"), REPAIR_BOUND, || {
                witness::rule_for(host, set)
            })?;
        }
        let members = witness::set_members(host, BANNED)?;
        assert!(members.contains(&AWAY.to_string()), "{members:?} after {after}");
        assert!(Talker::connect(&self.client, AWAY, AT).is_err(), "let in after {after}");
        Talker::connect(&self.client, HOME, AT)?.wait_for_answers()
    }
}

#[test]
fn ufw_enabled_reloaded_and_disabled_lifts_no_ban_and_lets_everybody_else_in() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = stage.ban()?;
    stage.assert_ban_holds("the start")?;
    let ufw = Ufw::new(&stage.lab)?;
    // The guide's commands, and what an operator does later.
    let commands = Guide::read("firewalls.md")?.block("sh", "ufw allow")?;
    let later = ["ufw reload", "ufw disable", "ufw --force enable"];
    let shown = commands.lines().filter_map(|line| line.strip_prefix("sudo "));
    let mut ran = 0;
    for command in shown.chain(later) {
        let Some(arguments) = command.strip_prefix("ufw ") else { continue };
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        ufw.run(stage.lab.server(), &arguments)?;
        ran += 1;
        // Before the port is allowed, an enabled ufw would keep everybody out.
        if arguments.contains(&"allow") || ran > 1 {
            stage.assert_ban_holds(command)?;
        }
    }
    assert!(ufw.run(stage.lab.server(), &["status"])?.contains("443/tcp"));
    assert!(!sidecar.messages().contains(REPAIRED), "ufw left other rules alone");
    // Told to manage the built-in chains, it flushes them.
    ufw.set("MANAGE_BUILTINS=no", "MANAGE_BUILTINS=yes")?;
    ufw.run(stage.lab.server(), &["reload"])?;
    is_repaired_unless_out_of_reach(&sidecar)?;
    stage.assert_ban_holds("a flush by ufw")?;
    sidecar.stop()
}

#[test]
fn rules_saved_without_refracts_and_restored_lift_no_ban() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = stage.ban()?;
    let host = stage.lab.server();
    host.output("iptables", &["-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT"])?;
    let save = Guide::read("firewalls.md")?.block("sh", "iptables-save")?;
    let directory = stage.lab.path("iptables");
    fs::create_dir(&directory).map_err(LabError::while_trying("make a directory for rules"))?;
    let place = directory.display().to_string();
    let script = save.replace("sudo ", "").replace("/etc/iptables", &place);
    assert!(script.contains(&place), "{script}");
    host.output("sh", &["-ec", &script])?;
    let saved = fs::read_to_string(directory.join("rules.v4"))
        .map_err(LabError::while_trying("read the saved rules"))?;
    assert!(saved.contains("--dport 22") && !saved.contains("refract"), "{saved}");
    for (tool, file) in [("iptables-restore", "rules.v4"), ("ip6tables-restore", "rules.v6")] {
        host.output(tool, &[&format!("{place}/{file}")])?;
    }
    is_repaired_unless_out_of_reach(&sidecar)?;
    stage.assert_ban_holds("a restore")?;
    sidecar.stop()
}

/// What iptables flushes takes a rule with it that iptables made, and no other.
fn is_repaired_unless_out_of_reach(sidecar: &Sidecar) -> Result<()> {
    if nft_table::is_under_test() {
        assert!(!sidecar.messages().contains("in place; "), "{}", sidecar.messages());
        return Ok(());
    }
    sidecar.wait_for_message(REPAIRED).map(drop)
}

/// A firewall that `nft` loads at boot, and the file that it is loaded from.
struct SavedWithNft<'a> {
    host: &'a Host,
    file: PathBuf,
}

impl<'a> SavedWithNft<'a> {
    /// One table of the operator's, never saved so far.
    fn new(stage: &'a Stage) -> Result<Self> {
        let file = stage.lab.path("nftables.conf");
        fs::write(&file, "flush ruleset\n").map_err(LabError::while_trying("write a file"))?;
        let own = Self { host: stage.lab.server(), file };
        own.shell(
            "nft add table inet filter; \
             nft add chain inet filter input '{ type filter hook input priority 0; }'; \
             nft add rule inet filter input tcp dport 22 accept",
        )?;
        Ok(own)
    }

    /// Runs lines of shell, in which FILE is the file, and gives what they print.
    fn shell(&self, script: &str) -> Result<String> {
        let script = script.replace("FILE", &self.file.display().to_string());
        self.host.output("sh", &["-ec", &script])
    }

    fn text(&self) -> Result<String> {
        fs::read_to_string(&self.file).map_err(LabError::while_trying("read what was saved"))
    }
}

#[test]
fn rules_saved_with_nft_as_the_guide_says_load_again_and_neither_lift_nor_bring_a_ban() -> Result<()>
{
    let stage = Stage::new()?;
    let sidecar = stage.ban()?;
    let own = SavedWithNft::new(&stage)?;
    let save = Guide::read("firewalls.md")?.block("sh", "nft list tables")?;
    let save = save.replace("sudo ", "").replace("/etc/nftables.conf", "FILE");
    if !nft_table::is_under_test() {
        // What cannot be loaded is not put where it would be, and it is said.
        let refused = own.shell(&save).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("xt match set"), "{refused}");
        assert_eq!(own.text()?, "flush ruleset\n");
        return sidecar.stop();
    }
    own.shell(&save)?;
    let saved = own.text()?;
    assert!(saved.contains("tcp dport 22 accept") && !saved.contains("banned"), "{saved}");
    // As a reload loads it, beside a daemon and without one.
    own.shell("nft add rule inet filter input tcp dport 23 accept; nft --file FILE")?;
    stage.assert_ban_holds("a reload")?;
    assert!(!sidecar.messages().contains("in place; "), "{}", sidecar.messages());
    sidecar.stop()?;
    own.shell("nft --file FILE")?;
    stage.assert_ban_holds("a reload without a daemon")?;
    assert!(!own.shell("nft list table inet filter")?.contains("dport 23"));
    // As a boot loads it, when nothing is there.
    own.shell("nft flush ruleset; nft --file FILE")?;
    assert!(own.shell("nft list ruleset")?.contains("tcp dport 22 accept"));
    assert!(!nft_table::exists(own.host)?);
    Talker::connect(&stage.client, AWAY, AT)?.wait_for_answers()
}

#[test]
fn a_whole_ruleset_saved_with_nft_is_refused_or_brings_a_lifted_ban_back_as_the_guide_warns()
-> Result<()> {
    let stage = Stage::new()?;
    let sidecar = stage.ban()?;
    let own = SavedWithNft::new(&stage)?;
    own.shell("nft list ruleset >FILE")?;
    sidecar.stop()?;
    if nft_table::is_under_test() {
        own.shell(&format!("nft delete element {} banned_users '{{ {AWAY} }}'", nft_table::TABLE))?;
        Talker::connect(&stage.client, AWAY, AT)?.wait_for_answers()?;
        own.shell("nft flush ruleset; nft --file FILE")?;
        assert!(witness::set_members(own.host, BANNED)?.contains(&AWAY.to_string()));
        assert!(Talker::connect(&stage.client, AWAY, AT).is_err(), "the guide warns of nothing");
    } else {
        let refused = own.shell("nft flush ruleset; nft --file FILE");
        let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
        for warned_of in ["xt match set", "xt target TCPOPTSTRIP"] {
            assert!(refused.contains(warned_of), "no `{warned_of}` in {refused}");
        }
        assert_eq!(own.shell("nft list ruleset")?, "", "a part of the file was taken");
    }
    Ok(())
}

/// ufw with settings of its own.
struct Ufw {
    script: String,
    defaults: PathBuf,
}

impl Ufw {
    fn new(lab: &Lab) -> Result<Self> {
        let place = lab.path("ufw");
        let place = place.display();
        let copies = format!(
            "mkdir {place} {place}/run && cp -a /etc/ufw {place}/etc && \
             cp -a /etc/default {place}/default"
        );
        lab.server().output("sh", &["-ec", &copies])?;
        let script = format!(
            "mount --bind {place}/etc /etc/ufw; mount --bind {place}/default /etc/default; \
             mount --bind {place}/run /run; exec ufw \"$@\""
        );
        Ok(Self { script, defaults: lab.path("ufw/default/ufw") })
    }

    /// Changes a line of its defaults.
    fn set(&self, from: &str, to: &str) -> Result<()> {
        let what = "change ufw's defaults";
        let text = fs::read_to_string(&self.defaults).map_err(LabError::while_trying(what))?;
        assert!(text.contains(from), "{text}");
        fs::write(&self.defaults, text.replace(from, to)).map_err(LabError::while_trying(what))
    }

    /// What `ufw` with `arguments` printed.
    fn run(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", &self.script, "ufw"]).args(arguments);
        let output = host.finish(command)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let wrong = String::from_utf8_lossy(&output.stderr);
        Err(LabError::new(format!("ufw {} failed: {said}{wrong}", arguments.join(" "))))
    }
}
