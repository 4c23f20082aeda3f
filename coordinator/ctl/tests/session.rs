//! The real command against a coordinator in this process, over the real secured connection: exit codes, the two streams,
//! waiting across a broken stream.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod fixtures;

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fixtures::coordinator::{Authority, Coordinator};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

/// No command here takes near as long; one that hangs fails its test.
const DEADLINE: Duration = Duration::from_secs(60);

struct Session {
    coordinator: Coordinator,
    place: tempfile::TempDir,
}

impl Session {
    async fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::new());
        authority.identity(&place.path().join("ann"), "user/ann");
        Authority::new().identity(&place.path().join("foreign"), "user/ann");
        let coordinator = Coordinator::start(authority, &place.path().join("coordinator")).await;
        Self { coordinator, place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    async fn run_as(&self, identity: &str, arguments: &[&str]) -> Output {
        let address = self.coordinator.address.to_string();
        self.run_at(&address, identity, arguments).await
    }

    fn command(&self, address: &str, identity: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regentctl"));
        command
            .args(arguments)
            .env("REGENT_COORDINATOR", address)
            .env("REGENT_IDENTITY", self.path(identity))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run_at(&self, address: &str, identity: &str, arguments: &[&str]) -> Output {
        let run = self.command(address, identity, arguments).output();
        tokio::time::timeout(DEADLINE, run).await.expect("the command ends in time").expect("the command starts")
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.run_as("ann", arguments).await
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("the command exited by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Data goes to stdout: a command that fails without any has none.
fn fails_with(output: &Output, expected: i32, says: &str) {
    assert_eq!(code(output), expected, "stderr: {}", stderr(output));
    assert_eq!(stdout(output), "");
    assert!(stderr(output).contains(says), "{says:?} is not in: {}", stderr(output));
}

#[tokio::test]
async fn a_refusal_exits_3_and_says_what_to_do() {
    let session = Session::start().await;
    let output = session.run(&["cluster", "create", "refused", "--engine", "examplesql"]).await;
    fails_with(&output, 3, "NODE_IN_CLUSTER");
    assert!(stderr(&output).contains("nothing has been changed"), "{}", stderr(&output));
    assert!(stderr(&output).contains("what to do: "), "{}", stderr(&output));
}

#[tokio::test]
async fn what_is_not_there_exits_4() {
    let session = Session::start().await;
    fails_with(&session.run(&["cluster", "show", "none"]).await, 4, "there is no clusters/none");
    fails_with(&session.run(&["operation", "watch", "none"]).await, 4, "OPERATION_NOT_FOUND");
}

#[tokio::test]
async fn a_denial_exits_5() {
    let session = Session::start().await;
    fails_with(&session.run(&["cluster", "create", "denied", "--engine", "examplesql"]).await, 5, "ROLE_TOO_LOW");
}

#[tokio::test]
async fn no_identity_exits_5_before_anything_is_sent() {
    let session = Session::start().await;
    fails_with(&session.run_as("nobody", &["cluster", "list"]).await, 5, "nothing was sent");
}

#[tokio::test]
async fn nobody_there_exits_6() {
    let session = Session::start().await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let output = session.run_at(&address, "ann", &["cluster", "list"]).await;
    fails_with(&output, 6, &address);
}

/// Regression: a server of another authority must not be spoken to, whatever it answers.
#[tokio::test]
async fn a_coordinator_of_another_authority_exits_6() {
    let session = Session::start().await;
    fails_with(&session.run_as("foreign", &["cluster", "list"]).await, 6, "cannot be reached");
}

#[tokio::test]
async fn a_wrong_command_line_exits_2() {
    let session = Session::start().await;
    fails_with(&session.run(&["cluster", "delete", "db"]).await, 2, "--confirm");
    let twice = ["cluster", "label", "db", "zone=a", "zone=b"];
    fails_with(&session.run(&twice).await, 2, "given twice");
}

#[tokio::test]
async fn a_change_waits_across_a_broken_stream() {
    let session = Session::start().await;
    let output = session.run(&["cluster", "create", "works", "--engine", "examplesql"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(session.coordinator.watches.load(Ordering::SeqCst), 2, "the stream was taken up again");
    assert!(stdout(&output).starts_with("Operation works  succeeded"), "{}", stdout(&output));
    assert!(stderr(&output).contains("1/1 bootstrap running"), "{}", stderr(&output));
    assert!(stderr(&output).contains("1/1 bootstrap succeeded"), "{}", stderr(&output));
}

#[tokio::test]
async fn an_operation_that_fails_exits_1_with_its_error() {
    let session = Session::start().await;
    let output = session.run(&["cluster", "create", "fails", "--engine", "examplesql"]).await;
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("the disk of node a is full"), "{}", stderr(&output));
    assert!(stderr(&output).contains("DISK_FULL"), "{}", stderr(&output));
}

#[tokio::test]
async fn an_error_of_the_coordinator_exits_1_and_can_be_repeated() {
    let session = Session::start().await;
    let arguments = ["cluster", "create", "broken", "--engine", "examplesql", "--request-id", "again"];
    fails_with(&session.run(&arguments).await, 1, "--request-id again");
}

#[tokio::test]
async fn an_interrupt_while_waiting_says_that_the_operation_goes_on() {
    let session = Session::start().await;
    let address = session.coordinator.address.to_string();
    let mut command = session.command(&address, "ann", &["cluster", "create", "forever", "--engine", "examplesql"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let interrupted = async {
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Asked to watch, it waits: the first line of progress says so.
        let first = lines.next_line().await.unwrap().unwrap_or_default();
        assert!(first.contains("bootstrap running"), "{first}");
        let id = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        kill(id, Signal::SIGINT).unwrap();
        let mut rest = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            rest.push_str(&line);
        }
        (child.wait().await.unwrap(), rest)
    };
    let (status, rest) = tokio::time::timeout(DEADLINE, interrupted).await.expect("the command ends in time");
    assert_eq!(status.code(), Some(130), "{rest}");
    assert!(rest.contains("the operation goes on"), "{rest}");
    assert!(rest.contains("regentctl operation watch forever"), "{rest}");
    assert!(rest.contains("regentctl operation cancel forever"), "{rest}");
}

#[tokio::test]
async fn a_wrong_address_exits_2() {
    let session = Session::start().await;
    fails_with(&session.run_at("no-port", "ann", &["cluster", "list"]).await, 2, "HOST:PORT");
}

#[tokio::test]
async fn without_waiting_the_name_is_all_there_is_on_stdout() {
    let session = Session::start().await;
    let output = session.run(&["cluster", "create", "works", "--engine", "examplesql", "--no-wait"]).await;
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "operations/works\n"));
    assert_eq!(session.coordinator.watches.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_done() {
    let session = Session::start().await;
    let arguments = ["cluster", "create", "works", "--engine", "examplesql", "--nodes", "a,b", "--dry-run"];
    let output = session.run(&arguments).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("create works on a, b"), "{}", stdout(&output));
    assert!(stderr(&output).contains("nothing has been changed"), "{}", stderr(&output));
    assert_eq!(session.coordinator.watches.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_adoption_names_nodes_and_folders_and_is_refused_with_what_to_do() {
    let session = Session::start().await;
    let arguments = ["cluster", "adopt", "db", "--node", "a", "--node", "b", "--data-directory", "a=/data/a"];
    let output = session.run(&[arguments.as_slice(), &["--dry-run"]].concat()).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains(r#"adopt a and b with {"a": "/data/a"}"#), "{}", stdout(&output));
    fails_with(&session.run(&arguments).await, 3, "NOT_ADOPTABLE");
    fails_with(&session.run(&["cluster", "adopt", "db"]).await, 2, "--node");
}

#[tokio::test]
async fn all_pages_of_a_list_are_read() {
    let session = Session::start().await;
    let output = session.run(&["cluster", "list", "--output", "json"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let listed: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let names: Vec<_> = listed["clusters"].as_array().unwrap().iter().map(|cluster| cluster["name"].clone()).collect();
    assert_eq!(names, ["clusters/first", "clusters/second"]);
}

#[tokio::test]
async fn an_error_is_json_for_programs_and_stays_off_stdout() {
    let session = Session::start().await;
    let output = session.run(&["cluster", "show", "none", "--output", "json"]).await;
    fails_with(&output, 4, "CLUSTER_NOT_FOUND");
    let error: serde_json::Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(error["error"]["exit_code"], 4);
}

#[tokio::test]
async fn a_new_user_gets_an_identity_that_works() {
    let session = Session::start().await;
    let place = session.path("bob");
    let directory = place.to_str().unwrap().to_owned();
    let arguments = ["user", "create", "bob", "--role", "operator", "--out", &directory];
    let output = session.run(&arguments).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(place.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(place.join("key.pem").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(code(&session.run_as("bob", &["cluster", "show", "db"]).await), 0);
    let key = std::fs::read(place.join("key.pem")).unwrap();
    fails_with(&session.run(&arguments).await, 1, "holds a cert.pem already");
    assert_eq!(std::fs::read(place.join("key.pem")).unwrap(), key);
}

#[tokio::test]
async fn a_token_alone_is_on_stdout() {
    let session = Session::start().await;
    let output = session.run(&["token", "create"]).await;
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "secret-token\n"));
}

#[tokio::test]
async fn completions_need_no_coordinator() {
    let session = Session::start().await;
    let output = session.run_at("127.0.0.1:1", "nobody", &["completions", "bash"]).await;
    assert_eq!(code(&output), 0);
    assert!(stdout(&output).contains("complete -F _regentctl"), "{}", stdout(&output));
}

#[tokio::test]
async fn kept_events_are_shown_as_one_object_per_line() {
    let session = Session::start().await;
    let output = session.run(&["events", "--output", "json", "--resume-after", "1"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let ids: Vec<_> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["2", "3"]);
}

/// The first `count` lines that a command which never ends by itself says on stdout.
async fn first_lines(session: &Session, arguments: &[&str], count: usize) -> Vec<String> {
    let address = session.coordinator.address.to_string();
    let mut child = session.command(&address, "ann", arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut found = Vec::new();
    let read = async {
        while found.len() < count {
            found.push(lines.next_line().await.unwrap().expect("the command goes on"));
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("the lines come in time");
    child.kill().await.unwrap();
    found
}

#[tokio::test]
async fn followed_events_go_on_after_a_broken_stream_without_a_gap_or_a_repeat() {
    let session = Session::start().await;
    let arguments = ["events", "--follow", "--resume-after", "0", "--cluster", "breaks"];
    let lines = first_lines(&session, &arguments, 3).await;
    let kinds: Vec<_> = lines.iter().map(|line| line.split_whitespace().last().unwrap()).collect();
    assert_eq!(kinds, ["EVENT_1", "EVENT_2", "EVENT_3"]);
}

#[tokio::test]
async fn a_followed_audit_shows_each_record_once() {
    let session = Session::start().await;
    let lines = first_lines(&session, &["audit", "--follow"], 3).await;
    let actions: Vec<_> = lines.iter().map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(actions, ["Action1", "Action2", "Action3"]);
}
