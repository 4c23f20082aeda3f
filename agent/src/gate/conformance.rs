//! What every gate must do, as cases that run over the real kernel and over the simulated one.
//!
//! A case gets a [`World`] of its own, in which nothing is gated, and judges the gate by packets. Cases say nothing about
//! how a gate does it. A case that fails returns a sentence.
//!
//! A closed port is proven by one packet that does not pass. That a port is *open* needs one that passes, and on a loaded
//! machine a packet may take long: it is tried again until the gate has to be closed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::BoxFuture;
use regent_common::clock::{Clock, Moment};

use super::{Gate, GateError, GateState, Open};

/// A machine with an engine that listens on some ports.
#[async_trait]
pub trait World: Send + Sync {
    /// The two ports on which something answers.
    fn ports(&self) -> [u16; 2];
    /// The clock that the gate goes by.
    fn clock(&self) -> Arc<dyn Clock>;
    /// The gate as a process that has just started has it. The handle before it has been dropped, as its process ended.
    fn gate(&self) -> Arc<dyn Gate>;
    /// Whether a client gets an answer from this port now.
    async fn passes(&self, port: u16) -> bool;
    /// Lets time go on.
    async fn wait(&self, time: Duration);
    /// Opens the gate that was handed out last, with the process frozen for so long between deciding and acting.
    async fn open_late(&self, end: Option<Moment>, frozen: Duration) -> Result<(), GateError>;
    /// Removes the gate from the kernel behind the back of its process. Where the kernel prevents that, the process's gate
    /// becomes one for which it does not.
    async fn remove(&self, gate: Arc<dyn Gate>) -> Arc<dyn Gate>;
}

type Outcome = Result<(), String>;
type Case = for<'a> fn(&'a dyn World) -> BoxFuture<'a, Outcome>;

/// The cases by name.
pub const CASES: &[(&str, Case)] = &[
    ("an armed gate is closed, and its neighbour is not touched", |w| Box::pin(armed_is_closed(w))),
    ("an opening ends by itself and never late", |w| Box::pin(ends_by_itself(w))),
    ("an opening can be renewed", |w| Box::pin(renewed(w))),
    ("an opening can be shortened", |w| Box::pin(shortened(w))),
    ("an opening can lose its end and get one again", |w| Box::pin(untimed_and_back(w))),
    ("a change that comes late is refused and changes nothing", |w| Box::pin(late(w))),
    ("an end that is too near opens nothing", |w| Box::pin(no_time_left(w))),
    ("closing closes, also twice and after the end", |w| Box::pin(closes(w))),
    ("arming again keeps what is open", |w| Box::pin(arming_keeps(w))),
    ("ports are gated and opened in one change", |w| Box::pin(armed_open(w))),
    ("a port that is gated no more has no opening left", |w| Box::pin(no_stale_opening(w))),
    ("disarming lets everything pass", |w| Box::pin(disarmed(w))),
    ("the next process finds what the one before left", |w| Box::pin(next_process(w))),
    ("what was removed is put back, closed", |w| Box::pin(put_back(w))),
    ("closing puts back what was removed", |w| Box::pin(closing_puts_back(w))),
    ("nothing is put back where nothing was armed", |w| Box::pin(nothing_to_put_back(w))),
];

/// Runs one case and names it in its failure.
pub async fn run(world: &dyn World, name: &str, case: Case) -> Outcome {
    case(world).await.map_err(|failure| format!("{name}: {failure}"))
}

const LONG: Duration = Duration::from_secs(60);

macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err(format!($($words)+));
        }
    };
}

async fn armed_is_closed(world: &dyn World) -> Outcome {
    let (gate, [port, neighbour]) = (world.gate(), world.ports());
    ensure!(gate.state().await == Ok(GateState::default()), "something is gated from the start");
    passes(world, port).await?;
    did(gate.arm(&BTreeSet::from([port])).await)?;
    dropped(world, port).await?;
    passes(world, neighbour).await?;
    let state = did(gate.state().await)?;
    ensure!(state == GateState { gated: BTreeSet::from([port]), open: Open::Closed }, "the state is {state:?}");
    did(gate.arm(&BTreeSet::from([port, neighbour])).await)?;
    dropped(world, port).await?;
    dropped(world, neighbour).await
}

async fn ends_by_itself(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    let end = clock.now().plus(Duration::from_millis(1500));
    did(gate.open(Some(end)).await)?;
    passes(world, port).await?;
    let state = did(gate.state().await)?;
    let Open::Until(until) = state.open else { return Err(format!("it is open, and the state says {:?}", state.open)) };
    ensure!(until.earlier(end) == until, "it is open until {until:?}, which is after {end:?}");
    ensure!(end.held_for(until) < Duration::from_millis(500), "it is open only until {until:?}, long before {end:?}");
    world.wait(until.held_for(clock.now())).await;
    let mut begun = clock.now();
    while end.held_for(begun) > Duration::ZERO && world.passes(port).await {
        world.wait(Duration::from_millis(10)).await;
        begun = clock.now();
    }
    world.wait(end.awaited_for(clock.now())).await;
    dropped(world, port).await?;
    let state = did(gate.state().await)?;
    ensure!(state.open == Open::Closed, "it is closed, and the state says {:?}", state.open);
    // It can be opened again after its end.
    did(gate.open(Some(clock.now().plus(LONG))).await)?;
    passes(world, port).await
}

async fn renewed(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    let first = clock.now().plus(Duration::from_millis(800));
    did(gate.open(Some(first)).await)?;
    did(gate.open(Some(clock.now().plus(LONG))).await)?;
    world.wait(first.awaited_for(clock.now())).await;
    passes(world, port).await
}

async fn shortened(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    did(gate.open(Some(clock.now().plus(LONG))).await)?;
    passes(world, port).await?;
    let end = clock.now().plus(Duration::from_millis(700));
    did(gate.open(Some(end)).await)?;
    world.wait(end.awaited_for(clock.now())).await;
    dropped(world, port).await
}

async fn untimed_and_back(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    let first = clock.now().plus(Duration::from_millis(800));
    did(gate.open(Some(first)).await)?;
    did(gate.open(None).await)?;
    world.wait(first.awaited_for(clock.now())).await;
    passes(world, port).await?;
    let state = did(gate.state().await)?;
    ensure!(state.open == Open::Untimed, "it is open without an end, and the state says {:?}", state.open);
    let end = clock.now().plus(Duration::from_millis(700));
    did(gate.open(Some(end)).await)?;
    let state = did(gate.state().await)?;
    ensure!(matches!(state.open, Open::Until(_)), "it has an end again, and the state says {:?}", state.open);
    world.wait(end.awaited_for(clock.now())).await;
    dropped(world, port).await
}

async fn late(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    // Between the guard's life and its latest end, where only the kernel's answer counts.
    let frozen = Duration::from_millis(212);
    for end in [Some(clock.now().plus(LONG)), None] {
        let answer = world.open_late(end, frozen).await;
        ensure!(answer == Err(GateError::Late), "an opening to {end:?} that came late was answered with {answer:?}");
        dropped(world, port).await?;
    }
    // A late shortening and a late renewal leave what stands.
    did(gate.open(None).await)?;
    let answer = world.open_late(Some(clock.now().plus(LONG)), frozen).await;
    ensure!(answer == Err(GateError::Late), "a change that came late was answered with {answer:?}");
    let state = did(gate.state().await)?;
    ensure!(state.open == Open::Untimed, "a change was refused, and changed the state to {:?}", state.open);
    // One that is frozen for a shorter time is in time.
    did(world.open_late(Some(clock.now().plus(LONG)), Duration::from_millis(1)).await)?;
    passes(world, port).await
}

async fn no_time_left(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    for left in [0, 1, 100, 230, 250] {
        let answer = gate.open(Some(clock.now().plus(Duration::from_millis(left)))).await;
        ensure!(answer == Err(GateError::NoTimeLeft), "an opening for {left} ms was answered with {answer:?}");
        dropped(world, port).await?;
    }
    did(gate.open(None).await)?;
    let answer = gate.open(Some(clock.now())).await;
    ensure!(answer == Err(GateError::NoTimeLeft), "an opening until now was answered with {answer:?}");
    passes(world, port).await
}

async fn closes(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    did(gate.close().await)?;
    for end in [None, Some(clock.now().plus(LONG))] {
        did(gate.open(end).await)?;
        passes(world, port).await?;
        did(gate.close().await)?;
        dropped(world, port).await?;
        did(gate.close().await)?;
    }
    let end = clock.now().plus(Duration::from_millis(400));
    did(gate.open(Some(end)).await)?;
    world.wait(end.awaited_for(clock.now())).await;
    did(gate.close().await)?;
    dropped(world, port).await
}

async fn arming_keeps(world: &dyn World) -> Outcome {
    let (gate, [port, added], clock) = (armed(world).await?, world.ports(), world.clock());
    did(gate.open(Some(clock.now().plus(LONG))).await)?;
    did(gate.arm(&BTreeSet::from([port])).await)?;
    passes(world, port).await?;
    did(gate.arm(&BTreeSet::from([port, added])).await)?;
    passes(world, port).await?;
    // A port that joins is closed until the next opening.
    dropped(world, added).await?;
    did(gate.open(Some(clock.now().plus(LONG))).await)?;
    passes(world, added).await
}

async fn no_stale_opening(world: &dyn World) -> Outcome {
    let (gate, [port, other]) = (armed(world).await?, world.ports());
    did(gate.open(None).await)?;
    did(gate.arm(&BTreeSet::from([other])).await)?;
    passes(world, port).await?;
    dropped(world, other).await?;
    did(gate.arm(&BTreeSet::from([port])).await)?;
    dropped(world, port).await
}

async fn disarmed(world: &dyn World) -> Outcome {
    let (gate, [port, _]) = (armed(world).await?, world.ports());
    did(gate.disarm().await)?;
    passes(world, port).await?;
    let state = did(gate.state().await)?;
    ensure!(state == GateState::default(), "it is disarmed, and the state is {state:?}");
    let faults = did(gate.verify().await)?;
    ensure!(faults.is_empty(), "nothing was armed, and missing: {faults:?}");
    // What was open before is not open when it is armed again.
    did(gate.arm(&BTreeSet::from([port])).await)?;
    did(gate.open(None).await)?;
    did(gate.disarm().await)?;
    did(gate.arm(&BTreeSet::from([port])).await)?;
    dropped(world, port).await
}

async fn next_process(world: &dyn World) -> Outcome {
    let (gate, [port, _], clock) = (armed(world).await?, world.ports(), world.clock());
    let end = clock.now().plus(Duration::from_millis(2500));
    did(gate.open(Some(end)).await)?;
    let before = did(gate.state().await)?;
    drop(gate);
    let gate = world.gate();
    passes(world, port).await?;
    let after = did(gate.state().await)?;
    ensure!(after.gated == before.gated, "{:?} were gated before, and {:?} after", before.gated, after.gated);
    let (Open::Until(was), Open::Until(is)) = (before.open, after.open) else {
        return Err(format!("it was open {:?} before, and {:?} after", before.open, after.open));
    };
    let (sooner, later) = (was.earlier(is), was.later(is));
    let shift = later.awaited_for(sooner);
    ensure!(shift < Duration::from_millis(100), "the end has moved by {shift:?}");
    ensure!(is.earlier(end) == is, "it is open until {is:?}, which is after {end:?}");
    let faults = did(gate.verify().await)?;
    ensure!(faults.is_empty(), "the next process misses {faults:?}");
    passes(world, port).await?;
    world.wait(end.awaited_for(clock.now())).await;
    dropped(world, port).await?;
    // The next process can do all that the one before could.
    did(gate.open(None).await)?;
    passes(world, port).await?;
    did(gate.disarm().await)?;
    let state = did(gate.state().await)?;
    ensure!(state == GateState::default(), "it is disarmed, and the state is {state:?}");
    Ok(())
}

async fn put_back(world: &dyn World) -> Outcome {
    let (gate, [port, _]) = (armed(world).await?, world.ports());
    let faults = did(gate.verify().await)?;
    ensure!(faults.is_empty(), "all is there, and missing: {faults:?}");
    did(gate.open(None).await)?;
    let gate = world.remove(gate).await;
    let faults = did(gate.verify().await)?;
    ensure!(!faults.is_empty(), "the gate was removed, and nothing was missing");
    dropped(world, port).await?;
    let faults = did(gate.verify().await)?;
    ensure!(faults.is_empty(), "all was put back, and missing: {faults:?}");
    did(gate.open(None).await)?;
    passes(world, port).await
}

async fn closing_puts_back(world: &dyn World) -> Outcome {
    let (gate, [port, _]) = (armed(world).await?, world.ports());
    let gate = world.remove(gate).await;
    passes(world, port).await?;
    did(gate.close().await)?;
    dropped(world, port).await
}

async fn armed_open(world: &dyn World) -> Outcome {
    let (gate, [port, neighbour], clock) = (world.gate(), world.ports(), world.clock());
    ensure!(
        gate.arm_open(&BTreeSet::from([port]), Some(clock.now())).await == Err(GateError::NoTimeLeft),
        "there was no time left, and it was armed"
    );
    passes(world, port).await?;
    let end = clock.now().plus(Duration::from_millis(1500));
    did(gate.arm_open(&BTreeSet::from([port]), Some(end)).await)?;
    passes(world, port).await?;
    passes(world, neighbour).await?;
    let state = did(gate.state().await)?;
    ensure!(state.gated == BTreeSet::from([port]), "gated are {:?}", state.gated);
    ensure!(matches!(state.open, Open::Until(_)), "it is open, and the state says {:?}", state.open);
    let faults = did(gate.verify().await)?;
    ensure!(faults.is_empty(), "missing: {faults:?}");
    world.wait(end.awaited_for(clock.now())).await;
    dropped(world, port).await?;
    passes(world, neighbour).await
}

async fn nothing_to_put_back(world: &dyn World) -> Outcome {
    let (gate, [port, _]) = (world.gate(), world.ports());
    let faults = did(gate.verify().await)?;
    ensure!(faults.is_empty(), "nothing was armed, and missing: {faults:?}");
    did(gate.close().await)?;
    passes(world, port).await
}

async fn armed(world: &dyn World) -> Result<Arc<dyn Gate>, String> {
    let gate = world.gate();
    did(gate.arm(&BTreeSet::from([world.ports()[0]])).await)?;
    Ok(gate)
}

fn did<T>(answer: Result<T, GateError>) -> Result<T, String> {
    answer.map_err(|error| error.to_string())
}

async fn passes(world: &dyn World, port: u16) -> Outcome {
    let deadline = world.clock().now().plus(Duration::from_secs(10));
    while deadline.held_for(world.clock().now()) > Duration::ZERO {
        if world.passes(port).await {
            return Ok(());
        }
        world.wait(Duration::from_millis(10)).await;
    }
    Err(format!("packets of port {port} do not pass"))
}

async fn dropped(world: &dyn World, port: u16) -> Outcome {
    if world.passes(port).await { Err(format!("packets of port {port} pass")) } else { Ok(()) }
}
