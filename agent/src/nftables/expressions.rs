//! Rules as nf_tables wants and gives them back: lists of expressions, each of which goes on to the next or ends the rule.

use super::netlink::{Attributes, Parsed};

/// A part of a rule.
pub(crate) type Expression = (&'static str, Attributes);

/// A rule.
#[derive(Debug, Clone)]
pub(crate) struct Rule(Attributes);

/// Which port of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// Of packets out of whom it belongs to.
    Source,
    /// Of packets to them.
    Destination,
}

/// Whether an address or a port has to be in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Goes on when it is.
    In,
    /// Goes on when it is not.
    NotIn,
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
/// What `meta` tells: the kind of the interface of arrival, the family, the protocol above IP.
const META_INTERFACE_KIND: u32 = 8;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
/// Kind of the loopback interface.
const LOOPBACK: u16 = 772;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
const TCP: u8 = 6;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const NOT_IN_SET: u32 = 1;
const DROP: u32 = 0;
/// Where a TCP header has its flags, and the flags.
const FLAGS_OFFSET: u32 = 13;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
/// Kind of refusal that answers with a reset.
const WITH_RESET: u32 = 1;
const ELEMENT_VALUE: u16 = 1;
const ELEMENT_VERDICT: u16 = 2;

// === impl Rule ===

impl Rule {
    /// A rule of these expressions.
    pub(crate) fn new(expressions: impl IntoIterator<Item = Expression>) -> Self {
        Self(expressions.into_iter().fold(Attributes::default(), |list, (name, data)| {
            let expression = Attributes::default().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data);
            list.nest(LIST_ELEMENT, expression)
        }))
    }

    /// What nf_tables evaluates.
    pub(crate) fn expressions(&self) -> Attributes {
        self.0.clone()
    }
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(ELEMENT_VALUE, bytes)
}

fn payload(header: u32, offset: u32, length: u32) -> Expression {
    let of = Attributes::default().number(1, REGISTER).number(2, header);
    ("payload", of.number(3, offset).number(4, length))
}

fn meta(what: u32) -> Expression {
    ("meta", Attributes::default().number(1, REGISTER).number(2, what))
}

/// Goes on when what is loaded compares like this.
fn compare(how: u32, wanted: &[u8]) -> Expression {
    ("cmp", Attributes::default().number(1, REGISTER).number(2, how).nest(3, value(wanted)))
}

fn lookup(set: &str, how: Lookup) -> Expression {
    let flags = match how {
        Lookup::In => 0,
        Lookup::NotIn => NOT_IN_SET,
    };
    ("lookup", Attributes::default().text(1, set).number(2, REGISTER).number(5, flags))
}

/// Goes on with TCP whose port is in all these sets, or is not.
pub(crate) fn tcp_port(port: Port, sets: &[(&str, Lookup)]) -> Vec<Expression> {
    let offset = match port {
        Port::Source => 0,
        Port::Destination => 2,
    };
    let begin = [meta(META_PROTOCOL), compare(EQUAL, &[TCP]), payload(TRANSPORT_HEADER, offset, 2)];
    begin.into_iter().chain(sets.iter().map(|(set, how)| lookup(set, *how))).collect()
}

/// Goes on when those of the TCP flags that the mask names are these.
pub(crate) fn tcp_flags(mask: u8, wanted: u8) -> Vec<Expression> {
    let masked = Attributes::default().number(1, REGISTER).number(2, REGISTER).number(3, 1);
    let masked = masked.nest(4, value(&[mask])).nest(5, value(&[0]));
    vec![payload(TRANSPORT_HEADER, FLAGS_OFFSET, 1), ("bitwise", masked), compare(EQUAL, &[wanted])]
}

/// Goes on with what did not come in by the loopback interface.
pub(crate) fn from_elsewhere() -> Vec<Expression> {
    vec![meta(META_INTERFACE_KIND), compare(NOT_EQUAL, &LOOPBACK.to_ne_bytes())]
}

/// Goes on with packets of the family whose source is in none of these sets.
pub(crate) fn source_in_none(family: Family, sets: &[&str]) -> Vec<Expression> {
    let (number, offset, length) = match family {
        Family::V4 => (FAMILY_IPV4, 12, 4),
        Family::V6 => (FAMILY_IPV6, 8, 16),
    };
    let begin = [meta(META_FAMILY), compare(EQUAL, &[number]), payload(NETWORK_HEADER, offset, length)];
    begin.into_iter().chain(sets.iter().map(|set| lookup(set, Lookup::NotIn))).collect()
}

/// Ends the packet.
pub(crate) fn drop_it() -> Expression {
    let verdict = Attributes::default().nest(ELEMENT_VERDICT, Attributes::default().number(1, DROP));
    ("immediate", Attributes::default().number(1, REGISTER_VERDICT).nest(2, verdict))
}

/// Ends the packet and answers it with a reset.
pub(crate) fn reset_it() -> Expression {
    ("reject", Attributes::default().number(1, WITH_RESET))
}

/// Whether a rule that the kernel shows is this one. The kernel may show attributes that we did not set, in another order.
pub(crate) fn is_rule(shown: &[u8], rule: &Rule) -> bool {
    let wanted = rule.expressions().finish();
    let expressions = |bytes| -> Vec<(String, &[u8])> {
        Parsed::new(bytes)
            .all()
            .map(|(_, expression)| {
                let expression = Parsed::new(expression);
                (
                    expression.text(EXPRESSION_NAME).unwrap_or_default(),
                    expression.bytes(EXPRESSION_DATA).unwrap_or_default(),
                )
            })
            .collect()
    };
    let (wanted, shown) = (expressions(wanted.as_slice()), expressions(shown));
    wanted.len() == shown.len()
        && wanted.iter().zip(&shown).all(|((name, data), (shown_name, shown_data))| {
            name == shown_name
                && Parsed::new(data).all().all(|(kind, value)| {
                    let shown = Parsed::new(shown_data).bytes(kind);
                    // What is nested differs in its flags of nesting.
                    shown == Some(value) || shown.is_some_and(|shown| same_nested(value, shown))
                })
        })
}

fn same_nested(wanted: &[u8], shown: &[u8]) -> bool {
    let mut attributes = Parsed::new(wanted).all().peekable();
    attributes.peek().is_some()
        && attributes.all(|(kind, value)| {
            let shown = Parsed::new(shown).bytes(kind);
            shown == Some(value) || shown.is_some_and(|shown| same_nested(value, shown))
        })
}
