//! `regent-coordinator restore`: makes this machine the coordinator that a backup is of.
//!
//! What the backup does not know, because it is older than the clusters, the agents tell when they are heard again: until then
//! nothing is promoted (rule T4).
//!
//! **Invariant:** an installation that is there is never written over; the file `initialized` is made last, so that a run that
//! is broken off is simply done again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    backup::CONFIGURATION,
    folder::{self, FileError, failed},
};
use crate::{config::Config, pki::StateDirectory};

/// The command line of `restore`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder that `backup` has made.
    #[arg(long, value_name = "FOLDER")]
    from: PathBuf,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is an installation.
    #[error("{} holds an installation: nothing was changed; move the folder away first", .0.display())]
    Occupied(PathBuf),
    /// There is no backup.
    #[error("{} is no backup of a coordinator: it lacks {lacks}; nothing was changed", path.display())]
    NoBackup {
        /// Where.
        path: PathBuf,
        /// What is missing.
        lacks: String,
    },
    /// A file or a folder.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Carries out `restore` as asked on the command line.
#[expect(clippy::print_stdout, reason = "the result of a verb")]
pub fn run(arguments: &Arguments, config_path: &Path) -> anyhow::Result<()> {
    let saved = arguments.from.join(CONFIGURATION);
    let configuration = [config_path, &saved].into_iter().find(|path| path.exists());
    let config: Config = configuration.map(regent_common::config::load).transpose()?.unwrap_or_default();
    restore(&arguments.from, &config.state_dir, config_path)?;
    println!(
        "The coordinator is restored in {}.\nMake sure that no other one runs with this backup, then start it: `systemctl start \
         regent-coordinator`.",
        config.state_dir.display()
    );
    Ok(())
}

/// Puts the backup into `state_dir`, and its configuration in place where there is none.
pub(super) fn restore(from: &Path, state_dir: &Path, config_path: &Path) -> Result<(), RestoreError> {
    let (backup, state) = (StateDirectory(from.to_owned()), StateDirectory(state_dir.to_owned()));
    let needed = [backup.initialized(), backup.store(), backup.authority(), backup.secrets_key(), backup.identity()];
    if let Some(lacking) = needed.iter().find(|path| !path.exists()) {
        let lacks = lacking.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(RestoreError::NoBackup { path: from.to_owned(), lacks });
    }
    let holds_store = state.initialized().exists() || state.store().exists() && !is_unfinished(&state)?;
    if holds_store {
        return Err(RestoreError::Occupied(state_dir.to_owned()));
    }
    folder::make_private(state_dir)?;
    let mark = unfinished(&state);
    fs::write(&mark, "").map_err(failed("write", &mark))?;
    folder::sync(state_dir)?;
    folder::copy(from, state_dir, &|name| matches!(name, CONFIGURATION | "initialized"))?;
    let saved = from.join(CONFIGURATION);
    if saved.exists() && !config_path.exists() {
        if let Some(parent) = config_path.parent() {
            fs::create_dir_all(parent).map_err(failed("make", parent))?;
        }
        fs::copy(&saved, config_path).map_err(failed("write", config_path))?;
    }
    let done = state.initialized();
    fs::copy(backup.initialized(), &done).map_err(failed("write", &done))?;
    fs::remove_file(&mark).map_err(failed("remove", &mark))?;
    folder::sync(&done)?;
    folder::sync(state_dir)?;
    Ok(folder::give_to_owner(state_dir)?)
}

/// Stands while a restore is under way, so that one that was broken off is told from an installation that lost a file.
fn unfinished(state: &StateDirectory) -> PathBuf {
    state.0.join("restoring")
}

fn is_unfinished(state: &StateDirectory) -> Result<bool, FileError> {
    let mark = unfinished(state);
    match mark.try_exists() {
        Ok(found) => Ok(found),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(failed("look for", &mark)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use regent_common::{identity::IdentityDirectory, tls::ReloadingIdentity};

    use super::*;
    use crate::{
        commands::{
            backup::{BackupError, back_up},
            init::{InitOptions, init},
        },
        store::{Store, Transaction, keys, sqlite::SqliteStore},
    };

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        async fn installed() -> Self {
            let fixture = Self(tempfile::tempdir().unwrap());
            init(InitOptions {
                state_dir: fixture.at("state"),
                config_path: fixture.at("coordinator.toml"),
                advertise: vec!["coordinator".to_owned()],
                admin_dir: None,
                admin: "admin".parse().unwrap(),
                certificate_life: std::time::Duration::from_secs(3600),
            })
            .await
            .unwrap();
            fixture
        }
    }

    #[tokio::test]
    async fn a_backup_of_a_coordinator_that_runs_is_the_coordinator() {
        let fixture = Fixture::installed().await;
        let (state, config, copy) = (fixture.at("state"), fixture.at("coordinator.toml"), fixture.at("copy"));
        let store = SqliteStore::open(&StateDirectory(state.clone()).store()).unwrap();
        let key = keys::user(&"mark".parse().unwrap());
        store.commit(Transaction::default().put(key.clone(), b"there".to_vec())).await.unwrap();
        back_up(&state, &config, &copy).unwrap();
        drop(store);
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(back_up(&state, &config, &copy), Err(BackupError::Exists(_))));

        let (new_state, new_config) = (fixture.at("new/state"), fixture.at("new/coordinator.toml"));
        restore(&copy, &new_state, &new_config).unwrap();
        let restored = StateDirectory(new_state.clone());
        let store = SqliteStore::open(&restored.store()).unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, b"there");
        for path in
            [restored.secrets_key(), restored.authority(), restored.identity(), restored.admin(), new_config.clone()]
        {
            assert!(path.exists(), "{}", path.display());
        }
        for directory in [restored.identity(), restored.admin()] {
            ReloadingIdentity::open(&IdentityDirectory::new(directory)).unwrap();
        }
        let again = restore(&copy, &new_state, &new_config);
        assert!(matches!(again, Err(RestoreError::Occupied(_))), "{again:?}");
    }

    #[tokio::test]
    async fn what_is_no_backup_changes_nothing() {
        let fixture = Fixture::installed().await;
        fs::create_dir(fixture.at("empty")).unwrap();
        let refused = restore(&fixture.at("empty"), &fixture.at("new"), &fixture.at("new.toml"));
        assert!(matches!(refused, Err(RestoreError::NoBackup { .. })), "{refused:?}");
        assert!(!fixture.at("new").exists());
        let refused = back_up(&fixture.at("empty"), &fixture.at("none.toml"), &fixture.at("copy"));
        assert!(matches!(refused, Err(BackupError::NoInstallation(_))), "{refused:?}");
        assert!(!fixture.at("copy").exists());
    }

    #[tokio::test]
    async fn a_restore_that_was_broken_off_is_done_again() {
        let fixture = Fixture::installed().await;
        let (copy, state) = (fixture.at("copy"), fixture.at("new"));
        back_up(&fixture.at("state"), &fixture.at("coordinator.toml"), &copy).unwrap();
        fs::create_dir(&state).unwrap();
        fs::write(state.join("restoring"), "").unwrap();
        fs::write(state.join("store.db"), "half").unwrap();
        restore(&copy, &state, &fixture.at("new.toml")).unwrap();
        assert!(SqliteStore::open(&StateDirectory(state.clone()).store()).is_ok());
        assert!(!state.join("restoring").exists());
    }
}
