//! Throw-away hosts: network namespaces joined by veth pairs, with addresses and routes.
//!
//! Takes addresses; makes a server host and client hosts that reach it over IPv4 and IPv6, and
//! runs code and commands inside them. The namespaces have no names and no files: each is held by
//! one thread of this process and one descriptor, and children are killed by the kernel when that
//! thread ends. So a panic leaves nothing behind to be cleaned up, and SIGKILL nothing but a
//! directory in /tmp. It sends no packet itself and knows no proxy.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    panic,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
};

use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};
use tempfile::TempDir;

use super::{LabError, Result};

/// The server's public IPv4 address (TEST-NET-3, RFC 5737).
pub(crate) const SERVER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The server's public IPv6 address (RFC 3849).
pub(crate) const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// An address of the server that no client has a route to: where an origin server listens.
pub(crate) const SERVER_PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// One server, its clients, and a directory for their files; gone when dropped.
pub(crate) struct Lab {
    server: Host,
    clients: u8,
    directory: TempDir,
}

impl Lab {
    /// A lab with a server that has [`SERVER_V4`], [`SERVER_V6`] and [`SERVER_PRIVATE`], and no
    /// clients yet.
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("refract-lab-")
            .tempdir()
            .map_err(LabError::while_trying("make a directory for the lab"))?;
        let server = Host::new("server", directory.path(), Vec::new())?;
        server.ip(&[
            "link set lo up".to_owned(),
            // A pair within the server, because not every kernel has dummy interfaces.
            "link add public0 type veth peer name uplink0".to_owned(),
            "link set public0 addrgenmode none up".to_owned(),
            "link set uplink0 addrgenmode none up".to_owned(),
            format!("addr add {SERVER_V4}/32 dev public0"),
            format!("addr add {SERVER_V6}/128 dev public0 nodad"),
            format!("addr add {SERVER_PRIVATE}/32 dev public0"),
        ])?;
        Ok(Self { server, clients: 0, directory })
    }

    /// The host that the daemon and the proxy run on.
    pub(crate) fn server(&self) -> &Host {
        &self.server
    }

    /// Where the lab's files live: logs, configurations.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in [`Lab::directory`].
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A client host with `addresses`, the first of each family being what it speaks from when it
    /// does not bind.
    pub(crate) fn add_client(&mut self, addresses: &[&str]) -> Result<Host> {
        let addresses = addresses
            .iter()
            .map(|text| text.parse().map_err(LabError::while_trying(format!("take {text}"))))
            .collect::<Result<Vec<IpAddr>>>()?;
        self.clients += 1;
        let number = self.clients;
        let link = Link::new(number)?;
        let client = Host::new(&format!("client{number}"), self.directory.path(), addresses)?;

        let veth = &link.name;
        let namespace = client.namespace_path.display();
        let mut at_server = vec![
            format!("link add {veth} type veth peer name eth0 netns {namespace}"),
            format!("link set {veth} addrgenmode none up"),
            format!("addr add {}/30 dev {veth}", link.server_v4),
            format!("addr add fe80::1/64 dev {veth} nodad"),
        ];
        let mut at_client = vec![
            "link set lo up".to_owned(),
            "link set eth0 addrgenmode none up".to_owned(),
            format!("addr add {}/30 dev eth0", link.client_v4),
            "addr add fe80::2/64 dev eth0 nodad".to_owned(),
        ];
        for address in &client.addresses {
            let (length, nodad) = if address.is_ipv4() { (32, "") } else { (128, "nodad") };
            at_client.push(format!("addr add {address}/{length} dev eth0 {nodad}"));
            at_server.push(link.route_to(&format!("{address}/{length}")));
        }
        let source = |address: Option<IpAddr>| {
            address.map(|address| format!("src {address}")).unwrap_or_default()
        };
        at_client.extend([
            format!(
                "route add default via {} dev eth0 {}",
                link.server_v4,
                source(client.v4().ok())
            ),
            format!("route add ::/0 via fe80::1 dev eth0 {}", source(client.v6().ok())),
        ]);
        self.server.ip(&at_server)?;
        client.ip(&at_client)?;
        Ok(Host { link: Some(link), ..client })
    }

    /// Gives a client every address of a `prefix` at once (a local route), so that any of them can
    /// be bound.
    pub(crate) fn own_prefix(&self, client: &Host, prefix: &str) -> Result<()> {
        let link = client
            .link
            .as_ref()
            .ok_or_else(|| LabError::new(format!("{} has no link", client.name)))?;
        if prefix.contains(':') {
            // An IPv6 address can be bound without this only where an interface has it.
            client.output("sysctl", &["-qw", "net.ipv6.ip_nonlocal_bind=1"])?;
        }
        client.ip(&[format!("route add local {prefix} dev lo")])?;
        self.server.ip(&[link.route_to(prefix)])
    }
}

/// The veth pair between the server and one client. Its addresses only carry routes.
struct Link {
    name: String,
    server_v4: Ipv4Addr,
    client_v4: Ipv4Addr,
}

impl Link {
    /// The link of client `number`, from 1: a /30 of 192.0.2.0/24 (TEST-NET-1, RFC 5737).
    fn new(number: u8) -> Result<Self> {
        let base = number
            .checked_mul(4)
            .ok_or_else(|| LabError::new("a lab holds 63 clients at most".to_owned()))?;
        Ok(Self {
            name: format!("to-client{number}"),
            server_v4: Ipv4Addr::new(192, 0, 2, base + 1),
            client_v4: Ipv4Addr::new(192, 0, 2, base + 2),
        })
    }

    fn route_to(&self, prefix: &str) -> String {
        let Self { name, client_v4, .. } = self;
        if prefix.contains(':') {
            format!("route add {prefix} via fe80::2 dev {name}")
        } else {
            format!("route add {prefix} via {client_v4} dev {name}")
        }
    }
}

/// One network namespace.
pub(crate) struct Host {
    name: String,
    addresses: Vec<IpAddr>,
    link: Option<Link>,
    namespace: Arc<File>,
    namespace_path: PathBuf,
    directory: PathBuf,
    keeper: Keeper,
}

impl Host {
    fn new(name: &str, directory: &Path, addresses: Vec<IpAddr>) -> Result<Self> {
        let namespace = Arc::new(new_namespace()?);
        let keeper = Keeper::start(name, &namespace)?;
        let namespace_path =
            PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), keeper.thread_id));
        Ok(Self {
            name: name.to_owned(),
            addresses,
            link: None,
            namespace,
            namespace_path,
            directory: directory.to_owned(),
            keeper,
        })
    }

    /// "server", "client1", …
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// For a look from outside while the lab lives: `nsenter --net=PATH`.
    pub(crate) fn namespace_path(&self) -> &Path {
        &self.namespace_path
    }

    /// The first IPv4 address that the client was given.
    pub(crate) fn v4(&self) -> Result<IpAddr> {
        self.first(IpAddr::is_ipv4, "IPv4")
    }

    /// The first IPv6 address that the client was given.
    pub(crate) fn v6(&self) -> Result<IpAddr> {
        self.first(IpAddr::is_ipv6, "IPv6")
    }

    fn first(&self, is_of_family: fn(&IpAddr) -> bool, family: &str) -> Result<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(is_of_family)
            .ok_or_else(|| LabError::new(format!("{} has no {family} address", self.name)))
    }

    /// Runs `work` inside the host, on a thread of its own, and waits for it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.namespace)?;
                work()
            });
            inside.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        })
    }

    /// Starts a thread inside the host. Whatever it opens is the host's.
    pub(crate) fn start_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let namespace = Arc::clone(&self.namespace);
        thread::spawn(move || {
            enter(&namespace)?;
            work()
        })
    }

    /// Spawns `command` inside the host from the thread that keeps it, which the child does not
    /// outlive if it asked for that (`setpriv --pdeathsig`).
    pub(crate) fn spawn(&self, mut command: Command) -> Result<std::process::Child> {
        self.prepare(&mut command);
        let name = format!("start {} on {}", command.get_program().display(), self.name);
        let (answer, answered) = mpsc::channel();
        self.keeper.ask(Box::new(move || {
            // The one who asked may have given up only if this process is ending.
            let _ = answer.send(command.spawn());
        }))?;
        answered
            .recv()
            .map_err(LabError::while_trying(&name))?
            .map_err(LabError::while_trying(name))
    }

    /// What a command printed on standard output; its failure is an error that quotes its
    /// standard error.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let what = format!("run `{program} {}` on {}", arguments.join(" "), self.name);
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        self.prepare(&mut command);
        let output =
            self.run(|| command.output().map_err(LabError::while_trying(what.as_str())))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(LabError::new(format!("cannot {what}: {}: {}", output.status, said.trim())))
        }
    }

    /// Runs a command inside the host to its end, whatever that is. It reads nothing.
    pub(crate) fn finish(&self, mut command: Command) -> Result<Output> {
        let what = format!("run {} on {}", command.get_program().display(), self.name);
        command.stdin(Stdio::null());
        self.prepare(&mut command);
        self.run(|| command.output().map_err(LabError::while_trying(what.as_str())))
    }

    /// Runs lines of `ip` commands.
    fn ip(&self, commands: &[String]) -> Result<()> {
        let script = self.directory.join(format!("{}.ip", self.name));
        fs::write(&script, commands.join("\n"))
            .map_err(LabError::while_trying("write ip commands"))?;
        self.output("ip", &["-batch", &script.to_string_lossy()]).map(drop)
    }

    fn prepare(&self, command: &mut Command) {
        // Legacy iptables takes a lock in /run, which is another's to write in an unprivileged lab.
        command.env("XTABLES_LOCKFILE", self.directory.join("xtables.lock"));
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that lives inside a namespace for as long as its host.
struct Keeper {
    thread_id: i32,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(name: &str, namespace: &Arc<File>) -> Result<Self> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let (entered, entrance) = mpsc::channel();
        let namespace = Arc::clone(namespace);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let entry = enter(&namespace).map(|()| gettid().as_raw_nonzero().get());
                if entered.send(entry).is_ok() {
                    for job in waiting {
                        job();
                    }
                }
            })
            .map_err(LabError::while_trying(format!("start a thread for {name}")))?;
        let thread_id =
            entrance.recv().map_err(LabError::while_trying(format!("enter {name}")))??;
        Ok(Self { thread_id, jobs: Some(jobs), thread: Some(thread) })
    }

    fn ask(&self, job: Job) -> Result<()> {
        let jobs = self.jobs.as_ref().ok_or_else(|| LabError::new("the host is gone"))?;
        jobs.send(job).map_err(LabError::while_trying("reach the host's thread"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked: a job only spawns.
            let _ = thread.join();
        }
    }
}

fn enter(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(LabError::while_trying("enter a network namespace"))
}

/// A new network namespace, held by the returned descriptor alone.
fn new_namespace() -> Result<File> {
    let failed = "make a network namespace (it takes root, or `unshare -Urn COMMAND`)";
    let mut child = Command::new("unshare")
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(LabError::while_trying("run unshare (package util-linux)"))?;
    let (Some(mut to), Some(mut from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(LabError::new("unshare was started without pipes"));
    };
    // What `cat` gives back proves that it runs, and so that the namespace is made.
    let mut byte = [b'.'];
    let opened = to
        .write_all(&byte)
        .and_then(|()| from.read_exact(&mut byte))
        .and_then(|()| File::open(format!("/proc/{}/ns/net", child.id())));
    drop(to);
    child.wait().map_err(LabError::while_trying(failed))?;
    opened.map_err(LabError::while_trying(failed))
}
