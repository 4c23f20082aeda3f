//! What every firewall must do, as cases that run over the real kernel and over the simulated one.
//!
//! A case gets a [`World`] of its own, in which nobody is kept out, and judges the firewall by clients: new ones, and sessions that
//! are open. Cases say nothing about how a firewall does it. A case that fails returns a sentence.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use futures::future::BoxFuture;
use regent_common::allow_list::AllowList;

use super::{Firewall, FirewallError, Passage};

/// A session of a client.
pub type Session = usize;

/// A machine with an engine that listens on some ports, and clients elsewhere.
#[async_trait]
pub trait World: Send + Sync {
    /// The two ports on which something answers.
    fn ports(&self) -> [u16; 2];
    /// Addresses of clients elsewhere: two of IPv4 and two of IPv6.
    fn clients(&self) -> [IpAddr; 4];
    /// The firewall as a process that has just started has it. The handle before it has been dropped, as its process ended.
    fn firewall(&self) -> Arc<dyn Firewall>;
    /// Whether a new client of this address gets an answer from this port now; `None`: one on the machine itself.
    async fn passes(&self, client: Option<IpAddr>, port: u16) -> bool;
    /// Opens a session that stays open.
    async fn open(&self, client: IpAddr, port: u16) -> Session;
    /// Whether a session still gets answers.
    async fn lives(&self, session: Session) -> bool;
    /// Removes what stands in the kernel behind the back of its process. Where the kernel prevents that, the process's firewall becomes
    /// one for which it does not.
    async fn remove(&self, firewall: Arc<dyn Firewall>, wanted: Arc<Passage>) -> Arc<dyn Firewall>;
}

type Outcome = Result<(), String>;
type Case = for<'a> fn(&'a dyn World) -> BoxFuture<'a, Outcome>;

/// The cases by name.
pub const CASES: &[(&str, Case)] = &[
    ("who is in the list is let in, and nobody else", |w| Box::pin(let_in(w))),
    ("a list of one family closes the other", |w| Box::pin(one_family(w))),
    ("a whole family is let in by a range of length 0", |w| Box::pin(whole_family(w))),
    ("ranges up to the highest address hold what they say", |w| Box::pin(highest(w))),
    ("a port that is not named is not touched", |w| Box::pin(other_port(w))),
    ("the machine itself always passes", |w| Box::pin(itself(w))),
    ("who always passes is not in the list", |w| Box::pin(always(w))),
    ("another list takes the place of the one before", |w| Box::pin(replaced(w))),
    ("an open session of a removed address dies, and the others live", |w| Box::pin(sessions(w))),
    ("without a list everybody is let in again", |w| Box::pin(nobody_kept_out(w))),
    ("the next process finds what the one before left", |w| Box::pin(next_process(w))),
    ("what was removed is put back", |w| Box::pin(put_back(w))),
    ("nothing is put back where nothing was asked for", |w| Box::pin(nothing_to_put_back(w))),
    ("clients are counted by address", |w| Box::pin(counted(w))),
];

/// Runs one case and names it in its failure.
pub async fn run(world: &dyn World, name: &str, case: Case) -> Outcome {
    case(world).await.map_err(|failure| format!("{name}: {failure}"))
}

/// A passage to the first port.
fn passage(world: &dyn World, allowed: &[String]) -> Arc<Passage> {
    let allowed = AllowList::parse(allowed).expect("the cases write ranges");
    Arc::new(Passage { ports: [world.ports()[0]].into(), allowed, always: BTreeSet::new() })
}

fn text(address: IpAddr) -> String {
    address.to_string()
}

fn says(error: FirewallError) -> String {
    error.to_string()
}

/// How often a client tries who is let in: a machine that is busy, and a network that was just made, may be late with an answer.
const TRIES: u32 = 10;

/// Whether a client gets an answer, at one of a few tries.
async fn is_let_in(world: &dyn World, client: Option<IpAddr>, port: u16) -> bool {
    for _ in 0..TRIES {
        if world.passes(client, port).await {
            return true;
        }
    }
    false
}

/// Whether exactly these of the clients pass to the first port.
async fn only(world: &dyn World, wanted: &[IpAddr]) -> Outcome {
    let port = world.ports()[0];
    for client in world.clients() {
        let passes = match wanted.contains(&client) {
            true => is_let_in(world, Some(client), port).await,
            false => world.passes(Some(client), port).await,
        };
        if passes != wanted.contains(&client) {
            return Err(format!("{client} {}", if passes { "is let in" } else { "is kept out" }));
        }
    }
    Ok(())
}

async fn let_in(world: &dyn World) -> Outcome {
    let (firewall, [four, _, six, _]) = (world.firewall(), world.clients());
    only(world, &world.clients()).await?;
    firewall.keep(Some(passage(world, &[text(four), text(six)]))).await.map_err(says)?;
    only(world, &[four, six]).await
}

async fn one_family(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, _]) = (world.firewall(), world.clients());
    firewall.keep(Some(passage(world, &[text(four), text(other)]))).await.map_err(says)?;
    only(world, &[four, other]).await?;
    firewall.keep(Some(passage(world, &[text(six)]))).await.map_err(says)?;
    only(world, &[six]).await
}

async fn whole_family(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, another]) = (world.firewall(), world.clients());
    firewall.keep(Some(passage(world, &["0.0.0.0/0".to_owned(), text(six)]))).await.map_err(says)?;
    only(world, &[four, other, six]).await?;
    firewall.keep(Some(passage(world, &["::/0".to_owned()]))).await.map_err(says)?;
    only(world, &[six, another]).await
}

async fn highest(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, another]) = (world.firewall(), world.clients());
    let upper = ["128.0.0.0/1".to_owned(), "8000::/1".to_owned()];
    firewall.keep(Some(passage(world, &upper))).await.map_err(says)?;
    let is_upper = |client: &IpAddr| match client {
        IpAddr::V4(client) => client.octets()[0] >= 128,
        IpAddr::V6(client) => client.octets()[0] >= 128,
    };
    let wanted: Vec<_> = [four, other, six, another].into_iter().filter(is_upper).collect();
    only(world, &wanted).await
}

async fn other_port(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, _]) = (world.firewall(), world.clients());
    firewall.keep(Some(passage(world, &[text(four)]))).await.map_err(says)?;
    for client in [other, six] {
        if !is_let_in(world, Some(client), world.ports()[1]).await {
            return Err(format!("{client} is kept out of a port that was not named"));
        }
    }
    Ok(())
}

async fn itself(world: &dyn World) -> Outcome {
    let (firewall, [four, ..]) = (world.firewall(), world.clients());
    firewall.keep(Some(passage(world, &[text(four)]))).await.map_err(says)?;
    let passes = is_let_in(world, None, world.ports()[0]).await;
    passes.then_some(()).ok_or_else(|| "a client on the machine itself is kept out".to_owned())
}

async fn always(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, another]) = (world.firewall(), world.clients());
    let listed = passage(world, &[text(four)]);
    let passage = Passage { always: [other, another].into(), ..Passage::clone(&listed) };
    firewall.keep(Some(Arc::new(passage))).await.map_err(says)?;
    if world.passes(Some(six), world.ports()[0]).await {
        return Err(format!("{six} is let in"));
    }
    only(world, &[four, other, another]).await
}

async fn replaced(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, _]) = (world.firewall(), world.clients());
    for wanted in [[four, six], [other, six], [four, six], [four, other]] {
        firewall.keep(Some(passage(world, &wanted.map(text)))).await.map_err(says)?;
        only(world, &wanted).await?;
    }
    Ok(())
}

async fn sessions(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, another]) = (world.firewall(), world.clients());
    let port = world.ports()[0];
    let mut open = Vec::new();
    for client in world.clients() {
        open.push((client, world.open(client, port).await));
    }
    let elsewhere = world.open(other, world.ports()[1]).await;
    let cut = firewall.keep(Some(passage(world, &[text(four), text(six)]))).await.map_err(says)?;
    if cut < 2 {
        return Err(format!("{cut} connections were destroyed, and two had to be"));
    }
    for (client, session) in open {
        let lives = world.lives(session).await;
        if lives == [other, another].contains(&client) {
            return Err(format!("the session of {client} {}", if lives { "lives" } else { "has died" }));
        }
    }
    let lives = world.lives(elsewhere).await;
    lives.then_some(()).ok_or_else(|| "a session of another port has died".to_owned())
}

async fn nobody_kept_out(world: &dyn World) -> Outcome {
    let (firewall, [four, ..]) = (world.firewall(), world.clients());
    firewall.keep(Some(passage(world, &[text(four)]))).await.map_err(says)?;
    for _ in 0..2 {
        firewall.keep(None).await.map_err(says)?;
        only(world, &world.clients()).await?;
    }
    Ok(())
}

async fn next_process(world: &dyn World) -> Outcome {
    let [four, other, ..] = world.clients();
    let firewall = world.firewall();
    firewall.keep(Some(passage(world, &[text(four)]))).await.map_err(says)?;
    drop(firewall);
    only(world, &[four]).await?;
    let next = world.firewall();
    only(world, &[four]).await?;
    next.keep(Some(passage(world, &[text(other)]))).await.map_err(says)?;
    only(world, &[other]).await?;
    drop(next);
    world.firewall().keep(None).await.map_err(says)?;
    only(world, &world.clients()).await
}

async fn put_back(world: &dyn World) -> Outcome {
    let (firewall, [four, other, ..]) = (world.firewall(), world.clients());
    let wanted = passage(world, &[text(four)]);
    firewall.keep(Some(wanted.clone())).await.map_err(says)?;
    if let Some(fault) = firewall.verify().await.map_err(says)?.first() {
        return Err(format!("what stands was found amiss: {fault}"));
    }
    let firewall = world.remove(firewall, wanted).await;
    only(world, &world.clients()).await?;
    let session = world.open(other, world.ports()[0]).await;
    if firewall.verify().await.map_err(says)?.is_empty() {
        return Err("nobody noticed".to_owned());
    }
    only(world, &[four]).await?;
    if world.lives(session).await {
        return Err("who came in meanwhile was let stay".to_owned());
    }
    let faults = firewall.verify().await.map_err(says)?;
    faults.is_empty().then_some(()).ok_or_else(|| format!("still amiss: {}", faults.join("; ")))
}

async fn nothing_to_put_back(world: &dyn World) -> Outcome {
    let firewall = world.firewall();
    let faults = firewall.verify().await.map_err(says)?;
    if !faults.is_empty() {
        return Err(faults.join("; "));
    }
    only(world, &world.clients()).await
}

async fn counted(world: &dyn World) -> Outcome {
    let (firewall, [four, other, six, _]) = (world.firewall(), world.clients());
    let [port, second] = world.ports();
    for (client, port) in [(four, port), (four, port), (six, port), (other, second)] {
        world.open(client, port).await;
    }
    let found = firewall.clients(&[port].into()).await.map_err(says)?;
    let wanted = [(four, 2), (six, 1)].into();
    if found == wanted { Ok(()) } else { Err(format!("{found:?} were counted, not {wanted:?}")) }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;
    use crate::firewall::fake::{FakeFirewall, FakeMachine};

    /// A simulated machine as the suite wants it.
    struct FakeWorld {
        machine: Arc<FakeMachine>,
        sessions: Mutex<Vec<(IpAddr, u16)>>,
    }

    #[async_trait]
    impl World for FakeWorld {
        fn ports(&self) -> [u16; 2] {
            [5432, 5433]
        }

        fn clients(&self) -> [IpAddr; 4] {
            ["192.0.2.1", "10.9.0.2", "fd09::2", "fd09::3"].map(|address| address.parse().unwrap())
        }

        fn firewall(&self) -> Arc<dyn Firewall> {
            Arc::new(FakeFirewall::new(self.machine.clone()))
        }

        async fn passes(&self, client: Option<IpAddr>, port: u16) -> bool {
            self.machine.passes(client.unwrap_or_else(|| std::net::Ipv4Addr::LOCALHOST.into()), port)
        }

        async fn open(&self, client: IpAddr, port: u16) -> Session {
            assert!(self.machine.connect(client, port));
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.push((client, port));
            sessions.len() - 1
        }

        async fn lives(&self, session: Session) -> bool {
            let (client, port) = self.sessions.lock().unwrap_or_else(PoisonError::into_inner)[session];
            self.machine.connections(client, port) > 0
        }

        async fn remove(&self, firewall: Arc<dyn Firewall>, _: Arc<Passage>) -> Arc<dyn Firewall> {
            self.machine.flush();
            firewall
        }
    }

    #[tokio::test]
    async fn conformance_of_the_simulated_firewall() {
        let mut failures = Vec::new();
        for (name, case) in CASES {
            let world = FakeWorld { machine: FakeMachine::new(), sessions: Mutex::default() };
            failures.extend(run(&world, name, *case).await.err());
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
