//! What machines start from: a root file system, with or without an engine, and the packages of Regent that are installed on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::{cluster::run, process::program_folder};

/// What a machine has when it is switched on for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// What an installation of Debian brings.
    Empty,
    /// The packages of the engine and of its clients as well, with no instance of it.
    WithEngine,
}

/// Folder of what the images are made of, built if this is the first time.
fn folder() -> Result<PathBuf> {
    Ok(run(Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/image")))?.into())
}

// === impl Image ===

impl Image {
    /// The folders of its layers, the upper one first.
    pub(super) fn layers(self) -> Result<Vec<PathBuf>> {
        let folder = folder()?;
        let names: &[&str] = match self {
            Self::Empty => &["root"],
            Self::WithEngine => &["offered", "root"],
        };
        Ok(names.iter().map(|name| folder.join(name)).collect())
    }
}

/// Folder of Regent's packages, made of the programs of this workspace if `tests/run` has not done so already.
pub(super) fn packages() -> Result<PathBuf> {
    let folder = program_folder()?.join("packages");
    if std::env::var_os("REGENT_TEST_BUILT").is_none() {
        // Those of another version would be installed as well.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let mut make = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/package"));
        make.args(["--profile", "dev", "--out"]).arg(&folder);
        run(make)?;
    }
    ensure!(folder.exists(), "{0} does not exist: deploy/package --profile dev --out {0}", folder.display());
    Ok(folder)
}
