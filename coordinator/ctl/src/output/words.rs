//! Enums of the wire as words for people. Foreign numbers become "unknown(N)": a newer coordinator must not break an
//! older command.

use regent_common::{lease::Profile, topology::Mode};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};

/// A name of the wire without its prefix, lower-case, with hyphens; "unknown" for the unspecified value.
pub fn plain(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => "unknown".to_owned(),
        word => word.to_ascii_lowercase().replace('_', "-"),
    }
}

fn word(name: Option<&str>, number: i32, prefix: &str) -> String {
    name.map_or_else(|| format!("unknown({number})"), |name| plain(name, prefix))
}

/// Such as "healthy".
pub fn health(number: i32) -> String {
    word(wire::Health::try_from(number).ok().map(|value| value.as_str_name()), number, "HEALTH_")
}

/// Whether a cluster is a pair: two sides that both take writes, without a primary.
pub fn is_pair(cluster: &wire::Cluster) -> bool {
    Mode::named(&cluster.mode) == Some(Mode::MultiMaster)
}

/// What the health of a cluster means, in a sentence.
pub fn health_sentence(cluster: &wire::Cluster) -> &'static str {
    match wire::Health::try_from(cluster.health) {
        Ok(wire::Health::Degraded) if is_pair(cluster) => "degraded: writes are taken, but not all is as it should be",
        Ok(wire::Health::Down) if is_pair(cluster) => "DOWN: neither side takes writes",
        Ok(wire::Health::Healthy) => "healthy: every member is as it should be",
        Ok(wire::Health::Degraded) => "degraded: the primary serves, but something else is amiss",
        Ok(wire::Health::Down) => "DOWN: no primary accepts writes",
        Ok(wire::Health::Changing) => "changing: an operation is making or removing it",
        Ok(wire::Health::Unspecified) | Err(_) => "not known",
    }
}

/// Such as "needs-rejoin".
pub fn member_state(number: i32) -> String {
    word(wire::MemberState::try_from(number).ok().map(|value| value.as_str_name()), number, "MEMBER_STATE_")
}

/// Such as "primary".
pub fn role(number: i32) -> String {
    word(types::Role::try_from(number).ok().map(|value| value.as_str_name()), number, "ROLE_")
}

/// Such as "running".
pub fn engine_state(number: i32) -> String {
    word(types::EngineState::try_from(number).ok().map(|value| value.as_str_name()), number, "ENGINE_STATE_")
}

/// Such as "succeeded".
pub fn operation_state(number: i32) -> String {
    word(wire::OperationState::try_from(number).ok().map(|value| value.as_str_name()), number, "OPERATION_STATE_")
}

/// Such as "running".
pub fn step_state(number: i32) -> String {
    word(wire::StepState::try_from(number).ok().map(|value| value.as_str_name()), number, "STEP_STATE_")
}

/// Such as "admin".
pub fn user_role(number: i32) -> String {
    word(wire::UserRole::try_from(number).ok().map(|value| value.as_str_name()), number, "USER_ROLE_")
}

/// Such as "yes"; "unknown" is never "no".
pub fn ternary(number: i32) -> String {
    word(types::Ternary::try_from(number).ok().map(|value| value.as_str_name()), number, "TERNARY_")
}

/// A profile with what it promises.
pub fn profile(name: &str) -> String {
    let within = match name.parse::<Profile>() {
        Ok(Profile::Fast) => "2 s",
        Ok(Profile::Standard) => "6 s",
        Ok(Profile::Relaxed) => "17 s",
        Err(_) => return or_dash(name),
    };
    format!("{name}: a lost node is replaced within {within}")
}

/// What a host can do of the fence, in a word or two.
pub fn fence(fence: &types::FenceStages) -> &'static str {
    match (fence.timed_gate, fence.destroys_sockets && fence.survives_flush) {
        (true, true) => "complete",
        (true, false) => "partial",
        (false, _) => "NO GATE",
    }
}

/// "db2", "db2 and db3", "db2, db3 and db4"; "nobody" for none.
pub fn all_of(names: &[String]) -> String {
    match names {
        [] => "nobody".to_owned(),
        [name] => name.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The last part of a resource name: "clusters/db" is "db".
pub fn short(resource: &str) -> &str {
    resource.rsplit('/').next().unwrap_or(resource)
}

/// The text, or "-" when there is none.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
