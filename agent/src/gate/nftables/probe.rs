//! Finds out what the kernel can do by doing it in a table that is thrown away.
//!
//! Not in the gate's own table, which an earlier process may have left open or closed for a reason.

use std::{thread, time::Duration};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use regent_common::clock::Clock;

use super::{
    message::{self, CHAINS, OPEN, SETS, TABLE_OWNED, TABLE_PERSISTS},
    netlink::{Netlink, Refusal},
    sockets::Sockets,
    table::{self, Kept},
};
use crate::gate::Abilities;

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
        let mut batch = vec![message::add_table(trial, 0)];
        batch.extend((0..).zip(&SETS).map(|(number, set)| message::add_set(trial, set, number)));
        batch.extend(CHAINS.iter().map(|chain| message::add_chain(trial, chain)));
        batch.extend(table::rules(trial, false));
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
        let mut batch = vec![message::add_table(&trial, 0)];
        batch.extend((0..).zip(&SETS).map(|(number, set)| message::add_set(&trial, set, number)));
        batch.extend(CHAINS.iter().map(|chain| message::add_chain(&trial, chain)));
        batch.extend(table::rules(&trial, true));
        let made = netlink.batch(&batch);
        table::remove(&mut netlink, &trial).and(made)
    };
    attempt().is_ok()
}

/// Makes an owned table, tries to delete it as somebody else, ends its owner, and takes it over.
fn survives_flush(trial: &str) -> Result<(), String> {
    let attempt = || -> Result<(), String> {
        let open = || Netlink::open(NETLINK_NETFILTER).map_err(|error| error.to_string());
        let (mut owner, mut other) = (open()?, open()?);
        let flags = TABLE_OWNED | TABLE_PERSISTS;
        owner.batch(&[message::add_table(trial, flags)]).map_err(|refusal| refused(&refusal))?;
        if other.batch(&[message::delete_table(trial)]).is_ok() {
            return Err("another process could delete an owned table".to_owned());
        }
        drop(owner);
        match table::keep_soon(&mut other, trial, true).map_err(|refusal| refused(&refusal))? {
            Kept::Owned => Ok(()),
            Kept::Shared => Err("an owned table could not be taken over from a process that ended".to_owned()),
            Kept::Absent => Err("an owned table did not stay when its owner ended".to_owned()),
        }
    };
    let outcome = attempt();
    if let Ok(mut netlink) = Netlink::open(NETLINK_NETFILTER) {
        // Where this fails the next trial has another name, and an empty table does nothing.
        let _ = table::remove(&mut netlink, trial);
    }
    outcome.map_err(|detail| {
        format!(
            "somebody else's `nft flush ruleset` removes the gate until the next heartbeat (Linux 6.9 and newer can \
             prevent it): {detail}"
        )
    })
}

/// A refusal for people, with what to do.
fn refused(refusal: &Refusal) -> String {
    let advice = if refusal.is(Errno::EPERM) || refusal.is(Errno::EACCES) {
        ": run the agent as root, or with CAP_NET_ADMIN"
    } else if refusal.is(Errno::EOPNOTSUPP) || refusal.is(Errno::EINVAL) || refusal.is(Errno::ENOENT) {
        ": use a kernel with nftables, of the inet family with filter chains (module nf_tables)"
    } else {
        ""
    };
    format!("{}{advice}", refusal.text())
}
