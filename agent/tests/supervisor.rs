//! The supervisor and the helper subcommands with real processes; needs no engine. As root the user is changed too.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_agent::supervisor::{Backend, Launch, Status, Supervisor, SupervisorError, process::EngineProcess};

const AGENT: &str = env!("CARGO_BIN_EXE_regent-agent");
/// In the environment of a child of this test that plays the agent: the folder to work in.
const PLAY_AGENT: &str = "REGENT_TEST_PLAY_AGENT";
const LONG: Duration = Duration::from_secs(20);

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

fn supervisor(folder: &Path) -> EngineProcess {
    EngineProcess::new(AGENT.into(), Backend::Process, "test", folder.into(), folder.join("record"))
}

/// A shell that works in the folder and runs a script.
fn launch(folder: &Path, script: &str) -> Launch {
    Launch {
        program: "/bin/sh".into(),
        arguments: ["-c".into(), format!("cd {}; {script}", folder.display()).into()].into(),
        user: None,
        log: folder.join("log"),
        stop_signal: Signal::SIGTERM,
        stop_within: LONG,
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = procfs::process::Process::new(pid.cast_signed()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_detached_program_gets_nothing_of_the_agents_environment() {
    let folder = folder();
    let (log, probe) = (folder.path().join("log"), "env; id -u; umask; ps -o sid= -p $$; echo pid $$");
    let user = if nix::unistd::geteuid().is_root() { "nobody".to_owned() } else { whoami() };
    let child = Command::new(AGENT)
        .args(["helper", "detach", "--user", &user, "--log", log.to_str().unwrap(), "--", "/bin/sh", "-c", probe])
        .env("NOTIFY_SOCKET", "/run/secret")
        .env("TZ", "UTC")
        .env("PGPASSWORD", "hush")
        .spawn();
    let mut child = child.unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success(), "{:?}", fs::read_to_string(&log));
    let text = fs::read_to_string(&log).unwrap();
    for gone in ["NOTIFY_SOCKET", "PGPASSWORD", "HOME="] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    let uid = nix::unistd::User::from_name(&user).unwrap().unwrap().uid.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let pid = pid.to_string();
    for there in ["LANG=C.UTF-8", "TZ=UTC", "0077", uid.as_str(), pid.as_str(), &format!("pid {pid}")] {
        assert!(lines.contains(&there), "no {there} in {text}");
    }
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
}

fn whoami() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}

#[test]
fn a_helper_says_why_it_did_not_start_its_program() {
    let run = |arguments: &[&str]| {
        let output = Command::new(AGENT).arg("helper").args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let own = std::process::id().to_string();
    assert!(
        run(&["attached", "--parent", &own, "--user", "no-such-user", "--", "true"]).contains("no user no-such-user")
    );
    assert!(run(&["attached", "--parent", &own, "--", "/no/such/program"]).contains("cannot execute"));
    assert!(run(&["attached", "--parent", "1", "--", "true"]).contains("has ended"));
    assert!(run(&["detach", "--log", "/no/such/folder/log", "--", "true"]).contains("cannot open the log"));
}

#[tokio::test]
async fn the_end_is_told_at_once_and_stays_known() {
    let folder = folder();
    let supervisor = supervisor(folder.path());
    assert_eq!(supervisor.status(), Status::Absent);
    let mut changes = supervisor.changes();
    let pid = supervisor.start(&launch(folder.path(), "exec sleep 1000")).await.unwrap();
    changes.changed().await.unwrap();
    assert_eq!(supervisor.status(), Status::Alive { pid });
    let again = supervisor.start(&launch(folder.path(), "true")).await;
    assert!(matches!(again, Err(SupervisorError::AlreadyRuns(running)) if running == pid));
    eventually("it works in the folder", || works_in(pid, folder.path())).await;

    let killed = tokio::time::Instant::now();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    tokio::time::timeout(LONG, changes.changed()).await.unwrap().unwrap();
    let took = killed.elapsed();
    assert!(took < Duration::from_millis(250), "the end was told after {took:?}");
    assert_eq!(supervisor.status(), Status::Ended { how: "signal 9".to_owned() });
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie stayed behind");

    let later = self::supervisor(folder.path());
    assert_eq!(later.adopt(None).unwrap(), None);
    assert!(matches!(later.status(), Status::Ended { .. }), "a new agent does not know of the crash");
    later.forget().unwrap();
    assert_eq!(later.status(), Status::Absent);
}

fn works_in(pid: u32, folder: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder)
}

#[tokio::test]
async fn everything_in_the_directory_is_killed_and_nothing_else() {
    let folder = folder();
    let supervisor = supervisor(folder.path());
    // As an engine's processes do: children with sessions of their own, and one that goes on making new ones.
    let script = "for i in 1 2 3; do setsid sleep 1000 & done; while :; do setsid sleep 0.01; done";
    let pid = supervisor.start(&launch(folder.path(), script)).await.unwrap();
    let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
    eventually("the children are there", || count_in(folder.path()) >= 4).await;
    supervisor.kill_all(LONG).await.unwrap();
    assert_eq!(count_in(folder.path()), 0);
    assert!(!is_alive(pid));
    assert!(matches!(supervisor.status(), Status::Ended { .. }));
    assert!(bystander.try_wait().unwrap().is_none(), "a process elsewhere was killed");
    supervisor.kill_all(LONG).await.unwrap();
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

fn count_in(folder: &Path) -> usize {
    let processes = procfs::process::all_processes().unwrap().filter_map(Result::ok);
    processes.filter(|process| process.cwd().is_ok_and(|cwd| cwd == folder)).count()
}

/// Not a test by itself: the other one runs it in a process of its own, which it then kills.
#[tokio::test]
async fn play_the_agent() {
    let Some(folder) = std::env::var_os(PLAY_AGENT).map(PathBuf::from) else { return };
    let supervisor = supervisor(&folder);
    let pid = supervisor.start(&launch(&folder, "exec sleep 1000")).await.unwrap();
    println!("started {pid}");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_agent_leaves_the_engine_running_and_the_next_one_adopts_it() {
    let folder = folder();
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "play_the_agent", "--nocapture"])
        .env(PLAY_AGENT, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines().map(Result::unwrap);
    let started = |line: String| line.split_once("started ").map(|(_, pid)| pid.trim().parse().unwrap());
    let pid: u32 = lines.into_iter().find_map(started).unwrap();
    let record = folder.path().join("record");
    eventually("the record is written", || record.exists()).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(is_alive(pid), "the engine died with its agent");

    // A record whose start time is another's names no process.
    let text = fs::read_to_string(&record).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["start_time"] = 1.into();
    fs::write(&record, other.to_string()).unwrap();
    assert_eq!(supervisor(folder.path()).adopt(None).unwrap(), None);
    fs::write(&record, text).unwrap();

    let next = supervisor(folder.path());
    assert_eq!(next.adopt(None).unwrap(), Some(pid));
    assert_eq!(next.status(), Status::Alive { pid });
    // Without a record, the process is taken over when it is claimed and works in the directory.
    fs::remove_file(&record).unwrap();
    assert_eq!(supervisor(folder.path()).adopt(None).unwrap(), None);
    assert_eq!(supervisor(folder.path()).adopt(Some(std::process::id())).unwrap(), None);
    let works_there = || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder.path());
    eventually("the program has gone to its folder", works_there).await;
    assert_eq!(supervisor(folder.path()).adopt(Some(pid)).unwrap(), Some(pid));

    assert!(next.signal(Signal::SIGTERM).unwrap());
    assert!(next.ended_within(LONG).await);
    assert!(matches!(next.status(), Status::Ended { .. }));
    assert!(!next.signal(Signal::SIGTERM).unwrap());
}

#[tokio::test]
async fn an_attached_tool_ends_with_the_agent() {
    let script = format!("{AGENT} helper attached --parent $$ -- sleep 1000 & echo $!; wait");
    let mut agent = Command::new("/bin/sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let tool: u32 = line.trim().parse().unwrap();
    let is_sleep = || fs::read_to_string(format!("/proc/{tool}/comm")).is_ok_and(|name| name.trim() == "sleep");
    eventually("the helper became its tool", is_sleep).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    eventually("the tool ended", || !is_alive(tool)).await;
}
