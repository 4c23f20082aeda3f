//! The network of the tests itself: it must cut what it says it cuts, before it may accuse Regent. No daemons here.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use regent_tests::{
    cluster::run,
    folder::TestFolder,
    network::{self, CLIENTS, Cable, HUB_ADDRESS, Machine, Network},
    process::{self, Daemon},
    wait,
    workload::now_nanos,
};

const SOON: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(400);
const PORT: u16 = 7000;

/// Listens at an address and sends the caller's bytes back, on a machine or, without one, where the test is.
const ECHO: &str = "\
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(100):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server((sys.argv[1], 7000), Echo).serve_forever()
";

/// Asks an echo once, with a timeout in seconds; says `heard` or fails.
const ASK: &str = "\
import socket, sys
with socket.create_connection((sys.argv[1], 7000), float(sys.argv[2])) as s:
    s.sendall(b'x')
    assert s.recv(1) == b'x'
print('heard')
";

fn python(machine: Option<&Machine>, script: &str, arguments: &[&str]) -> Command {
    let mut command = machine.map_or_else(|| Command::new("python3"), |machine| machine.command("python3").unwrap());
    command.args(["-c", script]).args(arguments);
    command
}

/// Whether somebody gets an answer from an address.
fn hears(from: Option<&Machine>, address: &str) -> bool {
    let seconds = SILENCE.as_secs_f64().to_string();
    run(python(from, ASK, &[address, &seconds])).is_ok()
}

struct World {
    network: Arc<Network>,
    one: Arc<Machine>,
    other: Arc<Machine>,
    echoes: Vec<Daemon>,
    /// Dropped last.
    folder: TestFolder,
}

impl World {
    async fn new() -> Self {
        let folder = TestFolder::new().unwrap();
        let network = Network::new(folder.path()).unwrap();
        let (one, other) = (network.machine("one").unwrap(), network.machine("other").unwrap());
        let mut world = Self { network, one, other, echoes: Vec::new(), folder };
        for machine in [Arc::clone(&world.one), Arc::clone(&world.other)] {
            world.serve(&machine).await;
        }
        world
    }

    /// Starts an echo on a machine.
    async fn serve(&mut self, machine: &Machine) {
        let echo = python(Some(machine), ECHO, &[&machine.address()]);
        self.echoes.push(Daemon::start("echo", echo, &self.folder.join("echo.log")).unwrap());
        let address = machine.address();
        wait::until("an echo", SOON, || async {
            anyhow::ensure!(hears(None, &address), "{address} is silent");
            Ok(())
        })
        .await
        .unwrap();
    }
}

fn inside<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    network::inside(test).unwrap();
}

#[test]
fn machines_reach_each_other_and_nothing_of_the_host() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let of_the_host = host.local_addr().unwrap();
    inside(|| async move {
        let world = World::new().await;
        assert!(hears(Some(&world.one), &world.other.address()) && hears(Some(&world.other), &world.one.address()));
        assert!(TcpStream::connect(of_the_host).is_err(), "loopback is not the host's");
        let mut echo = python(None, ECHO, &[HUB_ADDRESS]).process_group(0).spawn().unwrap();
        wait::until("clients are reached too", SOON, || async {
            anyhow::ensure!(hears(Some(&world.one), HUB_ADDRESS), "silence");
            Ok(())
        })
        .await
        .unwrap();
        echo.kill().unwrap();
        echo.wait().unwrap();
    });
    // Nothing of it is left to the host.
    assert!(!Path::new("/sys/class/net/m-one").exists() && !Path::new("/sys/class/net/hub").exists());
}

#[test]
fn a_cut_is_one_way_and_between_those_it_names() {
    inside(|| async {
        let world = World::new().await;
        let (one, other) = (world.one.address(), world.other.address());
        // Who asks needs both ways: a cut of either direction silences the pair, and nobody else.
        for direction in [("one", "other"), ("other", "one")] {
            world.network.cut(&[direction]).unwrap();
            assert!(!hears(Some(&world.one), &other) && !hears(Some(&world.other), &one), "{direction:?}");
            assert!(hears(None, &one) && hears(None, &other), "{direction:?}");
            world.network.heal().unwrap();
            assert!(hears(Some(&world.one), &other) && hears(Some(&world.other), &one), "{direction:?}");
        }
        for direction in [(CLIENTS, "one"), ("one", CLIENTS)] {
            world.network.cut(&[direction]).unwrap();
            assert!(!hears(None, &one) && hears(None, &other), "{direction:?}");
            assert!(hears(Some(&world.other), &one), "{direction:?}");
            world.network.heal().unwrap();
        }
        assert!(hears(None, &one));
    });
}

#[test]
fn one_way_is_one_way() {
    inside(|| async {
        let world = World::new().await;
        // What one sends arrives, and no answer comes back: of two datagrams only one direction's is seen.
        let listen = "import socket, sys\n\
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 7001)); s.settimeout(2)\n\
            print('ready', flush=True); print(s.recv(9).decode())";
        let send = "import socket, sys\n\
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'word', (sys.argv[1], 7001))";
        world.network.cut(&[("other", "one")]).unwrap();
        for (from, to, arrives) in [(&world.one, &world.other, true), (&world.other, &world.one, false)] {
            let mut listener = python(Some(to), listen, &[&to.address()]);
            let mut listener = listener.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut out = listener.stdout.take().unwrap();
            let mut ready = [0; 6];
            out.read_exact(&mut ready).unwrap();
            run(python(Some(from), send, &[&to.address()])).unwrap();
            let mut said = String::new();
            out.read_to_string(&mut said).unwrap();
            listener.wait().unwrap();
            assert_eq!(said.trim() == "word", arrives, "{} -> {}", from.name(), to.name());
        }
    });
}

#[test]
fn a_power_cut_says_nothing_and_leaves_nothing_and_another_boot_follows() {
    inside(|| async {
        let mut world = World::new().await;
        let boot = |machine: &Machine| {
            let mut read = machine.command("cat").unwrap();
            read.arg("/proc/sys/kernel/random/boot_id");
            run(read).unwrap()
        };
        let (before, others) = (boot(&world.one), boot(&world.other));
        assert_ne!(before, others);
        let mut rules = world.one.command("nft").unwrap();
        rules.args(["add", "table", "inet", "gone_with_the_machine"]);
        run(rules).unwrap();
        let mut open = TcpStream::connect((world.one.address(), PORT)).unwrap();
        open.set_read_timeout(Some(SILENCE)).unwrap();
        let running = world.one.processes().unwrap();
        assert!(!running.is_empty());

        world.one.power_off().unwrap();
        assert!(running.iter().all(|pid| !process::lives(*pid)), "{running:?}");
        let silent = open.read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock, "no packet says goodbye: {silent}");
        assert!(!hears(None, &world.one.address()) && hears(None, &world.other.address()));

        world.one.power_on().unwrap();
        world.serve(&Arc::clone(&world.one)).await;
        assert!(hears(Some(&world.other), &world.one.address()));
        assert_ne!(boot(&world.one), before);
        assert_eq!(boot(&world.other), others);
        let mut rules = world.one.command("nft").unwrap();
        rules.args(["list", "ruleset"]);
        assert_eq!(run(rules).unwrap(), "");
    });
}

#[test]
fn a_cable_comes_out_and_in() {
    inside(|| async {
        let world = World::new().await;
        world.one.cable(Cable::Out).unwrap();
        assert!(!hears(None, &world.one.address()));
        assert!(!world.one.processes().unwrap().is_empty(), "nobody died of it");
        world.one.cable(Cable::In).unwrap();
        let address = world.one.address();
        wait::until("an answer", SOON, || async {
            anyhow::ensure!(hears(None, &address), "silence");
            Ok(())
        })
        .await
        .unwrap();
    });
}

#[test]
fn a_frozen_disk_hangs_who_writes_until_it_is_thawed() {
    inside(|| async {
        let world = World::new().await;
        let home = world.folder.join("home");
        world.network.give_disk("one", &home).unwrap();
        let write = "echo word > \"$1\"; exec sleep 60";
        let start = |name: &str| {
            let mut command = world.one.command("sh").unwrap();
            command.args(["-c", write, "sh"]).arg(home.join(name)).process_group(0).spawn().unwrap()
        };
        let there = |name: &'static str| {
            let path = home.join(name);
            move || {
                let path = path.clone();
                async move {
                    anyhow::ensure!(std::fs::read_to_string(&path)? == "word\n", "empty");
                    Ok(())
                }
            }
        };
        let mut before = start("before");
        wait::until("a file", SOON, there("before")).await.unwrap();
        world.network.with_disk("one", network::Disk::freeze).unwrap();
        let begin = now_nanos();
        let mut during = start("during");
        wait::until("a process in state D", SOON, || async {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", during.id()))?;
            // On its way there it has another name, and may be in this state for another reason.
            anyhow::ensure!(stat.contains("(sh) D "), "{stat}");
            Ok(())
        })
        .await
        .unwrap();
        process::signal(during.id(), Signal::SIGKILL).unwrap();
        tokio::time::sleep(SILENCE).await;
        assert!(process::lives(during.id()), "killed, and there still");
        assert!(now_nanos() - begin >= u64::try_from(SILENCE.as_nanos()).unwrap());
        world.network.with_disk("one", network::Disk::thaw).unwrap();
        assert!(!during.wait().unwrap().success());
        let mut after = start("after");
        wait::until("a file", SOON, there("after")).await.unwrap();
        for child in [&mut before, &mut after] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    });
}

#[test]
fn what_runs_on_a_machine_ends_with_the_test() {
    let mut pids = Vec::new();
    inside(|| {
        let pids = &mut pids;
        async {
            let world = World::new().await;
            let known = world.one.processes().unwrap();
            // Nobody's child: nothing of the test knows it.
            let mut leave = world.one.command("sh").unwrap();
            leave.args(["-c", "sleep 600 >/dev/null 2>&1 &"]);
            run(leave).unwrap();
            pids.extend(world.one.processes().unwrap().into_iter().filter(|pid| !known.contains(pid)));
            assert!(!pids.is_empty());
        }
    });
    assert!(pids.iter().all(|pid| !process::lives(*pid)), "{pids:?}");
}
