//! Where an adopted instance's files were, how they become ours, and how they go back.
//!
//! The data directory and `ROOT/data` change places ([`foreign`]). Of the instance's own configuration the
//! access rules become links to ours, and the main file includes ours at its end, so that what is in force is what every member has,
//! as far as the engine takes it without a restart; our next start no longer reads these files.
//!
//! **Invariant:** what was found is noted and flushed before the first change, and every change can be made, and taken back, again.

use std::path::PathBuf;

use regent_common::topology::Endpoint;
use serde::{Deserialize, Serialize};

use super::super::layout::Layout;
use crate::engine::{
    DriverError,
    foreign::{self, aside, link_aside, replace_aside},
};

/// Debian's word for who may start an instance, beside its configuration (`pg_ctlcluster(1)`).
const START_CONF: &str = "start.conf";

/// What was found, in `ROOT/adopted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Found {
    /// Where the data was.
    pub(super) data: PathBuf,
    pub(super) config_file: PathBuf,
    pub(super) hba_file: PathBuf,
    pub(super) ident_file: PathBuf,
    /// Text of `postgresql.auto.conf`, which says whom a replica follows.
    pub(super) auto_conf: Option<String>,
    /// The slot from which a replica streamed.
    pub(super) slot: Option<OldSlot>,
}

/// A replica's slot on its upstream, from before it was a member: it has another one since, and this one would hold the log back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct OldSlot {
    pub(super) name: String,
    pub(super) upstream: Endpoint,
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

    /// The data becomes the member's.
    pub(super) fn move_in(&self, layout: &Layout) -> Result<(), DriverError> {
        foreign::move_in(&self.data, layout)
    }

    /// The data goes back to where it was.
    pub(super) fn move_out(&self, layout: &Layout) -> Result<(), DriverError> {
        foreign::move_out(&self.data, layout)
    }

    /// The instance's own configuration leads to ours, from its next reload on, and nobody but us starts it.
    pub(super) fn lead_to_ours(&self, layout: &Layout) -> Result<(), DriverError> {
        link_aside(&self.hba_file, &layout.hba_conf())?;
        link_aside(&self.ident_file, &layout.ident_conf())?;
        replace_aside(&self.config_file, |text| {
            format!(
                "{text}\n# Added by regent-agent: what this cluster's members have. Change the settings of the cluster.\n\
                 include_if_exists '{}'\n",
                layout.main_conf().display()
            )
        })?;
        match self.start_conf() {
            Some(path) => replace_aside(&path, |_| {
                "# Written by regent-agent, which alone starts this instance.\ndisabled\n".to_owned()
            }),
            None => Ok(()),
        }
    }

    /// The instance's own configuration is as it was.
    pub(in super::super) fn lead_back(&self) -> Result<(), DriverError> {
        let files = [self.hba_file.clone(), self.ident_file.clone(), self.config_file.clone()];
        files.into_iter().chain(self.start_conf()).try_for_each(|path| foreign::put_back(&path))
    }

    /// What would lead to data that is no more goes.
    pub(in super::super) fn forget_old_place(&self, layout: &Layout) -> Result<(), DriverError> {
        foreign::forget_old_place(&self.data, layout)
    }

    fn start_conf(&self) -> Option<PathBuf> {
        let path = self.config_file.with_file_name(START_CONF);
        (path.exists() || aside(&path).exists()).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use regent_common::ids::ClusterName;

    use super::{
        super::super::layout::{EngineUser, SHAPE},
        *,
    };
    use crate::engine::foreign::is_directory;

    struct Site {
        folder: tempfile::TempDir,
        layout: Layout,
        found: Found,
    }

    /// An instance whose configuration is outside its data, and a member's folder.
    fn site() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let (etc, data, root) = ["etc", "main", "root"].map(|name| folder.path().join(name)).into();
        for path in [&etc, &data, &root.join("conf")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "start.conf"] {
            fs::write(etc.join(name), format!("the {name} of before\n")).unwrap();
        }
        let user = nix::unistd::geteuid().as_raw();
        let user = EngineUser { name: None, uid: user, gid: nix::unistd::getegid().as_raw() };
        let cluster = ClusterName::new("db").unwrap();
        let layout = Layout::new(root, user, cluster.clone(), cluster.member(1), &SHAPE);
        let found = Found {
            data,
            config_file: etc.join("postgresql.conf"),
            hba_file: etc.join("pg_hba.conf"),
            ident_file: etc.join("pg_ident.conf"),
            auto_conf: None,
            slot: None,
        };
        Site { folder, layout, found }
    }

    /// Names and texts of everything in a folder.
    fn listing(folder: &Path) -> Vec<(PathBuf, Option<String>)> {
        let mut all: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read_to_string(&path).ok()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_data_moves_in_and_out_and_its_old_place_leads_to_it() {
        let Site { folder: _folder, layout, found } = site();
        for _ in 0..2 {
            found.move_in(&layout).unwrap();
            assert!(is_directory(&layout.data()));
            assert_eq!(fs::read_to_string(found.data.join("PG_VERSION")).unwrap(), "15\n");
        }
        for _ in 0..2 {
            found.move_out(&layout).unwrap();
            assert!(is_directory(&found.data) && fs::symlink_metadata(layout.data()).is_err());
        }
        found.move_in(&layout).unwrap();
        assert_eq!(fs::read_to_string(layout.data().join("PG_VERSION")).unwrap(), "15\n");
    }

    #[test]
    fn what_an_attempt_left_half_way_is_no_hindrance() {
        let Site { folder: _folder, layout, found } = site();
        symlink(layout.data(), layout.data()).unwrap();
        found.move_in(&layout).unwrap();
        assert!(is_directory(&layout.data()));
    }

    #[test]
    fn the_configuration_leads_to_ours_and_back_byte_for_byte() {
        let Site { folder, layout, found } = site();
        let etc = folder.path().join("etc");
        let before = listing(&etc);
        for _ in 0..2 {
            found.lead_to_ours(&layout).unwrap();
        }
        assert_eq!(fs::read_link(&found.hba_file).unwrap(), layout.hba_conf());
        let main = fs::read_to_string(&found.config_file).unwrap();
        assert!(main.starts_with("the postgresql.conf of before\n"), "{main}");
        assert_eq!(main.matches("include_if_exists").count(), 1, "{main}");
        assert!(fs::read_to_string(etc.join("start.conf")).unwrap().ends_with("disabled\n"));
        for _ in 0..2 {
            found.lead_back().unwrap();
        }
        assert_eq!(listing(&etc), before);
    }

    #[test]
    fn what_was_found_is_noted() {
        let Site { folder: _folder, layout, found } = site();
        assert_eq!(Found::load(&layout).unwrap(), None);
        found.store(&layout).unwrap();
        assert_eq!(Found::load(&layout).unwrap(), Some(found));
    }
}
