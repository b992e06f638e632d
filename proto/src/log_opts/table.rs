//! The table of options: what README's option tables and the parser agree on.

use super::detail::ContainerDetail;
use super::masks::MASKS;

/// One option: everything a user has to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Name, as in `--log-opt name=value`.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What holds without it, as the user would write it; empty if nothing does.
    pub default: &'static str,
    /// What it does, one sentence without the full stop.
    pub doc: &'static str,
    /// Who acts on it.
    pub consumer: Consumer,
}

/// Who acts on an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consumer {
    /// The driver, on the host.
    Driver,
    /// The shipper.
    Shipper,
    /// Docker itself; the driver accepts it and checks its syntax.
    Docker,
}

/// What a value is, and so how it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Text that is never shown.
    Secret,
    /// A host name with an optional scheme and port.
    Endpoint,
    /// A name: letters, digits, `-`, `_`, `.`.
    Name,
    /// A Go boolean: `1 t T TRUE true True 0 f F FALSE false False`.
    Bool,
    /// A number from 0.
    Count,
    /// A Go duration such as `300ms` or `1m30s`.
    Duration,
    /// A size in binary units: `10m` is 10,485,760 bytes.
    Size,
    /// A size in decimal units, as Docker reads `max-size`: `10m` is 10,000,000 bytes.
    DecimalSize,
    /// A regular expression in Go's syntax; the shipper compiles it.
    Regex,
    /// Text with `{tags}`.
    Template,
    /// A Go template such as `{{.Name}}`; the shipper compiles it.
    GoTemplate,
    /// A list of names, separated by commas, not trimmed.
    Names,
    /// A list of these words, separated by commas, spaces around them ignored.
    Words(&'static [&'static str]),
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Returns the option of this name.
pub fn find(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}

const fn option(
    name: &'static str,
    kind: Kind,
    consumer: Consumer,
    default: &'static str,
    doc: &'static str,
) -> OptionSpec {
    OptionSpec {
        name,
        kind,
        default,
        doc,
        consumer,
    }
}

use Consumer::{Docker, Driver, Shipper};

/// Every option there is, in the order in which the documents list them.
pub const OPTIONS: &[OptionSpec] = &[
    // Where to.
    option(
        "endpoint",
        Kind::Endpoint,
        Shipper,
        "",
        "CLS endpoint, for example `ap-guangzhou.cls.tencentcs.com`; without it the shipper's default",
    ),
    option(
        "topic_id",
        Kind::Name,
        Shipper,
        "",
        "CLS topic; without it the shipper's default",
    ),
    option(
        "credentials",
        Kind::Name,
        Shipper,
        "",
        "name of a credential source in the shipper's configuration; without it the shipper's default",
    ),
    option(
        "secret_id",
        Kind::Secret,
        Shipper,
        "",
        "API key id of this container, instead of `credentials`; shown by `docker inspect`",
    ),
    option(
        "secret_key",
        Kind::Secret,
        Shipper,
        "",
        "API key of this container, instead of `credentials`; shown by `docker inspect`",
    ),
    option(
        "retries",
        Kind::Count,
        Shipper,
        "0",
        "attempts to upload a batch again before it goes to the dead-letter store; 0 is endless",
    ),
    option(
        "timeout",
        Kind::Duration,
        Shipper,
        "10s",
        "time limit of one upload request, 1ms to 1h",
    ),
    // What a record is.
    option(
        "template",
        Kind::Template,
        Shipper,
        "{log}",
        "text of the record, with tags such as `{log}` and `{container_name}`",
    ),
    option(
        "encoding",
        Kind::Text,
        Shipper,
        "",
        "encoding of the container's text, for example `gbk`; without it UTF-8; what is no text \
         stands as `\\xNN`",
    ),
    option(
        "json",
        Kind::Choice(&["auto", "off"]),
        Shipper,
        "auto",
        "`auto`: the members of a JSON object become fields; `off`: the text is always `content`",
    ),
    option(
        "parse",
        Kind::Choice(&[
            "auto",
            "json",
            "logfmt",
            "regex",
            "delimiter",
            "nginx",
            "off",
        ]),
        Shipper,
        "auto",
        "how the text becomes fields: `auto` takes JSON objects and leaves other text alone; the others \
         mark text that is not theirs with `LogParseFailure`; `off` makes none",
    ),
    option(
        "parse-regex",
        Kind::Regex,
        Shipper,
        "",
        "pattern of `parse=regex`; its named groups, `(?P<name>...)`, become fields",
    ),
    option(
        "parse-delimiter",
        Kind::Text,
        Shipper,
        "",
        "what stands between the values of `parse=delimiter`, for example `,` or `\\t`",
    ),
    option(
        "parse-keys",
        Kind::Names,
        Shipper,
        "",
        "keys of the values of `parse=delimiter`, in order; the last one takes the rest of the text",
    ),
    option(
        "filter-regex",
        Kind::Regex,
        Shipper,
        "",
        "ships only lines that match",
    ),
    option(
        "exclude-regex",
        Kind::Regex,
        Shipper,
        "",
        "does not ship lines that match",
    ),
    option(
        "keep-keys",
        Kind::Names,
        Shipper,
        "",
        "of the fields of a line, ships those with these keys only; `*` is any text, `?` one character",
    ),
    option(
        "drop-keys",
        Kind::Names,
        Shipper,
        "",
        "does not ship the fields of a line with these keys; patterns as in `keep-keys`",
    ),
    option(
        "rename-keys",
        Kind::Names,
        Shipper,
        "",
        "renames fields of a line, `old=new`, separated by commas",
    ),
    option(
        "content-key",
        Kind::Name,
        Shipper,
        "content",
        "key of text that is no field; LogListener has `__CONTENT__`",
    ),
    option(
        "mask",
        Kind::Words(MASKS),
        Shipper,
        "",
        "takes out of lines, before they become records: `cn-mobile`, `cn-id`, `bank-card`, `bearer`, \
         `tencent-key`, `email`",
    ),
    option(
        "mask-regex",
        Kind::Regex,
        Shipper,
        "",
        "takes out what the pattern's groups match, or all that it matches if it has none",
    ),
    option(
        "mask-with",
        Kind::Text,
        Shipper,
        "***",
        "stands in the place of what masks take out",
    ),
    option(
        "multiline-pattern",
        Kind::Regex,
        Shipper,
        "",
        "a line that matches starts a record; other lines are appended to it",
    ),
    option(
        "multiline-timeout",
        Kind::Duration,
        Shipper,
        "1s",
        "ends a record of several lines after this time without a further line, 1ms to 1m",
    ),
    option(
        "instance_info",
        Kind::Text,
        Shipper,
        "",
        "a JSON object becomes fields `__instance__.<key>`, other text the field `instance`",
    ),
    option(
        "append_container_details_keys",
        Kind::Words(ContainerDetail::NAMES),
        Shipper,
        "",
        "adds fields `__container_details__.<key>`",
    ),
    option(
        "record-id",
        Kind::Bool,
        Shipper,
        "false",
        "adds the field `__record_id__`, equal in all copies of a record that was sent more than once",
    ),
    // Docker's attributes.
    option(
        "labels",
        Kind::Names,
        Shipper,
        "",
        "adds these labels of the container as tags",
    ),
    option(
        "labels-regex",
        Kind::Regex,
        Shipper,
        "",
        "adds the labels whose name matches as tags",
    ),
    option(
        "env",
        Kind::Names,
        Shipper,
        "",
        "adds these environment variables of the container as tags",
    ),
    option(
        "env-regex",
        Kind::Regex,
        Shipper,
        "",
        "adds the environment variables whose name matches as tags",
    ),
    option(
        "tag",
        Kind::GoTemplate,
        Shipper,
        "",
        "adds the tag `tag`, a Go template such as `{{.Name}}/{{.ID}}`",
    ),
    // The journal.
    option(
        "no-file",
        Kind::Bool,
        Driver,
        "false",
        "keeps the journal in memory; what is not uploaded is lost when the driver ends",
    ),
    option(
        "keep-file",
        Kind::Bool,
        Driver,
        "true",
        "keeps the newest uploaded part of the journal for inspection",
    ),
    option(
        "journal-size",
        Kind::Size,
        Driver,
        "",
        "bound of this container's journal, 1m or more; without it the driver's setting",
    ),
    option(
        "mode",
        Kind::Choice(&["blocking", "non-blocking"]),
        Driver,
        "blocking",
        "what a full journal does: `blocking` makes the container wait for a bounded time, \
         `non-blocking` drops the oldest lines at once",
    ),
    // Docker's own.
    option(
        "max-buffer-size",
        Kind::Size,
        Docker,
        "1m",
        "Docker's buffer in front of the driver with `mode=non-blocking`",
    ),
    option(
        "max-size",
        Kind::DecimalSize,
        Docker,
        "20m",
        "size of a file of Docker's cache behind `docker logs`",
    ),
    option(
        "max-file",
        Kind::Count,
        Docker,
        "5",
        "number of files of Docker's cache behind `docker logs`",
    ),
    option(
        "compress",
        Kind::Bool,
        Docker,
        "true",
        "whether Docker's cache behind `docker logs` is compressed",
    ),
    option(
        "cache-disabled",
        Kind::Bool,
        Docker,
        "false",
        "switches Docker's cache off, and `docker logs` with it",
    ),
    option(
        "cache-max-size",
        Kind::DecimalSize,
        Docker,
        "20m",
        "accepted; Docker reads `max-size` instead (moby issue 45668)",
    ),
    option(
        "cache-max-file",
        Kind::Count,
        Docker,
        "5",
        "accepted; Docker reads `max-file` instead (moby issue 45668)",
    ),
    option(
        "cache-compress",
        Kind::Bool,
        Docker,
        "true",
        "accepted; Docker reads `compress` instead (moby issue 45668)",
    ),
];
