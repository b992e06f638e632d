//! Documents in two languages say the same: equal headings, commands, settings and tables; and what a
//! document links to is there.

use super::{document, root, tree};

/// What of a document does not depend on its language.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shape {
    /// Level of each heading, in order.
    headings: Vec<usize>,
    /// Lines of each block of code, without comments.
    blocks: Vec<Vec<String>>,
    /// Rows of each table: what the first cell has in code, and the number of cells.
    tables: Vec<Vec<(Vec<String>, usize)>>,
}

impl Shape {
    fn of(document: &str) -> Self {
        let mut shape = Self::default();
        let mut is_in_table = false;
        let mut lines = document.lines();
        while let Some(line) = lines.next() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                let block: Vec<_> = lines
                    .by_ref()
                    .take_while(|line| !line.trim_start().starts_with("```"))
                    .collect();
                // A picture has words.
                if !language.is_empty() {
                    shape
                        .blocks
                        .push(block.into_iter().filter_map(bare).collect());
                }
            }
            let level = line.len() - line.trim_start_matches('#').len();
            if level > 0 {
                shape.headings.push(level);
            }
            let is_row = line.starts_with('|');
            if is_row && !is_in_table {
                shape.tables.push(Vec::new());
            }
            if is_row && let Some(table) = shape.tables.last_mut() {
                table.push(row(line));
            }
            is_in_table = is_row;
        }
        shape
    }
}

/// Returns a line of code without its comment, if anything is left.
fn bare(line: &str) -> Option<String> {
    let code = match line.split_once(" # ") {
        Some((code, _)) => code,
        None if line.trim_start().starts_with("# ") => "",
        None => line,
    };
    let code = code.trim_end();
    (!code.is_empty()).then(|| code.to_owned())
}

fn row(line: &str) -> (Vec<String>, usize) {
    // A bar in code parts no cells.
    let parts: Vec<_> = line.split('`').collect();
    let cells = parts
        .iter()
        .step_by(2)
        .map(|text| text.matches('|').count());
    let first_cell = line.split('|').nth(1).unwrap_or_default();
    let code = first_cell.split('`').skip(1).step_by(2);
    (code.map(str::to_owned).collect(), cells.sum())
}

#[test]
fn a_shape_is_what_is_equal_in_all_languages() {
    let shape = |words: [&str; 4]| {
        let [heading, comment, cell, meaning] = words;
        Shape::of(&format!(
            "# {heading}\n```sh\n# {comment}\nrun it   # {comment}\n```\n```\n{cell}\n```\n\
             | {cell} | b |\n|---|---|\n| `x|y` {cell} | {meaning} |\n\n## {heading}\n"
        ))
    };
    let english = shape(["Heading", "comment", "cell", "meaning"]);
    assert_eq!(english, shape(["标题", "注释", "单元", "含义"]));
    assert_eq!(english.headings, [1, 2]);
    assert_eq!(english.blocks, [["run it"]]);
    assert_eq!(english.tables.len(), 1);
    assert_ne!(english, Shape::of("# Heading\n"));
}

#[test]
fn both_languages_have_the_same_headings_commands_settings_and_tables() {
    let [english, chinese] =
        ["README.md", "README.zh-CN.md"].map(|name| Shape::of(&document(name)));
    assert!(english.blocks.len() > 10 && english.tables.len() > 3);
    assert_eq!(english.headings, chinese.headings);
    for (english, chinese) in english.blocks.iter().zip(&chinese.blocks) {
        assert_eq!(english, chinese);
    }
    assert_eq!(english.blocks.len(), chinese.blocks.len());
    for (english, chinese) in english.tables.iter().zip(&chinese.tables) {
        assert_eq!(english, chinese);
    }
    assert_eq!(english.tables.len(), chinese.tables.len());
}

/// Returns where the links of a document lead, without those to other servers.
fn links(document: &str) -> Vec<&str> {
    let inline = document.split("](").skip(1);
    let targets = inline.filter_map(|rest| rest.split(')').next());
    targets
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

#[test]
fn links_lead_somewhere() {
    assert_eq!(links("[a](b.md#c) [d](https://e) [f](#g)"), ["b.md"]);
    let mut count = 0;
    for path in tree() {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = document(path.to_str().unwrap());
        for link in links(&text) {
            let folder = root().join(path.parent().unwrap());
            assert!(folder.join(link).exists(), "{}: {link}", path.display());
            count += 1;
        }
    }
    assert!(count > 5, "{count} links");
}
