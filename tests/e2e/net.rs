//! A network of the test's own: a switch and hosts at it, each a network namespace, joined by veth
//! pairs. Nothing of it is seen outside; the interfaces of the machine stay as they are.
//!
//! The namespaces are named `cls-net-<pid>-<n>-…` and go when the net is dropped. What a run left
//! that was killed is cleared away by the next one, which is what the pid is for.

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use world::nodes::Site;

const PREFIX: &str = "cls-net-";
/// Number of the switch, where the test itself is.
const SWITCH: u8 = 254;

/// A net.
#[derive(Debug)]
pub(crate) struct Net {
    prefix: String,
    namespaces: Vec<String>,
}

/// Runs a test in a net of its own, on a thread that is at its switch, and so are all threads and
/// processes that it starts.
pub(crate) fn in_net(test: impl AsyncFnOnce(&mut Net) + Send + 'static) {
    let run = move || {
        let mut net = Net::new().unwrap();
        net.enter().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(test(&mut net));
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

impl Net {
    fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        clear_leftovers()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut net = Self {
            prefix: format!("{PREFIX}{}-{count}", std::process::id()),
            namespaces: Vec::new(),
        };
        let switch = net.add(SWITCH)?;
        // Without an address of its own it would take that of its lowest port, and change it with a
        // further one: who had asked for it before would speak to nobody.
        let own = "address 02:00:00:00:00:fe";
        ip(&format!("-n {switch} link add br0 {own} type bridge"))?;
        ip(&format!(
            "-n {switch} addr add {}/24 dev br0",
            address(SWITCH)
        ))?;
        ip(&format!("-n {switch} link set br0 up"))?;
        Ok(net)
    }

    /// Moves this thread to the switch.
    fn enter(&self) -> anyhow::Result<()> {
        let path = Path::new("/run/netns").join(self.name(SWITCH));
        let namespace = File::open(&path).with_context(|| path.display().to_string())?;
        let kind = Some(LinkNameSpaceType::Network);
        Ok(move_into_link_name_space(namespace.as_fd(), kind)?)
    }

    /// Returns an address of the test itself, with a port that is free.
    pub(crate) fn own_address() -> SocketAddr {
        SocketAddr::new(address(SWITCH), 0)
    }

    /// Adds a host.
    pub(crate) fn site(&mut self, number: u8) -> Site {
        let connect = |net: &mut Self| {
            let (name, switch, address) = (net.add(number)?, net.name(SWITCH), address(number));
            ip(&format!(
                "-n {switch} link add port{number} type veth peer name eth0 netns {name}"
            ))?;
            ip(&format!("-n {switch} link set port{number} master br0 up"))?;
            ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            anyhow::Ok(Site {
                netns: name,
                address,
            })
        };
        connect(self).unwrap()
    }

    /// Lets a host know names. Programs that are started from then on see them.
    pub(crate) fn set_names(site: &Site, names: &[(&str, IpAddr)]) {
        let folder = etc(&site.netns);
        fs::create_dir_all(&folder).unwrap();
        let line = |(name, address): &(&str, IpAddr)| format!("{address} {name}\n");
        let lines: String = names.iter().map(line).collect();
        fs::write(
            folder.join("hosts"),
            format!("127.0.0.1 localhost\n{lines}"),
        )
        .unwrap();
    }

    /// Pulls a host's cable out, or plugs it in again: nothing passes, and nobody is told.
    pub(crate) fn set_link(&self, number: u8, is_up: bool) {
        let state = if is_up { "up" } else { "down" };
        let switch = self.name(SWITCH);
        ip(&format!("-n {switch} link set port{number} {state}")).unwrap();
    }

    fn add(&mut self, number: u8) -> anyhow::Result<String> {
        let name = self.name(number);
        ip(&format!("netns add {name}"))?;
        self.namespaces.push(name.clone());
        ip(&format!("-n {name} link set lo up"))?;
        Ok(name)
    }

    fn name(&self, number: u8) -> String {
        format!("{}-{number}", self.prefix)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.namespaces {
            // What can't be removed now is a leftover for the next run.
            remove(name).ok();
        }
    }
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 77, 0, number])
}

/// Where `ip netns exec` finds files of a namespace that stand for those in `/etc`.
fn etc(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

fn remove(namespace: &str) -> anyhow::Result<()> {
    fs::remove_dir_all(etc(namespace)).ok();
    ip(&format!("netns del {namespace}"))
}

/// Removes the namespaces of runs that are over.
fn clear_leftovers() -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        // There is no namespace yet.
        return Ok(());
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX);
        let owner = owner.and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name)?;
        }
    }
    Ok(())
}

/// Runs `ip` with these arguments, none of which has a blank.
fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.context("the tests need ip: apt-get install iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {said}");
    Ok(())
}
