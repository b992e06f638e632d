//! System calls: what the driver, its libraries and the C library make, and nothing else.
//!
//! Any other call fails with `ENOSYS`, as on a kernel that does not have it. Killing the process
//! would be the stricter answer, but a call that nobody has thought of, made by a newer C library,
//! would then end the log path; libraries know `ENOSYS` and fall back to an older call (that is also
//! how threads are made: `clone3` hides its flags from a filter, so the C library is left with
//! `clone`). For a call that must never happen the two are the same: it does not happen.
//!
//! Calls with a second face are allowed for one of them: see [`conditional`].
//!
//! Cost: since Linux 5.11 the kernel keeps a bitmap of calls that are always allowed, so those on
//! the path of a log line do not run the filter.

use super::files::dials_tcp;
use crate::config::Config;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;

/// Calls that are always allowed, by what they are for.
const ALLOWED: &[i64] = &[
    // FIFOs, journals, the table, certificates.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_faccessat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    // The kernel's own, when a frozen process goes on.
    libc::SYS_restart_syscall,
    // The engine, the shipper, name servers.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Threads, memory, signals, time.
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    // Libraries take it for granted that these can't fail.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_uname,
];

/// The older forms of some of them, which x86-64 has as well and C libraries still use.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[i64] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[i64] = &[];

/// The type in the second argument of socket(2), without its flags.
const SOCKET_TYPE_MASK: u64 = 0xf;

/// Restricts the calling thread to the calls of a driver with these settings.
///
/// # Errors
/// If the kernel takes no filter, or this kind of processor is not known.
pub(super) fn restrict(config: &Config) -> Result<(), Error> {
    let program = program(dials_tcp(config)).map_err(Error::Backend)?;
    seccompiler::apply_filter(&program)
}

fn program(has_tcp: bool) -> Result<BpfProgram, BackendError> {
    let always = ALLOWED.iter().chain(ALLOWED_OLD);
    let mut rules: BTreeMap<_, _> = always.map(|&call| (call, Vec::new())).collect();
    for (call, rows) in conditional(has_tcp) {
        let rule = |row: Vec<Test>| {
            let conditions = row.into_iter().map(Test::condition);
            SeccompRule::new(conditions.collect::<Result<_, _>>()?)
        };
        rules.insert(call, rows.into_iter().map(rule).collect::<Result<_, _>>()?);
    }
    let not_there = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, not_there, SeccompAction::Allow, arch)?.try_into()
}

/// A test of one argument: the bits that are looked at, and what they must be.
#[derive(Debug, Clone, Copy)]
struct Test {
    argument: u8,
    mask: u64,
    bits: u64,
}

/// Returns the calls that are allowed with some arguments only: when all tests of one of the rows
/// hold.
fn conditional(has_tcp: bool) -> Vec<(i64, Vec<Vec<Test>>)> {
    let fcntl = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_GETFL,
        libc::F_GETPIPE_SZ,
        libc::F_SETFD,
        libc::F_SETFL,
        libc::F_SETPIPE_SZ,
    ];
    // Nothing becomes code that was data.
    let not_executable = vec![vec![masked(2, flags(&[libc::PROT_EXEC]), 0)]];
    vec![
        // A thread of this process, in its namespaces.
        (
            libc::SYS_clone,
            vec![vec![masked(
                0,
                flags(THREAD) | flags(NAMESPACES),
                flags(THREAD),
            )]],
        ),
        (libc::SYS_fcntl, one_of(1, &fcntl.map(number))),
        (libc::SYS_ioctl, one_of(1, &[libc::FIONBIO, libc::FIONREAD])),
        (libc::SYS_mmap, not_executable.clone()),
        (libc::SYS_mprotect, not_executable),
        // A thread's name.
        (libc::SYS_prctl, one_of(0, &[number(libc::PR_SET_NAME)])),
        // Reading limits, not setting them.
        (libc::SYS_prlimit64, vec![vec![is_null(2)]]),
        (libc::SYS_socket, sockets(has_tcp)),
        // abort(3).
        (libc::SYS_tgkill, one_of(2, &[number(libc::SIGABRT)])),
    ]
}

/// The engine's socket and the shipper's; with addresses, TCP, UDP to name servers, and the kernel's
/// list of this host's addresses, by which getaddrinfo(3) sorts what it found.
fn sockets(has_tcp: bool) -> Vec<Vec<Test>> {
    let family = |family| equal(0, number(family));
    let mut rows = vec![vec![family(libc::AF_UNIX)]];
    if has_tcp {
        for version in [libc::AF_INET, libc::AF_INET6] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                let kind = masked(1, SOCKET_TYPE_MASK, number(kind));
                rows.push(vec![family(version), kind]);
            }
        }
        let routes = equal(2, number(libc::NETLINK_ROUTE));
        rows.push(vec![family(libc::AF_NETLINK), routes]);
    }
    rows
}

/// What makes a new task a thread of this process.
const THREAD: &[i32] = &[libc::CLONE_THREAD, libc::CLONE_VM];

/// What would put it into namespaces of its own.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Returns a constant of the C library as an argument.
fn number(constant: i32) -> u64 {
    u64::from(constant.unsigned_abs())
}

fn flags(constants: &[i32]) -> u64 {
    constants.iter().fold(0, |all, &flag| all | number(flag))
}

fn one_of(argument: u8, values: &[u64]) -> Vec<Vec<Test>> {
    let rows = values.iter().map(|&value| vec![equal(argument, value)]);
    rows.collect()
}

/// The kernel takes these arguments as 32 bits; what the upper half holds does not matter to it.
fn equal(argument: u8, bits: u64) -> Test {
    masked(argument, u64::from(u32::MAX), bits)
}

fn is_null(argument: u8) -> Test {
    masked(argument, u64::MAX, 0)
}

fn masked(argument: u8, mask: u64, bits: u64) -> Test {
    Test {
        argument,
        mask,
        bits,
    }
}

impl Test {
    fn condition(self) -> Result<SeccompCondition, BackendError> {
        let operator = SeccompCmpOp::MaskedEq(self.mask);
        SeccompCondition::new(self.argument, SeccompCmpArgLen::Qword, operator, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const ERRNO: u32 = 0x0005_0000;
    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7;

    /// What the kernel would do: runs the filter on a call.
    fn verdict(has_tcp: bool, arch: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap();
        // struct seccomp_data, little-endian, in words.
        let mut data = vec![call, arch, 0, 0];
        for argument in arguments {
            data.extend([low(argument), low(argument >> 32)]);
        }
        let program = program(has_tcp).unwrap();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let instruction = &program[at];
            let (k, taken, not_taken) = (instruction.k, instruction.jt, instruction.jf);
            at += 1;
            let jump = |condition| usize::from(if condition { taken } else { not_taken });
            match instruction.code {
                0x20 => accumulator = data[usize::try_from(k).unwrap() / 4],
                0x54 => accumulator &= k,
                0x05 => at += usize::try_from(k).unwrap(),
                0x15 => at += jump(accumulator == k),
                0x25 => at += jump(accumulator > k),
                0x35 => at += jump(accumulator >= k),
                0x06 => return k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn is_allowed(has_tcp: bool, call: i64, arguments: [u64; 6]) -> bool {
        match verdict(has_tcp, ARCH, u32::try_from(call).unwrap(), arguments) {
            ALLOW => true,
            verdict => {
                let not_there = ERRNO | libc::ENOSYS.unsigned_abs();
                assert_eq!(verdict, not_there, "call {call}: {verdict:#x}");
                false
            }
        }
    }

    /// Calls by which a process gets at other processes, at the kernel or at more rights.
    const NEVER: &[i64] = &[
        libc::SYS_acct,
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_capset,
        libc::SYS_chroot,
        libc::SYS_clock_settime,
        libc::SYS_clone3,
        libc::SYS_delete_module,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fanotify_init,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_finit_module,
        libc::SYS_fsopen,
        libc::SYS_init_module,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_setup,
        libc::SYS_kexec_file_load,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_kill,
        libc::SYS_linkat,
        libc::SYS_mknodat,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_open_tree,
        libc::SYS_perf_event_open,
        libc::SYS_personality,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pivot_root,
        libc::SYS_pkey_mprotect,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_request_key,
        libc::SYS_seccomp,
        libc::SYS_sethostname,
        libc::SYS_setns,
        libc::SYS_setresuid,
        libc::SYS_setrlimit,
        libc::SYS_setuid,
        libc::SYS_setxattr,
        libc::SYS_shmget,
        libc::SYS_swapon,
        libc::SYS_symlinkat,
        libc::SYS_syslog,
        libc::SYS_tkill,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_userfaultfd,
    ];

    #[test]
    fn what_a_driver_never_does_is_not_there() {
        for &call in NEVER {
            assert!(!is_allowed(true, call, [0; 6]), "call {call}");
        }
        #[cfg(target_arch = "x86_64")]
        for call in [libc::SYS_fork, libc::SYS_vfork, libc::SYS_iopl] {
            assert!(!is_allowed(true, call, [0; 6]), "call {call}");
        }
        // Nor is a number that no kernel has yet, nor the same calls under another number (x32).
        assert!(!is_allowed(true, 2000, [0; 6]));
        assert!(!is_allowed(true, libc::SYS_read | 0x4000_0000, [0; 6]));
    }

    #[test]
    fn a_call_of_another_kind_of_processor_is_the_end() {
        const I386: u32 = 0x4000_0003;
        assert_eq!(verdict(true, I386, 3, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn arguments_decide_where_a_call_has_a_second_face() {
        let new_thread = flags(&[libc::CLONE_FS, libc::CLONE_FILES, libc::CLONE_SETTLS]);
        let new_thread = new_thread | flags(THREAD);
        let new_process = flags(&[libc::CLONE_CHILD_SETTID, libc::SIGCHLD]);
        let elsewhere = new_thread | flags(&[libc::CLONE_NEWUSER]);
        let read_write = flags(&[libc::PROT_READ, libc::PROT_WRITE]);
        let executable = flags(&[libc::PROT_READ, libc::PROT_EXEC]);
        let argument = |index: usize, value: u64| {
            let mut arguments = [0; 6];
            arguments[index] = value;
            arguments
        };
        for (call, arguments, expected) in [
            (libc::SYS_clone, argument(0, new_thread), true),
            (libc::SYS_clone, argument(0, new_process), false),
            (libc::SYS_clone, argument(0, elsewhere), false),
            (libc::SYS_mmap, argument(2, read_write), true),
            (libc::SYS_mmap, argument(2, executable), false),
            (libc::SYS_mprotect, argument(2, read_write), true),
            (libc::SYS_mprotect, argument(2, executable), false),
            (
                libc::SYS_prctl,
                argument(0, number(libc::PR_SET_NAME)),
                true,
            ),
            (
                libc::SYS_prctl,
                argument(0, number(libc::PR_SET_DUMPABLE)),
                false,
            ),
            (libc::SYS_prlimit64, [0; 6], true),
            (libc::SYS_prlimit64, argument(2, 1 << 32), false),
            (libc::SYS_ioctl, argument(1, libc::FIONBIO), true),
            (libc::SYS_ioctl, argument(1, libc::TIOCSTI), false),
            (
                libc::SYS_fcntl,
                argument(1, number(libc::F_SETPIPE_SZ)),
                true,
            ),
            (libc::SYS_fcntl, argument(1, number(libc::F_SETOWN)), false),
            (libc::SYS_tgkill, argument(2, number(libc::SIGABRT)), true),
            (libc::SYS_tgkill, argument(2, number(libc::SIGKILL)), false),
        ] {
            assert_eq!(
                is_allowed(true, call, arguments),
                expected,
                "{call} {arguments:x?}"
            );
        }
    }

    #[test]
    fn sockets_are_what_the_endpoints_need() {
        let cloexec = number(libc::SOCK_CLOEXEC) | number(libc::SOCK_NONBLOCK);
        for (family, kind, protocol, without_tcp, with_tcp) in [
            (libc::AF_UNIX, libc::SOCK_STREAM, 0, true, true),
            (
                libc::AF_INET,
                libc::SOCK_STREAM,
                libc::IPPROTO_TCP,
                false,
                true,
            ),
            (libc::AF_INET6, libc::SOCK_DGRAM, 0, false, true),
            (libc::AF_INET, libc::SOCK_RAW, 0, false, false),
            (
                libc::AF_NETLINK,
                libc::SOCK_RAW,
                libc::NETLINK_ROUTE,
                false,
                true,
            ),
            (
                libc::AF_NETLINK,
                libc::SOCK_RAW,
                libc::NETLINK_AUDIT,
                false,
                false,
            ),
            (libc::AF_PACKET, libc::SOCK_RAW, 0, false, false),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0, false, false),
            (libc::AF_ALG, libc::SOCK_SEQPACKET, 0, false, false),
        ] {
            let arguments = [
                number(family),
                number(kind) | cloexec,
                number(protocol),
                0,
                0,
                0,
            ];
            for (has_tcp, expected) in [(false, without_tcp), (true, with_tcp)] {
                let found = is_allowed(has_tcp, libc::SYS_socket, arguments);
                assert_eq!(found, expected, "{family} {kind} {protocol} {has_tcp}");
            }
        }
    }
}
