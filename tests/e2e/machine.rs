//! What the tests must leave as it was: the machine's network interfaces, its packet filter, and what
//! engines keep in `/run/docker`.

use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where engines keep sockets, whatever folders they are given.
const RUN_FOLDER: &str = "/run/docker";
/// Where they keep folders of plugins.
const PLUGINS_FOLDER: &str = "/run/docker/plugins";

/// What is on the machine, one line for each thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    things: BTreeSet<String>,
}

impl Machine {
    /// Looks at the machine from where this thread is.
    ///
    /// # Errors
    /// If a program that tells about it fails.
    pub(crate) fn look() -> anyhow::Result<Self> {
        let mut machine = Self::default();
        machine.add_interfaces()?;
        machine.add_packet_filter()?;
        // The engine at hand makes folders there with its first container.
        machine.add_entries(RUN_FOLDER, |entry| !entry.is_dir());
        machine.add_entries(PLUGINS_FOLDER, |_| true);
        Ok(machine)
    }

    /// Asserts that nothing has come or gone since.
    ///
    /// # Panics
    /// If something has, with all that has.
    pub(crate) fn assert_unchanged(&self) {
        let changes = self.changes_to(&Self::look().unwrap());
        assert!(
            changes.is_empty(),
            "the test has changed the machine:\n{}",
            changes.join("\n")
        );
    }

    /// Returns what has gone and what has come.
    fn changes_to(&self, later: &Self) -> Vec<String> {
        let gone = self.things.difference(&later.things);
        let come = later.things.difference(&self.things);
        let gone = gone.map(|thing| format!("gone: {thing}"));
        gone.chain(come.map(|thing| format!("new: {thing}")))
            .collect()
    }

    fn add(&mut self, kind: &str, thing: &str) {
        self.things.insert(format!("{kind} {thing}"));
    }

    /// Adds interfaces and their addresses. Those of other engines' containers come and go.
    fn add_interfaces(&mut self) -> anyhow::Result<()> {
        for line in output("ip", &["-brief", "address"])?.lines() {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            if name.starts_with("veth") {
                continue;
            }
            self.add("interface", name);
            // The second word is its state.
            for address in words.skip(1) {
                self.add("address of", &format!("{name}: {address}"));
            }
        }
        Ok(())
    }

    /// Adds chains and rules of the packet filter, without their counters.
    fn add_packet_filter(&mut self) -> anyhow::Result<()> {
        for program in ["iptables-save", "ip6tables-save"] {
            let mut table = String::new();
            for line in output(program, &[])?.lines() {
                if let Some(name) = line.strip_prefix('*') {
                    name.clone_into(&mut table);
                } else if line.starts_with([':', '-']) {
                    let thing = line.split(" [").next().unwrap_or_default();
                    self.add(program, &format!("{table} {thing}"));
                }
            }
        }
        Ok(())
    }

    /// Adds what is in a folder, if there is one, and counts.
    fn add_entries(&mut self, folder: &str, counts: impl Fn(&Path) -> bool) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for path in entries
            .map(|entry| entry.path())
            .filter(|path| counts(path))
        {
            self.add("entry", &path.display().to_string());
        }
    }
}

/// Returns what a program writes.
fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("the tests need {program}"))?;
    ensure!(output.status.success(), "{program}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::in_net;

    #[test]
    fn what_an_engine_does_to_a_network_shows() {
        in_net(async |_| {
            let ip = |arguments: &[&str]| output("ip", arguments).unwrap();
            ip(&["link", "add", "docker0", "type", "bridge"]);
            let before = Machine::look().unwrap();
            before.assert_unchanged();
            ip(&["link", "delete", "docker0"]);
            output("ip6tables", &["-t", "nat", "-N", "DOCKER"]).unwrap();
            let changes = before.changes_to(&Machine::look().unwrap());
            let expected = [
                "gone: interface docker0",
                "new: ip6tables-save nat :DOCKER -",
            ];
            for change in expected {
                assert!(changes.iter().any(|found| found == change), "{changes:?}");
            }
        });
    }
}
