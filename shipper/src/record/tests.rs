//! What CLS gets for what a container writes: every option, every kind of text.
//!
//! The property tests are the fuzz targets: `PROPTEST_CASES=1000000 cargo test -p shipper record`.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use proto::frame::Partial;
use proto::limits::RECORD_LINE_BYTES_MAX;

use super::*;
use proptest::prelude::*;

/// `LogGroup` of CLS as far as it is written here, for reading it back.
#[derive(Clone, PartialEq, Message)]
struct LogGroup {
    #[prost(message, repeated, tag = "1")]
    logs: Vec<Log>,
    #[prost(message, repeated, tag = "5")]
    log_tags: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Log {
    #[prost(int64, required, tag = "1")]
    time: i64,
    #[prost(message, repeated, tag = "2")]
    contents: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, required, tag = "1")]
    key: String,
    #[prost(string, required, tag = "2")]
    value: String,
}

const NANO: i64 = 1_700_000_000_123_456_789;
const JOURNAL: &str = "0123456789abcdef0123456789abcdef";

fn container() -> Container {
    Container {
        id: "e788fc0d1234aaaabbbbccccddddeeeeffff0000111122223333444455556666".into(),
        name: "/web-1".into(),
        image_id: "sha256:345e3d77aaaabbbbccccddddeeeeffff0000111122223333444455556666".into(),
        image_name: "shop/web:7".into(),
        created: "2026-11-22T14:04:26.820587421Z".into(),
        env: ["FOO=bar", "EMPTY=", "FOO=last", "A=env", "NO_VALUE"]
            .map(str::to_owned)
            .to_vec(),
        labels: [("app", "shop"), ("a.b", "2"), ("A", "label")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        entrypoint: "/bin/sh".into(),
        args: ["-c", "echo \"hi\" <&2"].map(str::to_owned).to_vec(),
        daemon_name: "docker".into(),
        log_path: String::new(),
    }
}

fn new(options: &[(&str, &str)]) -> Result<Formatter, LogOptsError> {
    let config: HashMap<String, String> = options
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let origin = Origin {
        container: &container(),
        host: "node-1",
        journal_id: JOURNAL,
        resume_offset: 1000,
        left_out: "",
    };
    Formatter::new(&LogOpts::parse(&config)?, &origin)
}

/// A formatter with a journal position, a clock, and what came out so far.
pub(super) struct Stream {
    formatter: Formatter,
    offset: u64,
    now: Instant,
    records: Records,
}

impl Stream {
    pub(super) fn new(options: &[(&str, &str)]) -> Self {
        Self {
            formatter: new(options).unwrap(),
            offset: 1000,
            now: Instant::now(),
            records: Records::default(),
        }
    }

    /// Pushes an entry that takes 100 bytes of the journal.
    fn push(&mut self, entry: EntryView<'_>) -> &mut Self {
        let records = &mut self.records;
        let end = self.offset + 100;
        self.formatter
            .push(self.offset, end, &entry, self.now, records);
        self.offset = end;
        self
    }

    pub(super) fn out(&mut self, line: &[u8]) -> &mut Self {
        self.push(entry(Source::Stdout, line))
    }

    fn err(&mut self, line: &[u8]) -> &mut Self {
        self.push(entry(Source::Stderr, line))
    }

    fn piece(&mut self, id: &str, ordinal: i32, last: bool, line: &[u8]) -> &mut Self {
        let partial = Some(Partial {
            id: id.as_bytes(),
            ordinal,
            last,
        });
        self.push(EntryView {
            partial,
            ..entry(Source::Stdout, line)
        })
    }

    fn wait(&mut self, duration: Duration) -> &mut Self {
        self.now += duration;
        self.formatter.flush_due(self.now, &mut self.records);
        self
    }

    pub(super) fn finish(&mut self) -> &mut Self {
        self.formatter.finish(self.now, &mut self.records);
        assert_eq!(self.formatter.settled_offset(), self.offset);
        assert_eq!(self.formatter.next_due(), None);
        self
    }

    fn settled(&self) -> u64 {
        self.formatter.settled_offset()
    }

    /// Decodes what came out since the last call, and checks the sums.
    fn take(&mut self) -> Vec<Log> {
        let records = std::mem::take(&mut self.records);
        let logs = LogGroup::decode(records.bytes.as_slice()).unwrap().logs;
        let value_bytes = logs
            .iter()
            .flat_map(|log| &log.contents)
            .map(|content| content.value.len())
            .sum::<usize>();
        assert_eq!(records.counts.logs, logs.len());
        assert_eq!(records.counts.value_bytes, value_bytes);
        for log in &logs {
            assert!(log.encoded_len() <= RECORD_BYTES_MAX);
            let mut keys: Vec<_> = log.contents.iter().map(|pair| &pair.key).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), log.contents.len(), "keys are distinct");
        }
        logs
    }

    /// Takes the fields of all records without the constant ones, as `key=value`.
    pub(super) fn masked(&self) -> [u64; MASK_COUNT] {
        self.records.counts.masked
    }

    pub(super) fn fields(&mut self) -> Vec<Vec<String>> {
        let is_constant = |key: &str| key == "__hostname__" || key == "__stream__";
        let show = |pair: Pair| format!("{}={}", pair.key, pair.value);
        let logs = self.take().into_iter();
        logs.map(|log| {
            let own = log.contents.into_iter();
            own.filter(|pair| !is_constant(&pair.key))
                .map(show)
                .collect()
        })
        .collect()
    }

    /// Takes the contents of all records, those of stdout and those of stderr.
    fn by_source(&mut self) -> [Vec<String>; 2] {
        let mut contents = [const { Vec::new() }; 2];
        for log in self.take() {
            let value = |key| {
                log.contents
                    .iter()
                    .find(|p| p.key == key)
                    .map(|p| p.value.clone())
            };
            assert_eq!(value("__cut__"), None);
            let at = usize::from(value("__stream__").unwrap() == "stderr");
            contents[at].push(value("content").unwrap());
        }
        contents
    }

    pub(super) fn texts(&mut self) -> Vec<String> {
        self.fields()
            .iter()
            .map(|fields| fields.join(" | "))
            .collect()
    }
}

fn entry(source: Source, line: &[u8]) -> EntryView<'_> {
    EntryView {
        source,
        time_nano: NANO,
        line,
        partial: None,
    }
}

/// Asserts which fields one line becomes.
pub(super) fn check(options: &[(&str, &str)], line: &[u8], expected: &[&str]) {
    let mut stream = Stream::new(options);
    stream.out(line);
    assert_eq!(stream.settled(), 1100);
    assert_eq!(stream.records.counts.delivered_entries, 1);
    let fields = stream.fields();
    assert_eq!(fields, [expected], "{}", String::from_utf8_lossy(line));
}

#[test]
fn a_line_is_a_record_with_time_host_and_source() {
    let mut stream = Stream::new(&[]);
    stream.out(b"hello").err(b"oh");
    let pair = |key: &str, value: &str| Pair {
        key: key.into(),
        value: value.into(),
    };
    let log = |line, source| Log {
        time: NANO / 1_000_000,
        contents: vec![
            pair("content", line),
            pair("__stream__", source),
            pair("__hostname__", "node-1"),
        ],
    };
    assert_eq!(stream.settled(), 1200);
    assert_eq!(stream.take(), [log("hello", "stdout"), log("oh", "stderr")]);
}

#[test]
fn any_text_is_kept() {
    check(&[], b"", &["content="]);
    check(&[], b"   ", &["content=   "]);
    check(&[], b"line of a tty\r", &["content=line of a tty"]);
    check(
        &[],
        b"of a tty, ended as on Windows\r\r",
        &["content=of a tty, ended as on Windows"],
    );
    check(&[], b"10 %\r50 %\r100 %\r", &["content=10 %\r50 %\r100 %"]);
    check(&[], b"\r", &["content="]);
    check(&[], b"\x1b[31mred\x1b[0m", &["content=\x1b[31mred\x1b[0m"]);
    check(&[], b"a\0b", &["content=a\0b"]);
    check(&[], "日志 😀".as_bytes(), &["content=日志 😀"]);
    let escaped = |bytes: &str| format!("escaped_bytes={bytes}");
    let text = r"content=a\xffb\xf0\x9f\x98";
    check(&[], b"a\xffb\xf0\x9f\x98", &[text, &escaped("4")]);
    let text = r"content=\xed\xa0\x80";
    check(&[], b"\xed\xa0\x80", &[text, &escaped("3")]);
    let fields = [r"k=\xff\x5cxff", "n=1", &escaped("1")];
    check(&[], b"{\"k\":\"\xff\\\\xff\",\"n\":1}", &fields);
    let gbk = [("encoding", "gbk")];
    check(
        &gbk,
        b"\xb5\xc7\xc2\xbc\xca\xa7\xb0\xdc",
        &["content=登录失败"],
    );
    check(&gbk, b"{\"m\":\"\xd6\xd0\"}", &["m=中"]);
    // The second byte of this character is a backslash.
    let big5 = [("encoding", "big5")];
    check(&big5, b"{\"m\":\"\xa5\x5c\"}", &["m=功"]);
}

#[test]
fn the_members_of_an_object_are_fields() {
    check(
        &[],
        br#" {"s":"text","n":1234567,"f":19.99999999,"big":1e400,"t":true,"no":false,"nil":null,
             "o":{"a" : [1, "x y",{ }]},"a":[ ],"":"","e":"\u00e9\n\"\\\/\ud83d\ude00"} "#,
        &[
            "s=text",
            "n=1234567",
            "f=19.99999999",
            "big=1e400",
            "t=true",
            "no=false",
            "nil=",
            r#"o={"a":[1,"x y",{}]}"#,
            "a=[]",
            "field=",
            "e=\u{e9}\n\"\\/😀",
        ],
    );
    check(&[], b"{}", &["content={}"]);
    check(
        &[],
        "\u{feff}{\"level\":\"info\"}".as_bytes(),
        &["level=info"],
    );
    check(&[], "\u{feff}{}".as_bytes(), &["content=\u{feff}{}"]);
    check(&[], b"{\"a\":1}\r", &["a=1"]);
    check(&[("json", "off")], b"{\"a\":1}", &["content={\"a\":1}"]);
    check(&[("json", "auto")], b"{\"a\":1}", &["a=1"]);
}

#[test]
fn a_template_makes_the_text() {
    let template = |text| [("template", text)];
    check(&template("{log}"), b"x", &["content=x"]);
    check(
        &template("{container_name}: {log}"),
        b"x",
        &["content=web-1: x"],
    );
    check(
        &template("{timestamp} {source} {hostname} {daemon_name}"),
        b"x",
        &["content=2023-11-14T22:13:20.123456789Z stdout node-1 docker"],
    );
    check(
        &template("{container_id} {container_full_id}"),
        b"x",
        &["content=e788fc0d1234 \
           e788fc0d1234aaaabbbbccccddddeeeeffff0000111122223333444455556666"],
    );
    check(
        &template("{image_id} {image_full_id} {image_name}"),
        b"x",
        &["content=345e3d77aaaa \
           sha256:345e3d77aaaabbbbccccddddeeeeffff0000111122223333444455556666 shop/web:7"],
    );
    check(&template("no tag"), b"x", &["content=no tag"]);
    check(&template("{log}"), b"{\"a\":1}", &["a=1"]);
    check(&template(" {log} "), b"{\"a\":1}", &["a=1"]);
    check(&template("x{log}"), b"{\"a\":1}", &["content=x{\"a\":1}"]);
    check(
        &template("{log}{log}"),
        b"\xff",
        &[r"content=\xff\xff", "escaped_bytes=1"],
    );
}

#[test]
fn a_template_may_be_json() {
    let template = [(
        "template",
        r#"{"line":"{log}","from":"{container_name}","n":1}"#,
    )];
    check(&template, b"hello", &["line=hello", "from=web-1", "n=1"]);
    let hard = b"a \"quote\", a \\ and\ta tab\x1b[0m \xff";
    let line = "line=a \"quote\", a \\ and\ta tab\x1b[0m \\xff";
    let escaped = "escaped_bytes=1";
    check(&template, hard, &[line, "from=web-1", "n=1", escaped]);
    let nested = [
        ("template", r#"{"event":{log},"app":"{app}"}"#),
        ("labels", "app"),
    ];
    check(
        &nested,
        br#"{"a": [1, 2]}"#,
        &[r#"event={"a":[1,2]}"#, "app=shop"],
    );
    check(
        &nested,
        b"text",
        &["content={\"event\":text,\"app\":\"shop\"}"],
    );
    let off = [("template", r#"{"line":"{log}"}"#), ("json", "off")];
    check(&off, b"a\"b", &[r#"content={"line":"a\"b"}"#]);
    let constant = [("template", r#"{"e":"{A}","l":"{log}"}"#), ("env", "A")];
    check(&constant, b"x", &["e=env", "l=x"]);
}

#[test]
fn attributes_are_tags_of_the_template() {
    let check = |options: &[(&str, &str)], template, expected: &str| {
        let mut options = options.to_vec();
        options.push(("template", template));
        check(&options, b"x", &[&format!("content={expected}")]);
    };
    check(&[("labels", "app,a.b")], "{app} {a.b} {log}", "shop 2 x");
    check(&[("env", "FOO,EMPTY")], "{FOO}[{EMPTY}]", "last[]");
    check(&[("env-regex", "^F")], "{FOO}", "last");
    check(&[("labels-regex", "b$")], "{a.b}", "2");
    check(&[("labels", "absent")], "[{absent}]", "[]");
    check(&[("labels", "A"), ("env", "A")], "{A}", "env");
    check(&[("tag", "{{.Name}}!")], "{tag} {log}", "web-1! x");
    check(&[], "{tag} {log}", "e788fc0d1234 x");
}

#[test]
fn attributes_are_log_tags_sorted_by_name() {
    let check = |options: &[(&str, &str)], expected: &[&str]| {
        let formatter = new(options).unwrap();
        let group = LogGroup::decode(formatter.log_tags()).unwrap();
        let shown = group
            .log_tags
            .iter()
            .map(|pair| format!("{}={}", pair.key, pair.value));
        assert_eq!(shown.collect::<Vec<_>>(), expected, "{options:?}");
        assert_eq!(group.logs, []);
    };
    check(&[], &[]);
    check(&[("labels", "app,a.b,absent")], &["a.b=2", "app=shop"]);
    check(&[("labels", "app, a.b")], &["app=shop"]);
    check(&[("labels-regex", "p")], &["app=shop"]);
    check(
        &[("env", "FOO,EMPTY,NO_VALUE,absent")],
        &["EMPTY=", "FOO=last"],
    );
    check(&[("env-regex", "O")], &["FOO=last"]);
    check(&[("labels", "A"), ("env-regex", "^A$")], &["A=env"]);
    check(
        &[("labels-regex", "."), ("env", "FOO")],
        &["A=label", "FOO=last", "a.b=2", "app=shop"],
    );
    check(
        &[("tag", "{{.ImageName}}"), ("labels", "app")],
        &["app=shop", "tag=shop/web:7"],
    );
}

#[test]
fn instance_info_is_fields_or_a_field() {
    let info = |text| [("instance_info", text)];
    check(
        &info(r#"{"id":"i-1","n":1e400,"_x":null,"o":{"a": 1}}"#),
        b"x",
        &[
            "content=x",
            "__instance__.id=i-1",
            "__instance__.n=1e400",
            "__instance__._x=",
            "__instance__.o={\"a\":1}",
        ],
    );
    check(&info("{}"), b"x", &["content=x"]);
    check(&info("my host"), b"x", &["content=x", "instance=my host"]);
    check(&info("[1]"), b"x", &["content=x", "instance=[1]"]);
    check(
        &info("my host"),
        br#"{"instance":"i","_instance":"j"}"#,
        &["instance_=i", "instance__=j", "instance=my host"],
    );
    check(&info("{}"), br#"{"instance":"i"}"#, &["instance=i"]);
}

#[test]
fn container_details_are_fields() {
    let id = "e788fc0d1234aaaabbbbccccddddeeeeffff0000111122223333444455556666";
    let image_id = "sha256:345e3d77aaaabbbbccccddddeeeeffff0000111122223333444455556666";
    for (key, value) in [
        ("container_id", id),
        ("container_name", "/web-1"),
        ("container_image_id", image_id),
        ("container_image_name", "shop/web:7"),
        ("container_created", "2026-11-22T14:04:26Z"),
        (
            "container_env",
            r#"["FOO=bar","EMPTY=","FOO=last","A=env","NO_VALUE"]"#,
        ),
        (
            "container_labels",
            r#"{"A":"label","a.b":"2","app":"shop"}"#,
        ),
        ("container_entrypoint", "/bin/sh"),
        ("container_args", r#"["-c","echo \"hi\" <&2"]"#),
        ("log_path", ""),
        ("daemon_name", "docker"),
    ] {
        let field = format!("__container_details__.{key}={value}");
        check(
            &[("append_container_details_keys", key)],
            b"x",
            &["content=x", &field],
        );
    }
    check(
        &[
            ("append_container_details_keys", "config,container_name"),
            ("secret_id", "AKID1"),
            ("secret_key", "k3y"),
        ],
        b"x",
        &[
            "content=x",
            "__container_details__.config={\"append_container_details_keys\":\
             \"config,container_name\",\"secret_id\":\"***\",\"secret_key\":\"***\"}",
            "__container_details__.container_name=/web-1",
        ],
    );
}

#[test]
fn a_time_of_creation_loses_its_fraction() {
    for (time, shown) in [
        ("2026-11-22T14:04:26.820587421Z", "2026-11-22T14:04:26Z"),
        ("2026-11-22T14:04:26Z", "2026-11-22T14:04:26Z"),
        ("2026-11-22T14:04:26.8+08:00", "2026-11-22T14:04:26+08:00"),
        ("", ""),
    ] {
        assert_eq!(metadata::without_fraction(time), shown);
    }
}

#[test]
fn a_record_id_is_journal_and_offset_of_the_first_entry() {
    let mut stream = Stream::new(&[("record-id", "true")]);
    stream
        .out(b"a")
        .out(b"{\"b\":1}")
        .piece("p", 1, false, b"c")
        .piece("p", 2, true, b"d");
    let id = |offset| format!("__record_id__={JOURNAL}-{offset}");
    assert_eq!(
        stream.fields(),
        [
            ["content=a", &id("00000000000003e8")],
            ["b=1", &id("000000000000044c")],
            ["content=cd", &id("00000000000004b0")],
        ]
    );
}

#[test]
fn the_time_is_dockers_in_milliseconds() {
    for (nano, ms) in [
        (NANO, 1_700_000_000_123),
        (1_999_999, 1),
        (999_999, 1),
        (0, 1),
        (-1, 1),
        (i64::MIN, 1),
        (i64::MAX, 9_223_372_036_854),
    ] {
        let mut stream = Stream::new(&[]);
        stream.push(EntryView {
            time_nano: nano,
            ..entry(Source::Stdout, b"x")
        });
        assert_eq!(stream.take()[0].time, ms, "{nano}");
    }
}

#[test]
fn times_are_shown_with_nanoseconds() {
    let mut clock = template::Clock::default();
    for (nano, shown) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-5, "1970-01-01T00:00:00.000000000Z"),
        (NANO, "2023-11-14T22:13:20.123456789Z"),
        (NANO + 1, "2023-11-14T22:13:20.123456790Z"),
        (951_868_799_999_999_999, "2000-02-29T23:59:59.999999999Z"),
        (951_868_800_000_000_000, "2000-03-01T00:00:00.000000000Z"),
        (i64::MAX, "2262-04-11T23:47:16.854775807Z"),
    ] {
        assert_eq!(clock.show(nano), shown.as_bytes());
    }
}

#[test]
fn filters_keep_and_drop_lines() {
    let check = |options: &[(&str, &str)], expected: &[&str]| {
        let mut stream = Stream::new(options);
        stream
            .out(b"GET /")
            .out(b"GET /health")
            .out(b"POST /\xff")
            .out(b"");
        assert_eq!(stream.settled(), 1400);
        let counts = stream.records.counts;
        assert_eq!(counts.delivered_entries, expected.len() as u64);
        assert_eq!(counts.filtered_entries, 4 - expected.len() as u64);
        assert_eq!(stream.texts(), expected, "{options:?}");
    };
    check(
        &[("filter-regex", "^GET")],
        &["content=GET /", "content=GET /health"],
    );
    check(&[("filter-regex", "^$")], &["content="]);
    check(
        &[("exclude-regex", "health|^$")],
        &["content=GET /", r"content=POST /\xff | escaped_bytes=1"],
    );
    check(
        &[("filter-regex", "GET"), ("exclude-regex", "health")],
        &["content=GET /"],
    );
    check(
        &[("filter-regex", r"^POST /.$")],
        &[r"content=POST /\xff | escaped_bytes=1"],
    );
    check(
        &[
            ("filter-regex", "^GET"),
            ("template", "POST {log}"),
            ("exclude-regex", "POST"),
        ],
        &["content=POST GET /", "content=POST GET /health"],
    );
}

#[test]
fn a_filter_sees_the_joined_line() {
    let mut stream = Stream::new(&[("filter-regex", "ab")]);
    stream
        .piece("p", 1, false, b"xa")
        .piece("p", 2, true, b"bx");
    stream.piece("q", 1, false, b"a").piece("q", 2, true, b"a");
    assert_eq!(stream.records.counts.filtered_entries, 2);
    assert_eq!(stream.texts(), ["content=xabx"]);
}

#[test]
fn a_line_in_pieces_is_joined() {
    let mut stream = Stream::new(&[]);
    stream.piece("a", 1, false, b"one ").err(b"between");
    assert_eq!(stream.settled(), 1000);
    stream
        .piece("a", 2, false, b"two ")
        .piece("a", 3, true, b"three");
    assert_eq!(stream.settled(), 1400);
    assert_eq!(stream.records.counts.delivered_entries, 4);
    assert_eq!(stream.texts(), ["content=between", "content=one two three"]);
}

#[test]
fn the_time_of_a_joined_line_is_that_of_its_first_piece() {
    let mut stream = Stream::new(&[]);
    for (ordinal, time_nano) in [(1, 5_000_000), (2, 9_000_000)] {
        stream.push(EntryView {
            time_nano,
            partial: Some(Partial {
                id: b"p",
                ordinal,
                last: ordinal == 2,
            }),
            ..entry(Source::Stdout, b"x")
        });
    }
    assert_eq!(stream.take()[0].time, 5);
}

#[test]
fn a_mebibyte_in_pieces_between_lines_of_stderr_comes_out_whole() {
    let line: Vec<u8> = (0..1 << 20)
        .map(|at| b"0123456789abcdef"[at % 16])
        .collect();
    let mut stream = Stream::new(&[]);
    let pieces = line.chunks(16_384);
    for (piece, ordinal) in pieces.zip(1..) {
        stream.piece("p", ordinal, false, piece).err(b"between");
    }
    stream.piece("p", 65, true, b"");
    assert_eq!(stream.settled(), stream.offset);
    assert_eq!(stream.records.counts.line_parts, 0);
    let texts = stream.texts();
    assert_eq!(texts.len(), 65);
    assert!(texts[64] == format!("content={}", String::from_utf8(line).unwrap()));
}

#[test]
fn a_line_beyond_the_bound_comes_out_in_marked_parts() {
    let mut stream = Stream::new(&[]);
    let piece = [b'x'; 16_384];
    for ordinal in 1..=64 {
        stream.piece("p", ordinal, false, &piece);
    }
    stream.piece("p", 65, false, b"y");
    assert_eq!(stream.settled(), 1000 + 64 * 100);
    stream.piece("p", 66, true, b"z").out(b"next");
    assert_eq!(stream.settled(), stream.offset);
    assert_eq!(stream.records.counts.line_parts, 2);
    assert_eq!(stream.records.counts.cut_values, 0);
    let texts = stream.texts();
    let whole = "x".repeat(RECORD_LINE_BYTES_MAX);
    assert!(texts[0] == format!("content={whole} | __cut__=line"));
    assert_eq!(texts[1..], ["content=yz | __cut__=line", "content=next"]);
}

#[test]
fn an_unfinished_line_goes_out_when_it_is_old() {
    let mut stream = Stream::new(&[]);
    stream.piece("p", 1, false, b"a");
    let due = stream.now + lines::LINE_AGE_MAX;
    assert_eq!(stream.formatter.next_due(), Some(due));
    stream.wait(lines::LINE_AGE_MAX - Duration::from_millis(1));
    assert_eq!((stream.settled(), stream.records.counts.logs), (1000, 0));
    stream.wait(Duration::from_millis(1));
    assert_eq!((stream.settled(), stream.records.counts.logs), (1100, 1));
    assert_eq!(stream.formatter.next_due(), None);
    let almost = lines::LINE_AGE_MAX - Duration::from_millis(1);
    stream
        .piece("p", 2, false, b"b")
        .wait(almost)
        .piece("p", 3, false, b"c")
        .wait(almost)
        .piece("p", 4, true, b"d")
        .out(b"e");
    assert_eq!(
        stream.texts(),
        [
            "content=a | __cut__=line",
            "content=bcd | __cut__=line",
            "content=e"
        ]
    );
}

#[test]
fn a_line_that_grows_for_ever_goes_out_in_parts() {
    let mut stream = Stream::new(&[]);
    let pause = lines::LINE_AGE_MAX - Duration::from_millis(1);
    for ordinal in 1..=14 {
        stream.piece("p", ordinal, false, b"x").wait(pause);
    }
    stream.piece("p", 15, true, b"y");
    assert_eq!(
        stream.texts(),
        [
            "content=xxxxxxx | __cut__=line",
            "content=xxxxxxx | __cut__=line",
            "content=y | __cut__=line"
        ]
    );
}

#[test]
fn an_unterminated_tail_is_whole() {
    let mut stream = Stream::new(&[]);
    stream.piece("p", 1, false, b"no newline");
    assert_eq!(stream.settled(), 1000);
    assert_eq!(stream.finish().texts(), ["content=no newline"]);
}

#[test]
fn pieces_without_metadata_end_at_the_first_entry_that_is_none() {
    let mut stream = Stream::new(&[]);
    stream
        .out(b"before")
        .piece("", 0, false, b"a")
        .piece("", 0, false, b"b");
    assert_eq!(stream.settled(), 1100);
    stream.err(b"other").out(b"c").out(b"after");
    assert_eq!(stream.settled(), stream.offset);
    assert_eq!(
        stream.texts(),
        [
            "content=before",
            "content=other",
            "content=abc",
            "content=after"
        ]
    );
    stream.piece("", 0, false, b"tail").finish();
    assert_eq!(stream.texts(), ["content=tail"]);
    stream
        .piece("", 0, false, b"a")
        .wait(lines::LINE_AGE_MAX)
        .out(b"b")
        .out(b"c");
    assert_eq!(
        stream.texts(),
        [
            "content=a | __cut__=line",
            "content=b | __cut__=line",
            "content=c"
        ]
    );
}

#[test]
fn pieces_that_are_missing_or_come_again() {
    let mut stream = Stream::new(&[]);
    // The end of `p` is lost.
    stream
        .piece("p", 1, false, b"p1")
        .piece("q", 1, false, b"q1")
        .piece("q", 2, true, b"q2");
    assert_eq!(
        stream.texts(),
        ["content=p1 | __cut__=line", "content=q1q2"]
    );
    stream.piece("p", 1, false, b"p1").out(b"whole");
    assert_eq!(
        stream.texts(),
        ["content=p1 | __cut__=line", "content=whole"]
    );
    // The beginning is lost, or went out before the shipper changed.
    stream
        .piece("p", 3, false, b"p3")
        .piece("p", 4, true, b"p4");
    assert_eq!(stream.texts(), ["content=p3p4 | __cut__=line"]);
    // The middle is lost.
    stream
        .piece("p", 1, false, b"p1")
        .piece("p", 3, true, b"p3");
    assert_eq!(stream.texts(), ["content=p1p3 | __cut__=line"]);
    // The journal sends again.
    stream
        .piece("p", 1, false, b"p1")
        .piece("p", 2, false, b"p2")
        .piece("p", 1, false, b"p1");
    stream
        .piece("p", 2, false, b"p2")
        .piece("p", 3, true, b"p3");
    assert_eq!(stream.texts(), ["content=p1p2p3"]);
    stream
        .piece("p", i32::MAX, false, b"a")
        .piece("p", i32::MIN, true, b"b")
        .finish();
    assert_eq!(stream.texts(), ["content=a | __cut__=line"]);
}

#[test]
fn characters_may_be_split_between_pieces() {
    let mut stream = Stream::new(&[]);
    stream
        .piece("p", 1, false, b"a\xf0\x9f")
        .piece("p", 2, true, b"\x98\x80b");
    stream
        .piece("q", 1, false, b"{\"k\":\"\\ud83d")
        .piece("q", 2, true, b"\\ude00\"}");
    assert_eq!(stream.texts(), ["content=a😀b", "k=😀"]);
}

const MULTILINE: &[(&str, &str)] = &[("multiline-pattern", r"^\S")];

#[test]
fn lines_are_grouped_into_records() {
    let mut stream = Stream::new(MULTILINE);
    stream.out(b"error").out(b"  at a").out(b"  at b");
    assert_eq!((stream.settled(), stream.records.counts.logs), (1000, 0));
    stream.out(b"next");
    assert_eq!((stream.settled(), stream.records.counts.logs), (1300, 1));
    assert_eq!(stream.records.counts.delivered_entries, 3);
    stream.finish();
    assert_eq!(
        stream.texts(),
        ["content=error\n  at a\n  at b", "content=next"]
    );
}

#[test]
fn sources_are_grouped_apart() {
    let mut stream = Stream::new(MULTILINE);
    stream.out(b"out").err(b"err").out(b" 1").err(b" 2");
    assert_eq!(stream.settled(), 1000);
    stream.out(b"next");
    // Held back by what is pending of stderr, and then by the group that overlaps it: a stream
    // that began behind its first line would send the second one alone.
    assert_eq!(stream.settled(), 1000);
    stream.err(b"next");
    assert_eq!(stream.settled(), 1400);
    stream.finish();
    assert_eq!(
        stream.texts(),
        [
            "content=out\n 1",
            "content=err\n 2",
            "content=next",
            "content=next"
        ]
    );
}

#[test]
fn a_group_ends_when_no_line_comes() {
    let mut stream = Stream::new(MULTILINE);
    let second = Duration::from_secs(1);
    stream.out(b"a");
    assert_eq!(stream.formatter.next_due(), Some(stream.now + second));
    stream.wait(second / 2).out(b" b").wait(second / 2);
    assert_eq!(stream.records.counts.logs, 0);
    stream.wait(second / 2);
    assert_eq!((stream.settled(), stream.records.counts.logs), (1200, 1));
    assert_eq!(stream.formatter.next_due(), None);
    stream.out(b" c").finish();
    assert_eq!(stream.texts(), ["content=a\n b", "content= c"]);
}

#[test]
fn a_pattern_that_matches_no_line_holds_none_for_long() {
    let mut stream = Stream::new(&[("multiline-pattern", r"^\d{4}-\d{2}-\d{2}")]);
    for number in 0..120_i64 {
        let line = format!("[2026-11-30 08:00:00] INFO request {number} done");
        stream.push(EntryView {
            time_nano: NANO + number * 500_000_000,
            ..entry(Source::Stdout, line.as_bytes())
        });
        // 11 lines of half a second each are 5 s.
        let held = (stream.offset - stream.settled()) / 100;
        assert!(held <= 11, "{held} lines are held");
        assert_eq!(stream.formatter.lacks_first_line(), number >= 99);
    }
    let texts = stream.texts();
    assert_eq!(texts.len(), 10);
    assert!(
        texts.iter().all(|text| text.ends_with(" | __cut__=line")),
        "{texts:?}"
    );
    // A pattern that matches has no such bound on what it can wait for.
    let mut stream = Stream::new(MULTILINE);
    for number in 0..120 {
        stream.out(if number % 60 == 0 { b"first" } else { b" more" });
    }
    assert!(!stream.formatter.lacks_first_line());
    assert_eq!(stream.records.counts.logs, 1);
}

#[test]
fn a_line_end_of_two_characters_is_none_of_the_line() {
    let mut stream = Stream::new(&[("filter-regex", "zero$|x$")]);
    stream.out(b"minus zero\r").out(b"one\r");
    stream
        .piece("p", 1, false, b"a\r")
        .piece("p", 2, true, b"x\r");
    assert_eq!(stream.texts(), ["content=minus zero", "content=a\rx"]);
    let mut stream = Stream::new(MULTILINE);
    stream.out(b"error\r").out(b"  at a\r").finish();
    assert_eq!(stream.texts(), ["content=error\n  at a"]);
    // An output that ends without a line feed has no line end.
    let mut stream = Stream::new(&[]);
    stream.piece("p", 1, false, b"no end\r").finish();
    assert_eq!(stream.texts(), ["content=no end\r"]);
}

#[test]
fn a_group_ends_at_a_pause_in_dockers_time() {
    let mut stream = Stream::new(MULTILINE);
    for (line, seconds) in [(b" a", 0), (b" b", 1), (b" c", 3), (b" d", 2)] {
        stream.push(EntryView {
            time_nano: NANO + seconds * 1_000_000_000,
            ..entry(Source::Stdout, line)
        });
    }
    stream.finish();
    assert_eq!(stream.texts(), ["content= a\n b", "content= c\n d"]);
}

#[test]
fn a_group_has_a_bound() {
    let mut stream = Stream::new(MULTILINE);
    let line = [b' '; 100_000];
    stream.out(b"first");
    for _ in 0..12 {
        stream.out(&line);
    }
    assert_eq!(stream.records.counts.logs, 1);
    assert_eq!(
        stream.settled(),
        1000 + 11 * 100,
        "the record has ten lines and the first"
    );
    stream.out(b"next").finish();
    let texts = stream.texts();
    assert!(texts[0].starts_with("content=first\n  ") && texts[0].ends_with(" | __cut__=line"));
    assert_eq!(
        texts[0].len(),
        8 + 5 + 10 * 100_001 + " | __cut__=line".len()
    );
    assert_eq!(
        texts[1].len(),
        8 + 2 * 100_001 - 1 + " | __cut__=line".len()
    );
    assert_eq!(texts[2], "content=next");
}

#[test]
fn pieces_filters_template_and_json_act_on_the_group() {
    let mut stream = Stream::new(&[
        ("multiline-pattern", "^[{e]"),
        ("exclude-regex", "ignored"),
        ("template", "{log}!"),
    ]);
    stream
        .piece("p", 1, false, b"err")
        .piece("p", 2, true, b"or")
        .out(b" at b")
        .out(b" ignored");
    stream.out(b"e").out(b"{\"a\":").out(b"1}").finish();
    assert_eq!(stream.records.counts.filtered_entries, 4);
    assert_eq!(stream.texts(), ["content=e!", "content={\"a\":\n1}!"]);
    let mut stream = Stream::new(&[("multiline-pattern", r"^\{")]);
    stream.out(b"{\"a\":").out(b"1}").finish();
    assert_eq!(stream.texts(), ["a=1"]);
}

#[test]
fn a_value_beyond_the_limit_of_cls_is_cut_on_a_character() {
    // Each byte that is not UTF-8 becomes four.
    let mut line = vec![b'a'; 2];
    line.resize(400_000, 0xff);
    let mut stream = Stream::new(&[]);
    stream.out(&line);
    assert_eq!(stream.records.counts.cut_values, 1);
    let texts = stream.texts();
    let content_bytes = "content=".len() + CLS_VALUE_BYTES_MAX;
    let marks = " | __cut__=value | escaped_bytes=399998";
    assert_eq!(texts[0].len(), content_bytes + marks.len());
    assert!(texts[0].ends_with(marks), "{}", texts[0].len());
    // An object whose fields would be too large is text, and whole.
    let mut object = b"{\"k\":\"".to_vec();
    object.resize(261_000, 0xff);
    object.extend_from_slice(b"\",\"l\":\"\xff\xff\xff\xff\"}");
    let mut stream = Stream::new(&[]);
    stream.out(&object);
    assert!(stream.texts()[0].starts_with(r"k=\xff"));
    object.resize(263_000, 0xff);
    stream.out(&object);
    assert!(stream.texts()[0].starts_with(r#"content={"k":"\xff"#));
}

#[test]
fn an_object_of_a_hundred_thousand_keys_is_as_many_fields() {
    let mut object = "{".to_owned();
    for number in 0..100_000 {
        object.push_str(&format!("\"{number:x}\":1,"));
    }
    object.push_str("\"last\":2}");
    let pieces = object.as_bytes().chunks(16_384);
    let last = i32::try_from(pieces.len()).unwrap();
    let mut stream = Stream::new(&[]);
    for (piece, ordinal) in pieces.zip(1..) {
        stream.piece("p", ordinal, ordinal == last, piece);
    }
    let fields = &stream.fields()[0];
    assert_eq!(fields.len(), 100_001);
    assert_eq!(
        (fields[0].as_str(), fields[100_000].as_str()),
        ("0=1", "last=2")
    );
}

#[test]
fn a_rendered_text_is_cut_at_the_bound() {
    let mut stream = Stream::new(&[("template", "{log}{log}")]);
    stream.out(&vec![b'x'; CLS_VALUE_BYTES_MAX / 2]);
    assert_eq!(stream.records.counts.cut_values, 0);
    stream.take();
    stream.out(&vec![b'x'; CLS_VALUE_BYTES_MAX / 2 + 1]);
    assert_eq!(stream.records.counts.cut_values, 1);
    let texts = stream.texts();
    let cut = "x".repeat(CLS_VALUE_BYTES_MAX);
    assert!(texts[0] == format!("content={cut} | __cut__=value"));
    // In the middle of a character.
    let mut stream = Stream::new(&[("template", "{log}{log}")]);
    stream.out("日".repeat(200_000).as_bytes());
    let texts = stream.texts();
    assert_eq!(texts[0].matches('日').count(), CLS_VALUE_BYTES_MAX / 3);
    assert_eq!(
        stream.formatter.writer.rendered.capacity(),
        0,
        "memory is given back"
    );
}

#[test]
fn what_is_pending_holds_back_so_much_and_no_more() {
    let mut stream = Stream::new(&[]);
    stream.piece("p", 1, false, b"a");
    let begin = stream.offset;
    stream.offset = 1000 + HELD_BYTES_MAX - 100;
    stream.err(b"x");
    assert_eq!((stream.settled(), stream.records.counts.logs), (1000, 1));
    stream.err(b"y");
    assert_eq!(stream.settled(), stream.offset);
    stream.piece("p", 2, true, b"b");
    assert_eq!(stream.settled(), stream.offset);
    assert_eq!(
        stream.texts(),
        [
            "content=x",
            "content=a | __cut__=line",
            "content=y",
            "content=b | __cut__=line"
        ]
    );
    assert!(begin < stream.offset);
    let mut stream = Stream::new(MULTILINE);
    stream.out(b"a").err(b"b");
    stream.offset += HELD_BYTES_MAX;
    stream.err(b" c").out(b" d").finish();
    assert_eq!(stream.texts()[0], "content=a | __cut__=line");
}

#[test]
fn the_settled_offset_avoids_half_a_line_for_a_while() {
    let mut stream = Stream::new(&[]);
    let err_piece = |stream: &mut Stream, ordinal, last| {
        let id = b"e";
        let partial = Some(Partial { id, ordinal, last });
        stream.push(EntryView {
            partial,
            ..entry(Source::Stderr, b"e")
        });
    };
    err_piece(&mut stream, 1, false);
    stream.piece("p", 1, false, b"a");
    err_piece(&mut stream, 2, true);
    assert_eq!(stream.records.counts.logs, 1);
    assert_eq!(
        stream.settled(),
        1000,
        "at 1100 the line of stderr would lack its first piece"
    );
    stream.offset += OVERLAP_BYTES_MAX;
    stream.piece("p", 2, false, b"b");
    assert_eq!(stream.settled(), 1100);
    stream.piece("p", 3, true, b"c");
    assert_eq!(stream.settled(), stream.offset);
    assert_eq!(stream.texts(), ["content=ee", "content=abc"]);
}

#[test]
fn a_hole_is_a_record() {
    let mut stream = Stream::new(&[("json", "off"), ("filter-regex", "never")]);
    let mut hole = Hole {
        stream: 1,
        first_offset: 1000,
        end_offset: 5000,
        entries: 42,
        first_time_nano: 7_000_000,
        last_time_nano: 9_000_000,
        reason: "journal_full".into(),
    };
    stream.formatter.push_hole(&hole, &mut stream.records);
    assert_eq!(stream.settled(), 5000);
    assert_eq!(stream.records.counts.delivered_entries, 0);
    let logs = stream.take();
    assert_eq!(logs[0].time, 7);
    let shown: Vec<_> = logs[0]
        .contents
        .iter()
        .map(|p| format!("{}={}", p.key, p.value))
        .collect();
    assert_eq!(
        shown,
        [
            "content=42 log entries (4000 bytes) were dropped: journal_full",
            "__dropped_entries__=42",
            "__dropped_bytes__=4000",
            "__dropped_reason__=journal_full",
            "__dropped_from__=1970-01-01T00:00:00.007000000Z",
            "__dropped_to__=1970-01-01T00:00:00.009000000Z",
            "__hostname__=node-1",
        ]
    );
    hole.entries = 0;
    (hole.first_time_nano, hole.last_time_nano) = (0, 0);
    hole.reason = "é".repeat(1000);
    stream.offset = 5000;
    stream.out(b"filtered");
    stream.formatter.push_hole(&hole, &mut stream.records);
    let log = &stream.take()[0];
    assert_eq!(log.time, NANO / 1_000_000, "the time of the last entry");
    assert!(
        log.contents[0]
            .value
            .starts_with("an unknown number of log entries (4000 bytes)")
    );
    assert_eq!(log.contents[3].value, "é".repeat(32));
    assert_eq!(
        log.contents[4].key, "__hostname__",
        "unknown times are not shown"
    );
}

#[test]
fn a_hole_in_a_line_marks_it() {
    let mut stream = Stream::new(&[]);
    stream.piece("p", 1, false, b"a");
    let hole = Hole {
        first_offset: 1100,
        end_offset: 1200,
        entries: 1,
        ..Hole::default()
    };
    stream.formatter.push_hole(&hole, &mut stream.records);
    assert_eq!(stream.settled(), 1000);
    stream.offset = 1200;
    stream.piece("p", 3, true, b"c");
    assert_eq!(stream.settled(), 1300);
    assert_eq!(stream.texts()[1], "content=ac | __cut__=line");
}

#[test]
fn records_are_cut_at_a_mark() {
    let mut stream = Stream::new(&[("filter-regex", "o")]);
    stream.out(b"one").out(b"{\"_o\":2}").out(b"x");
    let mark = stream.records.mark();
    stream.out(b"oo").out(b"y").piece("p", 2, true, b"o");
    let all = stream.records.clone();
    let tail = stream.records.split_off(mark);
    assert_eq!(
        [stream.records.bytes.clone(), tail.bytes.clone()].concat(),
        all.bytes
    );
    assert_eq!(tail.counts.logs, 2);
    assert_eq!(tail.counts.delivered_entries, 2);
    assert_eq!(tail.counts.filtered_entries, 1);
    assert_eq!(tail.counts.line_parts, 1);
    assert_eq!(stream.records.counts.renamed_keys, 1);
    assert_eq!(stream.texts(), ["content=one", "o=2"]);
    stream.records = tail;
    assert_eq!(stream.texts(), ["content=oo", "content=o | __cut__=line"]);
    stream.records.clear();
    assert_eq!(stream.records, Records::default());
}

#[test]
fn faults_are_reported_together() {
    let error = new(&[
        ("filter-regex", r"(?:\pL{100}){10}"),
        ("labels-regex", r"(?:\p{Han}{100}){10}"),
        ("tag", "{{.Nme}}"),
        ("template", "{contaner_id} {log}"),
    ])
    .unwrap_err();
    insta::assert_snapshot!(error.faults.join("\n"), @r"
    log-opt labels-regex=(?:\\p{Han}{100}){10}: takes more than 1048576 bytes compiled, the limit of one pattern
    log-opt tag={{.Nme}}: must be a Go template: unknown field .Nme (known: .ID, .FullID, .Name, .ImageID, .ImageFullID, .ImageName, .Hostname, .DaemonName, .Command, .LogPath, .ContainerID, .ContainerName, .ContainerImageID, .ContainerImageName, .ContainerCreated, .ContainerEntrypoint, .ContainerArgs, .ContainerEnv, .ContainerLabels, .Config)
    log-opt filter-regex=(?:\\pL{100}){10}: takes more than 1048576 bytes compiled, the limit of one pattern
    log-opt template: unknown tag {contaner_id}, did you mean container_id? (known: log, timestamp, container_id, container_full_id, container_name, image_id, image_full_id, image_name, daemon_name, source, hostname, tag, and each attribute that labels, labels-regex, env or env-regex asks for)
    ");
}

#[test]
fn constant_fields_have_a_bound() {
    let container = Container {
        args: vec!["x".repeat(300_000)],
        env: vec![format!("BIG={}", "x".repeat(300_000))],
        ..container()
    };
    let origin = Origin {
        container: &container,
        host: "node-1",
        journal_id: JOURNAL,
        resume_offset: 0,
        left_out: "",
    };
    let options = [
        ("append_container_details_keys", "container_args"),
        ("env", "BIG"),
        ("template", "{BIG}{log}"),
    ];
    let config = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let opts = LogOpts::parse(&config.into()).unwrap();
    let error = Formatter::new(&opts, &origin).unwrap_err();
    assert_eq!(
        error.faults,
        [
            "log-opt template: its constant tags have more than 65536 bytes",
            "the constant fields of this container have 300096 bytes, the limit is 126976; \
             ask for less with instance_info and append_container_details_keys",
            "the attributes of this container have 300013 bytes, the limit is 65536; \
             ask for less with labels, labels-regex, env, env-regex and tag",
        ]
    );
}

struct OwnedEntry {
    source: Source,
    line: Vec<u8>,
    piece: Option<(String, i32, bool)>,
}

impl OwnedEntry {
    fn view(&self) -> EntryView<'_> {
        EntryView {
            partial: self.piece.as_ref().map(|(id, ordinal, last)| Partial {
                id: id.as_bytes(),
                ordinal: *ordinal,
                last: *last,
            }),
            ..entry(self.source, &self.line)
        }
    }
}

/// Splits a line as Docker does: one of at least `piece_bytes` comes in pieces, of which the last
/// one may be empty.
fn docker_pieces(
    is_stderr: bool,
    number: usize,
    line: &str,
    piece_bytes: usize,
) -> Vec<OwnedEntry> {
    let source = if is_stderr {
        Source::Stderr
    } else {
        Source::Stdout
    };
    let count = line.len() / piece_bytes + 1;
    (0..count)
        .map(|at| {
            let piece = line.as_bytes().chunks(piece_bytes).nth(at);
            OwnedEntry {
                source,
                line: piece.unwrap_or_default().to_vec(),
                piece: (count > 1).then(|| {
                    let ordinal = i32::try_from(at + 1).unwrap();
                    (format!("{source:?}{number}"), ordinal, at + 1 == count)
                }),
            }
        })
        .collect()
}

/// One thing that happens to a stream, for the property test.
#[derive(Debug, Clone)]
enum Step {
    Entry {
        source: Source,
        line: Vec<u8>,
        partial: Option<(u8, i32, bool)>,
        later_ms: i64,
    },
    Wait(u64),
    Hole,
}

fn steps() -> impl Strategy<Value = Step> {
    let line = prop::collection::vec(
        prop_oneof![any::<u8>(), prop::sample::select(b" {}\":,a0\\_\n")],
        0..30,
    );
    let object = "\\{(\"[_a-c]{0,2}\":(1|\"x\"|null|\\[ 1 \\]),){0,4}\"k\":0\\}";
    let line = prop_oneof![line, object.prop_map(String::into_bytes)];
    let partial = prop::option::of((0_u8..3, 0_i32..5, any::<bool>()));
    let source = prop_oneof![Just(Source::Stdout), Just(Source::Stderr)];
    prop_oneof![
        10 => (source, line, partial, 0_i64..3000).prop_map(|(source, line, partial, later_ms)| {
            Step::Entry { source, line, partial, later_ms }
        }),
        1 => (0_u64..12_000).prop_map(Step::Wait),
        1 => Just(Step::Hole),
    ]
}

const OPTIONS: &[&[(&str, &str)]] = &[
    &[],
    &[("multiline-pattern", "^[a{]")],
    &[
        ("filter-regex", "a|k"),
        ("record-id", "1"),
        ("instance_info", "text"),
    ],
    &[
        (
            "template",
            r#"{"t":"{timestamp}","l":"{log}","_s":"{source}"}"#,
        ),
        ("exclude-regex", "00"),
    ],
    &[
        ("multiline-pattern", "a$"),
        ("multiline-timeout", "100ms"),
        ("json", "off"),
    ],
    &[("parse", "json")],
    &[("parse", "logfmt"), ("multiline-pattern", "^a")],
    &[("parse", "regex"), ("parse-regex", "(?P<a>a+)(?P<_k>k)?")],
    &[
        ("parse", "delimiter"),
        ("parse-delimiter", "k"),
        ("parse-keys", "a,b"),
        ("instance_info", "text"),
    ],
    &[("parse", "nginx")],
    &[
        ("drop-keys", "a*"),
        ("rename-keys", "k=b"),
        ("content-key", "c"),
    ],
    &[
        ("mask", "cn-mobile,email"),
        ("mask-regex", "a(k)?"),
        ("record-id", "1"),
    ],
];

proptest! {
    /// What Docker makes of lines, pieces of both sources in any order, comes out as the lines, in
    /// order per source; with two formatters one after the other as well, if the second one gets
    /// what the first one had not settled.
    #[test]
    fn lines_come_out_as_they_went_in(
        lines in prop::collection::vec((any::<bool>(), "[ab ]{0,9}"), 0..20),
        order in prop::collection::vec(any::<bool>(), 0..80),
        restart in 0_usize..60,
    ) {
        const PIECE_BYTES: usize = 3;
        let of = |is_stderr: bool| lines.iter().filter(move |(e, _)| *e == is_stderr);
        let mut queues = [false, true].map(|is_stderr| {
            of(is_stderr).enumerate().flat_map(|(number, (_, line))| {
                docker_pieces(is_stderr, number, line, PIECE_BYTES)
            }).collect::<std::collections::VecDeque<_>>()
        });
        let mut order = order.into_iter();
        let mut entries = Vec::new();
        while !queues.iter().all(|queue| queue.is_empty()) {
            let first = usize::from(order.next().unwrap_or(false));
            let next = queues[first].pop_front().or_else(|| queues[1 - first].pop_front());
            entries.extend(next);
        }
        let mut stream = Stream::new(&[]);
        for entry in &entries[..restart.min(entries.len())] {
            stream.push(entry.view());
        }
        let mut shown = stream.by_source();
        let settled = usize::try_from((stream.settled() - 1000) / 100).unwrap();
        let settled_lines = shown.clone();
        let mut stream = Stream::new(&[]);
        for entry in &entries[settled..] {
            stream.push(entry.view());
        }
        stream.finish();
        for (source, again) in shown.iter_mut().zip(stream.by_source()) {
            source.extend(again);
        }
        for (is_stderr, source, before) in [(false, 0, 0), (true, 1, 1)] {
            let expected: Vec<_> = of(is_stderr).map(|(_, line)| line.clone()).collect();
            // At least once: lines beyond the settled offset may come twice, and then in order.
            let again = shown[source].len() - expected.len();
            prop_assert!(again <= settled_lines[before].len());
            let (first, second) = shown[source].split_at(settled_lines[before].len());
            prop_assert_eq!(first, &expected[..first.len()]);
            prop_assert_eq!(second, &expected[expected.len() - second.len()..]);
        }
    }

    /// Whatever comes, nothing panics, the settled offset never goes back, every entry is counted
    /// once at most, and what is written can be read.
    #[test]
    fn no_steps_break_the_counts(
        steps in prop::collection::vec(steps(), 0..40),
        options in prop::sample::select(OPTIONS),
    ) {
        let mut stream = Stream::new(options);
        let mut time_nano = NANO;
        let mut pushed = 0;
        for step in &steps {
            let settled = stream.settled();
            match step {
                Step::Entry { source, line, partial, later_ms } => {
                    time_nano += later_ms * 1_000_000;
                    let id = partial.map(|(id, _, _)| [[].as_slice(), b"p", b"q"][usize::from(id)]);
                    let partial = partial.zip(id).map(|((_, ordinal, last), id)| {
                        Partial { id, ordinal, last }
                    });
                    stream.push(EntryView { source: *source, time_nano, line, partial });
                    pushed += 1;
                }
                Step::Wait(ms) => drop(stream.wait(Duration::from_millis(*ms))),
                Step::Hole => {
                    let hole = Hole {
                        first_offset: stream.offset,
                        end_offset: stream.offset + 10,
                        ..Hole::default()
                    };
                    stream.formatter.push_hole(&hole, &mut stream.records);
                    stream.offset += 10;
                }
            }
            prop_assert!(stream.settled() >= settled && stream.settled() <= stream.offset);
        }
        stream.finish();
        let counts = stream.records.counts;
        prop_assert_eq!(counts.delivered_entries + counts.filtered_entries, pushed);
        for log in stream.take() {
            prop_assert!(log.time > 0);
            let ours = [
                "__stream__",
                "__hostname__",
                "__record_id__",
                "__cut__",
                "escaped_bytes",
                "LogParseFailure",
            ];
            for content in &log.contents {
                let key = content.key.as_str();
                let is_ours = ours.contains(&key) || key.starts_with("__dropped_");
                prop_assert!(is_ours || !key.starts_with('_'), "{}", key);
            }
        }
    }
}
