//! A machine of the network: a body with a name, addresses and a cable, that can be switched off and on.
//!
//! A power cut takes the cable first (no packet says goodbye), then every process, then the namespaces with their sockets, their
//! shared memory and their rules of nftables; switching on makes new ones with the same addresses and another boot id.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
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

use super::{
    HUB,
    body::{Body, Held},
    words,
};
use crate::{cluster::run, workload::now_nanos};

/// How often to look again for processes that are being killed.
const KILL_ROUNDS: u32 = 500;

/// Gives the interface its addresses; nobody else has the second one, and it is there at once.
const SET_UP: &str = r#"
ip link set lo up && ip link set eth0 up && ip address add "$1/24" dev eth0 && ip address add "$2/64" dev eth0 nodad
"#;

/// How often to look whether it has switched itself off.
const LOOK: Duration = Duration::from_millis(10);

/// A machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    number: u8,
    body: Box<dyn Body>,
    running: Mutex<Option<Running>>,
}

/// A machine that is switched on.
#[derive(Debug)]
struct Running {
    held: Held,
    /// Its network, which every process on it is in, whatever becomes of the first one.
    net: PathBuf,
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

/// The network that a process is in.
fn network_of(pid: u32) -> Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).with_context(|| format!("process {pid} is gone"))
}

/// Address of the machine with this number.
pub(super) fn ipv4(number: u8) -> String {
    format!("10.77.0.{number}")
}

/// Its address among those that are for private networks. Written with the same digits.
pub(super) fn ipv6(number: u8) -> String {
    format!("fd77::{number}")
}

// === impl Machine ===

impl Machine {
    /// A machine that is switched off.
    pub(super) fn new(name: &str, number: u8, body: Box<dyn Body>) -> Result<Self> {
        // An interface's name has at most 15 bytes.
        ensure!(port(name).len() <= 15, "{name} is too long for a machine");
        Ok(Self { name: name.to_owned(), number, body, running: Mutex::new(None) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> String {
        ipv4(self.number)
    }

    /// Its address of IPv6.
    pub fn address_v6(&self) -> String {
        ipv6(self.number)
    }

    /// A connection from it, if one is made in time.
    pub fn connect(&self, to: SocketAddr, within: Duration) -> Result<TcpStream> {
        let first = self.first()?;
        let connect = move || {
            let namespace = fs::File::open(format!("/proc/{first}/ns/net"))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpStream::connect_timeout(&to, within)?)
        };
        // On a thread that ends there: a socket stays in the network in which it was made.
        thread::spawn(connect).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Host's id of the first process whose namespaces are the machine's.
    pub(crate) fn first(&self) -> Result<u32> {
        let running = self.running.lock().expect("nothing panics while it holds this lock");
        Ok(running.as_ref().with_context(|| format!("{} is switched off", self.name))?.held.first)
    }

    /// A program of the host, to be run on it. The process that starts becomes the program: its id is the program's.
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
        let first = self.first()?;
        let mut command = Command::new("nsenter");
        for (option, kind) in self.body.shared() {
            command.arg(format!("--{option}=/proc/{first}/ns/{kind}"));
        }
        Ok(command)
    }

    /// Processes that run on it, without the one that holds it. Ids are the host's.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let (holder, own) = {
            let running = self.running.lock().expect("nothing panics while it holds this lock");
            let running = running.as_ref().with_context(|| format!("{} is switched off", self.name))?;
            (running.held.holder.id(), running.net.clone())
        };
        let numbers = fs::read_dir("/proc")?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        // A process that has ended meanwhile, or waits to be reaped, has no namespace to read.
        Ok(numbers.filter(|pid| *pid != holder && network_of(*pid).is_ok_and(|net| net == own)).collect())
    }

    /// Switches it on and puts the cable in.
    pub fn power_on(&self) -> Result<()> {
        let mut running = self.running.lock().expect("nothing panics while it holds this lock");
        ensure!(running.is_none(), "{} is on already", self.name);
        let held = self.body.power_on().with_context(|| format!("cannot switch {} on", self.name))?;
        let (first, net) = (held.first, network_of(held.first)?);
        *running = Some(Running { held, net });
        drop(running);
        let (port, hardware) = (port(&self.name), format!("02:00:0a:4d:00:{:02x}", self.number));
        let pid = first.to_string();
        run(words(&[
            "ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &hardware, "netns", &pid,
        ]))?;
        run(words(&["ip", "link", "set", &port, "master", HUB, "up"]))?;
        if !self.body.configures_itself() {
            let mut set_up = self.command("sh")?;
            set_up.args(["-c", SET_UP, "sh"]).arg(self.address()).arg(self.address_v6());
            run(set_up)?;
        }
        Ok(())
    }

    /// Pulls the plug: cable, processes, namespaces. Returns when nothing of it runs any more.
    pub fn power_off(&self) -> Result<()> {
        self.unplug()?;
        self.kill_all()?;
        self.let_go()
    }

    /// Waits until it has switched itself off, as a system does that is told to halt or to restart.
    pub fn switched_itself_off(&self, within: Duration) -> Result<()> {
        let begin = now_nanos();
        while crate::process::lives(self.first()?) {
            let waited = Duration::from_nanos(now_nanos() - begin);
            ensure!(waited < within, "{} does not switch itself off within {within:?}", self.name);
            thread::sleep(LOOK);
        }
        self.unplug()?;
        self.let_go()
    }

    /// Takes the cable away, which may have gone with the machine's network.
    fn unplug(&self) -> Result<()> {
        let port = port(&self.name);
        let taken = run(words(&["ip", "link", "delete", &port]));
        if run(words(&["ip", "link", "show", &port])).is_err() { Ok(()) } else { taken.map(drop) }
    }

    /// Ends the process that holds it.
    fn let_go(&self) -> Result<()> {
        let running = self.running.lock().expect("nothing panics while it holds this lock").take();
        if let Some(mut running) = running {
            // Its pipe is closed by the wait; it finds nothing left to end.
            running.held.holder.wait()?;
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
        if let Some(mut running) = self.running.lock().ok().and_then(|mut running| running.take()) {
            // With its namespace the cable would go as well, but only some time later, and the next machine of this name needs one.
            drop(run(words(&["ip", "link", "delete", &port(&self.name)])));
            // The end of its input tells it to end what is left on the machine, and then it ends.
            drop(running.held.holder.wait());
        }
    }
}
