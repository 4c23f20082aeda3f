//! The keeper over a simulated kernel, with a clock that moves only when told to: what it opens, leaves, closes and takes over.

use std::sync::Mutex;

use regent_common::{
    clock::ManualClock,
    ids::{ClusterName, OperationToken},
    lease::{Electorate, Grant, Profile},
};

use super::*;
use crate::{
    gate::{
        Abilities,
        fake::{FakeGate, FakeKernel},
    },
    lease::handle::Answer,
    ledger::StoredSpec,
};

const PORT: u16 = 5432;

/// Members that answer every question as the test says.
struct Peers(Mutex<Option<Word>>);

#[async_trait]
impl Endorsers for Peers {
    async fn ask(&self, _: Question) -> Result<Word, String> {
        self.0.lock().unwrap().clone().ok_or_else(|| "no answer".to_owned())
    }
}

struct Bench {
    clock: Arc<ManualClock>,
    kernel: Arc<FakeKernel>,
    ledger: watch::Sender<Arc<Ledger>>,
    peers: Arc<Peers>,
    lease: LeaseHandle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn member(name: &str) -> MemberName {
    name.parse().unwrap()
}

fn electorate(version: u64, members: &[&str]) -> Electorate {
    Electorate { version, members: members.iter().map(|name| member(name)).collect() }
}

fn peer(name: &str) -> Peer {
    let engine = regent_common::topology::Endpoint { host: name.to_owned(), port: PORT };
    Peer { member: member(name), node: name.parse().unwrap(), engine, agent_address: format!("{name}:7421") }
}

/// The ledger of db1, the primary of epoch 3, as it is once a grant was kept.
fn reigning(recorded: Option<Electorate>) -> Ledger {
    let mut membership = Membership {
        cluster_id: ClusterId::from_parts(1, 1),
        member: member("db1"),
        port: PORT,
        spec: StoredSpec {
            cluster: ClusterName::new("db").unwrap(),
            engine: "fake".to_owned(),
            version: String::new(),
            members: vec![peer("db1"), peer("db2")],
            settings: Default::default(),
            access_rules: String::new(),
            mode: regent_common::topology::Mode::default(),
            tls: false,
        },
        configured: true,
        configuration: String::new(),
        epoch: Epoch(3),
        token: OperationToken(1),
        role: None,
        upstream: None,
        established: recorded.is_some(),
        electorate: recorded,
        longest_ttl_millis: None,
        ttl_millis: Some(1500),
        heartbeat_millis: Some(250),
        dirty: false,
        distrusted: false,
        resyncing: false,
        writable_epoch: None,
        writable_boot_id: None,
        fenced_epoch: None,
        fenced: false,
        drained: None,
        forced: None,
    };
    membership.begin_reign(Epoch(3), "boot");
    Ledger { membership: Some(membership), ..Ledger::default() }
}

impl Bench {
    fn start(clock: Arc<ManualClock>, kernel: Arc<FakeKernel>, ledger: Ledger) -> Self {
        let (ledger, receiver) = watch::channel(Arc::new(ledger));
        let peers = Arc::new(Peers(Mutex::new(None)));
        let (lease, task) = Keeper {
            gate: Arc::new(FakeGate::new(kernel.clone())),
            endorsers: peers.clone(),
            ledger: receiver,
            position: Arc::new(|| None),
            boot_id: "boot".to_owned(),
            clock: clock.clone(),
        }
        .prepare();
        let stop = CancellationToken::new();
        let task = tokio::spawn(task.run(stop.clone()));
        Self { clock, kernel, ledger, peers, lease, stop, task }
    }

    fn new(ledger: Ledger) -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.advance(Duration::from_secs(10));
        Self::start(clock.clone(), FakeKernel::new(clock), ledger)
    }

    fn grant(&self, electorate: Electorate) {
        self.grant_for(Duration::from_millis(1500), electorate, None);
    }

    fn grant_for(&self, ttl: Duration, electorate: Electorate, handed_over: Option<u64>) {
        let nonce = self.lease.stamp();
        let grant = Some(Grant { epoch: Epoch(3), ttl, electorate, handed_over });
        let timing = Some(Profile::Fast.timing());
        assert!(self.lease.answered(Answer { nonce, grant, stored_epoch: Epoch(3), timing }));
    }

    /// Lets the keeper do what there is to do: it has at most a heartbeat of tokio's time to wait, which is simulated too.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// The agent is killed and started again on the same kernel and ledger.
    async fn restart(self) -> Self {
        self.task.abort();
        // It was aborted just now: that it ended so is no news.
        let _ = self.task.await;
        let ledger = Ledger::clone(&self.ledger.borrow());
        Self::start(self.clock, self.kernel, ledger)
    }

    fn passes(&self) -> bool {
        self.kernel.passes(PORT)
    }
}

#[tokio::test(start_paused = true)]
async fn the_gate_is_closed_until_a_grant_and_closes_with_the_lease() {
    let bench = Bench::new(reigning(None));
    bench.settle().await;
    assert!(!bench.passes(), "armed as soon as the ledger names a reign");
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    assert!(bench.passes() && bench.lease.holds(Epoch(3)));
    bench.clock.advance(Duration::from_millis(1400));
    assert!(!bench.passes(), "the kernel closes it before the lease ends, without anybody's doing");
    bench.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_agent_leaves_the_gate_open_for_as_long_as_it_was() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    let bench = bench.restart().await;
    bench.settle().await;
    assert!(bench.passes(), "the restarted agent has no lease yet, and closes nothing");
    bench.clock.advance(Duration::from_millis(1000));
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    bench.clock.advance(Duration::from_millis(1000));
    assert!(bench.passes(), "renewed by the new process");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_was_left_open_for_a_reign_that_is_over_is_closed_at_the_start() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    // The higher epoch is on disk, and the agent dies before it has closed anything.
    bench.task.abort();
    bench.ledger.send_modify(|ledger| {
        let membership = Arc::make_mut(ledger).membership.as_mut().unwrap();
        membership.raise_epoch(Epoch(4));
    });
    assert!(bench.passes());
    let bench = bench.restart().await;
    bench.settle().await;
    assert!(!bench.passes());
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_a_primary_is_gated_at_the_start_although_its_reign_is_over_and_the_table_gone() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    bench.task.abort();
    bench.ledger.send_modify(|ledger| Arc::make_mut(ledger).membership.as_mut().unwrap().raise_epoch(Epoch(4)));
    bench.kernel.flush();
    bench.kernel.connect(PORT, 2);
    let bench = bench.restart().await;
    bench.settle().await;
    assert!(!bench.passes(), "its engine may still run as a primary");
    assert_eq!(bench.kernel.destroyed(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_refuses_at_the_start_is_asked_again() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    let able = FakeGate::new(bench.kernel.clone()).abilities();
    bench.kernel.set_abilities(Abilities { timed_gate: false, ..able.clone() });
    bench.settle().await;
    assert!(bench.passes());
    bench.kernel.set_abilities(able);
    bench.settle().await;
    assert!(!bench.passes());
}

#[tokio::test(start_paused = true)]
async fn without_a_gate_an_engine_that_was_found_running_is_stopped_when_no_lease_comes() {
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(10));
    let kernel = FakeKernel::new(clock.clone());
    kernel.set_abilities(Abilities { timed_gate: false, ..FakeGate::new(kernel.clone()).abilities() });
    let bench = Bench::start(clock, kernel, reigning(Some(electorate(1, &["db2"]))));
    bench.settle().await;
    let lapsed = || *bench.lease.lapsed().borrow();
    assert_eq!(lapsed(), None, "what the process before was granted may stand");
    bench.clock.advance(Duration::from_millis(1500));
    bench.settle().await;
    assert_eq!(lapsed(), Some(Epoch(3)));
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    assert_eq!(lapsed(), None);
}

#[tokio::test(start_paused = true)]
async fn an_electorate_is_acknowledged_when_ledger_and_kernel_have_it() {
    let bench = Bench::new(reigning(Some(electorate(1, &[]))));
    bench.settle().await;
    let acknowledged = || {
        let ledger = bench.ledger.borrow().clone();
        bench.lease.authority(&ledger).electorate.map(|electorate| electorate.version)
    };
    assert!(bench.passes(), "it goes on alone, without an end");
    assert_eq!(acknowledged(), Some(1));
    bench.grant(electorate(2, &["db2"]));
    bench.settle().await;
    assert_eq!(acknowledged(), Some(1), "the ledger does not have the second version yet");
    bench.ledger.send_modify(|ledger| {
        Arc::make_mut(ledger).membership.as_mut().unwrap().keep_grant(Epoch(3), &electorate(2, &["db2"]));
    });
    bench.settle().await;
    assert_eq!(acknowledged(), Some(2));
    bench.clock.advance(Duration::from_secs(2));
    assert!(!bench.passes(), "it is obeyed: the gate has an end now");
}

#[tokio::test(start_paused = true)]
async fn the_endorsement_of_all_keeps_the_gate_open_and_a_higher_epoch_does_not() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    *bench.peers.0.lock().unwrap() = Some(Word { endorsed: true, known_epoch: Epoch(3) });
    for _ in 0..20 {
        bench.clock.advance(Duration::from_millis(300));
        bench.settle().await;
    }
    assert!(bench.passes(), "for six seconds without a coordinator");
    *bench.peers.0.lock().unwrap() = Some(Word { endorsed: false, known_epoch: Epoch(4) });
    bench.clock.advance(Duration::from_millis(300));
    bench.settle().await;
    assert!(!bench.passes());
}

#[tokio::test(start_paused = true)]
async fn a_revocation_closes_the_gate_and_destroys_what_was_connected() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    bench.kernel.connect(PORT, 3);
    bench.lease.revoke(Epoch(4)).await.unwrap();
    assert!(!bench.passes());
    assert_eq!(bench.kernel.destroyed(), 3);
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    assert!(!bench.passes(), "for good");
    bench.lease.lay_down().await.unwrap();
    assert!(bench.passes(), "nothing is gated any more");
}

/// What the agent says of its authority now.
fn said(bench: &Bench) -> regent_common::lease::Authority {
    let ledger = bench.ledger.borrow().clone();
    bench.lease.authority(&ledger)
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_handed_over_holds_the_gate_open_for_the_next_process_which_says_when_it_has_replaced_it() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    let handed_over = bench.lease.handed_over();
    bench.lease.ask_to_hand_over();
    assert!(said(&bench).hand_over);
    bench.grant(electorate(1, &["db2"]));
    bench.settle().await;
    assert_eq!(*handed_over.borrow(), None, "the usual lease is no longer one");
    bench.grant_for(Duration::from_secs(30), electorate(1, &["db2"]), None);
    bench.settle().await;
    assert!(handed_over.borrow().is_some(), "the kernel has it");
    // Even if it hears of the mark: it is the one that is being replaced.
    bench.grant_for(Duration::from_millis(1500), electorate(1, &["db2"]), Some(7));
    bench.settle().await;
    assert_eq!(said(&bench).replaced, None);

    let bench = bench.restart().await;
    bench.clock.advance(Duration::from_secs(20));
    bench.settle().await;
    assert!(bench.passes(), "long after the usual lease");
    let before = said(&bench);
    let lease = before.lease.unwrap();
    assert!(lease.stands && lease.remaining > Duration::from_secs(5), "its gate says that it does: {lease:?}");
    assert_eq!((lease.source, before.hand_over, before.replaced), (None, false, None));
    bench.grant_for(Duration::from_millis(1500), electorate(1, &["db2"]), Some(7));
    bench.settle().await;
    assert_eq!(said(&bench).replaced, Some(7));
    bench.clock.advance(Duration::from_millis(1500));
    assert!(!bench.passes(), "what was left is gone: the gate ends with the new process's own lease");
    assert!(!said(&bench).lease.unwrap().stands);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_to_be_replaced_while_the_kernel_does_not_take_the_new_opening() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant_for(Duration::from_secs(30), electorate(1, &["db2"]), None);
    bench.settle().await;
    let bench = bench.restart().await;
    bench.settle().await;
    bench.kernel.set_delay(crate::gate::GUARD_LIFE);
    bench.grant_for(Duration::from_millis(1500), electorate(1, &["db2"]), Some(7));
    bench.settle().await;
    assert!(bench.kernel.late() > 0 && bench.passes(), "what was left stands");
    assert_eq!(said(&bench).replaced, None);
    bench.kernel.set_delay(Duration::ZERO);
    bench.grant_for(Duration::from_millis(1500), electorate(1, &["db2"]), Some(7));
    bench.settle().await;
    assert_eq!(said(&bench).replaced, Some(7));
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_was_left_open_and_has_ended_is_no_lease_that_stands() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant_for(Duration::from_secs(30), electorate(1, &["db2"]), None);
    bench.settle().await;
    let bench = bench.restart().await;
    bench.settle().await;
    assert!(said(&bench).lease.unwrap().stands);
    bench.clock.advance(Duration::from_secs(27));
    bench.settle().await;
    assert!(!bench.passes() && !said(&bench).lease.unwrap().stands);
}

#[tokio::test(start_paused = true)]
async fn a_higher_epoch_ends_what_was_handed_over() {
    let bench = Bench::new(reigning(Some(electorate(1, &["db2"]))));
    bench.grant_for(Duration::from_secs(30), electorate(1, &["db2"]), None);
    bench.settle().await;
    let bench = bench.restart().await;
    bench.settle().await;
    assert!(bench.passes());
    bench.lease.revoke(Epoch(4)).await.unwrap();
    assert!(!bench.passes());
    bench.settle().await;
    assert!(!bench.passes() && !said(&bench).lease.unwrap().stands);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_serves_is_gated_without_a_closed_moment_and_let_go_without_a_cut() {
    let bench = Bench::new(Ledger::default());
    assert!(bench.passes(), "nothing is gated yet");
    let epoch = Epoch(3);
    let taking = tokio::spawn({
        let lease = bench.lease.clone();
        async move { lease.take_running(epoch, [PORT].into(), Duration::from_secs(20)).await }
    });
    bench.settle().await;
    assert!(bench.passes(), "without a lease it is not gated");
    bench.ledger.send_replace(Arc::new(reigning(None)));
    bench.settle().await;
    bench.grant(electorate(1, &[]));
    bench.settle().await;
    taking.await.unwrap().unwrap();
    assert!(bench.passes() && bench.lease.holds(epoch));
    bench.clock.advance(Duration::from_secs(2));
    bench.settle().await;
    assert!(!bench.passes(), "its lease is over");
    bench.grant(electorate(1, &[]));
    bench.settle().await;
    bench.lease.let_go().await.unwrap();
    bench.ledger.send_replace(Arc::new(Ledger::default()));
    bench.clock.advance(Duration::from_secs(60));
    bench.settle().await;
    assert!(bench.passes(), "nothing is gated any more");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_serves_is_not_gated_when_no_lease_comes() {
    let bench = Bench::new(reigning(None));
    let refused = bench.lease.take_running(Epoch(3), [PORT].into(), Duration::from_secs(5)).await;
    assert!(matches!(refused, Err(crate::lease::LeaseError::NotHeld { .. })), "{refused:?}");
    bench.lease.let_go().await.unwrap();
    assert!(bench.passes());
}
