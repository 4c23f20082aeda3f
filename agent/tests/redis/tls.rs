//! Members whose ports speak TLS only: what nobody may hear, who is not believed, and how a certificate is renewed. The conformance suite
//! runs over such members, too.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use redis::ConnectionAddr;
use regent_agent::engine::{
    CloneOptions, DriverError, Factory, StartAs, Stop, Work, conformance::World, redis::RedisFactory,
};
use regent_common::topology::{ClusterSpec, Endpoint, Peer, Progress};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::{
    faults::{eventually, primary, replica},
    world::{RealWorld, connect_to, user_of},
};

on_every_flavor!(
    nobody_is_answered_and_nobody_is_asked_in_plain_text,
    who_is_of_another_authority_or_has_another_name_is_refused,
    a_renewed_certificate_is_shown_without_a_restart,
    files_that_cannot_be_used_change_nothing,
    only_the_engine_may_read_its_key,
    a_node_without_a_certificate_or_a_server_without_tls_takes_no_such_cluster,
);

/// Begins what a client that speaks TLS says first, and what a server says that understands nothing.
const HANDSHAKE: u8 = 0x16;
const ALERT: u8 = 0x15;

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

// === impl Authority ===

impl Authority {
    pub(crate) fn new() -> Self {
        regent_common::tls::install_crypto_provider();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.clone()
    }

    /// Puts a new certificate for a host into a folder, with its key and this authority; the certificate.
    pub(crate) fn issue_into(&self, folder: &Path, host: &str) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::create_dir_all(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        put(folder, "engine.crt", &certificate.pem());
        put(folder, "engine.key", &key.serialize_pem());
        put(folder, "ca.crt", &self.pem);
        certificate.der().to_vec()
    }
}

/// Puts a file there as whoever renews a certificate does.
fn put(folder: &Path, name: &str, text: &str) {
    let new = folder.join("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, folder.join(name)).unwrap();
}

/// The section of the agent's configuration that names the files of a folder.
pub(crate) fn files_in(folder: &Path) -> toml::Table {
    let files = [("certificate", "engine.crt"), ("key", "engine.key"), ("ca", "ca.crt")];
    files.map(|(key, name)| (key.to_owned(), folder.join(name).display().to_string().into())).into_iter().collect()
}

/// Whether a flavor's server was built with TLS; says so where it was not. Debian's Redis was.
pub(crate) fn is_known_to(factory: &'static RedisFactory) -> bool {
    let world = RealWorld::new(factory).with_tls();
    match factory.connection_with_tls(world.context(1).section.as_ref(), "127.0.0.1") {
        Ok(connection) => {
            assert_eq!(connection.unwrap().any, "rediss://{user}:{password}@{hosts}/{database}");
            true
        }
        Err(DriverError::NoTls { problem }) if factory.name() != "redis" => {
            println!("not run: {problem}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn work() -> Work {
    Work { progress: watch::Sender::new(Progress::default()), cancel: CancellationToken::new() }
}

/// The certificate that a member's port shows.
async fn shown(world: &RealWorld, member: u32) -> Vec<u8> {
    let mut authorities = RootCertStore::empty();
    let pem = world.tls.as_ref().unwrap().pem();
    authorities.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", world.port(member))).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Sends one command over a member's socket, as its agent.
async fn over_socket<T: redis::FromRedisValue>(world: &RealWorld, member: u32, words: &[&str]) -> T {
    let stored = fs::read(world.root(member).join("conf/wanted.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&stored).unwrap();
    let secret = stored["secrets"]["agent"].as_str().unwrap().to_owned();
    let socket = ConnectionAddr::Unix(world.context(member).run_directory.join("engine.sock"));
    let mut connection = connect_to(socket, None, Some(("regent-agent", &secret))).await.unwrap();
    redis::Cmd::new().arg(words).query_async(&mut connection).await.unwrap()
}

/// What the next one says first who comes; he is answered in plain text.
async fn overhear(listener: &TcpListener) -> Vec<u8> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut said = vec![0; 4096];
    let length = stream.read(&mut said).await.unwrap();
    said.truncate(length);
    stream.write_all(b"+OK\r\n").await.unwrap();
    said
}

async fn nobody_is_answered_and_nobody_is_asked_in_plain_text(factory: &'static RedisFactory) {
    if !is_known_to(factory) {
        return;
    }
    let world = RealWorld::new(factory).with_tls();
    let _first = primary(&world).await;
    let second = replica(&world, 2).await;
    world.write(1).await.unwrap();
    eventually("the replica has it", async || world.rows(2).await == Ok(1)).await;

    for member in [1, 2] {
        let mut stream = TcpStream::connect(("127.0.0.1", world.port(member))).await.unwrap();
        stream.write_all(b"PING\r\n").await.unwrap();
        let mut said = Vec::new();
        // It may hang up without a word.
        drop(stream.read_to_end(&mut said).await);
        assert!(said.first().is_none_or(|first| *first == ALERT), "{}", String::from_utf8_lossy(&said));
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let nobody = Peer { engine: Endpoint { host: "127.0.0.1".to_owned(), port }, ..world.peer(1) };
    let third = world.open(3).unwrap();
    third.configure(&world.spec()).await.unwrap();
    let work = work();
    let copying = third.as_ref().clone_from(&nobody, CloneOptions::default(), &work);
    let (said, copied) = tokio::join!(overhear(&listener), copying);
    assert_eq!(said[0], HANDSHAKE);
    let refused = copied.unwrap_err().to_string();
    assert!(refused.contains("it does not speak TLS"), "{refused}");
    let (said, followed) = tokio::join!(overhear(&listener), second.follow(&nobody));
    assert_eq!(said[0], HANDSHAKE);
    let refused = followed.unwrap_err().to_string();
    assert!(refused.contains("it does not speak TLS"), "{refused}");
    let told = async { over_socket::<()>(&world, 2, &["REPLICAOF", "127.0.0.1", &port.to_string()]).await };
    let (said, ()) = tokio::join!(overhear(&listener), told);
    assert_eq!(said[0], HANDSHAKE, "what the engine says");
    world.end().await;
}

async fn who_is_of_another_authority_or_has_another_name_is_refused(factory: &'static RedisFactory) {
    if !is_known_to(factory) {
        return;
    }
    let world = RealWorld::new(factory).with_tls();
    let _first = primary(&world).await;
    let second = world.open(2).unwrap();
    second.configure(&world.spec()).await.unwrap();
    let localhost = Endpoint { host: "localhost".to_owned(), port: world.port(1) };
    let elsewhere = Peer { engine: localhost, ..world.peer(1) };
    let refused = second.as_ref().clone_from(&elsewhere, CloneOptions::default(), &work()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("it does not name localhost"), "{refused}");

    let third = replica(&world, 3).await;
    third.start(StartAs::Isolated).await.unwrap();
    let foreign = Authority::new();
    for (member, driver) in [(2, &second), (3, &third)] {
        foreign.issue_into(&world.certificate(member), "127.0.0.1");
        driver.configure(&world.spec()).await.unwrap();
    }
    let refused = second.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("no authority of the file ca has signed it"), "{refused}");
    assert!(!world.root(2).join("incoming").exists());
    let refused = third.follow(&world.peer(1)).await.unwrap_err().to_string();
    assert!(refused.contains("no authority of the file ca has signed it"), "{refused}");

    // Nor does the engine itself believe it.
    over_socket::<()>(&world, 3, &["REPLICAOF", "127.0.0.1", &world.port(1).to_string()]).await;
    let log = world.root(3).join("log/startup.log");
    // In the words of its library: about the certificate, or the signature in it.
    eventually("it says why", async || fs::read_to_string(&log).unwrap().contains("socket for SYNC: error:")).await;
    let told: String = over_socket(&world, 3, &["INFO", "replication"]).await;
    assert!(told.contains("master_link_status:down"), "{told}");
    world.end().await;
}

async fn a_renewed_certificate_is_shown_without_a_restart(factory: &'static RedisFactory) {
    if !is_known_to(factory) {
        return;
    }
    let world = RealWorld::new(factory).with_tls();
    let authority = world.tls.as_ref().unwrap();
    let first = primary(&world).await;
    let _second = replica(&world, 2).await;
    let pid = first.observe().await.pid;

    let renewed = authority.issue_into(&world.certificate(1), "127.0.0.1");
    first.configure(&world.spec()).await.unwrap();
    assert_eq!(shown(&world, 1).await, renewed, "after it was configured");

    let renewed = authority.issue_into(&world.certificate(1), "127.0.0.1");
    eventually("it is noticed", async || {
        first.observe().await;
        shown(&world, 1).await == renewed
    })
    .await;

    // The agent ends after it has copied the files, and before it tells the engine.
    drop(first);
    let renewed = authority.issue_into(&world.certificate(1), "127.0.0.1");
    for (from, to) in [("engine.crt", "tls.crt"), ("engine.key", "tls.key")] {
        // In place: the copy stays the engine user's.
        fs::write(world.root(1).join("conf").join(to), fs::read(world.certificate(1).join(from)).unwrap()).unwrap();
    }
    assert_ne!(shown(&world, 1).await, renewed);
    let first = world.open(1).unwrap();
    eventually("the next agent tells the engine", async || {
        first.observe().await;
        shown(&world, 1).await == renewed
    })
    .await;

    world.write(1).await.unwrap();
    eventually("the replica has it", async || world.rows(2).await == Ok(1)).await;
    let seen = first.observe().await;
    assert_eq!(seen.pid, pid, "it was restarted");
    assert!(seen.details.contains_key("certificate_until"), "{:?}", seen.details);
    world.end().await;
}

async fn files_that_cannot_be_used_change_nothing(factory: &'static RedisFactory) {
    if !is_known_to(factory) {
        return;
    }
    let world = RealWorld::new(factory).with_tls();
    let authority = world.tls.as_ref().unwrap();
    put(&world.certificate(2), "engine.key", &KeyPair::generate().unwrap().serialize_pem());
    let second = world.open(2).unwrap();
    let refused = second.configure(&world.spec()).await;
    let name = format!("engine.{}.tls.key", factory.name());
    assert!(matches!(&refused, Err(DriverError::InvalidSetting { name: of, .. }) if *of == name), "{refused:?}");
    assert!(!world.root(2).join("conf").exists());

    let first = primary(&world).await;
    let shown_before = shown(&world, 1).await;
    authority.issue_into(&world.certificate(1), "10.9.8.7");
    first.configure(&world.spec()).await.unwrap();
    fs::remove_file(world.certificate(1).join("engine.key")).unwrap();
    first.configure(&world.spec()).await.unwrap();
    first.stop(Stop::Fast).await.unwrap();
    first.start(StartAs::Primary).await.unwrap();
    assert_eq!(shown(&world, 1).await, shown_before);

    let plain = ClusterSpec { tls: false, ..world.spec() };
    let refused = first.configure(&plain).await;
    assert!(matches!(&refused, Err(DriverError::InvalidSetting { name, .. }) if name == "tls"), "{refused:?}");
    world.end().await;
}

async fn only_the_engine_may_read_its_key(factory: &'static RedisFactory) {
    if !is_known_to(factory) {
        return;
    }
    let world = RealWorld::new(factory).with_tls();
    let _first = primary(&world).await;
    let owner = user_of(factory).map_or_else(nix::unistd::geteuid, |user| user.uid);
    for name in ["tls.key", "tls.crt", "tls-ca.crt"] {
        let facts = fs::metadata(world.root(1).join("conf").join(name)).unwrap();
        assert_eq!((facts.mode() & 0o777, facts.uid()), (0o600, owner.as_raw()), "{name}");
    }
    world.end().await;
}

async fn a_node_without_a_certificate_or_a_server_without_tls_takes_no_such_cluster(factory: &'static RedisFactory) {
    let has_tls = is_known_to(factory);
    let world = RealWorld::new(factory).with_tls();
    let mut without = world.context(1);
    without.section.as_mut().unwrap().remove("tls");
    assert_eq!(factory.connection_with_tls(without.section.as_ref(), "127.0.0.1").unwrap(), None);
    let (driver, why) = match has_tls {
        true => (factory.open(without).unwrap(), format!("[engine.{}.tls] of agent.toml", factory.name())),
        false => (world.open(1).unwrap(), "was built without TLS".to_owned()),
    };
    let refused = driver.configure(&world.spec()).await;
    let told = matches!(&refused, Err(DriverError::NoTls { problem }) if problem.contains(&why));
    assert!(told, "{refused:?}");
    assert!(!world.root(1).join("conf").exists());
    // It takes any other.
    driver.configure(&ClusterSpec { tls: false, ..world.spec() }).await.unwrap();
    driver.initialize().await.unwrap();
    world.end().await;
}
