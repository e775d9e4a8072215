//! Behind a reverse proxy: the guides for nginx and `HAProxy` followed to the letter, and the mistakes.
//!
//! What the guides show is read from them and run as it stands: real nginx or `HAProxy` in front of the
//! real proxy server, the daemon with the guide's flags. Where the guide was followed, the second
//! device's connection to the reverse proxy is what dies; where a part of it was left out, nobody is
//! touched, and the daemon says which part.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::IpAddr,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    daemon::{Daemon, command},
    front::{self, Front},
    guide::Guide,
    lab::{Host, Lab, SERVER_V4, SERVER_V6},
    proxy::{
        ALICE, BOB, Device, Entrance, PACE, Program, Protocol, ProxyServer, REQUEST_BOUND, User,
    },
    witness,
};

/// Where clients connect to, in every guide.
const PORT: u16 = 443;
/// How long the second device may share: two windows of five seconds, and time to spare.
const CUT_BOUND: Duration = Duration::from_secs(30);
/// How long the daemon may take to say what is wrong: it looks every ten seconds.
const COMPLAINT_BOUND: Duration = Duration::from_secs(40);
/// What the daemon adds to a log that names this host for everybody.
const HOST_ITSELF: &str = "nearly every line comes from this host itself";
/// An inbound that takes what comes as it is, from anywhere.
const OPEN_INBOUND: &str = r#"{ "listen": "::", "port": 8443 }"#;
const HEADER: &str = "come from a forwarded header (port 0)";
const ELSEWHERE: &str = "hardly any connection that the log names is one that this network \
     namespace has on a protected port";

const NGINX: Setting = Setting {
    guide: "nginx.md",
    front: front::Program::Nginx,
    language: "nginx",
    section: "stream {",
    passing: "proxy_protocol on;",
    inbound: "tcpSettings",
};
const HAPROXY: Setting = Setting {
    guide: "haproxy.md",
    front: front::Program::Haproxy,
    language: "haproxy",
    section: "frontend ",
    passing: " send-proxy-v2",
    inbound: "tcpSettings",
};

/// nginx as a web server with a WebSocket path, and `HAProxy` in its place.
const WEB_NGINX: Setting = Setting { section: "http {", ..WEB };
const WEB_HAPROXY: Setting =
    Setting { front: front::Program::Haproxy, language: "haproxy", section: "frontend ", ..WEB };
const WEB: Setting = Setting { guide: "cdn-and-websocket.md", inbound: "wsSettings", ..NGINX };

/// A guide, and which of its blocks are followed.
struct Setting {
    guide: &'static str,
    front: front::Program,
    language: &'static str,
    /// What the block of the reverse proxy's configuration contains.
    section: &'static str,
    /// What in it passes the PROXY protocol on.
    passing: &'static str,
    /// What the block of the inbound contains.
    inbound: &'static str,
}

/// A place on the net with a device that logs in.
struct Place<'a> {
    host: &'a Host,
    source: IpAddr,
    server: IpAddr,
    user: &'static User,
}

/// A lab in which a guide is being followed.
struct Stage {
    lab: Lab,
    program: Program,
    guide: Guide,
    shown: String,
    inbound: String,
}

impl Stage {
    fn set(setting: &Setting) -> Result<Self> {
        let guide = Guide::read(setting.guide)?;
        let shown = guide.block(setting.language, setting.section)?;
        let inbound = guide.block("json", setting.inbound)?;
        Ok(Self { lab: Lab::new()?, program: Program::find()?, guide, shown, inbound })
    }

    /// The proxy server with the guide's inbound.
    fn start_server(&self) -> Result<ProxyServer> {
        let entrance = Entrance::behind(PORT, &self.inbound)?;
        ProxyServer::start_behind(&self.lab, &self.program, Protocol::Vless, entrance)
    }

    /// The daemon with the guide's flags, the lab's files and `more`, which come last.
    fn start_daemon(&self, server: &ProxyServer, more: &[&str]) -> Result<Daemon> {
        let mut flags = self.guide.flags()?;
        flags.push(format!("--access.log={}", server.access_log().display()));
        flags.push(format!("--block.log={}", self.lab.path("block.log").display()));
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        Daemon::start(Path::new(env!("CARGO_BIN_EXE_refract")), self.lab.server(), &flags)
    }

    fn device<'a>(&self, server: &ProxyServer, place: &Place<'a>) -> Result<Device<'a>> {
        let addresses = (place.source, place.server);
        Device::start(&self.lab, &self.program, server, place.host, addresses, place.user)
    }

    fn block_log(&self) -> std::path::PathBuf {
        self.lab.path("block.log")
    }
}

#[test]
fn behind_nginx_the_second_device_is_cut_off_nginx_over_ipv4_and_ipv6() -> Result<()> {
    both_families(&NGINX, "nginx")
}

#[test]
fn behind_haproxy_the_second_device_is_cut_off_haproxy_over_ipv4_and_ipv6() -> Result<()> {
    both_families(&HAPROXY, "haproxy")
}

fn both_families(setting: &Setting, front_name: &str) -> Result<()> {
    let mut stage = Stage::set(setting)?;
    let hosts = [
        stage.lab.add_client(&["198.51.100.11"])?,
        stage.lab.add_client(&["198.51.100.12"])?,
        stage.lab.add_client(&["2001:db8:13::2"])?,
        stage.lab.add_client(&["2001:db8:14::2"])?,
    ];
    let server = stage.start_server()?;
    let host = stage.lab.server();
    let front = Front::start(&stage.lab, host, setting.front, &stage.shown, (PORT, 2))?;
    let daemon = stage.start_daemon(&server, &[])?;
    let [first, second, third, fourth] = &hosts;
    let v4 = |host| at(host, Host::v4, SERVER_V4.into(), &ALICE);
    let v6 = |host| at(host, Host::v6, SERVER_V6.into(), &BOB);
    let stories = [
        (v4(first)?, v4(second)?, "refract_banned_users", "198.51.100.12"),
        (v6(third)?, v6(fourth)?, "refract_banned_users6", "2001:db8:14::/64"),
    ];
    tell_on_failure(&daemon, &front, || {
        thread::scope(|scope| {
            let told = stories.each_ref().map(|(one, two, set, member)| {
                let (stage, server) = (&stage, &server);
                scope.spawn(move || {
                    second_is_cut(stage, server, (one, two), (set, member), front_name)
                })
            });
            told.into_iter().try_for_each(|story| {
                story.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
            })
        })
    })
}

/// One socket for both families: the kernel has the client as an IPv4-mapped address. The inner port
/// is named too, where every connection is the reverse proxy's, and none is touched.
#[test]
fn a_haproxy_that_takes_ipv4_on_an_ipv6_socket_changes_nothing() -> Result<()> {
    let separate = "    bind 0.0.0.0:443\n    bind [::]:443 v6only\n";
    on_one_socket(&HAPROXY, "haproxy", separate, "    bind [::]:443 v4v6\n")
}

#[test]
fn an_nginx_that_takes_ipv4_on_an_ipv6_socket_changes_nothing_for_xray() -> Result<()> {
    let separate = "        listen 443;\n        listen [::]:443;\n";
    on_one_socket(&NGINX, "nginx", separate, "        listen [::]:443 ipv6only=off;\n")
}

fn on_one_socket(setting: &Setting, front_name: &str, separate: &str, joint: &str) -> Result<()> {
    let mut stage = Stage::set(setting)?;
    let first = stage.lab.add_client(&["198.51.100.11"])?;
    let second = stage.lab.add_client(&["198.51.100.12"])?;
    assert!(stage.shown.contains(separate), "{}", stage.shown);
    let shown = stage.shown.replace(separate, joint);
    let server = stage.start_server()?;
    let host = stage.lab.server();
    let front = Front::start(&stage.lab, host, setting.front, &shown, (PORT, 1))?;
    let daemon = stage.start_daemon(&server, &["--dport=443,8443"])?;
    let place = |host| at(host, Host::v4, SERVER_V4.into(), &ALICE);
    let (one, two) = (place(&first)?, place(&second)?);
    tell_on_failure(&daemon, &front, || {
        if setting.language == "nginx" && !stage.program.is_xray() {
            // As the guide says: V2Ray refuses an IPv4-mapped address in the header's first version.
            assert!(stage.device(&server, &one)?.fetch(1_000, REQUEST_BOUND).is_err());
            return witness::wait_for_line(
                server.access_log(),
                "proxyproto: invalid address",
                REQUEST_BOUND,
            )
            .map(drop);
        }
        let banned = ("refract_banned_users", "198.51.100.12");
        second_is_cut(&stage, &server, (&one, &two), banned, front_name)
    })
}

/// The second device of an account is banned and cut off the reverse proxy; the first loses nothing.
fn second_is_cut(
    stage: &Stage,
    server: &ProxyServer,
    (first, second): (&Place<'_>, &Place<'_>),
    (set, member): (&str, &str),
    front_name: &str,
) -> Result<()> {
    let host = stage.lab.server();
    let one = stage.device(server, first)?;
    let download = one.stream(REQUEST_BOUND)?;
    let (over, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let asking = scope.spawn(move || one.ask_until(&is_over));
        witness::watch_resets(second.host, PORT)?;
        let two = stage.device(server, second)?;
        let stream = two.stream(REQUEST_BOUND)?;
        stream.progress().wait_for_bytes(1, REQUEST_BOUND)?;
        // The log names the client's own end of a connection that is the reverse proxy's.
        let filter = format!("dst {}", bracketed(second.source));
        let held = host.output("ss", &["-Htnp", "state", "established", &filter])?;
        assert!(held.lines().all(|line| line.contains(front_name)), "{held}");
        let peers = witness::established_with(host, second.source)?;
        assert!(!peers.is_empty(), "the second device streams, so it has a connection");
        for peer in peers {
            witness::wait_for_line(
                server.access_log(),
                &format!("{peer} accepted "),
                REQUEST_BOUND,
            )?;
        }

        let deadline = Instant::now() + CUT_BOUND;
        while stream.progress().ending().is_none() {
            if Instant::now() > deadline {
                return Err(LabError::new(format!("{member} still streamed after {CUT_BOUND:?}")));
            }
            // Its failure is what is waited for; the stream's ending is the proof.
            let _ = two.fetch(1_000, REQUEST_BOUND);
            let _ = stream.progress().wait_for_end(PACE);
        }
        assert!(witness::resets_seen(second.host)? > 0, "no reset packet came");
        witness::wait_for_member(host, set, member, true, REQUEST_BOUND)?;
        assert_eq!(witness::established_with(host, second.source)?, []);
        assert!(two.fetch(1_000, Duration::from_secs(1)).is_err(), "a banned device got in");

        let block_log = stage.block_log();
        witness::wait_for_line(&block_log, second.user.email, REQUEST_BOUND)?;
        let records = witness::lines_with(&block_log, second.user.email)?;
        let [record] = &records[..] else { panic!("one record was expected: {records:#?}") };
        let source = member.trim_end_matches("/64").trim_end_matches("::");
        for part in [" ban ", source, "evidence=kernel", "reason=overlap", "outcome=ok"] {
            assert!(record.contains(part), "no `{part}` in {record}");
        }
        let rule = witness::rule_for(host, set)?;
        assert!(rule.as_ref().is_some_and(|rule| rule.contains("443")), "{rule:?}");

        // Exactly the offender: all the while the first device never lost a byte.
        download.progress().wait_for_bytes(10_000, REQUEST_BOUND)?;
        assert_eq!(download.progress().ending(), None);
        assert_eq!(witness::set_members(host, set)?, [member]);
        drop(over);
        asking.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })
}

#[test]
fn without_proxy_protocol_from_nginx_nobody_is_banned_and_the_daemon_names_it() -> Result<()> {
    everybody_is_this_host(&NGINX, "127.0.0.1:8443")
}

/// The same where the reverse proxy reaches the proxy by the host's public address.
#[test]
fn without_proxy_protocol_from_haproxy_nobody_is_banned_and_the_daemon_names_it() -> Result<()> {
    everybody_is_this_host(&HAPROXY, "203.0.113.1:8443")
}

fn everybody_is_this_host(setting: &Setting, behind: &str) -> Result<()> {
    let mut stage = Stage::set(setting)?;
    assert!(stage.shown.contains(setting.passing), "{}", stage.shown);
    stage.shown = stage.shown.replace(setting.passing, "").replace("127.0.0.1:8443", behind);
    OPEN_INBOUND.clone_into(&mut stage.inbound);
    nobody_is_touched(stage, setting, &[], HOST_ITSELF, true)
}

/// The guide was followed, but the daemon was given the inner port.
#[test]
fn the_inner_port_instead_of_the_reverse_proxys_is_named() -> Result<()> {
    for guide in [NGINX.guide, HAPROXY.guide] {
        assert!(Guide::read(guide)?.says(ELSEWHERE), "{guide} quotes another sentence");
    }
    let stage = Stage::set(&NGINX)?;
    nobody_is_touched(stage, &NGINX, &["--dport=8443"], ELSEWHERE, false)
}

#[test]
fn addresses_from_a_header_are_never_acted_upon_and_the_daemon_names_it() -> Result<()> {
    let mut stage = Stage::set(&WEB_NGINX)?;
    // A newer Xray believes the header only so; V2Ray does not know the setting.
    let shown = r#""path": "/ws", "acceptProxyProtocol": true }"#;
    assert!(stage.inbound.contains(shown), "{}", stage.inbound);
    let believing =
        r#""path": "/ws" }, "sockopt": { "trustedXForwardedFor": ["X-Forwarded-For"] }"#;
    stage.inbound = stage.inbound.replace(shown, believing);
    nobody_is_touched(stage, &WEB_NGINX, &[], HEADER, true)
}

/// TLS aside, which the test leaves out. The second device claims in a header to be elsewhere.
#[test]
fn behind_a_haproxy_that_speaks_http_the_second_device_on_websocket_is_cut() -> Result<()> {
    let mut stage = Stage::set(&WEB_HAPROXY)?;
    let tls = " ssl crt /etc/haproxy/site.pem alpn http/1.1";
    assert!(stage.shown.contains(tls), "{}", stage.shown);
    stage.shown = stage.shown.replace(tls, "");
    let path = r#""path": "/ws""#;
    assert!(stage.inbound.contains(path), "{}", stage.inbound);
    let lie = r#""path": "/ws", "headers": { "X-Forwarded-For": "203.0.113.66" }"#;
    stage.inbound = stage.inbound.replace(path, lie);
    let first = stage.lab.add_client(&["198.51.100.11"])?;
    let second = stage.lab.add_client(&["198.51.100.12"])?;
    let server = stage.start_server()?;
    let host = stage.lab.server();
    let front = Front::start(&stage.lab, host, WEB_HAPROXY.front, &stage.shown, (PORT, 2))?;
    let daemon = stage.start_daemon(&server, &[])?;
    let place = |host| at(host, Host::v4, SERVER_V4.into(), &ALICE);
    let (one, two) = (place(&first)?, place(&second)?);
    tell_on_failure(&daemon, &front, || {
        let banned = ("refract_banned_users", "198.51.100.12");
        second_is_cut(&stage, &server, (&one, &two), banned, "haproxy")
    })
}

/// Two devices of one account work side by side; nobody is touched, and the daemon says `complaint`.
/// `doctor` says it too, where the log alone shows it.
fn nobody_is_touched(
    mut stage: Stage,
    setting: &Setting,
    flags: &[&str],
    complaint: &str,
    log_shows_it: bool,
) -> Result<()> {
    let first = stage.lab.add_client(&["198.51.100.11"])?;
    let second = stage.lab.add_client(&["198.51.100.12"])?;
    let server = stage.start_server()?;
    let host = stage.lab.server();
    let front = Front::start(&stage.lab, host, setting.front, &stage.shown, (PORT, 2))?;
    let daemon = stage.start_daemon(&server, &[&["--window=1s"], flags].concat())?;
    let place = |host| at(host, Host::v4, SERVER_V4.into(), &ALICE);
    let places = [place(&first)?, place(&second)?];
    tell_on_failure(&daemon, &front, || {
        both_work_until_told(&stage, &server, &daemon, &places, complaint)?;
        if log_shows_it { doctor_says(&stage, &server, &[], complaint) } else { Ok(()) }
    })
}

#[test]
fn a_reverse_proxy_on_another_machine_that_hides_everybody_is_named_and_never_banned() -> Result<()>
{
    let mut stage = Stage::set(&NGINX)?;
    stage.shown = stage.shown.replace(NGINX.passing, "");
    OPEN_INBOUND.clone_into(&mut stage.inbound);
    on_another_machine(stage, "nearly every line is from 198.51.100.20", true)
}

#[test]
fn a_reverse_proxy_on_another_machine_with_proxy_protocol_is_where_refract_belongs() -> Result<()> {
    let mut stage = Stage::set(&NGINX)?;
    stage.inbound = stage.inbound.replace("127.0.0.1", "::");
    on_another_machine(stage, ELSEWHERE, false)
}

/// Two users by way of an nginx on a machine of its own.
fn on_another_machine(mut stage: Stage, complaint: &str, log_shows_it: bool) -> Result<()> {
    let first = stage.lab.add_client(&["198.51.100.11"])?;
    let second = stage.lab.add_client(&["198.51.100.12"])?;
    let edge = stage.lab.add_client(&["198.51.100.20"])?;
    stage.lab.server().output("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
    stage.shown = stage.shown.replace("127.0.0.1:8443", &format!("{SERVER_V4}:8443"));
    let server = stage.start_server()?;
    let front = Front::start(&stage.lab, &edge, NGINX.front, &stage.shown, (PORT, 2))?;
    // Two users are as many as the lab's proxy has.
    let flags = ["--dport=8443", "--shared-source-users=2"];
    let daemon = stage.start_daemon(&server, &[&["--window=1s"], &flags[..]].concat())?;
    let place = |host, user| at(host, Host::v4, edge.v4()?, user);
    let places = [place(&first, &ALICE)?, place(&second, &BOB)?];
    tell_on_failure(&daemon, &front, || {
        both_work_until_told(&stage, &server, &daemon, &places, complaint)?;
        if log_shows_it { doctor_says(&stage, &server, &flags, complaint) } else { Ok(()) }
    })
}

fn doctor_says(stage: &Stage, server: &ProxyServer, flags: &[&str], complaint: &str) -> Result<()> {
    let mut doctor = command(Path::new(env!("CARGO_BIN_EXE_refract")), &["doctor"]);
    doctor.args(stage.guide.flags()?).args(flags);
    doctor.arg(format!("--access.log={}", server.access_log().display()));
    let said = stage.lab.server().finish(doctor)?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(complaint), "{said}");
    Ok(())
}

/// Both devices stream and ask until the daemon complains: by then the second would have been cut
/// many times over.
fn both_work_until_told(
    stage: &Stage,
    server: &ProxyServer,
    daemon: &Daemon,
    places: &[Place<'_>; 2],
    complaint: &str,
) -> Result<()> {
    let [one, two] = places.each_ref().map(|place| stage.device(server, place));
    let devices = [one?, two?];
    let streams = [devices[0].stream(REQUEST_BOUND)?, devices[1].stream(REQUEST_BOUND)?];
    let deadline = Instant::now() + COMPLAINT_BOUND;
    while !daemon.messages().contains(complaint) {
        if Instant::now() > deadline {
            return Err(LabError::new(format!("the daemon did not say that {complaint}")));
        }
        for device in &devices {
            device.fetch(1_000, REQUEST_BOUND)?;
        }
        thread::sleep(PACE);
    }
    for stream in &streams {
        stream.progress().wait_for_bytes(10_000, REQUEST_BOUND)?;
        assert_eq!(stream.progress().ending(), None);
    }
    assert_eq!(witness::lines_with(&stage.block_log(), "")?, [""; 0]);
    for set in ["refract_banned_users", "refract_banned_users6"] {
        assert_eq!(witness::set_members(stage.lab.server(), set)?, [""; 0]);
    }
    Ok(())
}

fn at<'a>(
    host: &'a Host,
    source: fn(&Host) -> Result<IpAddr>,
    server: IpAddr,
    user: &'static User,
) -> Result<Place<'a>> {
    Ok(Place { host, source: source(host)?, server, user })
}

fn bracketed(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

/// What the daemon and the reverse proxy said belongs to any failure.
fn tell_on_failure(
    daemon: &Daemon,
    front: &Front,
    story: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(story));
    if !matches!(told, Ok(Ok(()))) {
        eprintln!("the daemon said:\n{}", daemon.messages());
        eprintln!("the reverse proxy said:\n{}", front.messages());
    }
    told.unwrap_or_else(|cause| std::panic::resume_unwind(cause))
}
