//! Writes the manual pages and shell completions of `regent-agent` into a folder, for its package.

use clap::CommandFactory;
use regent_agent::commands::CommandLine;
use regent_common::documents;

fn main() -> std::io::Result<()> {
    documents::write_as_asked(CommandLine::command())
}
