//! Who may name whom: engines stay in their folders, and no file names a package registry.

use super::{files, no_complaints};

/// Engines and flavors, as the beginning of a word or as a whole word ("redistribute" and "rehydrate" are no engines).
const BEGINNINGS: [&str; 7] = ["postgres", "mysql", "mariadb", "valkey", "keydb", "timescale", "mongo"];
const WORDS: [&str; 2] = ["redis", "hydra"];

/// The words of a text in lower case: split at what is no letter or digit, and those once more where small letters turn
/// into capitals ("MySQL" is one word; "OldPostgres" also has a second).
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for whole in text.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        words.push(whole.to_ascii_lowercase());
        let pairs = whole.bytes().zip(whole.bytes().skip(1)).zip(1..);
        let humps = pairs.filter(|((a, b), _)| a.is_ascii_lowercase() && b.is_ascii_uppercase()).map(|(_, at)| at);
        words.extend(humps.map(|at| whole[at..].to_ascii_lowercase()));
    }
    words
}

fn names_an_engine(line: &str) -> bool {
    // A name such as pg_rewind; "pg-main" is a name that somebody gave a cluster.
    line.contains("pg_")
        || words(line)
            .iter()
            .any(|word| BEGINNINGS.iter().any(|name| word.starts_with(name)) || WORDS.iter().any(|name| word == name))
}

#[test]
fn engine_names_are_found_in_every_spelling() {
    for yes in [
        "postgresql",
        "use postgres::Driver;",
        "OldPostgresDriver",
        "MySql",
        "a MySQL server",
        "REDIS",
        "redis-server",
        "libpq pg_rewind",
    ] {
        assert!(names_an_engine(yes), "{yes:?} was overlooked");
    }
    for no in ["redistribute", "rediscovered", "rehydrate", "the engine", "page", "upgrade"] {
        assert!(!names_an_engine(no), "{no:?} is no engine");
    }
}

#[test]
fn engines_are_named_only_in_their_folders() {
    let mut found = Vec::new();
    for file in files() {
        let shared =
            ["coordinator/src/", "common/src/", "proto/regent/", "proto/src/"].iter().any(|f| file.path.starts_with(f));
        let agent = file.path.starts_with("agent/src/");
        // agent/src/engine/NAME/..., where NAME is not a file of the interface itself.
        let own_folder = file
            .path
            .strip_prefix("agent/src/engine/")
            .is_some_and(|rest| rest.split_once('/').is_some_and(|(folder, _)| names_an_engine(folder)));
        if !(shared || agent) || own_folder {
            continue;
        }
        for (index, line) in file.text.lines().enumerate() {
            // The registry: `mod NAME;` and the list of factories.
            let registry = file.path == "agent/src/engine/mod.rs"
                && (line.contains("const ENGINES")
                    || line.trim_start().starts_with("mod ")
                    || line.trim_start().starts_with("pub mod ")
                    || line.trim_start().starts_with('&'));
            if names_an_engine(line) && !registry {
                found.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    no_complaints(
        "an engine is named only in agent/src/engine/NAME/ and in the registry line of agent/src/engine/mod.rs",
        &found,
    );
}

#[test]
fn no_registry_is_named() {
    // Put together here, so that this file does not accuse itself. Cargo.lock is cargo's own.
    let hosts: Vec<String> = [
        ["crates", "io"],
        ["pypi", "org"],
        ["pythonhosted", "org"],
        ["deb.debian", "org"],
        ["postgresql", "org"],
        ["docker", "io"],
        ["ghcr", "io"],
        ["quay", "io"],
        ["npmjs", "org"],
        ["npmjs", "com"],
        ["ubuntu", "com"],
        ["sh.rustup", "rs"],
    ]
    .iter()
    .map(|parts| parts.join("."))
    .collect();
    let mut found = Vec::new();
    for file in files().into_iter().filter(|file| file.path != "Cargo.lock") {
        for (index, line) in file.text.lines().enumerate() {
            if hosts.iter().any(|host| line.contains(host.as_str())) {
                found.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    no_complaints("packages come from wherever the machine is told to get them: no host is named here", &found);
}
