//! What an instance was before it was adopted, in `ROOT/adopted`, and how its files become ours and go back.
//!
//! The data directory and `ROOT/data` change places ([`foreign`]). Its configuration becomes one that no server takes, so that whoever
//! starts it by itself (its unit, at a boot or when it ends) starts nothing: what that started would be a primary without a lease.
//!
//! **Invariant:** what was found is noted and flushed before the first change, and every change can be made, and taken back, again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use regent_common::topology::Endpoint;
use serde::{Deserialize, Serialize};

use super::super::position;
use crate::engine::{
    DriverError,
    foreign::{self, replace_aside},
    layout::Layout,
};

/// What no server takes as its configuration, and says when it is asked to.
const NO_START: &str = "# Written by regent-agent, which alone starts this instance. What this file was stands beside it, as *.before-regent.\n\
                        only-regent-agent-starts-this-instance yes\n";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Found {
    /// Where the data was.
    pub(super) data: PathBuf,
    pub(super) config_file: PathBuf,
    /// Where it is reached until it is started by us.
    pub(super) socket: PathBuf,
    /// Its process.
    pub(super) pid: u32,
    /// Whom it followed; `None` for a primary.
    pub(super) upstream: Option<Endpoint>,
    /// All of its settings.
    pub(super) settings: BTreeMap<String, String>,
    /// Its users, as it listed them.
    pub(super) users: Vec<String>,
}

// === impl Found ===

impl Found {
    /// What was noted, if something was.
    pub(in super::super) fn load(layout: &Layout) -> Result<Option<Self>, DriverError> {
        foreign::noted(layout)
    }

    pub(super) fn store(&self, layout: &Layout) -> Result<(), DriverError> {
        foreign::note(layout, self)
    }

    /// The data becomes the member's, and nobody but us starts the instance from here on.
    pub(super) fn move_in(&self, layout: &Layout) -> Result<(), DriverError> {
        replace_aside(&self.config_file, |_| NO_START.to_owned())?;
        foreign::move_in(&self.data, layout)?;
        let pid_file = layout.server_pid();
        // An engine that we have started since wrote it itself.
        if pid_file.exists() {
            Ok(())
        } else {
            layout.write_for_engine(&pid_file, format!("{}\n", self.pid).as_bytes())
        }
    }

    /// Everything is where it was, and nothing of ours is in it.
    pub(super) fn move_out(&self, layout: &Layout) -> Result<(), DriverError> {
        if foreign::is_directory(&layout.data()) {
            for ours in [layout.server_pid(), position::file_in(&layout.data())] {
                layout.unmark(&ours)?;
            }
        }
        foreign::move_out(&self.data, layout)?;
        self.lead_back()
    }

    /// The instance's own configuration is as it was.
    fn lead_back(&self) -> Result<(), DriverError> {
        foreign::put_back(&self.config_file)
    }

    /// The member is given up with its data: nothing of it is left where the instance was.
    pub(in super::super) fn forget(&self, layout: &Layout) -> Result<(), DriverError> {
        self.lead_back()?;
        foreign::forget_old_place(&self.data, layout)
    }
}

/// Whether the configuration file is one that no server takes.
pub(super) fn starts_nothing(config_file: &Path) -> bool {
    fs::read_to_string(config_file).is_ok_and(|text| text == NO_START)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use regent_common::ids::ClusterName;

    use super::{super::super::SHAPE, *};
    use crate::engine::layout::EngineUser;

    #[test]
    fn an_instance_moves_in_and_out_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let [etc, data, root] = ["etc", "main", "root"].map(|name| folder.path().join(name));
        // As a member has it that was configured.
        for path in [&etc, &data, &root.join("data")] {
            fs::create_dir_all(path).unwrap();
        }
        let config_file = etc.join("redis.conf");
        fs::write(&config_file, "port 1\n").unwrap();
        fs::write(data.join("dump.rdb"), "data").unwrap();
        let inode = fs::metadata(&config_file).unwrap().ino();
        let user =
            EngineUser { name: None, uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
        let cluster = ClusterName::new("db").unwrap();
        let layout = Layout::new(root, user, cluster.clone(), cluster.member(1), &SHAPE);
        let found = Found {
            data: data.clone(),
            config_file: config_file.clone(),
            socket: data.join("socket"),
            pid: 7,
            upstream: None,
            settings: BTreeMap::from([("save".to_owned(), String::new())]),
            users: vec!["user default on nopass ~* &* +@all".to_owned()],
        };
        assert_eq!(Found::load(&layout).unwrap(), None);
        found.store(&layout).unwrap();
        assert_eq!(Found::load(&layout).unwrap().as_ref(), Some(&found));
        for _ in 0..2 {
            found.move_in(&layout).unwrap();
            assert!(starts_nothing(&config_file));
            assert_eq!(fs::read_to_string(layout.server_pid()).unwrap(), "7\n");
            assert_eq!(fs::read_link(&data).unwrap(), layout.data());
        }
        fs::write(position::file_in(&layout.data()), "{}").unwrap();
        for _ in 0..2 {
            found.move_out(&layout).unwrap();
            assert_eq!(fs::read_to_string(&config_file).unwrap(), "port 1\n");
            assert_eq!(fs::metadata(&config_file).unwrap().ino(), inode, "it is the file that it was");
            assert_eq!(fs::read_dir(&etc).unwrap().count(), 1);
            let left: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["dump.rdb"]);
            assert!(fs::symlink_metadata(layout.data()).is_err());
        }
    }
}
