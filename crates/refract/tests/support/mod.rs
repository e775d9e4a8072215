//! A network to prove things in: throw-away hosts with real sockets, real processes, real peers.
//!
//! Shared by the integration tests, the benchmarks and the demo, each of which includes it
//! with `#[path]` and uses its part. Everything is real but the network: hosts are network
//! namespaces, so nothing outside them is touched and nothing outlives the process that made them.
//! It knows nothing of how Refract decides.
//!
//! | room | what it does |
//! |---|---|
//! | [`lab`] | hosts, addresses and routes; code and commands inside a host |
//! | [`process`] | one child process inside a host: its output, its signals, its end |
//! | [`daemon`] | the `refract` binary: readiness, messages, ending it |
//! | [`peer`] | TCP servers and clients that keep bytes moving and say what ended them |
//! | [`access_log`] | lines as Xray writes them, one `write(2)` each |
//! | [`datagram`] | UDP servers and clients |
//! | [`pump`] | many connections kept moving by one thread |
//! | [`crowd`] | many users side by side, each of whom lives through the same story |
//! | [`knocker`] | handshakes without a pause |
//! | [`scene`] | a daemon that is started and stopped, and bans by the log's word |
//! | [`engine`] | a Docker engine of the test's own |
//! | [`evidence`] | the daemon on the kernel's evidence, its counters, devices that work |
//! | [`front`] | nginx and HAProxy in front of a proxy |
//! | [`guide`] | the blocks of a guide, to be followed to the letter |
//! | [`sidecar`] | the daemon beside a log that the test writes; its records |
//! | [`stage`] | two hosts that own whole networks, beside a server that echoes |
//! | [`nft_table`] | which firewall the tests are about; second eyes on nftables |
//! | [`witness`] | second eyes: `ipset`, `iptables`, `/proc`, the block log |
//! | [`proxy`] | real V2Ray or Xray servers and clients, and something to fetch through them |

pub(crate) mod access_log;
pub(crate) mod crowd;
pub(crate) mod daemon;
pub(crate) mod datagram;
pub(crate) mod engine;
pub(crate) mod evidence;
pub(crate) mod front;
pub(crate) mod guide;
pub(crate) mod knocker;
pub(crate) mod lab;
pub(crate) mod nft_table;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod pump;
pub(crate) mod scene;
pub(crate) mod sidecar;
pub(crate) mod stage;
pub(crate) mod witness;

use std::{
    fmt, io, thread,
    time::{Duration, Instant},
};

/// How often [`eventually`] looks at things that send no event, such as a set's members.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the lab could not do, as a sentence.
pub(crate) struct LabError(String);

/// The result of anything in the lab.
pub(crate) type Result<T> = std::result::Result<T, LabError>;

impl LabError {
    /// An error that says `sentence`.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }

    /// "cannot `operation`: `source`", for `map_err`.
    pub(crate) fn while_trying<E: fmt::Display>(
        operation: impl fmt::Display,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self(format!("cannot {operation}: {source}"))
    }
}

impl fmt::Display for LabError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

// A test that returns an error prints it with `Debug`; the sentence is what should be read there.
impl fmt::Debug for LabError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl std::error::Error for LabError {}

impl From<LabError> for io::Error {
    fn from(error: LabError) -> Self {
        Self::other(error)
    }
}

/// Looks until `look` finds something, for what sends no event; gives up after `bound` and says
/// that it waited for `what`.
pub(crate) fn eventually<T>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(LabError::new(format!("waited {bound:?} in vain for {what}")));
        }
        thread::sleep(LOOK_EVERY);
    }
}
