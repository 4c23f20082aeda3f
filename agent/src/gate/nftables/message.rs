//! The nf_tables messages of the gate: table, sets, chains, rules and elements, written and read.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. Everything is of family `inet`: IPv4 and IPv6 in one table.

use std::time::Duration;

use super::{
    expressions::Rule,
    netlink::{APPEND, Attributes, CREATE, Message, NF_TABLES, Parsed, netfilter_header},
};

/// Set of the ports that are dropped unless they are open.
pub(super) const GATED: &str = "gated";
/// Set of the ports that are open; elements leave it by themselves.
pub(super) const OPEN: &str = "open";
/// Set that no rule consults: a change holds as long as its element in here lives.
pub(super) const GUARD: &str = "guard";

/// The table ends with the socket that made it, and nobody else may change it.
pub(super) const TABLE_OWNED: u32 = 0x2;
/// The table stays when its owner ends, and can be owned anew.
pub(super) const TABLE_PERSISTS: u32 = 0x4;
/// Elements may have an end.
pub(super) const SET_WITH_TIMEOUT: u32 = 0x10;

/// Before the usual filters, so that no accepting rule of theirs matters to what people see in their counters.
pub(super) const PRIORITY: i32 = -10;
const POLICY_ACCEPT: u32 = 1;
const FAMILY_INET: u8 = 1;

/// A set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetForm {
    pub(super) name: &'static str,
    pub(super) flags: u32,
    /// How `nft list` shows the elements; the kernel does not care.
    key_type: u32,
    pub(super) key_length: u32,
}

/// The sets. A guard is named by two numbers: one drawn by the process, one counted in it.
pub(super) const SETS: [SetForm; 3] = [
    SetForm { name: GATED, flags: 0, key_type: TYPE_PORT, key_length: 2 },
    SetForm { name: OPEN, flags: SET_WITH_TIMEOUT, key_type: TYPE_PORT, key_length: 2 },
    SetForm { name: GUARD, flags: SET_WITH_TIMEOUT, key_type: (TYPE_MARK << 6) | TYPE_MARK, key_length: 8 },
];
const TYPE_PORT: u32 = 13;
const TYPE_MARK: u32 = 19;

/// A chain of the table with its rules, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChainForm {
    pub(super) name: &'static str,
    pub(super) hook: u32,
    rules: &'static [Rule],
}

/// The chains.
pub(super) const CHAINS: [ChainForm; 2] = [
    ChainForm { name: "input", hook: 1, rules: &[Rule::Refuse, Rule::DropIncoming] },
    ChainForm { name: "output", hook: 3, rules: &[Rule::DropOutgoing] },
];

// === impl ChainForm ===

impl ChainForm {
    /// Its rules in their order, on a kernel that can refuse or not.
    pub(super) fn rules(&self, refuses: bool) -> impl Iterator<Item = Rule> + use<> {
        self.rules.iter().copied().filter(move |rule| refuses || *rule != Rule::Refuse)
    }
}

/// An element of a set as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    /// Time left; `None` for ever.
    pub(super) left: Option<Duration>,
}

/// A table as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) flags: u32,
    /// Socket of the owner.
    pub(super) owner: Option<u32>,
}

/// Kinds of nf_tables messages, each with the next number for "get" and the one after for "delete".
mod kind {
    pub(super) const TABLE: u16 = 0;
    pub(super) const CHAIN: u16 = 3;
    pub(super) const RULE: u16 = 6;
    pub(super) const SET: u16 = 9;
    pub(super) const ELEMENT: u16 = 12;
    pub(super) const GET: u16 = 1;
    pub(super) const DELETE: u16 = 2;
}

const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_OWNER: u16 = 7;
/// In chains, rules, sets and lists of elements the first attribute names the table.
const OF_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_ID: u16 = 10;
const ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_LEFT: u16 = 5;
const DATA_VALUE: u16 = 1;

fn message(what: &'static str, kind: u16, flags: u16, attributes: Attributes) -> Message {
    let mut body = netfilter_header(FAMILY_INET, 0);
    body.extend(attributes.finish());
    Message { what, kind: (NF_TABLES << 8) | kind, flags, body }
}

fn attributes(answer: &[u8]) -> Parsed<'_> {
    Parsed::new(answer.get(4..).unwrap_or_default())
}

// --- writing ----------------------------------------------------------------------------------------------------------

/// Makes the table, or takes over one that is there.
pub(super) fn add_table(table: &str, flags: u32) -> Message {
    let named = Attributes::default().text(TABLE_NAME, table).number(TABLE_FLAGS, flags);
    message("add the table", kind::TABLE, CREATE, named)
}

/// Deletes the table with everything in it.
pub(super) fn delete_table(table: &str) -> Message {
    message("delete the table", kind::TABLE + kind::DELETE, 0, Attributes::default().text(TABLE_NAME, table))
}

/// Makes a set; `number` tells it from others of the same batch.
pub(super) fn add_set(table: &str, set: &SetForm, number: u32) -> Message {
    let form = Attributes::default()
        .text(OF_TABLE, table)
        .text(SET_NAME, set.name)
        .number(SET_FLAGS, set.flags)
        .number(SET_KEY_TYPE, set.key_type)
        .number(SET_KEY_LENGTH, set.key_length)
        .number(SET_ID, number);
    message("add a set", kind::SET, CREATE, form)
}

/// Makes a chain.
pub(super) fn add_chain(table: &str, chain: &ChainForm) -> Message {
    let hook = Attributes::default().number(1, chain.hook).bytes(2, &PRIORITY.to_be_bytes());
    let form = Attributes::default()
        .text(OF_TABLE, table)
        .text(CHAIN_NAME, chain.name)
        .nest(CHAIN_HOOK, hook)
        .number(CHAIN_POLICY, POLICY_ACCEPT)
        .text(CHAIN_TYPE, "filter");
    message("add a chain", kind::CHAIN, CREATE, form)
}

/// Makes a rule after those that are in a chain.
pub(super) fn add_rule(table: &str, chain: &ChainForm, rule: Rule) -> Message {
    let form = Attributes::default()
        .text(OF_TABLE, table)
        .text(RULE_CHAIN, chain.name)
        .nest(RULE_EXPRESSIONS, rule.expressions());
    message("add a rule", kind::RULE, CREATE | APPEND, form)
}

/// Adds elements that end after the time, or never.
pub(super) fn add_elements<'a>(
    what: &'static str,
    table: &str,
    set: &str,
    keys: impl IntoIterator<Item = &'a [u8]>,
    timeout: Option<Duration>,
) -> Message {
    message(what, kind::ELEMENT, CREATE, elements(table, set, keys, timeout))
}

/// Deletes elements; the kernel refuses when one is not there, or is over.
pub(super) fn delete_elements<'a>(
    what: &'static str,
    table: &str,
    set: &str,
    keys: impl IntoIterator<Item = &'a [u8]>,
) -> Message {
    message(what, kind::ELEMENT + kind::DELETE, 0, elements(table, set, keys, None))
}

/// Deletes all elements; never refused while the set is there.
pub(super) fn flush_set(what: &'static str, table: &str, set: &str) -> Message {
    let named = Attributes::default().text(OF_TABLE, table).text(SET_NAME, set);
    message(what, kind::ELEMENT + kind::DELETE, 0, named)
}

fn elements<'a>(
    table: &str,
    set: &str,
    keys: impl IntoIterator<Item = &'a [u8]>,
    timeout: Option<Duration>,
) -> Attributes {
    let list = keys.into_iter().fold(Attributes::default(), |list, key| {
        let mut element = Attributes::default().nest(ELEMENT_KEY, Attributes::default().bytes(DATA_VALUE, key));
        if let Some(timeout) = timeout {
            let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            element = element.long(ELEMENT_TIMEOUT, milliseconds);
        }
        list.nest(LIST_ELEMENT, element)
    });
    Attributes::default().text(OF_TABLE, table).text(SET_NAME, set).nest(ELEMENTS, list)
}

// --- reading ----------------------------------------------------------------------------------------------------------

/// Asks for one table.
pub(super) fn get_table(table: &str) -> Message {
    message("read the table", kind::TABLE + kind::GET, 0, Attributes::default().text(TABLE_NAME, table))
}

/// Asks for the sets of a table.
pub(super) fn get_sets(table: &str) -> Message {
    message("read the sets", kind::SET + kind::GET, 0, Attributes::default().text(OF_TABLE, table))
}

/// Asks for all chains of the family: the kernel has no narrower question.
pub(super) fn get_chains() -> Message {
    message("read the chains", kind::CHAIN + kind::GET, 0, Attributes::default())
}

/// Asks for the rules of a table.
pub(super) fn get_rules(table: &str) -> Message {
    message("read the rules", kind::RULE + kind::GET, 0, Attributes::default().text(OF_TABLE, table))
}

/// Asks for the elements of a set.
pub(super) fn get_elements(table: &str, set: &str) -> Message {
    let named = Attributes::default().text(OF_TABLE, table).text(SET_NAME, set);
    message("read a set", kind::ELEMENT + kind::GET, 0, named)
}

/// Out of an answer to [`get_table`].
pub(super) fn read_table(answer: &[u8]) -> Table {
    let table = attributes(answer);
    Table { flags: table.number(TABLE_FLAGS).unwrap_or_default(), owner: table.number(TABLE_OWNER) }
}

/// Name, flags and length of the keys out of an answer to [`get_sets`].
pub(super) fn read_set(answer: &[u8]) -> (String, u32, u32) {
    let set = attributes(answer);
    (
        set.text(SET_NAME).unwrap_or_default(),
        set.number(SET_FLAGS).unwrap_or_default(),
        set.number(SET_KEY_LENGTH).unwrap_or_default(),
    )
}

/// Whether an answer to [`get_chains`] is this chain of this table, and if so whether it stands where it should.
pub(super) fn read_chain(answer: &[u8], table: &str, form: &ChainForm) -> Option<bool> {
    let chain = attributes(answer);
    if chain.text(OF_TABLE).as_deref() != Some(table) || chain.text(CHAIN_NAME).as_deref() != Some(form.name) {
        return None;
    }
    let hook = chain.nested(CHAIN_HOOK);
    Some(
        hook.and_then(|hook| hook.number(1)) == Some(form.hook)
            && hook.and_then(|hook| hook.bytes(2)) == Some(&PRIORITY.to_be_bytes())
            && chain.text(CHAIN_TYPE).as_deref() == Some("filter"),
    )
}

/// Table, chain and expressions out of an answer to [`get_rules`].
pub(super) fn read_rule(answer: &[u8]) -> (String, String, &[u8]) {
    let rule = attributes(answer);
    (
        rule.text(OF_TABLE).unwrap_or_default(),
        rule.text(RULE_CHAIN).unwrap_or_default(),
        rule.bytes(RULE_EXPRESSIONS).unwrap_or_default(),
    )
}

/// The elements out of an answer to [`get_elements`].
pub(super) fn read_elements(answer: &[u8]) -> Vec<Element> {
    let list = attributes(answer).nested(ELEMENTS).unwrap_or_else(|| Parsed::new(&[]));
    list.all()
        .filter_map(|(_, element)| {
            let element = Parsed::new(element);
            let key = element.nested(ELEMENT_KEY)?.bytes(DATA_VALUE)?.to_vec();
            // Newer kernels show a timeout of 0 for what never ends.
            let left = match element.long(ELEMENT_TIMEOUT) {
                None | Some(0) => None,
                Some(_) => Some(Duration::from_millis(element.long(ELEMENT_LEFT).unwrap_or_default())),
            };
            Some(Element { key, left })
        })
        .collect()
}
