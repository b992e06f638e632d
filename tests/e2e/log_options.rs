//! Every log option on a real engine: containers with it, and what must become of their lines. A
//! table of cases says both; no option of the product's own table may be without a case. Bad
//! options fail `docker run` with a message to act on.

mod cache;
mod journal;
mod records;
mod targets;

use crate::scene::{OTHER_TOPIC_ID, PLUGIN, Record, Scene, full_scene};
use futures_util::{StreamExt as _, stream};
use proto::log_opts::{Kind, OPTIONS, TAGS};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use world::processes::TOPIC_ID;

/// A container, and what its log options promise.
struct Case {
    /// Name of the container. Its records are known by their tag `tag`, which begins with it.
    name: &'static str,
    /// `NAME=VALUE` for `--log-opt`; [`filled`] says what stands for something else.
    log_opts: &'static [&'static str],
    /// Other arguments of `docker run`.
    docker: &'static [&'static str],
    /// What the container does.
    chatter: &'static [&'static str],
    /// Records of it; none where the test looks at them itself.
    record_count: usize,
    /// Checks them.
    check: fn(&Outcome),
}

/// What became of a case.
struct Outcome {
    /// Its records, in the order in which CLS shows them.
    records: Vec<Record>,
    /// What `docker inspect` says of the container.
    container: Value,
}

/// Containers that are started at the same time.
const STARTS_AT_ONCE: usize = 4;

impl Case {
    /// A container without log options that writes one line, and a check of nothing.
    const NONE: Self = Self {
        name: "",
        log_opts: &[],
        docker: &[],
        chatter: &["--lines", "1"],
        record_count: 1,
        check: |_| {},
    };

    /// Runs the container to its end, or starts it if `docker` has `-d`.
    async fn start(&self, scene: &Scene) {
        let mut log_opts: Vec<String> = self
            .log_opts
            .iter()
            .map(|option| format!("--log-opt={}", filled(scene, option)))
            .collect();
        if !self.sets("tag") {
            log_opts.push(format!("--log-opt=tag={}", self.name));
        }
        let mut options: Vec<&str> = log_opts.iter().map(String::as_str).collect();
        options.extend(self.docker);
        scene.run(self.name, &options, self.chatter).await;
    }

    fn sets(&self, option: &str) -> bool {
        self.option_names().any(|name| name == option)
    }

    fn option_names(&self) -> impl Iterator<Item = &'static str> {
        self.log_opts
            .iter()
            .filter_map(|option| Some(option.split_once('=')?.0))
    }
}

/// Returns an option in which `@endpoint`, `@topic` and `@other-topic` are the stand-in's.
fn filled(scene: &Scene, option: &str) -> String {
    option
        .replace("@endpoint", &scene.standin.endpoint())
        .replace("@topic", TOPIC_ID)
        .replace("@other-topic", OTHER_TOPIC_ID)
}

/// Runs cases side by side and checks each.
async fn run_cases(scene: &Scene, cases: &[Case]) {
    stream::iter(cases)
        .for_each_concurrent(STARTS_AT_ONCE, |case| case.start(scene))
        .await;
    let count = cases.iter().map(|case| case.record_count).sum();
    let mut records = by_case(scene.wait_for_records(count).await);
    for case in cases {
        let outcome = Outcome {
            records: records.remove(case.name).unwrap_or_default(),
            container: inspect(scene, case.name).await,
        };
        assert_eq!(
            outcome.records.len(),
            case.record_count,
            "{}: {:?}",
            case.name,
            outcome.records
        );
        eprintln!("checking {}", case.name);
        (case.check)(&outcome);
    }
    assert!(records.is_empty(), "of no case: {records:?}");
}

/// Sorts records by the case that they come from.
fn by_case(records: Vec<Record>) -> BTreeMap<String, Vec<Record>> {
    let mut by_case: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        let tag = record.tag("tag").unwrap_or_default();
        let name = tag.split('/').next().unwrap_or_default().to_owned();
        by_case.entry(name).or_default().push(record);
    }
    by_case
}

async fn inspect(scene: &Scene, container: &str) -> Value {
    let text = scene.docker(["inspect", container]).await;
    let mut containers: Vec<Value> = serde_json::from_str(&text).unwrap();
    containers.remove(0)
}

fn all_cases() -> impl Iterator<Item = &'static Case> {
    [records::CASES, cache::CASES, journal::CASES, targets::CASES]
        .into_iter()
        .flatten()
}

#[test]
fn no_option_is_without_a_case() {
    let named: BTreeSet<_> = all_cases().flat_map(Case::option_names).collect();
    let known: BTreeSet<_> = OPTIONS.iter().map(|spec| spec.name).collect();
    assert_eq!(named, known);
}

#[test]
fn no_word_of_a_choice_is_without_a_case() {
    for spec in OPTIONS {
        let words = match spec.kind {
            Kind::Words(words) | Kind::Choice(words) => words,
            _ => continue,
        };
        let values: Vec<_> = all_cases()
            .flat_map(|case| case.log_opts)
            .filter_map(|option| option.split_once('='))
            .filter(|(name, _)| *name == spec.name)
            .flat_map(|(_, value)| value.split(','))
            .collect();
        for word in words {
            assert!(values.contains(word), "{}={word}", spec.name);
        }
    }
}

#[test]
fn no_tag_of_a_template_is_without_a_case() {
    let templates: Vec<_> = all_cases()
        .flat_map(|case| case.log_opts)
        .filter_map(|option| option.strip_prefix("template="))
        .collect();
    for tag in TAGS {
        let tag = format!("{{{tag}}}");
        assert!(templates.iter().any(|text| text.contains(&tag)), "{tag}");
    }
}

#[test]
fn options_shape_records_and_dockers_cache() {
    full_scene(async |scene| {
        run_cases(scene, records::CASES).await;
        scene.forget().await;
        cache::check(scene).await;
    });
}

#[test]
fn a_bad_option_fails_the_start_with_option_value_and_rule() {
    full_scene(async |scene| {
        // Options, and what the message must contain of each.
        let cases: [(&[&str], &[&str]); 7] = [
            (&["topicid=x"], &["topicid", "topic_id"]),
            (&["json=maybe"], &["json", "maybe", "auto", "off"]),
            (&["timeout=fast"], &["timeout", "fast"]),
            (
                &["keep-file=perhaps"],
                &["keep-file", "perhaps", "true", "false"],
            ),
            (&["template={log} {nope}"], &["template", "nope"]),
            (&["filter-regex=(unclosed"], &["filter-regex", "(unclosed"]),
            // All faults at once.
            (
                &["retries=-1", "json=maybe"],
                &["retries", "-1", "json", "maybe"],
            ),
        ];
        for (options, expected) in cases {
            let message = refusal(scene, options).await;
            for part in expected {
                assert!(
                    message.contains(part),
                    "{options:?}: no {part:?} in: {message}"
                );
            }
        }
        // A container that was refused leaves nothing that would be in the way of a good one.
        scene.forget().await;
        scene.run("good", &[], &["--lines", "1"]).await;
        assert_eq!(scene.wait_for_records(1).await.len(), 1);
    });
}

/// Returns what `docker run` says when the driver refuses these options.
async fn refusal(scene: &Scene, options: &[&str]) -> String {
    let options: Vec<_> = options
        .iter()
        .map(|option| format!("--log-opt={option}"))
        .collect();
    let mut args = vec!["run", "--network=none", "--log-driver", PLUGIN];
    args.extend(options.iter().map(String::as_str));
    args.push("chatter");
    let output = scene.engine.docker_output(args).await.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{options:?}: {message}");
    message
}
