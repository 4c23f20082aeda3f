//! Whether nodes can have members of a cluster whose ports speak TLS, and what a person does where they cannot.
//!
//! A node offers it by what it says of its engine ([`EngineOffer::connection_with_tls`]). It is asked for here, before a node becomes
//! a member: an agent of an older version would not even know that it was told to.

use regent_common::{ids::NodeName, topology::EngineOffer};

/// Whether members of this engine can speak TLS where this is offered.
pub fn offered(offer: &EngineOffer) -> bool {
    offer.connection_with_tls.is_some()
}

/// Says of nodes that they do not offer TLS for an engine; `then` is what that means for what was asked.
pub fn not_offered<'a>(engine: &str, nodes: impl IntoIterator<Item = &'a NodeName>, then: &str) -> String {
    let names: Vec<String> = nodes.into_iter().map(ToString::to_string).collect();
    let (nodes, they) = match names.len() {
        1 => ("node", "does"),
        _ => ("nodes", "do"),
    };
    format!(
        "{nodes} {} {they} not offer TLS for {engine}, so that no member whose port speaks it can be there{then}: {}",
        names.join(", "),
        remedy(engine)
    )
}

/// What a person writes where TLS is not offered.
pub fn remedy(engine: &str) -> String {
    format!(
        "write this into agent.toml there, with the files that you have, and restart the agent\n\
         [engine.{engine}.tls]\n\
         certificate = \"/etc/regent/engine.crt\"\n\
         key = \"/etc/regent/engine.key\"\n\
         ca = \"/etc/regent/engine-ca.crt\""
    )
}
