//! Golden files of the help of every verb: what is typed is an interface, and changes to it are seen in review.

use clap::{Command, CommandFactory};
use regentctl::cli::Cli;

/// Every verb with its full name, in the order of the help.
fn verbs(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
    found.push((path.to_owned(), command.clone()));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        verbs(below, &format!("{path} {}", below.get_name()), found);
    }
}

#[test]
fn the_help_of_every_verb_is_as_recorded() {
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut found = Vec::new();
    verbs(&root, "regentctl", &mut found);
    assert!(found.len() > 25, "the tree of verbs was not walked: {}", found.len());
    for (path, mut command) in found {
        let help = command.render_long_help().to_string();
        let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        insta::assert_snapshot!(path.replace(' ', "_"), help);
    }
}

#[test]
fn the_tree_is_sound() {
    Cli::command().debug_assert();
}
