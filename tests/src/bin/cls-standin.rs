//! The stand-in for CLS as a program. It prints each record as it comes.

use anyhow::{Context as _, bail};
use clap::Parser;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::mpsc;
use world::standin::config::{
    Clock, Config, Key, PARTITIONS_DEFAULT, Topic, TopicState, UNDERSCORE_PREFIXES,
};
use world::standin::store::{Record, Upload};
use world::standin::{Standin, log_list::Rules, quota};

/// A stand-in for Tencent Cloud CLS: it checks uploads as the service does, keeps what it accepts
/// (GET /records?topic_id=…), and fails on demand (POST /fault?kind=…&count=…).
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen on; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:9080")]
    listen: SocketAddr,
    /// Id of a key that may sign; several times for several keys.
    #[arg(long, required = true)]
    secret_id: Vec<String>,
    /// Secret of the key; as often as --secret-id, in the same order.
    #[arg(long, required = true)]
    secret_key: Vec<String>,
    /// Token that the key needs if it is temporary; in the same order, "" for a permanent key.
    #[arg(long)]
    token: Vec<String>,
    /// A topic that exists; several times for several topics.
    #[arg(long, required = true)]
    topic: Vec<String>,
    /// A topic that exists and is closed.
    #[arg(long)]
    closed_topic: Vec<String>,
    /// A topic that exists and whose account is in arrears.
    #[arg(long)]
    arrears_topic: Vec<String>,
    /// SECRET_ID=TOPIC: the key may not write to the topic.
    #[arg(long, value_name = "SECRET_ID=TOPIC")]
    deny: Vec<String>,
    /// Takes uploads without Authorization, for every topic.
    #[arg(long)]
    anonymous: bool,
    /// Account that may upload in weak mode, to every topic.
    #[arg(long)]
    weak_uin: Option<String>,
    /// Checks only what the documents say plainly: keys may begin with an underscore, times may be
    /// anything.
    #[arg(long)]
    lenient: bool,
    /// Prefix of keys that may begin with an underscore. Replaces the product's own.
    #[arg(long, value_name = "PREFIX", default_values = UNDERSCORE_PREFIXES)]
    allow_underscore_key: Vec<String>,
    /// Refuses signatures that cover no header and no parameter.
    #[arg(long)]
    forbid_empty_lists: bool,
    /// Partitions of each topic; each takes 500 requests/s and 5 MB/s.
    #[arg(long, default_value_t = PARTITIONS_DEFAULT)]
    partitions: usize,
    /// Takes any number of requests and bytes.
    #[arg(long)]
    no_quota: bool,
    /// Stores half of a request over quota, as the service may.
    #[arg(long)]
    partial_over_quota: bool,
    /// Checks and counts, and keeps nothing: for benchmarks.
    #[arg(long)]
    discard: bool,
    /// Prints no records.
    #[arg(long)]
    quiet: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let args = Args::parse();
    let address = args.listen;
    let prints = !args.quiet && !args.discard;
    let config = args.into_config()?;
    let (sender, receiver) = mpsc::channel(UPLOADS_TO_PRINT_MAX);
    let standin = Standin::start(address, config, Clock::system(), prints.then_some(sender))
        .await
        .with_context(|| format!("can't listen on {address}"))?;
    writeln!(io::stdout(), "listening on {}", standin.address())?;
    let printer = tokio::task::spawn_blocking(|| print_uploads(receiver));
    tokio::select! {
        () = standin.join() => {}
        stopped = stop_signal() => stopped?,
    }
    // The stand-in is gone and its sender with it, so the printer comes to its end.
    printer.await?
}

async fn stop_signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

impl Args {
    fn into_config(self) -> anyhow::Result<Config> {
        Ok(Config {
            keys: self.keys()?,
            topics: self.topics(),
            rules: Rules {
                is_strict: !self.lenient,
                underscore_prefixes: self.allow_underscore_key,
            },
            allows_empty_signed_lists: !self.forbid_empty_lists,
            partitions: self.partitions,
            requests_per_s: quota::REQUESTS_PER_S,
            has_quota: !self.no_quota,
            stores_part_over_quota: self.partial_over_quota,
            discards: self.discard,
            identity: None,
        })
    }

    fn keys(&self) -> anyhow::Result<Vec<Key>> {
        let (ids, secrets) = (&self.secret_id, &self.secret_key);
        if ids.len() != secrets.len() {
            bail!(
                "--secret-id is given {} times, --secret-key {}",
                ids.len(),
                secrets.len()
            );
        }
        let mut keys: Vec<_> = ids
            .iter()
            .zip(secrets)
            .map(|(id, secret)| Key::permanent(id, secret))
            .collect();
        for (key, token) in keys.iter_mut().zip(&self.token) {
            key.token = Some(token.clone()).filter(|token| !token.is_empty());
        }
        for rule in &self.deny {
            let (id, topic) = rule
                .split_once('=')
                .with_context(|| format!("--deny {rule}: the form is SECRET_ID=TOPIC"))?;
            let key = keys.iter_mut().find(|key| key.secret_id == id);
            let key = key.with_context(|| format!("--deny {rule}: no key has this id"))?;
            key.denied_topics.push(topic.to_owned());
        }
        Ok(keys)
    }

    fn topics(&self) -> Vec<Topic> {
        let in_state = |ids: &[String], state| {
            let topic = |id: &String| Topic {
                state,
                is_anonymous: self.anonymous,
                weak_uin: self.weak_uin.clone(),
                ..Topic::open(id)
            };
            ids.iter().map(topic).collect::<Vec<_>>()
        };
        [
            in_state(&self.topic, TopicState::Open),
            in_state(&self.closed_topic, TopicState::Closed),
            in_state(&self.arrears_topic, TopicState::Arrears),
        ]
        .concat()
    }
}

/// Uploads that may wait to be printed; more make the clients wait.
const UPLOADS_TO_PRINT_MAX: usize = 64;
/// Characters of a value that are printed.
const VALUE_CHARS_MAX: usize = 160;

/// Prints records until the stand-in is gone, or nobody reads them.
fn print_uploads(mut uploads: mpsc::Receiver<Arc<Upload>>) -> anyhow::Result<()> {
    while let Some(upload) = uploads.blocking_recv() {
        let mut lines = String::new();
        upload.visit(|record| print_record(record, &mut lines));
        let mut stdout = io::stdout().lock();
        stdout.write_all(lines.as_bytes())?;
        stdout.flush()?;
    }
    Ok(())
}

/// Appends `time stream@host content key=value… [tag=value…]`.
fn print_record(record: &Record<'_>, lines: &mut String) {
    let time = UNIX_EPOCH + Duration::from_micros(micros_of(record.log.time));
    let stream = record.field("__stream__").unwrap_or("-");
    let host = record
        .field("__hostname__")
        .or(record.group.hostname)
        .unwrap_or("-");
    let mut words = vec![
        humantime::format_rfc3339_millis(time).to_string(),
        format!("{stream}@{host}"),
    ];
    words.extend(record.field("content").map(shortened));
    let is_told = |key: &str| ["__stream__", "__hostname__", "content"].contains(&key);
    let others = record.fields().filter(|(key, _)| !is_told(key));
    words.extend(others.map(|(key, value)| format!("{key}={}", shortened(value))));
    if !record.group.tags.is_empty() {
        let tags = record
            .group
            .tags
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        words.push(format!("[{}]", tags.collect::<Vec<_>>().join(" ")));
    }
    lines.push_str(&words.join("  "));
    lines.push('\n');
}

/// Returns a time of any unit in microseconds, the unit guessed by size as the service does.
fn micros_of(time: i64) -> u64 {
    const MILLIS_FROM: u64 = 100_000_000_000;
    const MICROS_FROM: u64 = 100_000_000_000_000;
    /// The end of the year 9999, after which no date can be printed.
    const MICROS_MAX: u64 = 253_402_300_799_999_999;
    let time = time.unsigned_abs();
    let micros = match time {
        _ if time >= MICROS_FROM => time,
        _ if time >= MILLIS_FROM => time * 1_000,
        _ => time * 1_000_000,
    };
    micros.min(MICROS_MAX)
}

/// Returns the start of a value on one line, and how long it is if that is not all.
fn shortened(value: &str) -> String {
    let start: String = value.chars().take(VALUE_CHARS_MAX).collect();
    let visible: String = start
        .chars()
        .map(|char| if char.is_control() { '\u{fffd}' } else { char })
        .collect();
    if start.len() == value.len() {
        visible
    } else {
        format!("{visible}… ({} B)", value.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_any_unit_are_the_same_moment() {
        for time in [1_700_000_000, 1_700_000_000_000, 1_700_000_000_000_000] {
            assert_eq!(micros_of(time), 1_700_000_000_000_000);
        }
        let last = UNIX_EPOCH + Duration::from_micros(micros_of(i64::MAX));
        assert_eq!(
            humantime::format_rfc3339_seconds(last).to_string(),
            "9999-12-31T23:59:59Z"
        );
    }

    #[test]
    fn long_values_are_cut_and_stay_on_one_line() {
        assert_eq!(shortened("a\tb\nc"), "a\u{fffd}b\u{fffd}c");
        let long = "é".repeat(VALUE_CHARS_MAX + 1);
        assert!(shortened(&long).ends_with("é… (322 B)"));
    }

    #[test]
    fn keys_topics_and_rules_come_from_the_arguments() {
        let arguments = "cls-standin --secret-id a --secret-key x --secret-id b --secret-key y \
                         --token= --token t --topic T --closed-topic C --deny b=T --lenient";
        let args = Args::try_parse_from(arguments.split_ascii_whitespace()).unwrap();
        let config = args.into_config().unwrap();
        assert_eq!(config.keys[0], Key::permanent("a", "x"));
        assert_eq!(config.keys[1].token.as_deref(), Some("t"));
        assert_eq!(config.keys[1].denied_topics, ["T"]);
        assert_eq!(config.topics[1].state, TopicState::Closed);
        assert!(!config.rules.is_strict && config.has_quota);
        let arguments = [
            "cls-standin",
            "--secret-id=a",
            "--secret-key=x",
            "--topic=T",
            "--deny=T",
        ];
        let error = Args::try_parse_from(arguments)
            .unwrap()
            .into_config()
            .unwrap_err();
        assert_eq!(error.to_string(), "--deny T: the form is SECRET_ID=TOPIC");
    }
}
