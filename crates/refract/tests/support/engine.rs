//! A Docker engine of the test's own, inside a host.
//!
//! Takes a host and the lab's directory; starts `dockerd` there with its files in that directory, and
//! runs `docker` and `docker-compose` against it. It lives in a process namespace and a mount
//! namespace of its own, so that whatever it started ends with it and whatever it mounted is gone. It
//! knows no image.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{LabError, Result, eventually, lab::Host, process::Process};

/// How long the engine may take to answer.
const START_BOUND: Duration = Duration::from_mins(1);

/// A running engine; it and its containers are gone when dropped.
pub(crate) struct Engine<'a> {
    host: &'a Host,
    directory: PathBuf,
    process: Process,
}

impl<'a> Engine<'a> {
    /// Starts one on `host`: its host network is that of `host`, and it changes no firewall.
    pub(crate) fn start(host: &'a Host, lab: &Path) -> Result<Self> {
        let directory = lab.join("engine");
        std::fs::create_dir(&directory)
            .map_err(LabError::while_trying("make the engine's directory"))?;
        let within = |name: &str| directory.join(name).display().to_string();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "--", "dockerd", "--bridge=none", "--storage-driver=vfs"])
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .arg(format!("--host=unix://{}", within("socket")))
            .arg(format!("--data-root={}", within("data")))
            .arg(format!("--exec-root={}", within("exec")))
            .arg(format!("--pidfile={}", within("pid")));
        let process = Process::start(host, &command)?;
        let engine = Self { host, directory, process };
        eventually("the Docker engine", START_BOUND, || {
            if let Some(status) = engine.process.ended()? {
                return Err(LabError::new(format!(
                    "dockerd ended with {status}:\n{}",
                    engine.process.said()
                )));
            }
            Ok(engine.run("docker", &["version"]).ok())
        })
        .map_err(|error| LabError::new(format!("{error}:\n{}", engine.process.said())))?;
        Ok(engine)
    }

    /// What `docker` with `arguments` printed, both streams; its failure is an error that quotes both.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.run("docker", arguments)
    }

    /// The same of any program that talks to the engine of its environment.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.finish(command)
    }

    /// The same of a command with an environment of its own.
    pub(crate) fn finish(&self, mut command: Command) -> Result<String> {
        let what = format!("{:?}", command.get_args().collect::<Vec<_>>());
        command
            .env("DOCKER_HOST", format!("unix://{}", self.directory.join("socket").display()))
            .env("DOCKER_CONFIG", self.directory.join("client"))
            .env_remove("DOCKER_CONTEXT");
        let program = command.get_program().display().to_string();
        let output = self.host.finish(command)?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if output.status.success() {
            Ok(said)
        } else {
            Err(LabError::new(format!("{program} {what}: {}: {said}", output.status)))
        }
    }

    /// What a container has said so far, both streams.
    pub(crate) fn said(&self, container: &str) -> Result<String> {
        self.docker(&["logs", container])
    }

    /// Waits until a container has said `text`, and gives the line.
    pub(crate) fn wait_for_line(
        &self,
        container: &str,
        text: &str,
        bound: Duration,
    ) -> Result<String> {
        eventually(&format!("`{text}` from the container {container}"), bound, || {
            let said = self.said(container)?;
            Ok(said.lines().find(|line| line.contains(text)).map(str::to_owned))
        })
        .map_err(|error| {
            LabError::new(format!(
                "{error}; it said:\n{}",
                self.said(container).unwrap_or_default()
            ))
        })
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // The engine removes a container's control groups, which would outlast the namespaces.
        let containers = self.docker(&["ps", "--all", "--quiet"]).unwrap_or_default();
        for container in containers.split_whitespace() {
            let _ = self.docker(&["rm", "--force", container]);
        }
    }
}
