//! Reads all FIFOs of a folder and counts frames, until they are closed: what `cls-bench` compares
//! with. See `world::bench::floor`.

use anyhow::Context as _;
use std::io::{self, Write as _};
use std::path::Path;
use world::bench::floor;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("usage: cls-bench-floor FOLDER")?;
    let on_ready = || writeln!(io::stdout(), "{}", floor::READY);
    let frames = floor::count_frames(Path::new(&folder), on_ready)?;
    writeln!(io::stdout(), "{frames} frames")?;
    Ok(())
}
