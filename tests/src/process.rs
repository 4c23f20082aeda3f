//! Real daemons: started with their output in the test's folder, stopped, killed by their id.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User},
};

use crate::wait;

/// How long a daemon may take to stop when it is asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A running process of ours. Killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Folder of the programs that belong to the running test or bench.
pub fn program_folder() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("the program is in a folder")?;
    // Tests are in `deps`, programs beside it.
    Ok(if folder.ends_with("deps") { folder.parent().context("deps is in a folder")? } else { folder }.to_owned())
}

/// A program of this workspace, built if `tests/run` has not done so already.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = program_folder()?;
    if std::env::var_os("REGENT_TEST_BUILT").is_none() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--workspace", "--bins", "--locked", "--quiet"]);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().context("cannot run cargo")?;
        anyhow::ensure!(status.success(), "the programs do not build");
    }
    let path = folder.join(name);
    anyhow::ensure!(path.exists(), "{} does not exist: cargo build --workspace --bins", path.display());
    Ok(path)
}

/// The coordinator in a build that aborts where `REGENT_FAILPOINT` says.
pub fn failpoint_coordinator() -> Result<PathBuf> {
    let path = program_folder()?.join("failpoints/regent-coordinator");
    if std::env::var_os("REGENT_TEST_BUILT").is_none() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("run");
        let status = Command::new(script).arg("--build").status().context("cannot run tests/run --build")?;
        anyhow::ensure!(status.success(), "the programs do not build");
    }
    anyhow::ensure!(path.exists(), "{} does not exist: tests/run --build", path.display());
    Ok(path)
}

/// Makes the command run as the given user of the system, when the caller is root and may become another.
pub fn as_user(command: &mut Command, name: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        let user =
            User::from_name(name)?.with_context(|| format!("there is no user {name}: install the engine's package"))?;
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(())
}

/// Whether a process lives (a zombie does not).
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Sends a signal to a process by its id.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let id = Pid::from_raw(i32::try_from(pid).context("a process id fits")?);
    kill(id, signal).with_context(|| format!("cannot send {signal} to process {pid}"))
}

/// Waits until the process has ended.
pub async fn ended(pid: u32, deadline: Duration) -> Result<()> {
    let look = || async { if lives(pid) { bail!("it lives") } else { Ok(()) } };
    wait::until(&format!("the end of process {pid}"), deadline, look).await
}

// === impl Daemon ===

impl Daemon {
    /// Starts a process; what it writes is appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let mut file: File = OpenOptions::new().create(true).append(true).open(log)?;
        writeln!(file, "--- {name} starts: {command:?}")?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // A group of its own: Ctrl-C in the terminal ends the test, and the test ends its daemons.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let child = std::sync::Mutex::new(&mut self.child);
        wait::until(&format!("the end of {name}"), deadline, || async {
            child.lock().expect("nothing panics while it holds this lock").try_wait()?.context("it runs")
        })
        .await
    }

    /// Asks it to stop, and waits.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        signal(self.pid(), Signal::SIGTERM)?;
        self.wait(STOP_DEADLINE).await
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) -> Result<()> {
        signal(self.pid(), which)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        drop(self.kill());
    }
}
