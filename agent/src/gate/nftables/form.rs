//! What the gate's table looks like: its sets, its chains, their rules. TCP, the port is gated, the port is not open: drop. But for
//! two kinds of segment that carry nothing and tell a client at once what a silence would tell it after seconds: the first one of
//! a connection is refused with a reset, and a reset that the engine's machine sends goes out.
//!
//! **Invariant:** the rule looks at the engine's own port alone: the destination of what comes in and the source of what
//! goes out. A connection that the engine itself makes has another port of its own and is not meant, nor is a client on
//! this machine that talks to another machine's engine on the same number.

use std::collections::BTreeSet;

use crate::nftables::{
    expressions::{ACK, FIN, Lookup, Port, RST, Rule, SYN, drop_it, reset_it, tcp_flags, tcp_port},
    message::{self, ChainForm, SET_WITH_TIMEOUT, SetForm, TYPE_MARK, TYPE_PORT},
    netlink::Message,
    table::{self, Form},
};

/// Set of the ports that are dropped unless they are open.
pub(super) const GATED: &str = "gated";
/// Set of the ports that are open; elements leave it by themselves.
pub(super) const OPEN: &str = "open";
/// Set that no rule consults: a change holds as long as its element in here lives.
pub(super) const GUARD: &str = "guard";

/// Before the usual filters, so that no accepting rule of theirs matters to what people see in their counters.
const PRIORITY: i32 = -10;

/// The table, with what a kernel can have of it.
pub(super) fn form(owned: bool, refuses: bool) -> Form {
    let port = |name, flags| SetForm { name, flags, key_type: TYPE_PORT, key_length: 2 };
    // A guard is named by two numbers: one drawn by the process, one counted in it.
    let (key_type, key_length) = ((TYPE_MARK << 6) | TYPE_MARK, 8);
    let guard = SetForm { name: GUARD, flags: SET_WITH_TIMEOUT, key_type, key_length };
    let incoming = refuses.then(refuse).into_iter().chain([drop_incoming()]).collect();
    Form {
        owned,
        sets: vec![port(GATED, 0), port(OPEN, SET_WITH_TIMEOUT), guard],
        chains: vec![
            ChainForm { name: "input", hook: 1, priority: PRIORITY, rules: incoming },
            ChainForm { name: "output", hook: 3, priority: PRIORITY, rules: vec![drop_outgoing()] },
        ],
    }
}

/// What fills the set of gated ports.
pub(super) fn gating(table: &str, ports: &BTreeSet<u16>) -> Option<Message> {
    let keys = table::keys(ports);
    let keys = || keys.iter().map(<[u8; 2]>::as_slice);
    (!ports.is_empty()).then(|| message::add_elements("gate the ports", table, GATED, keys(), None))
}

fn to_a_closed_port(port: Port) -> impl Iterator<Item = crate::nftables::expressions::Expression> {
    tcp_port(port, &[(GATED, Lookup::In), (OPEN, Lookup::NotIn)]).into_iter()
}

/// The first segment of a connection to a port that is not open is answered with a reset.
fn refuse() -> Rule {
    let first = tcp_flags(FIN | SYN | RST | ACK, SYN);
    Rule::new(to_a_closed_port(Port::Destination).chain(first).chain([reset_it()]))
}

/// What comes to a port that is not open is dropped.
fn drop_incoming() -> Rule {
    Rule::new(to_a_closed_port(Port::Destination).chain([drop_it()]))
}

/// What goes out from a port that is not open is dropped, but for resets.
fn drop_outgoing() -> Rule {
    Rule::new(to_a_closed_port(Port::Source).chain(tcp_flags(RST, 0)).chain([drop_it()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nftables::expressions::is_rule;

    #[test]
    fn a_rule_is_known_again_and_another_one_is_not() {
        let all = [refuse(), drop_incoming(), drop_outgoing()];
        for (place, rule) in all.iter().enumerate() {
            let shown = rule.expressions().finish();
            let known: Vec<_> = all.iter().map(|other| is_rule(&shown, other)).collect();
            assert_eq!(known, [0, 1, 2].map(|other| other == place), "{rule:?}");
            assert!(!is_rule(&[], rule));
        }
        // A verdict of accept in place of drop.
        let mut accept = drop_incoming().expressions().finish();
        *accept.last_mut().unwrap() = 1;
        assert!(!is_rule(&accept, &drop_incoming()));
    }
}
