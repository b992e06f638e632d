//! The Python of the cases: a virtual environment with what `tests/sdk/requirements.txt` lists.

use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the interpreter. The environment is made if it is missing, once: cases run side by side.
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = MADE.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.clone().map_err(anyhow::Error::msg)
}

fn make() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    // target/<profile>/deps/<test>
    let target = exe
        .ancestors()
        .nth(3)
        .context("a test is in a target folder")?;
    let venv = target.join("sdk-venv");
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/setup.sh");
    let setup = Command::new(setup).arg(&venv).output()?;
    let said = String::from_utf8_lossy(&setup.stderr);
    ensure!(setup.status.success(), "setup.sh: {said}");
    Ok(venv.join("bin/python"))
}
