//! The least that can be done about a line: the floor that the daemon is measured against.
//!
//! Takes a log, a set, the server's end and the first offender's; for the n-th line of the log it
//! bans the n-th address and destroys its connection. It parses nothing, decides nothing, and
//! writes nothing down.

use std::{
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, SocketAddrV4},
};

use rustix::fs::inotify;

use super::{
    floor::READY,
    raw::{Bans, Kills},
};
use crate::support::{LabError, Result};

/// The first argument that makes this program the floor.
pub(crate) const WORD: &str = "--be-the-floor";

/// Runs until it is killed.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [log, set, server, offender] = arguments else {
        return Err(LabError::new(format!("{WORD} takes LOG SET SERVER OFFENDER")));
    };
    let server: SocketAddrV4 = server.parse().map_err(LabError::while_trying("read SERVER"))?;
    let offender: SocketAddrV4 =
        offender.parse().map_err(LabError::while_trying("read OFFENDER"))?;
    let what = format!("follow {log}");
    let mut file = File::open(log).map_err(LabError::while_trying(&what))?;
    let wakes =
        inotify::init(inotify::CreateFlags::CLOEXEC).map_err(LabError::while_trying(&what))?;
    inotify::add_watch(&wakes, log.as_str(), inotify::WatchFlags::MODIFY)
        .map_err(LabError::while_trying(&what))?;
    let (mut bans, mut kills) = (Bans::open()?, Kills::open()?);
    println!("{READY}");

    let mut address = u32::from(*offender.ip());
    let mut events = [0; 4096];
    let mut lines = vec![0; 256 * 1024];
    loop {
        rustix::io::read(&wakes, events.as_mut_slice()).map_err(LabError::while_trying(&what))?;
        let length = file.read(&mut lines).map_err(LabError::while_trying(&what))?;
        for _ in lines.iter().take(length).filter(|byte| **byte == b'\n') {
            let peer = SocketAddrV4::new(Ipv4Addr::from(address), offender.port());
            bans.add(set, *peer.ip())?;
            kills.kill(server, peer)?;
            address += 1;
        }
    }
}
