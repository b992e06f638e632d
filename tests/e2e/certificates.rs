//! Certificates, made by the very commands that README has.

use crate::engine::succeed;
use crate::scene::root;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// An authority, the certificates that README's commands make, and further ones.
#[derive(Debug)]
pub(crate) struct Certificates(TempDir);

impl Certificates {
    /// Runs README's commands, and signs for further names.
    pub(crate) async fn make(further: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
        let (_, marked) = readme
            .split_once("<!-- commands: certificates -->")
            .unwrap();
        let (_, block) = marked.split_once("```sh\n").unwrap();
        let (commands, _) = block.split_once("```").unwrap();
        let further: String = further
            .iter()
            .map(|name| format!("sign {name}\n"))
            .collect();
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &format!("{commands}{further}")]);
        shell.current_dir(dir.path());
        succeed(shell).await.unwrap();
        Self(dir)
    }

    /// Returns the folder with `ca.pem` and, for each name, `<name>.pem` and `<name>.key`.
    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of a file in it.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }
}
