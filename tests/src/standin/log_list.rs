//! `LogGroupList`, the protobuf body of an upload, read strictly and without copying.
//!
//! ```text
//! LogGroupList { repeated LogGroup logGroupList = 1; }
//! LogGroup     { repeated Log logs = 1; optional string contextFlow = 2, filename = 3, source = 4;
//!                repeated LogTag logTags = 5; optional string hostname = 6; }
//! Log          { required int64 time = 1; repeated Content contents = 2; optional int64 collectTime = 3; }
//! Content, LogTag { required string key = 1; required string value = 2; }
//! ```
//!
//! proto2: a required field that is not on the wire is an error, also if its value would be zero or
//! empty. Unknown fields are skipped. Strings are UTF-8. [`check`] applies the documented limits
//! (CLS document 614/87660), and with [`Rules::is_strict`] those that the documents only suggest.
//! What has passed [`check`] can be walked by [`groups`] without an error.

use std::ops::Range;

/// Log groups in one request.
pub const GROUPS_MAX: usize = 10;
/// Logs in one log group, and (strict) in one request.
pub const LOGS_MAX: usize = 10_000;
/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Bytes of all values of a request.
pub const VALUES_BYTES_MAX: usize = 5 << 20;
/// A time above this is in nanoseconds, which the service does not know.
pub const TIME_MAX: i64 = 100_000_000_000_000_000;
/// Keys that the service fills in itself.
pub const RESERVED_KEYS: [&str; 4] = [
    "__FILENAME__",
    "__TIMESTAMP__",
    "__LOGSETID__",
    "__TOPICID__",
];

/// Which of the rules apply that the documents leave open.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Whether a key may not begin with `_`, a time must be positive and not in nanoseconds, and
    /// [`LOGS_MAX`] counts for the whole request.
    pub is_strict: bool,
    /// Keys with one of these prefixes may begin with `_` all the same.
    pub underscore_prefixes: Vec<String>,
}

/// What a list holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The groups, in order.
    pub groups: Vec<GroupSummary>,
    /// Logs of all groups.
    pub log_count: usize,
}

/// What a group holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Where its bytes stand in the body.
    pub range: Range<usize>,
    /// Its `contextFlow`.
    pub context_flow: Option<String>,
    /// Number of its logs.
    pub log_count: usize,
}

/// Why a body is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The bytes are not a protobuf message.
    #[error("{message} is not a protobuf message: {rule}")]
    Malformed {
        /// The message that was read.
        message: &'static str,
        /// What is wrong.
        rule: &'static str,
    },
    /// A required field is absent.
    #[error("{message} lacks its required field {field}")]
    Missing {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A string is not UTF-8.
    #[error("{message}.{field} is not UTF-8")]
    NotUtf8 {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A number of things is out of bounds.
    #[error("{what}: {count}, allowed are {min} to {max}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// The fewest allowed.
        min: usize,
        /// The most allowed.
        max: usize,
    },
    /// One value, or all together, are too long.
    #[error("{what}: {bytes} B, the limit is {bytes_max} B")]
    TooLong {
        /// What was measured.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The service keeps this key for itself.
    #[error("key {key} is reserved")]
    ReservedKey {
        /// The key.
        key: String,
    },
    /// A key may not begin with `_`.
    #[error("key {key} begins with an underscore")]
    UnderscoreKey {
        /// The key.
        key: String,
    },
    /// A time is not positive, or in nanoseconds.
    #[error("time {time} is not in seconds, milliseconds or microseconds since 1970")]
    Time {
        /// The time as sent.
        time: i64,
    },
}

/// Checks a body from its first to its last byte.
///
/// # Errors
/// The first rule that is broken.
pub fn check(body: &[u8], rules: &Rules) -> Result<Summary, ListError> {
    let mut summary = Summary::default();
    let mut values_bytes = 0;
    let mut fields = Fields::new("LogGroupList", body);
    while let Some((number, value)) = fields.next()? {
        let (1, Value::Bytes(bytes)) = (number, value) else {
            continue;
        };
        let group = GroupView::parse(bytes)?;
        let mut log_count = 0;
        for log in group.logs() {
            values_bytes += check_log(&log?, rules)?;
            log_count += 1;
        }
        within("logs in a LogGroup", log_count, 1, LOGS_MAX)?;
        summary.log_count += log_count;
        summary.groups.push(GroupSummary {
            range: fields.at - bytes.len()..fields.at,
            context_flow: group.context_flow.map(str::to_owned),
            log_count,
        });
    }
    within(
        "groups in a LogGroupList",
        summary.groups.len(),
        1,
        GROUPS_MAX,
    )?;
    if rules.is_strict {
        within("logs in a LogGroupList", summary.log_count, 1, LOGS_MAX)?;
    }
    fits("all values", values_bytes, VALUES_BYTES_MAX)?;
    Ok(summary)
}

/// Walks the groups of a checked body; ends at the first byte that [`check`] would refuse.
pub fn groups(body: &[u8]) -> impl Iterator<Item = GroupView<'_>> {
    let mut fields = Fields::new("LogGroupList", body);
    std::iter::from_fn(move || {
        loop {
            if let (1, Value::Bytes(bytes)) = fields.next().ok()?? {
                return GroupView::parse(bytes).ok();
            }
        }
    })
}

/// One `LogGroup`, borrowed from the body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupView<'a> {
    bytes: &'a [u8],
    /// `contextFlow`: which ordered series the group belongs to, and its place there.
    pub context_flow: Option<&'a str>,
    /// `filename`.
    pub filename: Option<&'a str>,
    /// `source`.
    pub source: Option<&'a str>,
    /// `hostname`; not documented, sent by the Go and Rust SDKs.
    pub hostname: Option<&'a str>,
    /// `logTags`, in order.
    pub tags: Vec<(&'a str, &'a str)>,
}

impl<'a> GroupView<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, ListError> {
        const MESSAGE: &str = "LogGroup";
        let mut group = Self {
            bytes,
            ..Self::default()
        };
        let mut fields = Fields::new(MESSAGE, bytes);
        while let Some((number, value)) = fields.next()? {
            let Value::Bytes(bytes) = value else { continue };
            let string = |field| utf8(MESSAGE, field, bytes);
            match number {
                2 => group.context_flow = Some(string("contextFlow")?),
                3 => group.filename = Some(string("filename")?),
                4 => group.source = Some(string("source")?),
                5 => group.tags.push(parse_pair("LogTag", bytes)?),
                6 => group.hostname = Some(string("hostname")?),
                _ => {}
            }
        }
        Ok(group)
    }

    /// Walks the logs, in order.
    pub fn logs(&self) -> impl Iterator<Item = Result<LogView<'a>, ListError>> + use<'a> {
        let mut fields = Fields::new("LogGroup", self.bytes);
        std::iter::from_fn(move || {
            loop {
                match fields.next() {
                    Ok(Some((1, Value::Bytes(bytes)))) => return Some(LogView::parse(bytes)),
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }
}

/// One `Log`, borrowed from the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogView<'a> {
    bytes: &'a [u8],
    /// `time`: seconds, milliseconds or microseconds, told by size.
    pub time: i64,
}

impl<'a> LogView<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, ListError> {
        const MESSAGE: &str = "Log";
        let mut time = None;
        let mut fields = Fields::new(MESSAGE, bytes);
        while let Some(field) = fields.next()? {
            if let (1, Value::Varint(value)) = field {
                time = Some(value.cast_signed());
            }
        }
        let time = time.ok_or(ListError::Missing {
            message: MESSAGE,
            field: "time",
        })?;
        Ok(Self { bytes, time })
    }

    /// Walks the keys and values, in order.
    pub fn contents(
        &self,
    ) -> impl Iterator<Item = Result<(&'a str, &'a str), ListError>> + use<'a> {
        let mut fields = Fields::new("Log", self.bytes);
        std::iter::from_fn(move || {
            loop {
                match fields.next() {
                    Ok(Some((2, Value::Bytes(bytes)))) => {
                        return Some(parse_pair("Content", bytes));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }
}

/// Checks a log and returns how many bytes its values have.
fn check_log(log: &LogView<'_>, rules: &Rules) -> Result<usize, ListError> {
    if rules.is_strict && !(1..=TIME_MAX).contains(&log.time) {
        return Err(ListError::Time { time: log.time });
    }
    let mut values_bytes = 0;
    for pair in log.contents() {
        let (key, value) = pair?;
        if key.starts_with('_') {
            check_underscore_key(key, rules)?;
        }
        fits("a value", value.len(), VALUE_BYTES_MAX)?;
        values_bytes += value.len();
    }
    Ok(values_bytes)
}

fn check_underscore_key(key: &str, rules: &Rules) -> Result<(), ListError> {
    if RESERVED_KEYS.contains(&key) {
        return Err(ListError::ReservedKey { key: key.into() });
    }
    let is_allowed = |prefix: &String| key.starts_with(prefix.as_str());
    if rules.is_strict && !rules.underscore_prefixes.iter().any(is_allowed) {
        return Err(ListError::UnderscoreKey { key: key.into() });
    }
    Ok(())
}

fn within(what: &'static str, count: usize, min: usize, max: usize) -> Result<(), ListError> {
    if (min..=max).contains(&count) {
        return Ok(());
    }
    Err(ListError::Count {
        what,
        count,
        min,
        max,
    })
}

fn fits(what: &'static str, bytes: usize, bytes_max: usize) -> Result<(), ListError> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(ListError::TooLong {
        what,
        bytes,
        bytes_max,
    })
}

/// Parses a `Content` or `LogTag`.
fn parse_pair<'a>(message: &'static str, bytes: &'a [u8]) -> Result<(&'a str, &'a str), ListError> {
    let mut key = None;
    let mut value = None;
    let mut fields = Fields::new(message, bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(bytes)) => key = Some(utf8(message, "key", bytes)?),
            (2, Value::Bytes(bytes)) => value = Some(utf8(message, "value", bytes)?),
            _ => {}
        }
    }
    let missing = |field| ListError::Missing { message, field };
    Ok((key.ok_or(missing("key"))?, value.ok_or(missing("value"))?))
}

fn utf8<'a>(
    message: &'static str,
    field: &'static str,
    bytes: &'a [u8],
) -> Result<&'a str, ListError> {
    std::str::from_utf8(bytes).map_err(|_| ListError::NotUtf8 { message, field })
}

/// A field's value, as far as its wire type tells.
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// Walks the fields of one message. A known field of another wire type comes out as such, and is
/// then skipped like an unknown one, as protobuf has it.
struct Fields<'a> {
    message: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            message,
            bytes,
            at: 0,
        }
    }

    #[inline]
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, ListError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number > FIELD_NUMBER_MAX {
            return Err(self.malformed("a field number is out of range"));
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length);
                Value::Bytes(self.take(length.unwrap_or(usize::MAX))?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(self.malformed("a wire type is unknown")),
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, ListError> {
        let mut value = 0_u64;
        for (index, &byte) in self.bytes[self.at..]
            .iter()
            .take(VARINT_BYTES_MAX)
            .enumerate()
        {
            if index + 1 == VARINT_BYTES_MAX && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.at += index + 1;
                return Ok(value);
            }
        }
        Err(self.malformed("a varint is cut short or too long"))
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], ListError> {
        let rest = &self.bytes[self.at..];
        let Some(bytes) = rest.get(..length) else {
            return Err(self.malformed("a length points behind the end"));
        };
        self.at += length;
        Ok(bytes)
    }

    fn malformed(&self, rule: &'static str) -> ListError {
        ListError::Malformed {
            message: self.message,
            rule,
        }
    }
}

const FIELD_NUMBER_MAX: u64 = (1 << 29) - 1;
const VARINT_BYTES_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The schema, by prost, to write lists with.
    mod cls {
        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Pair {
            #[prost(string, required, tag = "1")]
            pub(super) key: String,
            #[prost(string, required, tag = "2")]
            pub(super) value: String,
        }
        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Log {
            #[prost(int64, required, tag = "1")]
            pub(super) time: i64,
            #[prost(message, repeated, tag = "2")]
            pub(super) contents: Vec<Pair>,
            #[prost(int64, optional, tag = "3")]
            pub(super) collect_time: Option<i64>,
        }
        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Group {
            #[prost(message, repeated, tag = "1")]
            pub(super) logs: Vec<Log>,
            #[prost(string, optional, tag = "2")]
            pub(super) context_flow: Option<String>,
            #[prost(message, repeated, tag = "5")]
            pub(super) tags: Vec<Pair>,
        }
        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct List {
            #[prost(message, repeated, tag = "1")]
            pub(super) groups: Vec<Group>,
        }
    }

    fn strict() -> Rules {
        Rules {
            is_strict: true,
            underscore_prefixes: vec!["__hostname__".into()],
        }
    }

    fn log(key: &str, value: &str) -> cls::Log {
        let pair = cls::Pair {
            key: key.into(),
            value: value.into(),
        };
        cls::Log {
            time: 1_700_000_000_123,
            contents: vec![pair],
            collect_time: None,
        }
    }

    fn list(groups: Vec<Vec<cls::Log>>) -> Vec<u8> {
        let group = |logs| cls::Group {
            logs,
            context_flow: None,
            tags: Vec::new(),
        };
        let groups = groups.into_iter().map(group).collect();
        prost::Message::encode_to_vec(&cls::List { groups })
    }

    fn verdict(body: &[u8]) -> String {
        match check(body, &strict()) {
            Ok(summary) => format!("{} logs", summary.log_count),
            Err(error) => error.to_string(),
        }
    }

    fn assert_verdict(body: &[u8], expected: &str) {
        let got = verdict(body);
        assert!(got.contains(expected), "{got:?} lacks {expected:?}");
    }

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../vectors/cls-vectors.json")).unwrap()
    }

    #[test]
    fn body_vectors_hold_what_the_sdk_put_in() {
        let lenient = Rules {
            is_strict: false,
            underscore_prefixes: Vec::new(),
        };
        for vector in vectors()["body_vectors"].as_array().unwrap() {
            let body = hex::decode(vector["protobuf_hex"].as_str().unwrap()).unwrap();
            check(&body, &lenient).unwrap();
            let got: Vec<_> = groups(&body).map(|group| json_of(&group)).collect();
            assert_eq!(serde_json::json!(got), vector["log_group_list"]);
            // B4 has time 0: it decodes, and the strict rules refuse it.
            assert_eq!(
                check(&body, &strict()).is_ok(),
                vector["name"] != "B4-incompressible"
            );
        }
    }

    fn json_of(group: &GroupView<'_>) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        for (name, value) in [
            ("contextFlow", group.context_flow),
            ("filename", group.filename),
            ("source", group.source),
        ] {
            if let Some(value) = value {
                object.insert(name.into(), value.into());
            }
        }
        if !group.tags.is_empty() {
            object.insert("tags".into(), serde_json::json!(group.tags));
        }
        let pairs = |log: LogView<'_>| {
            let contents: Vec<_> = log.contents().map(Result::unwrap).collect();
            serde_json::json!([log.time, contents])
        };
        let logs: Vec<_> = group.logs().map(|log| pairs(log.unwrap())).collect();
        object.insert("logs".into(), logs.into());
        object.into()
    }

    #[test]
    fn go_wire_captures_are_accepted_with_their_undocumented_field() {
        for capture in vectors()["go_wire_captures"].as_array().unwrap() {
            let body = hex::decode(capture["decoded_protobuf_hex"].as_str().unwrap()).unwrap();
            check(&body, &strict()).unwrap();
            assert_eq!(groups(&body).next().unwrap().hostname, Some("node-1"));
        }
    }

    #[test]
    fn required_fields_must_be_on_the_wire() {
        let empty = cls::Log {
            time: 1,
            ..log("", "")
        };
        assert_verdict(&list(vec![vec![empty]]), "1 logs");
        assert_verdict(
            b"\x0a\x04\x0a\x02\x12\x00",
            "Log lacks its required field time",
        );
        assert_verdict(
            b"\x0a\x08\x0a\x06\x08\x01\x12\x02\x0a\x00",
            "Content lacks its required field value",
        );
        assert_verdict(
            b"\x0a\x08\x0a\x06\x08\x01\x12\x02\x12\x00",
            "Content lacks its required field key",
        );
    }

    #[test]
    fn garbage_is_refused_and_unknown_fields_are_not() {
        let good = list(vec![vec![log("k", "v")]]);
        assert_verdict(&[&good[..], b"\x98\x06\x01"].concat(), "1 logs");
        assert_verdict(
            &[&good[..], b"\x00"].concat(),
            "field number is out of range",
        );
        assert_verdict(&[&good[..], b"\x0a"].concat(), "varint is cut short");
        assert_verdict(
            &[&good[..], b"\x0a\x05xx"].concat(),
            "length points behind the end",
        );
        assert_verdict(&[&good[..], b"\x0b"].concat(), "wire type is unknown");
        assert_verdict(&good[..good.len() - 1], "length points behind the end");
        let varint = [b"\x98\x06".as_slice(), &[0xff; 9], b"\x02"].concat();
        assert_verdict(
            &[&good[..], &varint].concat(),
            "varint is cut short or too long",
        );
    }

    #[test]
    fn strings_are_utf8() {
        let body = list(vec![vec![log("k", "é")]]);
        let at = body.len() - 1;
        let cut = [&body[..at], b"("].concat();
        assert_verdict(&cut, "Content.value is not UTF-8");
    }

    #[test]
    fn counts_are_limited() {
        let logs = |count| vec![log("k", "v"); count];
        assert_verdict(b"", "groups in a LogGroupList: 0");
        assert_verdict(&list(vec![vec![]]), "logs in a LogGroup: 0");
        assert_verdict(&list(vec![logs(LOGS_MAX)]), "10000 logs");
        assert_verdict(&list(vec![logs(LOGS_MAX + 1)]), "logs in a LogGroup: 10001");
        assert_verdict(&list(vec![logs(1); GROUPS_MAX]), "10 logs");
        assert_verdict(
            &list(vec![logs(1); GROUPS_MAX + 1]),
            "groups in a LogGroupList: 11",
        );
        assert_verdict(&list(vec![logs(6000); 2]), "logs in a LogGroupList: 12000");
    }

    #[test]
    fn lengths_are_limited() {
        let value = |bytes: usize| log("k", &"v".repeat(bytes));
        assert_verdict(&list(vec![vec![value(VALUE_BYTES_MAX)]]), "1 logs");
        assert_verdict(
            &list(vec![vec![value(VALUE_BYTES_MAX + 1)]]),
            "a value: 1048577 B",
        );
        let mut logs = vec![value(VALUE_BYTES_MAX); 5];
        assert_verdict(&list(vec![logs.clone()]), "5 logs");
        logs.push(value(1));
        assert_verdict(&list(vec![logs]), "all values: 5242881 B");
    }

    #[test]
    fn keys_and_times_are_checked() {
        let body = |key| list(vec![vec![log(key, "v")]]);
        assert_verdict(&body("__FILENAME__"), "key __FILENAME__ is reserved");
        assert_verdict(&body("_x"), "key _x begins with an underscore");
        assert_verdict(&body("__hostname__"), "1 logs");
        let at = |time| {
            list(vec![vec![cls::Log {
                time,
                ..log("k", "v")
            }]])
        };
        assert_verdict(&at(TIME_MAX), "1 logs");
        for time in [TIME_MAX + 1, 0, -1] {
            assert_verdict(&at(time), &format!("time {time} is not in"));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            check(&body, &strict()).ok();
            for group in groups(&body) {
                for log in group.logs().flatten() {
                    let _ = log.contents().count();
                }
            }
        }

        #[test]
        fn a_summary_says_where_the_groups_stand(sizes in prop::collection::vec(1_usize..5, 1..10)) {
            let body = list(sizes.iter().map(|&count| vec![log("k", "v"); count]).collect());
            let summary = check(&body, &strict()).unwrap();
            let counts: Vec<_> = summary.groups.iter().map(|group| group.log_count).collect();
            prop_assert_eq!(counts, sizes);
            for (group, view) in summary.groups.iter().zip(groups(&body)) {
                prop_assert_eq!(&body[group.range.clone()], view.bytes);
            }
        }
    }
}
