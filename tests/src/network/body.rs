//! What a machine is made of: what happens when it is switched on, and how to get a program into it.
//!
//! The network gives a machine its name, its addresses and its cable, and pulls its plug; the body is what is in between. Here
//! is the light one, which is namespaces and nothing else; a whole system is in [`crate::vm`].
//!
//! **Invariant:** what holds a body ends with everything in it when its standard input ends, and that is a pipe from the test.

use std::{
    fmt::Debug,
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::words;

/// What a machine is made of.
pub(crate) trait Body: Debug + Send + Sync {
    /// Switches it on. Its network is there when this returns, with nothing in it but the loopback.
    fn power_on(&self) -> Result<Held>;

    /// The namespaces in which a program of the host is one on this machine, as options of nsenter and names in /proc.
    fn shared(&self) -> &'static [(&'static str, &'static str)];

    /// Whether the body gives `eth0` its addresses itself, as a system that boots does.
    fn configures_itself(&self) -> bool;
}

/// A body that is switched on.
#[derive(Debug)]
pub(crate) struct Held {
    /// The process that holds it, on the host.
    pub(crate) holder: Child,
    /// Host's id of the first process whose namespaces are the machine's.
    pub(crate) first: u32,
}

/// Takes its place in the namespace, says so, and waits for the end of its input; then ends all others in the namespace. Shared
/// memory is the machine's own: engines of two machines have data directories of the same number, and one that is killed
/// leaves its memory behind.
const HOLD: &str = r#"
mount --bind "$1" /proc/sys/kernel/random/boot_id && mount -t tmpfs memory /dev/shm && echo ready && read -r _
own=$(readlink /proc/self/ns/net)
for process in /proc/[0-9]*; do
    id=${process#/proc/}
    [ "$id" = $$ ] || [ "$(readlink "$process/ns/net")" != "$own" ] || kill -9 "$id"
done 2>/dev/null
"#;

/// Namespaces of network, mounts and IPC with nothing in them; all else is the host's. Each time it is switched on it has another
/// boot id.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// File with the boot id.
    pub(super) boot_id: PathBuf,
}

// === impl Namespaces ===

impl Body for Namespaces {
    fn power_on(&self) -> Result<Held> {
        fs::copy("/proc/sys/kernel/random/uuid", &self.boot_id)
            .with_context(|| format!("cannot write {}", self.boot_id.display()))?;
        let mut command =
            words(&["unshare", "--net", "--mount", "--ipc", "--propagation", "slave", "sh", "-c", HOLD, "hold"]);
        command.arg(&self.boot_id).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = spawn(command)?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("stdout is a pipe")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            let mut trouble = String::new();
            holder.stderr.take().context("stderr is a pipe")?.read_to_string(&mut trouble)?;
            holder.wait()?;
            bail!("no namespaces for a machine: {}", trouble.trim());
        }
        let first = holder.id();
        Ok(Held { holder, first })
    }

    fn shared(&self) -> &'static [(&'static str, &'static str)] {
        &[("net", "net"), ("mount", "mnt"), ("ipc", "ipc")]
    }

    fn configures_itself(&self) -> bool {
        false
    }
}

/// Starts the process that holds a body.
pub(crate) fn spawn(mut command: Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot run {command:?}"))
}
