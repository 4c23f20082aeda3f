//! The nf_tables messages: table, sets, chains, rules and elements, written and read.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. Everything is of family `inet`: IPv4 and IPv6 in one table.

use std::time::Duration;

use super::{
    expressions::Rule,
    netlink::{APPEND, Attributes, CREATE, Message, NF_TABLES, Parsed, netfilter_header},
};

/// The table ends with the socket that made it, and nobody else may change it.
pub(crate) const TABLE_OWNED: u32 = 0x2;
/// The table stays when its owner ends, and can be owned anew.
pub(crate) const TABLE_PERSISTS: u32 = 0x4;
/// Elements are bounds of ranges.
pub(crate) const SET_OF_RANGES: u32 = 0x4;
/// Elements may have an end.
pub(crate) const SET_WITH_TIMEOUT: u32 = 0x10;

const POLICY_ACCEPT: u32 = 1;
const FAMILY_INET: u8 = 1;

/// A set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetForm {
    pub(crate) name: &'static str,
    pub(crate) flags: u32,
    /// How `nft list` shows the elements; the kernel does not care.
    pub(crate) key_type: u32,
    pub(crate) key_length: u32,
}

/// Keys that `nft list` shows as ports.
pub(crate) const TYPE_PORT: u32 = 13;
/// Keys that it shows as IPv4 addresses.
pub(crate) const TYPE_IPV4: u32 = 7;
/// Keys that it shows as IPv6 addresses.
pub(crate) const TYPE_IPV6: u32 = 8;
/// Keys that it shows as marks.
pub(crate) const TYPE_MARK: u32 = 19;

/// A chain of the table with its rules, in their order.
#[derive(Debug, Clone)]
pub(crate) struct ChainForm {
    pub(crate) name: &'static str,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    pub(crate) rules: Vec<Rule>,
}

/// An element of a set as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// Whether it is the first key after a range, in a set of ranges.
    pub(crate) ends_range: bool,
    /// Time left; `None` for ever.
    pub(crate) left: Option<Duration>,
}

/// A table as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) flags: u32,
    /// Socket of the owner.
    pub(crate) owner: Option<u32>,
}

/// Kinds of nf_tables messages, each with the next number for "get" and the one after for "delete".
mod kind {
    pub(crate) const TABLE: u16 = 0;
    pub(crate) const CHAIN: u16 = 3;
    pub(crate) const RULE: u16 = 6;
    pub(crate) const SET: u16 = 9;
    pub(crate) const ELEMENT: u16 = 12;
    pub(crate) const GET: u16 = 1;
    pub(crate) const DELETE: u16 = 2;
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
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_LEFT: u16 = 5;
const DATA_VALUE: u16 = 1;
/// The element is the first key after a range.
const ENDS_RANGE: u32 = 1;
/// Elements in one message: a list of them has a length of 16 bits.
const ELEMENTS_AT_ONCE: usize = 1000;

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
pub(crate) fn add_table(table: &str, flags: u32) -> Message {
    let named = Attributes::default().text(TABLE_NAME, table).number(TABLE_FLAGS, flags);
    message("add the table", kind::TABLE, CREATE, named)
}

/// Deletes the table with everything in it.
pub(crate) fn delete_table(table: &str) -> Message {
    message("delete the table", kind::TABLE + kind::DELETE, 0, Attributes::default().text(TABLE_NAME, table))
}

/// Makes a set; `number` tells it from others of the same batch.
pub(crate) fn add_set(table: &str, set: &SetForm, number: u32) -> Message {
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
pub(crate) fn add_chain(table: &str, chain: &ChainForm) -> Message {
    let hook = Attributes::default().number(1, chain.hook).bytes(2, &chain.priority.to_be_bytes());
    let form = Attributes::default()
        .text(OF_TABLE, table)
        .text(CHAIN_NAME, chain.name)
        .nest(CHAIN_HOOK, hook)
        .number(CHAIN_POLICY, POLICY_ACCEPT)
        .text(CHAIN_TYPE, "filter");
    message("add a chain", kind::CHAIN, CREATE, form)
}

/// Makes a rule after those that are in a chain.
pub(crate) fn add_rule(table: &str, chain: &ChainForm, rule: &Rule) -> Message {
    let form = Attributes::default()
        .text(OF_TABLE, table)
        .text(RULE_CHAIN, chain.name)
        .nest(RULE_EXPRESSIONS, rule.expressions());
    message("add a rule", kind::RULE, CREATE | APPEND, form)
}

/// Adds elements that end after the time, or never.
pub(crate) fn add_elements<'a>(
    what: &'static str,
    table: &str,
    set: &str,
    keys: impl IntoIterator<Item = &'a [u8]>,
    timeout: Option<Duration>,
) -> Message {
    message(what, kind::ELEMENT, CREATE, elements(table, set, keys, timeout))
}

/// Adds bounds of ranges to a set of ranges, each a key and whether it is the first one after a range; as many messages as it
/// takes.
pub(crate) fn add_bounds<'a>(
    what: &'static str,
    table: &'a str,
    set: &'a str,
    bounds: &'a [(Vec<u8>, bool)],
) -> impl Iterator<Item = Message> + 'a {
    bounds.chunks(ELEMENTS_AT_ONCE).map(move |some| {
        let list = some.iter().fold(Attributes::default(), |list, (key, ends_range)| {
            let element = Attributes::default().nest(ELEMENT_KEY, Attributes::default().bytes(DATA_VALUE, key));
            let element = if *ends_range { element.number(ELEMENT_FLAGS, ENDS_RANGE) } else { element };
            list.nest(LIST_ELEMENT, element)
        });
        let list = Attributes::default().text(OF_TABLE, table).text(SET_NAME, set).nest(ELEMENTS, list);
        message(what, kind::ELEMENT, CREATE, list)
    })
}

/// Deletes elements; the kernel refuses when one is not there, or is over.
pub(crate) fn delete_elements<'a>(
    what: &'static str,
    table: &str,
    set: &str,
    keys: impl IntoIterator<Item = &'a [u8]>,
) -> Message {
    message(what, kind::ELEMENT + kind::DELETE, 0, elements(table, set, keys, None))
}

/// Deletes all elements; never refused while the set is there.
pub(crate) fn flush_set(what: &'static str, table: &str, set: &str) -> Message {
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
pub(crate) fn get_table(table: &str) -> Message {
    message("read the table", kind::TABLE + kind::GET, 0, Attributes::default().text(TABLE_NAME, table))
}

/// Asks for the sets of a table.
pub(crate) fn get_sets(table: &str) -> Message {
    message("read the sets", kind::SET + kind::GET, 0, Attributes::default().text(OF_TABLE, table))
}

/// Asks for all chains of the family: the kernel has no narrower question.
pub(crate) fn get_chains() -> Message {
    message("read the chains", kind::CHAIN + kind::GET, 0, Attributes::default())
}

/// Asks for the rules of a table.
pub(crate) fn get_rules(table: &str) -> Message {
    message("read the rules", kind::RULE + kind::GET, 0, Attributes::default().text(OF_TABLE, table))
}

/// Asks for the elements of a set.
pub(crate) fn get_elements(table: &str, set: &str) -> Message {
    let named = Attributes::default().text(OF_TABLE, table).text(SET_NAME, set);
    message("read a set", kind::ELEMENT + kind::GET, 0, named)
}

/// Out of an answer to [`get_table`].
pub(crate) fn read_table(answer: &[u8]) -> Table {
    let table = attributes(answer);
    Table { flags: table.number(TABLE_FLAGS).unwrap_or_default(), owner: table.number(TABLE_OWNER) }
}

/// Name, flags and length of the keys out of an answer to [`get_sets`].
pub(crate) fn read_set(answer: &[u8]) -> (String, u32, u32) {
    let set = attributes(answer);
    (
        set.text(SET_NAME).unwrap_or_default(),
        set.number(SET_FLAGS).unwrap_or_default(),
        set.number(SET_KEY_LENGTH).unwrap_or_default(),
    )
}

/// Whether an answer to [`get_chains`] is this chain of this table, and if so whether it stands where it should.
pub(crate) fn read_chain(answer: &[u8], table: &str, form: &ChainForm) -> Option<bool> {
    let chain = attributes(answer);
    if chain.text(OF_TABLE).as_deref() != Some(table) || chain.text(CHAIN_NAME).as_deref() != Some(form.name) {
        return None;
    }
    let hook = chain.nested(CHAIN_HOOK);
    Some(
        hook.and_then(|hook| hook.number(1)) == Some(form.hook)
            && hook.and_then(|hook| hook.bytes(2)) == Some(&form.priority.to_be_bytes())
            && chain.text(CHAIN_TYPE).as_deref() == Some("filter"),
    )
}

/// Table, chain and expressions out of an answer to [`get_rules`].
pub(crate) fn read_rule(answer: &[u8]) -> (String, String, &[u8]) {
    let rule = attributes(answer);
    (
        rule.text(OF_TABLE).unwrap_or_default(),
        rule.text(RULE_CHAIN).unwrap_or_default(),
        rule.bytes(RULE_EXPRESSIONS).unwrap_or_default(),
    )
}

/// The elements out of an answer to [`get_elements`].
pub(crate) fn read_elements(answer: &[u8]) -> Vec<Element> {
    let list = attributes(answer).nested(ELEMENTS).unwrap_or_else(|| Parsed::new(&[]));
    list.all()
        .filter_map(|(_, element)| {
            let element = Parsed::new(element);
            let key = element.nested(ELEMENT_KEY)?.bytes(DATA_VALUE)?.to_vec();
            let ends_range = element.number(ELEMENT_FLAGS).is_some_and(|flags| flags & ENDS_RANGE != 0);
            // Newer kernels show a timeout of 0 for what never ends.
            let left = match element.long(ELEMENT_TIMEOUT) {
                None | Some(0) => None,
                Some(_) => Some(Duration::from_millis(element.long(ELEMENT_LEFT).unwrap_or_default())),
            };
            Some(Element { key, ends_range, left })
        })
        .collect()
}
