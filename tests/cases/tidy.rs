//! Rules of the tree that a machine can hold: module contracts, the tone of messages, tables in
//! documents that must equal the code, and nothing of the machine it was written on.

mod graph;
mod languages;
mod security;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use driver::{SETTINGS, Setting};
use proto::log_opts::{OPTIONS, OptionSpec};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Returns all files of the tree that git knows or would take, as paths from the root.
fn tree() -> Vec<PathBuf> {
    let mut command = Command::new("git");
    command.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let names = String::from_utf8(output.stdout).unwrap();
    let paths = names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from);
    // A file that is deleted and not yet committed is still listed.
    paths.filter(|path| root().join(path).is_file()).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let read = |path: PathBuf| (path.clone(), fs::read_to_string(root().join(path)).unwrap());
    tree().into_iter().filter(is_source).map(read).collect()
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn modules_open_with_their_contract() {
    let sources = sources();
    assert!(sources.len() > 20, "{} sources", sources.len());
    let lacks = |(path, text): &(PathBuf, String)| {
        (!text.starts_with("//!")).then(|| format!("{} does not start with //!", path.display()))
    };
    assert_none(&sources.iter().filter_map(lacks).collect::<Vec<_>>());
}

#[test]
fn messages_are_lower_case_without_a_full_stop() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for message in messages(&text) {
            if !is_lower_case_without_full_stop(&message) {
                faults.push(format!("{}: {message:?}", path.display()));
            }
        }
    }
    assert_none(&faults);
}

fn is_lower_case_without_full_stop(message: &str) -> bool {
    let mut chars = message.chars();
    let first = chars.next();
    let second = chars.next();
    // CLS, FIFO, SIGTERM: a name in capitals keeps them.
    let is_name = second.is_some_and(|char| char.is_uppercase() || char.is_ascii_digit());
    let is_sentence = first.is_some_and(char::is_uppercase) && !is_name;
    !is_sentence && (!message.ends_with('.') || message.ends_with("..."))
}

/// Macros whose first literal that is no field's value is a message.
const MESSAGE_MACROS: [&str; 6] = [
    "error!(", "warn!(", "info!(", "debug!(", "trace!(", "#[error(",
];

/// Returns the messages of all log macros and error attributes of a source.
fn messages(source: &str) -> Vec<String> {
    let mut messages = Vec::new();
    for (at, name) in MESSAGE_MACROS
        .iter()
        .flat_map(|name| source.match_indices(name))
    {
        let before = source
            .get(..at)
            .and_then(|before| before.chars().next_back());
        // `compile_error!(` and what stands in quotes, as here, are none.
        if before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == '"') {
            continue;
        }
        messages.extend(source.get(at + name.len()..).and_then(first_message));
    }
    messages
}

/// Returns the first literal of a macro's arguments that does not follow a `=`.
fn first_message(arguments: &str) -> Option<String> {
    let mut depth = 1;
    let mut last = ' ';
    let mut chars = arguments.chars();
    while let Some(char) = chars.next() {
        match char {
            '(' => depth += 1,
            ')' if depth == 1 => return None,
            ')' => depth -= 1,
            '"' => {
                let literal = literal(&mut chars);
                if depth == 1 && last != '=' {
                    return Some(literal);
                }
            }
            _ => {}
        }
        if !char.is_whitespace() {
            last = char;
        }
    }
    None
}

/// Takes the rest of a string literal.
fn literal(chars: &mut std::str::Chars<'_>) -> String {
    let mut text = String::new();
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => text.extend(chars.next()),
            _ => text.push(char),
        }
    }
    text
}

#[test]
fn messages_are_found() {
    let quoted = [
        "error!(%stream, error = %Chain(&e), kind = \"X\", \"append failed\");",
        "tracing::warn!(\n    \"no \\\"peer\\\" in {x}\"\n);",
        "info!(f(\"inner\"), a);",
        "#[error(\"Not so.\")]",
        "compile_error!(\"Other\");",
    ];
    let found = messages(&quoted.join("\n"));
    assert_eq!(found, ["append failed", "no \"peer\" in {x}", "Not so."]);
    let good = ["append failed", "CLS is away", "waiting...", ""];
    assert!(
        good.iter()
            .all(|message| is_lower_case_without_full_stop(message))
    );
    let bad = ["Append failed", "append failed.", "Not so"];
    assert!(
        !bad.iter()
            .any(|message| is_lower_case_without_full_stop(message))
    );
}

#[test]
fn nothing_of_this_machine_is_committed() {
    let needles = machine_names(
        root(),
        &fs::read_to_string("/proc/sys/kernel/hostname").unwrap(),
    );
    let mut faults = Vec::new();
    for path in tree() {
        // Bytes that are no text hold no names that a person would read.
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if let Some(needle) = needles.iter().find(|needle| line.contains(needle.as_str())) {
                faults.push(format!("{}:{}: {needle}", path.display(), number + 1));
            }
        }
    }
    assert_none(&faults);
}

/// Folders that every machine has, so that naming them says nothing.
const STANDARD_DIRS: [&str; 12] = [
    "/", "bin", "dev", "etc", "home", "opt", "proc", "root", "run", "src", "tmp", "usr",
];
/// Host names that say nothing.
const STANDARD_HOSTS: [&str; 6] = ["localhost", "host", "vm", "debian", "runner", "build"];

/// Returns what would tell where the tree was written: the first part of its path that not every
/// machine has, and the host's name.
fn machine_names(root: &Path, host: &str) -> Vec<String> {
    let mut prefix = PathBuf::new();
    for part in root {
        prefix.push(part);
        if !STANDARD_DIRS.contains(&part.to_str().unwrap_or_default()) {
            break;
        }
    }
    let mut names = vec![format!("{}/", prefix.display())];
    let host = host.trim();
    if host.len() > 3 && !STANDARD_HOSTS.contains(&host) {
        names.push(host.to_owned());
    }
    names
}

#[test]
fn a_machines_names_are_its_own() {
    let names = |root: &str, host| machine_names(Path::new(root), host);
    assert_eq!(
        names("/home/ann/cls", "ann-laptop\n"),
        ["/home/ann/", "ann-laptop"]
    );
    assert_eq!(names("/data/ci/cls", "vm\n"), ["/data/"]);
}

/// Returns the rows of the table between `<!-- table: NAME -->` and `<!-- /table -->`.
fn rows<'d>(document: &'d str, name: &str) -> Option<Vec<&'d str>> {
    let (_, rest) = document.split_once(&format!("<!-- table: {name} -->"))?;
    let (table, _) = rest.split_once("<!-- /table -->")?;
    Some(
        table
            .lines()
            .filter(|line| line.starts_with('|'))
            .skip(2)
            .collect(),
    )
}

#[test]
fn tables_are_read_between_their_markers() {
    let document = "| no | table |\n<!-- table: options -->\n| option | default |\n|---|---|\n\
                    | `a` | 1 |\n| `c` | `x|y` |\n\n<!-- /table -->\n| `d` | |\n";
    assert_eq!(
        rows(document, "options").unwrap(),
        ["| `a` | 1 |", "| `c` | `x|y` |"]
    );
    assert_eq!(rows(document, "settings"), None);
}

fn code(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("`{text}`")
    }
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

#[test]
fn the_option_tables_equal_the_code() {
    let start = |spec: &OptionSpec| format!("| {} | {} | ", code(spec.name), code(spec.default));
    let expected: Vec<String> = OPTIONS
        .iter()
        .map(|spec| format!("{}{} |", start(spec), spec.doc))
        .collect();
    assert_eq!(rows(&document("README.md"), "options").unwrap(), expected);
    // The other language has the same names and defaults, and a meaning for each.
    let readme = document("README.zh-CN.md");
    let found = rows(&readme, "options").unwrap();
    assert_eq!(found.len(), OPTIONS.len());
    for (row, spec) in found.iter().zip(OPTIONS) {
        assert!(
            row.starts_with(&start(spec)) && row.len() > start(spec).len() + 6,
            "{row}"
        );
    }
}

#[test]
fn the_settings_table_equals_the_code() {
    let row = |setting: &Setting| {
        let (name, default) = (code(setting.name), code(setting.default));
        format!(
            "| {name} | {default} | {} | {} |",
            setting.rule, setting.doc
        )
    };
    let expected: Vec<String> = SETTINGS.iter().map(row).collect();
    assert_eq!(rows(&document("README.md"), "settings").unwrap(), expected);
}

#[test]
fn the_plugin_declares_every_setting_and_asks_for_no_more_than_it_needs() {
    let config: serde_json::Value = serde_json::from_str(&document("config.json")).unwrap();
    let names = |list: &str| {
        let entries = config[list].as_array().unwrap().iter();
        entries.map(|entry| entry["name"].as_str().unwrap().to_owned())
    };
    let settings = SETTINGS.iter().map(|setting| setting.name);
    assert!(
        names("env").eq(settings),
        "the settings are those of the code"
    );
    assert_eq!(names("mounts").collect::<Vec<_>>(), ["run", "tls"]);
    for mount in config["mounts"].as_array().unwrap() {
        let options = mount["options"].as_array().unwrap();
        assert!(options.contains(&"ro".into()), "{mount}");
    }
    let linux = serde_json::json!({"capabilities": [], "allowAllDevices": false, "devices": []});
    assert_eq!(config["linux"], linux);
    assert_eq!(
        (&config["ipchost"], &config["pidhost"]),
        (&false.into(), &false.into())
    );
}
