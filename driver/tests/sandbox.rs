//! The sandbox on this kernel: what it forbids is tried, and so is what the driver must be able to do.
//!
//! Method: rights, rules and filter belong to a thread, so one thread of this process enters the
//! sandbox, tries, and reports. A kernel without Landlock is shown what it has: what the sandbox
//! says is in force is what must hold. Calls that can't be made from safe code are tried against the
//! filter itself, in `driver/src/sandbox/calls.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a panic fails a test"
)]

use driver::sandbox::Sandbox;
use driver::{Config, RawConfig};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{PidfdFlags, Signal, getpid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Barrier, mpsc};

/// A host with a shipper on TCP, as the driver sees it.
struct Host {
    folder: tempfile::TempDir,
    shipper: TcpListener,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["logging", "tls", "elsewhere"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("elsewhere/secret"), "s").unwrap();
        let fifo = folder.path().join("logging/fifo");
        rustix::fs::mkfifoat(CWD, fifo, Mode::RWXU).unwrap();
        Self {
            folder,
            shipper: TcpListener::bind("127.0.0.1:0").unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, sandbox: &str) -> Config {
        let path = |name: &str| self.path(name).display().to_string();
        let shipper = format!("http://{}", self.shipper.local_addr().unwrap());
        let settings = [
            ("PLUGIN_SOCKET", path("plugins/cls.sock")),
            ("STATE_DIR", path("state")),
            ("FIFO_DIR", path("logging")),
            ("SHIPPER", shipper),
            ("SHIPPER_TOKEN_FILE", path("tls/token")),
            ("SANDBOX", sandbox.to_owned()),
        ];
        let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
        Config::parse(&RawConfig::from_pairs(settings)).unwrap()
    }

    /// Runs `attempts` on a thread that is in the sandbox.
    fn inside(&self, sandbox: &str, attempts: impl FnOnce(&Sandbox) + Send) {
        let config = self.config(sandbox);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| attempts(&Sandbox::enter(&config)));
            thread.join().unwrap();
        });
    }
}

fn is_in_force(sandbox: &Sandbox, what: &str) -> bool {
    sandbox.in_force().iter().any(|found| found == what)
}

fn os_error<T>(result: std::io::Result<T>) -> Option<Errno> {
    let error = result.err()?;
    Errno::from_io_error(&error)
}

#[test]
fn rights_are_gone_and_stay_away() {
    let host = Host::new();
    let (tell, told) = mpsc::channel();
    let seen = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.inside("on", |sandbox| {
                for what in ["no new privileges", "no capabilities", "system calls"] {
                    assert!(is_in_force(sandbox, what), "{what}: {sandbox:?}");
                }
                tell.send(rustix::thread::gettid()).unwrap();
                seen.wait();
                let none = CapabilitySet::empty();
                let sets = CapabilitySets {
                    effective: none,
                    permitted: none,
                    inheritable: none,
                };
                let changed = rustix::thread::set_capabilities(None, sets);
                assert_eq!(changed, Err(Errno::NOSYS));
            });
        });
        let thread = told.recv().unwrap().as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/self/task/{thread}/status"));
        // A panic before the wait would leave the other thread waiting.
        seen.wait();
        let status = status.unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let none = format!("{set}:\t0000000000000000\n");
            assert!(status.contains(&none), "{status}");
        }
        for line in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
            assert!(status.contains(line), "{status}");
        }
    });
}

#[test]
fn forbidden_calls_are_not_there() {
    Host::new().inside("on", |_| {
        // Had it worked, this process would be `false`, and the test would have failed.
        assert_eq!(
            Errno::from_io_error(&Command::new("false").exec()),
            Some(Errno::NOSYS)
        );
        let child = Command::new("true").spawn();
        assert_eq!(os_error(child), Some(Errno::NOSYS));
        assert_eq!(rustix::process::chroot("/"), Err(Errno::NOSYS));
        let own = rustix::process::pidfd_open(getpid(), PidfdFlags::empty());
        assert_eq!(own.unwrap_err(), Errno::NOSYS);
        let signal = rustix::process::kill_process(getpid(), Signal::CONT);
        assert_eq!(signal, Err(Errno::NOSYS));
        for family in [
            AddressFamily::PACKET,
            AddressFamily::VSOCK,
            AddressFamily::KEY,
        ] {
            let socket = rustix::net::socket(family, SocketType::RAW, None);
            assert_eq!(socket.unwrap_err(), Errno::NOSYS, "{family:?}");
        }
    });
}

#[test]
fn files_that_are_not_the_drivers_are_out_of_reach() {
    let host = Host::new();
    host.inside("on", |sandbox| {
        if !is_in_force(sandbox, "files") {
            return;
        }
        let refused = Some(Errno::ACCESS);
        assert_eq!(os_error(fs::read(host.path("elsewhere/secret"))), refused);
        assert_eq!(os_error(fs::read_dir("/")), refused);
        assert_eq!(os_error(fs::read("/etc/passwd")), refused);
        let outside = [
            "elsewhere/secret",
            "elsewhere/new",
            "tls/new",
            "plugins/new",
        ];
        for path in outside {
            assert_eq!(os_error(fs::write(host.path(path), "")), refused, "{path}");
        }
        assert_eq!(
            os_error(fs::remove_file(host.path("elsewhere/secret"))),
            refused
        );
        // Not even out of its own folder.
        let own = host.path("state/file");
        fs::write(&own, "own").unwrap();
        let moved = fs::rename(&own, host.path("elsewhere/file"));
        assert!(moved.is_err() && own.exists());
        let linked = std::os::unix::fs::symlink("/", host.path("state/link"));
        assert_eq!(os_error(linked), Some(Errno::NOSYS));
    });
}

#[test]
fn the_drivers_own_files_are_at_hand() {
    let host = Host::new();
    host.inside("on", |_| {
        let journal = host.path("state/journal");
        fs::create_dir(&journal).unwrap();
        let (new, kept) = (journal.join("new"), journal.join("kept"));
        fs::write(&new, "entries").unwrap();
        fs::File::options()
            .write(true)
            .truncate(true)
            .open(&new)
            .unwrap();
        fs::rename(&new, &kept).unwrap();
        assert_eq!(fs::read_dir(&journal).unwrap().count(), 1);
        rustix::fs::statvfs(&journal).unwrap();
        fs::remove_file(&kept).unwrap();
        fs::remove_dir(&journal).unwrap();
        let fifo = host.path("logging/fifo");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reading = rustix::fs::open(&fifo, flags, Mode::empty()).unwrap();
        rustix::fs::open(&fifo, OFlags::WRONLY, Mode::empty()).unwrap();
        rustix::pipe::fcntl_setpipe_size(&reading, 64 << 10).unwrap();
        fs::remove_file(&fifo).unwrap();
        let memory = rustix::fs::memfd_create("journal", rustix::fs::MemfdFlags::CLOEXEC);
        memory.unwrap();
        drop(UnixListener::bind(host.path("plugins/cls.sock")).unwrap());
        fs::remove_file(host.path("plugins/cls.sock")).unwrap();
        std::thread::spawn(|| ()).join().unwrap();
    });
}

#[test]
fn a_token_that_comes_later_and_changes_is_read() {
    let host = Host::new();
    let (come, go_on) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.inside("on", |_| {
                for expected in ["first", "second"] {
                    come.wait();
                    go_on.wait();
                    assert_eq!(
                        fs::read_to_string(host.path("tls/token")).unwrap(),
                        expected
                    );
                }
            });
        });
        for token in ["first", "second"] {
            come.wait();
            fs::write(host.path("tls/new"), token).unwrap();
            fs::rename(host.path("tls/new"), host.path("tls/token")).unwrap();
            go_on.wait();
        }
    });
}

#[test]
fn the_shipper_is_dialled_and_nobody_else() {
    let host = Host::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("cls-sandbox-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let _listening = UnixListener::bind_addr(&abstract_name).unwrap();
    host.inside("on", |sandbox| {
        TcpStream::connect(host.shipper.local_addr().unwrap()).unwrap();
        // By name, with all that the resolver does.
        let port = host.shipper.local_addr().unwrap().port();
        TcpStream::connect(("localhost", port)).unwrap();
        if is_in_force(sandbox, "TCP ports") {
            let refused = TcpStream::connect(other.local_addr().unwrap());
            assert_eq!(os_error(refused), Some(Errno::ACCESS));
            assert_eq!(
                os_error(TcpListener::bind("127.0.0.1:0")),
                Some(Errno::ACCESS)
            );
        }
        if is_in_force(sandbox, "abstract sockets and signals") {
            let refused = UnixStream::connect_addr(&abstract_name);
            assert_eq!(os_error(refused), Some(Errno::PERM));
        }
    });
}

#[test]
fn switched_off_it_forbids_nothing() {
    let host = Host::new();
    host.inside("off", |sandbox| {
        assert!(sandbox.in_force().is_empty());
        let secret = host.path("elsewhere/secret");
        assert_eq!(fs::read_to_string(secret).unwrap(), "s");
        assert!(Command::new("true").status().unwrap().success());
    });
}
