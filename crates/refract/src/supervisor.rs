//! What the supervisor is told: systemd, or whoever else set `NOTIFY_SOCKET`.
//!
//! Takes the environment and what becomes of the daemon; sends the words of `sd_notify(3)`: ready,
//! reloading, stopping, the status line, and that the loop still turns. Without a supervisor it does
//! nothing. It never waits: what the supervisor has no room for is said again later. It judges
//! nothing and reads nothing.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;

/// Names the supervisor's socket (`sd_notify(3)`).
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The supervisor's socket, if there is a supervisor: a path, or with `@` in front an abstract name.
#[must_use]
pub fn socket_name() -> Option<OsString> {
    env::var_os(SOCKET_VARIABLE).filter(|name| !name.is_empty())
}

/// The line to the supervisor, if there is one.
///
/// The words are the crate's, the socket is ours: the crate opens another one for each message, which
/// a sandbox may forbid by then, and waits where the supervisor's queue is full.
#[derive(Debug, Default)]
pub struct Supervisor {
    address: Option<SocketAddr>,
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    /// What the supervisor believes: whether the daemon is ready, and its status.
    ready: bool,
    status: String,
    trouble: Trouble,
}

/// A sentence that is told once.
#[derive(Debug, Default)]
struct Trouble {
    sentence: Option<String>,
    told: bool,
}

impl Supervisor {
    /// The supervisor that the environment names. The socket is opened now, before anything is given
    /// up.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(name) = socket_name() else { return Self::default() };
        Self::named(&name, sd_notify::watchdog_enabled())
    }

    fn named(name: &OsStr, watchdog: Option<Duration>) -> Self {
        let mut supervisor = Self { watchdog, ..Self::default() };
        let opened = address(name).and_then(|address| Ok((open(&address)?, address)));
        match opened {
            Ok((socket, address)) => {
                supervisor.socket = Some(socket);
                supervisor.address = Some(address);
            }
            Err(error) => supervisor.trouble.note(&error),
        }
        supervisor
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.address.is_some()
    }

    /// How long the loop may be silent before the supervisor ends it.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The daemon works from now on.
    pub fn ready(&mut self, status: String) {
        self.ready = self.say(&[NotifyState::Ready, NotifyState::Status(&status)]);
        if self.ready {
            self.status = status;
        }
    }

    /// The loop turns. A `status` other than the last one is told along.
    pub fn alive(&mut self, status: Option<String>) {
        let news = status.filter(|status| *status != self.status);
        let mut words = Vec::with_capacity(3);
        if self.watchdog.is_some() {
            words.push(NotifyState::Watchdog);
        }
        if !self.ready {
            words.push(NotifyState::Ready);
        }
        if let Some(news) = &news {
            words.push(NotifyState::Status(news));
        }
        if !words.is_empty() && self.say(&words) {
            self.ready = true;
            self.status = news.unwrap_or_else(|| std::mem::take(&mut self.status));
        }
    }

    /// Log and policy are about to be opened and read again; [`Self::reloaded`] has to follow.
    pub fn reloading(&mut self) {
        // From systemd 253 on the time belongs to it.
        let now = NotifyState::monotonic_usec_now().ok();
        let words: Vec<_> = [NotifyState::Reloading].into_iter().chain(now).collect();
        self.ready = !self.say(&words);
    }

    /// They have been.
    pub fn reloaded(&mut self) {
        self.ready = self.say(&[NotifyState::Ready]);
    }

    /// The daemon ends in good order.
    pub fn stopping(&mut self) {
        self.say(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// What keeps the supervisor from being told, as a sentence, once for each cause.
    pub fn trouble(&mut self) -> Option<String> {
        self.trouble.tell()
    }

    /// Whether it was said; where nobody listens there is nothing to say.
    fn say(&mut self, words: &[NotifyState<'_>]) -> bool {
        if self.address.is_none() {
            return true;
        }
        let mut message = String::new();
        for word in words {
            // Writing to a String cannot fail.
            let _ = writeln!(message, "{word}");
        }
        match self.deliver(message.as_bytes()) {
            Ok(()) => {
                self.trouble = Trouble::default();
                true
            }
            Err(error) => {
                self.trouble.note(&error);
                false
            }
        }
    }

    fn deliver(&mut self, message: &[u8]) -> io::Result<()> {
        match self.socket.as_ref().map(|socket| socket.send(message)) {
            Some(Ok(_)) => return Ok(()),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            // It leads nowhere since the supervisor was started again.
            Some(Err(_)) | None => {}
        }
        let Some(address) = &self.address else { return Ok(()) };
        let socket = open(address)?;
        socket.send(message)?;
        self.socket = Some(socket);
        Ok(())
    }
}

impl Trouble {
    fn note(&mut self, error: &io::Error) {
        let sentence = format!(
            "cannot tell the supervisor ({SOCKET_VARIABLE}) how it goes: {error}; it may take the \
             daemon for stuck and end it"
        );
        if self.sentence.as_ref() != Some(&sentence) {
            *self = Self { sentence: Some(sentence), told: false };
        }
    }

    fn tell(&mut self) -> Option<String> {
        let was_told = std::mem::replace(&mut self.told, true);
        self.sentence.clone().filter(|_| !was_told)
    }
}

/// A path, or with `@` in front an abstract name.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

fn open(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const WATCHDOG: Option<Duration> = Some(Duration::from_secs(30));

    fn listen(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    #[test]
    fn the_supervisor_hears_what_becomes_of_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = listen(&path);
        let mut supervisor = Supervisor::named(path.as_os_str(), WATCHDOG);
        supervisor.ready("bans: 0".to_owned());
        assert_eq!(heard(&systemd).unwrap(), "READY=1\nSTATUS=bans: 0\n");
        supervisor.alive(None);
        assert_eq!(heard(&systemd).unwrap(), "WATCHDOG=1\n");
        supervisor.alive(Some("bans: 0".to_owned()));
        assert_eq!(heard(&systemd).unwrap(), "WATCHDOG=1\n", "the status is known");
        supervisor.alive(Some("bans: 1".to_owned()));
        assert_eq!(heard(&systemd).unwrap(), "WATCHDOG=1\nSTATUS=bans: 1\n");
        supervisor.reloading();
        let said = heard(&systemd).unwrap();
        assert!(said.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said}");
        supervisor.reloaded();
        assert_eq!(heard(&systemd).unwrap(), "READY=1\n");
        supervisor.stopping();
        assert_eq!(heard(&systemd).unwrap(), "STOPPING=1\nSTATUS=stopping\n");
        assert_eq!(heard(&systemd), None);
        assert_eq!(supervisor.trouble(), None);
    }

    #[test]
    fn without_a_watchdog_only_news_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = listen(&path);
        let mut supervisor = Supervisor::named(path.as_os_str(), None);
        supervisor.ready("quiet".to_owned());
        assert!(heard(&systemd).is_some());
        supervisor.alive(Some("quiet".to_owned()));
        assert_eq!(heard(&systemd), None);
    }

    #[test]
    fn an_abstract_name_does_as_well_as_a_path() {
        let name = format!("refract-supervisor-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        let mut supervisor = Supervisor::named(OsStr::new(&format!("@{name}")), WATCHDOG);
        supervisor.alive(None);
        assert_eq!(heard(&systemd).unwrap(), "WATCHDOG=1\nREADY=1\n");
    }

    #[test]
    fn a_full_queue_holds_nothing_up_and_the_rest_is_told_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = listen(&path);
        let mut supervisor = Supervisor::named(path.as_os_str(), WATCHDOG);
        let mut told = 0;
        while supervisor.say(&[NotifyState::Watchdog]) {
            told += 1;
            assert!(told < 100_000, "the queue has no end");
        }
        supervisor.ready("here".to_owned());
        assert!(supervisor.trouble().is_some());
        assert_eq!(supervisor.trouble(), None, "it is told once");
        while heard(&systemd).is_some() {}
        supervisor.alive(Some("here".to_owned()));
        assert_eq!(heard(&systemd).unwrap(), "WATCHDOG=1\nREADY=1\nSTATUS=here\n");
    }

    #[test]
    fn a_supervisor_that_was_started_again_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let first = listen(&path);
        let mut supervisor = Supervisor::named(path.as_os_str(), WATCHDOG);
        drop(first);
        supervisor.alive(None);
        assert!(supervisor.trouble().is_some(), "nobody listens");
        fs::remove_file(&path).unwrap();
        let second = listen(&path);
        supervisor.alive(None);
        assert_eq!(heard(&second).unwrap(), "WATCHDOG=1\nREADY=1\n");
        assert_eq!(supervisor.trouble(), None);
    }

    #[test]
    fn where_there_is_no_supervisor_nothing_is_said_and_nothing_is_wrong() {
        let mut supervisor = Supervisor::default();
        supervisor.ready("alone".to_owned());
        supervisor.alive(Some("alone".to_owned()));
        supervisor.stopping();
        assert_eq!(supervisor.trouble(), None);
        let nowhere = tempfile::tempdir().unwrap().path().join("notify");
        let mut supervisor = Supervisor::named(nowhere.as_os_str(), WATCHDOG);
        assert!(supervisor.trouble().unwrap().contains("NOTIFY_SOCKET"));
    }
}
