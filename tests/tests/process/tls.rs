//! Clusters whose ports speak TLS only: with certificates of an authority of the test's, to the engines' own client, through everything
//! that happens to a cluster. A node without a certificate gets no member of it, whoever asks.

#![allow(clippy::print_stdout, reason = "what a test does not run is said")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use regent_common::error::{Reason, reason_of};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{
    api,
    cluster::{Agent, Fleet, create_request, run},
    engines::{find_server, server_of},
    folder::TestFolder,
    logcheck,
    process::{self, program},
    profile::Profile,
    wait,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Response, Status};

use crate::{
    bad_input,
    members::{add, complete, promote},
    support::{CLUSTER, ENGINE, SOON},
};

/// The node that has no certificate.
const BARE: &str = "bare";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_redis_speaks_tls_only_whatever_happens_to_it() {
    server_of("redis").unwrap();
    assert!(speaks_tls_only_whatever_happens("redis").await, "Debian's Redis has TLS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_valkey_speaks_tls_only_whatever_happens_to_it() {
    if_it_can("valkey").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_keydb_speaks_tls_only_whatever_happens_to_it() {
    if_it_can("keydb").await;
}

/// The same where the server is there and was built with TLS.
async fn if_it_can(engine: &str) {
    match find_server(engine) {
        None => println!("not run: {:#}", server_of(engine).unwrap_err()),
        Some(server) if !speaks_tls_only_whatever_happens(engine).await => {
            println!("not run: {} was built without TLS", server.display());
        }
        Some(_) => {}
    }
}

/// Signs the certificates of members.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// An application: it has the strings that the coordinator gives, the authority's certificate and Redis's own client.
struct Application<'a> {
    fleet: &'a Fleet,
    authority: &'a Authority,
}

// === impl Authority ===

impl Authority {
    fn new(folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        let mut parameters = parameters("an authority", &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        fs::write(folder.join("ca.crt"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(parameters, key), folder }
    }

    fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Makes a node's certificate for an engine; the section that names it.
    fn section(&self, engine: &str, node: &str) -> String {
        let mut parameters = parameters(node, &["127.0.0.1"]);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key_pair = KeyPair::generate().unwrap();
        let certificate = self.folder.join(format!("{node}.crt"));
        let key = self.folder.join(format!("{node}.key"));
        fs::write(&certificate, parameters.signed_by(&key_pair, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&key, key_pair.serialize_pem()).unwrap();
        // The engine's user need not read it.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let ca = self.certificate();
        format!("[engine.{engine}.tls]\ncertificate = {certificate:?}\nkey = {key:?}\nca = {ca:?}\n")
    }
}

fn parameters(name: &str, addresses: &[&str]) -> CertificateParams {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut parameters = CertificateParams::new(addresses).unwrap();
    // Two of one name would count as one that has signed itself.
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

// === impl Application ===

impl Application<'_> {
    /// The connection strings, by member.
    async fn strings(&self) -> BTreeMap<String, String> {
        let request = wire::GetCredentialsRequest { name: format!("clusters/{CLUSTER}") };
        let told = self.fleet.api.clusters().get_credentials(request).await.unwrap().into_inner();
        let mut strings = told.connection_strings;
        assert!(strings.values().all(|string| string.starts_with("rediss://")), "{:?}", strings.keys());
        // These name all members at once, which this client does not understand.
        strings.retain(|name, _| !["any", "primary"].contains(&name.as_str()));
        strings
    }

    fn ask(&self, string: &str, words: &[&str]) -> Result<String> {
        ask(string, &self.authority.certificate(), words)
    }

    /// Sets a key on the primary, as soon as that takes it.
    async fn write(&self, primary: &str, key: &str) {
        let string = &self.strings().await[primary];
        let set = || async {
            let said = self.ask(string, &["SET", key, "there"])?;
            ensure!(said == "OK", "{said}");
            Ok(())
        };
        wait::until(&format!("{key} set on {primary}"), SOON, set).await.unwrap();
    }

    /// Waits until every member has these keys.
    async fn everywhere(&self, keys: &[&str]) {
        for (member, string) in self.strings().await {
            let read = || async {
                for key in keys {
                    let said = self.ask(&string, &["GET", key])?;
                    ensure!(said == "there", "{key} is {said:?}");
                }
                Ok(())
            };
            wait::until(&format!("{keys:?} on {member}"), SOON, read).await.unwrap();
        }
    }

    /// No member answers who does not speak TLS; who trusts another authority does not believe any of them.
    async fn nobody_else(&self, stranger: &Authority) {
        let cluster = self.fleet.api.cluster(CLUSTER).await.unwrap();
        assert!(cluster.tls);
        for (member, string) in self.strings().await {
            let plain = string.replacen("rediss://", "redis://", 1);
            assert!(self.ask(&plain, &["PING"]).is_err(), "{member} speaks without TLS");
            let unbelieved = ask(&string, &stranger.certificate(), &["PING"]).unwrap_err();
            assert!(format!("{unbelieved:#}").contains("certificate"), "{member}: {unbelieved:#}");
            assert_eq!(self.ask(&string, &["PING"]).unwrap(), "PONG", "{member}");
        }
        for endpoint in api::endpoints(&cluster).unwrap() {
            let said = said_in_the_clear(&endpoint).await;
            assert!(!said.contains("PONG") && !said.contains("NOAUTH"), "{endpoint} answers {said:?}");
        }
    }
}

/// What Redis's own client is told.
fn ask(string: &str, authority: &Path, words: &[&str]) -> Result<String> {
    let mut client = Command::new("redis-cli");
    // An error is one to the caller, too.
    client.args(["-e", "--no-auth-warning", "-u", string]);
    if string.starts_with("rediss://") {
        client.arg("--cacert").arg(authority);
    }
    client.args(words);
    run(client)
}

/// What is answered to a question that is not encrypted, until the other side hangs up.
async fn said_in_the_clear(endpoint: &str) -> String {
    let mut connection = TcpStream::connect(endpoint).await.unwrap();
    connection.write_all(b"PING\r\n").await.unwrap();
    let mut said = Vec::new();
    // However it hangs up.
    let hang_up = tokio::time::timeout(Duration::from_secs(30), connection.read_to_end(&mut said)).await;
    assert!(hang_up.is_ok(), "{endpoint} does not hang up");
    String::from_utf8_lossy(&said).into_owned()
}

/// Checks that a call was refused for want of TLS, and what it says.
#[track_caller]
fn no_tls(answer: Result<Response<wire::Operation>, Status>, engine: &str, says: &str) {
    let status = answer.expect_err("it should have been refused");
    assert_eq!(reason_of(&status), Some(Reason::NoTls), "{status:?}");
    let said = status.message();
    for part in [says, "nothing was changed", "agent.toml", &format!("\n[engine.{engine}.tls]\ncertificate = ")] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

/// Nodes that offer TLS for an engine.
async fn offering(fleet: &Fleet, engine: &str) -> Vec<String> {
    let engines = fleet.api.catalog().list_engines(wire::ListEnginesRequest {}).await.unwrap().into_inner().engines;
    let is_it = |entry: &wire::CatalogEntry| entry.offer.as_ref().is_some_and(|offer| offer.engine == engine);
    engines.into_iter().find(is_it).map(|entry| entry.nodes_with_tls).unwrap_or_default()
}

/// Everything that happens to a cluster, with TLS; false when the engine cannot do it.
async fn speaks_tls_only_whatever_happens(engine: &str) -> bool {
    let folder = TestFolder::new().unwrap();
    let (authority, stranger) =
        (Authority::new(folder.join("authority")), Authority::new(folder.join("another-authority")));
    let mut fleet = Fleet::start(&folder, &[]).await.unwrap();
    for node in ["n1", "n2", "n3", BARE] {
        let agent = Agent::prepare(folder.path(), node, program("regent-agent").unwrap()).unwrap();
        if node != BARE {
            agent.configure("", &authority.section(engine, node)).unwrap();
        }
        fleet.add_prepared(agent).await.unwrap();
    }
    fleet.all_connected().await.unwrap();
    match offering(&fleet, engine).await.as_slice() {
        [] => return false,
        able => assert_eq!(able, ["nodes/n1", "nodes/n2", "nodes/n3"]),
    }

    refuses_nodes_without(&fleet, engine).await;
    let cluster = fleet.api.create(request(engine, &["n1", "n2", "n3"]), SOON).await.unwrap();
    assert_eq!(cluster.primary, "db1");
    let application = Application { fleet: &fleet, authority: &authority };
    application.nobody_else(&stranger).await;
    application.write("db1", "first").await;
    application.everywhere(&["first"]).await;
    fails_over_promotes_and_resyncs(&application).await;
    application.nobody_else(&stranger).await;

    grows(&mut fleet, &folder, engine, &authority).await;
    let application = Application { fleet: &fleet, authority: &authority };
    application.nobody_else(&stranger).await;
    application.everywhere(&["first", "after the failover", "after the promotion", "after the resync"]).await;
    logcheck::check(fleet.logs().iter().map(PathBuf::as_path), &[]).unwrap();
    true
}

fn request(engine: &str, nodes: &[&str]) -> wire::CreateClusterRequest {
    wire::CreateClusterRequest { tls: true, ..create_request(CLUSTER, engine, nodes, Profile::Fast) }
}

/// A cluster with TLS is not made with a node that does not offer it, nor of an engine that has none.
async fn refuses_nodes_without(fleet: &Fleet, engine: &str) {
    let before = bad_input::state(&fleet.api).await;
    let all_spares = wire::CreateClusterRequest { replicas: Some(3), ..request(engine, &[]) };
    let bare = format!("node {BARE} does not offer TLS for {engine}");
    for (wanted, says) in [
        (request(engine, &["n1", BARE]), bare.as_str()),
        (all_spares, bare.as_str()),
        (request(ENGINE, &["n1", "n2"]), "no node offers TLS for engine postgresql"),
    ] {
        for validate_only in [true, false] {
            let engine = wanted.engine.clone();
            let wanted = wire::CreateClusterRequest { validate_only, ..wanted.clone() };
            no_tls(fleet.api.clusters().create_cluster(wanted).await, &engine, says);
        }
    }
    assert_eq!(bad_input::state(&fleet.api).await, before);
}

/// The primary's engine dies and comes back, is made the primary again, and all replicas are made anew from it.
async fn fails_over_promotes_and_resyncs(application: &Application<'_>) {
    let (fleet, api) = (application.fleet, &application.fleet.api);
    let before = complete(fleet).await;
    process::signal(api::engine_pid(api::member(&before, "db1").unwrap()).unwrap(), Signal::SIGKILL).unwrap();
    let after = api.other_primary(CLUSTER, "db1", SOON).await.unwrap();
    application.write(&after.primary, "after the failover").await;
    let back = complete(fleet).await;
    assert_eq!(api::member(&back, "db1").unwrap().role(), types::Role::Replica);
    application.everywhere(&["first", "after the failover"]).await;

    promote(fleet, "db1").await;
    assert_eq!(complete(fleet).await.primary, "db1");
    application.write("db1", "after the promotion").await;
    application.everywhere(&["first", "after the failover", "after the promotion"]).await;

    let resync = wire::ResyncClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        confirm_name: CLUSTER.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    };
    let operation = api.clusters().resync_cluster(resync).await.unwrap().into_inner();
    api.succeed(&operation.name, SOON).await.unwrap();
    complete(fleet).await;
    application.write("db1", "after the resync").await;
    application.everywhere(&["first", "after the failover", "after the promotion", "after the resync"]).await;
}

/// A node is added once it has a certificate, and not before: neither by name, nor as a spare, nor by the token that it joins with.
async fn grows(fleet: &mut Fleet, folder: &TestFolder, engine: &str, authority: &Authority) {
    let before = bad_input::state(&fleet.api).await;
    let says = format!("node {BARE} does not offer TLS for {engine}");
    for node in [BARE, ""] {
        no_tls(fleet.api.clusters().add_member(add(node)).await, engine, &says);
    }
    assert_eq!(bad_input::state(&fleet.api).await, before);

    let mut late = Agent::prepare(folder.path(), "late", program("regent-agent").unwrap()).unwrap();
    late.join(&fleet.coordinator.address, &fleet.token(CLUSTER).await.unwrap()).unwrap();
    late.start().unwrap();
    fleet.agents.insert(late.node.clone(), late);
    let refused = wait::until("the end of the operation that adds who joined", SOON, || async {
        let additions = fleet.api.operations_of(CLUSTER, "add_member").await?;
        ensure!(additions.first().is_some_and(|operation| operation.done), "{additions:?}");
        Ok(additions)
    });
    let [refused] = &refused.await.unwrap()[..] else { panic!("one node has joined") };
    assert_eq!(refused.error_reason, "NO_TLS", "{}", api::describe(refused));
    assert_eq!(complete(fleet).await.members.len(), 3);

    let bare = fleet.agent(BARE);
    assert!(bare.daemon().unwrap().stop().await.unwrap().success());
    bare.configure("", &authority.section(engine, BARE)).unwrap();
    bare.start().unwrap();
    wait::until("a node that offers TLS now", SOON, || async {
        let able = offering(fleet, engine).await;
        ensure!(able.contains(&format!("nodes/{BARE}")), "{able:?}");
        Ok(())
    })
    .await
    .unwrap();
    fleet.connected(&[BARE]).await.unwrap();
    let growth = fleet.api.clusters().add_member(add("")).await.unwrap().into_inner();
    fleet.api.succeed(&growth.name, SOON).await.unwrap();
    let four = complete(fleet).await;
    assert!(four.members.iter().any(|member| api::plain(&member.node) == BARE), "{four:?}");
    assert_eq!(four.members.len(), 4);
}
