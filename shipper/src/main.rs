//! The shipper process: reads its configuration, again on SIGHUP or when it changes, runs, stops on
//! SIGTERM or SIGINT. Commands check the configuration and look after the dead-letter store.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use proto::relay::Container;
use proto::text;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use shipper::base::clock::WallClock;
use shipper::config::Config;
use shipper::rules::tenant::Tenants;
use shipper::run::config_file::ConfigFile;
use shipper::run::explain::{self, Asked};
use shipper::send::client::{Client, beginning};
use shipper::show::ledger::{Line, table};
use shipper::upload::letters::{DeadLetters, Letter};
use shipper::upload::replay::replay;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Where the image and the examples have the configuration.
const CONFIG_DEFAULT: &str = "/etc/cls-shipper/shipper.toml";

/// Turns container log entries into Tencent Cloud CLS records and uploads them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (TOML). Variables `CLS_SHIPPER__SECTION__KEY` override it.
    #[arg(long, value_name = "FILE", global = true, default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// What to log: error, warn, info, debug or trace, also per module as in RUST_LOG.
    #[arg(long, value_name = "LEVEL", global = true, default_value = "info")]
    log_level: String,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Without a command, the shipper runs.
#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Check the configuration, with every file and every source of keys that it names, and end.
    Check,
    /// Show what became of every entry, per container, as the running shipper knows it.
    Ledger,
    /// Show which options hold for a container by the rules of the configuration, and where each comes from.
    Explain(Subject),
    /// Show the records that lines of a container would become: reads lines, writes a JSON object for each
    /// record.
    Try {
        #[command(flatten)]
        subject: Subject,
        /// Fail unless the records are these, and say which one differs.
        #[arg(long, value_name = "FILE")]
        expect: Option<PathBuf>,
    },
    /// Fail unless the running shipper takes entries: a health check for images without a shell.
    Healthcheck,
    /// Look after the records that CLS would not take.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
}

#[derive(Debug, Clone, Subcommand)]
enum DeadLetterCommand {
    /// List the records: number, time, topic, reason.
    Ls,
    /// Show one record in full.
    Show {
        /// Its number in the list, from 1.
        number: usize,
    },
    /// Send the records again; those that CLS takes leave the store. The shipper may run meanwhile.
    Replay {
        /// Sign all of them with this source of the configuration, instead of each with its own. Records of
        /// containers that had keys of their own are sent in this way only.
        #[arg(long, value_name = "NAME")]
        credentials: Option<String>,
    },
}

/// A container that need not exist.
#[derive(Debug, Clone, clap::Args)]
struct Subject {
    /// Name of the container.
    #[arg(long, value_name = "NAME")]
    container: String,
    /// Name of its image, as the user gave it.
    #[arg(long, value_name = "NAME", default_value = "")]
    image: String,
    /// Name of its host.
    #[arg(long, value_name = "NAME", default_value = "")]
    host: String,
    /// Name of the host's tenant.
    #[arg(long, value_name = "NAME", default_value = "local")]
    tenant: String,
    /// A label; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// A log option of its own; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    log_opt: Vec<(String, String)>,
}

impl From<Subject> for Asked {
    fn from(subject: Subject) -> Self {
        Self {
            tenant: subject.tenant,
            host: subject.host,
            container: Container {
                name: subject.container,
                image_name: subject.image,
                labels: subject.label.into_iter().collect(),
                ..Container::default()
            },
            log_opts: subject.log_opt.into_iter().collect(),
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// The configuration is bad (sysexits.h: EX_USAGE).
const EXIT_CONFIG: u8 = 64;

/// How long the running shipper may take to answer a command. Whoever checks its health gives up
/// after a time of the same order.
const ASK_WAIT_MAX: Duration = Duration::from_secs(5);

/// Bytes of a page that are read: the ledger of 100,000 streams has a third of it.
const PAGE_BYTES_MAX: usize = 96 << 20;

fn main() -> ExitCode {
    // Before a key is in memory.
    let core_dumps = forbid_core_dumps();
    let arguments = Arguments::parse();
    // What a command says on stdout is for whoever called it.
    let writer = match arguments.command {
        None => BoxMakeWriter::new(|| Lines(std::io::stdout())),
        Some(_) => BoxMakeWriter::new(|| Lines(std::io::stderr())),
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&arguments.log_level))
        .with_target(false)
        .with_writer(writer)
        .init();
    if let Err(error) = core_dumps {
        error!(%error, "could not forbid core dumps: one would hold keys");
    }
    let mut file = ConfigFile::new(arguments.config, std::env::vars());
    let config = match file.load() {
        Ok(config) => config,
        Err(error) => {
            error!(error = %shipper::Chain(&error), "bad configuration");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let ended = match arguments.command {
        None => serve(config, file),
        Some(Command::Check) => return check(&config),
        Some(Command::Ledger) => ledger(&config),
        Some(Command::Explain(subject)) => explain(&config, &subject.into()),
        Some(Command::Try { subject, expect }) => try_lines(&config, &subject.into(), expect),
        Some(Command::Healthcheck) => healthcheck(&config),
        Some(Command::DeadLetter(command)) => dead_letter(&config, command),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes each message as one line that no terminal obeys: the subscriber writes a message with one call.
struct Lines<W>(W);

impl<W: std::io::Write> std::io::Write for Lines<W> {
    fn write(&mut self, message: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(&text::line(message))?;
        Ok(message.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Looks at what the configuration names, as far as it is there now.
fn check(config: &Config) -> ExitCode {
    let faults = runtime().map(|runtime| runtime.block_on(shipper::run::faults(config)));
    match faults {
        Ok(faults) if faults.is_empty() => match say("the configuration is good") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(faults) => {
            for fault in faults {
                error!(fault, "bad configuration");
            }
            ExitCode::from(EXIT_CONFIG)
        }
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes sure that no core dump of this process is ever written: it holds keys. A limit of 0 stops
/// the kernel from writing a file, and a process that is not dumpable is not handed to a program
/// that collects cores either (core(5)), nor read by others through /proc or ptrace(2).
fn forbid_core_dumps() -> rustix::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn serve(config: Config, file: ConfigFile) -> anyhow::Result<()> {
    if let Err(error) = raise_descriptor_limit() {
        warn!(%error, "could not raise the limit of file descriptors");
    }
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let (reloads, reloaded) = mpsc::channel(1);
        tokio::select! {
            ended = shipper::run_reloading(config, WallClock::system(), reloaded, shutdown) => {
                Ok(ended?)
            }
            () = file.follow(hangup, reloads) => unreachable!("the shipper receives until it ends"),
        }
    })
}

/// Raises the limit of file descriptors to what this process may raise it to: each host's connection
/// takes one, and a soft limit of 1024 is common, for the sake of programs that use `select`.
fn raise_descriptor_limit() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

fn ledger(config: &Config) -> anyhow::Result<()> {
    let lines: Vec<Line> = serde_json::from_str(&ask(config, "/api/ledger")?)?;
    say(table(&lines).trim_end())
}

fn explain(config: &Config, asked: &Asked) -> anyhow::Result<()> {
    let (table, faults) = explain::explain(config, asked);
    say(table.trim_end())?;
    anyhow::ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}

fn try_lines(config: &Config, asked: &Asked, expect: Option<PathBuf>) -> anyhow::Result<()> {
    let records = explain::records_of(config, asked, &mut std::io::stdin().lock())?;
    let Some(path) = expect else {
        return records.iter().try_for_each(|record| say(record));
    };
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("read {}", path.display()))?;
    let expected: Vec<&str> = text.lines().collect();
    for number in 0..records.len().max(expected.len()) {
        let found = records.get(number).map_or("no record", String::as_str);
        let wanted = expected.get(number).copied().unwrap_or("no record");
        let number = number + 1;
        anyhow::ensure!(
            found == wanted,
            "record {number} is\n  {found}\nexpected is\n  {wanted}"
        );
    }
    say(&format!("{} records are as expected", records.len()))
}

fn healthcheck(config: &Config) -> anyhow::Result<()> {
    say(ask(config, "/readyz")?.trim_end())
}

/// Asks the running shipper's admin server.
fn ask(config: &Config, path: &str) -> anyhow::Result<String> {
    let url = format!("http://{}{path}", config.admin_listen);
    let answer = async {
        let client = Client::default();
        let request = client.http()?.get(&url).timeout(ASK_WAIT_MAX);
        let mut response = request.send().await?.error_for_status()?;
        // Whoever has the address while the shipper is down may answer.
        let page = beginning(&mut response, PAGE_BYTES_MAX).await;
        let page = page.map_err(|(_, error)| error)?;
        anyhow::Ok(String::from_utf8(page)?)
    };
    runtime()?
        .block_on(answer)
        .with_context(|| format!("ask the running shipper at {url}"))
}

fn dead_letter(config: &Config, command: DeadLetterCommand) -> anyhow::Result<()> {
    let store = config
        .dead_letter
        .as_ref()
        .context("[dead_letter] path is not configured")?;
    let store = DeadLetters::new(store.path.clone(), store.bytes_max);
    match command {
        DeadLetterCommand::Ls => {
            let (letters, bad_count) = store.letters().context("read the dead-letter store")?;
            for (index, letter) in letters.iter().enumerate() {
                say(&summary(index + 1, letter))?;
            }
            say(&format!(
                "{} records, {bad_count} lines that are none",
                letters.len()
            ))
        }
        DeadLetterCommand::Show { number } => {
            let (letters, _) = store.letters().context("read the dead-letter store")?;
            let letter = number.checked_sub(1).and_then(|index| letters.get(index));
            let letter = letter
                .with_context(|| format!("no record {number}: there are {}", letters.len()))?;
            say(&text::json(&serde_json::to_string_pretty(letter)?))
        }
        DeadLetterCommand::Replay { credentials } => {
            let clock = WallClock::system();
            let tenants = Tenants::new(&config.tenants);
            let rights = |tenant: &str, topic: &str, keys: &_| tenants.faults(tenant, topic, keys);
            let replayed = replay(config, &store, &clock, credentials.as_deref(), &rights);
            let done = runtime()?.block_on(replayed)?;
            say(&format!(
                "{} records delivered, {} kept",
                done.sent, done.unsent
            ))
        }
    }
}

fn summary(number: usize, letter: &Letter) -> String {
    let reason = &letter.reason;
    // The columns are ours, what stands in them is not.
    let [topic_id, why, code, message, request_id] = [
        &reason.topic_id,
        &reason.reason,
        &reason.code,
        &reason.message,
        &reason.request_id,
    ]
    .map(|text| text::clean(text));
    format!(
        "{number}\ttime_ms={}\ttopic_id={topic_id}\treason={why}\t{} {code} {message}\trequest_id={request_id}",
        letter.time_ms, reason.status,
    )
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to stdout")
}

/// Two workers at least: one formats what comes in while another one compresses what goes out.
/// More than eight would add memory without more work to do.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let worker_count =
        std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_count)
        .enable_all()
        .build()
        .context("start the runtime")
}
