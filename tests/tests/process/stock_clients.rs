//! Clients that have nothing of ours but the `.proto` files: Python's grpcio with stubs made by grpcio-tools.
//!
//! The packages are kept in a virtual environment outside the repository (`REGENT_CACHE_DIR`, default ~/.cache/regent).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use regent_tests::{
    cluster::{Coordinator, Fleet, run},
    folder::TestFolder,
    process::program,
};

const PACKAGES: [&str; 4] = ["grpcio", "grpcio-tools", "grpcio-reflection", "grpcio-status"];

/// A Python with the packages, made when it is missing.
fn python() -> PathBuf {
    let cache = env::var_os("REGENT_CACHE_DIR").map(PathBuf::from);
    let home =
        || PathBuf::from(env::var_os("HOME").expect("a home directory or REGENT_CACHE_DIR")).join(".cache/regent");
    let cache = cache.unwrap_or_else(home);
    let ready = cache.join("python-grpc-1");
    if !ready.join("bin/python").exists() {
        fs::create_dir_all(&cache).unwrap();
        // Built beside and renamed, so that a run that was interrupted leaves nothing half-made.
        let making = cache.join(format!("python-grpc-1.{}", std::process::id()));
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(&making);
        run(venv).expect("python3 -m venv works: apt-get install python3-venv");
        let mut install = Command::new(making.join("bin/python"));
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
        run(install).unwrap();
        if fs::rename(&making, &ready).is_err() {
            // Another test was quicker.
            fs::remove_dir_all(&making).unwrap();
        }
    }
    ready.join("bin/python")
}

/// A folder with the stubs of all services.
fn stubs(python: &Path, folder: &TestFolder) -> PathBuf {
    let (stubs, proto) = (folder.join("stubs"), repository().join("proto"));
    fs::create_dir(&stubs).unwrap();
    let mut protoc = Command::new(python);
    protoc.args(["-m", "grpc_tools.protoc", "-I"]).arg(&proto);
    for option in ["--python_out", "--grpc_python_out"] {
        protoc.arg(format!("{option}={}", stubs.display()));
    }
    for part in ["types", "agent", "coordinator"] {
        protoc.arg(format!("regent/{part}/v1/{part}.proto"));
    }
    run(protoc).unwrap();
    stubs
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

async fn says_that_all_is_well(client: Command) {
    let said = tokio::task::spawn_blocking(move || run(client)).await.unwrap().unwrap();
    assert!(said.ends_with("all is well"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_creates_a_cluster_watches_it_and_reads_a_refusal() {
    let python = python();
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
    let mut client = Command::new(&python);
    client.arg("-B");
    client.arg(repository().join("tests/tests/process/stock_client.py")).arg(stubs(&python, &folder));
    client.arg(&fleet.coordinator.address).arg(&fleet.agents["n1"].address).arg(fleet.coordinator.admin());
    let other = Coordinator::init(&folder.join("other"), program("regent-coordinator").unwrap()).unwrap();
    client.arg(other.admin());
    says_that_all_is_well(client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_the_integration_guide_does_what_a_platform_does() {
    let python = python();
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
    let mut client = Command::new(&python);
    client.arg("-B");
    client.arg(repository().join("tests/tests/process/platform_backend.py")).arg(stubs(&python, &folder));
    client.arg(repository().join("deploy/integration")).arg(&fleet.coordinator.address).arg(fleet.coordinator.admin());
    says_that_all_is_well(client).await;
}
