//! `regent-coordinator backup`: a copy of all that makes this coordinator, also while it runs.
//!
//! Whoever has such a copy can be the coordinator: it holds the certificate authority and the key of all stored secrets. It is
//! whole or not there: it is made beside its place and renamed when it is on disk.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::folder::{self, FileError, failed};
use crate::{
    config::Config,
    pki::StateDirectory,
    store::{StoreError, sqlite},
};

/// The configuration's name in a backup.
pub(super) const CONFIGURATION: &str = "coordinator.toml";

/// The command line of `backup`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder that is made for the copy; must not be there yet.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
}

/// Why there is no backup; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is something.
    #[error("{} is there already: nothing was changed; name a folder that is not there yet", .0.display())]
    Exists(PathBuf),
    /// There is nothing to be copied.
    #[error("there is no installation in {}: run `regent-coordinator init`, or name its configuration with --config", .0.display())]
    NoInstallation(PathBuf),
    /// A file or a folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Carries out `backup` as asked on the command line.
#[expect(clippy::print_stdout, reason = "the result of a verb")]
pub fn run(arguments: &Arguments, config_path: &Path) -> anyhow::Result<()> {
    let config: Config =
        if config_path.exists() { regent_common::config::load(config_path)? } else { Config::default() };
    back_up(&config.state_dir, config_path, &arguments.to)?;
    println!(
        "The coordinator in {} is copied to {}.\nIt holds the certificate authority and all secrets: keep it as safe as the machine itself.",
        config.state_dir.display(),
        arguments.to.display()
    );
    Ok(())
}

/// Copies the installation in `state_dir`, and its configuration, to a new folder.
pub(super) fn back_up(state_dir: &Path, config_path: &Path, to: &Path) -> Result<(), BackupError> {
    let state = StateDirectory(state_dir.to_owned());
    if !state.initialized().exists() {
        return Err(BackupError::NoInstallation(state_dir.to_owned()));
    }
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let aside = beside(to);
    if aside.exists() {
        // Of a run that was broken off.
        fs::remove_dir_all(&aside).map_err(failed("remove", &aside))?;
    }
    let store = state.store();
    let is_store = |name: &str| name.starts_with("store.");
    folder::copy(state_dir, &aside, &is_store)?;
    if config_path.exists() {
        let copied = aside.join(CONFIGURATION);
        fs::copy(config_path, &copied).map_err(failed("copy", config_path))?;
        folder::sync(&copied)?;
    }
    // Last: certificates that are in the folders are then in the store as well.
    let copied = StateDirectory(aside.clone()).store();
    sqlite::back_up(&store, &copied)?;
    // Looking into the store may have made files beside it.
    folder::give_to_owner(state_dir)?;
    folder::sync(&copied)?;
    folder::sync(&aside)?;
    fs::rename(&aside, to).map_err(failed("put in place", to))?;
    Ok(folder::sync(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")))?)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}
