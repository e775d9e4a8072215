//! The least that can be done at a slot's end: the floor that the daemon is measured against.
//!
//! Takes a set, the server's end and a socket on which deadlines come in order, each with two peers;
//! at each deadline it looks at the counters of both, bans the second, and destroys its connection.
//! It parses no log, decides nothing, and writes nothing down.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, SocketAddrV4},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use super::slots::sleep_until;
use crate::{
    measuring::{
        floor::READY,
        raw::{Bans, Kills},
    },
    support::{LabError, Result},
};

/// The first argument that makes this program the floor of deadlines.
pub(crate) const WORD: &str = "--be-the-deadline-floor";

/// Runs until it is killed, or the socket is closed.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [set, server, path] = arguments else {
        return Err(LabError::new(format!("{WORD} takes SET SERVER SOCKET")));
    };
    let server: SocketAddrV4 = server.parse().map_err(LabError::while_trying("read SERVER"))?;
    let what = format!("listen on {path}");
    let listener = UnixListener::bind(path).map_err(LabError::while_trying(&what))?;
    let (mut bans, mut kills) = (Bans::open()?, Kills::open()?);
    println!("{READY}");
    let (orders, _) = listener.accept().map_err(LabError::while_trying(what))?;
    let (pass, orders_passed) = mpsc::channel();
    // Read on a thread of its own, so that nothing is waited for at a deadline but the deadline.
    thread::spawn(move || {
        for line in BufReader::new(orders).lines().map_while(std::result::Result::ok) {
            if pass.send(line).is_err() {
                break;
            }
        }
    });
    for line in orders_passed {
        let order = Order::read(&line)
            .ok_or_else(|| LabError::new(format!("`{line}` is no deadline with two peers")))?;
        sleep_until(order.deadline)?;
        for peer in [order.first, order.second] {
            kills.look(server, peer)?;
        }
        bans.add(set, *order.second.ip())?;
        kills.kill(server, order.second)?;
    }
    Ok(())
}

/// What is to be done at one deadline.
struct Order {
    deadline: Duration,
    first: SocketAddrV4,
    second: SocketAddrV4,
}

impl Order {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            deadline: Duration::from_nanos(words.next()?.parse().ok()?),
            first: words.next()?.parse().ok()?,
            second: words.next()?.parse().ok()?,
        })
    }
}

/// Tells the floor of deadlines.
pub(crate) struct Orders {
    socket: UnixStream,
}

impl Orders {
    /// Connects to the floor that listens at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let socket =
            UnixStream::connect(path).map_err(LabError::while_trying("reach the floor"))?;
        Ok(Self { socket })
    }

    /// At `deadline`, look at `first` and `second`, ban the second and destroy its connection.
    pub(crate) fn give(
        &self,
        deadline: Duration,
        first: SocketAddr,
        second: SocketAddr,
    ) -> Result<()> {
        let line = format!("{} {first} {second}\n", deadline.as_nanos());
        (&self.socket)
            .write_all(line.as_bytes())
            .map_err(LabError::while_trying("tell the floor of a deadline"))
    }
}
