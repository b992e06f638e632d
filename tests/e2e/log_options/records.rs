//! Options that say what a record is.

use super::{Case, Outcome};
use crate::scene::{HOST_NAME, Record, contents};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::UNIX_EPOCH;
use world::chatter::{INTERLEAVED_BYTES, Shape};
use world::processes::{SECRET_ID, SECRET_KEY};

/// A line that has several meanings.
const JSON_LINE: &str = r#"{"level":"info","user":9007199254740993,"tags":["a","b"],"none":null}"#;
const JSON_STEP: &str =
    r#"out:{"level":"info","user":9007199254740993,"tags":["a","b"],"none":null}"#;
/// The longest line that is joined from the engine's pieces.
const LONG_BYTES: usize = 1 << 20;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "together",
        log_opts: &[
            "labels=team,absent",
            "env=STAGE,ABSENT",
            "template={container_name} {team} {STAGE}: {log}",
            "filter-regex=^0000000[0-4]",
            "exclude-regex=^00000003",
            r#"instance_info={"zone":"a","rack":7}"#,
            "append_container_details_keys=container_name, container_image_name",
        ],
        docker: &[
            "--label=team=blue",
            "--env=STAGE=test",
            "--env=PASSWORD=never-asked-for",
        ],
        chatter: &["--lines", "10", "--bytes", "8"],
        record_count: 4,
        check: options_work_together,
    },
    Case {
        name: "tag",
        log_opts: &["tag={{.Name}}/{{.ImageName}}/{{.ID}}"],
        check: |outcome| {
            let id = short(text(&outcome.container["Id"]));
            let tag = format!("tag/chatter/{id}");
            assert_eq!(outcome.only().tag("tag"), Some(tag.as_str()));
        },
        ..Case::NONE
    },
    Case {
        name: "json-auto",
        log_opts: &["json=auto"],
        chatter: &["--say", JSON_STEP, "out:[1,2]", "out:{no json"],
        record_count: 3,
        check: |Outcome { records, .. }| {
            for (name, value) in [
                ("level", "info"),
                ("user", "9007199254740993"),
                ("tags", r#"["a","b"]"#),
                ("none", ""),
            ] {
                assert_eq!(records[0].field(name), Some(value), "{name}");
            }
            assert_eq!(contents(records), ["", "[1,2]", "{no json"]);
            assert_eq!(records[0].field("content"), None);
        },
        ..Case::NONE
    },
    Case {
        name: "encoding",
        // The bytes of UTF-8 as this encoding reads them; the carriage return belongs to the line end.
        log_opts: &["encoding=windows-1252"],
        chatter: &["--say", "out:\u{e9}\r"],
        check: |outcome| assert_eq!(outcome.only().content(), "\u{c3}\u{a9}"),
        ..Case::NONE
    },
    Case {
        name: "json-off",
        log_opts: &["json=off"],
        chatter: &["--say", JSON_STEP],
        check: |outcome| {
            assert_eq!(outcome.only().content(), JSON_LINE);
            assert_eq!(outcome.only().field("level"), None);
        },
        ..Case::NONE
    },
    Case {
        name: "keys",
        log_opts: &[
            "keep-keys=level,u*",
            "drop-keys=ux",
            "rename-keys=level=severity",
            "content-key=__CONTENT__",
        ],
        chatter: &[
            "--say",
            r#"out:{"level":"info","user":1,"ux":2,"tags":[]}"#,
            "out:text",
        ],
        record_count: 2,
        check: |Outcome { records, .. }| {
            let field = |key| records[0].field(key);
            assert_eq!(
                (field("severity"), field("user")),
                (Some("info"), Some("1"))
            );
            assert_eq!(
                (field("level"), field("ux"), field("tags")),
                (None, None, None)
            );
            assert_eq!(records[1].field("__CONTENT__"), Some("text"));
        },
        ..Case::NONE
    },
    Case {
        name: "mask",
        log_opts: &[
            "mask=cn-mobile,cn-id,bank-card,bearer,tencent-key,email",
            r"mask-regex=pin=(\d+)",
            "mask-with=#",
        ],
        chatter: &[
            "--say",
            "out:13812345678 11010519491231002X 4111111111111111 Bearer t0k3n a@b.cn pin=123",
            "out:AKIDz8krbsJ5yKBZQpn74WFkmLPx3EXAMPLE",
        ],
        record_count: 2,
        check: |Outcome { records, .. }| {
            assert_eq!(contents(records), ["# # # Bearer # # pin=#", "#"]);
        },
        ..Case::NONE
    },
    Case {
        name: "parse-auto",
        log_opts: &["parse=auto"],
        chatter: &["--say", r#"out:{"a":1}"#, "out:a=1"],
        record_count: 2,
        check: |Outcome { records, .. }| {
            assert_eq!(records[0].field("a"), Some("1"));
            assert_eq!(contents(records), ["", "a=1"]);
        },
        ..Case::NONE
    },
    Case {
        name: "parse-off",
        log_opts: &["parse=off"],
        chatter: &["--say", JSON_STEP],
        check: |outcome| assert_eq!(outcome.only().content(), JSON_LINE),
        ..Case::NONE
    },
    Case {
        name: "parse-json",
        log_opts: &["parse=json"],
        chatter: &["--say", r#"out:{"a":1}"#, "out:a=1"],
        record_count: 2,
        check: |outcome| is_parsed(outcome, &[("a", "1")], "a=1", "json"),
        ..Case::NONE
    },
    Case {
        name: "parse-logfmt",
        log_opts: &["parse=logfmt"],
        chatter: &["--say", r#"out:a= b="x y""#, "out:text"],
        record_count: 2,
        check: |outcome| is_parsed(outcome, &[("a", ""), ("b", "x y")], "text", "logfmt"),
        ..Case::NONE
    },
    Case {
        name: "parse-regex",
        log_opts: &[
            "parse=regex",
            r"parse-regex=^(?P<level>[A-Z]+) (?P<message>.*)$",
        ],
        chatter: &["--say", "out:INFO well, well", "out:text"],
        record_count: 2,
        check: |outcome| {
            let fields = [("level", "INFO"), ("message", "well, well")];
            is_parsed(outcome, &fields, "text", "regex");
        },
        ..Case::NONE
    },
    Case {
        name: "parse-delimiter",
        log_opts: &[
            "parse=delimiter",
            r"parse-delimiter=\t",
            "parse-keys=id, rest",
        ],
        chatter: &["--say", "out:7\ta\tb", "out:text"],
        record_count: 2,
        check: |outcome| {
            is_parsed(
                outcome,
                &[("id", "7"), ("rest", "a\tb")],
                "text",
                "delimiter",
            );
        },
        ..Case::NONE
    },
    Case {
        name: "parse-nginx",
        log_opts: &["parse=nginx"],
        chatter: &[
            "--say",
            r#"out:::1 - - [30/Nov/2026:07:05:03 +0800] "GET /a HTTP/1.1" 200 612 "-" "curl""#,
            "out:text",
        ],
        record_count: 2,
        check: |outcome| {
            let fields = [
                ("remote_addr", "::1"),
                ("request_uri", "/a"),
                ("status", "200"),
            ];
            is_parsed(outcome, &fields, "text", "nginx");
        },
        ..Case::NONE
    },
    Case {
        name: "multiline",
        log_opts: &[r"multiline-pattern=^\S"],
        chatter: &[
            "--say",
            "out:panic: one\n  at a\n\n  at b",
            "out:panic: two",
            "err:  a line of another stream",
            "out:  at c",
        ],
        record_count: 3,
        check: |Outcome { records, .. }| {
            let (stderr, stdout) = by_stream(records);
            assert_eq!(contents(&stderr), ["  a line of another stream"]);
            let expected = ["panic: one\n  at a\n\n  at b", "panic: two\n  at c"];
            assert_eq!(contents(&stdout), expected);
        },
        ..Case::NONE
    },
    // A pause beyond the default of 1 s, which this option bridges.
    Case {
        name: "patient",
        log_opts: &[r"multiline-pattern=^\S", "multiline-timeout=20s"],
        chatter: &["--say", "out:first", "pause:1500", "out:  second"],
        check: |outcome| assert_eq!(outcome.only().content(), "first\n  second"),
        ..Case::NONE
    },
    // A pause that the default would bridge; and the last record does not wait for the end.
    Case {
        name: "hasty",
        log_opts: &[r"multiline-pattern=^\S", "multiline-timeout=200ms"],
        docker: &["-d"],
        chatter: &["--hold", "--say", "out:first", "pause:600", "out:  second"],
        record_count: 2,
        check: |outcome| assert_eq!(contents(&outcome.records), ["first", "  second"]),
    },
    Case {
        name: "record-id",
        log_opts: &["record-id=true"],
        chatter: &["--lines", "20"],
        record_count: 20,
        check: records_have_ids,
        ..Case::NONE
    },
    Case {
        name: "no-record-id",
        log_opts: &["record-id=false"],
        check: |outcome| assert_eq!(outcome.only().field("__record_id__"), None),
        ..Case::NONE
    },
    Case {
        name: "labels-regex",
        log_opts: &[r"labels-regex=^org\.", "template={org.team}: {log}"],
        docker: &[
            "--label=org.team=blue",
            "--label=org.tier=web",
            "--label=organic=no",
        ],
        chatter: &["--say", "out:line"],
        check: |outcome| {
            let expected = [("org.team", "blue"), ("org.tier", "web")];
            assert_eq!(outcome.attributes(), expected);
            assert_eq!(outcome.only().content(), "blue: line");
        },
        ..Case::NONE
    },
    Case {
        name: "env-regex",
        log_opts: &["env-regex=^APP_", "template={APP_NAME}: {log}"],
        docker: &[
            "--env=APP_NAME=shop",
            "--env=APP_EMPTY=",
            "--env=MY_APP_KEY=never-asked-for",
        ],
        chatter: &["--say", "out:line"],
        check: |outcome| {
            let expected = [("APP_EMPTY", ""), ("APP_NAME", "shop")];
            assert_eq!(outcome.attributes(), expected);
            assert_eq!(outcome.only().content(), "shop: line");
        },
        ..Case::NONE
    },
    Case {
        name: "details",
        log_opts: &[
            "append_container_details_keys=container_id,container_name,container_image_id,\
             container_image_name,container_created,container_env,container_labels,\
             container_entrypoint,container_args,log_path,daemon_name,config",
            "secret_id=AKIDEXAMPLE",
            "secret_key=SKEXAMPLE",
        ],
        docker: &["--env=A=1", "--env=B=two words", "--label=team=blue"],
        chatter: &["--say", "out:line"],
        check: details_are_dockers,
        ..Case::NONE
    },
    Case {
        name: "template",
        log_opts: &[
            "template={log}|{timestamp}|{container_id}|{container_full_id}|{container_name}|\
             {image_id}|{image_full_id}|{image_name}|{daemon_name}|{source}|{hostname}|{tag}",
        ],
        chatter: &["--say", "err:line"],
        check: template_tags_are_dockers,
        ..Case::NONE
    },
    Case {
        name: "template-json",
        log_opts: &[r#"template={"line":"{log}","from":"{container_name}"}"#],
        chatter: &["--say", r#"out:a "quoted" \ line"#],
        check: |outcome| {
            let record = outcome.only();
            assert_eq!(record.field("line"), Some(r#"a "quoted" \ line"#));
            assert_eq!(record.field("from"), Some("template-json"));
        },
        ..Case::NONE
    },
    Case {
        name: "instance-text",
        log_opts: &["instance_info=rack 7"],
        check: |outcome| assert_eq!(outcome.only().field("instance"), Some("rack 7")),
        ..Case::NONE
    },
    Case {
        name: "long",
        chatter: &["--interleave", "--lines", "2", "--bytes", "1048576"],
        record_count: 2 + 2 * LONG_BYTES / INTERLEAVED_BYTES,
        check: long_lines_arrive_whole,
        ..Case::NONE
    },
];

impl Outcome {
    /// Returns the only record.
    fn only(&self) -> &Record {
        assert_eq!(self.records.len(), 1, "{:?}", self.records);
        &self.records[0]
    }

    /// Returns the tags of the only record besides `tag`, sorted.
    fn attributes(&self) -> Vec<(&str, &str)> {
        let tags = self.only().tags().filter(|(name, _)| *name != "tag");
        let mut tags: Vec<_> = tags.collect();
        tags.sort_unstable();
        tags
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Returns an id as Docker's clients show it.
fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap()
}

/// Returns what came from stderr and from stdout.
/// Asserts that a line became fields, and one after it that is not of the form stayed whole.
fn is_parsed(outcome: &Outcome, fields: &[(&str, &str)], text: &str, form: &str) {
    let [read, unread] = &outcome.records[..] else {
        panic!("{} records", outcome.records.len());
    };
    for (key, value) in fields {
        assert_eq!(read.field(key), Some(*value), "{key}");
    }
    assert_eq!(
        (read.field("content"), read.field("LogParseFailure")),
        (None, None)
    );
    assert_eq!(unread.content(), text);
    assert_eq!(unread.field("LogParseFailure"), Some(form));
}

fn by_stream(records: &[Record]) -> (Vec<Record>, Vec<Record>) {
    records
        .iter()
        .cloned()
        .partition(|record| record.field("__stream__") == Some("stderr"))
}

fn options_work_together(Outcome { records, .. }: &Outcome) {
    let expected = ["0", "1", "2", "4"].map(|n| format!("together blue test: 0000000{n}"));
    assert_eq!(contents(records), expected);
    for record in records {
        let expected = [("STAGE", "test"), ("tag", "together"), ("team", "blue")];
        assert!(record.tags().eq(expected), "{record:?}");
        assert_eq!(record.field("__instance__.zone"), Some("a"));
        assert_eq!(record.field("__instance__.rack"), Some("7"));
        let detail = |name| record.field(&format!("__container_details__.{name}"));
        assert_eq!(detail("container_name"), Some("/together"));
        assert_eq!(detail("container_image_name"), Some("chatter"));
        assert_eq!(detail("container_id"), None);
        assert!(!format!("{record:?}").contains("never-asked-for"));
    }
}

/// Ids tell the records of a container apart, and sort as its lines do.
fn records_have_ids(Outcome { records, .. }: &Outcome) {
    let ids: Vec<_> = records
        .iter()
        .map(|record| record.field("__record_id__").unwrap())
        .collect();
    assert!(ids.is_sorted(), "{ids:?}");
    let places: BTreeSet<_> = ids.iter().map(|id| id.split_once('-').unwrap().1).collect();
    assert_eq!(places.len(), ids.len());
    let journals: BTreeSet<_> = ids.iter().map(|id| id.split_once('-').unwrap().0).collect();
    assert_eq!(journals.len(), 1);
}

fn details_are_dockers(outcome: &Outcome) {
    let container = &outcome.container;
    let record = outcome.only();
    let detail = |name: &str| {
        let field = record.field(&format!("__container_details__.{name}"));
        field.unwrap_or_else(|| panic!("no {name}: {record:?}"))
    };
    let created = text(&container["Created"]);
    let (seconds, _) = created.split_once('.').unwrap();
    for (name, expected) in [
        ("container_id", text(&container["Id"])),
        ("container_name", "/details"),
        ("container_image_id", text(&container["Image"])),
        ("container_image_name", "chatter"),
        ("container_created", &format!("{seconds}Z")),
        ("container_entrypoint", "/chatter"),
        // The engine gives a plugin no path.
        ("log_path", ""),
        ("daemon_name", "docker"),
    ] {
        assert_eq!(detail(name), expected, "{name}");
    }
    let parse = |name| -> Value { serde_json::from_str(detail(name)).unwrap() };
    assert_eq!(parse("container_env"), container["Config"]["Env"]);
    assert_eq!(parse("container_labels"), json!({ "team": "blue" }));
    assert_eq!(parse("container_args"), json!(["--say", "out:line"]));
    let mut log_opts = container["HostConfig"]["LogConfig"]["Config"].clone();
    assert_eq!(log_opts["secret_key"], SECRET_KEY);
    log_opts["secret_id"] = "***".into();
    log_opts["secret_key"] = "***".into();
    assert_eq!(parse("config"), log_opts);
    let shown = record.fields().any(|(_, value)| {
        [SECRET_ID, SECRET_KEY]
            .iter()
            .any(|secret| value.contains(secret))
    });
    assert!(!shown, "{record:?}");
}

fn template_tags_are_dockers(outcome: &Outcome) {
    let container = &outcome.container;
    let parts: Vec<_> = outcome.only().content().split('|').collect();
    let time = humantime::parse_rfc3339(parts[1]).unwrap();
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap();
    let time_ms = i128::from(outcome.only().time_ms());
    assert_eq!(time_ms, since_epoch.as_millis().try_into().unwrap());
    let (id, image_id) = (text(&container["Id"]), text(&container["Image"]));
    let expected = [
        "line",
        parts[1],
        short(id),
        id,
        "template",
        short(image_id),
        image_id,
        "chatter",
        "docker",
        "stderr",
        HOST_NAME,
        "template",
    ];
    assert_eq!(parts, expected);
}

/// The engine cuts the long lines into pieces of 16 KiB; lines of the other output come between.
fn long_lines_arrive_whole(Outcome { records, .. }: &Outcome) {
    let (stderr, stdout) = by_stream(records);
    let long = Shape::Plain { bytes: LONG_BYTES };
    for (number, record) in (0..).zip(&stdout) {
        let is_whole = record.content() == long.line(number);
        assert!(is_whole, "line {number}: {} B", record.content().len());
    }
    let short = Shape::Plain { bytes: 0 };
    let expected: Vec<_> = (0..).map(|n| short.line(n)).take(stderr.len()).collect();
    assert_eq!(contents(&stderr), expected);
    assert_eq!(stdout.len(), 2);
    let fields: BTreeMap<_, _> = stdout[1].fields().collect();
    assert!(!fields.contains_key("__cut__"));
}
