//! Whether nodes can have members of a cluster whose ports speak TLS, and what a person does where they cannot.
//!
//! A node offers it by what it says of its engine ([`EngineOffer::connection_with_tls`]). It is asked for here, before a node becomes
//! a member: an agent of an older version would not even know that it was told to.

use regent_common::{ids::NodeName, topology::EngineOffer};

/// Whether members of this engine can speak TLS where this is offered.
pub fn offered(offer: &EngineOffer) -> bool {
    offer.connection_with_tls.is_some()
}

/// Says of nodes that they do not offer TLS for an engine.
pub fn not_offered<'a>(engine: &str, nodes: impl IntoIterator<Item = &'a NodeName>) -> String {
    let names: Vec<String> = nodes.into_iter().map(ToString::to_string).collect();
    let subject = match &names[..] {
        [name] => format!("node {name} does"),
        names => format!("nodes {} do", names.join(", ")),
    };
    format!("{subject} not offer TLS for {engine}, which is all that the ports of the cluster speak")
}

/// What a person does where TLS is not offered, in a line.
pub fn remedy(engine: &str) -> String {
    format!("name certificate, key and ca in [engine.{engine}.tls] of agent.toml there, and restart the agent")
}

/// The same with the lines that a person writes, at the end of a message.
pub fn remedy_in_full(engine: &str) -> String {
    format!(
        "write this into agent.toml there, with files of your own, and restart the agent; where it stands already, `regent-agent check` \
         says what is wrong with it\n\
         [engine.{engine}.tls]\n\
         certificate = \"/etc/regent/engine.crt\"\n\
         key = \"/etc/regent/engine.key\"\n\
         ca = \"/etc/regent/engine-ca.crt\""
    )
}
