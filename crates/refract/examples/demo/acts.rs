//! The story, in three acts on one stage: an account is shared, a phone changes its network, somebody
//! forges a line.
//!
//! Takes the binary; runs it as an operator would, with the evidence of the kernel, and shows what
//! becomes of each. What is said to happen is looked up where an operator would look: the set, the
//! rule, the block log, the daemon's status.

use std::{
    net::SocketAddr,
    panic,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    BOUND, PACE, PORT, WINDOW,
    entrance::{Entrance, Guest},
    page::{headline, print_line, run, say},
    start,
    support::{
        LabError, Result,
        access_log::{AccessLog, accepted_line},
        daemon::Daemon,
        eventually,
        lab::{Host, Lab, SERVER_V4},
        peer::Ending,
        proxy::{ALICE, BOB},
        witness,
    },
};

const PHONE: &str = "198.51.100.11";
const LAPTOP: &str = "198.51.100.12";
const WIFI: &str = "198.51.100.21";
const LTE: &str = "198.51.100.22";
/// Nobody has it.
const NOWHERE: &str = "198.51.100.99:40000";
const SET: &str = "refract_banned_users";
const TIMEOUT: &str = "6s";
/// How long nothing may happen for the demo to say that nothing happens.
const LONG_ENOUGH: Duration = WINDOW.saturating_mul(3);

/// What all acts share.
struct Stage<'lab> {
    lab: &'lab Lab,
    entrance: &'lab Entrance,
    daemon: &'lab Daemon,
}

impl Stage<'_> {
    fn block_log(&self) -> PathBuf {
        self.lab.path("block.log")
    }

    /// Nobody is banned, and no record names `text`.
    fn nothing_was_done(&self, text: &str) -> Result<()> {
        let members = witness::set_members(self.lab.server(), SET)?;
        let records = witness::lines_with(&self.block_log(), text)?;
        match (members.first(), records.first()) {
            (None, None) => Ok(()),
            (Some(member), _) => Err(LabError::new(format!("{member} was banned"))),
            (_, Some(record)) => Err(LabError::new(format!("something was done: {record}"))),
        }
    }

    /// What the daemon says now about the claims of the log, `name=count name=count …`.
    fn claims(&self) -> Result<String> {
        let told = |messages: &str| -> Vec<String> {
            let claims = messages.lines().filter_map(|line| line.split_once("status: claims "));
            claims.map(|(_, claims)| claims.to_owned()).collect()
        };
        let before = told(&self.daemon.messages()).len();
        self.daemon.signal(Signal::USR1)?;
        eventually("the daemon's status", BOUND, || {
            Ok(told(&self.daemon.messages()).get(before).cloned())
        })
    }
}

/// The count called `name` in a line of status.
fn count(claims: &str, name: &str) -> Result<u64> {
    claims
        .split(' ')
        .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| LabError::new(format!("the status has no count {name}: {claims}")))
}

/// The whole story.
pub(crate) fn show(binary: &Path) -> Result<()> {
    print_line("Refract at work, in a network of its own that is gone when this ends.");
    print_line("It takes about half a minute.");
    let mut lab = Lab::new()?;
    let phone = lab.add_client(&[PHONE])?;
    let laptop = lab.add_client(&[LAPTOP])?;
    let wifi = lab.add_client(&[WIFI])?;
    let lte = lab.add_client(&[LTE])?;
    let entrance = Entrance::open(&lab)?;

    headline("One server, two accounts, one device each");
    say(&format!("server   {:<15} {}", SERVER_V4.to_string(), entrance.describe()));
    say(&format!("phone    {PHONE:<15} {}, whose account it is", ALICE.email));
    say(&format!("laptop   {LAPTOP:<15} somebody whom she gave her password"));
    say(&format!("bob      {WIFI:<15} {} on his Wi-Fi at home,", BOB.email));
    say(&format!("         {LTE:<15} and the same phone on LTE"));
    print_line("");
    say(
        "Refract runs on the server. It follows the proxy's log, and checks with the kernel what the",
    );
    say("log claims:");
    print_line("");
    let flags = [
        format!("--dport={PORT}"),
        format!("--window={}s", WINDOW.as_secs()),
        format!("--timeout={TIMEOUT}"),
        "--evidence=auto".to_owned(),
        format!("--access.log={}", entrance.access_log().display()),
        format!("--block.log={}", lab.path("block.log").display()),
    ];
    say(&format!("$ refract {}", flags.join(" ")));
    let daemon = start(binary, &lab, &flags)?;
    say(&daemon.messages());

    let stage = Stage { lab: &lab, entrance: &entrance, daemon: &daemon };
    share(&stage, &phone, &laptop)?;
    change_networks(&stage, &wifi, &lte)?;
    forge(&stage, &phone, &lte)?;
    daemon.terminate(BOUND).map(drop)
}

/// Two devices, one account.
fn share(stage: &Stage<'_>, phone_host: &Host, laptop_host: &Host) -> Result<()> {
    let Stage { lab, entrance, .. } = stage;
    let server = lab.server();
    headline("1. An account is shared");
    let phone = entrance.admit(lab, phone_host, &ALICE)?;
    let download = phone.connect()?;
    download.progress().wait_for_bytes(download.plenty(), BOUND)?;
    say(&format!("phone    downloads: {} bytes so far", download.progress().received()));

    thread::scope(|scope| {
        let (over, is_over) = mpsc::channel::<()>();
        let browsing = scope.spawn(move || phone.browse_until(&is_over));

        let laptop = entrance.admit(lab, laptop_host, &ALICE)?;
        let came = Instant::now();
        let before = download.progress().received();
        say("laptop   joins with the same account, and downloads, too");
        let cut = share_until_cut(&laptop)?;
        let lasted = cut.duration_since(came).as_millis();
        say(&format!(
            "laptop   cut off after {lasted} ms: two devices were at work at once for about a window"
        ));
        download.progress().wait_for_bytes(1, BOUND)?;
        let more = download.progress().received() - before;
        say(&format!("phone    goes on: {more} bytes more since the laptop came"));
        print_line("");
        witness::wait_for_member(server, SET, LAPTOP, true, BOUND)?;
        say("The kernel holds the banned address, with the seconds it has left:");
        run(server, "ipset", &["list", SET])?;
        say("and the rule that drops its packets:");
        run(server, "iptables", &["-S", "INPUT"])?;
        if laptop.connect().is_ok() {
            return Err(LabError::new("the banned device got in again"));
        }
        say("laptop   tries again: no answer");
        drop(laptop);
        print_line("");
        say("Who, what and why is in the block log:");
        print_line("");
        let ban = format!(" ban user=\"{}\" source={LAPTOP}", ALICE.email);
        let record = witness::wait_for_line(&stage.block_log(), &ban, BOUND)?;
        say("$ tail -n 1 block.log");
        say(&record);
        print_line("");
        say("source      who was cut off; peer: the connections that the account had open there");
        say("incumbents  who holds the account's one place (places=1)");
        say(
            "proof       the kernel's numbers for both: in which of the last five slots (a fifth of",
        );
        say("            the window each) data moved, and how many bytes");
        say("latency     from the look that proved it to the ban and the resets");
        print_line("");

        drop(over);
        browsing.join().unwrap_or_else(|cause| panic::resume_unwind(cause))?;
        drop(download);
        say("phone    is switched off");
        witness::wait_for_member(server, SET, LAPTOP, false, BOUND)?;
        say(&format!("the set has let go of {LAPTOP}: --timeout={TIMEOUT}, kept by the kernel"));
        let laptop = entrance.admit(lab, laptop_host, &ALICE)?;
        laptop.connect()?.progress().wait_for_bytes(1_000, BOUND)?;
        say("laptop   is in again: the account is used from one place now, and that is its right");
        Ok(())
    })
}

/// Uses the account until the first stream ends, and gives the instant; opening it may already
/// fail.
fn share_until_cut(device: &Guest<'_>) -> Result<Instant> {
    let Ok(stream) = device.connect() else { return Ok(Instant::now()) };
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        // That it fails is what is waited for.
        let _ = device.connect().and_then(|new| new.progress().wait_for_bytes(100, PACE));
        match stream.progress().wait_for_end(PACE) {
            Ok(Ending::Reset(when) | Ending::Closed(when)) => return Ok(when),
            Ok(Ending::Failed(how)) => {
                return Err(LabError::new(format!("the second device's stream failed: {how}")));
            }
            Err(_) => {}
        }
    }
    Err(LabError::new(format!("the second device still had its stream after {BOUND:?}")))
}

/// One phone, two networks, and a link that is lost without a word.
fn change_networks(stage: &Stage<'_>, wifi_host: &Host, lte_host: &Host) -> Result<()> {
    let Stage { lab, entrance, .. } = stage;
    headline("2. A phone changes its network");
    let at_home = entrance.admit(lab, wifi_host, &BOB)?;
    let download = at_home.connect()?;
    download.progress().wait_for_bytes(download.plenty(), BOUND)?;
    say(&format!("bob      downloads over Wi-Fi: {} bytes so far", download.progress().received()));
    wifi_host.output("ip", &["link", "set", "eth0", "down"])?;
    let away = entrance.admit(lab, lte_host, &BOB)?;
    let page = away.connect()?;
    say("bob      leaves the house; Wi-Fi is gone without a goodbye, and the phone is on LTE");
    let open = witness::established_with(lab.server(), wifi_host.v4()?)?.len();
    say(&format!("server   has connections open with {WIFI} all the same: {open}"));
    away.browse_for(LONG_ENOUGH)?;
    page.progress().wait_for_bytes(1, BOUND)?;
    say(&format!(
        "bob      browses on: {} bytes over LTE after {} s, three times the window",
        page.progress().received(),
        LONG_ENOUGH.as_secs()
    ));
    stage.nothing_was_done(BOB.email)?;
    say("refract  did nothing: nobody is banned, and the block log has no line about bob");
    print_line("");
    say("A log alone cannot tell this from a second device: the account was at one address, and");
    say("then at another. The kernel can: no data moves at the old one any more.");
    Ok(())
}

/// Lines that are true in every byte but one: it did not happen.
fn forge(stage: &Stage<'_>, phone_host: &Host, bob_host: &Host) -> Result<()> {
    let Stage { lab, entrance, .. } = stage;
    headline("3. Somebody forges a line");
    let phone = entrance.admit(lab, phone_host, &ALICE)?;
    let hers = phone.connect()?;
    let bob = entrance.admit(lab, bob_host, &BOB)?;
    let his = bob.connect()?;
    for stream in [&hers, &his] {
        stream.progress().wait_for_bytes(stream.plenty(), BOUND)?;
    }
    let peer = eventually("bob's one connection", BOUND, || {
        let peers = witness::established_with(lab.server(), bob_host.v4()?)?;
        Ok(if let [peer] = *peers { Some(peer) } else { None })
    })?;
    say(&format!("alice is at {PHONE} again, bob is on LTE; both download. Now somebody has the"));
    say(
        "proxy write two lines about alice, as a user of some protocols can (a newline in a domain",
    );
    say("name): one from an address that nobody has, one from bob's own connection:");
    print_line("");
    let (before, records) = (stage.claims()?, records(stage)?);
    let log = AccessLog::open(entrance.access_log())?;
    let nowhere: SocketAddr = NOWHERE.parse().map_err(LabError::while_trying("take an address"))?;
    for peer in [nowhere, peer] {
        let line = accepted_line(peer, ALICE.email);
        log.write(line.as_bytes())?;
        say(line.trim_end());
    }
    print_line("");
    for _ in 0..LONG_ENOUGH.as_secs() {
        phone.connect()?.progress().wait_for_bytes(100, BOUND)?;
        for stream in [&hers, &his] {
            stream.progress().wait_for_bytes(stream.plenty(), BOUND)?;
        }
    }
    say(&format!("phone    goes on: {} bytes so far", hers.progress().received()));
    say(&format!("bob      goes on: {} bytes so far", his.progress().received()));
    stage.nothing_was_done(NOWHERE)?;
    if records != self::records(stage)? {
        return Err(LabError::new("something was done on the word of a forged line"));
    }
    say("refract  did nothing but count:");
    let after = stage.claims()?;
    print_line("");
    say("$ kill -USR1 $(pidof refract)");
    say(&format!("status: claims {after}"));
    print_line("");
    for (name, why) in [
        ("unverified", "the kernel has no such connection"),
        ("carriers", "the connection is bob's; from now on it proves nothing about anybody"),
    ] {
        let (before, after) = (count(&before, name)?, count(&after, name)?);
        if after <= before {
            return Err(LabError::new(format!("the forged line is not counted as {name}")));
        }
        say(&format!("{name:<11} {before} before, {after} now: {why}"));
    }
    Ok(())
}

/// How many records there are.
fn records(stage: &Stage<'_>) -> Result<usize> {
    Ok(witness::lines_with(&stage.block_log(), "")?.len())
}
