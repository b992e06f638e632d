//! The driver process: settings from the environment, then [`driver::run`]. `cls-driver journal`
//! looks into what it has on disk.
//!
//! Exit codes: 0 stopped by SIGTERM or SIGINT, 64 bad settings, 1 anything else.

use anyhow::Context as _;
use clap::Parser as _;
use driver::inspect::{self, inspect};
use driver::sandbox::{self, Sandbox};
use driver::{Config, DISK_THREADS_MAX, RawConfig, RealDisk};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code for bad settings (`EX_USAGE`).
const EXIT_BAD_SETTINGS: u8 = 64;

/// Docker logging plugin for Tencent Cloud CLS. Without a command it serves the engine; its
/// settings are environment variables
#[derive(clap::Parser)]
#[command(name = "cls-driver", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Look into the journals on disk; a running driver is not disturbed
    Journal {
        /// Folder of the journals; the setting `STATE_DIR` if it is not given
        #[arg(long, global = true)]
        state_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: inspect::Command,
    },
}

fn main() -> ExitCode {
    // Before anything is in memory that is worth a dump.
    if let Err(error) = sandbox::forbid_core_dumps() {
        print_error(&format!("could not forbid core dumps: {error}"));
    }
    let arguments = Arguments::parse();
    let config = match Config::parse(&RawConfig::from_env()) {
        Ok(config) => config,
        Err(error) => {
            print_error(&format!("{error}"));
            return ExitCode::from(EXIT_BAD_SETTINGS);
        }
    };
    let ended = match arguments.command {
        None => start(config).map(|()| true),
        Some(Command::Journal { state_dir, command }) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            inspect(&state_dir.unwrap_or(config.state_dir), &command, &mut out)
                .and_then(|is_good| Ok(out.flush().map(|()| is_good)?))
                .map_err(Into::into)
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    // Before the sandbox, which lets nobody set limits.
    let raised = driver::descriptors::raise_limit();
    // While this is the only thread: others inherit it.
    let sandbox = Sandbox::enter(&config);
    driver::logging::init(config.log_level).context("could not start logging")?;
    sandbox.log();
    if let Err(error) = raised {
        tracing::warn!(%error, "could not raise the limit of file descriptors");
    }
    // One thread serves the engine and the network; what waits for the disk waits elsewhere.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS_MAX)
        .thread_stack_size(512 << 10)
        .build()
        .context("could not start the runtime")?;
    let ended = runtime.block_on(async {
        // PID 1 of a PID namespace ignores signals that it does not handle.
        let mut terminate = signal(SignalKind::terminate()).context("could not handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not handle SIGINT")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        driver::run(config, Arc::new(RealDisk), shutdown).await?;
        Ok(())
    });
    // Threads that the disk holds up must not hold up the end.
    runtime.shutdown_background();
    ended
}

#[allow(
    clippy::print_stderr,
    reason = "the engine logs a plugin's stderr as an error, and nothing else is left to tell it"
)]
fn print_error(text: &str) {
    eprintln!("cls-driver: {text}");
}
