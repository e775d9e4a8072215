//! The way in, and who uses it: a real proxy with its clients, or what stands for them.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use crate::{
    BOUND, PACE, PORT,
    support::{
        LabError, Result,
        access_log::AccessLog,
        lab::{Host, Lab, SERVER_V4},
        peer::{Progress, Server, Talker},
        proxy::{Device, Program, Protocol, ProxyServer, Stream, User},
    },
};

/// The way in: a real proxy, or what stands for one.
pub(crate) enum Entrance {
    Proxy { program: Program, server: ProxyServer },
    Echo { _server: Server, log: AccessLog, no_proxy: LabError },
}

impl Entrance {
    /// A real proxy if there is one.
    pub(crate) fn open(lab: &Lab) -> Result<Self> {
        let no_proxy = match Program::find() {
            Ok(program) => {
                let server = ProxyServer::start(lab, &program, Protocol::Vless, PORT)?;
                return Ok(Self::Proxy { program, server });
            }
            Err(error) => error,
        };
        let log = AccessLog::open(lab.path("access.log"))?;
        Ok(Self::Echo { _server: Server::echo(lab.server(), PORT)?, log, no_proxy })
    }

    /// What it is, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Proxy { program, .. } => {
                format!("{}, a real proxy: VLESS on port {PORT}", program.path().display())
            }
            Self::Echo { no_proxy, .. } => {
                format!("plain TCP on port {PORT}, with lines as Xray writes them\n({no_proxy})")
            }
        }
    }

    /// The log that is followed.
    pub(crate) fn access_log(&self) -> &Path {
        match self {
            Self::Proxy { server, .. } => server.access_log(),
            Self::Echo { log, .. } => log.path(),
        }
    }

    /// A device on `host` that has the account of `user`.
    pub(crate) fn admit<'lab>(
        &'lab self,
        lab: &Lab,
        host: &'lab Host,
        user: &'static User,
    ) -> Result<Guest<'lab>> {
        match self {
            Self::Proxy { program, server } => {
                let addresses = (host.v4()?, IpAddr::from(SERVER_V4));
                let device = Device::start(lab, program, server, host, addresses, user)?;
                Ok(Guest::Proxied(device))
            }
            Self::Echo { log, .. } => Ok(Guest::Plain { host, log, user }),
        }
    }
}

/// A device.
pub(crate) enum Guest<'lab> {
    Proxied(Device<'lab>),
    Plain { host: &'lab Host, log: &'lab AccessLog, user: &'static User },
}

impl Guest<'_> {
    /// Opens a stream that does not end by itself.
    pub(crate) fn connect(&self) -> Result<Connection> {
        match self {
            Self::Proxied(device) => device.stream(2 * PACE).map(Connection::Stream),
            Self::Plain { host, log, user } => {
                let server = SocketAddr::new(SERVER_V4.into(), PORT);
                let talker = Talker::connect(host, host.v4()?, server)?;
                log.accepted(talker.local(), user.email)?;
                Ok(Connection::Talker(talker))
            }
        }
    }

    /// Asks for something new every [`PACE`] until it is told to stop; every answer must come.
    pub(crate) fn browse_until(&self, is_over: &mpsc::Receiver<()>) -> Result<()> {
        while is_over.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
            self.connect()?.progress().wait_for_bytes(100, BOUND)?;
        }
        Ok(())
    }

    /// The same for a while.
    pub(crate) fn browse_for(&self, span: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < span {
            let page = self.connect()?;
            page.progress().wait_for_bytes(page.plenty() / 5, BOUND)?;
        }
        Ok(())
    }
}

/// One stream of a device.
pub(crate) enum Connection {
    Stream(Stream),
    Talker(Talker),
}

impl Connection {
    /// What has come through.
    pub(crate) fn progress(&self) -> &Progress {
        match self {
            Self::Stream(stream) => stream.progress(),
            Self::Talker(talker) => talker.progress(),
        }
    }

    /// Bytes that take about a second.
    pub(crate) fn plenty(&self) -> u64 {
        match self {
            Self::Stream(_) => 100_000,
            Self::Talker(_) => 3_000,
        }
    }
}
