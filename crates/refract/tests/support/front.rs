//! A reverse proxy in front of the proxy: nginx and `HAProxy` as Debian packages them.
//!
//! Takes the part of a configuration that a guide shows; runs it on a host in the foreground, with
//! its own files in the lab's directory and never as a service. It changes nothing that the guide
//! says.

use std::{fs, process::Command, time::Duration};

use super::{
    LabError, Result, eventually,
    lab::{Host, Lab},
    process::Process,
};

/// How long it may take to listen.
const START_BOUND: Duration = Duration::from_secs(20);

/// The reverse proxies that the guides are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// nginx with its stream module.
    Nginx,
    /// `HAProxy`.
    Haproxy,
}

/// A running reverse proxy; killed when dropped.
pub(crate) struct Front {
    process: Process,
}

impl Front {
    /// Starts `program` on `host` with the sections `shown` by a guide, and waits until it listens
    /// on `port` with `sockets` sockets.
    pub(crate) fn start(
        lab: &Lab,
        host: &Host,
        program: Program,
        shown: &str,
        (port, sockets): (u16, usize),
    ) -> Result<Self> {
        let path = lab.path(&format!("{program:?}.conf"));
        let directory = lab.directory().display();
        let (whole, mut command) = match program {
            // What Debian's nginx.conf says, but one process, of which nothing is left when it ends.
            Program::Nginx => (
                format!(
                    "include /etc/nginx/modules-enabled/*.conf;\n\
                     daemon off;\nmaster_process off;\nerror_log stderr;\n\
                     pid {directory}/nginx.pid;\n\
                     events {{ worker_connections 768; }}\n{shown}"
                ),
                Command::new("nginx"),
            ),
            Program::Haproxy => (format!("global\n\n{shown}"), Command::new("haproxy")),
        };
        fs::write(&path, whole)
            .map_err(LabError::while_trying(format!("write {}", path.display())))?;
        match program {
            Program::Nginx => command.arg("-c").arg(&path),
            Program::Haproxy => command.args(["-db", "-f"]).arg(&path),
        };
        let process = Process::start(host, &command)?;
        eventually(&format!("{program:?} to listen"), START_BOUND, || {
            let wanted = format!("sport = :{port}");
            let listing = host.output("ss", &["-Hltn", &wanted])?;
            Ok((listing.lines().count() >= sockets).then_some(()))
        })
        .map_err(|error| LabError::new(format!("{error}; it said:\n{}", process.said())))?;
        Ok(Self { process })
    }

    /// The last of what it has printed: nginx has a line for each connection that is reset.
    pub(crate) fn messages(&self) -> String {
        let said = self.process.said();
        let lines: Vec<&str> = said.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}
