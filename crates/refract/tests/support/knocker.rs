//! Somebody who knocks without a pause, so that a single moment without a rule would show.
//!
//! Takes a client host and one of its addresses; sends handshakes to port 443 of the server. Who
//! counts them is the business of the test.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::{
    LabError, Result,
    lab::{Host, SERVER_V4},
};

/// Sends handshakes from one address as fast as it can, tens of thousands a second, until dropped.
pub(crate) struct Knocker {
    over: Arc<AtomicBool>,
    knocking: Option<JoinHandle<Result<()>>>,
}

impl Knocker {
    /// Starts on `client`, from its address `source`.
    pub(crate) fn start(client: &Host, source: &'static str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let knocking = client.start_thread(move || {
            while !is_over.load(Ordering::Relaxed) {
                knock(source).map_err(LabError::while_trying("knock"))?;
            }
            Ok(())
        });
        Self { over, knocking: Some(knocking) }
    }
}

impl Drop for Knocker {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(knocking) = self.knocking.take() {
            let _ = knocking.join();
        }
    }
}

/// One handshake's first packet; the socket is gone before any answer.
fn knock(source: &str) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    let source = source.parse().map_err(|_| rustix::io::Errno::INVAL)?;
    bind(&socket, &SocketAddr::new(source, 0))?;
    match connect(&socket, &SocketAddr::new(SERVER_V4.into(), 443)) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
