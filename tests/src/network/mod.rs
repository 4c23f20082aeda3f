//! A network of several machines on one host, made of network namespaces, in which a test can pull cables.
//!
//! ```text
//!                  the test's own namespace: the test, its API connections, the writers  10.77.0.1
//!                                        bridge `hub`
//!               +---------------+--------------+---------------+
//!          coordinator          n1             n2              n3        one namespace each,
//!           10.77.0.11      10.77.0.12     10.77.0.13      10.77.0.14    joined to the hub by a pair of interfaces
//! ```
//! Each has an address of IPv6 with the same last number too, such as fd77::11. What is in a machine is its [`body`]: only
//! namespaces, in which daemons of the test run, or a whole system that boots ([`crate::vm`]).
//!
//! [`inside`] runs the test on a thread that has left the host's network and mounts for new ones; the runtime's threads and
//! all child processes begin there too. Cuts ([`Network::cut`]) are made at the hub, by direction, so that the machines'
//! own rules of nftables are untouched by the test, and the test by theirs.
//!
//! **Invariants:** the host's network and mounts are never touched: a [`Network`] refuses to be made by a
//! thread that is still where its process began. Nothing outlives the test: interfaces and mounts belong to its namespaces, and the process that holds a
//! machine's namespace ends everything in it when the test's end of a pipe closes, however the test ended.
//!
//! Not a simulation: clocks and the page cache are the host's, so a power cut here shows no missing fsync.

pub(crate) mod body;
mod cuts;
mod disk;
mod knocking;
mod machine;

pub use self::{
    disk::Disk,
    knocking::Knocking,
    machine::{Cable, Machine},
};

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use self::{
    body::{Body, Namespaces},
    cuts::Cuts,
    machine::{ipv4, ipv6},
};
use crate::cluster::run;

/// The name under which [`Network::cut`] knows everything in the test's own namespace.
pub const CLIENTS: &str = "clients";
/// Address of the hub, where clients and the test are.
pub const HUB_ADDRESS: &str = "10.77.0.1";
const HUB: &str = "hub";
/// Last byte of the hub's address.
const HUB_NUMBER: u8 = 1;
/// Last byte of the first machine's address.
const FIRST_MACHINE: u8 = 11;
/// Threads of the test's runtime, beside the one that runs the test.
const WORKERS: usize = 2;

/// The machines and the hub between them.
#[derive(Debug)]
pub struct Network {
    folder: PathBuf,
    machines: Mutex<BTreeMap<String, Arc<Machine>>>,
    disks: Mutex<BTreeMap<String, Disk>>,
    cuts: Mutex<Cuts>,
}

/// Runs a test in namespaces of its own; a panic of the test is passed on.
pub fn inside<F, T>(test: impl FnOnce() -> F + Send) -> Result<T>
where
    F: Future<Output = T>,
    T: Send,
{
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and mounts need root: run this test as root (for example `sudo -E tests/run process`)"
    );
    for tool in ["ip", "nft", "nsenter", "unshare", "fsfreeze", "mkfs.ext4"] {
        let found = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", tool]).output()?.status.success();
        ensure!(found, "{tool} is missing: apt-get install iproute2 nftables util-linux e2fsprogs");
    }
    let result = thread::scope(|scope| {
        scope
            .spawn(|| {
                leave_the_host()?;
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
                anyhow::Ok(runtime.block_on(test()))
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gives the calling thread a network and mounts of its own.
fn leave_the_host() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("cannot leave the host's namespaces")?;
    // First apart from the host; then what is mounted here later is seen on the machines, which have mounts of their own.
    for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, flags | MsFlags::MS_REC, None::<&str>)
            .context("cannot part the mounts from the host's")?;
    }
    Ok(())
}

/// A command of words.
fn words(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

// === impl Network ===

impl Network {
    /// Makes the hub in the calling thread's namespace, without any machine. `folder` is the test's.
    pub fn new(folder: &Path) -> Result<Arc<Self>> {
        let own = fs::read_link("/proc/thread-self/ns/net")?;
        // The first thread of the process never leaves it.
        let host = fs::read_link("/proc/self/ns/net")?;
        ensure!(own != host, "this is the host's own network: use network::inside");
        run(words(&["ip", "link", "set", "lo", "up"]))?;
        if run(words(&["ip", "link", "show", HUB])).is_ok() {
            // That of a network before, whose machines are gone.
            run(words(&["ip", "link", "delete", HUB]))?;
        }
        run(words(&["ip", "link", "add", HUB, "type", "bridge"]))?;
        run(words(&["ip", "address", "add", &format!("{}/24", ipv4(HUB_NUMBER)), "dev", HUB]))?;
        run(words(&["ip", "link", "set", HUB, "up"]))?;
        run(words(&["ip", "address", "add", &format!("{}/64", ipv6(HUB_NUMBER)), "dev", HUB, "nodad"]))?;
        fs::create_dir_all(folder.join("machines"))?;
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            machines: Mutex::default(),
            disks: Mutex::default(),
            cuts: Mutex::new(Cuts::new()?),
        }))
    }

    /// A machine by its name; made of namespaces, switched on and connected when it is new.
    pub fn machine(&self, name: &str) -> Result<Arc<Machine>> {
        if let Some(known) = self.machines.lock().expect("nothing panics while it holds this lock").get(name) {
            return Ok(Arc::clone(known));
        }
        let boot_id = self.folder.join("machines").join(format!("{name}.boot-id"));
        let machine = self.add(name, |_| Ok(Box::new(Namespaces { boot_id })))?;
        machine.power_on()?;
        Ok(machine)
    }

    /// Addresses that the next machines will have.
    pub(crate) fn next_addresses(&self) -> impl Iterator<Item = String> + use<> {
        let taken = self.machines.lock().expect("nothing panics while it holds this lock").len();
        (FIRST_MACHINE..).skip(taken).map(ipv4)
    }

    /// Adds a machine, switched off. `body` is told the addresses that the machine will have.
    pub(crate) fn add(
        &self,
        name: &str,
        body: impl FnOnce([String; 2]) -> Result<Box<dyn Body>>,
    ) -> Result<Arc<Machine>> {
        let mut machines = self.machines.lock().expect("nothing panics while it holds this lock");
        ensure!(!machines.contains_key(name), "there is a machine {name} already");
        let number = FIRST_MACHINE + u8::try_from(machines.len()).context("so many machines have no addresses")?;
        let machine = Arc::new(Machine::new(name, number, body([ipv4(number), ipv6(number)])?)?);
        machines.insert(name.to_owned(), Arc::clone(&machine));
        Ok(machine)
    }

    /// Gives a machine a disk of its own, mounted where its files will be.
    pub fn give_disk(&self, name: &str, mount_point: &Path) -> Result<()> {
        let disk = Disk::make(&self.folder.join("machines").join(format!("{name}.image")), mount_point)?;
        self.disks.lock().expect("nothing panics while it holds this lock").insert(name.to_owned(), disk);
        Ok(())
    }

    /// Does something with a machine's disk.
    pub fn with_disk<T>(&self, name: &str, work: impl FnOnce(&mut Disk) -> Result<T>) -> Result<T> {
        let mut disks = self.disks.lock().expect("nothing panics while it holds this lock");
        work(disks.get_mut(name).with_context(|| format!("{name} has no disk of its own"))?)
    }

    /// Ends every hang of a disk.
    pub fn thaw_all(&self) -> Result<()> {
        let mut disks = self.disks.lock().expect("nothing panics while it holds this lock");
        disks.values_mut().try_for_each(Disk::thaw)
    }

    /// From now on packets from the first to the second of each pair vanish without a word, from one moment on for all
    /// pairs. A machine's name, or [`CLIENTS`].
    pub fn cut(&self, directions: &[(&str, &str)]) -> Result<()> {
        self.cuts.lock().expect("nothing panics while it holds this lock").add(directions)
    }

    /// Cuts both ways.
    pub fn cut_both(&self, one: &str, other: &str) -> Result<()> {
        self.cut(&[(one, other), (other, one)])
    }

    /// Mends every cut.
    pub fn heal(&self) -> Result<()> {
        self.cuts.lock().expect("nothing panics while it holds this lock").clear()
    }
}
