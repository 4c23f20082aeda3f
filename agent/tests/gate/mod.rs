//! Network namespaces, clients, and processes of their own, for the tests of the gate in the kernel.

use std::{
    collections::BTreeSet,
    future::Future,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    sync::{Arc, Mutex, Weak, mpsc},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use regent_agent::gate::{Gate, GateError, conformance::World, nftables::NftablesGate};
use regent_common::clock::{Clock, Moment, SystemClock};

/// The table of these tests; each has a network namespace of its own.
pub(crate) const TABLE: &str = "regent-test";

/// Time in which an answer over loopback comes, if one comes. Long, because the machine may be busy; the first
/// retransmission of a dropped segment, after 200 ms, must not be waited for in vain.
const ANSWER: Duration = Duration::from_millis(250);

/// Tells a process that it is a child, and what it is to do.
const ROLE: &str = "REGENT_GATE_TEST_ROLE";

/// Runs a test in a new network namespace whose loopback is up.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the tests of the gate make network namespaces and speak to nftables: run them as root"
    );
    let inside = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        command("ip", &["link", "set", "lo", "up"]);
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test());
    };
    if let Err(panic) = thread::spawn(inside).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program that has to succeed; returns what it printed.
pub(crate) fn command(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be started ({error}): run tests/run --prepare process"));
    assert!(status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

/// The present moment.
pub(crate) fn now() -> Moment {
    SystemClock.now()
}

/// The moment so many milliseconds from now.
pub(crate) fn after(milliseconds: u64) -> Moment {
    now().plus(Duration::from_millis(milliseconds))
}

/// Waits until both clocks say that it is over.
pub(crate) async fn over(end: Moment) {
    loop {
        let left = end.awaited_for(now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// The gate of these tests, with a system clock.
pub(crate) fn gate() -> NftablesGate {
    let gate = NftablesGate::open(TABLE, Arc::new(SystemClock));
    // A child without rights says so itself.
    assert!(role().is_some() || gate.abilities().survives_flush, "{:?}", gate.abilities().problems);
    gate
}

/// The same as on a kernel that cannot keep others from changing it.
pub(crate) fn shared_gate() -> NftablesGate {
    NftablesGate::open_shared(TABLE, Arc::new(SystemClock))
}

/// One port.
pub(crate) fn only(port: u16) -> BTreeSet<u16> {
    BTreeSet::from([port])
}

/// A server that answers every byte with the same byte; returns its port. It lives in a thread of its own, for as long as
/// the test process does.
pub(crate) fn echo_server(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    serve_echo(listener);
    port
}

/// The same with a listener that there is.
pub(crate) fn serve_echo(listener: TcpListener) {
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || echo(connection));
        }
    });
}

fn echo(mut connection: TcpStream) {
    let mut byte = [0];
    while connection.read_exact(&mut byte).is_ok() && connection.write_all(&byte).is_ok() {}
}

/// A client that sends a byte on a connection, and whether the answer came in time.
pub(crate) fn ping(connection: &mut TcpStream) -> bool {
    connection.set_read_timeout(Some(ANSWER)).expect("a timeout that is not zero");
    let mut byte = [7];
    connection.write_all(&byte).is_ok() && connection.read_exact(&mut byte).is_ok()
}

/// A new connection, if the server takes one in time.
pub(crate) fn connect(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&SocketAddr::new(address, port), ANSWER)?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// Whether a new client gets an answer.
pub(crate) fn answers(address: IpAddr, port: u16) -> bool {
    connect(address, port).is_ok_and(|mut connection| ping(&mut connection))
}

/// The addresses of loopback.
pub(crate) const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Another machine: a network namespace that a cable joins to the calling thread's.
pub(crate) struct Elsewhere {
    wanted: mpsc::Sender<SocketAddr>,
    connected: mpsc::Receiver<io::Result<TcpStream>>,
}

impl Elsewhere {
    /// The addresses of the calling thread's namespace as that machine sees it.
    pub(crate) const HERE: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1))];

    /// Makes it, for as long as this value lives.
    pub(crate) fn new() -> Self {
        let (wanted, requests) = mpsc::channel();
        let (answers, connected) = mpsc::channel();
        let (made, thread) = mpsc::channel();
        let (plugged, cable) = mpsc::channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            made.send(nix::unistd::gettid().to_string()).expect("the test waits");
            cable.recv().expect("the test plugs it in");
            Self::address("gate1", 2);
            for address in requests {
                answers.send(dial(address)).expect("the test waits");
            }
        });
        let thread: String = thread.recv().expect("it says who it is");
        command("ip", &["link", "add", "gate0", "type", "veth", "peer", "name", "gate1"]);
        command("ip", &["link", "set", "gate1", "netns", &thread]);
        Self::address("gate0", 1);
        plugged.send(()).expect("it waits");
        Self { wanted, connected }
    }

    /// A connection from there.
    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.wanted.send(address).expect("it lives");
        self.connected.recv().expect("it answers")
    }

    fn address(end: &str, number: u8) {
        command("ip", &["address", "add", &format!("10.9.0.{number}/24"), "dev", end]);
        command("ip", &["address", "add", &format!("fd09::{number}/64"), "dev", end, "nodad"]);
        command("ip", &["link", "set", end, "up"]);
    }
}

/// A connection over a cable that may have been plugged in just now.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let deadline = after(20_000);
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(connection) => return Ok(connection),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(error),
            Err(error) if deadline.held_for(now()).is_zero() => panic!("{address} cannot be reached: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A network namespace as the conformance suite wants it.
pub(crate) struct KernelWorld {
    address: IpAddr,
    ports: [u16; 2],
    /// Whether the table is owned by its process.
    owned: bool,
    /// The gate that was handed out last.
    gate: Mutex<Weak<NftablesGate>>,
}

impl KernelWorld {
    /// In the calling thread's namespace.
    pub(crate) fn new(address: IpAddr, owned: bool) -> Self {
        Self { address, ports: [echo_server(address), echo_server(address)], owned, gate: Mutex::default() }
    }

    fn hand_out(&self, gate: NftablesGate) -> Arc<dyn Gate> {
        let gate = Arc::new(gate);
        *self.gate.lock().expect("no case has panicked") = Arc::downgrade(&gate);
        gate
    }
}

#[async_trait]
impl World for KernelWorld {
    fn ports(&self) -> [u16; 2] {
        self.ports
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    fn gate(&self) -> Arc<dyn Gate> {
        self.hand_out(if self.owned { gate() } else { shared_gate() })
    }

    async fn passes(&self, port: u16) -> bool {
        answers(self.address, port)
    }

    async fn wait(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn open_late(&self, end: Option<Moment>, frozen: Duration) -> Result<(), GateError> {
        let gate = self.gate.lock().expect("no case has panicked").upgrade().expect("the case holds it");
        let prepared = gate.prepare()?;
        tokio::time::sleep(frozen).await;
        gate.make(prepared, end)
    }

    async fn remove(&self, gate: Arc<dyn Gate>) -> Arc<dyn Gate> {
        drop(gate);
        let gate = self.hand_out(shared_gate());
        command("nft", &["delete", "table", "inet", TABLE]);
        gate
    }
}

/// A process of its own in the calling thread's namespace: this test program again, in a role.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it; `wrapper` is put before the program.
    pub(crate) fn start(wrapper: &[&str], role: &str) -> Self {
        let program = std::env::current_exe().expect("this program has a file");
        let mut words: Vec<&std::ffi::OsStr> = wrapper.iter().map(std::ffi::OsStr::new).collect();
        words.push(program.as_os_str());
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, input, output }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next thing that it says.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let length = self.output.read_line(&mut line).expect("its output can be read");
            assert!(length > 0, "the child ended and said nothing");
            // The test framework's own output goes the same way.
            if let Some((_, said)) = line.split_once("says: ") {
                return said.trim_end().to_owned();
            }
        }
    }

    /// Says something to it.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("it listens");
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().expect("process ids are small"));
        kill(pid, signal).expect("it lives");
    }

    /// Waits for its end; whether it succeeded.
    pub(crate) fn succeeded(mut self) -> bool {
        self.output.read_to_string(&mut String::new()).expect("its output can be read");
        self.child.wait().expect("it is ours").success()
    }

    /// Waits for its end, which has to be a success.
    pub(crate) fn ended(self) {
        assert!(self.succeeded(), "the child failed");
    }

    /// Kills it, and returns when it is gone.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a child is to do; `None` in the test program itself.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// As a child: says something to the test.
pub(crate) fn say(what: &str) {
    // Not through the test framework, which would keep it.
    writeln!(std::io::stdout(), "says: {what}").expect("the test listens");
}

/// As a child: waits until it is told something.
pub(crate) fn listen() -> String {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("the test speaks");
    line.trim_end().to_owned()
}
