//! System calls: which are left, by seccomp.
//!
//! Takes nothing; puts a filter on the calling thread and all that it starts. What is not on the
//! list answers `ENOSYS`, as on a kernel that does not have it, so that a C library that tries a
//! newer call first falls back on an older one, and nobody is killed. No program can be run, no
//! other process be touched, nothing be mounted, no memory become code. It lists what the daemon
//! does after its start, with what the allocators, threads and clocks of glibc and musl do, so
//! some entries are never used by one of them.

use std::{collections::BTreeMap, env::consts::ARCH};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op,
    SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch,
};

/// Allowed whatever they are given.
const ALWAYS: &[c_long] = &[
    // Files that are open, and those that Landlock lets us open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_pipe2,
    // Sockets, once they are there.
    libc::SYS_bind,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // The time, chance, and who we are.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
];

/// Calls that not every architecture has, for which the others have one of the above.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_time,
];
/// `renameat` (asm-generic/unistd.h), which both C libraries call there.
#[cfg(target_arch = "aarch64")]
const OLDER: &[c_long] = &[38];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLDER: &[c_long] = &[];

/// Asks for a terminal's settings, `asm-generic/ioctls.h`.
const TCGETS: libc::c_int = 0x5401;
/// Makes a descriptor wait or not wait, `asm-generic/ioctls.h`.
const FIONBIO: libc::c_int = 0x5421;

/// Whether there is a filter for this processor.
#[must_use]
pub fn are_filtered_here() -> bool {
    TargetArch::try_from(ARCH).is_ok()
}

/// Whether there is a supervisor that is told how things go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supervisor {
    /// It listens on a unix socket. Which one is connected to is in memory, where a filter cannot
    /// look, so others can be as well, as far as refract's user may.
    Told,
    /// None: nobody is connected to.
    None,
}

/// Puts the filter on.
pub(super) fn filter(supervisor: Supervisor) -> Result<(), String> {
    let architecture = TargetArch::try_from(ARCH).map_err(|_| {
        format!(
            "there is no filter for system calls on {ARCH}, so all of them stay open to refract"
        )
    })?;
    let refused =
        |why: &dyn std::fmt::Display| format!("all system calls stay open to refract: {why}");
    let program = program(architecture, supervisor).map_err(|error| refused(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| match &error {
        seccompiler::Error::Seccomp(why) | seccompiler::Error::Prctl(why) => refused(why),
        other => refused(other),
    })
}

fn program(architecture: TargetArch, supervisor: Supervisor) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<Rule>> =
        ALWAYS.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let is = |argument: u8, value: libc::c_int| {
        Condition::new(argument, Length::Dword, Op::Eq, u64::from(value.cast_unsigned()))
    };
    let has = |argument: u8, bits: libc::c_int, wanted: libc::c_int| {
        let (mask, wanted) = (u64::from(bits.cast_unsigned()), u64::from(wanted.cast_unsigned()));
        Condition::new(argument, Length::Dword, Op::MaskedEq(mask), wanted)
    };
    let mut only = |call: c_long, conditions: Vec<Condition>| {
        let rule = Rule::new(conditions)?;
        rules.entry(call).or_default().push(rule);
        Ok::<(), BackendError>(())
    };
    // No protocol of the network: what netlink and the supervisor's socket take.
    only(libc::SYS_socket, vec![is(0, libc::AF_NETLINK)?])?;
    if supervisor == Supervisor::Told {
        only(libc::SYS_socket, vec![is(0, libc::AF_UNIX)?])?;
    }
    only(libc::SYS_socketpair, vec![is(0, libc::AF_UNIX)?])?;
    // No memory that is code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        only(call, vec![has(2, libc::PROT_EXEC, 0)?])?;
    }
    // Threads and no processes. `clone3` has its flags in memory, where a filter cannot look: it
    // is not there, and the C library calls this one.
    only(libc::SYS_clone, vec![has(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?])?;
    // It may end itself.
    only(libc::SYS_tgkill, vec![is(0, rustix::process::getpid().as_raw_nonzero().get())?])?;
    // A thread's name.
    for option in [libc::PR_SET_NAME, libc::PR_GET_NAME] {
        only(libc::SYS_prctl, vec![is(0, option)?])?;
    }
    // Whether it is a terminal, and not to wait: no ioctl of a device.
    for request in [TCGETS, FIONBIO] {
        only(libc::SYS_ioctl, vec![is(1, request)?])?;
    }
    // Limits are read and not set.
    only(libc::SYS_prlimit64, vec![Condition::new(2, Length::Qword, Op::Eq, 0)?])?;
    if supervisor == Supervisor::Told {
        rules.insert(libc::SYS_connect, Vec::new());
    }
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        SeccompAction::Allow,
        architecture,
    )?;
    filter.try_into()
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        net::{TcpListener, UdpSocket},
        os::unix::net::UnixDatagram,
        process::Command,
        thread,
    };

    use super::*;

    #[test]
    fn what_is_not_on_the_list_is_as_if_this_kernel_did_not_have_it() {
        let folder = tempfile::tempdir().unwrap();
        // A filter is a thread's own.
        let test = move || {
            let (ours, theirs) = (UnixDatagram::unbound().unwrap(), folder.path().join("socket"));
            let _theirs = UnixDatagram::bind(&theirs).unwrap();
            filter(Supervisor::None).unwrap();
            let absent = |error: io::Error| {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{error}");
            };
            // Nor is a unix socket of others, such as that of a container engine, spoken to.
            absent(ours.connect(&theirs).unwrap_err());
            absent(UnixDatagram::unbound().unwrap_err());
            absent(TcpListener::bind("127.0.0.1:0").unwrap_err());
            absent(UdpSocket::bind("127.0.0.1:0").unwrap_err());
            absent(Command::new("/bin/true").spawn().unwrap_err());
            absent(fs::create_dir("/tmp/never").unwrap_err());
            absent(rustix::process::chroot("/").unwrap_err().into());
            let parent = rustix::process::getppid().unwrap();
            absent(rustix::process::test_kill_process(parent).unwrap_err().into());
        };
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn what_the_daemon_does_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = folder.path().join("notify");
        let _listening = UnixDatagram::bind(&supervisor).unwrap();
        let test = move || {
            filter(Supervisor::Told).unwrap();
            fs::read("/proc/self/status").unwrap();
            UnixDatagram::unbound().unwrap().connect(&supervisor).unwrap();
            thread::Builder::new()
                .name("a thread".to_owned())
                .spawn(|| vec![1u8; 64 << 20].len())
                .unwrap()
                .join()
                .unwrap();
            rustix::process::setpriority_process(None, 10).unwrap();
        };
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn every_processor_that_refract_is_built_for_has_a_filter() {
        for architecture in [TargetArch::x86_64, TargetArch::aarch64] {
            // The limit of one program, BPF_MAXINSNS of linux/bpf_common.h.
            assert!(program(architecture, Supervisor::Told).unwrap().len() < 4096);
        }
        assert!(are_filtered_here());
    }
}
