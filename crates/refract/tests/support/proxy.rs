//! The real thing: proxy servers and clients as users run them, and an origin to fetch from.
//!
//! Takes the V2Ray that is installed, or the Xray that `$XRAY_BIN` names; makes a server with two
//! users and an access log, clients on their own hosts, and requests that go through both. The
//! configurations hold for V2Ray 4.34 and for Xray 1.8 to 26.7 alike (infra/conf/*.go of
//! XTLS/Xray-core); what only one of them needs, the other ignores. It reads no log.

use std::{
    env, fs, io,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    LabError, Result,
    lab::{Host, Lab, SERVER_PRIVATE},
    peer::{Ending, Progress, Server},
    process::Process,
};

/// One account of the proxy.
pub(crate) struct User {
    /// What the access log calls it.
    pub(crate) email: &'static str,
    id: &'static str,
}

/// The account that two devices share.
pub(crate) const ALICE: User =
    User { email: "alice@example.com", id: "5783a3e7-e373-51cd-8642-c83782b807c5" };
/// Another account.
pub(crate) const BOB: User =
    User { email: "bob@example.com", id: "b831381d-6324-4d53-ad4f-8cda48b30811" };

/// The proxy protocols that the lab speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// VLESS without encryption of its own.
    Vless,
    /// VMess with AEAD headers.
    Vmess,
}

/// Where the origin listens; only the proxy can reach it.
const ORIGIN: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_PRIVATE), 80);
/// Where each client's SOCKS5 inbound listens, on its own host.
const SOCKS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);
/// How often a device asks for something: several times in a slot, a fifth of a window of five
/// seconds.
pub(crate) const PACE: Duration = Duration::from_millis(200);
/// How long an honest request may take.
pub(crate) const REQUEST_BOUND: Duration = Duration::from_secs(10);
/// How long a proxy may take to listen.
const START_BOUND: Duration = Duration::from_secs(10);
/// Origin bytes repeat with this period: prime, so that a lost or doubled block shows.
const PERIOD: usize = 251;
/// The origin's stream: this much at a time,
const BLOCK: usize = 1_004;
/// this often.
const BLOCK_EVERY: Duration = Duration::from_millis(10);

/// A proxy program.
pub(crate) struct Program {
    path: PathBuf,
    is_xray: bool,
}

impl Program {
    /// `$XRAY_BIN` when it is set, else `v2ray`.
    pub(crate) fn find() -> Result<Self> {
        if let Some(path) = env::var_os("XRAY_BIN").map(PathBuf::from) {
            return if path.is_file() {
                Ok(Self { path, is_xray: true })
            } else {
                Err(LabError::new(format!("XRAY_BIN names {}, no file", path.display())))
            };
        }
        env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|directory| directory.join("v2ray"))
            .find(|path| path.is_file())
            .map(|path| Self { path, is_xray: false })
            .ok_or_else(|| {
                LabError::new(
                    "no real proxy to run: install v2ray (`apt-get install v2ray`), or set \
                     XRAY_BIN to an Xray binary",
                )
            })
    }

    /// Whether it is an Xray.
    pub(crate) fn is_xray(&self) -> bool {
        self.is_xray
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn start(&self, host: &Host, configuration: &Path, content: &Value) -> Result<Process> {
        fs::write(configuration, content.to_string())
            .map_err(LabError::while_trying(format!("write {}", configuration.display())))?;
        let mut command = Command::new(&self.path);
        if self.is_xray {
            command.args(["run", "-c"]);
        } else {
            command.arg("-config");
        }
        let process = Process::start(host, command.arg(configuration))?;
        // "V2Ray 4.34.0 started", "Xray 26.7.28 started": said once every inbound listens.
        process
            .wait_for_line("that it has started", START_BOUND, |line| line.ends_with(" started"))?;
        Ok(process)
    }
}

/// How clients get in: what the inbound is beyond its users, and the port that clients connect to.
pub(crate) struct Entrance {
    inbound: Value,
    port: u16,
}

impl Entrance {
    /// Straight in, on `[::]:port`.
    pub(crate) fn direct(port: u16) -> Self {
        Self { inbound: json!({ "listen": Ipv6Addr::UNSPECIFIED, "port": port }), port }
    }

    /// By way of what listens on `port`, to an inbound with the fields `shown` by a guide.
    pub(crate) fn behind(port: u16, shown: &str) -> Result<Self> {
        let inbound = serde_json::from_str(shown)
            .map_err(LabError::while_trying(format!("read the inbound {shown}")))?;
        Ok(Self { inbound, port })
    }

    /// The transport as a client has to speak it, which knows nothing of what is in front.
    fn of_client(&self) -> Value {
        let mut stream = self.inbound.get("streamSettings").cloned().unwrap_or_default();
        for settings in stream.as_object_mut().into_iter().flat_map(|it| it.values_mut()) {
            if let Some(settings) = settings.as_object_mut() {
                settings.remove("acceptProxyProtocol");
            }
        }
        stream
    }
}

/// A running proxy server with the users [`ALICE`] and [`BOB`], and the origin behind it.
pub(crate) struct ProxyServer {
    process: Process,
    protocol: Protocol,
    entrance: Entrance,
    access_log: PathBuf,
    _origin: Server,
}

impl ProxyServer {
    /// Starts it on the lab's server, on `[::]:port`, with its log in the lab's directory.
    pub(crate) fn start(
        lab: &Lab,
        program: &Program,
        protocol: Protocol,
        port: u16,
    ) -> Result<Self> {
        Self::start_behind(lab, program, protocol, Entrance::direct(port))
    }

    /// The same with something in front of it.
    pub(crate) fn start_behind(
        lab: &Lab,
        program: &Program,
        protocol: Protocol,
        entrance: Entrance,
    ) -> Result<Self> {
        let origin = Server::start(lab.server(), ORIGIN, serve)?;
        let access_log = lab.path("access.log");
        let configuration = server_configuration(protocol, &entrance, &access_log);
        let process = program.start(lab.server(), &lab.path("server.json"), &configuration)?;
        Ok(Self { process, protocol, entrance, access_log, _origin: origin })
    }

    /// The log that the proxy writes.
    pub(crate) fn access_log(&self) -> &Path {
        &self.access_log
    }

    /// What it has printed.
    pub(crate) fn messages(&self) -> String {
        self.process.said()
    }
}

/// A device: a proxy client on a host of its own.
pub(crate) struct Device<'host> {
    host: &'host Host,
    process: Process,
}

impl<'host> Device<'host> {
    /// Starts a client of `server` on `host`, which logs in as `user` from `source`, to the
    /// server's address `server_address`.
    pub(crate) fn start(
        lab: &Lab,
        program: &Program,
        server: &ProxyServer,
        host: &'host Host,
        (source, server_address): (IpAddr, IpAddr),
        user: &User,
    ) -> Result<Self> {
        let endpoint = SocketAddr::new(server_address, server.entrance.port);
        let stream = server.entrance.of_client();
        let configuration =
            client_configuration(server.protocol, (source, endpoint), &stream, user);
        let path = lab.path(&format!("{}.json", host.name()));
        Ok(Self { host, process: program.start(host, &path, &configuration)? })
    }

    /// Fetches `count` bytes through the proxy and looks at each of them.
    pub(crate) fn fetch(&self, count: usize, bound: Duration) -> Result<()> {
        let what = format!("fetch {count} bytes on {} through the proxy", self.host.name());
        let body = self.host.run(|| {
            let mut connection = request(&format!("/bytes/{count}"), bound)
                .map_err(LabError::while_trying(what.as_str()))?;
            // Not to the end: V2Ray holds a finished stream open for seconds.
            let mut body = vec![0; count];
            connection.read_exact(&mut body).map_err(LabError::while_trying(what.as_str()))?;
            Ok(body)
        })?;
        if body.iter().copied().eq(pattern(0).take(count)) {
            Ok(())
        } else {
            Err(LabError::new(format!("cannot {what}: other bytes came")))
        }
    }

    /// Opens an endless stream through the proxy; every byte is looked at as it comes.
    pub(crate) fn stream(&self, bound: Duration) -> Result<Stream> {
        let what = format!("open a stream on {} through the proxy", self.host.name());
        let connection = self
            .host
            .run(|| request("/stream", bound).map_err(LabError::while_trying(what.as_str())))?;
        connection.set_read_timeout(None).map_err(LabError::while_trying(what.as_str()))?;
        let progress = Arc::new(Progress::default());
        {
            let connection = connection.try_clone().map_err(LabError::while_trying(what))?;
            let progress = Arc::clone(&progress);
            thread::spawn(move || progress.end(read_stream(&connection, &progress)));
        }
        Ok(Stream { connection, progress })
    }

    /// An honest device: asks for something small every [`PACE`], and all of it is answered.
    pub(crate) fn ask_until(&self, is_over: &Receiver<()>) -> Result<()> {
        loop {
            self.fetch(1_000, REQUEST_BOUND)?;
            if is_over.recv_timeout(PACE) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
    }

    /// Streams and asks until the stream is cut; opening it may already be what is cut.
    pub(crate) fn share_until_cut(&self, bound: Duration) -> Result<()> {
        let Ok(stream) = self.stream(REQUEST_BOUND) else { return Ok(()) };
        let deadline = Instant::now() + bound;
        while Instant::now() < deadline {
            // Its failure is what is waited for; the stream's ending is the proof.
            let _ = self.fetch(1_000, PACE);
            if stream.progress().wait_for_end(PACE).is_ok() {
                return Ok(());
            }
        }
        Err(LabError::new(format!("the second device still streamed after {bound:?}")))
    }

    /// What the client has printed.
    pub(crate) fn messages(&self) -> String {
        self.process.said()
    }
}

/// An endless download; closed when dropped.
pub(crate) struct Stream {
    connection: TcpStream,
    progress: Arc<Progress>,
}

impl Stream {
    /// What has come so far, in order and complete, and its ending.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.connection.shutdown(std::net::Shutdown::Both);
    }
}

fn server_configuration(protocol: Protocol, entrance: &Entrance, access_log: &Path) -> Value {
    let users: Vec<Value> =
        [ALICE, BOB].iter().map(|user| json!({ "id": user.id, "email": user.email })).collect();
    let (name, tag) = names(protocol);
    let mut inbound = json!({
        "tag": tag,
        "protocol": name,
        // VMess has no "decryption" and ignores it.
        "settings": { "clients": users, "decryption": "none" },
    });
    if let (Some(inbound), Some(more)) = (inbound.as_object_mut(), entrance.inbound.as_object()) {
        inbound.extend(more.clone());
    }
    json!({
        "log": { "access": access_log, "loglevel": "info" },
        "inbounds": [inbound],
        "outbounds": [{
            "tag": "direct",
            "protocol": "freedom",
            // Xray 26 keeps users from private addresses unless told otherwise
            // (proxy/freedom/freedom.go, getDefaultFinalRule).
            "settings": {
                "finalRules": [{ "action": "allow", "network": "tcp", "ip": [ORIGIN.ip()] }],
            },
        }],
    })
}

fn client_configuration(
    protocol: Protocol,
    (source, server): (IpAddr, SocketAddr),
    stream: &Value,
    user: &User,
) -> Value {
    let (name, _) = names(protocol);
    let account = match protocol {
        Protocol::Vless => json!({ "id": user.id, "encryption": "none" }),
        Protocol::Vmess => json!({ "id": user.id, "alterId": 0, "security": "auto" }),
    };
    json!({
        "log": { "access": "none", "loglevel": "info" },
        "inbounds": [{
            "listen": SOCKS.ip(),
            "port": SOCKS.port(),
            "protocol": "socks",
            "settings": { "auth": "noauth" },
        }],
        "outbounds": [{
            "protocol": name,
            "sendThrough": source,
            "streamSettings": stream,
            // The long form: the short one is refused without TLS outside private networks
            // (infra/conf/xray.go, validateOutboundTransportSecurity).
            "settings": {
                "vnext": [{ "address": server.ip(), "port": server.port(), "users": [account] }],
            },
        }],
    })
}

fn names(protocol: Protocol) -> (&'static str, &'static str) {
    match protocol {
        Protocol::Vless => ("vless", "vless-tcp"),
        Protocol::Vmess => ("vmess", "vmess-tcp"),
    }
}

/// A connection to the origin through this host's SOCKS5 inbound, past the answer's header.
fn request(path: &str, bound: Duration) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&SOCKS, bound)?;
    connection.set_read_timeout(Some(bound))?;
    // RFC 1928: version 5, one method, none; then version, CONNECT, reserved, IPv4.
    connection.write_all(&[5, 1, 0])?;
    expect(&mut connection, &[5, 0])?;
    let mut connect = vec![5, 1, 0, 1];
    connect.extend(SERVER_PRIVATE.octets());
    connect.extend(ORIGIN.port().to_be_bytes());
    connection.write_all(&connect)?;
    expect(&mut connection, &[5, 0, 0, 1])?;
    connection.read_exact(&mut [0; 6])?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    expect(&mut connection, OK)?;
    Ok(connection)
}

/// The header of every answer of the origin.
const OK: &[u8] = b"HTTP/1.0 200 OK\r\n\r\n";

fn expect(connection: &mut TcpStream, wanted: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; wanted.len()];
    connection.read_exact(&mut answer)?;
    if answer == wanted {
        Ok(())
    } else {
        Err(io::Error::other(format!("answered {answer:?} instead of {wanted:?}")))
    }
}

/// The origin: `/bytes/N` answers with N bytes, anything else with bytes without end.
fn serve(mut connection: &TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte)?;
        head.extend(byte);
    }
    connection.write_all(OK)?;
    let head = String::from_utf8_lossy(&head);
    let count = head.strip_prefix("GET /bytes/").and_then(|rest| rest.split(' ').next());
    if let Some(count) = count.and_then(|count| count.parse().ok()) {
        return connection.write_all(&pattern(0).take(count).collect::<Vec<u8>>());
    }
    let block: Vec<u8> = pattern(0).take(BLOCK).collect();
    loop {
        connection.write_all(&block)?;
        thread::sleep(BLOCK_EVERY);
    }
}

/// The origin's bytes from position `start` on.
fn pattern(start: usize) -> impl Iterator<Item = u8> {
    (start..).map(|position| u8::try_from(position % PERIOD).unwrap_or_default())
}

fn read_stream(mut connection: &TcpStream, progress: &Progress) -> Ending {
    let mut block = [0; 4096];
    let mut position = 0;
    loop {
        match connection.read(&mut block) {
            Ok(0) => return Ending::Closed(Instant::now()),
            Ok(length) => {
                let came = block.iter().copied().take(length);
                if !came.eq(pattern(position).take(length)) {
                    return Ending::Failed(format!("wrong bytes after byte {position}"));
                }
                position = (position + length) % PERIOD;
                progress.add(length);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Ending::Reset(Instant::now());
            }
            Err(error) => return Ending::Failed(error.to_string()),
        }
    }
}
