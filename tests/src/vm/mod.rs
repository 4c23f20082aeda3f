//! Whole machines: each boots a Debian with systemd from a disk of its own, has its own network, nftables and processes, and
//! knows the others by name. What stands on them is installed from packages, as a user does it.
//!
//! ```text
//!    test's namespace          coordinator      n1       n2       n3       client
//!    fd77::1, 10.77.0.1         10.77.0.11      .12      .13      .14        .15
//!           `---------------------- hub ---------'--------'--------'-----------'      the network of `crate::network`
//!
//!    a machine:   systemd-nspawn --boot
//!                   root    the image (shared, read only) under
//!                   disk    ext4 in a file: all that the machine writes; can hang or be full
//! ```
//! They are machines of a [`Network`]: cuts, cables, disks and power are what they are there. A whole machine is another
//! `Body`.
//!
//! **Invariants:** those of the network. What nspawn keeps on a host while it runs, and the names of the machines, are seen by the
//! test alone, in mounts of its own. However a test ends, the machines end with it.
//!
//! Not a hypervisor: the kernel is the host's, and with it its clocks and its page cache.

mod body;
mod image;
mod installation;
mod system;

pub use self::{
    body::PACKAGES,
    image::Image,
    installation::{CLIENT, Installation, unit},
    system::System,
};

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::{
    folder::TestFolder,
    network::{HUB_ADDRESS, Network},
};

/// Machines of a test, side by side.
#[derive(Debug)]
pub struct Systems {
    by_name: BTreeMap<String, System>,
    network: Arc<Network>,
    logs: PathBuf,
}

/// Who is who, for every machine and for the test.
fn hosts(names: &[&str], addresses: impl Iterator<Item = String>) -> String {
    let lines = addresses.zip(names).map(|(address, name)| format!("{address} {name}\n"));
    format!("127.0.0.1 localhost\n::1 localhost\n{HUB_ADDRESS} hub\n{}", lines.collect::<String>())
}

/// What nspawn leaves in a host's folders, and the names of the machines, are for the test alone. Its mounts are its own.
fn keep_from_the_host(folder: &Path, hosts: &str) -> Result<()> {
    let none = None::<&str>;
    fs::create_dir_all("/run/systemd")?;
    mount(Some("memory"), "/run/systemd", Some("tmpfs"), MsFlags::empty(), none)
        .context("cannot cover /run/systemd")?;
    let file = folder.join("hosts");
    fs::write(&file, hosts)?;
    mount(Some(&file), "/etc/hosts", none, MsFlags::MS_BIND, none).context("cannot cover /etc/hosts")
}

// === impl Systems ===

impl Systems {
    /// Machines that have never been switched on. To be called inside [`crate::network::inside`].
    pub fn new(folder: &TestFolder, image: Image, names: &[&str]) -> Result<Self> {
        let (layers, packages) = (image.layers()?, image::packages()?);
        let network = Network::new(folder.path())?;
        let hosts = hosts(names, network.next_addresses());
        keep_from_the_host(folder.path(), &hosts)?;
        let logs = folder.join("logs");
        fs::create_dir_all(&logs)?;
        let machines = folder.join("machines");
        let make = |name: &&str| {
            let system = System::make(&network, name, &layers, &packages, &machines, &hosts)?;
            Ok(((*name).to_owned(), system))
        };
        let by_name = names.iter().map(make).collect::<Result<_>>()?;
        Ok(Self { by_name, network, logs })
    }

    /// The network between them.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// A machine by its name.
    pub fn system(&self, name: &str) -> Result<&System> {
        self.by_name.get(name).with_context(|| format!("there is no machine {name}"))
    }

    /// All machines.
    pub fn all(&self) -> impl Iterator<Item = &System> {
        self.by_name.values()
    }

    /// Switches all on, and waits until all have booted.
    pub fn boot(&self) -> Result<()> {
        self.switch_on(&self.by_name.keys().map(String::as_str).collect::<Vec<_>>())
    }

    /// Does something on some machines, on all at once.
    pub fn on_each(&self, names: &[&str], work: impl Fn(&System) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let running: Vec<_> =
                names.iter().map(|name| Ok(scope.spawn(|| work(self.system(name)?)))).collect::<Result<_>>()?;
            running.into_iter().try_for_each(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// Switches machines off by their own command, all at once: everything on them is told to end. Returns when all are off.
    pub fn switch_off(&self, names: &[&str]) -> Result<()> {
        self.on_each(names, System::switch_off)
    }

    /// Switches machines on, and waits until all have booted.
    pub fn switch_on(&self, names: &[&str]) -> Result<()> {
        names.iter().try_for_each(|name| self.system(name)?.machine().power_on())?;
        names.iter().try_for_each(|name| self.system(name)?.booted())
    }

    /// Writes every machine's journal to the test's folder, where it is kept if the test fails.
    fn keep_journals(&self) -> Result<()> {
        self.all().try_for_each(|system| {
            Ok(fs::write(self.logs.join(format!("{}.journal", system.name())), system.journal(None)?)?)
        })
    }
}

impl Drop for Systems {
    #[expect(clippy::print_stderr, reason = "who reads a failed test has to learn what is missing")]
    fn drop(&mut self) {
        // A process that hangs with its disk could not be ended, and its journal not be read.
        if let Err(error) = self.network.thaw_all().and_then(|()| self.keep_journals()) {
            eprintln!("the journals are not complete: {error:#}");
        }
        for system in self.all() {
            drop(system.machine().power_off());
        }
        for covered in ["/etc/hosts", "/run/systemd"] {
            // Otherwise they go with the test's namespace.
            drop(Command::new("umount").arg(covered).output());
        }
    }
}
