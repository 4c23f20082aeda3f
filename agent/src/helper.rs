//! Subcommands with which this program starts other programs for the agent.
//!
//! `helper detach` becomes a program that outlives the agent: own session, own user, own log, a cleared environment.
//! `helper attached` becomes a short-lived tool that ends when the agent ends. Both end in `exec`, so that the process id
//! that the agent got when it spawned the helper is the one of the program.
//!
//! Going through a helper keeps the agent free of unsafe code between fork and exec. **Invariant:** nothing of the agent's
//! environment reaches the program (in particular not `NOTIFY_SOCKET`), and no secret ever stands in its arguments.

use std::{
    convert::Infallible,
    ffi::{CString, OsString},
    fs::OpenOptions,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::{
    sys::{prctl, signal::Signal, stat},
    unistd::{self, Pid, User},
};

/// What a program finds in `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a program is started for the agent.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Helper {
    /// Becomes a program that lives on when the agent ends.
    Detach {
        /// User to become; needs root unless it is already this one.
        #[arg(long)]
        user: Option<String>,
        /// File that its output is appended to.
        #[arg(long)]
        log: PathBuf,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Becomes a tool that is killed when the agent ends.
    Attached {
        /// User to become; needs root unless it is already this one.
        #[arg(long)]
        user: Option<String>,
        /// Process id of the agent.
        #[arg(long)]
        parent: i32,
        /// A variable for its environment, NAME=VALUE; never a secret.
        #[arg(long = "env")]
        environment: Vec<String>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

/// Why a helper did not become its program.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The user does not exist.
    #[error("there is no user {0} on this machine")]
    NoSuchUser(String),
    /// The kernel refused.
    #[error("cannot {doing}")]
    Kernel {
        /// What was wanted.
        doing: &'static str,
        /// Why not.
        #[source]
        source: nix::Error,
    },
    /// The log cannot be opened.
    #[error("cannot open the log {path}")]
    Log {
        /// The log.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The agent ended before the tool began.
    #[error("the agent that wanted this tool has ended")]
    Orphaned,
    /// The program cannot be executed.
    #[error("cannot execute {program:?}")]
    Execute {
        /// The program.
        program: OsString,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Becomes the program; returns only when that failed.
pub fn run(helper: Helper) -> Result<Infallible, HelperError> {
    match helper {
        Helper::Detach { user, log, program } => detach(user.as_deref(), log, program),
        Helper::Attached { user, parent, environment, program } => {
            attached(user.as_deref(), parent, &environment, program)
        }
    }
}

fn detach(user: Option<&str>, log: PathBuf, program: Vec<OsString>) -> Result<Infallible, HelperError> {
    // Systemd has given us a session. As a child of the agent we lead no process group yet, and one is granted.
    if unistd::getsid(None) != Ok(unistd::getpid()) {
        unistd::setsid().map_err(|source| HelperError::Kernel { doing: "start a session", source })?;
    }
    unistd::chdir("/").map_err(|source| HelperError::Kernel { doing: "leave the working directory", source })?;
    stat::umask(stat::Mode::from_bits_truncate(0o077));
    become_user(user)?;
    // Opened as the user, so that a log directory of that user needs no wider permissions.
    let open = || {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
        Ok((file.try_clone()?, file))
    };
    let (output, errors) = open().map_err(|source| HelperError::Log { path: log.clone(), source })?;
    execute(program, &[], |command| command.stdin(Stdio::null()).stdout(output).stderr(errors))
}

fn attached(
    user: Option<&str>,
    parent: i32,
    environment: &[String],
    program: Vec<OsString>,
) -> Result<Infallible, HelperError> {
    stat::umask(stat::Mode::from_bits_truncate(0o077));
    become_user(user)?;
    // After the change of user: the kernel forgets the death signal when credentials change.
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|source| HelperError::Kernel { doing: "ask for the parent's death signal", source })?;
    if unistd::getppid() != Pid::from_raw(parent) {
        return Err(HelperError::Orphaned);
    }
    execute(program, environment, |command| command)
}

/// Takes groups, group and user of `name`; does nothing when we are that user already.
fn become_user(name: Option<&str>) -> Result<(), HelperError> {
    let Some(name) = name else { return Ok(()) };
    let kernel = |doing| move |source| HelperError::Kernel { doing, source };
    let user = User::from_name(name)
        .map_err(kernel("look the user up"))?
        .ok_or_else(|| HelperError::NoSuchUser(name.to_owned()))?;
    if unistd::getuid() == user.uid && unistd::geteuid() == user.uid {
        return Ok(());
    }
    let c_name = CString::new(name).map_err(|_| HelperError::NoSuchUser(name.to_owned()))?;
    unistd::initgroups(&c_name, user.gid).map_err(kernel("take the user's groups"))?;
    unistd::setresgid(user.gid, user.gid, user.gid).map_err(kernel("take the user's group"))?;
    unistd::setresuid(user.uid, user.uid, user.uid).map_err(kernel("take the user"))
}

fn execute(
    mut program: Vec<OsString>,
    environment: &[String],
    set_up: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<Infallible, HelperError> {
    let arguments = program.split_off(1);
    let program = program.pop().expect("clap requires the program");
    let mut command = Command::new(&program);
    command.args(arguments).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
    if let Some(zone) = std::env::var_os("TZ") {
        command.env("TZ", zone);
    }
    for (name, value) in environment.iter().filter_map(|pair| pair.split_once('=')) {
        command.env(name, value);
    }
    let source = set_up(&mut command).exec();
    Err(HelperError::Execute { program, source })
}
