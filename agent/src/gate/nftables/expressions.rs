//! The rules of the chains, as nf_tables wants and gives them back. TCP, the port is gated, the port is not open: drop. But for
//! two kinds of segment that carry nothing and tell a client at once what a silence would tell it after seconds: the first one of
//! a connection is refused with a reset, and a reset that the engine's machine sends goes out.
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
/// Where a TCP header has its flags, and the flags.
const FLAGS_OFFSET: u32 = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Kind of refusal that answers with a reset.
const WITH_RESET: u32 = 1;
const ELEMENT_VALUE: u16 = 1;
const ELEMENT_VERDICT: u16 = 2;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// The first segment of a connection to a port that is not open is answered with a reset.
    Refuse,
    /// What comes to a port that is not open is dropped.
    DropIncoming,
    /// What goes out from a port that is not open is dropped, but for resets.
    DropOutgoing,
}

// === impl Rule ===

impl Rule {
    /// What nf_tables evaluates.
    pub(super) fn expressions(self) -> Attributes {
        let port = match self {
            Self::Refuse | Self::DropIncoming => Port::Destination,
            Self::DropOutgoing => Port::Source,
        };
        let drop = || {
            let verdict = Attributes::default().nest(ELEMENT_VERDICT, Attributes::default().number(1, DROP));
            ("immediate", Attributes::default().number(1, REGISTER_VERDICT).nest(2, verdict))
        };
        let reset = || ("reject", Attributes::default().number(1, WITH_RESET));
        let end = match self {
            Self::Refuse => flags(FIN | SYN | RST | ACK, SYN).into_iter().chain([reset()]).collect(),
            Self::DropIncoming => vec![drop()],
            Self::DropOutgoing => flags(RST, 0).into_iter().chain([drop()]).collect::<Vec<_>>(),
        };
        let all = to_a_closed_port(port).into_iter().chain(end);
        all.fold(Attributes::default(), |list, (name, data)| {
            let expression = Attributes::default().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data);
            list.nest(LIST_ELEMENT, expression)
        })
    }
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(ELEMENT_VALUE, bytes)
}

/// Loads a part of the TCP header.
fn load(offset: u32, length: u32) -> (&'static str, Attributes) {
    let of = Attributes::default().number(1, REGISTER).number(2, TRANSPORT_HEADER);
    ("payload", of.number(3, offset).number(4, length))
}

/// Goes on when what is loaded is equal to this.
fn is(wanted: &[u8]) -> (&'static str, Attributes) {
    ("cmp", Attributes::default().number(1, REGISTER).number(2, 0).nest(3, value(wanted)))
}

/// Goes on with TCP when the port is gated and not open.
fn to_a_closed_port(port: Port) -> Vec<(&'static str, Attributes)> {
    let offset = match port {
        Port::Source => 0,
        Port::Destination => 2,
    };
    let in_set = |set: &str, flags| Attributes::default().text(1, set).number(2, REGISTER).number(5, flags);
    vec![
        ("meta", Attributes::default().number(1, REGISTER).number(2, META_PROTOCOL)),
        is(&[TCP]),
        load(offset, 2),
        ("lookup", in_set(GATED, 0)),
        ("lookup", in_set(OPEN, NOT_IN_SET)),
    ]
}

/// Goes on when those of the TCP flags that the mask names are these.
fn flags(mask: u8, wanted: u8) -> Vec<(&'static str, Attributes)> {
    let masked = Attributes::default().number(1, REGISTER).number(2, REGISTER).number(3, 1);
    let masked = masked.nest(4, value(&[mask])).nest(5, value(&[0]));
    vec![load(FLAGS_OFFSET, 1), ("bitwise", masked), is(&[wanted])]
}

/// Whether a rule that the kernel shows is this one. The kernel may show attributes that we did not set, in another order.
pub(super) fn is_rule(shown: &[u8], rule: Rule) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_known_again_and_another_one_is_not() {
        let all = [Rule::Refuse, Rule::DropIncoming, Rule::DropOutgoing];
        for rule in all {
            let shown = rule.expressions().finish();
            assert_eq!(all.map(|other| is_rule(&shown, other)), all.map(|other| other == rule), "{rule:?}");
            assert!(!is_rule(&[], rule));
        }
        // A verdict of accept in place of drop.
        let mut accept = Rule::DropIncoming.expressions().finish();
        *accept.last_mut().unwrap() = 1;
        assert!(!is_rule(&accept, Rule::DropIncoming));
    }
}
