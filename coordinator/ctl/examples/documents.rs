//! Writes the manual pages and shell completions of `regentctl` into a folder, for its package.

use clap::CommandFactory;
use regent_common::documents;
use regentctl::cli::Cli;

fn main() -> std::io::Result<()> {
    documents::write_as_asked(Cli::command())
}
