//! The one rule of each chain, as nf_tables wants and gives it back: TCP, the port is gated, the port is not open: drop.
//!
//! **Invariant:** the rule looks at the engine's own port alone: the destination of what comes in and the source of what
//! goes out. A connection that the engine itself makes has another port of its own and is not meant, nor is a client on
//! this machine that talks to another machine's engine on the same number.

use super::{
    message::{GATED, OPEN},
    netlink::{Attributes, Parsed},
};

/// Which port of a TCP segment is the engine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    /// Of packets out of the engine.
    Source,
    /// Of packets to the engine.
    Destination,
}

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
/// The protocol above IP, in the numbering of `meta`.
const META_PROTOCOL: u32 = 16;
const TCP: u8 = 6;
const TRANSPORT_HEADER: u32 = 2;
const NOT_IN_SET: u32 = 1;
const DROP: u32 = 0;
const ELEMENT_VALUE: u16 = 1;
const ELEMENT_VERDICT: u16 = 2;

/// The expressions of the rule.
pub(super) fn drop_unless_open(port: Port) -> Attributes {
    let offset = match port {
        Port::Source => 0,
        Port::Destination => 2,
    };
    let value = |bytes: &[u8]| Attributes::default().bytes(ELEMENT_VALUE, bytes);
    let verdict = Attributes::default().nest(ELEMENT_VERDICT, Attributes::default().number(1, DROP));
    let in_set = |set: &str, flags| Attributes::default().text(1, set).number(2, REGISTER).number(5, flags);
    [
        ("meta", Attributes::default().number(1, REGISTER).number(2, META_PROTOCOL)),
        ("cmp", Attributes::default().number(1, REGISTER).number(2, 0).nest(3, value(&[TCP]))),
        (
            "payload",
            Attributes::default().number(1, REGISTER).number(2, TRANSPORT_HEADER).number(3, offset).number(4, 2),
        ),
        ("lookup", in_set(GATED, 0)),
        ("lookup", in_set(OPEN, NOT_IN_SET)),
        ("immediate", Attributes::default().number(1, REGISTER_VERDICT).nest(2, verdict)),
    ]
    .into_iter()
    .fold(Attributes::default(), |list, (name, data)| {
        let expression = Attributes::default().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data);
        list.nest(LIST_ELEMENT, expression)
    })
}

/// Whether a rule that the kernel shows is the one for this port. The kernel may show attributes that we did not set, in
/// another order.
pub(super) fn is_drop_unless_open(shown: &[u8], port: Port) -> bool {
    let wanted = drop_unless_open(port).finish();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_known_again_and_another_one_is_not() {
        let input = drop_unless_open(Port::Destination).finish();
        assert!(is_drop_unless_open(&input, Port::Destination));
        assert!(!is_drop_unless_open(&input, Port::Source));
        assert!(!is_drop_unless_open(&[], Port::Source));
        // A verdict of accept in place of drop.
        let mut accept = input.clone();
        *accept.last_mut().unwrap() = 1;
        assert!(!is_drop_unless_open(&accept, Port::Destination));
    }
}
