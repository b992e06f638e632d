//! Builds of the product to measure: a folder with `cls-driver` and `cls-shipper`. Nothing is built
//! here.

use crate::dockerd::Dockerd;
use crate::processes::{
    HOST_NAME, Process, SECRET_ID, SECRET_KEY, TOPIC_ID, free_address, start_driver, start_shipper,
};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Programs of a build.
const DRIVER: &str = "cls-driver";
const SHIPPER: &str = "cls-shipper";

/// A build of the product.
#[derive(Debug, Clone)]
pub struct Build {
    /// What the tables call it.
    pub name: String,
    folder: PathBuf,
}

/// Settings of the product that differ from its defaults.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Keys of the shipper's `[upload]`, as TOML: `linger_ms = 10`.
    pub upload: Vec<String>,
    /// Variables of the driver, and their values.
    pub driver: Vec<(String, String)>,
}

/// Driver and shipper of a build, running.
#[derive(Debug)]
pub struct Pair {
    /// The engine that the driver serves.
    pub dockerd: Dockerd,
    /// The driver.
    pub driver: Process,
    /// The shipper.
    pub shipper: Process,
    _folder: TempDir,
}

/// Returns the folder that programs are taken from: `CLS_BIN_DIR`, or that of the running program.
///
/// # Errors
/// If the running program has no folder.
#[allow(
    clippy::disallowed_methods,
    reason = "the variable that tests and programs of this tree share"
)]
pub fn default_folder() -> anyhow::Result<PathBuf> {
    if let Ok(folder) = std::env::var("CLS_BIN_DIR") {
        return Ok(folder.into());
    }
    let program = std::env::current_exe()?;
    Ok(program.parent().context("a program is in a folder")?.into())
}

/// Returns the path of a program in a folder.
///
/// # Errors
/// If it is not there.
pub fn program_in(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} does not exist: `make build` makes it, and CLS_BIN_DIR names another folder",
        path.display()
    );
    Ok(path)
}

impl Build {
    /// Returns the build in a folder.
    ///
    /// # Errors
    /// If a program of it is not there.
    pub fn in_folder(name: &str, folder: &Path) -> anyhow::Result<Self> {
        for program in [DRIVER, SHIPPER] {
            program_in(folder, program)?;
        }
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
        })
    }

    /// Starts driver and shipper on a unix socket, with uploads to `endpoint`.
    ///
    /// # Errors
    /// If one of them does not come up.
    pub async fn start(&self, endpoint: &str, settings: &Settings) -> anyhow::Result<Pair> {
        let temporary = tempfile::tempdir()?;
        let folder = temporary.path();
        let admin = free_address()?;
        let socket = folder.join("shipper.sock");
        let config = shipper_toml(&socket, endpoint, &admin.to_string(), settings);
        let program = Command::new(self.folder.join(SHIPPER));
        let shipper =
            start_shipper(program, folder, &config, admin, &["--log-level", "warn"]).await?;
        let socket = format!("unix://{}", socket.display());
        let mut variables = vec![
            ("SHIPPER", socket.as_str()),
            ("HOST_NAME", HOST_NAME),
            ("LOG_LEVEL", "warn"),
        ];
        let own = settings.driver.iter();
        variables.extend(own.map(|(name, value)| (name.as_str(), value.as_str())));
        let fifo_dir = folder.join("logging");
        std::fs::create_dir(&fifo_dir)?;
        let program = Command::new(self.folder.join(DRIVER));
        let driver = start_driver(program, folder, &variables).await?;
        Ok(Pair {
            dockerd: Dockerd::new(&folder.join("plugin.sock"), &fifo_dir),
            driver,
            shipper,
            _folder: temporary,
        })
    }
}

fn shipper_toml(socket: &Path, endpoint: &str, admin: &str, settings: &Settings) -> String {
    format!(
        r#"[listen]
unix = "{socket}"

[defaults]
endpoint = "{endpoint}"
topic_id = "{TOPIC_ID}"
credentials = "default"

[credentials.default]
source = "inline"
secret_id = "{SECRET_ID}"
secret_key = "{SECRET_KEY}"

[upload]
{upload}

[admin]
listen = "{admin}"
"#,
        socket = socket.display(),
        upload = settings.upload.join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(DRIVER), "").unwrap();
        let error = Build::in_folder("this", folder.path()).unwrap_err();
        assert!(error.to_string().contains("cls-shipper does not exist"));
        std::fs::write(folder.path().join(SHIPPER), "").unwrap();
        assert!(Build::in_folder("this", folder.path()).is_ok());
    }
}
