//! Finds out what the kernel can do by doing it in a table that is thrown away.
//!
//! Not in the gate's own table, which an earlier process may have left open or closed for a reason.

use std::{thread, time::Duration};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use regent_common::clock::Clock;

use super::form::{OPEN, form};
use crate::{
    gate::Abilities,
    nftables::{
        message,
        netlink::{Netlink, Refusal},
        sockets::Sockets,
        table,
        trial::{self, refused},
    },
};

/// Life of the element by which timeouts are tried.
const TRIAL_TIMEOUT: Duration = Duration::from_millis(40);
/// Time after which an element that is still there is taken to stay for ever.
const TRIAL_PATIENCE: Duration = Duration::from_secs(2);
const TRIAL_PAUSE: Duration = Duration::from_millis(5);

/// Tries everything that the gate relies on.
pub(super) fn abilities(name: &str, clock: &dyn Clock) -> Abilities {
    let mut abilities = Abilities::default();
    let trial = format!("{name}-trial-{}", std::process::id());
    match timed_gate(&trial, clock) {
        Ok(()) => abilities.timed_gate = true,
        Err(problem) => abilities.problems.push(problem),
    }
    if abilities.timed_gate {
        match survives_flush(&trial) {
            Ok(()) => abilities.survives_flush = true,
            Err(problem) => abilities.problems.push(problem),
        }
    }
    match Sockets::open().map_err(|error| error.to_string()).and_then(|mut sockets| {
        sockets.can_destroy().map_err(|refusal| {
            if refusal.is(Errno::EOPNOTSUPP) {
                "this kernel cannot destroy sockets: use one with CONFIG_INET_DIAG_DESTROY".to_owned()
            } else {
                refused(&refusal)
            }
        })
    }) {
        Ok(()) => abilities.destroys_sockets = true,
        Err(problem) => abilities.problems.push(format!(
            "established connections cannot be ended from outside, so that a queued answer may leave when the gate \
             opens again: {problem}"
        )),
    }
    abilities
}

/// Makes all that the gate consists of, and waits for an element to leave by itself.
fn timed_gate(trial: &str, clock: &dyn Clock) -> Result<(), String> {
    let says = |detail: &str| {
        format!("the kernel cannot close the gate by itself, so that a frozen agent is not covered: {detail}")
    };
    let mut netlink = Netlink::open(NETLINK_NETFILTER).map_err(|error| says(&error.to_string()))?;
    let attempt = |netlink: &mut Netlink| -> Result<bool, Refusal> {
        let mut batch = form(false, false).messages(trial, Vec::new());
        let key = 1_u16.to_be_bytes();
        let keys = [key.as_slice()];
        batch.push(message::add_elements("open a port", trial, OPEN, keys, Some(TRIAL_TIMEOUT)));
        netlink.batch(&batch)?;
        let begun = clock.now();
        loop {
            if table::elements(netlink, trial, OPEN)?.is_empty() {
                return Ok(true);
            }
            if begun.age(clock.now()) > TRIAL_PATIENCE {
                return Ok(false);
            }
            thread::sleep(TRIAL_PAUSE);
        }
    };
    let outcome = attempt(&mut netlink);
    let removed = table::remove(&mut netlink, trial);
    match outcome.and_then(|ended| removed.map(|()| ended)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(says("an element of a set with timeouts did not end")),
        Err(refusal) => Err(says(&refused(&refusal))),
    }
}

/// Whether this kernel can answer with a reset. Where it cannot, or that cannot be found out, clients of a closed port wait longer:
/// nothing else depends on it.
pub(super) fn refuses(name: &str) -> bool {
    let trial = format!("{name}-refuses-{}", std::process::id());
    let attempt = || -> Result<(), Refusal> {
        let mut netlink = Netlink::open(NETLINK_NETFILTER)
            .map_err(|error| Refusal::of(Errno::EIO, "open a socket", &error.to_string()))?;
        let made = netlink.batch(&form(false, true).messages(&trial, Vec::new()));
        table::remove(&mut netlink, &trial).and(made)
    };
    attempt().is_ok()
}

/// Whether a table can belong to this process alone, and outlive it.
fn survives_flush(trial: &str) -> Result<(), String> {
    trial::survives_flush(trial).map_err(|detail| {
        format!(
            "somebody else's `nft flush ruleset` removes the gate until the next heartbeat (Linux 6.9 and newer can \
             prevent it): {detail}"
        )
    })
}
