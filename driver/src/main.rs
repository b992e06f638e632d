//! The driver process: settings from the environment, then [`driver::run`].
//!
//! Exit codes: 0 stopped by SIGTERM or SIGINT, 64 bad settings, 1 anything else.

use anyhow::Context as _;
use driver::{Config, RawConfig};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code for bad settings (`EX_USAGE`).
const EXIT_BAD_SETTINGS: u8 = 64;

/// Threads for work on the disk: a pass over the journals, a sync, a start, a recovery.
const DISK_THREADS_MAX: usize = 4;

fn main() -> ExitCode {
    let config = match Config::parse(&RawConfig::from_env()) {
        Ok(config) => config,
        Err(error) => {
            print_error(&format!("{error}"));
            return ExitCode::from(EXIT_BAD_SETTINGS);
        }
    };
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    driver::logging::init(config.log_level).context("could not start logging")?;
    // One thread serves the engine and the network; what waits for the disk waits elsewhere.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS_MAX)
        .thread_stack_size(512 << 10)
        .build()
        .context("could not start the runtime")?;
    runtime.block_on(async {
        // PID 1 of a PID namespace ignores signals that it does not handle.
        let mut terminate = signal(SignalKind::terminate()).context("could not handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not handle SIGINT")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        driver::run(config, shutdown).await?;
        Ok(())
    })
}

#[allow(
    clippy::print_stderr,
    reason = "the engine logs a plugin's stderr as an error, and nothing else is left to tell it"
)]
fn print_error(text: &str) {
    eprintln!("cls-driver: {text}");
}
