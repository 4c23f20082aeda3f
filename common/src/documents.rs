//! Manual pages and shell completions, made from the definition of a command line when packages are built.
//!
//! Each program has an example `documents` that calls [`write`]; no program carries this code.

use std::{fs, io, path::Path};

use clap::Command;
use clap_complete::Shell;

/// Shells whose completions packages bring.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes a manual page for the command and one for each of its verbs into `FOLDER/man`, and its completions into
/// `FOLDER/completions`.
pub fn write(command: Command, folder: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    for made in [&pages, &completions] {
        fs::create_dir_all(made)?;
    }
    let name = command.get_name().to_owned();
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut command, &name, &completions)?;
    }
    clap_mangen::generate_to(command, &pages)
}

/// Writes them into the folder that the calling program got as its only argument.
pub fn write_as_asked(command: Command) -> io::Result<()> {
    match std::env::args_os().nth(1) {
        Some(folder) => write(command, Path::new(&folder)),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "name the folder to write into")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_its_page_and_each_shell_its_completions() {
        let folder = tempfile::tempdir().expect("a folder");
        let verb = Command::new("serve").about("Serves").subcommand(Command::new("now"));
        write(Command::new("program").about("Does things").subcommand(verb), folder.path()).expect("written");
        for file in ["man/program.1", "man/program-serve.1", "man/program-serve-now.1"] {
            assert!(folder.path().join(file).is_file(), "no {file}");
        }
        for file in ["program.bash", "_program", "program.fish"] {
            assert!(folder.path().join("completions").join(file).is_file(), "no {file}");
        }
    }
}
