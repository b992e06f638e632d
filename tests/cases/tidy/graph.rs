//! Which file of a crate uses which: no circle, rooms in their order, and a folder is used from
//! outside only through its own module file.
//!
//! What counts is the product: test modules and examples in comments may use anything. A path that
//! begins with `crate`, `self` or `super` is followed to the file that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// A crate whose files are held to the rules.
struct Rooms {
    /// Folder of its sources.
    src: &'static str,
    /// Its rooms, a file or a folder each: one uses only those that stand before it. Rooms in one
    /// entry do not use each other. Empty for a crate without rooms.
    order: &'static [&'static [&'static str]],
}

/// The crates, and the order of their rooms.
const CRATES: &[Rooms] = &[
    Rooms {
        src: "proto/src",
        order: &[],
    },
    Rooms {
        src: "driver/src",
        order: &[
            &[
                "blocking",
                "chain",
                "config",
                "descriptors",
                "disk",
                "isolate",
                "logging",
            ],
            &["sandbox"],
            &["journal"],
            &["table"],
            &["stream"],
            &["registry"],
            &["pump", "upkeep", "relay", "inspect"],
            &["engine"],
            &["lib"],
            &["main"],
        ],
    },
    Rooms {
        src: "tests/src",
        order: &[],
    },
];

/// The files of a crate by name (`journal/ack`), with the text of each.
type Files = BTreeMap<String, String>;

/// Which file names which others.
type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn data_flows_one_way() {
    let mut faults = Vec::new();
    for rooms in CRATES {
        let files = files(rooms.src);
        assert!(files.len() > 5, "{}: {} files", rooms.src, files.len());
        let graph = graph(&files);
        let all = [
            circle(&graph).into_iter().collect(),
            doors(&graph),
            order(&graph, rooms.order),
        ];
        for fault in all.concat() {
            faults.push(format!("{}: {fault}", rooms.src));
        }
    }
    super::assert_none(&faults);
}

/// Reads the sources of a crate; modules of tests and programs of their own are not among them.
fn files(src: &str) -> Files {
    let mut files = Files::new();
    for (path, text) in super::sources() {
        let Ok(path) = path.strip_prefix(src) else {
            continue;
        };
        let name = path.with_extension("");
        let name = name.to_str().unwrap();
        let name = name.strip_suffix("/mod").unwrap_or(name);
        if name.starts_with("bin/") || name.ends_with("tests") {
            continue;
        }
        files.insert(name.to_owned(), text);
    }
    files
}

/// Returns the code of a source: without comments, texts, and what is for tests alone.
fn product(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" || line.starts_with("#[cfg(any(test") {
            skip_item(&mut lines);
            continue;
        }
        if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// Passes over an item that begins on the next line, with its other attributes.
fn skip_item<'t>(lines: &mut impl Iterator<Item = &'t str>) {
    for line in lines {
        let is_attribute = line.starts_with('#');
        let is_one_line = line.ends_with(';') && !line.starts_with(' ');
        if !is_attribute && (is_one_line || line == "}") {
            return;
        }
    }
}

/// Returns which file uses which.
fn graph(files: &Files) -> Graph {
    let uses = |(name, text): (&String, &String)| {
        let mut used: BTreeSet<_> = paths(&product(text))
            .iter()
            .filter_map(|path| resolve(files, name, path))
            .collect();
        used.remove(name);
        (name.clone(), used)
    };
    files.iter().map(uses).collect()
}

/// Returns every path of a source, with nested lists of a `use` written out.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(|char: char| char.is_alphabetic() || char == '_') {
        rest = rest.get(at..).unwrap_or_default();
        let end = rest.find(|char: char| !is_path(char)).unwrap_or(rest.len());
        let (path, behind) = rest.split_at(end);
        rest = behind;
        match path.strip_suffix("::") {
            Some(start) if behind.starts_with('{') => {
                let list = list(behind);
                rest = behind.get(list.len()..).unwrap_or_default();
                for inner in self::paths(list) {
                    paths.push(format!("{start}::{inner}"));
                }
            }
            _ => paths.push(path.to_owned()),
        }
    }
    paths
}

fn is_path(char: char) -> bool {
    char.is_alphanumeric() || char == '_' || char == ':'
}

/// Returns the text from a brace to the one that closes it.
fn list(text: &str) -> &str {
    let mut depth = 0;
    for (at, char) in text.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.get(..=at).unwrap_or(text);
        }
    }
    text
}

/// Returns the file that a path leads to from a file: the deepest one that it names.
fn resolve(files: &Files, from: &str, path: &str) -> Option<String> {
    // A visibility: `pub(crate)`.
    if ["crate", "self", "super"].contains(&path) {
        return None;
    }
    let mut parts = path.split("::");
    let mut at = module(from);
    match parts.next()? {
        "crate" => at.clear(),
        "self" => {}
        "super" => {
            at.pop()?;
        }
        // The path of a child, in a module file.
        child => {
            at.push(child.to_owned());
            files.get(&at.join("/"))?;
        }
    }
    for part in parts {
        if part == "super" {
            at.pop()?;
            continue;
        }
        at.push(part.to_owned());
        if !files.contains_key(&at.join("/")) {
            at.pop();
            break;
        }
    }
    let name = match at.is_empty() {
        true => "lib".to_owned(),
        false => at.join("/"),
    };
    files.contains_key(&name).then_some(name)
}

/// Returns the path of the module that a file is.
fn module(file: &str) -> Vec<String> {
    match file {
        "lib" | "main" => Vec::new(),
        file => file.split('/').map(str::to_owned).collect(),
    }
}

/// Returns a circle of files, written out, if there is one.
fn circle(graph: &Graph) -> Option<String> {
    let mut done = BTreeSet::new();
    graph.keys().find_map(|file| {
        let mut way = Vec::new();
        follow(graph, file, &mut way, &mut done)
    })
}

fn follow<'g>(
    graph: &'g Graph,
    file: &'g str,
    way: &mut Vec<&'g str>,
    done: &mut BTreeSet<&'g str>,
) -> Option<String> {
    if let Some(at) = way.iter().position(|earlier| *earlier == file) {
        let mut text = "a circle: ".to_owned();
        for earlier in way.get(at..).unwrap_or_default() {
            write!(text, "{earlier} → ").unwrap();
        }
        return Some(text + file);
    }
    if done.contains(file) {
        return None;
    }
    way.push(file);
    let found = graph.get(file).into_iter().flatten();
    let found = { found }.find_map(|used| follow(graph, used, way, done));
    way.pop();
    done.insert(file);
    found
}

/// Returns the uses of a file in a folder from outside of it.
fn doors(graph: &Graph) -> Vec<String> {
    let mut faults = Vec::new();
    for (file, used) in graph {
        for other in used {
            let Some((folder, _)) = other.rsplit_once('/') else {
                continue;
            };
            let is_inside = file == folder || file.starts_with(&format!("{folder}/"));
            if !is_inside {
                faults.push(format!("{file} uses {other} past {folder}"));
            }
        }
    }
    faults
}

/// Returns the uses that go against the order of the rooms, and files that are in no room.
fn order(graph: &Graph, order: &[&[&str]]) -> Vec<String> {
    let mut faults = Vec::new();
    if order.is_empty() {
        return faults;
    }
    let room = |file: &str| file.split('/').next().unwrap_or_default().to_owned();
    let rank = |room: &str| order.iter().position(|rooms| rooms.contains(&room));
    for (file, used) in graph {
        let Some(own) = rank(&room(file)) else {
            faults.push(format!("{file} is in no room"));
            continue;
        };
        for other in used {
            if room(file) == room(other) {
                continue;
            }
            if rank(&room(other)).is_some_and(|other| other >= own) {
                faults.push(format!(
                    "{file} uses {other}, which does not stand before it"
                ));
            }
        }
    }
    faults
}

/// Returns a made-up crate.
fn made_up(files: &[(&str, &str)]) -> Files {
    let file = |&(name, text): &(&str, &str)| (name.to_owned(), text.to_owned());
    files.iter().map(file).collect()
}

#[test]
fn a_circle_is_found_and_written_out() {
    let files = made_up(&[
        ("lib", "mod a;\nmod b;\nmod c;\nuse a::A;\n"),
        ("a", "mod deep;\npub use deep::A;\n"),
        (
            "a/deep",
            "use crate::{b::B, c::{self, C}};\npub struct A;\n",
        ),
        ("b", "pub struct B;\n"),
        ("c", "fn f() {\n    crate::a::A::new();\n}\n"),
    ]);
    let graph = graph(&files);
    assert_eq!(circle(&graph).unwrap(), "a circle: a → a/deep → c → a");
    assert_eq!(doors(&graph), Vec::<String>::new());
}

#[test]
fn a_child_that_uses_its_module_file_is_a_circle() {
    let files = made_up(&[
        ("lib", "mod a;\n"),
        ("a", "mod b;\nuse b::B;\npub struct A;\n"),
        ("a/b", "use super::A;\n"),
    ]);
    assert_eq!(circle(&graph(&files)).unwrap(), "a circle: a → a/b → a");
}

#[test]
fn tests_and_comments_use_what_they_like() {
    let files = made_up(&[
        ("lib", "mod a;\nmod b;\n"),
        (
            "a",
            "//! See crate::b.\n#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}\n",
        ),
        (
            "b",
            "use crate::a::A;\n#[cfg(any(test, feature = \"x\"))]\nuse crate::lib;\n",
        ),
    ]);
    assert_eq!(circle(&graph(&files)), None);
}

#[test]
fn a_folder_has_one_door_and_rooms_have_an_order() {
    let files = made_up(&[
        ("lib", "mod a;\nmod b;\n"),
        ("a", "mod deep;\n"),
        ("a/deep", "use crate::b::B;\n"),
        ("b", "use crate::a::deep::D;\n"),
        ("stray", ""),
    ]);
    let graph = graph(&files);
    assert_eq!(doors(&graph), ["b uses a/deep past a"]);
    assert_eq!(
        order(&graph, &[&["a"], &["b"], &["lib"]]),
        [
            "a/deep uses b, which does not stand before it",
            "stray is in no room"
        ]
    );
}
