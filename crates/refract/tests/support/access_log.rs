//! An access log as Xray (25.1.30 and later) writes it: appended to, one `write(2)` per message.
//!
//! Takes peers and users; makes lines. It opens the file as Xray does (`O_APPEND`, mode 0600) and
//! invents no connection: whoever wants the kernel to agree connects first.

use std::{
    fmt::Display,
    fs::{File, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{LabError, Result};

/// A log file being written.
pub(crate) struct AccessLog {
    path: PathBuf,
    file: File,
}

impl AccessLog {
    /// Opens `path` for appending and makes it if need be.
    pub(crate) fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(LabError::while_trying(format!("open {}", path.display())))?;
        Ok(Self { path, file })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Says that `email` opened a stream from `peer`.
    pub(crate) fn accepted(&self, peer: SocketAddr, email: &str) -> Result<()> {
        self.write(accepted_line(peer, email).as_bytes())
    }

    /// Says that `email` is at `first`, and then at `second` too: on the word of the log, with one
    /// place for each user, `second` is an offender.
    pub(crate) fn shared(&self, email: &str, first: SocketAddr, second: SocketAddr) -> Result<()> {
        self.write([accepted_line(first, email), accepted_line(second, email)].concat().as_bytes())
    }

    /// Appends `bytes` with one `write(2)`: one message, or several at once.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        let what = || format!("append to {}", self.path.display());
        let written = (&self.file).write(bytes).map_err(LabError::while_trying(what()))?;
        if written == bytes.len() {
            Ok(())
        } else {
            Err(LabError::new(format!("cannot {}: only {written} bytes were taken", what())))
        }
    }
}

/// The line that says that `email` opened a stream from `peer` now, with its newline. A peer may
/// be anything that Xray prints in its place: `udp:198.51.100.7:4433`, `[Masked IPv4]:1`, `@`.
pub(crate) fn accepted_line(peer: impl Display, email: &str) -> String {
    // In UTC, as an Xray in a container writes it.
    let now = jiff::Timestamp::now().strftime("%Y/%m/%d %H:%M:%S%.6f");
    format!(
        "{now} from {peer} accepted tcp:www.example.com:443 [vless-tcp >> direct] email: {email}\n"
    )
}
