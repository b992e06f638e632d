//! What each form makes of a text: a table for each, and that none loses any of it.

use proptest::prelude::*;

use crate::record::tests::{Stream, check};

const LOGFMT: &[(&str, &str)] = &[("parse", "logfmt")];
const NGINX: &[(&str, &str)] = &[("parse", "nginx")];

/// Asserts that a line stays whole, and says which form it has not.
fn fails(options: &[(&str, &str)], line: &str) {
    let content = format!("content={line}");
    let failure = format!("LogParseFailure={}", options[0].1);
    check(options, line.as_bytes(), &[&content, &failure]);
}

fn table(options: &[(&str, &str)], rows: &[(&str, &[&str])]) {
    for (line, fields) in rows {
        check(options, line.as_bytes(), fields);
    }
}

#[test]
fn a_json_object_that_was_asked_for() {
    let json = &[("parse", "json")];
    check(json, br#"{"n":1.10}"#, &["n=1.10"]);
    check(json, "\u{feff}{\"n\":1}".as_bytes(), &["n=1"]);
    check(json, b"{}", &["content={}"]);
    check(json, b"", &["content="]);
    for line in ["text", "[1,2]", r#"{"n":1"#, r#"{"n":1} more"#, " "] {
        fails(json, line);
    }
    let line = b"{\"k\":\"\xff\"}";
    check(json, line, &[r"k=\xff", "escaped_bytes=1"]);
    // Without a wish nothing is amiss.
    for options in [&[][..], &[("parse", "auto")], &[("parse", "off")]] {
        check(options, b"text", &["content=text"]);
    }
    check(&[("parse", "off")], b"{\"n\":1}", &["content={\"n\":1}"]);
    check(&[("parse", "auto")], b"{\"n\":1}", &["n=1"]);
}

#[test]
fn pairs() {
    table(
        LOGFMT,
        &[
            ("a=1 b=2", &["a=1", "b=2"]),
            ("  a=1 \t b=2  ", &["a=1", "b=2"]),
            ("a=1\nb=2", &["a=1", "b=2"]),
            ("a=", &["a="]),
            ("a= b=2", &["a=", "b=2"]),
            (r#"a="" b=2"#, &["a=", "b=2"]),
            (
                r#"level=error err= msg="db down" id=7"#,
                &["level=error", "err=", "msg=db down", "id=7"],
            ),
            ("a=b=c d=1", &["a=b=c", "d=1"]),
            ("a=1,b=2", &["a=1,b=2"]),
            (r#"a=un"quoted b=2"#, &[r#"a=un"quoted"#, "b=2"]),
            (r#"k="v"x=1"#, &["k=v", "x=1"]),
            (r#"k="v"x"#, &["k=v", "content=x"]),
            (r#""quoted key"=1"#, &["quoted key=1"]),
            (r#"he"llo=1"#, &[r#"he"llo=1"#]),
            ("a=1 a=2", &["a=2"]),
            ("flag a=1", &["a=1", "content=flag"]),
            ("=lost a=1", &["a=1", "content==lost"]),
            (
                r#"="x y" a=1"#,
                &["a=1", r#"content="x y""#.replacen('"', "=\"", 1).as_str()],
            ),
            (
                r#"12:00 INFO  done a=1 "some text" ok"#,
                &["a=1", r#"content=12:00 INFO done "some text" ok"#],
            ),
            ("word content=1", &["content=1", "content_=word"]),
            ("_a=1 __=2", &["a=1", "field=2"]),
            (
                "n=1.10 e=1e400 big=123456789012345678901",
                &["n=1.10", "e=1e400", "big=123456789012345678901"],
            ),
            ("用户=张三", &["用户=张三"]),
            (
                r#"a="x \"y\" \\ \n\t\r\a\b\f\v \x1b \u00e9 \U0001f600""#,
                &["a=x \"y\" \\ \n\t\r\x07\x08\x0c\x0b \x1b é 😀"],
            ),
            // What Go does not write stays as it is.
            (
                r#"a="\q \xff \x4 \u12 \ud800 \U00110000 \u+123""#,
                &[r"a=\q \xff \x4 \u12 \ud800 \U00110000 \u+123"],
            ),
            (r#"a=\n"#, &[r"a=\n"]),
        ],
    );
    for line in [
        "text",
        "two words",
        "=",
        "=x",
        r#"a="never ended b=2"#,
        r#"a="\""#,
        "   ",
    ] {
        fails(LOGFMT, line);
    }
    check(LOGFMT, b"", &["content="]);
    let line = b"a=\"\\n\xff\\x41\"";
    let fields = ["a=\n\\xff\\x5cx41", "escaped_bytes=1"];
    check(LOGFMT, line, &fields);
}

/// The one line on which six readers gave six answers.
#[test]
fn a_line_that_readers_disagree_about() {
    let line = r#"a=1 flag b="x y" c= d="q\"uote" e=un"quoted f="l\nb" a=2 =lost"#;
    let fields = [
        "b=x y",
        "c=",
        "d=q\"uote",
        "e=un\"quoted",
        "f=l\nb",
        "a=2",
        "content=flag =lost",
    ];
    check(LOGFMT, line.as_bytes(), &fields);
}

#[test]
fn groups_of_a_pattern() {
    let regex = |pattern| [("parse", "regex"), ("parse-regex", pattern)];
    let whole = regex(r"^(?P<time>\S+) (?P<level>\w+) (?P<message>.*)$");
    let fields = ["time=12:00", "level=INFO", "message=all is well"];
    check(&whole, b"12:00 INFO all is well", &fields);
    fails(&whole, "no");
    // What lies behind the match is not lost: `.` matches no line feed.
    let lines = [whole[0], whole[1], ("multiline-pattern", r"^\S")];
    let mut stream = Stream::new(&lines);
    stream.out(b"12:00 ERROR oh").out(b"  at a").finish();
    let failed = ["content=12:00 ERROR oh\n  at a", "LogParseFailure=regex"];
    assert_eq!(stream.fields(), [failed]);
    let part = regex(r"(?P<time>\S+) (?P<level>[A-Z]+)");
    let fields = ["time=12:00", "level=INFO", "content=12:00 INFO well"];
    check(&part, b"12:00 INFO well", &fields);
    // Blanks around the match are nobody's loss.
    check(&part, b" 12:00 INFO ", &["time=12:00", "level=INFO"]);
    // A group that takes no part has no field; without any the text stays.
    let either = regex(r"(?P<n>\d+)|(?P<word>\w+)|(\S+)");
    check(&either, b"17", &["n=17"]);
    check(&either, b"abc", &["word=abc"]);
    check(&either, b"++", &["content=++"]);
    let content = regex("b(?P<content>.)");
    check(&content, b"abc", &["content=c", "content_=abc"]);
    // As in Go: `\w` is ASCII.
    check(
        &regex(r"(?P<w>\w+)(?P<rest>.*)"),
        "a日".as_bytes(),
        &["w=a", "rest=日"],
    );
}

#[test]
fn values_between_delimiters() {
    let by = |delimiter, keys| {
        [
            ("parse", "delimiter"),
            ("parse-delimiter", delimiter),
            ("parse-keys", keys),
        ]
    };
    let three = by("|", "a,b,c");
    check(&three, b"1|2|3", &["a=1", "b=2", "c=3"]);
    check(&three, b"1||3|4|5", &["a=1", "b=", "c=3|4|5"]);
    check(&three, b"||", &["a=", "b=", "c="]);
    fails(&three, "1|2");
    fails(&three, "text");
    check(&by(r"\t", "a,b"), b"1\t2 3", &["a=1", "b=2 3"]);
    check(&by("::", "a,b"), b"1:2::3", &["a=1:2", "b=3"]);
    check(
        &by("，", "甲, 乙"),
        "一，二".as_bytes(),
        &["甲=一", "乙=二"],
    );
    check(&by(",", "only"), b"1,2", &["only=1,2"]);
}

const HEAD: &[&str] = &[
    "remote_addr=10.0.0.1",
    "remote_user=-",
    "time_local=30/Nov/2026:07:05:03 +0800",
];

/// Checks a line whose head is usual.
fn nginx(rest: &str, fields: &[&str]) {
    let line = format!("10.0.0.1 - - [30/Nov/2026:07:05:03 +0800] {rest}");
    check(NGINX, line.as_bytes(), &[HEAD, fields].concat());
}

#[test]
fn lines_of_an_access_log() {
    nginx(
        r#""GET /a?b=1 HTTP/1.1" 200 612 "https://x.example/" "curl/8.0""#,
        &[
            "request_method=GET",
            "request_uri=/a?b=1",
            "server_protocol=HTTP/1.1",
            "status=200",
            "body_bytes_sent=612",
            "http_referer=https://x.example/",
            "http_user_agent=curl/8.0",
        ],
    );
}

#[test]
fn requests_of_an_access_log() {
    let ends = [
        "status=400",
        "body_bytes_sent=0",
        "http_referer=-",
        "http_user_agent=-",
    ];
    let request = |request: &str, fields: &[&str]| {
        nginx(
            &format!(r#""{request}" 400 0 "-" "-""#),
            &[fields, &ends[..]].concat(),
        );
    };
    request("", &[]);
    request(r"\x16\x03\x01\x02", &[r"request=\x16\x03\x01\x02"]);
    request("-", &["request=-"]);
    request(
        r"GET /a\x22b",
        &["request_method=GET", r"request_uri=/a\x22b"],
    );
    request(
        r#"GET /\" HTTP/1.0"#,
        &[
            "request_method=GET",
            r#"request_uri=/\""#,
            "server_protocol=HTTP/1.0",
        ],
    );
    request("GET /old", &["request_method=GET", "request_uri=/old"]);
    request(
        "GET /with blank HTTP/1.1",
        &[
            "request_method=GET",
            "request_uri=/with blank",
            "server_protocol=HTTP/1.1",
        ],
    );
    request(
        "PURGE /p HTTP/1.1",
        &[
            "request_method=PURGE",
            "request_uri=/p",
            "server_protocol=HTTP/1.1",
        ],
    );
    request(
        "PRI * HTTP/2.0",
        &[
            "request_method=PRI",
            "request_uri=*",
            "server_protocol=HTTP/2.0",
        ],
    );
    request("hello world", &["request=hello world"]);
    request("GET ", &["request=GET "]);
    request("GET HTTP/1.1", &["request=GET HTTP/1.1"]);
}

#[test]
fn what_stands_behind_the_status() {
    let get = [
        "request_method=GET",
        "request_uri=/",
        "server_protocol=HTTP/1.1",
        "status=304",
    ];
    let rest = |rest: &str, fields: &[&str]| {
        nginx(
            &format!(r#""GET / HTTP/1.1" 304 {rest}"#),
            &[&get[..], fields].concat(),
        );
    };
    rest("-", &["body_bytes_sent=-"]);
    let agents = [
        "body_bytes_sent=1",
        "http_referer=-",
        r#"http_user_agent=a \" b"#,
    ];
    rest(r#"1 "-" "a \" b""#, &agents);
    rest(
        r#"1 "" """#,
        &["body_bytes_sent=1", "http_referer=", "http_user_agent="],
    );
    let more = |more: &str, field: &str| {
        let fields = [&agents[..], &[field]].concat();
        rest(&format!(r#"1 "-" "a \" b" {more}"#), &fields);
    };
    more(
        r#""10.1.1.1, 10.2.2.2""#,
        "http_x_forwarded_for=10.1.1.1, 10.2.2.2",
    );
    more(r#"0.005 "x" [up-80]"#, r#"rest=0.005 "x" [up-80]"#);
    more(r#""a" "b""#, r#"rest="a" "b""#);
    rest("1 0.005 0.004", &["body_bytes_sent=1", "rest=0.005 0.004"]);
}

#[test]
fn clients_and_users_of_an_access_log() {
    for (client, user) in [
        ("2001:db8::1", "-"),
        ("unix:", "-"),
        ("host.example", "john doe"),
        ("1.2.3.4", "a [01/Jan/2000:00:00:00 +0000] b"),
    ] {
        let time = "30/Nov/2026:07:05:03 +0800";
        let line = format!(r#"{client} - {user} [{time}] "" 400 0 "-" "-""#);
        let fields = [
            format!("remote_addr={client}"),
            format!("remote_user={user}"),
            format!("time_local={time}"),
            "status=400".to_owned(),
            "body_bytes_sent=0".to_owned(),
            "http_referer=-".to_owned(),
            "http_user_agent=-".to_owned(),
        ];
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        check(NGINX, line.as_bytes(), &fields);
    }
}

#[test]
fn what_is_no_line_of_an_access_log() {
    for line in [
        "text",
        r#"2026/11/30 07:05:03 [error] 7#7: *1 open() "/x" failed"#,
        // Another host before the client: not this form.
        r#"www:80 10.0.0.1 - - [30/Nov/2026:07:05:03 +0800] "GET / HTTP/1.1" 200 1 "-" "-""#,
        r#"10.0.0.1 - - [2026-11-30T07:05:03+08:00] "GET / HTTP/1.1" 200 1 "-" "-""#,
        r#"10.0.0.1 - - [30/Nov/2026:07:05:03 +0800] "GET / HTTP/1.1" 20 1"#,
        r#"10.0.0.1 - - [30/Nov/2026:07:05:03 +0800] "GET / HTTP/1.1" 200"#,
        r#"10.0.0.1 - - [30/Nov/2026:07:05:03 +0800] "GET / HTTP/1.1" 200 1 "-"#,
        r#"10.0.0.1 - - [30/Nov/2026:07:05:03 +0800] "GET / HTTP/1.1" 200 1 "-" "cut of"#,
        r#"- - - [30/Nov/2026:07:05:03 +0800]"#,
        r#"" - - [30/Nov/2026:07:05:03 +0800] "GET / HTTP/1.1" 200 1"#,
    ] {
        fails(NGINX, line);
    }
}

/// All forms, with options that suit the texts below.
const FORMS: &[&[(&str, &str)]] = &[
    &[("parse", "json")],
    LOGFMT,
    NGINX,
    &[
        ("parse", "regex"),
        ("parse-regex", r"(?P<a>w\d+)[ =](?P<b>w\d+)"),
    ],
    &[
        ("parse", "delimiter"),
        ("parse-delimiter", "="),
        ("parse-keys", "a,b,c"),
    ],
];

/// Texts of numbered words, and what forms make use of between them.
fn texts() -> impl Strategy<Value = String> {
    let between = prop::sample::select(
        &[
            " ",
            "=",
            "\" ",
            "=\"",
            "\"",
            "\\",
            "\\\"",
            "\\n",
            "\\x",
            "\n",
            " - ",
            " [30/Nov/2026:07:05:03 +0800] ",
            " \"GET /",
            " HTTP/1.1\" 200 ",
            "{\"",
            "\":\"",
            "\"}",
            ":",
            ",",
        ][..],
    );
    let pieces = prop::collection::vec(between, 0..12);
    let random = pieces.prop_map(|pieces| {
        let words = (0..).map(|number| format!("w{number}w"));
        let pairs = pieces.into_iter().zip(words);
        // A key is never the same as another: it has a number.
        pairs
            .map(|(piece, word)| format!("{word}{piece}"))
            .collect()
    });
    let line =
        r#"w0w - w1w [30/Nov/2026:07:05:03 +0800] "GET /w2w HTTP/1.1" 200 5 "w3w" "w4w" w5w"#;
    let nginx = (0..line.len(), "[ \"\\\\=-]{0,2}").prop_map(move |(at, inserted)| {
        let (before, behind) = line.split_at(at);
        format!("{before}{inserted}{behind}")
    });
    prop_oneof![random, nginx]
}

proptest! {
    /// Whatever a text and a form: each word of the text is in the record.
    #[test]
    fn no_form_loses_a_word(text in texts(), form in prop::sample::select(FORMS)) {
        let mut stream = Stream::new(form);
        stream.out(text.as_bytes());
        let records = stream.fields();
        prop_assert_eq!(records.len(), 1);
        let shown = records[0].join("\n");
        for word in text.split(|c: char| !c.is_ascii_alphanumeric()) {
            let is_numbered = word.starts_with('w') && word.ends_with('w');
            prop_assert!(!is_numbered || shown.contains(word), "{} of {:?} in {:?}", word, text, shown);
        }
    }

    /// Nothing panics, and what is written can be read.
    #[test]
    fn any_bytes_are_of_a_form_or_not(
        text in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"a=\"\\ {}-[]x"[..])], 0..80),
        form in prop::sample::select(FORMS),
    ) {
        let mut stream = Stream::new(form);
        stream.out(&text);
        prop_assert_eq!(stream.fields().len(), 1);
    }
}
