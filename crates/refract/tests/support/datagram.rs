//! Real UDP peers: a server that echoes from one socket for all, as a proxy does, and clients.
//!
//! Takes hosts and addresses; makes flows whose source address and port are known, and says
//! whether a datagram came back. It writes no log and reads none.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{LabError, Result, lab::Host};

/// How often the server looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long an answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// A UDP server with one socket.
pub(crate) struct UdpServer {
    over: Arc<AtomicBool>,
    serving: Option<JoinHandle<Result<()>>>,
}

impl UdpServer {
    /// Listens on `address`, which is one address, so that answers come from it, and sends back
    /// whatever it hears.
    pub(crate) fn echo(host: &Host, address: SocketAddr) -> Result<Self> {
        let what = format!("listen on udp {address}");
        let socket = host.run(|| {
            let socket = UdpSocket::bind(address).map_err(LabError::while_trying(&what))?;
            socket.set_read_timeout(Some(LOOK_EVERY)).map_err(LabError::while_trying(&what))?;
            Ok(socket)
        })?;
        let over = Arc::new(AtomicBool::new(false));
        let serving = {
            let over = Arc::clone(&over);
            host.start_thread(move || {
                let mut heard = [0; 2048];
                while !over.load(Ordering::Relaxed) {
                    match socket.recv_from(&mut heard) {
                        Ok((length, client)) => {
                            let words = heard.get(..length).unwrap_or_default();
                            socket
                                .send_to(words, client)
                                .map_err(LabError::while_trying("answer"))?;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => {
                            return Err(LabError::new(format!("the UDP socket is gone: {error}")));
                        }
                    }
                }
                Ok(())
            })
        };
        Ok(Self { over, serving: Some(serving) })
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(serving) = self.serving.take() {
            // Clients that get no answer have told already.
            let _ = serving.join();
        }
    }
}

/// A client's flow to one server.
pub(crate) struct Flow {
    socket: UdpSocket,
    local: SocketAddr,
}

impl Flow {
    /// A flow from `source` on `host` to `server`, answered once already.
    pub(crate) fn open(host: &Host, source: IpAddr, server: SocketAddr) -> Result<Self> {
        let what = format!("speak UDP from {source} to {server}");
        let socket = host.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(source, 0))
                .map_err(LabError::while_trying(&what))?;
            socket.connect(server).map_err(LabError::while_trying(&what))?;
            socket.set_read_timeout(Some(ANSWER_BOUND)).map_err(LabError::while_trying(&what))?;
            Ok(socket)
        })?;
        let local = socket.local_addr().map_err(LabError::while_trying(what))?;
        let flow = Self { socket, local };
        flow.exchange()?;
        Ok(flow)
    }

    /// Its own address and port: the peer that the log names.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends a datagram.
    pub(crate) fn send(&self) -> Result<()> {
        let what = format!("send from {}", self.local);
        self.socket.send(b"refract").map(drop).map_err(LabError::while_trying(what))
    }

    /// Sends a datagram and waits for it to come back.
    pub(crate) fn exchange(&self) -> Result<()> {
        self.send()?;
        let what = format!("get an answer for {}", self.local);
        self.socket.recv(&mut [0; 2048]).map(drop).map_err(LabError::while_trying(what))
    }
}
