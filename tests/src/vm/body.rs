//! A whole system in a machine: systemd-nspawn boots it from a root of its own.
//!
//! The root is the image with a disk over it, which keeps all that is written, over a power cut or a reboot, and can hang. A
//! power cut kills the first process; the page cache is the host's, so no fsync is missed.
//!
//! **Invariants:** each system is in a control group of its own: otherwise the systemd of one machine would kill in the groups of
//! another. A shell outside of it waits for the end of the test's pipe, and then kills all that is in the group and removes it:
//! a system would outlive nspawn's own process.

use std::{
    fs,
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster::run,
    network::body::{Body, Held, spawn},
    workload::now_nanos,
};

/// How long systemd-nspawn may take to make the machine, before anything boots in it.
const MADE: Duration = Duration::from_secs(30);
/// How long the listening may go on when nobody wants it any more.
const BREATH: Duration = Duration::from_secs(1);
/// How long a system may take to boot.
const BOOTED: Duration = Duration::from_secs(90);

/// Runs nspawn in a control group of its own until its input ends. A disk that hangs would keep the processes of the system, and
/// the last ones of a group may still be on their way out when it is to be removed.
const HOLD: &str = r#"
group=$1 shadow=$2 disk=$3; shift 3
mkdir "$group" || exit
sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' enter "$group" "$@" </dev/null &
read -r _
echo 1 >"$group/cgroup.kill"
fsfreeze --unfreeze "$disk" 2>/dev/null
wait
for _ in 1 2 3 4 5 6 7 8 9 10; do
    find "$group" ${shadow:+"$shadow"} -depth -type d -exec rmdir {} + 2>/dev/null
    [ -e "$group" ] || [ -e "$shadow" ] || break
    sleep 0.1
done
"#;

/// A system that boots from a root of its own.
#[derive(Debug)]
pub(super) struct Whole {
    name: String,
    root: PathBuf,
    disk: PathBuf,
    console: PathBuf,
    /// Folder of the host that the system sees at the same place as every other, and may not write to.
    packages: PathBuf,
    news: News,
}

/// What nspawn says of the machine, and the system in it of itself.
#[derive(Debug, Clone)]
pub(super) struct News {
    path: PathBuf,
    ear: Arc<Mutex<Option<Ear>>>,
}

/// Hears what is said since a machine was switched on, also when nobody asks for it: a system that is not listened to stands still.
#[derive(Debug)]
struct Ear {
    words: mpsc::Receiver<String>,
    /// The listening ends with this.
    _listening: Arc<()>,
}

/// Where a system sees the packages that are to be installed.
pub const PACKAGES: &str = "/srv/regent";

/// Number of the next control group of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where control groups of version 2 are mounted, not at the top where the host still has those of version 1; and systemd's own
/// tree of version 1, in which nspawn then makes a group of the same name.
fn control_groups() -> Result<(PathBuf, Option<PathBuf>)> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounted = |kind: &str, option: &str| {
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = fields.find(|fields| fields.len() > 3 && fields[2] == kind && fields[3].contains(option));
        found.map(|fields| PathBuf::from(fields[1]))
    };
    let groups = mounted("cgroup2", "").context("no control groups of version 2 are mounted (mount -t cgroup2)")?;
    Ok((groups, mounted("cgroup", "name=systemd")))
}

// === impl News ===

impl News {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, ear: Arc::default() }
    }

    /// Forgets what was said, and listens from now on.
    fn listen(&self) -> Result<()> {
        drop(fs::remove_file(&self.path));
        let socket = UnixDatagram::bind(&self.path).with_context(|| format!("cannot make {}", self.path.display()))?;
        socket.set_read_timeout(Some(BREATH))?;
        let (says, words) = mpsc::channel();
        let listening = Arc::new(());
        let wanted = Arc::downgrade(&listening);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while wanted.strong_count() > 0 {
                // Nothing for a while is no end.
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                if says.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        *self.ear.lock().expect("nothing panics while it holds this lock") = Some(Ear { words, _listening: listening });
        Ok(())
    }

    /// Waits for a word of the form `KEY=VALUE`; the value.
    fn heard(&self, key: &str, within: Duration) -> Result<String> {
        let ear = self.ear.lock().expect("nothing panics while it holds this lock");
        let ear = ear.as_ref().context("it was never switched on")?;
        let begin = now_nanos();
        loop {
            let left = within.saturating_sub(Duration::from_nanos(now_nanos() - begin));
            let text = ear.words.recv_timeout(left).with_context(|| format!("no word of {key} within {within:?}"))?;
            if let Some(value) = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')) {
                return Ok(value.to_owned());
            }
        }
    }

    /// Waits until the system says that everything that a boot starts has been started. To be called once for each boot.
    pub(super) fn booted(&self) -> Result<()> {
        self.heard("READY", BOOTED).map(drop)
    }
}

// === impl Whole ===

impl Whole {
    /// A system that is switched off, from layers of an image, the upper one first. `folder` is the machine's own, with `disk`, which is mounted, and room for the rest.
    pub(super) fn new(name: &str, layers: &[PathBuf], packages: &Path, folder: &Path, news: News) -> Result<Self> {
        let (root, disk) = (folder.join("root"), folder.join("disk"));
        for made in [&root, &disk.join("written"), &disk.join("work")] {
            fs::create_dir(made).with_context(|| format!("cannot make {}", made.display()))?;
        }
        let lower: Vec<_> = layers.iter().map(|layer| layer.display().to_string()).collect();
        let (lower, upper) = (lower.join(":"), disk.display());
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o"]);
        mount.arg(format!("lowerdir={lower},upperdir={upper}/written,workdir={upper}/work"));
        mount.arg(&root);
        run(mount)?;
        let console = folder.join("console.log");
        Ok(Self { name: name.to_owned(), root, disk, console, packages: packages.to_owned(), news })
    }
}

impl Body for Whole {
    fn power_on(&self) -> Result<Held> {
        self.news.listen()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("regent-test-{}-{number}-{}", std::process::id(), self.name);
        let (groups, shadows) = control_groups()?;
        let console = fs::OpenOptions::new().create(true).append(true).open(&self.console)?;
        let mut command = Command::new("sh");
        command.args(["-c", HOLD, "hold"]).arg(groups.join(&name));
        command.arg(shadows.map(|shadows| shadows.join(&name)).unwrap_or_default()).arg(&self.disk);
        command.args(["systemd-nspawn", "--quiet", "--boot", "--machine", &self.name, "--directory"]).arg(&self.root);
        // Nobody else on the host is told of it; the network puts the cable in.
        command.args(["--register=no", "--keep-unit", "--private-network", "--notify-ready=yes"]);
        command.args(["--console=read-only", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
        command.arg(format!("--bind-ro={}:{PACKAGES}", self.packages.display()));
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").env("NOTIFY_SOCKET", &self.news.path);
        command.stdin(Stdio::piped()).stdout(console.try_clone()?).stderr(console);
        // Ctrl-C in the terminal ends the test, and that ends the machine.
        command.process_group(0);
        let mut holder = spawn(command)?;
        let first = self.news.heard("X_NSPAWN_LEADER_PID", MADE).and_then(|pid| Ok(pid.parse()?));
        match first {
            Ok(first) => Ok(Held { holder, first }),
            Err(error) => {
                holder.wait()?;
                bail!("{error:#}; see {}", self.console.display())
            }
        }
    }

    fn shared(&self) -> &'static [(&'static str, &'static str)] {
        // A program of the host finds its files in the host's mounts.
        &[("net", "net")]
    }

    fn configures_itself(&self) -> bool {
        true
    }
}

impl Drop for Whole {
    #[expect(clippy::print_stderr, reason = "who reads a failed test has to learn what is left")]
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.arg(&self.root);
        if let Err(error) = run(unmount) {
            // It goes with the test's namespace.
            eprintln!("the root of {} stays until the test ends: {error:#}", self.name);
        }
    }
}
