//! The identities of all simulations of this process, made once: making keys is slow, and nothing depends on which they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use rcgen::KeyPair;
use regent_common::{
    clock::wall_now,
    identity::{Identity, IdentityDirectory, Principal},
    tls::ReloadingIdentity,
};
use regent_coordinator::{
    pki::{Authority, Subject},
    secrets::Secrets,
};

use super::world::MOST_NODES;

/// Id of the installation.
const INSTALLATION: &str = "simulation";
/// Longer than any run.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Everybody's identity.
pub(crate) struct Certificates {
    pub(crate) authority: Arc<Authority>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) coordinator: ReloadingIdentity,
    pub(crate) administrator: ReloadingIdentity,
    pub(crate) nodes: BTreeMap<String, ReloadingIdentity>,
    /// The files; they are read again at every renewal, so that they have to stay.
    _folder: tempfile::TempDir,
}

static ALL: LazyLock<Certificates> = LazyLock::new(Certificates::make);

// === impl Certificates ===

impl Certificates {
    /// Those of this process.
    pub(crate) fn all() -> &'static Self {
        &ALL
    }

    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::create(&folder.path().join("ca"), INSTALLATION, wall_now()).unwrap());
        let secrets = Arc::new(Secrets::create(&folder.path().join("secrets.key")).unwrap());
        let issue = |name: &str, principal: Principal| {
            let directory = folder.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            let directory = IdentityDirectory::new(directory);
            let key = KeyPair::generate().unwrap();
            let identity = Identity { coordinator_id: INSTALLATION.to_owned(), principal };
            let subject = Subject { identity, hosts: BTreeSet::new() };
            let issued = authority.issue(&subject, &key, LIFE, wall_now()).unwrap();
            directory.store(&issued.chain_pem, &key.serialize_pem().into(), authority.pem()).unwrap();
            ReloadingIdentity::open(&directory).unwrap()
        };
        let coordinator = issue("coordinator", Principal::Coordinator("coordinator".to_owned()));
        let administrator = issue("administrator", Principal::User("admin".parse().unwrap()));
        let nodes = (1..=MOST_NODES).map(|number| {
            let name = format!("n{number}");
            let identity = issue(&name, Principal::Node(name.parse().unwrap()));
            (name, identity)
        });
        let nodes = nodes.collect();
        Self { authority, secrets, coordinator, administrator, nodes, _folder: folder }
    }
}
