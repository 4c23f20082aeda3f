//! `completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{cli::Cli, connection::Context, failure::Failure};

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

#[expect(clippy::unused_async, reason = "all verbs have one shape")]
pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "regentctl", &mut script);
    context.output.text(&String::from_utf8_lossy(&script));
    Ok(())
}
