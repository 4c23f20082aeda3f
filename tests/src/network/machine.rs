//! A machine: a namespace with an address, held by a process that does nothing else.
//!
//! A power cut takes the cable first (no packet says goodbye), then every process, then the namespace with its sockets, its
//! shared memory and its rules of nftables; switching on makes a new one with the same address and another boot id.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::{Pid, User},
};

use super::{HUB, NETWORK_V6, words};
use crate::cluster::run;

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

/// How often to look again for processes that are being killed.
const KILL_ROUNDS: u32 = 500;

/// A machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    number: u8,
    boot_id: PathBuf,
    holder: Mutex<Option<Child>>,
}

/// Whether the cable between machine and hub is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// It is.
    In,
    /// It is not: both ends see the link go.
    Out,
}

/// Name of the hub's interface for a machine.
pub(super) fn port(machine: &str) -> String {
    format!("m-{machine}")
}

// === impl Machine ===

impl Machine {
    /// A machine that is switched off. `folder` gets its boot id.
    pub(super) fn new(name: &str, number: u8, folder: &Path) -> Result<Self> {
        // An interface's name has at most 15 bytes.
        ensure!(port(name).len() <= 15, "{name} is too long for a machine");
        let boot_id = folder.join(format!("{name}.boot-id"));
        Ok(Self { name: name.to_owned(), number, boot_id, holder: Mutex::new(None) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    /// Its address of IPv6.
    pub fn address_v6(&self) -> String {
        format!("{NETWORK_V6}{}", self.number)
    }

    /// A connection from it, if one is made in time.
    pub fn connect(&self, to: SocketAddr, within: Duration) -> Result<TcpStream> {
        let holder = self.holder()?;
        let connect = move || {
            let namespace = fs::File::open(format!("/proc/{holder}/ns/net"))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpStream::connect_timeout(&to, within)?)
        };
        // On a thread that ends there: a socket stays in the network in which it was made.
        thread::spawn(connect).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Process whose namespaces are the machine's.
    fn holder(&self) -> Result<u32> {
        let holder = self.holder.lock().expect("nothing panics while it holds this lock");
        Ok(holder.as_ref().with_context(|| format!("{} is switched off", self.name))?.id())
    }

    /// A program to be run on it. The process that starts becomes the program: its id is the program's.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = self.enter()?;
        command.arg("--").arg(program.as_ref());
        Ok(command)
    }

    /// The same for another user of the system.
    pub fn command_as(&self, user: &User, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = self.enter()?;
        command.args(["--setuid", &user.uid.to_string(), "--setgid", &user.gid.to_string(), "--"]);
        command.arg(program.as_ref());
        Ok(command)
    }

    fn enter(&self) -> Result<Command> {
        let holder = self.holder()?;
        let mut command = Command::new("nsenter");
        for (option, kind) in [("net", "net"), ("mount", "mnt"), ("ipc", "ipc")] {
            command.arg(format!("--{option}=/proc/{holder}/ns/{kind}"));
        }
        Ok(command)
    }

    /// Processes that run on it, without the one that holds it.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let holder = self.holder()?;
        let own = fs::read_link(format!("/proc/{holder}/ns/net"))?;
        let numbers = fs::read_dir("/proc")?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        // A process that has ended meanwhile, or waits to be reaped, has no namespace to read.
        Ok(numbers
            .filter(|pid| *pid != holder && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|net| net == own))
            .collect())
    }

    /// Switches it on and puts the cable in.
    pub fn power_on(&self) -> Result<()> {
        let mut holder = self.holder.lock().expect("nothing panics while it holds this lock");
        ensure!(holder.is_none(), "{} is on already", self.name);
        fs::copy("/proc/sys/kernel/random/uuid", &self.boot_id)
            .with_context(|| format!("cannot write {}", self.boot_id.display()))?;
        let mut command =
            words(&["unshare", "--net", "--mount", "--ipc", "--propagation", "slave", "sh", "-c", HOLD, "hold"]);
        command.arg(&self.boot_id).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is a pipe")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            let mut trouble = String::new();
            child.stderr.take().context("stderr is a pipe")?.read_to_string(&mut trouble)?;
            child.wait()?;
            bail!("no namespace for {}: {}", self.name, trouble.trim());
        }
        let pid = child.id().to_string();
        *holder = Some(child);
        drop(holder);
        let (port, hardware) = (port(&self.name), format!("02:00:0a:4d:00:{:02x}", self.number));
        run(words(&[
            "ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &hardware, "netns", &pid,
        ]))?;
        run(words(&["ip", "link", "set", &port, "master", HUB, "up"]))?;
        let mut set_up = self.command("sh")?;
        let address = self.address();
        set_up.args(["-c", "ip link set lo up && ip address add \"$1/24\" dev eth0 && ip address add \"$2/64\" dev eth0 nodad && ip link set eth0 up", "sh"]);
        set_up.args([address, self.address_v6()]);
        run(set_up)?;
        Ok(())
    }

    /// Pulls the plug: cable, processes, namespace. Returns when nothing of it runs any more.
    pub fn power_off(&self) -> Result<()> {
        run(words(&["ip", "link", "delete", &port(&self.name)]))?;
        self.kill_all()?;
        let holder = self.holder.lock().expect("nothing panics while it holds this lock").take();
        if let Some(mut holder) = holder {
            // Its pipe is closed by the wait; it finds nothing left to end.
            holder.wait()?;
        }
        Ok(())
    }

    /// SIGKILL for every process on it, until none is left.
    fn kill_all(&self) -> Result<()> {
        let mut left = Vec::new();
        for _ in 0..KILL_ROUNDS {
            left = self.processes()?;
            left.retain(|pid| crate::process::lives(*pid));
            if left.is_empty() {
                return Ok(());
            }
            for pid in &left {
                // It may just have ended: then there is nothing to kill, and that is well.
                let _gone = kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("processes {left:?} on {} do not end", self.name)
    }

    /// Pulls the cable, or puts it in again; everything on the machine runs on.
    pub fn cable(&self, cable: Cable) -> Result<()> {
        let state = match cable {
            Cable::In => "up",
            Cable::Out => "down",
        };
        run(words(&["ip", "link", "set", &port(&self.name), state])).map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut holder) = self.holder.lock().ok().and_then(|mut holder| holder.take()) {
            // With its namespace the cable would go as well, but only some time later, and the next machine of this name needs one.
            drop(run(words(&["ip", "link", "delete", &port(&self.name)])));
            // The end of its input tells it to end what is left on the machine, and then it ends.
            drop(holder.wait());
        }
    }
}
