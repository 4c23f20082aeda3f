//! Tables for people: aligned columns, no frames, one line per resource.
//!
//! **Invariant:** a table has its header even when it is empty, so that "nothing there" is visible.

use comfy_table::{Cell, CellAlignment, Table, presets};
use jiff::Timestamp;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};

use super::{
    units::{self, bytes_of, wire_distance},
    words::{self, or_dash, short},
};

/// Lays out rows below a header. Columns of numbers are given by index and aligned to the right.
pub fn layout(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.into_iter().map(|text| Cell::new(text.replace('\n', " "))));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    trimmed(&table.to_string())
}

/// Lines without spaces at their ends.
pub fn trimmed(text: &str) -> String {
    let mut result: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if result.is_empty() {
        result.push('\n');
    }
    result
}

/// `k=v` pairs.
pub fn pairs(map: &std::collections::BTreeMap<String, String>) -> String {
    or_dash(&map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// `cluster list`.
pub fn clusters(clusters: &[wire::Cluster], now: Timestamp) -> String {
    let rows = clusters
        .iter()
        .map(|cluster| {
            let ready = cluster.members.iter().filter(|member| member.state() == wire::MemberState::Ready).count();
            vec![
                short(&cluster.name).to_owned(),
                or_dash(format!("{} {}", cluster.engine, cluster.version).trim()),
                words::health(cluster.health),
                or_dash(&if words::is_pair(cluster) { cluster.serving.join(",") } else { cluster.primary.clone() }),
                format!("{ready}/{}", cluster.members.len()),
                cluster.epoch.to_string(),
                yes_no(cluster.protected),
                wire_distance(cluster.create_time.as_ref(), now),
                or_dash(short(&cluster.operation)),
                pairs(&cluster.labels),
            ]
        })
        .collect();
    layout(
        &["NAME", "ENGINE", "HEALTH", "PRIMARY", "READY", "EPOCH", "PROTECTED", "CREATED", "OPERATION", "LABELS"],
        &[4, 5],
        rows,
    )
}

/// `node list`.
pub fn nodes(nodes: &[wire::Node], now: Timestamp) -> String {
    let rows = nodes
        .iter()
        .map(|node| {
            let host = node.host.as_ref();
            let state = match (node.revoked, node.connected) {
                (true, _) => "revoked",
                (false, true) => "connected",
                (false, false) => "disconnected",
            };
            vec![
                short(&node.name).to_owned(),
                state.to_owned(),
                if node.cluster.is_empty() { "spare".to_owned() } else { short(&node.cluster).to_owned() },
                or_dash(short(&node.member)),
                or_dash(&node.agent_address),
                wire_distance(node.last_contact.as_ref(), now),
                host.map_or_else(|| "-".to_owned(), cpu),
                host.map_or_else(|| "-".to_owned(), memory),
                host.map_or_else(|| "-".to_owned(), disk),
                or_dash(&node.engines.iter().map(offer).collect::<Vec<_>>().join(", ")),
                node.fence.as_ref().map_or_else(|| "-".to_owned(), |fence| words::fence(fence).to_owned()),
                or_dash(&node.reason),
            ]
        })
        .collect();
    layout(
        &[
            "NAME",
            "STATE",
            "CLUSTER",
            "MEMBER",
            "AGENT",
            "LAST CONTACT",
            "CPU",
            "MEMORY USED",
            "DISK USED",
            "ENGINES",
            "FENCE",
            "REASON",
        ],
        &[],
        rows,
    )
}

/// Processors and their load, such as "3 % of 4".
pub fn cpu(host: &types::HostFacts) -> String {
    format!("{:.0} % of {}", host.cpu_percent, host.cpus)
}

/// Memory that programs use.
pub fn memory(host: &types::HostFacts) -> String {
    bytes_of(host.memory_bytes.saturating_sub(host.memory_available_bytes), host.memory_bytes)
}

/// Used space of the file system with the engine's data.
pub fn disk(host: &types::HostFacts) -> String {
    bytes_of(host.disk_bytes.saturating_sub(host.disk_free_bytes), host.disk_bytes)
}

/// An engine with its versions, and whether it can speak TLS.
pub fn offer(offer: &types::EngineOffer) -> String {
    if !offer.problem.is_empty() {
        return format!("{} (cannot be used)", offer.engine);
    }
    let tls = if offer.connection_with_tls.is_some() { " (TLS)" } else { "" };
    format!("{}{tls}", format!("{} {}", offer.engine, offer.versions.join("/")).trim_end())
}

/// `operation list`.
pub fn operations(operations: &[wire::Operation], now: Timestamp) -> String {
    let rows = operations
        .iter()
        .map(|operation| {
            vec![
                short(&operation.name).to_owned(),
                operation.kind.clone(),
                or_dash(short(&operation.cluster)),
                words::operation_state(operation.state),
                super::operation::current_step(operation).unwrap_or_else(|| "-".to_owned()),
                wire_distance(operation.create_time.as_ref(), now),
                super::operation::lasted(operation, now).map_or_else(|| "-".to_owned(), units::span),
                or_dash(&operation.created_by),
                or_dash(if operation.error.is_empty() { &operation.reason } else { &operation.error }),
            ]
        })
        .collect();
    layout(&["ID", "KIND", "CLUSTER", "STATE", "STEP", "ASKED FOR", "TOOK", "BY", "WHY"], &[], rows)
}

/// `user list`.
pub fn users(users: &[wire::User], now: Timestamp) -> String {
    let rows = users
        .iter()
        .map(|user| {
            vec![
                short(&user.name).to_owned(),
                words::user_role(user.role),
                if user.revoked { "revoked" } else { "active" }.to_owned(),
                wire_distance(user.create_time.as_ref(), now),
                or_dash(&user.created_by),
                wire_distance(user.certificate_expire_time.as_ref(), now),
            ]
        })
        .collect();
    layout(&["NAME", "ROLE", "STATE", "CREATED", "BY", "CERTIFICATE ENDS"], &[], rows)
}

/// `engine list`.
pub fn engines(entries: &[wire::CatalogEntry]) -> String {
    let rows = entries
        .iter()
        .map(|entry| {
            let offer = entry.offer.clone().unwrap_or_default();
            let nodes =
                |names: &[String]| or_dash(&names.iter().map(|node| short(node)).collect::<Vec<_>>().join(", "));
            vec![
                offer.engine.clone(),
                or_dash(&offer.versions.join(", ")),
                or_dash(&offer.modes.join(", ")),
                format!("{} to {}, default {}", offer.min_replicas, offer.max_replicas, offer.default_replicas),
                if offer.can_rewind { "rewind or clone" } else { "clone" }.to_owned(),
                nodes(&entry.nodes),
                nodes(&entry.nodes_with_tls),
                or_dash(&offer.problem),
            ]
        })
        .collect();
    layout(&["ENGINE", "VERSIONS", "MODES", "REPLICAS", "REJOIN BY", "NODES", "TLS ON", "PROBLEM"], &[], rows)
}

/// `audit`, as one table.
pub fn audit(records: &[wire::AuditRecord]) -> String {
    layout(&["TIME", "ACTOR", "ACTION", "RESOURCE", "OUTCOME", "DETAIL"], &[], records.iter().map(audit_row).collect())
}

/// A record of the audit on a line of its own, for `--follow`.
pub fn audit_line(record: &wire::AuditRecord) -> String {
    audit_row(record).join("  ")
}

fn audit_row(record: &wire::AuditRecord) -> Vec<String> {
    let actor = match record.source.as_str() {
        "" => record.actor.clone(),
        source => format!("{} from {source}", record.actor),
    };
    vec![
        units::precise(record.time.as_ref()),
        or_dash(&actor),
        record.action.clone(),
        or_dash(&record.resource),
        or_dash(&record.outcome),
        or_dash(&record.detail),
    ]
}

/// An event on a line.
pub fn event_line(event: &wire::Event) -> String {
    let mut line = format!("{}  {}", units::precise(event.time.as_ref()), event.kind);
    for part in [&event.resource, &event.message] {
        if !part.is_empty() {
            line.push_str("  ");
            line.push_str(&part.replace('\n', " "));
        }
    }
    if !event.facts.is_empty() {
        line.push_str(&format!("  [{}]", pairs(&event.facts)));
    }
    line
}
