//! What reviewers forget: the invariants of the layout, the sizes of files, the names on the wire.
//!
//! Not a linter: whatever clippy can see is clippy's. Needs neither root nor an engine nor git: it walks the folders, and
//! leaves out what is built or cached there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod examples;
mod layout;
mod names;
mod readme;
mod source;
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders that hold nothing of ours: build output, caches, what the quickstart runs in.
const NOT_OURS: [&str; 4] = [".git", "target", ".quickstart", ".cache"];

/// A file of the repository.
struct File {
    /// Path from the root of the repository, with `/`.
    path: String,
    /// Content; lossy where it is not UTF-8.
    text: String,
}

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands in a folder of the repository").to_owned()
}

/// All files of the repository, sorted.
fn files() -> Vec<File> {
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &root, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 20, "only {} files under {}: the walk is broken", found.len(), root.display());
    found
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<File>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        let top = folder == root;
        if kind.is_dir() {
            if !(top && NOT_OURS.iter().any(|name| path.ends_with(name))) {
                walk(root, &path, found);
            }
        } else if kind.is_file() && !(top && path.ends_with(".git")) {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            found.push(File { path: path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), text });
        }
    }
}

/// Fails with one line for each complaint.
fn no_complaints(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}\n  {}", complaints.join("\n  "));
}
