#!/usr/bin/env bash
# Kubernetes updates the files of a ConfigMap or Secret by renaming a link `..data` beside them. A watch of notify on
# the folder tells of `..data` and never of the file: whoever filters for the file's name misses every update. A
# watch on the file itself tells of the first update and of no later one.
# Seen with notify 8.2.2 on Linux (inotify).
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
cargo -q init --name show .
cargo -q add notify@=8.2.2
cat > src/main.rs <<'RUST'
use notify::{RecursiveMode, Watcher, recommended_watcher};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Puts another version of the file in place, as the kubelet does.
fn swap(folder: &Path, version: &str) {
    let data = folder.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("c.toml"), version).unwrap();
    let link = folder.join("..data_tmp");
    symlink(format!("..{version}"), &link).unwrap();
    fs::rename(link, folder.join("..data")).unwrap();
}

/// Returns the names in the events of each of two updates.
fn watch(folder: &Path, watched: &Path) -> [BTreeSet<String>; 2] {
    let (sender, events) = channel::<notify::Result<notify::Event>>();
    let mut watcher = recommended_watcher(sender).unwrap();
    watcher.watch(watched, RecursiveMode::NonRecursive).unwrap();
    ["second", "third"].map(|version| {
        let old = fs::canonicalize(folder.join("..data")).unwrap();
        swap(folder, version);
        // The kubelet removes what the link named before.
        fs::remove_dir_all(old).unwrap();
        let mut names = BTreeSet::new();
        while let Ok(event) = events.recv_timeout(Duration::from_millis(500)) {
            let event = event.unwrap();
            if matches!(event.kind, notify::EventKind::Access(_)) {
                continue;
            }
            let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            names.extend(event.paths.iter().map(name));
        }
        names
    })
}

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::current_dir().unwrap().join(name);
    fs::create_dir(&folder).unwrap();
    swap(&folder, "first");
    symlink("..data/c.toml", folder.join("c.toml")).unwrap();
    folder
}

fn main() {
    let by_folder = folder("a");
    let seen = watch(&by_folder, &by_folder);
    println!("a watch on the folder: {seen:?}");
    for names in &seen {
        assert!(names.contains("..data") && !names.contains("c.toml"));
    }
    let by_file = folder("b");
    let seen = watch(&by_file, &by_file.join("c.toml"));
    println!("a watch on the file: {seen:?}");
    assert!(seen[0].contains("c.toml") && seen[1].is_empty());
}
RUST
cargo -q run
echo "as described"
