//! The driver's sandbox: what the process gives up before it reads a byte of anybody.
//!
//! The engine runs a plugin as root with its 14 default capabilities, without a filter of system
//! calls, and lets it raise its rights by executing something. The driver needs none of that:
//!
//! | Given up | By | On |
//! |---|---|---|
//! | core dumps, and being read by other processes | [`forbid_core_dumps`] | every kernel |
//! | gaining rights by executing a file | `no_new_privs` | every kernel |
//! | every capability, in all five sets | `capset`, `prctl` | every kernel |
//! | files but its own and those that settings name; TCP ports but its shippers'; other processes' abstract sockets and signals | Landlock ([`files`]) | Linux 5.13; ports 6.7; sockets and signals 6.12 |
//! | all but about 100 system calls | seccomp ([`calls`]) | every kernel that Docker runs on |
//!
//! All of it is for the calling thread and the threads that it starts, so it happens before there
//! is a second one; it can't be taken back; and it is inherited by nobody, since the process can
//! start none. What a kernel lacks is said once and missed: a driver that refused to start would
//! lose logs. `SANDBOX=off` leaves out all but the first row, for a kernel or a C library that
//! makes a call that nobody has thought of. `cls-driver journal` is not in the sandbox: it is a
//! command of whoever runs it, and reads what that person may read.

mod calls;
mod files;

use crate::config::Config;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What is in force, and what the kernel would not do.
#[derive(Debug, Default)]
pub struct Sandbox {
    in_force: Vec<String>,
    missing: Vec<String>,
    is_off: bool,
}

impl Sandbox {
    /// Restricts the calling thread, and all that it will start, to what a driver with these
    /// settings does. Makes the driver's own folders, since rules are about folders that exist.
    ///
    /// Never fails: what can't be had is missing.
    pub fn enter(config: &Config) -> Self {
        let mut sandbox = Self::default();
        if !config.sandbox {
            sandbox.is_off = true;
            return sandbox;
        }
        let no_new_privs = rustix::thread::set_no_new_privs(true);
        sandbox.note("no new privileges", no_new_privs);
        match files::restrict(config) {
            Ok(files) => {
                sandbox.in_force.extend(files.in_force);
                sandbox.missing.extend(files.missing);
            }
            Err(error) => sandbox.missing.push(format!("files: {error}")),
        }
        sandbox.note("no capabilities", drop_capabilities());
        // Last: the calls above are not on its list.
        sandbox.note("system calls", calls::restrict(config));
        sandbox
    }

    fn note<E: std::fmt::Display>(&mut self, what: &str, done: Result<(), E>) {
        match done {
            Ok(()) => self.in_force.push(what.to_owned()),
            Err(error) => self.missing.push(format!("{what}: {error}")),
        }
    }

    /// Returns what is in force, in words.
    pub fn in_force(&self) -> &[String] {
        &self.in_force
    }

    /// Says once what is in force, and what is not.
    pub fn log(&self) {
        if self.is_off {
            tracing::warn!("the sandbox is off (SANDBOX=off)");
            return;
        }
        let in_force = self.in_force.join(", ");
        tracing::info!(in_force, "the driver has given up what it does not need");
        if !self.missing.is_empty() {
            let missing = self.missing.join(", ");
            tracing::warn!(
                missing,
                "this kernel lacks a part of the sandbox; logs are carried all the same"
            );
        }
    }
}

/// Makes sure that no core dump of this process is ever written: keys pass through its memory. A
/// limit of 0 stops the kernel from writing a file, and a process that is not dumpable is not handed
/// to a program that collects cores either (core(5)), nor read by others through /proc or ptrace(2).
///
/// # Errors
/// The kernel's; none is known to refuse.
pub fn forbid_core_dumps() -> Result<(), Errno> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Drops every capability. Root without capabilities is the owner of root's files, and nothing more;
/// all that the driver touches is root's: the engine's folders and FIFOs, its own state, and the
/// socket of a shipper that is root.
fn drop_capabilities() -> Result<(), Errno> {
    let bounding = empty_bounding_set();
    let ambient = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let none = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    // Whatever became of the other sets.
    rustix::thread::set_capabilities(None, none)?;
    bounding.and(ambient)
}

/// Needs CAP_SETPCAP, which a plugin has.
fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) => rustix::thread::remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            // One more than this kernel knows.
            Err(_) => break,
        }
    }
    Ok(())
}
