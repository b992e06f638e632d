//! Files, TCP ports, other processes: the rules of Landlock (landlock(7)).
//!
//! A rule is about a folder or a file that exists when the rules are made, and holds for what comes
//! to be in that folder later. Hence:
//!
//! - The driver's own folders are made here if they do not exist.
//! - Certificates, keys and tokens are read again and again and replaced by renaming, so their
//!   *folders* may be read; of one that is reached through symlinks, also the folder in which it
//!   really is. A folder that does not exist yet is represented by the nearest one above it.
//! - The resolver's files are single files. The engine mounts them into the plugin one by one; they
//!   can't be replaced there.
//!
//! Connecting to a unix socket by its path is out of the rules' reach before Linux 7.1: what keeps
//! the driver from other sockets in /host/run is that they are not mounted, see docs/security.md.

use crate::config::{Config, Endpoint, lock_file_of};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
    make_bitflags,
};
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The newest rules that are used: Linux 6.12. Those that came later were not tested.
const RULES: ABI = ABI::V6;

/// What each generation of Landlock brought, for the message about a kernel that lacks it.
const GENERATIONS: [(ABI, &str); 5] = [
    (ABI::V2, "renaming between folders (Linux 5.19)"),
    (ABI::V3, "truncating files (Linux 6.2)"),
    (ABI::V4, "TCP ports (Linux 6.7)"),
    (ABI::V5, "commands to devices (Linux 6.10)"),
    (ABI::V6, "abstract sockets and signals (Linux 6.12)"),
];

/// What getaddrinfo(3) reads.
const RESOLVER_FILES: [&str; 5] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
];

/// How many pipe pages the processes of a user may have: what the pump enlarges pipes by.
const PIPE_LIMIT_FILE: &str = "/proc/sys/fs/pipe-user-pages-soft";

/// Port of name servers, for answers that are too long for UDP.
const DNS_PORT: u16 = 53;

/// The journals and the container table.
const STATE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir
});
/// FIFOs, which the engine makes and the driver removes. One is opened for writing once, so that its
/// end is noticed.
const FIFOS: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | RemoveFile});
/// The plugin's socket, put in the place of one that an earlier process left.
const SOCKET: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeSock | RemoveFile});
/// The lock beside it.
const LOCK: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile});
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile});

/// What is in force, in words, and what this kernel lacks.
pub(super) struct Outcome {
    pub(super) in_force: Vec<String>,
    pub(super) missing: Vec<String>,
}

/// Restricts the calling thread.
///
/// # Errors
/// Those of the kernel, but not that it knows no such rules.
pub(super) fn restrict(config: &Config) -> Result<Outcome, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        .create()?;
    for (folder, access) in own_folders(config) {
        // One that can't be made is reported when it is used.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .ok();
        rules = allow(rules, folder, access)?;
    }
    rules = allow(rules, &made_lock_file(config), LOCK)?;
    for path in readable(config) {
        rules = allow(rules, &path, READ)?;
    }
    for port in ports(config) {
        rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    let status = rules.restrict_self()?;
    Ok(outcome(&status.landlock))
}

/// Adds a rule; one about a path that can't be opened would allow nothing.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(folder) => rules.add_rule(PathBeneath::new(folder, access)),
        Err(_) => Ok(rules),
    }
}

fn own_folders(config: &Config) -> impl Iterator<Item = (&Path, BitFlags<AccessFs>)> {
    let socket = config.plugin_socket.parent();
    [
        Some((&*config.state_dir, STATE)),
        Some((&*config.fifo_dir, FIFOS)),
        socket.map(|folder| (folder, SOCKET)),
    ]
    .into_iter()
    .flatten()
}

/// Makes the lock file of the socket while that is allowed: afterwards no file can be made beside it.
fn made_lock_file(config: &Config) -> PathBuf {
    let path = lock_file_of(&config.plugin_socket);
    // One that can't be made is reported when it is used.
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .ok();
    path
}

fn readable(config: &Config) -> Vec<PathBuf> {
    let identity = config.shipper_identity_files.iter();
    let files = identity
        .flat_map(|(certificate, key)| [certificate, key])
        .chain(&config.shipper_ca_file)
        .chain(&config.shipper_token_file);
    let mut readable: Vec<_> = files.flat_map(|file| folders_of(file)).collect();
    readable.push(PathBuf::from(PIPE_LIMIT_FILE));
    if dials_tcp(config) {
        readable.extend(RESOLVER_FILES.map(PathBuf::from));
    }
    readable
}

/// Returns the folder of a file, and the one that a symlink leads to.
fn folders_of(file: &Path) -> Vec<PathBuf> {
    let real = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    let nearest = |file: &Path| {
        let above = file.ancestors().skip(1);
        // The root would be everything.
        let mut below_root = above.filter(|folder| folder.parent().is_some());
        below_root
            .find(|folder| folder.is_dir())
            .map(Path::to_path_buf)
    };
    let mut folders: Vec<_> = [nearest(file), nearest(&real)]
        .into_iter()
        .flatten()
        .collect();
    folders.dedup();
    folders
}

/// Returns whether a shipper is reached by an address, and so perhaps by a name.
pub(super) fn dials_tcp(config: &Config) -> bool {
    !ports(config).is_empty()
}

fn ports(config: &Config) -> Vec<u16> {
    let port = |endpoint: &Endpoint| endpoint.port();
    let mut ports: Vec<_> = config.shipper.iter().filter_map(port).collect();
    if !ports.is_empty() {
        ports.push(DNS_PORT);
    }
    ports
}

fn outcome(status: &LandlockStatus) -> Outcome {
    let LandlockStatus::Available { effective_abi, .. } = status else {
        return Outcome {
            in_force: Vec::new(),
            missing: vec!["files: this kernel has no Landlock, or it is not switched on".into()],
        };
    };
    let (had, lacking): (Vec<_>, Vec<_>) = GENERATIONS
        .iter()
        .partition(|(abi, _)| abi <= effective_abi);
    let in_force = std::iter::once("files".to_owned());
    Outcome {
        in_force: in_force
            .chain(had.iter().map(|(_, what)| without_release(what)))
            .collect(),
        missing: lacking.iter().map(|(_, what)| (*what).to_owned()).collect(),
    }
}

fn without_release(what: &str) -> String {
    what.split(" (").next().unwrap_or(what).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_lacks_a_part_has_it_named() {
        let available = |effective_abi| LandlockStatus::Available {
            effective_abi,
            kernel_abi: None,
        };
        for (status, in_force, missing) in [
            (LandlockStatus::NotImplemented, 0, 1),
            (LandlockStatus::NotEnabled, 0, 1),
            (available(ABI::V1), 1, 5),
            (available(ABI::V4), 4, 2),
            (available(ABI::V6), 6, 0),
            (available(ABI::V10), 6, 0),
        ] {
            let outcome = outcome(&status);
            let found = (outcome.in_force.len(), outcome.missing.len());
            assert_eq!(found, (in_force, missing), "{status:?}");
        }
    }

    #[test]
    fn a_file_that_may_come_later_is_looked_for_in_the_nearest_folder() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (live, archive) = (dir.join("live"), dir.join("archive"));
        std::fs::create_dir(&live).unwrap();
        std::fs::create_dir(&archive).unwrap();
        std::fs::write(archive.join("key1"), "").unwrap();
        std::os::unix::fs::symlink("../archive/key1", live.join("key")).unwrap();
        for (file, expected) in [
            ("live/key", vec![live.clone(), archive.clone()]),
            ("live/none", vec![live.clone()]),
            ("none/none/token", vec![dir.clone()]),
        ] {
            assert_eq!(folders_of(&dir.join(file)), expected, "{file}");
        }
        assert!(folders_of(Path::new("/no-such-folder/token")).is_empty());
    }
}
