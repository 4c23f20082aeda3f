//! A table in the kernel: what it has to look like, how it is found to be, and how it is made.
//!
//! **Invariant:** making it anew happens in one transaction with what its sets have to hold, so that at no moment rules stand
//! without that, nor that without rules.

use std::{collections::BTreeSet, thread, time::Duration};

use nix::errno::Errno;

use super::{
    expressions::is_rule,
    message::{self, ChainForm, Element, SetForm, TABLE_OWNED, TABLE_PERSISTS},
    netlink::{Message, Netlink, Refusal},
};

/// What a table has to look like, but for what its sets hold.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    /// It is ours alone and survives a foreign flush and our end.
    pub(crate) owned: bool,
    pub(crate) sets: Vec<SetForm>,
    pub(crate) chains: Vec<ChainForm>,
}

/// How the table is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is ours and survives a foreign flush and our end.
    Owned,
    /// It is there; anybody with the right may change it.
    Shared,
    /// There is none.
    Absent,
}

/// Every other flag of a table than those of ownership: a table with one of them does not drop.
const FOREIGN_FLAGS: u32 = !(TABLE_OWNED | TABLE_PERSISTS);

// === impl Form ===

impl Form {
    /// What makes a table of this form where there is none.
    pub(crate) fn messages(&self, table: &str, contents: Vec<Message>) -> Vec<Message> {
        let flags = if self.owned { TABLE_OWNED | TABLE_PERSISTS } else { 0 };
        let mut messages = vec![message::add_table(table, flags)];
        messages.extend((0..).zip(&self.sets).map(|(number, set)| message::add_set(table, set, number)));
        messages.extend(contents);
        messages.extend(self.chains.iter().map(|chain| message::add_chain(table, chain)));
        let rules = |chain| ChainForm::messages(chain, table);
        messages.extend(self.chains.iter().flat_map(rules));
        messages
    }
}

impl ChainForm {
    fn messages<'a>(&'a self, table: &'a str) -> impl Iterator<Item = Message> + 'a {
        self.rules.iter().map(move |rule| message::add_rule(table, self, rule))
    }
}

/// Takes over a table that a process which has ended left behind, where `own` says so. Changes nothing else.
pub(crate) fn keep(netlink: &mut Netlink, table: &str, own: bool) -> Result<Kept, Refusal> {
    let Some(found) = get(netlink, table)? else { return Ok(Kept::Absent) };
    let owned = found.flags & TABLE_OWNED != 0;
    if owned && found.owner == Some(netlink.port()) {
        return Ok(Kept::Owned);
    }
    if owned {
        return Err(Refusal::of(
            Errno::EPERM,
            "take over the table",
            "another process owns it; is a second agent running?",
        ));
    }
    if !own || found.flags & TABLE_PERSISTS == 0 {
        return Ok(Kept::Shared);
    }
    match netlink.batch(&[message::add_table(table, TABLE_OWNED | TABLE_PERSISTS)]) {
        Ok(()) => Ok(Kept::Owned),
        Err(refusal) if refusal.is(Errno::EOPNOTSUPP) || refusal.is(Errno::EINVAL) => Ok(Kept::Shared),
        Err(refusal) => Err(refusal),
    }
}

/// As [`keep`], for an owner that may have ended just now.
pub(crate) fn keep_soon(netlink: &mut Netlink, table: &str, own: bool) -> Result<Kept, Refusal> {
    patiently(|| keep(netlink, table, own))
}

/// Tries again what an owner of the table prevents that may have ended just now: while any thread of its process is between
/// fork and exec, the new process has the owner's socket as well, for milliseconds.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    const ATTEMPTS: usize = 500;
    const PAUSE: Duration = Duration::from_millis(2);
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(refusal) if refusal.is(Errno::EPERM) => thread::sleep(PAUSE),
            other => return other,
        }
    }
    attempt()
}

/// What is not as it has to be, a sentence each. Contents of the sets are not looked at.
pub(crate) fn faults(netlink: &mut Netlink, table: &str, form: &Form) -> Result<Vec<String>, Refusal> {
    let Form { owned, sets: wanted_sets, chains: wanted_chains } = form;
    let Some(found) = get(netlink, table)? else {
        return Ok(vec![format!("the table inet {table} was missing")]);
    };
    let mut faults = Vec::new();
    if found.flags & FOREIGN_FLAGS != 0 {
        faults.push(format!("the table inet {table} was dormant"));
    }
    if *owned && found.flags & TABLE_OWNED == 0 {
        faults.push(format!("the table inet {table} was somebody else's"));
    }
    let sets = netlink.dump(&message::get_sets(table))?;
    let sets: Vec<_> = sets.iter().map(|answer| message::read_set(answer)).collect();
    for form in wanted_sets {
        match sets.iter().find(|(name, ..)| name == form.name) {
            None => faults.push(format!("the set {} was missing", form.name)),
            Some((_, flags, length)) if (*flags, *length) == (form.flags, form.key_length) => {}
            Some(_) => faults.push(format!("the set {} was of another kind", form.name)),
        }
    }
    let chains = netlink.dump(&message::get_chains())?;
    let rules = netlink.dump(&message::get_rules(table))?;
    let rules: Vec<_> = rules.iter().map(|answer| message::read_rule(answer)).collect();
    for form in wanted_chains {
        match chains.iter().find_map(|answer| message::read_chain(answer, table, form)) {
            None => faults.push(format!("the chain {} was missing", form.name)),
            Some(false) => faults.push(format!("the chain {} was in another place", form.name)),
            Some(true) => {
                let own: Vec<_> = rules.iter().filter(|(of, chain, _)| of == table && chain == form.name).collect();
                let wanted = &form.rules;
                let same = || own.iter().zip(wanted).all(|((.., shown), rule)| is_rule(shown, rule));
                if own.is_empty() {
                    faults.push(format!("the rules of the chain {} were missing", form.name));
                } else if own.len() != wanted.len() || !same() {
                    faults.push(format!("the chain {} had other rules", form.name));
                }
            }
        }
    }
    Ok(faults)
}

/// Makes the table as it has to be, in place of one that is there; `contents` fill its sets.
pub(crate) fn make(netlink: &mut Netlink, table: &str, form: &Form, contents: Vec<Message>) -> Result<(), Refusal> {
    let there = get(netlink, table)?.is_some();
    let mut batch: Vec<Message> = there.then(|| message::delete_table(table)).into_iter().collect();
    batch.extend(form.messages(table, contents));
    netlink.batch(&batch)
}

/// Deletes the table; one that is not there is deleted.
pub(crate) fn remove(netlink: &mut Netlink, table: &str) -> Result<(), Refusal> {
    match netlink.batch(&[message::delete_table(table)]) {
        Err(refusal) if refusal.is(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// The elements of a set; none where there is no such set.
pub(crate) fn elements(netlink: &mut Netlink, table: &str, set: &str) -> Result<Vec<Element>, Refusal> {
    match netlink.dump(&message::get_elements(table, set)) {
        Ok(answers) => Ok(answers.iter().flat_map(|answer| message::read_elements(answer)).collect()),
        Err(refusal) if refusal.is(Errno::ENOENT) => Ok(Vec::new()),
        Err(refusal) => Err(refusal),
    }
}

/// The ports of a set; none where there is no such set.
pub(crate) fn ports(netlink: &mut Netlink, table: &str, set: &str) -> Result<BTreeSet<u16>, Refusal> {
    Ok(elements(netlink, table, set)?.iter().filter_map(port).collect())
}

/// The keys of these ports in the sets.
pub(crate) fn keys(ports: &BTreeSet<u16>) -> Vec<[u8; 2]> {
    ports.iter().map(|port| port.to_be_bytes()).collect()
}

/// The port of a key in the sets.
pub(crate) fn port(element: &Element) -> Option<u16> {
    element.key.as_slice().try_into().ok().map(u16::from_be_bytes)
}

fn get(netlink: &mut Netlink, table: &str) -> Result<Option<message::Table>, Refusal> {
    match netlink.ask(&message::get_table(table)) {
        Ok(answers) => Ok(answers.first().map(|answer| message::read_table(answer))),
        Err(refusal) if refusal.is(Errno::ENOENT) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}
