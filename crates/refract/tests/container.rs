//! The image and the compose file that are shipped, run by a real Docker engine inside a lab.
//!
//! The engine's host network is that of the lab's server. The witnesses are `nft list`, the client's
//! connection and the block log on the volume; and what the container says where something is missing.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use support::{
    Result,
    access_log::AccessLog,
    engine::Engine,
    eventually,
    lab::{Lab, SERVER_V4, SERVER_V6},
    peer::{Ending, Server, Talker},
    witness,
};

/// How long a container may take to start, or to say something, on a machine that has much to do.
const BOUND: Duration = Duration::from_mins(1);
/// How long an offender may stay: a verdict takes a window of five seconds or two.
const CUT_BOUND: Duration = Duration::from_mins(1);
/// What an image may take at most.
const IMAGE_BOUND: u64 = 10_000_000;
/// How a container is run without the compose file, but as the compose file has it.
const CONFINED: [&str; 6] = [
    "--read-only",
    "--cap-drop=ALL",
    "--cap-add=NET_ADMIN",
    "--cap-add=DAC_READ_SEARCH",
    "--security-opt=no-new-privileges",
    "--env=REFRACT_DPORT=443",
];

// One test, since an engine and an image take seconds, and each container a moment.
#[test]
fn the_image_and_the_compose_file_cut_an_offender_and_say_what_is_missing() -> Result<()> {
    let mut lab = Lab::new()?;
    let people = lab.add_client(&["198.51.100.11", "198.51.100.12", "2001:db8:11::2"])?;
    let engine = Engine::start(lab.server(), lab.directory())?;
    let begun = Instant::now();
    let image = image(&engine)?;
    println!("{image}, made in {:?}", begun.elapsed());

    let logs = lab.path("xray");
    fs::create_dir(&logs).unwrap();
    // As an Xray of another user writes it: root reads it by CAP_DAC_READ_SEARCH alone.
    let log = AccessLog::open(logs.join("access.log"))?;
    for path in [&logs, log.path()] {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    fs::set_permissions(&logs, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();

    let compose = Compose { engine: &engine, logs: &logs };
    what_is_missing_is_said(&engine, &logs)?;
    an_absent_directory_is_said(&compose, &lab)?;
    the_policy_file_holds_where_no_variable_is_set(&compose, &lab)?;

    let _echo = Server::echo(lab.server(), 443)?;
    let begun = Instant::now();
    compose.run(&["up", "--detach"])?;
    engine.wait_for_line("refract", "ready", BOUND)?;
    println!("from docker-compose up to ready: {:?}", begun.elapsed());
    let doctor = engine.docker(&["exec", "refract", "refract", "doctor"])?;
    assert!(!doctor.contains("BAD"), "{doctor}");

    let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
    let at = SocketAddr::new(SERVER_V4.into(), 443);
    let mut held: Vec<Talker> = Vec::new();
    let record = eventually("the offender's ban on record", CUT_BOUND, || {
        for source in ["198.51.100.11", "198.51.100.12"] {
            // Who is banned is not let in.
            let Ok(talker) = Talker::connect(&people, v4(source), at) else { continue };
            if talker.progress().wait_for_bytes(1, Duration::from_secs(5)).is_ok() {
                log.accepted(talker.local(), "alice@example.com")?;
                held.push(talker);
            }
        }
        std::thread::sleep(Duration::from_millis(150));
        let log = volume(&engine)?.join("block.log");
        Ok(witness::lines_with(&log, "ban")?
            .into_iter()
            .find(|line| line.contains("198.51.100.12")))
    })
    .map_err(|error| {
        support::LabError::new(format!("{error}:\n{}", engine.said("refract").unwrap_or_default()))
    })?;
    assert!(record.contains("alice@example.com"), "{record}");
    let offender = held.iter().filter(|it| it.local().ip() == v4("198.51.100.12"));
    let resets = offender.map(|it| it.progress().ending());
    let resets: Vec<_> = resets.filter(|it| matches!(it, Some(Ending::Reset(_)))).collect();
    assert!(!resets.is_empty(), "none of the offender's connections was reset");
    assert!(is_banned(&lab, "198.51.100.12")?);
    assert!(!is_banned(&lab, "198.51.100.11")?);
    assert!(Talker::connect(&people, v4("198.51.100.12"), at).is_err(), "the offender is let in");
    let over_v6 = SocketAddr::new(SERVER_V6.into(), 443);
    Talker::connect(&people, v4("2001:db8:11::2"), over_v6)?.progress().wait_for_bytes(1, BOUND)?;
    let listed = engine.docker(&["exec", "refract", "refract", "list"])?;
    assert!(listed.contains("198.51.100.12"), "{listed}");
    let why = engine.docker(&["exec", "refract", "refract", "why", "198.51.100.12"])?;
    assert!(why.contains("alice@example.com"), "{why}");

    let begun = Instant::now();
    compose.run(&["stop"])?;
    let stopped = begun.elapsed();
    println!("docker-compose stop: {stopped:?}");
    let status = engine.docker(&["inspect", "--format={{.State.ExitCode}}", "refract"])?;
    assert_eq!(status.trim(), "0", "{}", engine.said("refract")?);
    assert!(is_banned(&lab, "198.51.100.12")?, "the ban went with the container");

    // What the volume holds outlasts the container, and so does the ban in the next one.
    compose.run(&["down"])?;
    compose.run(&["up", "--detach"])?;
    engine.wait_for_line("refract", "took over the bans that are in force", BOUND)?;
    engine.docker(&["exec", "refract", "refract", "unban", "198.51.100.12"])?;
    Talker::connect(&people, v4("198.51.100.12"), at)?.progress().wait_for_bytes(1, BOUND)?;
    compose.run(&["down", "--volumes"])?;
    engine.docker(
        &[&["run", "--rm", "--network=host"][..], &CONFINED, &["refract", "uninstall"]].concat(),
    )?;
    let tables = lab.server().output("nft", &["list", "tables"])?;
    assert!(!tables.contains("refract"), "{tables}");
    Ok(())
}

/// Each mistake in how the container is run leads to a sentence with its remedy.
fn what_is_missing_is_said(engine: &Engine<'_>, logs: &Path) -> Result<()> {
    let logs = format!("--volume={}:/var/log/xray:ro", logs.display());
    let block = "--volume=mistakes:/var/log/refract";
    let without = |flag: &str| CONFINED.into_iter().filter(|it| *it != flag).collect::<Vec<_>>();
    let run = |name: &str, flags: &[&str], more: &[&str]| {
        let name = format!("--name={name}");
        engine.docker(&[&["run", "--detach", &name][..], flags, more, &["refract"]].concat())
    };

    run("elsewhere", &CONFINED, &["--network=none", &logs, block])?;
    let said = engine.wait_for_line("elsewhere", "network_mode: host", BOUND)?;
    assert!(said.contains("nobody listens on a protected port in its network"), "{said}");
    let doctor = engine.docker(&["exec", "elsewhere", "refract", "doctor"]);
    let doctor = doctor.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(doctor.contains("BAD   listener:") && doctor.contains("network_mode"), "{doctor}");

    run("unmounted", &CONFINED, &["--network=host", block])?;
    let said = engine.wait_for_line("unmounted", "mount the directory", BOUND)?;
    assert!(said.contains("--volume"), "{said}");
    engine.docker(&["rm", "--force", "unmounted"])?;

    run("unwritable", &CONFINED, &["--network=host", &logs])?;
    let said = engine.wait_for_line("unwritable", "cannot open the block log", BOUND)?;
    assert!(said.contains("mount a volume where the block log is to be"), "{said}");
    engine.docker(&["rm", "--force", "unwritable"])?;

    run("powerless", &without("--cap-add=NET_ADMIN"), &["--network=host", &logs, block])?;
    let said = engine.wait_for_line("powerless", "CAP_NET_ADMIN", BOUND)?;
    assert!(said.contains("the container cap_add"), "{said}");
    let status = engine.docker(&["wait", "powerless"])?;
    assert_eq!(status.trim(), "1");

    run("unlettered", &without("--cap-add=DAC_READ_SEARCH"), &["--network=host", &logs, block])?;
    engine.wait_for_line("unlettered", "grant CAP_DAC_READ_SEARCH", BOUND)?;
    engine.docker(&["rm", "--force", "unlettered", "elsewhere"])?;
    Ok(())
}

/// As docker-compose 1.29 has it; the newer one makes the directory.
fn an_absent_directory_is_said(compose: &Compose<'_>, lab: &Lab) -> Result<()> {
    let absent = lab.path("not-there");
    let compose = Compose { logs: &absent, ..*compose };
    let refused = compose.run(&["up", "--detach"]).err().map(|error| error.to_string());
    let refused = refused.unwrap_or_default();
    let said = format!("bind source path does not exist: {}", absent.display());
    assert!(refused.contains(&said), "{refused}");
    assert!(!absent.exists());
    compose.run(&["down", "--volumes"]).map(drop)
}

/// What the compose file passes on is in the container only if it was set, and then beats the file.
fn the_policy_file_holds_where_no_variable_is_set(compose: &Compose<'_>, lab: &Lab) -> Result<()> {
    let policy = lab.path("etc");
    let text = "dport = 8443\nlimit = 2\naccess.log = \"/var/log/xray/other.log\"\n\
                block.log = \"/tmp/block.log\"\n";
    fs::create_dir(&policy)
        .and_then(|()| fs::write(policy.join("refract.toml"), text))
        .map_err(support::LabError::while_trying("write a policy file"))?;
    let volume = format!("--volume={}:/etc/refract:ro", policy.display());
    let check = ["run", "--rm", "-T", &volume, "refract", "check"];
    let by_file = compose.run(&check)?;
    let by_variable = compose.with(&[("REFRACT_DPORT", "443")], &check)?;
    let row = |said: &str, name: &str| {
        let row = said.lines().find(|line| line.split_whitespace().next() == Some(name));
        let words: Vec<&str> = row.unwrap_or_default().split_whitespace().skip(1).collect();
        words.join(" ")
    };
    assert_eq!(row(&by_file, "dport"), "8443 file, line 1", "{by_file}");
    assert_eq!(row(&by_variable, "dport"), "443 variable REFRACT_DPORT", "{by_variable}");
    for said in [by_file, by_variable] {
        assert_eq!(row(&said, "limit"), "2 file, line 2", "{said}");
        assert_eq!(row(&said, "access.log"), "/var/log/xray/other.log file, line 3", "{said}");
        // What the image sets, as its document says.
        let of_image = "/var/log/refract/block.log variable REFRACT_BLOCK_LOG";
        assert_eq!(row(&said, "block.log"), of_image, "{said}");
        assert_eq!(row(&said, "firewall"), "nftables variable REFRACT_FIREWALL", "{said}");
    }
    let refused = compose.with(&[("REFRACT_DPORT", "")], &check).err();
    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("--dport (REFRACT_DPORT) cannot be \"\""), "{refused}");
    Ok(())
}

/// Builds the image as `make image` does, and gives what it is and takes.
fn image(engine: &Engine<'_>) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/build-image");
    let said = engine.finish(Command::new(script))?;
    let size = engine.docker(&["image", "inspect", "--format={{.Size}}", "refract"])?;
    let bytes: u64 =
        size.trim().parse().map_err(support::LabError::while_trying("read the image's size"))?;
    assert!(bytes < IMAGE_BOUND, "the image takes {bytes} bytes");
    Ok(said.lines().find(|line| line.starts_with("refract:")).unwrap_or_default().to_owned())
}

/// The compose file that is shipped.
struct Compose<'a> {
    engine: &'a Engine<'a>,
    logs: &'a Path,
}

impl Compose<'_> {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.with(&[], arguments)
    }

    /// The same where these variables of Refract's are set, and no others.
    fn with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Result<String> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/compose.yaml");
        let mut command = Command::new("docker-compose");
        command.arg("--file").arg(file).args(["--project-name", "lab"]).args(arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REFRACT_") {
                command.env_remove(name);
            }
        }
        command.env("XRAY_LOG_DIRECTORY", self.logs).envs(variables.iter().copied());
        self.engine.finish(command)
    }
}

/// Where the engine keeps the volume of the compose file.
fn volume(engine: &Engine<'_>) -> Result<PathBuf> {
    let place = engine.docker(&["volume", "inspect", "--format={{.Mountpoint}}", "lab_log"])?;
    Ok(place.trim().into())
}

fn is_banned(lab: &Lab, source: &str) -> Result<bool> {
    let table = lab.server().output("nft", &["list", "table", "inet", "refract"])?;
    Ok(table.lines().any(|line| {
        line.split([' ', '{', '}', ','])
            .any(|word| word == source || word == format!("{source}/32"))
    }))
}
