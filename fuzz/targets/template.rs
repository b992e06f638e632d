//! The option `template`: any text is refused with a reason, or rendered as it reads.
#![no_main]

use fuzz::{container, format, formatter, options};
use libfuzzer_sys::fuzz_target;
use proto::log_opts::{LogOpts, Piece, Template};

// Input: the template's line, then the container's.
fuzz_target!(|input: &str| {
    let (text, line) = input.split_once('\n').unwrap_or((input, ""));
    let template = Template::parse(text);
    assert_eq!(written(&template), text);
    let options = options([("template", text), ("json", "off"), ("labels", "app")]);
    let Ok(opts) = LogOpts::parse(&options) else {
        return;
    };
    let Some(mut formatter) = formatter(&opts) else {
        return;
    };
    let records = format(&mut formatter, line.as_bytes());
    // Carriage returns before the line end are no part of a line.
    let line = line.trim_end_matches('\r');
    let [fields] = &records[..] else {
        panic!("{} records of one line", records.len());
    };
    let content = fields.iter().find(|(key, _)| key == "content");
    let (_, content) = content.expect("text is content");
    // Inside the strings of a template that is JSON, values are escaped.
    let is_plain = !text.contains('"');
    if text.is_empty() {
        assert_eq!(content, line, "an empty option is the default");
    } else if is_plain && content.len() < 1 << 20 {
        assert_eq!(*content, rendered(&template, line));
    }
});

fn written(template: &Template) -> String {
    let pieces = template.pieces.iter().map(|piece| match piece {
        Piece::Literal(literal) => literal.clone(),
        Piece::Tag(name) => format!("{{{name}}}"),
    });
    pieces.collect()
}

/// Renders as the documentation says, the slow way.
fn rendered(template: &Template, line: &str) -> String {
    let container = container();
    let short = |id: &str| id.trim_start_matches("sha256:")[..12].to_owned();
    let pieces = template.pieces.iter().map(|piece| match piece {
        Piece::Literal(literal) => literal.clone(),
        Piece::Tag(name) => match name.as_str() {
            "log" => line.to_owned(),
            "timestamp" => "2023-11-14T22:13:20.123456789Z".to_owned(),
            "container_id" | "tag" => short(&container.id),
            "container_full_id" => container.id.clone(),
            "container_name" => container.name.trim_start_matches('/').to_owned(),
            "image_id" => short(&container.image_id),
            "image_full_id" => container.image_id.clone(),
            "image_name" => container.image_name.clone(),
            "daemon_name" => container.daemon_name.clone(),
            "source" => "stdout".to_owned(),
            "hostname" => "node-1".to_owned(),
            "app" => "shop".to_owned(),
            other => panic!("{{{other}}} is no tag of this container"),
        },
    });
    pieces.collect()
}
