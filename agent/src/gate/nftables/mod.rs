//! The gate in the kernel: a table of nftables, spoken to over netlink.
//!
//! ```text
//! table inet NAME { flags owner,persist
//!     set gated { type inet_service }
//!     set open  { type inet_service; flags timeout }
//!     set guard { type mark . mark; flags timeout }      # no rule consults it
//!     chain input  { type filter hook input  priority -10
//!         tcp dport @gated tcp dport != @open tcp flags syn / fin,syn,rst,ack reject with tcp reset
//!         tcp dport @gated tcp dport != @open drop }
//!     chain output { type filter hook output priority -10
//!         tcp sport @gated tcp sport != @open tcp flags & rst == 0 drop }
//! }
//! ```
//!
//! **What is refused and not dropped.** A client that connects to a closed port hears so at once and asks the next member, or again;
//! a segment that nobody answers is sent again after a second. A socket that is destroyed (rule G4) says so to its client by a
//! reset, without which that one waits for the end of its retransmission. Neither carries anything that the engine has said. What
//! belongs to a connection that there is stays unanswered: a gate that is shut for a moment ends nobody's session.
//!
//! How the kernel is spoken to is in [`crate::nftables`].
//!
//! **How an opening cannot come late (rule G2).** The gate has to be closed at `end` whenever our transaction reaches the
//! kernel. First a *guard* is added, an element under a number never used before, that the kernel deletes after
//! [`GUARD_LIFE`]. When the kernel has confirmed it, its latest end U is known. Then one transaction replaces the elements
//! of `open` and deletes the guard; where the guard is gone the kernel refuses all of it. So the new elements' time begins
//! at U at the latest, and 0.9 × (`end` − U) of it is over before `end`: the tenth covers a kernel clock that is slewed,
//! which the clocks of the lease are not. The guard is deleted *last*: kernels before 6.8 judge by the time of each
//! message, and the elements' time has begun by then; newer ones judge all of a transaction by the time of its beginning,
//! after the lock was had. (There the kernel may be kept from running between that and the elements, and its timers stand
//! still while a machine is suspended, the guard's too: so a change is given up when U has passed before it is sent, and
//! looked at again when U has passed before it was confirmed.) A gate that stands open when a machine is suspended has its
//! remaining time after the resume: whoever resumes closes it first, as the protocol says.
//!
//! **Owner and persist.** Where the kernel has both (6.9), nobody but this process's socket can change or flush the table,
//! and it stays when the process ends, for the next one to take over. *Between* the two it has no owner, and a flush
//! removes it. A table is never owned without persisting: it would vanish, open for all, when the agent dies.
//!
//! Not here: when to open (the lease), which ports (`host::ports`). Opening a gate of this kind takes the table over: two
//! processes cannot have it, and who only wants to look uses [`Gate::state`] of the one that has it.

mod form;
mod probe;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use regent_common::clock::{Clock, Moment};
use ring::rand::{SecureRandom as _, SystemRandom};

use self::form::{GATED, GUARD, OPEN, form, gating};
use super::{Abilities, GUARD_END, GUARD_LIFE, Gate, GateError, GateState, Open, timeout};
use crate::nftables::{
    message,
    netlink::{Netlink, Refusal},
    sockets::Sockets,
    table::{self, Form, Kept},
};

/// Name of the table where none is asked for.
pub const DEFAULT_TABLE: &str = "regent";

/// The gate of one engine, in the kernel.
pub struct NftablesGate {
    table: String,
    clock: Arc<dyn Clock>,
    abilities: Abilities,
    form: Form,
    kernel: Mutex<Result<Kernel, String>>,
}

/// A change of the opening that has been prepared and not made; it can be made for [`GUARD_LIFE`] from its preparation.
#[derive(Debug)]
#[must_use = "nothing has been opened yet"]
pub struct Prepared {
    guard: [u8; 8],
    /// Latest end of the guard.
    until: Moment,
}

/// What is held for as long as the gate is.
struct Kernel {
    netlink: Netlink,
    sockets: Option<Sockets>,
    /// Ports that were gated last, by us or by whom we took over from; `None` when none have to be.
    armed: Option<BTreeSet<u16>>,
    /// First half of the guards' names: drawn by this process.
    process: [u8; 4],
    /// Second half: counted.
    guards: u32,
}

// === impl NftablesGate ===

impl NftablesGate {
    /// The gate in this table, of the calling thread's network namespace. Takes over what an earlier process left, as it
    /// is; makes nothing. Never fails: what cannot be done is said by [`Gate::abilities`].
    ///
    /// Tries out the kernel, which takes some 50 ms; a second more while another process has the table.
    pub fn open(table: &str, clock: Arc<dyn Clock>) -> Self {
        let abilities = probe::abilities(table, clock.as_ref());
        Self::with_abilities(table, clock, abilities)
    }

    /// As [`NftablesGate::open`], as on a kernel that cannot keep others from changing the table.
    pub fn open_shared(table: &str, clock: Arc<dyn Clock>) -> Self {
        let mut abilities = probe::abilities(table, clock.as_ref());
        if abilities.survives_flush {
            abilities.survives_flush = false;
            abilities.problems.push("the gate is shared with all who may change nftables".to_owned());
        }
        Self::with_abilities(table, clock, abilities)
    }

    fn with_abilities(table: &str, clock: Arc<dyn Clock>, abilities: Abilities) -> Self {
        let kernel = match abilities.problems.first() {
            Some(problem) if !abilities.timed_gate => Err(problem.clone()),
            _ => Kernel::open(table, abilities.survives_flush).map_err(|error| error.to_string()),
        };
        let form = form(abilities.survives_flush, probe::refuses(table));
        Self { table: table.to_owned(), clock, abilities, form, kernel: Mutex::new(kernel) }
    }

    /// The first half of [`Gate::open`]: adds the guard.
    pub fn prepare(&self) -> Result<Prepared, GateError> {
        self.with("open the gate", |kernel| self.add_guard(kernel))?
    }

    /// The second half of [`Gate::open`]: makes the change, or nothing when the guard has ended.
    pub fn make(&self, prepared: Prepared, end: Option<Moment>) -> Result<(), GateError> {
        self.with("open the gate", |kernel| self.replace_opening(kernel, &prepared, end, None))?
    }

    fn add_guard(&self, kernel: &mut Kernel) -> Result<Prepared, GateError> {
        let guard = kernel.next_guard();
        let keys = [guard.as_slice()];
        let message = message::add_elements("add the guard", &self.table, GUARD, keys, Some(GUARD_LIFE));
        kernel.netlink.batch(&[message]).map_err(|refusal| says("open the gate", &refusal))?;
        Ok(Prepared { guard, until: self.clock.now().plus(GUARD_END) })
    }

    /// Opens what is gated, or these ports, which are gated by the same change.
    fn replace_opening(
        &self,
        kernel: &mut Kernel,
        change: &Prepared,
        end: Option<Moment>,
        newly_gated: Option<&BTreeSet<u16>>,
    ) -> Result<(), GateError> {
        const DOING: &str = "open the gate";
        if self.is_over(change) {
            return Err(GateError::Late);
        }
        let timeout = end.map(|end| timeout(end, change.until)).transpose()?;
        let mut batch = vec![message::flush_set("replace the opening", &self.table, OPEN)];
        let ports = match newly_gated {
            Some(ports) => {
                batch.extend(gating(&self.table, ports));
                ports.clone()
            }
            None => kernel.gated(&self.table).map_err(|refusal| says(DOING, &refusal))?,
        };
        let keys = table::keys(&ports);
        if !keys.is_empty() {
            let keys = keys.iter().map(<[u8; 2]>::as_slice);
            batch.push(message::add_elements("open the ports", &self.table, OPEN, keys, timeout));
        }
        let guard = [change.guard.as_slice()];
        batch.push(message::delete_elements("delete the guard", &self.table, GUARD, guard));
        match kernel.netlink.batch(&batch) {
            Ok(()) => {}
            Err(refusal) if refusal.is_only(batch.len() - 1, Errno::ENOENT) => return Err(GateError::Late),
            Err(refusal) => return Err(says(DOING, &refusal)),
        }
        match end {
            Some(end) if self.is_over(change) => self.look_again(kernel, end),
            Some(_) | None => Ok(()),
        }
    }

    fn is_over(&self, change: &Prepared) -> bool {
        change.until.held_for(self.clock.now()).is_zero()
    }

    /// After a change that was confirmed late: whether the kernel began it in time.
    fn look_again(&self, kernel: &mut Kernel, end: Moment) -> Result<(), GateError> {
        match self.read(kernel).map_err(|refusal| says("read the gate", &refusal))?.open {
            Open::Until(until) if until.earlier(end) == until => Ok(()),
            Open::Closed => Ok(()),
            Open::Until(_) | Open::Untimed => {
                self.shut(kernel).map_err(|refusal| says("close the gate", &refusal))?;
                Err(GateError::Late)
            }
        }
    }

    fn read(&self, kernel: &mut Kernel) -> Result<GateState, Refusal> {
        let gated = table::ports(&mut kernel.netlink, &self.table, GATED)?;
        // Read before the kernel says what is left, so that the moment is never later than the kernel's.
        let now = self.clock.now();
        let mut open = Open::Closed;
        for element in table::elements(&mut kernel.netlink, &self.table, OPEN)? {
            if !table::port(&element).is_some_and(|port| gated.contains(&port)) {
                continue;
            }
            open = match (open, element.left) {
                (Open::Untimed, _) | (_, None) => Open::Untimed,
                (_, Some(left)) if left.is_zero() => open,
                (Open::Closed, Some(left)) => Open::Until(now.plus(left)),
                (Open::Until(until), Some(left)) => Open::Until(until.later(now.plus(left))),
            };
        }
        Ok(GateState { gated, open })
    }

    /// Deletes all openings, and makes sure that what is gated is dropped then.
    fn shut(&self, kernel: &mut Kernel) -> Result<(), Refusal> {
        let flushed = kernel.netlink.batch(&[message::flush_set("close the gate", &self.table, OPEN)]);
        match flushed {
            Err(refusal) if !refusal.is(Errno::ENOENT) => return Err(refusal),
            Ok(()) | Err(_) => {}
        }
        self.put_back(kernel).map(drop)
    }

    /// Makes anew what is not as it has to be; says what that was.
    fn put_back(&self, kernel: &mut Kernel) -> Result<Vec<String>, Refusal> {
        let kept = table::keep(&mut kernel.netlink, &self.table, self.form.owned)?;
        if kept == Kept::Absent && kernel.armed.is_none() {
            return Ok(Vec::new());
        }
        let found = table::ports(&mut kernel.netlink, &self.table, GATED)?;
        let gated = kernel.armed.clone().unwrap_or_else(|| found.clone());
        let mut faults = table::faults(&mut kernel.netlink, &self.table, &self.form)?;
        if !faults.is_empty() {
            self.make_table(kernel, &gated)?;
        } else if found != gated {
            faults.push(format!("{} were gated, not {}", listed(&found), listed(&gated)));
            self.gate(kernel, &gated)?;
        }
        Ok(faults)
    }

    /// Gates these ports and no others, in a table that is as it has to be.
    fn gate(&self, kernel: &mut Kernel, ports: &BTreeSet<u16>) -> Result<(), Refusal> {
        let mut batch = vec![message::flush_set("replace the gated ports", &self.table, GATED)];
        batch.extend(gating(&self.table, ports));
        for element in table::elements(&mut kernel.netlink, &self.table, OPEN)? {
            if table::port(&element).is_some_and(|port| ports.contains(&port)) {
                continue;
            }
            // It would stand open when its port is gated again. To delete what has ended meanwhile would be refused, so it
            // is added first; nobody sees that.
            let key = [element.key.as_slice()];
            batch.push(message::add_elements("forget an opening", &self.table, OPEN, key, None));
            batch.push(message::delete_elements("forget an opening", &self.table, OPEN, key));
        }
        kernel.netlink.batch(&batch)
    }

    /// Makes the table anew with these ports gated and closed.
    fn make_table(&self, kernel: &mut Kernel, ports: &BTreeSet<u16>) -> Result<(), Refusal> {
        table::make(&mut kernel.netlink, &self.table, &self.form, gating(&self.table, ports).into_iter().collect())
    }

    fn arm_in(&self, kernel: &mut Kernel, ports: &BTreeSet<u16>) -> Result<(), Refusal> {
        table::keep(&mut kernel.netlink, &self.table, self.form.owned)?;
        let faults = table::faults(&mut kernel.netlink, &self.table, &self.form)?;
        if faults.is_empty() {
            self.gate(kernel, ports)?;
        } else {
            self.make_table(kernel, ports)?;
        }
        kernel.armed = (!ports.is_empty()).then(|| ports.clone());
        Ok(())
    }

    fn disarm_in(&self, kernel: &mut Kernel) -> Result<(), Refusal> {
        let sets = [GATED, OPEN].map(|set| message::flush_set("disarm the gate", &self.table, set));
        match kernel.netlink.batch(&sets) {
            Err(refusal) if !refusal.is(Errno::ENOENT) => return Err(refusal),
            Ok(()) | Err(_) => {}
        }
        kernel.armed = None;
        Ok(())
    }

    fn destroy_in(&self, kernel: &mut Kernel) -> Result<u32, Refusal> {
        let ports = kernel.gated(&self.table)?;
        let Some(sockets) = &mut kernel.sockets else {
            return Err(Refusal::of(Errno::EOPNOTSUPP, "list the sockets", "this kernel has no sock_diag"));
        };
        sockets.destroy_all(&ports)
    }

    /// Runs with the kernel's end of the gate, which nobody keeps for longer than such a run takes: none of them waits.
    fn with<T>(&self, doing: &'static str, run: impl FnOnce(&mut Kernel) -> T) -> Result<T, GateError> {
        match &mut *self.lock() {
            Ok(kernel) => Ok(run(kernel)),
            Err(problem) => Err(GateError::Kernel { doing, detail: problem.clone() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Result<Kernel, String>> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Gate for NftablesGate {
    fn abilities(&self) -> Abilities {
        self.abilities.clone()
    }

    async fn state(&self) -> Result<GateState, GateError> {
        const DOING: &str = "read the gate";
        self.with(DOING, |kernel| self.read(kernel))?.map_err(|refusal| says(DOING, &refusal))
    }

    async fn arm(&self, ports: &BTreeSet<u16>) -> Result<(), GateError> {
        const DOING: &str = "arm the gate";
        self.with(DOING, |kernel| self.arm_in(kernel, ports))?.map_err(|refusal| says(DOING, &refusal))
    }

    async fn open(&self, end: Option<Moment>) -> Result<(), GateError> {
        self.with("open the gate", |kernel| {
            if let Some(end) = end {
                timeout(end, self.clock.now().plus(GUARD_END))?;
            }
            let prepared = self.add_guard(kernel)?;
            self.replace_opening(kernel, &prepared, end, None)
        })?
    }

    async fn arm_open(&self, ports: &BTreeSet<u16>, end: Option<Moment>) -> Result<(), GateError> {
        const DOING: &str = "arm the gate";
        self.with(DOING, |kernel| {
            if let Some(end) = end {
                timeout(end, self.clock.now().plus(GUARD_END))?;
            }
            self.arm_in(kernel, &BTreeSet::new()).map_err(|refusal| says(DOING, &refusal))?;
            let prepared = self.add_guard(kernel)?;
            self.replace_opening(kernel, &prepared, end, Some(ports))?;
            kernel.armed = Some(ports.clone());
            Ok(())
        })?
    }

    async fn close(&self) -> Result<(), GateError> {
        const DOING: &str = "close the gate";
        self.with(DOING, |kernel| self.shut(kernel))?.map_err(|refusal| says(DOING, &refusal))
    }

    async fn destroy_sockets(&self) -> Result<u32, GateError> {
        const DOING: &str = "destroy the engine's sockets";
        self.with(DOING, |kernel| self.destroy_in(kernel))?.map_err(|refusal| says(DOING, &refusal))
    }

    async fn disarm(&self) -> Result<(), GateError> {
        const DOING: &str = "disarm the gate";
        self.with(DOING, |kernel| self.disarm_in(kernel))?.map_err(|refusal| says(DOING, &refusal))
    }

    async fn verify(&self) -> Result<Vec<String>, GateError> {
        const DOING: &str = "verify the gate";
        self.with(DOING, |kernel| self.put_back(kernel))?.map_err(|refusal| says(DOING, &refusal))
    }
}

/// Deletes a table of this kind with all that it gates, also one whose process has ended. For uninstalling; refused, after
/// a second, while its process lives.
pub fn remove(table: &str) -> Result<(), GateError> {
    const DOING: &str = "remove the gate";
    let mut netlink = Netlink::open(NETLINK_NETFILTER)
        .map_err(|error| GateError::Kernel { doing: DOING, detail: error.to_string() })?;
    table::patiently(|| table::remove(&mut netlink, table)).map_err(|refusal| says(DOING, &refusal))
}

fn says(doing: &'static str, refusal: &Refusal) -> GateError {
    GateError::Kernel { doing, detail: refusal.text() }
}

fn listed(ports: &BTreeSet<u16>) -> String {
    if ports.is_empty() {
        return "no ports".to_owned();
    }
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("the ports {}", ports.join(", "))
}

// === impl Kernel ===

impl Kernel {
    fn open(table: &str, own: bool) -> io::Result<Self> {
        let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
        let refused = |refusal: Refusal| io::Error::other(refusal.text());
        // While another process has it each verification tries again.
        let _ = table::keep_soon(&mut netlink, table, own);
        let left = table::ports(&mut netlink, table, GATED).map_err(refused)?;
        let mut process = [0; 4];
        SystemRandom::new().fill(&mut process).map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
        let armed = (!left.is_empty()).then_some(left);
        Ok(Self { netlink, sockets: Sockets::open().ok(), armed, process, guards: 0 })
    }

    fn gated(&mut self, table: &str) -> Result<BTreeSet<u16>, Refusal> {
        match &self.armed {
            Some(armed) => Ok(armed.clone()),
            None => table::ports(&mut self.netlink, table, GATED),
        }
    }

    fn next_guard(&mut self) -> [u8; 8] {
        self.guards = self.guards.wrapping_add(1);
        let mut guard = [0; 8];
        guard[..4].copy_from_slice(&self.process);
        guard[4..].copy_from_slice(&self.guards.to_ne_bytes());
        guard
    }
}
