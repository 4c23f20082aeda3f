//! The layout: names at the top, and who depends on whom.

use std::{collections::BTreeSet, fs};

use super::{NOT_OURS, no_complaints, root};

const TOP: [&str; 16] = [
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "agent",
    "clippy.toml",
    "common",
    "coordinator",
    "deny.toml",
    "deploy",
    "proto",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
];

/// Crate, folder, and the crates of this workspace that it may depend on.
const MAY_DEPEND_ON: [(&str, &[&str]); 6] = [
    ("proto", &[]),
    ("common", &["regent-proto"]),
    ("agent", &["regent-common", "regent-proto"]),
    ("coordinator", &["regent-common", "regent-proto"]),
    ("coordinator/ctl", &["regent-common", "regent-proto"]),
    ("tests", &["regent-agent", "regent-common", "regent-coordinator", "regent-proto", "regentctl"]),
];

#[test]
fn the_top_level_is_as_designed() {
    let here: BTreeSet<String> =
        fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let strange: Vec<_> = here
        .iter()
        .filter(|name| !TOP.contains(&name.as_str()) && !NOT_OURS.contains(&name.as_str()))
        .cloned()
        .collect();
    no_complaints("names at the top are fixed; not in the list:", &strange);
    let missing: Vec<_> = TOP.iter().filter(|name| !here.contains(**name)).map(ToString::to_string).collect();
    no_complaints("names at the top are fixed; missing:", &missing);
}

#[test]
fn dependencies_run_one_way() {
    let manifest: toml::Table = toml::from_str(&fs::read_to_string(root().join("Cargo.toml")).unwrap()).unwrap();
    let members: Vec<_> =
        manifest["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(members, MAY_DEPEND_ON.map(|(folder, _)| folder), "a new crate has to be placed in this table");
    let mut wrong = Vec::new();
    for (folder, allowed) in MAY_DEPEND_ON {
        let manifest: toml::Table =
            toml::from_str(&fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap()).unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            let ours = table.keys().filter(|name| name.starts_with("regent"));
            wrong.extend(
                ours.filter(|name| !allowed.contains(&name.as_str())).map(|name| format!("{folder} depends on {name}")),
            );
        }
    }
    no_complaints("dependencies run proto -> common -> {agent, coordinator} -> tests", &wrong);
}

/// Features of regent-common that break rules or repeat ids. They are for the simulation.
const FOR_TESTS_ALONE: [&str; 2] = ["mutations", "simulation"];

#[test]
fn no_program_is_built_with_what_is_for_tests_alone() {
    let mut wrong = Vec::new();
    let mut somebody = false;
    for folder in MAY_DEPEND_ON.map(|(folder, _)| folder).iter().chain(&["."]) {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        let defaults = manifest.get("features").and_then(|features| features.get("default"));
        if *folder == "common" && defaults.is_some() {
            wrong.push(format!("{folder} has features by default"));
        }
        let asks = |table: Option<&toml::Value>| {
            let asked = table.and_then(|table| table.get("regent-common")).map(ToString::to_string).unwrap_or_default();
            FOR_TESTS_ALONE.iter().any(|feature| asked.contains(feature))
        };
        let shared = manifest.get("workspace").and_then(|workspace| workspace.get("dependencies"));
        if asks(manifest.get("dependencies")) || asks(manifest.get("build-dependencies")) || asks(shared) {
            wrong.push(format!("{folder} asks for one of {FOR_TESTS_ALONE:?} in what it is built with"));
        }
        let forwarded = manifest.get("features").map(ToString::to_string).unwrap_or_default();
        if forwarded.contains("regent-common/") {
            wrong.push(format!("a feature of {folder} hands on one of regent-common"));
        }
        somebody |= asks(manifest.get("dev-dependencies"));
    }
    assert!(somebody, "nobody asks for {FOR_TESTS_ALONE:?}: does this test look at the right names?");
    no_complaints("what breaks rules on purpose is for tests alone", &wrong);
}
