//! What the README and the runbooks tell a person to type, taken from their text and typed on the machines.
//!
//! A line that begins with `# ` says where what follows is typed: it names the coordinator, each database machine, or the node that
//! is meant.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use regent_tests::vm::{PACKAGES, System};

/// Where commands are typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Coordinator,
    /// On all nodes.
    EachNode,
    /// On the node that is meant.
    Node,
}

/// The lines that a person types by a section of a document, without what is said of them.
pub(crate) fn section(document: &str, heading: &str) -> Vec<(Where, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.lines().position(|line| line.trim_start_matches('#').trim() == heading && line.starts_with('#'));
    let begin = begin.unwrap_or_else(|| panic!("{document} has no section {heading:?}"));
    let lines = text.lines().skip(begin + 1).take_while(|line| !line.starts_with("## "));
    let (mut found, mut typed, mut place) = (Vec::new(), false, None);
    for line in lines {
        if line.starts_with("```") {
            (typed, place) = (!typed, None);
        } else if typed {
            match line.strip_prefix("# ") {
                Some(said) => place = Some(place_of(said)),
                None if line.trim().is_empty() => {}
                None => {
                    let command = line.split_once(" # ").map_or(line, |(command, _)| command).trim().to_owned();
                    found.push((place.expect("a block begins with where it is typed"), command));
                }
            }
        }
    }
    assert!(!found.is_empty(), "{heading:?} of {document} tells nobody to type anything");
    found
}

fn place_of(said: &str) -> Where {
    match said {
        said if said.contains("each database machine") => Where::EachNode,
        said if said.contains("coordinator") => Where::Coordinator,
        "node" => Where::Node,
        _ => panic!("where is this typed: {said}"),
    }
}

/// Types a line in the folder to which the packages were carried, and says yes to every question; what was written.
pub(crate) fn type_in(system: &System, line: &str) -> Result<String> {
    let mut command: Command = system.command("bash")?;
    command.args(["-euo", "pipefail", "-c", &format!("cd {PACKAGES} && {line}")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Few commands ask, and one that asks nothing may have ended.
    drop(child.stdin.take().context("stdin is a pipe")?.write_all(b"y\n"));
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(output.status.success(), "{line} on {}: {}\n{}", system.name(), text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}
