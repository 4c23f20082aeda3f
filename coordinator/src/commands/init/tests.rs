//! Whole runs in a temporary folder.

use std::os::unix::fs::{MetadataExt as _, lchown};

use regent_common::{tls::ReloadingIdentity, transport::Revocations};

use super::*;

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn options(&self) -> InitOptions {
        InitOptions {
            state_dir: self.0.path().join("state"),
            config_path: self.0.path().join("etc/coordinator.toml"),
            advertise: vec!["regent.example".to_owned(), "10.0.0.1".to_owned()],
            admin_dir: None,
            admin: "admin".parse().unwrap(),
            certificate_life: Duration::from_secs(90 * 24 * 3600),
        }
    }

    fn state(&self) -> StateDirectory {
        StateDirectory(self.options().state_dir)
    }

    fn open(&self, path: PathBuf) -> ReloadingIdentity {
        ReloadingIdentity::open(&IdentityDirectory::new(path)).unwrap()
    }

    async fn records(&self) -> (Vec<UserRecord>, Vec<(String, CertificateRecord)>) {
        let store = SqliteStore::open(&self.state().store()).unwrap();
        let users = list_json::<UserRecord>(&store, keys::USERS).await.unwrap();
        let certificates = list_json::<CertificateRecord>(&store, keys::CERTIFICATES).await.unwrap();
        (
            users.into_iter().map(|(_, stored)| stored.value).collect(),
            certificates.into_iter().map(|(key, stored)| (key.last_part().to_owned(), stored.value)).collect(),
        )
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn an_installation_is_made_whole_and_only_once() {
    let fixture = Fixture::new();
    let report = init(fixture.options()).await.unwrap();
    let state = fixture.state();
    let (own, admin) = (fixture.open(state.identity()), fixture.open(state.admin()));
    assert_eq!(own.identity().coordinator_id, report.coordinator_id);
    assert!(matches!(own.identity().principal, Principal::Coordinator(_)));
    assert_eq!(admin.identity().to_string(), format!("regent://{}/user/admin", report.coordinator_id));
    for host in ["regent.example", "10.0.0.1", "localhost", "127.0.0.1", "::1"] {
        assert!(report.hosts.iter().any(|one| one == host), "{host} is missing");
    }
    assert_eq!((mode(&state.0), mode(&state.admin()), mode(&state.secrets_key())), (0o700, 0o700, 0o600));
    let (users, certificates) = fixture.records().await;
    assert_eq!((users.len(), users[0].role, users[0].serials.clone()), (1, UserRole::Admin, vec![admin.serial()]));
    assert_eq!(certificates.len(), 2);
    assert!(certificates.iter().all(|(_, record)| record.revoked_at.is_none()));

    let config: Config = load(&report.config_path).unwrap();
    assert_eq!((config.state_dir, config.advertise), (state.0.clone(), fixture.options().advertise));
    assert_eq!(config.certificate_life.0, fixture.options().certificate_life);
    assert!(report.config_written && report.notes.is_empty());
    assert!(output::text(&report).contains(&report.ca_fingerprint));

    let error = init(fixture.options()).await.unwrap_err();
    assert!(matches!(error, InitError::AlreadyInitialized { .. }));
    assert!(error.to_string().contains(&report.coordinator_id) && error.to_string().contains("identity"), "{error}");
    assert_eq!(fixture.open(state.identity()).serial(), own.serial());
}

#[tokio::test]
async fn a_broken_run_is_continued_with_the_same_authority() {
    let fixture = Fixture::new();
    let first = init(fixture.options()).await.unwrap();
    let state = fixture.state();
    // As after a crash before each of the steps, the last first.
    let mut gone = vec![state.initialized(), first.config_path.clone(), state.admin(), state.identity()];
    let (kept_key, serial) = (fs::read(state.secrets_key()).unwrap(), fixture.open(state.admin()).serial());
    for upto in 0..gone.len() {
        for path in &gone[..=upto] {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        let again = init(fixture.options()).await.unwrap();
        assert_eq!((&again.coordinator_id, &again.ca_fingerprint), (&first.coordinator_id, &first.ca_fingerprint));
        assert_eq!(fs::read(state.secrets_key()).unwrap(), kept_key);
        let (users, certificates) = fixture.records().await;
        let admin = fixture.open(state.admin()).serial();
        assert_eq!(users.iter().map(|user| user.serials.clone()).collect::<Vec<_>>(), [[admin.clone()]]);
        let good: BTreeSet<_> =
            certificates.iter().filter(|(_, record)| record.revoked_at.is_none()).map(|(key, _)| key.clone()).collect();
        assert_eq!(good, BTreeSet::from([admin, fixture.open(state.identity()).serial()]));
        let revoked =
            Revocations::new(certificates.into_iter().filter(|(_, c)| c.revoked_at.is_some()).map(|(k, _)| k));
        assert!(revoked.contains(&serial));
    }
    // Before the authority was made, nothing is to be kept.
    gone.extend([state.authority(), state.store()]);
    for path in gone {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
    assert_ne!(init(fixture.options()).await.unwrap().ca_fingerprint, first.ca_fingerprint);
}

#[tokio::test]
async fn what_is_there_of_others_is_left_alone() {
    let (one, two) = (Fixture::new(), Fixture::new());
    let first = init(one.options()).await.unwrap();
    let stolen = InitOptions { admin_dir: Some(first.admin_dir.clone()), ..two.options() };
    let error = init(stolen).await.unwrap_err();
    assert!(matches!(error, InitError::AdminDirectory { .. }), "{error}");
    assert_eq!(one.open(first.admin_dir).identity().coordinator_id, first.coordinator_id);

    let path = two.options().config_path;
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "certificate_life = \"48h\"\n").unwrap();
    let report = init(two.options()).await.unwrap();
    assert!(!report.config_written && report.notes.len() == 2, "{:?}", report.notes);
    assert_eq!(fs::read_to_string(&path).unwrap(), "certificate_life = \"48h\"\n");
}

#[tokio::test]
async fn bad_options_leave_nothing_behind() {
    let fixture = Fixture::new();
    let none = InitOptions { advertise: Vec::new(), ..fixture.options() };
    assert!(matches!(init(none).await, Err(InitError::NoHost)));
    let bad = InitOptions { advertise: vec!["0.0.0.0".to_owned()], ..fixture.options() };
    assert!(matches!(init(bad).await, Err(InitError::Advertise(_))));
    let path = fixture.options().config_path;
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "hartbeat = \"2s\"\n").unwrap();
    assert!(matches!(init(fixture.options()).await, Err(InitError::Config(_))));
    assert!(!fixture.options().state_dir.exists());
}

#[tokio::test]
async fn what_is_made_in_a_packages_folder_belongs_to_its_user() {
    let fixture = Fixture::new();
    let folder = fixture.options().state_dir;
    fs::create_dir_all(&folder).unwrap();
    // Only root can give a folder away; for others the owner is who made it.
    if nix::unistd::geteuid().is_root() {
        lchown(&folder, Some(65534), Some(65534)).unwrap();
    }
    let owner = fs::metadata(&folder).unwrap().uid();
    init(fixture.options()).await.unwrap();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(fs::metadata(&path).unwrap().uid(), owner, "{}", path.display());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}
