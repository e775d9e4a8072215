//! Runs one program of the firewall: no shell, no environment of others, no waiting without end.
//!
//! Takes an absolute path, arguments and perhaps a text for its standard input; gives back what it
//! printed, or a [`ProgramFailure`] that names the cause and the remedy. It knows no rules.

use std::{
    env,
    fs::File,
    io::{self, Seek},
    os::{
        fd::AsFd,
        unix::{fs::FileExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// How long a program may take. It may wait 5 s for the lock.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(10);
/// How much a program may print, bytes. A rule takes about 100 to list, so this is 100,000 rules.
const OUTPUT_LIMIT: usize = 16 * 1024 * 1024;
/// The kernel refuses what crosses the limit by the page (`shmem_write_begin`, mm/shmem.c).
const PAGE: usize = 4096;
/// How much of what a program complains goes into the sentence, characters.
const COMPLAINT_LIMIT: usize = 300;
/// Where `iptables` finds `modprobe`.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Names the lock file of legacy iptables when `/run/xtables.lock` cannot be written.
const LOCK_FILE_VARIABLE: &str = "XTABLES_LOCKFILE";

/// Why a program of the firewall did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramFailure {
    /// It is not installed.
    #[error("it is not there (install the package iptables, or name the program by its path)")]
    NotFound,
    /// The path given is not that of an `iptables`.
    #[error("it is not an absolute path to a program named iptables… (/usr/sbin/iptables-legacy)")]
    Misnamed,
    /// It could not be started, or not be waited for.
    #[error("it cannot be run: {0}")]
    Unrunnable(#[source] io::Error),
    /// It was killed after a time without an end.
    #[error("it was stopped after {} s without an answer", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It lacks a capability.
    #[error(
        "not permitted: it takes CAP_NET_ADMIN and CAP_NET_RAW, as ambient capabilities where \
         Refract is not root"
    )]
    NotPermitted,
    /// The kernel does not have the match `set`, or hides it from who lacks `CAP_NET_ADMIN`.
    #[error(
        "the kernel does not offer the match `set`: load its module (modprobe xt_set), and see \
         that CAP_NET_ADMIN is granted"
    )]
    NoMatchInKernel,
    /// The program does not have the match `set`.
    #[error("it does not know the match `set`: install its extension libxt_set.so")]
    NoMatchInProgram,
    /// A rule names a set that is not there.
    #[error("a set that the rule names does not exist; sets are made before the rule: {0}")]
    NoSet(String),
    /// The kernel does not have the table: `filter`, as the sentence says. Where it is `mangle`, that
    /// becomes an answer before anybody reads the sentence.
    #[error("the kernel has no table `filter` for it (modprobe iptable_filter, ip6table_filter)")]
    NoTable,
    /// Another program holds the lock.
    #[error("another program held the lock of iptables for 5 s")]
    Locked,
    /// The lock file cannot be opened.
    #[error("its lock file cannot be opened; make it writable or set XTABLES_LOCKFILE: {0}")]
    NoLockFile(String),
    /// It ended with an error of its own.
    #[error("it ended with {status}: {complaint}")]
    Exited {
        /// "exit status: 1", "signal: 9".
        status: String,
        /// What it said about it, on one line.
        complaint: String,
    },
    /// It printed more than anybody's rules come to.
    #[error("it printed more than {} MiB", OUTPUT_LIMIT >> 20)]
    TooMuch,
    /// It answered what no `iptables` answers.
    #[error("its answer is not that of an iptables")]
    Unintelligible,
    /// What was done did not last until it was looked at.
    #[error("somebody else keeps changing chain {chain}")]
    Unsettled {
        /// The chain's name.
        chain: String,
    },
    /// The chain that the rule is to be in is not there.
    #[error(
        "there is no chain {chain} that iptables could list: start what makes it (Docker makes \
         DOCKER-USER), make it with `iptables -N {chain}` and `ip6tables -N {chain}`, or name \
         another with --chain"
    )]
    NoChain {
        /// The chain's name.
        chain: String,
    },
    /// The program or the kernel does not have the target `TCPOPTSTRIP`.
    #[error("the target TCPOPTSTRIP is not there (modprobe xt_TCPOPTSTRIP; libxt_TCPOPTSTRIP.so)")]
    NoStripTarget,
    /// The program or the kernel does not have the match `comment`.
    #[error("the match `comment` is not there (modprobe xt_comment; libxt_comment.so)")]
    NoCommentMatch,
}

impl ProgramFailure {
    /// Whether the program itself does not work, for a reason that only it knows: its sentence then
    /// says what happened, and no remedy.
    #[must_use]
    pub fn is_breakage(&self) -> bool {
        matches!(
            self,
            Self::Unrunnable(_)
                | Self::TimedOut(_)
                | Self::Exited { .. }
                | Self::TooMuch
                | Self::Unintelligible
        )
    }
}

/// Runs `program` to its end, or kills it after `limit`, and gives its standard output.
pub(super) fn run(
    program: &Path,
    arguments: &[&str],
    input: Option<&str>,
    limit: Duration,
) -> Result<String, ProgramFailure> {
    match run_quietly(program, arguments, input, limit)? {
        Ended { success: true, output, .. } => Ok(output),
        ended => Err(diagnosis(&ended)),
    }
}

/// What `iptables-restore --test` finds lacking for a rule against MPTCP: a program that lacks
/// something fails, but where the kernel does, it only warns and ends well. Whatever else is wrong
/// is left for the real attempt to tell.
pub(super) fn lacking(
    program: &Path,
    arguments: &[&str],
    input: &str,
    limit: Duration,
) -> Option<ProgramFailure> {
    let ended = run_quietly(program, arguments, Some(input), limit).ok()?;
    let failure = diagnosis(&ended);
    matches!(failure, ProgramFailure::NoStripTarget | ProgramFailure::NoCommentMatch)
        .then_some(failure)
}

/// Runs a program to its end, whatever that is.
fn run_quietly(
    program: &Path,
    arguments: &[&str],
    input: Option<&str>,
    limit: Duration,
) -> Result<Ended, ProgramFailure> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        // The complaints are read below.
        .env("LC_ALL", "C")
        .current_dir("/")
        // A group of its own: Ctrl-C on our terminal is not meant for it, and what it starts itself
        // is killed with it.
        .process_group(0);
    if let Some(file) = env::var_os(LOCK_FILE_VARIABLE) {
        command.env(LOCK_FILE_VARIABLE, file);
    }
    match run_to_end(command, input, limit) {
        Ok(Some(Ended { overflowed: true, .. })) => Err(ProgramFailure::TooMuch),
        Ok(Some(ended)) => Ok(ended),
        Ok(None) => Err(ProgramFailure::TimedOut(limit)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Err(ProgramFailure::NotFound),
        Err(source) => Err(ProgramFailure::Unrunnable(source)),
    }
}

struct Ended {
    success: bool,
    status: String,
    output: String,
    complaint: String,
    overflowed: bool,
}

/// Files in memory stand for the three streams: unlike a pipe, none can fill up and make us wait
/// for the program while it waits for us.
fn run_to_end(
    mut command: Command,
    input: Option<&str>,
    limit: Duration,
) -> io::Result<Option<Ended>> {
    let output = bounded_file()?;
    let complaint = bounded_file()?;
    command.stdout(output.try_clone()?).stderr(complaint.try_clone()?);
    command.stdin(match input {
        None => Stdio::null(),
        Some(text) => {
            let file = File::from(memfd_create(c"refract-input", MemfdFlags::CLOEXEC)?);
            file.write_all_at(text.as_bytes(), 0)?;
            file.into()
        }
    });
    let mut child = command.spawn()?;
    if !ended_within(&child, limit)? {
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            kill_process_group(group, Signal::KILL)?;
        }
        child.wait()?;
        return Ok(None);
    }
    let status = child.wait()?;
    let (output, complaint) = (written(output)?, written(complaint)?);
    Ok(Some(Ended {
        success: status.success(),
        status: status.to_string(),
        overflowed: output.len().max(complaint.len()) + PAGE > OUTPUT_LIMIT,
        output: String::from_utf8_lossy(&output).into_owned(),
        complaint: String::from_utf8_lossy(&complaint).into_owned(),
    }))
}

/// A file in memory whose size cannot grow: writing past the limit fails for the program.
fn bounded_file() -> io::Result<File> {
    let file = memfd_create(c"refract-output", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, OUTPUT_LIMIT as u64)?;
    fcntl_add_seals(&file, SealFlags::GROW)?;
    Ok(file.into())
}

/// What the program wrote: it shared our file offset.
fn written(mut file: File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.stream_position()?).unwrap_or(OUTPUT_LIMIT);
    let mut bytes = vec![0; length.min(OUTPUT_LIMIT)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn ended_within(child: &Child, limit: Duration) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut ready = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        match poll(&mut ready, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(source) => return Err(source.into()),
        }
    }
}

/// Finds the cause in the complaint. The texts are those of iptables 1.8: `libxt_set.h`,
/// `xshared.c`, `xtables.c`, `libiptc.c`.
fn diagnosis(ended: &Ended) -> ProgramFailure {
    let complaint = one_line(&ended.complaint);
    let says = |text: &str| complaint.contains(text);
    if says("holding the xtables lock") {
        ProgramFailure::Locked
    } else if says("can't open lock file") {
        ProgramFailure::NoLockFile(complaint)
    } else if says("Can't open socket to ipset")
        || says("you must be root")
        || says("Operation not permitted")
        || says("Permission denied")
    {
        ProgramFailure::NotPermitted
    } else if says("Extension TCPOPTSTRIP revision")
        // Without its extension the name might be a chain's, which takes no options.
        || says("unknown option \"--strip-options\"")
        || says("Couldn't load target `TCPOPTSTRIP'")
    {
        ProgramFailure::NoStripTarget
    } else if says("Extension comment revision") || says("Couldn't load match `comment'") {
        ProgramFailure::NoCommentMatch
    } else if says("Couldn't load match `set'") {
        ProgramFailure::NoMatchInProgram
    } else if says("module xt_set is not loaded")
        || says("No chain/target/match by that name")
        || says("Extension set revision")
    {
        ProgramFailure::NoMatchInKernel
    } else if says("doesn't exist") && says("Set ") {
        ProgramFailure::NoSet(complaint)
    } else if says("Table does not exist") {
        ProgramFailure::NoTable
    } else {
        ProgramFailure::Exited { status: ended.status.clone(), complaint }
    }
}

/// A complaint as part of a sentence: its words, without control characters and the hint to `-h`.
fn one_line(text: &str) -> String {
    let words = text.lines().filter(|line| !line.starts_with("Try `"));
    let words: Vec<_> = words.flat_map(str::split_whitespace).collect();
    let line = words.join(" ");
    if line.is_empty() {
        return "it did not say why".to_owned();
    }
    line.chars().filter(|c| !c.is_control()).take(COMPLAINT_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    fn shell(script: &str, limit: Duration) -> Result<String, ProgramFailure> {
        run(Path::new("/bin/sh"), &["-c", script], None, limit)
    }

    fn complains(text: &str) -> String {
        diagnosis(&Ended {
            success: false,
            status: "exit status: 1".to_owned(),
            output: String::new(),
            complaint: text.to_owned(),
            overflowed: false,
        })
        .to_string()
    }

    #[test]
    fn what_a_program_prints_is_the_answer() {
        assert_eq!(shell("printf 'one\\ntwo'", TIME_LIMIT).unwrap(), "one\ntwo");
    }

    #[test]
    fn a_program_reads_its_input_from_the_start() {
        let text = "*filter\nCOMMIT\n";
        let answer = run(Path::new("/bin/cat"), &[], Some(text), TIME_LIMIT);
        assert_eq!(answer.unwrap(), text);
    }

    #[test]
    fn a_program_sees_a_clean_environment_and_no_input() {
        let answer = shell("cat; /usr/bin/env", TIME_LIMIT).unwrap();
        let mut names: Vec<_> = answer.lines().filter_map(|line| line.split('=').next()).collect();
        names.retain(|name| !["PWD", "_", "SHLVL"].contains(name));
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[test]
    fn a_program_that_hangs_is_stopped_together_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("held");
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let held = open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let script = format!("exec 3>{}; sleep 100 & sleep 100; true", fifo.display());

        let began = Instant::now();
        let failure = shell(&script, SHORT).unwrap_err();
        assert_eq!(failure.to_string(), "it was stopped after 0.2 s without an answer");
        assert!(began.elapsed() < Duration::from_secs(5));

        // The fifo hangs up when the last process that holds it is gone.
        let mut ready = [PollFd::new(&held, PollFlags::empty())];
        poll(&mut ready, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap();
        assert!(ready[0].revents().contains(PollFlags::HUP));
    }

    #[test]
    fn a_program_that_prints_without_end_is_refused() {
        let failure = shell("exec cat /dev/zero", TIME_LIMIT).unwrap_err();
        assert_eq!(failure.to_string(), "it printed more than 16 MiB");
    }

    #[test]
    fn a_program_that_fails_is_quoted_on_one_line() {
        let failure = shell("printf 'no \\033[1mway\\n\\nout\\n' >&2; exit 3", TIME_LIMIT);
        assert_eq!(failure.unwrap_err().to_string(), "it ended with exit status: 3: no [1mway out");
    }

    #[test]
    fn a_program_that_is_killed_or_says_nothing_is_still_a_sentence() {
        let failure = shell("kill -9 $$", TIME_LIMIT).unwrap_err();
        assert_eq!(failure.to_string(), "it ended with signal: 9 (SIGKILL): it did not say why");
    }

    #[test]
    fn a_program_that_is_not_there_is_said_to_be_missing() {
        let failure = run(Path::new("/nonexistent/iptables"), &[], None, TIME_LIMIT).unwrap_err();
        assert!(matches!(failure, ProgramFailure::NotFound), "{failure}");
    }

    /// Complaints captured from iptables 1.8.9, and from its source where this kernel has it all.
    #[test]
    fn complaints_are_told_as_cause_and_remedy() {
        for (complaint, expected) in [
            ("iptables v1.8.9 (nf_tables): Can't open socket to ipset.\n\n", "CAP_NET_RAW"),
            (
                "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission \
                 denied (you must be root)\n",
                "CAP_NET_ADMIN",
            ),
            ("getsockopt failed strangely: Operation not permitted\n", "CAP_NET_ADMIN"),
            (
                "iptables v1.8.9 (legacy): can't initialize iptables table `filter': Permission \
                 denied (you must be root)\nPerhaps iptables or your kernel needs to be upgraded.\n",
                "CAP_NET_ADMIN",
            ),
            (
                "iptables v1.8.9 (nf_tables): Kernel module xt_set is not loaded in.\n\n",
                "modprobe xt_set",
            ),
            ("iptables: No chain/target/match by that name.\n", "modprobe xt_set"),
            (
                "Warning: Extension set revision 0 not supported, missing kernel module?\n",
                "modprobe xt_set",
            ),
            (
                "iptables v1.8.9 (legacy): Couldn't load match `set':No such file or directory\n",
                "libxt_set.so",
            ),
            (
                "iptables-nft-restore v1.8.9 (nf_tables): Set refract_banned_users doesn't \
                 exist.\n\nError occurred at line: 2\n",
                "Set refract_banned_users doesn't exist",
            ),
            (
                "Can't lock /run/xtables.lock: Resource temporarily unavailable\nAnother app is \
                 currently holding the xtables lock. Stopped waiting after 5s.\n",
                "another program held the lock",
            ),
            (
                "Fatal: can't open lock file /run/xtables.lock: Permission denied\n",
                "set XTABLES_LOCKFILE",
            ),
            (
                "iptables v1.8.9 (legacy): can't initialize iptables table `filter': Table does \
                 not exist (do you need to insmod?)\n",
                "no table `filter`",
            ),
            // From here on with a target that this kernel lacks, under our target's name.
            (
                "Warning: Extension TCPOPTSTRIP revision 0 not supported, missing kernel \
                 module?\niptables-nft-restore v1.8.9 (nf_tables): \nline 2: RULE_INSERT failed (No \
                 such file or directory): rule in chain PREROUTING\n",
                "modprobe xt_TCPOPTSTRIP",
            ),
            (
                "Warning: Extension TCPOPTSTRIP revision 0 not supported, missing kernel \
                 module?\niptables-restore: line 3 failed\n",
                "modprobe xt_TCPOPTSTRIP",
            ),
            (
                "iptables-restore v1.8.9 (legacy): unknown option \"--strip-options\"\nError \
                 occurred at line: 2\n",
                "libxt_TCPOPTSTRIP.so",
            ),
            (
                "Warning: Extension comment revision 0 not supported, missing kernel module?\n\
                 iptables-restore: line 3 failed\n",
                "modprobe xt_comment",
            ),
            (
                "iptables-restore v1.8.9 (legacy): Couldn't load match `comment':No such file or \
                 directory\n\nError occurred at line: 2\n",
                "libxt_comment.so",
            ),
            (
                "iptables v1.8.9 (nf_tables): table `filter' is incompatible, use 'nft' tool.\n",
                "table `filter' is incompatible",
            ),
        ] {
            let sentence = complains(complaint);
            assert!(sentence.contains(expected), "{complaint:?} became {sentence:?}");
            assert!(!sentence.contains('\n'));
        }
    }
}
