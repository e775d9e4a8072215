//! The policy file as an operator meets it: `refract check`, which value wins, what is refused.
//!
//! Each test has a directory of its own and runs the binary. Those that meet a running daemon take a
//! lab; the others need no rights and no network.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use refract::config::{self, Settings};
use rustix::process::Signal;
use support::{
    Result, access_log::accepted_line, eventually, evidence::BOUND, lab::Lab, sidecar::Sidecar,
};
use tempfile::TempDir;

const REFRACT: &str = env!("CARGO_BIN_EXE_refract");
const EXAMPLE: &str = include_str!("../../../packaging/refract.toml");

struct Scene {
    _directory: TempDir,
    file: PathBuf,
}

impl Scene {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("refract.toml");
        fs::write(&file, text).unwrap();
        Self { _directory: directory, file }
    }

    /// Runs `refract` with an environment that holds nothing of ours but `variables`.
    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
        let named = |argument: &&str| argument.replace("FILE", self.file.to_str().unwrap());
        let output = Command::new(REFRACT)
            .args(arguments.iter().map(named))
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// What `refract check` prints; it must find nothing wrong.
    #[track_caller]
    fn check(&self, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let (status, out, err) = self.run(&[&["check"], arguments].concat(), variables);
        assert_eq!((status, err.as_str()), (0, ""), "{out}");
        out
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], status: i32, sentence: &str) {
        let (ended, out, err) = self.run(arguments, &[]);
        let sentence = sentence.replace("FILE", self.file.to_str().unwrap());
        assert_eq!((ended, out.as_str(), err), (status, "", format!("refract: {sentence}\n")));
    }

    fn load(&self) -> Settings {
        let config = format!("--config={}", self.file.display());
        config::load(["refract".into(), config.into()]).unwrap()
    }
}

/// The words of the line of `out` that begins with `name`.
fn row<'a>(out: &'a str, name: &str) -> Vec<&'a str> {
    let words = |line: &'a str| line.split_whitespace().collect::<Vec<_>>();
    out.lines().map(words).find(|words| words.first() == Some(&name)).unwrap_or_default()
}

#[test]
fn a_flag_beats_its_variable_which_beats_the_file_which_beats_the_default() {
    let scene = Scene::new("window = '2s'\ntimeout = '2m'\nallow = ['10.0.0.0/8']\ndry-run = true");
    let variables =
        [("REFRACT_WINDOW", "3s"), ("REFRACT_ALLOW", "192.0.2.1"), ("REFRACT_DPORT", "1")];
    let out = scene.check(&["FILE", "--window=4s", "--dport", "2", "--dport=8443"], &variables);
    assert_eq!(row(&out, "window"), ["window", "4s", "flag"]);
    assert_eq!(row(&out, "dport"), ["dport", "8443", "flag"]);
    assert_eq!(row(&out, "allow"), ["allow", "192.0.2.1", "variable", "REFRACT_ALLOW"]);
    assert_eq!(row(&out, "timeout"), ["timeout", "2m", "file,", "line", "2"]);
    assert_eq!(row(&out, "dry-run"), ["dry-run", "true", "file,", "line", "4"]);
    assert_eq!(row(&out, "limit"), ["limit", "1", "default"]);
    assert_eq!(row(&out, "config")[2..], ["flag"]);
    assert_eq!(row(&out, "state.file"), ["state.file", "/var/log/xray/refract.state", "default"]);

    let out = scene.check(&["--config=FILE", "--dry-run=false"], &[]);
    assert_eq!(row(&out, "dry-run"), ["dry-run", "false", "flag"]);
    assert_eq!(row(&out, "allow"), ["allow", "10.0.0.0/8", "file,", "line", "3"]);
    let file = scene.file.to_str().unwrap();
    let out = scene.check(&[], &[("REFRACT_CONFIG", file), ("REFRACT_ALLOW", "")]);
    assert_eq!(row(&out, "config")[2..], ["variable", "REFRACT_CONFIG"]);
    assert_eq!(row(&out, "allow"), ["allow", "none", "variable", "REFRACT_ALLOW"]);
}

#[test]
fn check_says_what_one_user_may_and_which_line_says_so() {
    let scene = Scene::new(
        "limit = 3\nignore = ['admin@*', 'bot']\n\n[limits]\n'Alice@Example.com' = 2\n\
         '*@family.example' = 'unlimited'\n\n[groups.Office]\nlimit = 4\nmembers = ['eve']\n",
    );
    for (user, expected) in [
        (
            "alice@example.COM",
            "alice@example.COM: 2 places (user \"Alice@Example.com\" in FILE:5)\n",
        ),
        (
            "mum@family.example",
            "mum@family.example: any number of places (pattern \
          \"*@family.example\" in FILE:6)\n",
        ),
        ("EVE", "EVE: 4 places together with the group (group \"Office\" in FILE:8)\n"),
        ("admin@x", "admin@x: ignored (ignore \"admin@*\" in FILE:2)\n"),
        ("bot", "bot: ignored (ignore \"bot\" in FILE:2)\n"),
        ("bob", "bob: 3 places (limit, FILE:1)\n"),
        ("-x\u{1b}[2J", "-x\\x1b[2J: 3 places (limit, FILE:1)\n"),
    ] {
        let expected = expected.replace("FILE", scene.file.to_str().unwrap());
        assert_eq!(scene.check(&["FILE", &format!("--user={user}")], &[]), expected);
    }
    let bob = |arguments: &[&str], variables: &[(&str, &str)]| {
        scene.check(&[arguments, &["FILE", "--user", "bob"]].concat(), variables)
    };
    assert_eq!(bob(&["--limit=1"], &[]), "bob: 1 place (limit, flag)\n");
    let variable = bob(&[], &[("REFRACT_LIMIT", "0")]);
    assert_eq!(variable, "bob: any number of places (limit, variable REFRACT_LIMIT)\n");

    let out = scene.check(&["FILE"], &[]);
    for words in [
        &["\"Alice@Example.com\"", "2", "places", "line", "5"][..],
        &["\"Office\"", "4", "places", "together", "line", "8"],
        &["\"eve\"", "member", "line", "10"],
        &["\"bot\"", "ignored", "line", "2"],
    ] {
        assert_eq!(row(&out, words[0]), words, "{out}");
    }
}

#[test]
fn only_a_file_that_nobody_named_may_be_absent() {
    let scene = Scene::new("");
    fs::remove_file(&scene.file).unwrap();
    let sentence = "FILE: there is no such file";
    for arguments in [
        &["check", "FILE"][..],
        &["check", "--config=FILE"],
        &["doctor", "--config=FILE"],
        &["--config=FILE", "--dry-run"],
    ] {
        scene.refused(arguments, 1, sentence);
    }
    let directory = scene.file.parent().unwrap().to_str().unwrap();
    let (status, _, err) = scene.run(&["check", directory], &[]);
    assert_eq!((status, err.contains("it is not a file")), (1, true), "{err}");
    let no_default = !Path::new(refract::cli::DEFAULT_CONFIG).exists();
    assert!(no_default, "this test needs a machine without /etc/refract/refract.toml");
    let out = scene.check(&[], &[]);
    assert!(out.starts_with("there is no policy file: /etc/refract/refract.toml does not exist\n"));
    assert_eq!(row(&out, "window"), ["window", "5s", "default"]);
    let bob = scene.check(&["--user=bob"], &[]);
    assert_eq!(bob, "bob: 1 place (limit, default)\n");
}

#[test]
fn a_mistake_is_refused_with_file_line_and_column_whoever_reads_it() {
    for (text, sentence) in [
        (
            "\nwindow = 'x'",
            "FILE:2:10: window cannot be \"x\": it takes a duration greater than zero, \
          such as 500ms, 5s, 1m or 1h30m",
        ),
        ("windw = '5s'", "FILE:1:1: there is no \"windw\"; did you mean window?"),
        ("[limits]\n'a' = 1\n'A' = 2", "FILE:3:1: \"A\" is named in line 2 already"),
        (
            "dport = [443, 0]",
            "FILE:1:15: dport cannot be \"0\": \"0\" is not a port from 1 to 65535; it takes ports and \
          ranges from 1 to 65535, such as 443,8443,2000-2010",
        ),
        ("window = '5s", "FILE:1:13: this is no TOML: invalid literal string, expected `'`"),
    ] {
        let scene = Scene::new(text);
        scene.refused(&["check", "FILE"], 1, sentence);
        // A value that is not used is a mistake all the same.
        scene.refused(&["check", "FILE", "--window=5s", "--user=a"], 1, sentence);
        scene.refused(&["doctor", "--config", "FILE"], 1, sentence);
        scene.refused(&["--config=FILE", "--dry-run"], 1, sentence);
    }
    let scene = Scene::new("nonsense");
    let sentence = "--window (REFRACT_WINDOW) cannot be \"x\": it takes a duration greater than zero, \
                    such as 500ms, 5s, 1m or 1h30m";
    scene.refused(&["check", "FILE", "--window=x"], 2, sentence);
    let sentence = "check takes a file or --config and not both";
    scene.refused(&["check", "FILE", "--config=FILE"], 2, sentence);
}

#[test]
fn a_chain_that_nftables_has_no_hook_for_is_refused_whoever_reads_it_and_wherever_it_is_written() {
    let why = "nftables has no chain mine to hook: use --chain=INPUT, FORWARD or DOCKER-USER, or \
               --firewall=iptables";
    for (text, flags, place) in [
        ("", &["--firewall=nftables", "--chain=mine"][..], ""),
        ("firewall = 'nftables'\nchain = 'mine'", &[], "FILE:2:1: "),
        ("chain = 'mine'", &["--firewall=nftables"], "FILE:1:1: "),
        ("firewall = 'nftables'", &["--chain=mine"], "FILE:1:1: "),
        ("chain = 'INPUT'\nfirewall = 'auto'", &["--firewall=nftables", "--chain=mine"], ""),
    ] {
        let scene = Scene::new(text);
        for command in [&["check", "FILE"][..], &["doctor", "--config=FILE"], &["--config=FILE"]] {
            scene.refused(&[command, flags].concat(), 2, &format!("{place}{why}"));
        }
    }
    // Another firewall may have such a chain, and whoever takes what there is may find one that has.
    for firewall in ["iptables", "auto"] {
        let scene = Scene::new(&format!("chain = 'mine'\nfirewall = '{firewall}'"));
        assert_eq!(
            row(&scene.check(&["FILE"], &[]), "chain"),
            ["chain", "mine", "file,", "line", "1"]
        );
    }
    let scene = Scene::new("firewall = 'nftables'");
    let running = scene.load();
    fs::write(&scene.file, "firewall = 'nftables'\nchain = 'mine'").unwrap();
    let refused = running.reload().unwrap_err().to_string();
    assert_eq!(refused, format!("{}:2:1: {why}", scene.file.display()));
}

#[test]
fn the_example_that_is_packaged_says_what_holds_anyway() {
    let (example, empty) = (Scene::new(EXAMPLE), Scene::new(""));
    let without_places = |scene: &Scene| {
        let values = scene.load().effective.into_iter();
        values.map(|flag| (flag.name, flag.value)).collect::<Vec<_>>()
    };
    for (written, default) in without_places(&example).into_iter().zip(without_places(&empty)) {
        match written.0.as_str() {
            "config" => {}
            "allow" => assert_eq!(written.1.as_deref(), Some("")),
            _ => assert_eq!(written, default),
        }
    }
    let settings = example.load();
    assert!(settings.accounts.is_plain());
    assert_eq!(settings.flags.allow.iter().flat_map(|networks| &networks.0).count(), 0);
    // Each flag is there, if only in a comment.
    for flag in settings.effective.iter().filter(|flag| flag.name != "config") {
        let setting = format!("{} = ", flag.name);
        let is_set = |line: &str| line.trim_start_matches("# ").starts_with(&setting);
        assert!(EXAMPLE.lines().any(is_set), "no {}", flag.name);
    }
    // The settings that are commented out are right as well.
    let is_setting = |rest: &&str| {
        ["\"", "[groups", "members =", "limit =", "state.file =", "iptables ="]
            .iter()
            .any(|beginning| rest.starts_with(beginning))
    };
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("# ").filter(is_setting).unwrap_or(line).to_owned() + "\n")
        .collect();
    let uncommented = Scene::new(&uncommented).load();
    assert_eq!(uncommented.accounts.of(b"alice@example.com").places.to_string(), "2 places");
    assert_eq!(uncommented.accounts.of(b"mum@example.com").places.to_string(), "3 places");
}

#[test]
fn a_file_that_is_read_again_says_what_only_the_next_start_takes() {
    let scene = Scene::new("window = '2s'\n[limits]\n'a' = 2");
    let old = scene.load();
    assert!(old.reload().unwrap().needs_restart(&old).is_empty());

    fs::write(&scene.file, "window = '3s'\nlimit = 5\ndport = [443]\n[limits]\n'a' = 7").unwrap();
    let new = old.reload().unwrap();
    assert_eq!(new.flags.window.as_secs(), 3);
    assert_eq!(new.accounts.of(b"a").places.to_string(), "7 places");
    assert_eq!(new.accounts.of(b"b").places.to_string(), "5 places");
    assert!(new.needs_restart(&old).is_empty(), "443 is 443");

    fs::write(&scene.file, "dport = 1\nblock.log = '/x/y'\ndry-run = true\nkeep = 'last'").unwrap();
    let new = old.reload().unwrap();
    // The state file lies beside the block log.
    assert_eq!(new.needs_restart(&old), ["dport", "block.log", "state.file", "dry-run"]);

    let sources = "ipv4-prefix = 24\nipv6-prefix = 56\nshared-source-users = 9\nask = 'off'";
    fs::write(&scene.file, sources).unwrap();
    let new = old.reload().unwrap();
    assert_eq!(new.needs_restart(&old), ["ipv4-prefix", "ipv6-prefix", "shared-source-users"]);

    fs::write(&scene.file, "keep = 'never'").unwrap();
    assert!(old.reload().unwrap_err().to_string().contains(":1:8: keep cannot be \"never\""));
    fs::remove_file(&scene.file).unwrap();
    assert!(old.reload().unwrap_err().to_string().contains("there is no such file"));
    fs::write(&scene.file, "window = '2s'").unwrap();
    assert_eq!(old.reload().unwrap().flags.window.as_secs(), 2, "and back again");
}

/// A daemon that goes by `scene`'s policy, beside a log.
fn daemon(lab: &Lab, scene: &Scene) -> Result<Sidecar> {
    Sidecar::start(lab, &[&format!("--config={}", scene.file.display())])
}

/// One line of `user` from each of `hosts` in 100.65.0.0/16.
fn lines(user: &str, hosts: &[u8]) -> String {
    hosts.iter().map(|host| accepted_line(format!("100.65.0.{host}:1"), user)).collect()
}

#[test]
fn sighup_has_the_policy_read_again_also_where_the_watch_hears_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let scene = Scene::new("limit = 1\n");
    let sidecar = daemon(&lab, &scene)?;
    let record = sidecar.take_one(lines("alice", &[1, 2]))?;
    assert_eq!((record.user.as_str(), record.places), ("alice", 1));

    // The watch waits until whoever writes is done, and this one never is.
    let mut file = OpenOptions::new().write(true).truncate(true).open(&scene.file).unwrap();
    let policy = "limit = 1\nignore = ['bot']\n[limits]\n'pair' = 2\n\
                  [groups.office]\nlimit = 1\nmembers = ['eve', 'mallory']\n";
    file.write_all(policy.as_bytes()).unwrap();
    thread::sleep(config::watch::SETTLED * 2);
    assert!(!sidecar.messages().contains("the policy was read again"));
    sidecar.signal(Signal::HUP)?;
    sidecar.wait_for_message("the policy was read again and is in force")?;

    assert!(sidecar.take(lines("bot", &[11, 12, 13]))?.is_empty());
    assert!(sidecar.take(lines("pair", &[21, 22]))?.is_empty());
    let record = sidecar.take_one(lines("pair", &[23]))?;
    assert_eq!((record.source.as_str(), record.places), ("100.65.0.23", 2));
    let both = [lines("eve", &[31]), lines("mallory", &[32])].concat();
    let record = sidecar.take_one(both)?;
    assert_eq!((record.source.as_str(), record.places), ("100.65.0.32", 1));
    let record = sidecar.take_one(lines("bob", &[41, 42]))?;
    assert_eq!((record.user.as_str(), record.places), ("bob", 1));
    sidecar.stop()
}

#[test]
fn whoever_asks_with_sighup_is_told_of_a_mistake_every_time() -> Result<()> {
    let lab = Lab::new()?;
    let scene = Scene::new("limit = 2\n");
    let sidecar = daemon(&lab, &scene)?;
    let told = |sentence: &str| sidecar.messages().matches(sentence).count();
    let is_told = |sentence: &str, times: usize| {
        let what = format!("{sentence:?} {times} times");
        eventually(&what, BOUND, || Ok((told(sentence) == times).then_some(())))
            .map_err(|error| sidecar.trouble(&error.to_string()))
    };

    let mistake = ":1:9: limit cannot be \"x\"";
    let stays = "the policy stays as it was";
    fs::write(&scene.file, "limit = 'x'\n").unwrap();
    is_told(mistake, 1)?;
    // The same again, written by nobody who asks.
    fs::write(&scene.file, "limit = 'x'\n").unwrap();
    thread::sleep(config::watch::SETTLED * 3 + Duration::from_millis(200));
    assert_eq!((told(mistake), told(stays)), (1, 1));
    for times in 2..4 {
        sidecar.signal(Signal::HUP)?;
        is_told(mistake, times)?;
        is_told(stays, times)?;
    }

    let gone = "there is no such file";
    fs::remove_file(&scene.file).unwrap();
    is_told(gone, 1)?;
    sidecar.signal(Signal::HUP)?;
    is_told(gone, 2)?;
    is_told(stays, 5)?;
    let record = sidecar.take_one(lines("alice", &[1, 2, 3]))?;
    assert_eq!(record.places, 2);
    sidecar.stop()
}
