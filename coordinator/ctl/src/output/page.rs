//! Pages for people about one resource. The cluster's page is written for a tired operator: what is it, does it serve,
//! who is where, why is it not well, what can be done now.
//!
//! **Invariant:** what is not known is shown as "-" or "unknown", never as a healthy value.

use jiff::Timestamp;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};

use super::{
    operation::{current_step, progress, tidy},
    table::{self, layout, pairs},
    units::{self, bytes, span, when, wire_distance},
    words::{self, or_dash, short},
};

/// `cluster show`. `running` is the operation that the cluster names, when it could be read.
pub fn cluster(cluster: &wire::Cluster, running: Option<&wire::Operation>, now: Timestamp) -> String {
    let mut lines = head(cluster, running, now);
    lines.push(String::new());
    lines.push("If a node is lost".to_owned());
    lines.push(indented(&succession(cluster)));
    lines.push(String::new());
    lines.push("Members".to_owned());
    lines.push(indented(&members(cluster)));
    lines.push(String::new());
    lines.push("Machines".to_owned());
    lines.push(indented(&machines(cluster, now)));
    section(&mut lines, "Why not healthy", why_not_healthy(cluster, now));
    section(&mut lines, "Warnings", cluster.warnings.clone());
    // An older coordinator says no more than this.
    if cluster.situation.is_empty() {
        section(&mut lines, "Failover", sentence(&cluster.failover_note));
    }
    section(
        &mut lines,
        "Divergence: what returning copies had that the primary had not",
        cluster.divergence_reports.iter().map(|report| divergence(report, now)).collect(),
    );
    section(&mut lines, "Settings", cluster.settings.iter().map(|(key, value)| format!("{key} = {value}")).collect());
    section(&mut lines, "Available actions", actions(cluster));
    tidy(lines)
}

fn head(cluster: &wire::Cluster, running: Option<&wire::Operation>, now: Timestamp) -> Vec<String> {
    let mut lines =
        vec![format!("Cluster {}  {}", short(&cluster.name), words::health_sentence(cluster)), String::new()];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<12}{value}"));
    let engine = format!("{} {}", or_dash(&cluster.engine), or_dash(&cluster.version));
    fact("engine", if cluster.mode.is_empty() { engine } else { format!("{engine}, {}", cluster.mode) });
    if !cluster.situation.is_empty() {
        fact("now", cluster.situation.clone());
    }
    if words::is_pair(cluster) {
        fact("writes", sides(cluster));
    } else {
        fact("primary", primary(cluster));
        fact("epoch", format!("{} (raised at each change of primary)", cluster.epoch));
    }
    fact("created", created(cluster, now));
    fact("protected", if cluster.protected { "yes: deletion is refused" } else { "no" }.to_owned());
    if cluster.tls {
        fact("tls", "yes: the ports speak nothing else".to_owned());
    }
    // An older coordinator says nothing of it.
    if let Some(list) = &cluster.allow_list {
        fact("reached by", reached_by(list));
    }
    fact("labels", pairs(&cluster.labels));
    fact("operation", operation(cluster, running, now));
    fact("id", or_dash(&cluster.id));
    lines
}

/// Most ranges that are shown on the page of a cluster.
const RANGES: usize = 5;

/// Whom the allow-list lets in, in a line.
fn reached_by(list: &wire::AllowList) -> String {
    if list.range_count == 0 {
        return "every address: the allow-list is empty".to_owned();
    }
    let first = list.ranges.iter().take(RANGES).cloned().collect::<Vec<_>>().join(", ");
    let more = match list.ranges.len().saturating_sub(RANGES) {
        0 => String::new(),
        more => format!(" and {more} more (`regentctl cluster allow` lists them)"),
    };
    let remarks: String = list.remarks.iter().map(|remark| format!("; {remark}")).collect();
    format!("{first}{more}{remarks}")
}

/// `cluster allow list`: the ranges alone, one a line, so that they can be given to `set` again; then what is to be known of them.
pub fn allow_list(list: &wire::AllowList) -> String {
    let mut lines = list.ranges.clone();
    if list.range_count == 0 {
        lines.push("the list is empty: every address reaches the engines".to_owned());
    }
    section(&mut lines, "What this means", list.remarks.clone());
    section(&mut lines, "Not in force on", list.pending.clone());
    tidy(lines)
}

fn primary(cluster: &wire::Cluster) -> String {
    if cluster.primary.is_empty() {
        return "none: nothing accepts writes".to_owned();
    }
    let member = cluster.members.iter().find(|member| short(&member.name) == short(&cluster.primary));
    let place = member.map(|member| format!(" on {} at {}", short(&member.node), endpoint(member))).unwrap_or_default();
    format!("{}{place}", short(&cluster.primary))
}

/// Where a pair takes writes.
fn sides(cluster: &wire::Cluster) -> String {
    let serving =
        cluster.members.iter().filter(|member| cluster.serving.iter().any(|serving| serving == short(&member.name)));
    let places: Vec<_> = serving
        .map(|member| format!("{} on {} at {}", short(&member.name), short(&member.node), endpoint(member)))
        .collect();
    if places.is_empty() { "none: nothing accepts writes".to_owned() } else { words::all_of(&places) }
}

fn created(cluster: &wire::Cluster, now: Timestamp) -> String {
    let mut text = when(cluster.create_time.as_ref(), now);
    if !cluster.created_by.is_empty() {
        text.push_str(&format!(" by {}", cluster.created_by));
    }
    match (units::time(cluster.create_time.as_ref()), units::time(cluster.ready_time.as_ref())) {
        (Some(asked), Some(ready)) => text.push_str(&format!(", ready in {}", span(units::between(asked, ready)))),
        (Some(_), None) | (None, Some(_) | None) => text.push_str(", has not served yet"),
    }
    text
}

fn operation(cluster: &wire::Cluster, running: Option<&wire::Operation>, now: Timestamp) -> String {
    if cluster.operation.is_empty() {
        return "none".to_owned();
    }
    let id = short(&cluster.operation);
    let Some(running) = running else { return id.to_owned() };
    let step = current_step(running).unwrap_or_else(|| words::operation_state(running.state));
    format!("{} {id}: {step}, asked for {}", running.kind, wire_distance(running.create_time.as_ref(), now))
}

fn members(cluster: &wire::Cluster) -> String {
    let rows = cluster
        .members
        .iter()
        .map(|member| {
            let seen = member.observation.as_ref();
            vec![
                short(&member.name).to_owned(),
                words::role(member.role),
                words::member_state(member.state),
                seen.map_or_else(|| "unknown".to_owned(), |seen| words::engine_state(seen.engine_state)),
                or_dash(&member.position),
                lag(member),
                or_dash(&member.verdict),
                short(&member.node).to_owned(),
                endpoint(member),
            ]
        })
        .collect();
    layout(&["MEMBER", "ROLE", "STATE", "ENGINE", "POSITION", "LAG", "VERDICT", "NODE", "ENDPOINT"], &[5], rows)
}

fn lag(member: &wire::Member) -> String {
    match member.lag_bytes {
        Some(lag) => bytes(lag),
        // Sides of a pair count each for itself.
        None if matches!(member.role(), types::Role::Primary | types::Role::Active) => "-".to_owned(),
        None => "unknown".to_owned(),
    }
}

fn machines(cluster: &wire::Cluster, now: Timestamp) -> String {
    let rows = cluster
        .members
        .iter()
        .map(|member| {
            let host = member.host.as_ref();
            let data = member.observation.as_ref().map_or(0, |seen| seen.data_bytes);
            vec![
                short(&member.node).to_owned(),
                if member.connected { "connected" } else { "NOT CONNECTED" }.to_owned(),
                wire_distance(member.last_contact.as_ref(), now),
                or_dash(&member.public_address),
                or_dash(&member.private_address),
                host.map_or_else(|| "-".to_owned(), table::cpu),
                host.map_or_else(|| "-".to_owned(), table::memory),
                host.map_or_else(|| "-".to_owned(), table::disk),
                if data == 0 { "-".to_owned() } else { bytes(data) },
            ]
        })
        .collect();
    layout(
        &["NODE", "AGENT", "LAST CONTACT", "PUBLIC", "PRIVATE", "CPU", "MEMORY USED", "DISK USED", "DATA"],
        &[8],
        rows,
    )
}

fn endpoint(member: &wire::Member) -> String {
    member.endpoint.as_ref().map_or_else(
        || "-".to_owned(),
        |at| {
            if at.host.contains(':') {
                format!("[{}]:{}", at.host, at.port)
            } else {
                format!("{}:{}", at.host, at.port)
            }
        },
    )
}

fn why_not_healthy(cluster: &wire::Cluster, now: Timestamp) -> Vec<String> {
    let mut lines = cluster.reasons.clone();
    for member in &cluster.members {
        let name = short(&member.name);
        let observed = member.observation.as_ref().map(|seen| seen.reason.as_str()).unwrap_or_default();
        // The coordinator's own sentence already weighs what the agent says.
        let reason = if member.reason.is_empty() { observed } else { &member.reason };
        if !reason.is_empty() && !lines.iter().any(|line| line.contains(reason)) {
            lines.push(format!("{name}: {reason}"));
        }
        if !member.connected && reason.is_empty() {
            let last = wire_distance(member.last_contact.as_ref(), now);
            lines.push(format!("{name}: its agent is not connected, last heard {last}"));
        }
        if let Some(far) = member.progress.as_ref().map(progress).filter(|far| !far.is_empty()) {
            lines.push(format!("{name}: work goes on: {far}"));
        }
    }
    lines
}

fn divergence(report: &types::DivergenceReport, now: Timestamp) -> String {
    let amount = match report.unit.as_str() {
        "" | "bytes" => bytes(report.amount),
        unit => format!("{} {unit}", report.amount),
    };
    let mut text = format!(
        "{}: {amount}, {}, found {}",
        report.member,
        or_dash(&report.resolution),
        when(report.found_at.as_ref(), now)
    );
    let lost = report.lost.as_ref().map(|lost| lost.display.as_str()).unwrap_or_default();
    for part in [lost, &report.detail] {
        if !part.is_empty() {
            text.push_str("; ");
            text.push_str(part);
        }
    }
    text
}

fn actions(cluster: &wire::Cluster) -> Vec<String> {
    let of_members = cluster.members.iter().flat_map(|member| {
        member
            .available_actions
            .iter()
            .map(|action| action_line(&format!("{} {}", action.action, short(&member.name)), action))
    });
    cluster.available_actions.iter().map(|action| action_line(&action.action, action)).chain(of_members).collect()
}

fn action_line(what: &str, action: &wire::AvailableAction) -> String {
    if action.available {
        format!("{what:<24}yes")
    } else {
        format!("{what:<24}no: {}", if action.reason.is_empty() { "no reason was given" } else { &action.reason })
    }
}

/// What is done without a person: lease, electorate, and what may be lost.
fn succession(cluster: &wire::Cluster) -> String {
    if words::is_pair(cluster) {
        let paused = if cluster.paused { "; nobody is brought back while decisions are paused" } else { "" };
        let facts = [
            ("writes", "go on at the other side; clients have to be led there".to_owned()),
            ("return", format!("by itself, compared with the other side before it is let in{paused}")),
        ];
        return facts.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect();
    }
    let facts = [
        ("profile", words::profile(&cluster.profile)),
        ("lease", super::lease::lease(cluster)),
        ("electorate", super::lease::electorate(cluster)),
        ("failover", super::lease::failover(cluster)),
    ];
    facts.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

/// What the fence of a host can do, and what is missing.
fn fence(fence: &types::FenceStages) -> Vec<String> {
    let stage = |is: bool, what: &str| format!("{what:<40}{}", if is { "yes" } else { "NO" });
    let mut lines = vec![
        stage(fence.timed_gate, "the gate closes by itself"),
        stage(fence.destroys_sockets, "established sockets are destroyed"),
        stage(fence.survives_flush, "the gate survives a foreign flush"),
    ];
    if !fence.timed_gate {
        lines.push(
            "so: a frozen agent is not covered here, and a primary on this node is not failed over by itself when the node \
             is lost"
                .to_owned(),
        );
    }
    lines.extend(fence.problems.iter().map(|problem| format!("problem: {problem}")));
    lines
}

/// `node show`.
pub fn node(node: &wire::Node, now: Timestamp) -> String {
    let connected = match (node.revoked, node.connected) {
        (true, _) => "revoked: its certificates are refused",
        (false, true) => "connected",
        (false, false) => "NOT CONNECTED",
    };
    let mut lines = vec![format!("Node {}  {connected}", short(&node.name)), String::new()];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<14}{value}"));
    fact(
        "belongs to",
        if node.cluster.is_empty() {
            "no cluster: a spare".to_owned()
        } else {
            format!("cluster {} as {}", short(&node.cluster), short(&node.member))
        },
    );
    fact("agent", format!("{}, version {}", or_dash(&node.agent_address), or_dash(&node.agent_version)));
    fact("last contact", when(node.last_contact.as_ref(), now));
    fact("public", or_dash(&node.public_address));
    fact("private", or_dash(&node.private_address));
    fact("joined", when(node.join_time.as_ref(), now));
    fact("certificate", format!("ends {}", when(node.certificate_expire_time.as_ref(), now)));
    fact("labels", pairs(&node.labels));
    if let Some(host) = &node.host {
        fact("cpu", table::cpu(host));
        fact("memory", format!("{} used", table::memory(host)));
        fact("disk", format!("{} used", table::disk(host)));
        fact("system", format!("{}, kernel {}", or_dash(&host.distribution), or_dash(&host.kernel)));
    }
    section(
        &mut lines,
        "Engines",
        node.engines
            .iter()
            .map(|offer| match offer.problem.as_str() {
                "" => table::offer(offer),
                problem => format!("{}: {problem}", table::offer(offer)),
            })
            .collect(),
    );
    let stages = match &node.fence {
        Some(stages) => fence(stages),
        None if node.cluster.is_empty() => Vec::new(),
        None => vec!["not known: its agent has not been heard as a member yet".to_owned()],
    };
    section(&mut lines, "Fence: what keeps a primary on this node from writing past its lease", stages);
    section(&mut lines, "Why not healthy", sentence(&node.reason));
    section(&mut lines, "Warnings", node.warnings.clone());
    tidy(lines)
}

/// `cluster credentials`. The longest name decides the width, so that strings can be copied whole.
pub fn credentials(credentials: &wire::Credentials) -> String {
    let mut rows = vec![("user", credentials.user.as_str()), ("password", credentials.password.as_str())];
    if !credentials.database.is_empty() {
        rows.push(("database", &credentials.database));
    }
    rows.extend(credentials.connection_strings.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 2;
    tidy(rows.into_iter().map(|(name, value)| format!("{name:<width$}{value}")).collect())
}

fn section(lines: &mut Vec<String>, title: &str, items: Vec<String>) {
    if items.is_empty() {
        return;
    }
    lines.push(String::new());
    lines.push(title.to_owned());
    lines.extend(items.into_iter().map(|item| format!("  - {}", item.trim_end())));
}

fn sentence(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { vec![text.to_owned()] }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
