//! Tests of the options as a whole.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use proptest::prelude::*;

use super::syntax::{ENDPOINT_RULE, NAME_RULE};
use super::*;

fn config(options: &[(&str, &str)]) -> HashMap<String, String> {
    options
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn parse(options: &[(&str, &str)]) -> Result<LogOpts, LogOptsError> {
    LogOpts::parse(&config(options))
}

/// Asserts that one option with one value is what `LogOpts` says, and nothing else changes.
fn good(name: &str, value: &str, change: impl FnOnce(&mut LogOpts)) {
    let mut expected = LogOpts::default();
    change(&mut expected);
    let is_secret = find(name).unwrap().kind == Kind::Secret;
    let shown = if is_secret { MASK } else { value };
    expected.config_masked = [(name.to_owned(), shown.to_owned())].into();
    assert_eq!(parse(&[(name, value)]), Ok(expected), "{name}={value}");
}

fn bad(name: &str, value: &str, fault: &str) {
    let error = parse(&[(name, value)]).expect_err(value);
    assert_eq!(error.faults, [fault], "{name}={value}");
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn which_fields_are_shipped() {
    let owned = |text: &str| text.to_owned();
    good("keep-keys", "a, b*,", |opts| {
        opts.keep_keys = ["a", "b*"].map(owned).to_vec();
    });
    good("drop-keys", "_x", |opts| opts.drop_keys = vec![owned("_x")]);
    good("rename-keys", "a=b, _c = d", |opts| {
        let pairs = [("a", "b"), ("_c", "d")];
        opts.rename_keys = pairs.map(|(old, new)| (owned(old), owned(new))).to_vec();
    });
    for renames in ["a", "a=", "a=_b", "a=b,a=c"] {
        let error = parse(&[("rename-keys", renames)]).unwrap_err().to_string();
        assert!(error.contains("must be a list of old=new"), "{error}");
    }
    for key in ["__CONTENT__", "msg", "日志"] {
        good("content-key", key, |opts| opts.content_key = owned(key));
    }
    for key in ["_msg", "a\u{1}"] {
        let error = parse(&[("content-key", key)]).unwrap_err().to_string();
        assert!(error.contains("must be a key of 1 to 128 bytes"), "{error}");
    }
}

#[test]
fn how_a_text_becomes_fields() {
    for (word, expected) in [
        ("auto", Parse::Auto),
        ("json", Parse::Json),
        ("logfmt", Parse::Logfmt),
        ("nginx", Parse::Nginx),
        ("off", Parse::Off),
    ] {
        good("parse", word, |opts| opts.parse = expected);
    }
    let parsed = |options: &[(&str, &str)]| match parse(options) {
        Ok(opts) => Ok(opts.parse),
        Err(error) => Err(error.faults.join("; ")),
    };
    let regex = ("parse", "regex");
    let pattern = ("parse-regex", "(?P<a>.)");
    assert_eq!(
        parsed(&[regex, pattern]),
        Ok(Parse::Regex(pattern.1.to_owned()))
    );
    let delimiter = ("parse", "delimiter");
    let by = ("parse-delimiter", r"\t");
    let keys = ("parse-keys", "a, b c ,日志");
    let expected = Parse::Delimiter {
        delimiter: "\t".to_owned(),
        keys: ["a", "b c", "日志"].map(str::to_owned).to_vec(),
    };
    assert_eq!(parsed(&[delimiter, by, keys]), Ok(expected));
    // What the daemon's defaults set for another value of `parse` is no fault.
    let logfmt = ("parse", "logfmt");
    assert_eq!(parsed(&[logfmt, by, keys, pattern]), Ok(Parse::Logfmt));
    let off = ("json", "off");
    assert_eq!(parsed(&[off, logfmt]), Ok(Parse::Logfmt));
    assert_eq!(parsed(&[off, ("parse", "off")]), Ok(Parse::Off));
}

#[test]
fn what_belongs_to_parse_must_be_there() {
    let regex = ("parse", "regex");
    let pattern = ("parse-regex", "(?P<a>.)");
    let delimiter = ("parse", "delimiter");
    let (logfmt, off) = (("parse", "logfmt"), ("json", "off"));
    let faults = |options: &[(&str, &str)], expected: &str| {
        assert_eq!(parse(options).unwrap_err().to_string(), expected);
    };
    faults(&[regex], "log-opt parse=regex: needs parse-regex as well");
    faults(
        &[delimiter],
        "log-opt parse=delimiter: needs parse-delimiter as well; \
         log-opt parse=delimiter: needs parse-keys as well",
    );
    faults(
        &[pattern],
        "log-opt parse-regex=(?P<a>.): needs parse=regex as well",
    );
    faults(
        &[("parse-delimiter", ",")],
        "log-opt parse-delimiter=,: needs parse=delimiter as well",
    );
    faults(
        &[off, ("parse", "json")],
        "log-opt parse=json: can't be combined with json=off; json= unsets it",
    );
    faults(
        &[regex, ("parse-regex", "(a)(b)")],
        "log-opt parse-regex=(a)(b): must have a named group, such as (?P<level>[A-Z]+), for each \
         field",
    );
    faults(
        &[logfmt, ("parse-delimiter", "12345678901234567")],
        "log-opt parse-delimiter=12345678901234567: must be a text of at most 16 bytes",
    );
    for keys in ["a,a", "a,,b", " ", "_a", "a\u{7f}"] {
        let error = parse(&[logfmt, ("parse-keys", keys)])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("must be a list of different keys"),
            "{error}"
        );
    }
    bad(
        "parse",
        "xml",
        "log-opt parse=xml: must be auto or json or logfmt or regex or delimiter or nginx or off",
    );
}

#[test]
fn where_records_go() {
    for endpoint in [
        "ap-guangzhou.cls.tencentcs.com",
        "https://ap-guangzhou.cls.tencentcs.com",
        "http://127.0.0.1:18080",
        "http://standin:80/",
        "localhost:8080",
        "[::1]:8080",
        "https://[fd00::1]",
    ] {
        good("endpoint", endpoint, |opts| opts.endpoint = some(endpoint));
    }
    for endpoint in [
        "ftp://host",
        "https://",
        "host/path",
        "ho st",
        "host:",
        "host:99999",
        "host:+80",
        "a..b",
        "user@host",
        "https://https://host",
        "[::1",
        "::1",
    ] {
        bad(
            "endpoint",
            endpoint,
            &format!("log-opt endpoint={endpoint}: {ENDPOINT_RULE}"),
        );
    }
    good("topic_id", "0f1e2d3c-4b5a", |opts| {
        opts.topic_id = some("0f1e2d3c-4b5a")
    });
    bad(
        "topic_id",
        "a b",
        &format!("log-opt topic_id=a b: {NAME_RULE}"),
    );
    good("retries", "0", |opts| opts.retries = Some(0));
    good("retries", "12", |opts| opts.retries = Some(12));
    let rule = "must be a whole number from 0 to 4294967295";
    for retries in ["-1", "+1", "1.5", "ten", "4294967296", " 1"] {
        bad(
            "retries",
            retries,
            &format!("log-opt retries={retries}: {rule}"),
        );
    }
    good("timeout", "1m30s", |opts| {
        opts.timeout = Some(Duration::from_secs(90))
    });
    good("timeout", "1h", |opts| {
        opts.timeout = Some(Duration::from_hours(1))
    });
    let rule = "must be a duration such as 300ms, 10s or 1m30s, from 1ms to 3600s";
    for timeout in ["10", "0", "0s", "-1s", "999us", "1h1ns", "forever"] {
        bad(
            "timeout",
            timeout,
            &format!("log-opt timeout={timeout}: {rule}"),
        );
    }
}

#[test]
fn credentials_are_a_name_or_a_key_pair() {
    good("credentials", "prod", |opts| {
        opts.credentials = Credentials::Named("prod".into());
    });
    bad(
        "credentials",
        "a/b",
        &format!("log-opt credentials=a/b: {NAME_RULE}"),
    );
    let pair = parse(&[("secret_id", "AKID1"), ("secret_key", "k3y")]).unwrap();
    assert_eq!(
        pair.credentials,
        Credentials::Inline {
            secret_id: Secret::from("AKID1".to_owned()),
            secret_key: Secret::from("k3y".to_owned())
        }
    );
    assert_eq!(pair.config_masked["secret_key"], MASK);
    bad(
        "secret_id",
        "AKID1",
        "log-opt secret_id=***: needs secret_key as well",
    );
    bad(
        "secret_key",
        "k3y",
        "log-opt secret_key=***: needs secret_id as well",
    );
    let both = [
        ("secret_id", "AKID1"),
        ("secret_key", "k3y"),
        ("credentials", "prod"),
    ];
    assert_eq!(
        parse(&both).unwrap_err().to_string(),
        "log-opt credentials=prod: can't be combined with secret_id and secret_key; \
         credentials= unsets it"
    );
    let unset = [both[0], both[1], ("credentials", "")];
    assert!(parse(&unset).is_ok());
}

#[test]
fn secrets_are_never_shown() {
    let shown = format!(
        "{:?}",
        parse(&[("secret_id", "AKID1"), ("secret_key", "k3y")])
    );
    assert!(
        !shown.contains("AKID1") && !shown.contains("k3y"),
        "{shown}"
    );
    let error = parse(&[
        ("secret_id", "AKID1 with a space"),
        ("secret_key", "k3y\u{e9}"),
        ("secretkey", "k3y"),
    ])
    .unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(
        !shown.contains("AKID1") && !shown.contains("k3y"),
        "{shown}"
    );
    assert_eq!(error.faults.len(), 3);
}

#[test]
fn what_a_record_is() {
    good("template", "{container_name}: {log}", |opts| {
        opts.template = Template::parse("{container_name}: {log}");
    });
    good("json", "auto", |_| {});
    good("json", "off", |opts| opts.parse = Parse::Off);
    bad("json", "on", "log-opt json=on: must be auto or off");
    good("mask", "email,, cn-id ", |opts| {
        opts.masks = vec!["cn-id", "email"];
    });
    bad(
        "mask",
        "emial",
        "log-opt mask=emial: unknown mask emial, did you mean email? (known: cn-mobile, cn-id, bank-card, \
         bearer, tencent-key, email)",
    );
    good("mask-regex", "a+", |opts| opts.mask_regex = some("a+"));
    good("mask-with", "#", |opts| opts.mask_with = "#".to_owned());
    let rule = "must be a text of at most 32 bytes without control characters";
    bad("mask-with", "\t", &format!("log-opt mask-with=\\t: {rule}"));
    good("filter-regex", "a+", |opts| opts.filter_regex = some("a+"));
    good("exclude-regex", "^b", |opts| {
        opts.exclude_regex = some("^b")
    });
    good("multiline-pattern", r"^\d", |opts| {
        opts.multiline = Some(Multiline {
            pattern: r"^\d".into(),
            timeout: Duration::from_secs(1),
        });
    });
    good("multiline-timeout", "3s", |_| {});
    bad(
        "multiline-timeout",
        "2m",
        "log-opt multiline-timeout=2m: must be a duration such as 300ms, 10s or 1m30s, \
         from 1ms to 60s",
    );
    let both = parse(&[("multiline-pattern", "x"), ("multiline-timeout", "3s")]).unwrap();
    assert_eq!(both.multiline.unwrap().timeout, Duration::from_secs(3));
    good("instance_info", "{\"a\":1", |opts| {
        opts.instance_info = some("{\"a\":1")
    });
    good("record-id", "T", |opts| opts.record_id = true);
    bad(
        "record-id",
        "yes",
        "log-opt record-id=yes: must be true or false",
    );
}

#[test]
fn patterns_are_checked_without_a_shipper() {
    for name in [
        "filter-regex",
        "exclude-regex",
        "multiline-pattern",
        "labels-regex",
        "env-regex",
    ] {
        let rule = "must be a regular expression as Go's regexp has them";
        for (value, reason) in [
            ("(", "a ( has no )"),
            ("(?=x)", "there is no look-ahead, (?= or (?!"),
            ("a**", "* repeats a repetition; put ( ) around it"),
            (
                "x{2,1}",
                "a repetition has the form {n,m}, with n up to m and m up to 1000",
            ),
        ] {
            bad(
                name,
                value,
                &format!("log-opt {name}={value}: {rule}: {reason}"),
            );
        }
        assert!(
            parse(&[(name, r"^\[\033\[31m]{,3}\Q(\E")]).is_ok(),
            "{name}"
        );
    }
}

#[test]
fn tags_of_a_template_are_known() {
    let fault = parse(&[("template", "{contaner_name} {x}"), ("labels", "app")])
        .unwrap_err()
        .faults;
    let known = "(known: log, timestamp, container_id, container_full_id, container_name, \
                 image_id, image_full_id, image_name, daemon_name, source, hostname, tag, app, \
                 and each attribute that labels, labels-regex, env or env-regex asks for)";
    let mut expected = [
        format!(
            "log-opt template={{contaner_name}} {{x}}: unknown tag {{contaner_name}}, \
             did you mean container_name? {known}"
        ),
        format!("log-opt template={{contaner_name}} {{x}}: unknown tag {{x}} {known}"),
    ];
    expected.sort();
    assert_eq!(fault, expected);
    for (option, value) in [("labels", "x,app"), ("env", "app"), ("env-regex", "a")] {
        assert!(
            parse(&[("template", "{app}"), (option, value)]).is_ok(),
            "{option}"
        );
    }
}

#[test]
fn details_are_named() {
    good(
        "append_container_details_keys",
        " container_id,config,,container_id ",
        |opts| {
            opts.container_details = vec![ContainerDetail::ContainerId, ContainerDetail::Config];
        },
    );
    let all = ContainerDetail::NAMES.join(",");
    good("append_container_details_keys", &all, |opts| {
        opts.container_details = ContainerDetail::ALL.to_vec();
    });
    bad(
        "append_container_details_keys",
        "container_nam",
        &format!(
            "log-opt append_container_details_keys=container_nam: unknown key container_nam, \
             did you mean container_name? (known: {})",
            ContainerDetail::NAMES.join(", ")
        ),
    );
}

#[test]
fn attributes_are_not_trimmed() {
    good("labels", "A, a.b", |opts| {
        opts.attributes.labels = vec!["A".into(), " a.b".into()];
    });
    good("env", "A,,B", |opts| {
        opts.attributes.env = vec!["A".into(), "B".into()]
    });
    good("labels-regex", "^a", |opts| {
        opts.attributes.labels_regex = some("^a")
    });
    good("env-regex", "^a", |opts| {
        opts.attributes.env_regex = some("^a")
    });
    good("tag", "{{.Name}}", |opts| {
        opts.attributes.tag = some("{{.Name}}")
    });
}

#[test]
fn the_journal() {
    good("no-file", "1", |opts| opts.no_file = true);
    good("keep-file", "False", |opts| opts.keep_file = false);
    bad(
        "no-file",
        "maybe",
        "log-opt no-file=maybe: must be true or false",
    );
    bad(
        "keep-file",
        "TrUe",
        "log-opt keep-file=TrUe: must be true or false",
    );
    good("mode", "blocking", |_| {});
    good("mode", "non-blocking", |opts| opts.mode = Mode::NonBlocking);
    bad(
        "mode",
        "nonblocking",
        "log-opt mode=nonblocking: must be blocking or non-blocking",
    );
    good("journal-size", "1m", |opts| {
        opts.journal_bytes_max = Some(1 << 20)
    });
    good("journal-size", "1.5g", |opts| {
        opts.journal_bytes_max = Some(3 << 29)
    });
    bad(
        "journal-size",
        "1023k",
        "log-opt journal-size=1023k: must be at least 1m",
    );
    bad(
        "journal-size",
        "banana",
        "log-opt journal-size=banana: must be a size such as 512k, 10m or 1g",
    );
}

#[test]
fn dockers_own_options_are_accepted_and_checked() {
    let size = "must be a size such as 512k, 10m or 1g";
    for name in ["max-size", "max-buffer-size", "cache-max-size"] {
        good(name, "10m", |_| {});
        bad(name, "x", &format!("log-opt {name}=x: {size}"));
    }
    let count = "must be a whole number from 0 to 4294967295";
    for name in ["max-file", "cache-max-file"] {
        good(name, "3", |_| {});
        bad(name, "x", &format!("log-opt {name}=x: {count}"));
    }
    for name in ["compress", "cache-disabled", "cache-compress"] {
        good(name, "false", |_| {});
        bad(
            name,
            "x",
            &format!("log-opt {name}=x: must be true or false"),
        );
    }
    bad(
        "max-file",
        "1",
        "log-opt max-file=1: must be at least 2, unless compress=false: \
         Docker can't compress its only file",
    );
    assert!(parse(&[("max-file", "1"), ("compress", "false")]).is_ok());
    assert!(parse(&[("max-file", "1"), ("cache-disabled", "true")]).is_ok());
}

#[test]
fn an_empty_value_is_as_good_as_none() {
    for spec in OPTIONS {
        good(spec.name, "", |opts| {
            opts.config_masked.clear();
        });
    }
}

#[test]
fn a_value_has_a_bound() {
    let value = "x".repeat(VALUE_BYTES_MAX);
    good("instance_info", &value, |opts| {
        opts.instance_info = Some(value.clone())
    });
    let value = "x".repeat(VALUE_BYTES_MAX + 1);
    let shown = "x".repeat(64);
    bad(
        "instance_info",
        &value,
        &format!("log-opt instance_info={shown}...: has 65537 bytes, the limit is 65536"),
    );
}

#[test]
fn an_unknown_option_names_the_nearest_one() {
    for (name, nearest) in [
        ("filter_regex", "filter-regex"),
        ("instance-info", "instance_info"),
        ("Topic_ID", "topic_id"),
        ("secretkey", "secret_key"),
        ("max-filee", "max-file"),
        ("label", "labels"),
        ("retrie", "retries"),
        ("topic", "topic_id"),
        ("exclude", "exclude-regex"),
        ("multiline", "multiline-pattern"),
    ] {
        bad(
            name,
            "v",
            &format!("log-opt {name}=***: unknown option, did you mean {nearest}?"),
        );
    }
    bad(
        "gelf-address",
        "v",
        "log-opt gelf-address=***: unknown option",
    );
    let long = "n".repeat(10_000);
    let shown = "n".repeat(64);
    bad(
        &long,
        "v",
        &format!("log-opt {shown}...=***: unknown option"),
    );
    bad("a\nb", "v", "log-opt a\\nb=***: unknown option");
}

#[test]
fn five_faults_are_reported_together() {
    let error = parse(&[
        ("endpoint", "ap-guangzhou.cls.tencentcs.com"),
        ("secret_key", "s3cr3t"),
        ("timeout", "10 parsecs"),
        ("keep-file", "maybe"),
        ("template", "{contaner_id}: {log}"),
        ("filter_regex", "ERROR"),
    ])
    .unwrap_err();
    insta::assert_snapshot!(error.faults.join("\n"), @r"
    log-opt secret_key=***: needs secret_id as well
    log-opt timeout=10 parsecs: must be a duration such as 300ms, 10s or 1m30s, from 1ms to 3600s
    log-opt template={contaner_id}: {log}: unknown tag {contaner_id}, did you mean container_id? (known: log, timestamp, container_id, container_full_id, container_name, image_id, image_full_id, image_name, daemon_name, source, hostname, tag, and each attribute that labels, labels-regex, env or env-regex asks for)
    log-opt keep-file=maybe: must be true or false
    log-opt filter_regex=***: unknown option, did you mean filter-regex?
    ");
    assert_eq!(error.to_string(), error.faults.join("; "));
}

#[test]
fn the_table_is_complete_and_in_one_form() {
    for spec in OPTIONS {
        assert_eq!(
            OPTIONS
                .iter()
                .filter(|other| other.name == spec.name)
                .count(),
            1
        );
        assert!(
            !spec.doc.is_empty() && !spec.doc.ends_with('.'),
            "{}",
            spec.name
        );
        // A default in the table is what holds without the option.
        let given = parse(&[(spec.name, spec.default)]);
        let given = given.unwrap_or_else(|error| panic!("{error}"));
        let ours = matches!(spec.name, "retries" | "timeout");
        if !ours {
            let given = LogOpts {
                config_masked: BTreeMap::new(),
                ..given
            };
            assert_eq!(given, LogOpts::default(), "{}", spec.name);
        }
    }
}

proptest! {
    #[test]
    fn no_options_panic_and_faults_are_bounded(
        options in prop::collection::hash_map(
            prop_oneof![
                prop::sample::select(OPTIONS).prop_map(|spec| spec.name.to_owned()),
                "\\PC{0,20}",
            ],
            "\\PC{0,40}|[0-9.]{1,5}[a-z]{0,3}|\\{[a-z_]{1,20}\\}",
            0..40,
        ),
    ) {
        let unknown = options.keys().filter(|name| find(name).is_none()).count();
        match LogOpts::parse(&options) {
            Ok(opts) => {
                prop_assert_eq!(unknown, 0);
                prop_assert_eq!(opts.config_masked.len(), options.len());
            }
            Err(error) => {
                prop_assert!(error.faults.len() >= unknown.max(1));
                let are_short = error.faults.iter().all(|fault| fault.len() < 2_000);
                prop_assert!(are_short && !error.to_string().contains('\n'));
            }
        }
    }
}
