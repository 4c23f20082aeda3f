//! What an adoption does, in sentences for people.

use std::collections::BTreeSet;

use regent_common::ids::MemberName;
use regent_proto::agent::v1::SettingChange;

use super::{Found, streams};

/// What a person has to know of it also afterwards; the primary comes first in `members`.
pub(super) fn remarks(members: &[(MemberName, &Found<'_>)]) -> Vec<String> {
    let mut remarks = Vec::new();
    let waits = |change: &&SettingChange| change.needs_restart;
    for (member, found) in members {
        remarks.extend(changes(found).filter(waits).map(|change| sentence(member, change)));
    }
    remarks.push(match remarks.is_empty() {
        true => "no setting needs a restart of an engine".to_owned(),
        false => "what needs a restart stays as it is until its engine is restarted".to_owned(),
    });
    let Some(((first, primary), replicas)) = members.split_first() else { return remarks };
    for (member, replica) in replicas {
        remarks.extend(differences(member, replica, primary));
        if replica.said.access_rules.trim() != primary.said.access_rules.trim() {
            remarks.push(format!(
                "{member} lets in others than {first}: the whole cluster gets the access rules of {first}"
            ));
        }
    }
    for (member, found) in members {
        remarks.extend(found.said.losses.iter().map(|loss| format!("{member} has what a cluster would not: {loss}")));
    }
    let followers: Vec<_> = replicas.iter().map(|(_, replica)| *replica).collect();
    for (member, found) in members {
        let own = if member == first { followers.as_slice() } else { &[] };
        let strangers = streams::strangers(found, own);
        if !strangers.is_empty() {
            let strangers = strangers.join(", ");
            remarks.push(format!(
                "on none of the named nodes, as far as it can be told, runs what streams from {member}: {strangers}; it goes on, is no \
                 member, and follows no other primary by itself"
            ));
        }
    }
    remarks
}

/// What it would do, with the remarks.
pub(super) fn whole(members: &[(MemberName, &Found<'_>)], remarks: &[String], accepted: bool) -> Vec<String> {
    let mut report = Vec::new();
    for (place, (member, found)) in members.iter().enumerate() {
        let role = if place == 0 { "the primary" } else { "a replica" };
        let (said, port) = (found.said, found.port);
        report.push(format!(
            "{member} on node {}: {role}, {} {} in {} at port {port}, which is not stopped",
            found.node, said.engine, said.version, said.data_directory
        ));
    }
    for (member, found) in members {
        let at_once = changes(found).filter(|change| !change.needs_restart);
        report.extend(at_once.map(|change| sentence(member, change)));
    }
    report.extend(remarks.iter().cloned());
    if !accepted && members.iter().any(|(_, found)| !found.said.losses.is_empty()) {
        report.push("going on wants consent to what is lost: --accept-losses".to_owned());
    }
    report
}

fn changes<'a>(found: &Found<'a>) -> impl Iterator<Item = &'a SettingChange> {
    found.said.changes.iter().filter(|change| change.now != change.then)
}

fn sentence(member: &MemberName, change: &SettingChange) -> String {
    let shown = |value: &str| if value.is_empty() { "(nothing)".to_owned() } else { value.to_owned() };
    let when = if change.needs_restart { ", after a restart" } else { "" };
    format!("{member}: {}: {} -> {}{when}", change.name, shown(&change.now), shown(&change.then))
}

/// Settings that a replica has in another way than its primary.
fn differences(member: &MemberName, replica: &Found<'_>, primary: &Found<'_>) -> Vec<String> {
    let (own, wanted) = (&replica.said.settings, &primary.said.settings);
    let names: BTreeSet<_> = own.keys().chain(wanted.keys()).collect();
    let differ = names.into_iter().filter(|name| own.get(*name) != wanted.get(*name));
    let shown = |value: Option<&String>| value.map_or("the engine's default", String::as_str).to_owned();
    let told = |name: &String| {
        let (has, gets) = (shown(own.get(name)), shown(wanted.get(name)));
        format!("{member} has {name} = {has}, and gets what the primary has: {gets}")
    };
    differ.map(told).collect()
}
