//! Writes the manual pages and shell completions of `regent-coordinator` into a folder, for its package.

use clap::CommandFactory;
use regent_common::documents;
use regent_coordinator::commands::Arguments;

fn main() -> std::io::Result<()> {
    documents::write_as_asked(Arguments::command())
}
