//! What `docs/security.md` says is held by tests that exist, or it says that there is none.

use std::path::{Path, PathBuf};

/// A row's last cell, or a line of text: the tests that it names.
fn named(line: &str) -> Vec<Named<'_>> {
    let pieces: Vec<&str> = line.split('`').collect();
    let mut named = Vec::new();
    let mut is_list_of_modules = false;
    for (index, code) in pieces.iter().enumerate().skip(1).step_by(2) {
        let before = pieces[index - 1];
        let goes_on = is_list_of_modules && matches!(before, ", " | " and ");
        is_list_of_modules = before.ends_with("unit tests of ") || goes_on;
        let programs = ["cases ", "e2e ", "driver --test "];
        let is_program = programs.iter().any(|program| code.starts_with(program));
        let last = code.rsplit([' ', ':']).next().unwrap_or_default();
        let name = last.trim_matches('…');
        if is_list_of_modules {
            named.push(Named::Module(name));
        } else if is_program || code.starts_with('…') {
            named.push(Named::Test(name));
        }
    }
    named
}

#[derive(Debug, PartialEq, Eq)]
enum Named<'l> {
    /// A file of the product, with unit tests.
    Module(&'l str),
    /// A test, by the beginning of its name, or all tests of a file.
    Test(&'l str),
}

impl Named<'_> {
    fn is_in(&self, path: &Path, text: &str) -> bool {
        let has_tests = text.contains("#[test]") || text.contains("#[tokio::test");
        match self {
            Self::Module(name) => has_tests && is_called(path, name),
            Self::Test(name) => {
                has_tests && (is_called(path, name) || text.contains(&format!("fn {name}")))
            }
        }
    }
}

/// Returns whether a file is a module of this name, or that of its tests.
fn is_called(path: &Path, name: &str) -> bool {
    let mut names = path.with_extension("");
    if names.ends_with("tests") {
        names.pop();
    }
    names.ends_with(name) || path.components().any(|part| part.as_os_str() == name)
}

#[test]
fn every_test_that_security_md_names_exists() {
    let text = std::fs::read_to_string(super::root().join("docs/security.md")).unwrap();
    let sources: Vec<(PathBuf, String)> = super::sources();
    let (mut faults, mut count) = (Vec::new(), 0);
    for line in text.lines() {
        for named in named(line) {
            count += 1;
            if !sources.iter().any(|(path, text)| named.is_in(path, text)) {
                faults.push(format!("{named:?} does not exist: {line}"));
            }
        }
    }
    assert!(count > 50, "{count} tests are named");
    super::assert_none(&faults);
}

#[test]
fn every_line_of_security_md_names_a_test_or_says_that_there_is_none() {
    let text = std::fs::read_to_string(super::root().join("docs/security.md")).unwrap();
    let (mut faults, mut is_in_table) = (Vec::new(), false);
    for line in text.lines() {
        if !line.starts_with('|') {
            is_in_table = false;
        } else if line.ends_with("| Test |") {
            is_in_table = true;
        } else if is_in_table && !line.starts_with("|---") {
            let cell = line
                .trim_end_matches('|')
                .rsplit('|')
                .next()
                .unwrap_or_default();
            let says = ["`", "none", "the same"];
            if !says.iter().any(|word| cell.contains(word)) {
                faults.push(line.to_owned());
            }
        }
    }
    super::assert_none(&faults);
}

#[test]
fn names_of_tests_are_found_in_a_line() {
    let line =
        "| a `b` | c | `cases relay::one_a…`, `…one_b`, `shipper` unit tests of `gate` and `tls` |";
    let expected = [
        Named::Test("one_a"),
        Named::Test("one_b"),
        Named::Module("gate"),
        Named::Module("tls"),
    ];
    assert_eq!(named(line), expected);
}
