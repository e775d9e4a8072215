//! Many users side by side, each of whom lives through the same story.
//!
//! Takes a story, told once for one user and his devices; gives each user addresses of his own, a
//! thread, and a start of his own, and the first failures, by name. A device's connections are real,
//! what they do is logged as Xray would, and its link can be cut so that nobody hears of it. Whether
//! anybody is punished is for the test to say.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    ops::Range,
    panic,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    LabError, Result,
    access_log::AccessLog,
    lab::{Host, Lab, SERVER_V4, SERVER_V6},
    peer::{CONNECT_BOUND, Ending, Server, connect_from},
    pump::{Line, Pump},
};

/// The protected port.
const PORT: u16 = 443;
/// What a client says first: to be echoed, or to be sent bytes for as long as it listens.
const ECHO: u8 = b'e';
const DOWNLOAD: u8 = b'd';
/// A download: this much at a time.
const BLOCK: [u8; 256] = [b'd'; 256];
/// How long the first answer may take on a machine that is busy.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// How often a device looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a device waits after it was reset, times the resets that came before.
const AGAIN_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Where links are cut: a set of addresses on the devices' host.
const CUT: &str = "cut";
/// Failures that are told.
const MOST_TOLD: usize = 5;

/// The devices' host, the server, and what is written about them.
pub(crate) struct Crowd {
    server: Mutex<Option<Server>>,
    pump: Pump,
    log: AccessLog,
    devices: Host,
    lab: Lab,
    serve: fn(&TcpStream) -> io::Result<()>,
}

/// One user of the crowd.
pub(crate) struct User<'crowd> {
    crowd: &'crowd Crowd,
    number: u16,
    name: String,
    dice: AtomicU64,
}

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Short connections, one after the other, each open for half of this time to all of it.
    Browse(Duration),
    /// One connection that talks.
    Talk,
    /// One connection on which bytes come.
    Download,
}

/// What became of a device at work.
pub(crate) struct Stay {
    /// It was let in to the end.
    pub(crate) is_let: bool,
    /// How it was seen that it is not.
    pub(crate) shut_out: Option<LabError>,
    /// When each line about it was about to be written.
    pub(crate) lines: Vec<Instant>,
    /// When connections of it were reset.
    pub(crate) resets: Vec<Instant>,
}

impl Crowd {
    /// A lab with a server, and a host with room for everybody. Connections say something once in
    /// `pace`; a download moves as often.
    pub(crate) fn gather(pace: Duration) -> Result<Self> {
        let mut lab = Lab::new()?;
        let devices = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
        lab.own_prefix(&devices, "198.18.0.0/15")?;
        lab.own_prefix(&devices, "2001:db8:4000::/36")?;
        for (family, tool) in [("inet", "iptables"), ("inet6", "ip6tables")] {
            let set = format!("{CUT}-{family}");
            devices.output("ipset", &["create", &set, "hash:ip", "family", family])?;
            for (chain, end) in [("INPUT", "dst"), ("OUTPUT", "src")] {
                let rule = ["-A", chain, "-m", "set", "--match-set", &set, end, "-j", "DROP"];
                devices.output(tool, &rule)?;
            }
        }
        let serve = match pace.as_millis() {
            ..100 => |connection: &TcpStream| serve(connection, Duration::from_millis(50)),
            100..250 => |connection: &TcpStream| serve(connection, Duration::from_millis(100)),
            _ => |connection: &TcpStream| serve(connection, Duration::from_millis(250)),
        };
        let crowd = Self {
            server: Mutex::default(),
            pump: Pump::start(pace)?,
            log: AccessLog::open(lab.path("access.log"))?,
            devices,
            lab,
            serve,
        };
        crowd.start_server()?;
        Ok(crowd)
    }

    /// The lab it lives in.
    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The log that it is written about in.
    pub(crate) fn log(&self) -> &AccessLog {
        &self.log
    }

    /// Ends the server, and with it every connection; nobody listens then.
    pub(crate) fn stop_server(&self) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts the server, and again after it was stopped.
    pub(crate) fn start_server(&self) -> Result<()> {
        let everywhere = SocketAddr::new(IpAddr::from([0u16; 8]), PORT);
        let server = Server::start(self.lab.server(), everywhere, self.serve)?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }

    /// Lets each of `users` live through `story`, all side by side, each from a moment of his own
    /// within `spread` on. Gives what each of them came to.
    pub(crate) fn live<T: Send>(
        &self,
        users: Range<u16>,
        spread: Duration,
        story: impl Fn(&User<'_>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let told: Vec<Result<T>> = thread::scope(|scope| {
            let story = &story;
            let live = |number| {
                move || {
                    self.devices.run(|| {
                        let user = User::new(self, number);
                        thread::sleep(user.within(spread));
                        story(&user)
                            .map_err(|error| LabError::new(format!("{}: {error}", user.name)))
                    })
                }
            };
            let lives: Vec<_> = users.map(|number| scope.spawn(live(number))).collect();
            lives
                .into_iter()
                .map(|life| life.join().unwrap_or_else(|cause| panic::resume_unwind(cause)))
                .collect()
        });
        let mut ends = Vec::with_capacity(told.len());
        let mut failures = Vec::new();
        for end in told {
            match end {
                Ok(end) => ends.push(end),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() {
            return Ok(ends);
        }
        let count = failures.len();
        failures.truncate(MOST_TOLD);
        Err(LabError::new(format!("{count} failed:\n{}", failures.join("\n"))))
    }
}

impl<'crowd> User<'crowd> {
    fn new(crowd: &'crowd Crowd, number: u16) -> Self {
        let dice = AtomicU64::new(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { crowd, number, name: format!("user-{number}@lab"), dice }
    }

    /// What the log calls him.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Even or odd users may differ.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// A time below `bound`, another one each time and for each user, and the same in every run.
    pub(crate) fn within(&self, bound: Duration) -> Duration {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.dice.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let thousandths = u32::try_from((mixed ^ (mixed >> 31)) % 1_000).unwrap_or_default();
        bound * thousandths / 1_000
    }

    /// His IPv4 address at one of four places.
    pub(crate) fn v4(&self, place: u8) -> IpAddr {
        let [high, low] = (self.number + 256).to_be_bytes();
        IpAddr::from([198, 18 + place % 2, high + place / 2 * 100, low])
    }

    /// His IPv6 address at one of four places, each a network of its own.
    pub(crate) fn v6(&self, place: u8) -> IpAddr {
        IpAddr::from([0x2001, 0xdb8, 0x4000 + u16::from(place), self.number, 0, 0, 0, 1])
    }

    /// Opens a connection from `source` that talks; it is logged once the server has answered.
    pub(crate) fn talk(&self, source: IpAddr) -> Result<Line> {
        self.open(&self.name, source, ECHO).map(|(line, _)| line)
    }

    /// Opens a connection from `source` on which bytes come without end, and that is otherwise quiet.
    pub(crate) fn download(&self, source: IpAddr) -> Result<Line> {
        self.open(&self.name, source, DOWNLOAD).map(|(line, _)| line)
    }

    /// Is at work from `source` until it `is_over`, or until it is not let in any more. What is reset
    /// is opened again.
    pub(crate) fn work(
        &self,
        source: IpAddr,
        work: Work,
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> Result<Stay> {
        let wish = if work == Work::Download { DOWNLOAD } else { ECHO };
        let mut stay = Stay { is_let: true, shut_out: None, lines: Vec::new(), resets: Vec::new() };
        loop {
            let (line, written) = match self.open(&self.name, source, wish) {
                Ok(opened) => opened,
                Err(error) => {
                    (stay.is_let, stay.shut_out) = (false, Some(error));
                    return Ok(stay);
                }
            };
            stay.lines.push(written);
            let close = match work {
                Work::Browse(each) => Some(written + each / 2 + self.within(each / 2)),
                Work::Talk | Work::Download => None,
            };
            let ending = loop {
                let is_read = close.is_some_and(|close| Instant::now() >= close);
                if let Ok(ending) = line.progress().wait_for_end(LOOK_EVERY) {
                    break Some(ending);
                } else if is_over() || is_read {
                    break None;
                }
            };
            let ending = match ending {
                // Nothing has ended it so far.
                None if work == Work::Download => {
                    line.progress().wait_for_bytes(1, ANSWER_BOUND)?;
                    None
                }
                None => match line.is_whole() {
                    Err(_) if line.was_reset() => line.progress().ending(),
                    whole => whole.map(|()| None)?,
                },
                ending => ending,
            };
            match ending {
                None if is_over() => return Ok(stay),
                None => {}
                Some(Ending::Reset(at)) => {
                    stay.resets.push(at);
                    if is_over() {
                        return Ok(stay);
                    }
                    // As clients do: soon at first, and then not so soon.
                    let times = u32::try_from(stay.resets.len() - 1).unwrap_or(u32::MAX);
                    thread::sleep(AGAIN_PAUSE.saturating_mul(times).min(LONGEST_PAUSE));
                }
                Some(ending) => {
                    return Err(LabError::new(format!("{source} ended by itself: {ending:?}")));
                }
            }
        }
    }

    /// Another user is at `source` too.
    pub(crate) fn neighbour_talks(&self, source: IpAddr) -> Result<Line> {
        let name = format!("neighbour-of-{}", self.name);
        self.open(&name, source, ECHO).map(|(line, _)| line)
    }

    /// The link of the device at `source` is gone, and no packet tells anybody.
    pub(crate) fn cut_link(&self, source: IpAddr) -> Result<()> {
        self.change_link("add", source)
    }

    /// The link is there again.
    pub(crate) fn mend_link(&self, source: IpAddr) -> Result<()> {
        self.change_link("del", source)
    }

    fn change_link(&self, verb: &str, source: IpAddr) -> Result<()> {
        let set = format!("{CUT}-{}", if source.is_ipv4() { "inet" } else { "inet6" });
        self.crowd.devices.output("ipset", &["-exist", verb, &set, &source.to_string()]).map(drop)
    }

    fn open(&self, name: &str, source: IpAddr, wish: u8) -> Result<(Line, Instant)> {
        let what = || format!("connect from {source}");
        let mut stream =
            connect_from(SocketAddr::new(source, 0), server_for(source), CONNECT_BOUND)
                .map_err(LabError::while_trying(what()))?;
        stream
            .set_read_timeout(Some(ANSWER_BOUND))
            .and_then(|()| stream.write_all(&[wish]))
            .and_then(|()| stream.read_exact(&mut [0]))
            .map_err(LabError::while_trying(what()))?;
        let line = self.crowd.pump.take(stream, (1, 1), wish != ECHO)?;
        let written = Instant::now();
        self.crowd.log.accepted(line.local(), name)?;
        Ok((line, written))
    }
}

fn server_for(source: IpAddr) -> SocketAddr {
    let address = if source.is_ipv4() { IpAddr::from(SERVER_V4) } else { SERVER_V6.into() };
    SocketAddr::new(address, PORT)
}

/// Sends back whatever it hears, or sends without end.
fn serve(mut connection: &TcpStream, pace: Duration) -> io::Result<()> {
    let mut wish = [0];
    connection.read_exact(&mut wish)?;
    connection.write_all(&wish)?;
    if wish == [ECHO] {
        return io::copy(&mut &*connection, &mut &*connection).map(drop);
    }
    loop {
        thread::sleep(pace);
        connection.write_all(&BLOCK)?;
    }
}
