//! The gate in the real kernel: each test in a network namespace of its own. Needs root, `nft`, `ip`, `setpriv`.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod gate;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gate::*;
use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use regent_agent::{
    gate::{
        Gate as _, GateError, Open,
        conformance::{self, CASES},
        nftables::{self, NftablesGate},
    },
    host::ports::listening_ports,
};
use regent_common::clock::{Clock, ManualClock, Moment};

// --- the suite -------------------------------------------------------------------------------------------------------

fn conformance(address: IpAddr, owned: bool) {
    in_namespace(move || async move {
        let mut failures = Vec::new();
        for (name, case) in CASES {
            let world = KernelWorld::new(address, owned);
            failures.extend(conformance::run(&world, name, *case).await.err());
            nftables::remove(TABLE).unwrap();
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

#[test]
fn conformance_over_ipv4() {
    conformance(LOOPBACKS[0], true);
}

#[test]
fn conformance_over_ipv6() {
    conformance(LOOPBACKS[1], true);
}

#[test]
fn conformance_of_a_table_without_owner() {
    conformance(LOOPBACKS[0], false);
}

// --- abilities -------------------------------------------------------------------------------------------------------

#[test]
fn this_kernel_can_do_everything_and_the_trial_leaves_nothing() {
    in_namespace(|| async {
        let abilities = gate().abilities();
        assert_eq!(abilities.problems, Vec::<String>::new());
        assert!(abilities.timed_gate && abilities.destroys_sockets && abilities.survives_flush);
        assert_eq!(command("nft", &["list", "tables"]), "");
    });
}

#[test]
fn without_the_right_it_says_what_to_do() {
    in_namespace(|| async {
        let mut child = Process::start(&["setpriv", "--bounding-set", "-net_admin"], "abilities");
        let said = child.hear();
        assert!(said.starts_with("false false false"), "{said}");
        assert!(said.contains("run the agent as root, or with CAP_NET_ADMIN"), "{said}");
        let refused = child.hear();
        assert!(refused.starts_with("the kernel refused to arm the gate: "), "{refused}");
    });
}

// --- established connections -------------------------------------------------------------------------------------------

#[test]
fn an_established_connection_is_cut_on_time_by_the_kernel_alone() {
    for (address, frozen) in [(LOOPBACKS[0], false), (LOOPBACKS[1], true)] {
        in_namespace(move || async move {
            let port = echo_server(address);
            let mut child = Process::start(&[], &format!("open 1500 {port}"));
            let end = moment(&child.hear());
            let mut connection = connect(address, port).expect("the gate is open");
            if frozen {
                child.signal(Signal::SIGSTOP);
            } else {
                child.kill();
            }
            let (mut answered, mut last) = (0, Moment::default());
            loop {
                let begun = now();
                if !ping(&mut connection) {
                    break;
                }
                (answered, last) = (answered + 1, begun);
                assert!(!end.awaited_for(begun).is_zero(), "a connection was answered after the end");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(answered > 10, "it was answered only {answered} times");
            assert!(end.held_for(last) < Duration::from_millis(600), "it was cut {:?} early", end.held_for(last));
            over(end).await;
            assert!(!ping(&mut connection) && !answers(address, port));
        });
    }
}

/// A server that has taken a request and not answered yet, and its client.
struct Pending {
    server: TcpStream,
    client: TcpStream,
}

fn pending(listener: &TcpListener, from: &From) -> Pending {
    let port = listener.local_addr().unwrap().port();
    let mut client = from.connect(port);
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"commit").unwrap();
    server.read_exact(&mut [0; 6]).unwrap();
    Pending { server, client }
}

/// Where a client is.
enum From {
    SameMachine(IpAddr),
    OtherMachine(Elsewhere, IpAddr),
}

impl From {
    fn connect(&self, port: u16) -> TcpStream {
        self.try_connect(port).expect("the gate is open")
    }

    fn try_connect(&self, port: u16) -> std::io::Result<TcpStream> {
        match self {
            Self::SameMachine(address) => connect(*address, port),
            Self::OtherMachine(elsewhere, address) => elsewhere.connect((*address, port).into()),
        }
    }
}

/// What the client gets within the time: an answer, or the end of the connection.
fn heard(client: &mut TcpStream, within: Duration) -> std::io::Result<usize> {
    client.set_read_timeout(Some(within)).unwrap();
    client.read(&mut [0; 16])
}

fn nothing(heard: &std::io::Result<usize>) -> bool {
    heard.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

async fn a_queued_answer_does_not_leave(from: From, orphaned: bool) {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let gate = gate();
    gate.arm(&only(listener.local_addr().unwrap().port())).await.unwrap();
    gate.open(None).await.unwrap();

    // Without destruction the kernel goes on sending: this is what has to be prevented.
    let mut held = pending(&listener, &from);
    gate.close().await.unwrap();
    held.server.write_all(b"done").unwrap();
    drop(held.server);
    assert!(nothing(&heard(&mut held.client, Duration::from_millis(300))), "an answer got out while closed");
    gate.open(None).await.unwrap();
    assert_eq!(heard(&mut held.client, Duration::from_secs(20)).unwrap(), 4);
    drop(held.client);

    let mut held = pending(&listener, &from);
    gate.close().await.unwrap();
    held.server.write_all(b"done").unwrap();
    let server = (!orphaned).then_some(held.server);
    assert!(nothing(&heard(&mut held.client, Duration::from_millis(300))), "an answer got out while closed");
    let destroyed = gate.destroy_sockets().await.unwrap();
    assert!(destroyed >= 1, "nothing was destroyed");
    // The reset says that the kernel knows the connection no more, so that nothing can come of it later. It passes the closed gate:
    // the client need not wait for the end of its retransmission.
    let heard = heard(&mut held.client, Duration::from_secs(20));
    assert!(
        heard.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
        "the client heard {heard:?}"
    );
    drop(server);
    gate.open(None).await.unwrap();
    // What listens was left alone.
    pending(&listener, &from).client.shutdown(Shutdown::Both).unwrap();
}

#[test]
fn a_queued_answer_leaves_neither_when_closed_nor_after_its_socket_was_destroyed() {
    for orphaned in [false, true] {
        for address in LOOPBACKS {
            in_namespace(move || a_queued_answer_does_not_leave(From::SameMachine(address), orphaned));
        }
    }
}

/// Over loopback a packet passes both hooks; only to another machine does the output alone decide.
#[test]
fn a_queued_answer_does_not_leave_for_another_machine() {
    for orphaned in [false, true] {
        for address in Elsewhere::HERE {
            in_namespace(move || {
                a_queued_answer_does_not_leave(From::OtherMachine(Elsewhere::new(), address), orphaned)
            });
        }
    }
}

async fn a_closed_port_refuses(from: From) {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let gate = gate();
    gate.arm(&only(listener.local_addr().unwrap().port())).await.unwrap();
    gate.open(None).await.unwrap();
    let mut held = pending(&listener, &from);
    gate.close().await.unwrap();
    let refused = from.try_connect(listener.local_addr().unwrap().port());
    assert!(
        refused.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused),
        "a new connection heard {refused:?}"
    );
    held.client.write_all(b"and?").unwrap();
    assert!(nothing(&heard(&mut held.client, Duration::from_millis(300))), "a session that there is ends for nobody");
    gate.open(None).await.unwrap();
    held.server.write_all(b"done").unwrap();
    assert_eq!(heard(&mut held.client, Duration::from_secs(20)).unwrap(), 4);
}

/// A client of a closed port asks the next member at once; one whose session stands goes on when the gate opens again.
#[test]
fn a_connection_to_a_closed_port_is_refused_at_once() {
    for address in LOOPBACKS {
        in_namespace(move || a_closed_port_refuses(From::SameMachine(address)));
    }
    for address in Elsewhere::HERE {
        in_namespace(move || a_closed_port_refuses(From::OtherMachine(Elsewhere::new(), address)));
    }
}

#[test]
fn only_sockets_of_gated_ports_are_destroyed() {
    in_namespace(|| async {
        let [port, other] = [echo_server(LOOPBACKS[0]), echo_server(LOOPBACKS[0])];
        let mut gated = [connect(LOOPBACKS[0], port).unwrap(), connect(LOOPBACKS[0], port).unwrap()];
        let mut untouched = connect(LOOPBACKS[0], other).unwrap();
        assert!(gated.iter_mut().all(ping) && ping(&mut untouched));
        let gate = gate();
        gate.arm(&only(port)).await.unwrap();
        assert_eq!(gate.destroy_sockets().await.unwrap(), 2);
        assert_eq!(gate.destroy_sockets().await.unwrap(), 0);
        gate.open(None).await.unwrap();
        assert!(!gated.iter_mut().any(ping));
        assert!(ping(&mut untouched) && answers(LOOPBACKS[0], port));
    });
}

// --- others, and other processes ---------------------------------------------------------------------------------------

#[test]
fn a_foreign_flush_removes_nothing() {
    in_namespace(|| async {
        let port = echo_server(LOOPBACKS[0]);
        let gate = gate();
        gate.arm(&only(port)).await.unwrap();
        command("nft", &["add", "table", "inet", "foreign"]);
        command("nft", &["flush", "ruleset"]);
        let left = command("nft", &["list", "tables"]);
        assert_eq!(left.trim(), format!("table inet {TABLE}"));
        assert!(!answers(LOOPBACKS[0], port));
        assert_eq!(gate.verify().await.unwrap(), Vec::<String>::new());
        gate.open(None).await.unwrap();
        command("nft", &["flush", "ruleset"]);
        assert_eq!(gate.state().await.unwrap().open, Open::Untimed);
        gate.close().await.unwrap();
        assert!(!answers(LOOPBACKS[0], port));
    });
}

#[test]
fn what_somebody_breaks_in_a_shared_table_is_mended() {
    in_namespace(|| async {
        let port = echo_server(LOOPBACKS[0]);
        let gate = shared_gate();
        gate.arm(&only(port)).await.unwrap();
        let element = format!("{{ {port} }}");
        let breakages: [(&[&str], &str); 8] = [
            (&["flush", "ruleset"], "the table inet regent-test was missing"),
            (&["add", "table", "inet", TABLE, "{ flags dormant; }"], "the table inet regent-test was dormant"),
            (&["flush", "chain", "inet", TABLE, "input"], "the rules of the chain input were missing"),
            (&["flush", "chain", "inet", TABLE, "output"], "the rules of the chain output were missing"),
            (&["insert", "rule", "inet", TABLE, "input", "accept"], "the chain input had other rules"),
            (&["add", "rule", "inet", TABLE, "output", "accept"], "the chain output had other rules"),
            (&["delete", "element", "inet", TABLE, "gated", &element], "no ports were gated, not the ports"),
            (&["add", "element", "inet", TABLE, "gated", "{ 1 }"], "the ports 1, "),
        ];
        for (breakage, sentence) in breakages {
            gate.open(None).await.unwrap();
            command("nft", breakage);
            let said = gate.verify().await.unwrap();
            assert!(said.len() == 1 && said[0].starts_with(sentence), "after {breakage:?}: {said:?}");
            assert_eq!(gate.verify().await.unwrap(), Vec::<String>::new());
            gate.close().await.unwrap();
            assert!(!answers(LOOPBACKS[0], port), "after {breakage:?}");
            gate.open(None).await.unwrap();
            assert!(answers(LOOPBACKS[0], port), "after {breakage:?}");
        }
        command("nft", &["delete", "chain", "inet", TABLE, "output"]);
        assert_eq!(gate.verify().await.unwrap(), ["the chain output was missing"]);
        assert!(!answers(LOOPBACKS[0], port));
    });
}

#[test]
fn the_next_process_takes_over_what_a_killed_one_left_open() {
    in_namespace(|| async {
        let port = echo_server(LOOPBACKS[0]);
        let mut child = Process::start(&[], &format!("open 4000 {port}"));
        let end = moment(&child.hear());
        child.kill();
        let gate = gate();
        let state = gate.state().await.unwrap();
        assert_eq!(state.gated, only(port));
        let Open::Until(until) = state.open else { panic!("it is {:?}", state.open) };
        assert!(until.earlier(end) == until, "it is open until {until:?}, after {end:?}");
        assert!(end.held_for(until) < Duration::from_millis(1000), "{:?} are lost", end.held_for(until));
        assert!(answers(LOOPBACKS[0], port));
        assert_eq!(gate.verify().await.unwrap(), Vec::<String>::new());
        // It is the new process's: nobody else can flush it.
        command("nft", &["flush", "ruleset"]);
        assert!(answers(LOOPBACKS[0], port));
        let later = after(7000);
        gate.open(Some(later)).await.unwrap();
        over(end).await;
        assert!(answers(LOOPBACKS[0], port));
        gate.close().await.unwrap();
        assert!(!answers(LOOPBACKS[0], port));
        drop(gate);
        nftables::remove(TABLE).unwrap();
        assert!(answers(LOOPBACKS[0], port));
    });
}

#[test]
fn a_second_process_beside_a_living_one_changes_nothing() {
    in_namespace(|| async {
        let port = echo_server(LOOPBACKS[0]);
        let child = {
            let mut child = Process::start(&[], &format!("open 60000 {port}"));
            child.hear();
            child
        };
        let gate = gate();
        assert_eq!(gate.state().await.unwrap().gated, only(port));
        for answer in [gate.close().await, gate.open(None).await, gate.disarm().await, gate.arm(&only(1)).await] {
            assert!(matches!(answer, Err(GateError::Kernel { .. })), "{answer:?}");
        }
        assert!(matches!(nftables::remove(TABLE), Err(GateError::Kernel { .. })));
        assert!(answers(LOOPBACKS[0], port));
        child.kill();
        // The first one is gone: the next verification takes the table over.
        assert_eq!(gate.verify().await.unwrap(), Vec::<String>::new());
        gate.close().await.unwrap();
        assert!(!answers(LOOPBACKS[0], port));
        command("nft", &["flush", "ruleset"]);
        assert!(!answers(LOOPBACKS[0], port));
    });
}

#[test]
fn an_agent_that_is_stopped_between_deciding_and_acting_opens_nothing() {
    in_namespace(|| async {
        let port = echo_server(LOOPBACKS[0]);
        for frozen in [false, true] {
            let mut child = Process::start(&[], &format!("two-step {port}"));
            assert_eq!(child.hear(), "prepared");
            if frozen {
                child.signal(Signal::SIGSTOP);
                over(after(300)).await;
            }
            child.tell("go on");
            if frozen {
                child.signal(Signal::SIGCONT);
                assert_eq!(child.hear(), GateError::Late.to_string());
            } else {
                assert_eq!(child.hear(), "made");
            }
            assert_eq!(answers(LOOPBACKS[0], port), !frozen);
            child.kill();
            nftables::remove(TABLE).unwrap();
        }
    });
}

#[test]
fn the_kernel_itself_refuses_a_change_whose_guard_is_over() {
    in_namespace(|| async {
        let port = echo_server(LOOPBACKS[0]);
        let clock = Arc::new(ManualClock::default());
        let gate = NftablesGate::open(TABLE, clock.clone());
        gate.arm(&only(port)).await.unwrap();
        // By this clock no time passes, so that nothing but the kernel can know that it is too late.
        for end in [Some(clock.now().plus(Duration::from_secs(60))), None] {
            let prepared = gate.prepare().unwrap();
            over(after(300)).await;
            assert_eq!(gate.make(prepared, end), Err(GateError::Late));
            assert!(!answers(LOOPBACKS[0], port));
            gate.make(gate.prepare().unwrap(), end).unwrap();
            assert!(answers(LOOPBACKS[0], port));
            gate.close().await.unwrap();
        }
    });
}

/// A clock on which every look takes 150 ms, as on a machine that hardly runs.
struct Halting(AtomicU64);

impl Clock for Halting {
    fn boottime(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn monotonic_raw(&self) -> Duration {
        self.boottime()
    }

    fn wall(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    fn now(&self) -> Moment {
        self.0.fetch_add(150, Ordering::SeqCst);
        Moment { boottime: self.boottime(), raw: self.monotonic_raw() }
    }
}

#[test]
fn a_change_that_was_confirmed_too_late_is_closed_again() {
    in_namespace(|| async {
        let port = echo_server(LOOPBACKS[0]);
        let clock = Arc::new(Halting(AtomicU64::new(1_000_000)));
        let gate = NftablesGate::open(TABLE, clock.clone());
        gate.arm(&only(port)).await.unwrap();
        // The guard's latest end passes between the change and its confirmation; the kernel, whose time goes on as usual,
        // took the change.
        gate.open(None).await.unwrap();
        let soon = clock.now().plus(Duration::from_millis(150 + 230 + 100));
        let prepared = gate.prepare().unwrap();
        assert_eq!(gate.make(prepared, Some(soon)), Err(GateError::Late));
        assert_eq!(gate.state().await.unwrap().open, Open::Closed);
        // One that was confirmed late and ends in time all the same stays.
        let end = clock.now().plus(Duration::from_secs(3600));
        let prepared = gate.prepare().unwrap();
        gate.make(prepared, Some(end)).unwrap();
        assert!(answers(LOOPBACKS[0], port));
        // One whose guard is over by the clocks is not even sent.
        let prepared = gate.prepare().unwrap();
        clock.now();
        assert_eq!(gate.make(prepared, None), Err(GateError::Late));
        assert!(matches!(gate.state().await.unwrap().open, Open::Until(_)));
    });
}

// --- ports -----------------------------------------------------------------------------------------------------------

#[test]
fn the_listening_ports_of_a_process_and_its_descendants_are_found() {
    in_namespace(|| async {
        // The shell stays, so that the one that listens is its child; `--` ends the shell's own options.
        let mut shell = Process::start(&["sh", "-c", "\"$0\" \"$@\"; exit $?"], "listen");
        let said = shell.hear();
        let ports = said.split(' ').map(|port| port.parse().unwrap()).collect();
        assert_eq!(listening_ports(shell.pid()).unwrap(), ports);
        shell.tell("end");
        shell.ended();
    });
}

// --- measurement -------------------------------------------------------------------------------------------------------

#[test]
fn a_renewal_takes_well_below_a_millisecond_of_processor_time() {
    in_namespace(|| async {
        let gate = gate();
        gate.arm(&[5432, 6432].into()).await.unwrap();
        let processor = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let (mut spent, mut passed, mut verified) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..200 {
            let (begun, used) = (now(), processor());
            gate.open(Some(after(5000))).await.unwrap();
            spent.push(processor() - used);
            passed.push(begun.age(now()));
            let used = processor();
            assert!(gate.verify().await.unwrap().is_empty());
            verified.push(processor() - used);
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let (spent, passed, verified) = (median(&mut spent), median(&mut passed), median(&mut verified));
        println!("a renewal: {passed:?}, of these {spent:?} of the processor; a verification: {verified:?}");
        assert!(spent < Duration::from_millis(1), "a renewal costs {spent:?} of the processor");
        assert!(verified < Duration::from_millis(1), "a verification costs {verified:?} of the processor");
    });
}

// --- the children ------------------------------------------------------------------------------------------------------

/// In the test program it proves that a child's failure is seen; in a child it plays the role.
#[test]
fn child() {
    match role() {
        None => assert!(!Process::start(&[], "no such role").succeeded(), "a child without a role succeeded"),
        Some(role) => play(&role),
    }
}

fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match words.as_slice() {
            ["abilities"] => {
                let gate = gate();
                let abilities = gate.abilities();
                say(&format!(
                    "{} {} {} {:?}",
                    abilities.timed_gate, abilities.destroys_sockets, abilities.survives_flush, abilities.problems
                ));
                say(&gate.arm(&only(1)).await.unwrap_err().to_string());
            }
            ["open", milliseconds, port] => {
                let gate = gate();
                gate.arm(&only(port.parse().unwrap())).await.unwrap();
                let end = after(milliseconds.parse().unwrap());
                gate.open(Some(end)).await.unwrap();
                say(&serde_json::to_string(&end).unwrap());
                listen();
            }
            ["two-step", port] => {
                // A clock that stands: nothing but the kernel can know what is too late.
                let gate = NftablesGate::open(TABLE, Arc::new(ManualClock::default()));
                gate.arm(&only(port.parse().unwrap())).await.unwrap();
                let prepared = gate.prepare().unwrap();
                say("prepared");
                listen();
                match gate.make(prepared, Some(Moment::default().plus(Duration::from_secs(60)))) {
                    Ok(()) => say("made"),
                    Err(error) => say(&error.to_string()),
                }
                listen();
            }
            ["listen"] => {
                let listeners = LOOPBACKS.map(|address| TcpListener::bind((address, 0)).unwrap());
                let ports = listeners.map(|listener| {
                    let port = listener.local_addr().unwrap().port().to_string();
                    // Until the end of this process.
                    std::mem::forget(listener);
                    port
                });
                say(&ports.join(" "));
                listen();
            }
            other => panic!("no such role: {other:?}"),
        }
    });
}

fn moment(said: &str) -> Moment {
    serde_json::from_str(said).unwrap()
}
