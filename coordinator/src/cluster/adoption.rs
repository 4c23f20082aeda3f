//! Adopting what the ledgers say when this coordinator's store is older than what agents have seen: pure (rule T4).
//!
//! A cluster is frozen while that is so: nothing is granted and nothing fails over, endorsement carries on. It ends when all
//! members have reported, and who they are is what nodes say of themselves: who was released after the backup is none any more, and
//! who came after it is one. A lease that stands is adopted with its holder's epoch and electorate; else everybody is prepared
//! anew, as in a failover. Epochs and tokens then start far above everything that was reported.
//!
//! The same goes for a member that a person has made the primary while no coordinator answered (rule P9): its epoch is higher than
//! the stored one. Those that the person named as off are not waited for; they are brought back when they are heard again.
//!
//! A backup may be one of a cluster that was being made. Where nobody has begun to make data yet the making goes on.

use std::collections::{BTreeMap, BTreeSet};

use regent_common::{
    ids::{Epoch, MemberName, NodeName, OperationToken, Revision},
    lease::{Electorate, Forced},
    mutation::{self, Rule},
    topology::{EngineState, Observation, Role},
};

use crate::{
    detector::is_open,
    model::{
        Assignment,
        cluster::{ClusterRecord, MemberRecord, MemberState, Phase},
        reign::Reign,
    },
    nodes::NodeView,
    store::{Transaction, keys},
};

/// How far above the highest reported numbers the new ones begin: what an unheard message may carry is below.
pub const LEAP: u64 = 1000;
/// So many numbers of members are looked at for one that was given after the backup.
const NUMBERS: u32 = 1000;

/// Why a cluster is frozen; `None` when it is not.
///
/// What a node said of the store when its session opened counts until something above it is `adopted`: that this store has
/// passed the revision since, by commits of its own, makes it no newer.
pub fn frozen(record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>, adopted: Revision) -> Option<String> {
    if mutation::broken(Rule::T4Stale) {
        return None;
    }
    // One that is only being assigned its node now has not been there yet.
    let assigned = |member: &MemberName| record.members.get(member).is_some_and(|stored| stored.endpoint.is_some());
    let left = views.iter().find(|(member, view)| assigned(member) && has_left(view, record, adopted));
    if let Some((member, _)) = left {
        return Some(format!(
            "the node of {member} was released after this store's backup: an old backup was put back"
        ));
    }
    let ours = |view: &&NodeView| view.observation.as_ref().is_some_and(|seen| seen.cluster_id == record.id);
    for (member, view) in views.iter().filter(|(_, view)| ours(view)) {
        let seen = view.observation.as_ref().expect("filtered by it");
        if seen.epoch > record.epoch && seen.authority.forced.is_some() {
            return Some(format!(
                "a person has made {member} the primary of epoch {} on its node, and this store has epoch {}",
                seen.epoch, record.epoch
            ));
        }
        if seen.epoch > record.epoch {
            return Some(format!(
                "{member} has seen epoch {} and this store has {}: the store is older than the cluster",
                seen.epoch, record.epoch
            ));
        }
        if let Some(newer) = newer_electorate(record, member, seen) {
            return Some(format!(
                "{member} obeys version {newer} of its electorate, which this store never had: an old backup was put back"
            ));
        }
        if view.stale_store && view.revision > adopted {
            return Some(format!(
                "the node of {member} has seen revision {} of the store, which this one had not: an old backup was put back",
                view.revision
            ));
        }
    }
    None
}

/// A version of its electorate that the primary of the present epoch has, and that is above all that are stored. A version is
/// stored before it is sent (rules M1, T3), and what an answer to a heartbeat brings names no revision: this is all that tells.
fn newer_electorate(record: &ClusterRecord, member: &MemberName, seen: &Observation) -> Option<u64> {
    let reign = record.reign.as_ref().filter(|reign| reign.epoch == seen.epoch && reign.primary == *member)?;
    let version = seen.authority.electorate.as_ref()?.version;
    (version > reign.newest().version).then_some(version)
}

/// Who a person named as off when he forced a primary (rules P9, T4): it counts as long as nobody has seen a higher epoch.
fn excused(record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>) -> BTreeSet<MemberName> {
    let ours = |view: &NodeView| view.observation.clone().filter(|seen| seen.cluster_id == record.id);
    let newest = views.values().filter(|view| view.connected).filter_map(ours).max_by_key(|seen| seen.epoch);
    let forced = newest.filter(|seen| seen.epoch > record.epoch).and_then(|seen| seen.authority.forced);
    forced.map(|forced| forced.confirmed_off).unwrap_or_default()
}

/// The record with the members that there are by what nodes say of themselves, where the store is the older one: `views` are
/// those of its own members, `sighted` those of all nodes that name this cluster. Only a ledger that has seen a newer store counts:
/// another may be that of a node which was away while its member was removed. Nobody is left where the cluster was removed since.
pub fn recast(
    record: &ClusterRecord,
    views: &BTreeMap<MemberName, NodeView>,
    sighted: &BTreeMap<NodeName, NodeView>,
    adopted: Revision,
) -> ClusterRecord {
    let mut recast = record.clone();
    let left = |member: &MemberName| views.get(member).is_some_and(|view| has_left(view, record, adopted));
    recast.members.retain(|member, _| !left(member));
    let newer =
        |view: &&NodeView| view.connected && view.stale_store && view.revision > adopted && view.quarantine().is_none();
    for (node, view) in sighted.iter().filter(|(_, view)| newer(view)) {
        let Some(seen) = view.observation.as_ref().filter(|seen| seen.cluster_id == record.id) else { continue };
        if recast.members.contains_key(&seen.member) {
            continue;
        }
        recast.members.retain(|_, stored| stored.node != *node);
        recast.members.insert(seen.member.clone(), MemberRecord::new(node.clone()));
    }
    // No number is used twice, neither one that was given after the backup.
    let given = |number: &u32| recast.members.contains_key(&record.name.member(*number));
    let last = (record.next_number..=record.next_number + NUMBERS).rev().find(given);
    recast.next_number = last.map_or(record.next_number, |last| last + 1);
    recast
}

/// What makes the nodes' assignments those of the recast record, in the commit that adopts it.
pub fn assignments(record: &ClusterRecord, recast: &ClusterRecord, mut transaction: Transaction) -> Transaction {
    for stored in record.members.values() {
        if recast.member_on(&stored.node).is_none() {
            transaction = transaction.delete(keys::assignment(&stored.node));
        }
    }
    for (member, stored) in recast.members.iter().filter(|(member, _)| !record.members.contains_key(*member)) {
        let assignment = Assignment { cluster: record.name.clone(), member: member.clone() };
        transaction = transaction.put_json(keys::assignment(&stored.node), &assignment);
    }
    transaction
}

/// What all members of the `recast` record report, once they have; else who is missing. Who is off by a person's word is not
/// waited for.
pub fn reports<'a>(
    record: &ClusterRecord,
    recast: &ClusterRecord,
    views: &'a BTreeMap<MemberName, NodeView>,
) -> Result<BTreeMap<MemberName, &'a Observation>, Vec<MemberName>> {
    let (mut seen, mut missing) = (BTreeMap::new(), Vec::new());
    let excused = excused(record, views);
    for member in recast.members.keys() {
        let view = views.get(member).filter(|view| view.connected);
        match view.and_then(|view| view.observation.as_ref()).filter(|seen| seen.cluster_id == record.id) {
            // A holder that has not acknowledged its electorate with its ledger yet says in a moment whom it asks.
            Some(seen)
                if seen.authority.lease.as_ref().is_some_and(|lease| lease.stands)
                    && seen.authority.electorate.is_none() =>
            {
                missing.push(member.clone());
            }
            // Whether there is data already decides whether the making of a cluster goes on.
            Some(seen) if record.phase == Phase::Creating && seen.engine.state == EngineState::Starting => {
                missing.push(member.clone());
            }
            Some(observation) => drop(seen.insert(member.clone(), observation)),
            None if excused.contains(member) => {}
            None => missing.push(member.clone()),
        }
    }
    // Whom a ledger names and nobody has heard of may be the one that reigns: it came after the backup.
    let unknown: BTreeSet<_> = seen.values().flat_map(|seen| named(seen)).collect();
    let known = |member: &MemberName| record.members.contains_key(member) || recast.members.contains_key(member);
    missing.extend(unknown.into_iter().filter(|member| !known(member)));
    if missing.is_empty() { Ok(seen) } else { Err(missing) }
}

/// Whether a node was released from the cluster after the backup was made: its ledger has seen a newer store, is whole, and names no
/// or another cluster. What was removed has nothing to say any more (rule M2).
fn has_left(view: &NodeView, record: &ClusterRecord, adopted: Revision) -> bool {
    let elsewhere = view.observation.as_ref().is_none_or(|seen| seen.cluster_id != record.id);
    view.connected && view.stale_store && view.revision > adopted && view.quarantine().is_none() && elsewhere
}

/// The members that a report names: whom it follows, whom it has endorsed, whom it asks.
fn named(seen: &Observation) -> BTreeSet<MemberName> {
    let electorate = seen.authority.electorate.iter().flat_map(|electorate| electorate.members.iter().cloned());
    let heard = seen.authority.heard.iter().map(|heard| heard.member.clone());
    seen.engine.upstream.iter().cloned().chain(heard).chain(electorate).collect()
}

/// The members that a person has forced to be the primary since the store knew of an epoch, each with a sentence for the audit.
pub fn forced(record: &ClusterRecord, reports: &BTreeMap<MemberName, Observation>) -> Vec<(MemberName, String)> {
    let told = |(member, seen): (&MemberName, &Observation)| {
        let Forced { at, confirmed_off } = seen.authority.forced.as_ref().filter(|_| seen.epoch > record.epoch)?;
        let off = confirmed_off.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
        let off = if off.is_empty() { "no other member" } else { &off };
        let sentence = format!(
            "root of its node made {member} the primary of epoch {} at {at}, while no coordinator answered, and named as off: {off}",
            seen.epoch
        );
        Some((member.clone(), sentence))
    };
    reports.iter().filter_map(told).collect()
}

/// Whether the cluster is one that is being made and of which nobody has any data yet, nor ever had: then the operation that makes it
/// goes on, under a higher token.
pub fn is_unmade(record: &ClusterRecord, reports: &BTreeMap<MemberName, Observation>) -> bool {
    let untouched = |seen: &Observation| {
        seen.engine.state == EngineState::Absent
            && seen.authority.writable_epoch.is_none()
            && seen.epoch <= record.epoch
            && !seen.dirty
    };
    record.phase == Phase::Creating && record.operation.is_some() && reports.values().all(untouched)
}

/// Takes over what is reported.
pub fn adopt(record: &mut ClusterRecord, reports: &BTreeMap<MemberName, Observation>) -> String {
    let highest = |number: fn(&Observation) -> u64| reports.values().map(number).max().unwrap_or_default();
    let epoch = highest(|seen| seen.epoch.0).max(record.epoch.0);
    record.token = OperationToken(highest(|seen| seen.token.0).max(record.token.0) + LEAP);
    for (member, seen) in reports {
        if let (Some(stored), Some(endpoint)) = (record.members.get_mut(member), &seen.endpoint) {
            stored.endpoint = Some(endpoint.clone());
        }
    }
    if is_unmade(record, reports) {
        return "nobody has made any data of this cluster yet: making it goes on".to_owned();
    }
    record.operation = None;
    record.phase = Phase::Active;
    record.may_be_writable.clear();
    record.reigned.clear();
    record.base = None;
    record.candidate = None;
    let stands = |seen: &Observation| seen.authority.lease.as_ref().is_some_and(|lease| lease.stands);
    for member in record.members.values_mut() {
        member.state = MemberState::NeedsRejoin;
    }
    if record.is_pair() {
        return adopt_sides(record, reports, epoch);
    }
    // A lease below the highest epoch stands for a reign that is over: its holder has not heard so yet.
    let standing = reports.iter().find(|(_, seen)| stands(seen) && seen.epoch.0 == highest(|seen| seen.epoch.0));
    if let Some((holder, seen)) = standing {
        let electorate = seen.authority.electorate.clone().unwrap_or_default();
        // The newer store may have had a version that was sent and not acknowledged: what is stored next is above it.
        let next = Electorate { version: electorate.version + LEAP, members: electorate.members.clone() };
        let followers: Vec<_> = reports
            .iter()
            .filter(|(_, other)| other.engine.upstream.as_ref() == Some(holder))
            .map(|(member, _)| member.clone())
            .collect();
        for member in followers.iter().chain([holder]) {
            record.set_state(member, MemberState::Ready);
        }
        record.epoch = seen.epoch;
        record.established = true;
        record.primary = Some(holder.clone());
        record.reign = Some(Reign {
            epoch: seen.epoch,
            primary: holder.clone(),
            electorates: vec![electorate, next],
            gated: seen.authority.fence.timed_gate,
        });
        return format!("{holder} holds the lease of epoch {}: it is adopted as the primary", seen.epoch);
    }
    // Nobody holds a lease: all are prepared at an epoch of their own, and whoever reigned is a candidate like the others.
    record.epoch = Epoch(epoch + LEAP);
    record.established = false;
    record.primary = None;
    for (member, seen) in reports {
        if seen.authority.role == Some(Role::Primary) {
            record.may_be_writable.insert(member.clone());
            record.note_reign(member.clone(), seen.engine.position.clone());
        }
        record.set_state(member, MemberState::Ready);
    }
    let last = reports.iter().max_by_key(|(_, seen)| seen.authority.writable_epoch).map(|(member, _)| member.clone());
    record.reign = last.map(|primary| {
        let others = reports.keys().filter(|member| **member != primary).cloned().collect();
        // What is known of a reign here is hearsay: only a fence's answer proves that nobody writes.
        Reign::new(Epoch(epoch), primary, others, false)
    });
    format!("nobody holds a lease: all members are prepared above epoch {}", record.epoch)
}

/// Takes over how the sides of a pair stand: nobody holds a lease, and nobody has to be prepared. One that lets applications in goes
/// on; one that does not follow it, or lets nobody in beside it, is joined with it again.
fn adopt_sides(record: &mut ClusterRecord, reports: &BTreeMap<MemberName, Observation>, epoch: u64) -> String {
    record.epoch = Epoch(epoch + LEAP);
    (record.established, record.primary, record.reign) = (false, None, None);
    let open: BTreeSet<_> =
        reports.iter().filter(|(_, seen)| is_open(seen)).map(|(member, _)| member.clone()).collect();
    let follows = |member: &MemberName| reports.get(member).is_some_and(|seen| seen.engine.upstream.is_some());
    // One that follows nobody was left as it is, so that the other one could be brought back beside it.
    let survivor = match open.len() {
        0 => None,
        _ => open.iter().find(|member| !follows(member)).or_else(|| open.iter().find(|_| open.len() == 1)),
    };
    for member in record.members.keys().cloned().collect::<Vec<_>>() {
        let whole = survivor.is_none_or(|survivor| *survivor == member);
        record.set_state(&member, if whole { MemberState::Ready } else { MemberState::NeedsRejoin });
    }
    record.survivor = survivor.cloned();
    match survivor {
        Some(survivor) => format!("{survivor} takes writes alone: the other side is brought back beside it"),
        None => "the sides are as they were".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use regent_common::{ids::OperationId, lease::LeaseReport, topology::Endpoint};

    use super::*;
    use crate::planner::fixtures::{cluster, name, observation};

    fn view(seen: Observation) -> NodeView {
        NodeView { connected: true, observation: Some(seen), ..NodeView::default() }
    }

    fn primary_at(epoch: u64, stands: bool) -> Observation {
        let mut seen = observation(name(2));
        (seen.epoch, seen.token) = (Epoch(epoch), OperationToken(40));
        seen.authority.role = Some(Role::Primary);
        seen.authority.writable_epoch = Some(Epoch(epoch));
        seen.authority.electorate = Some(Electorate { version: 4, members: [name(1)].into() });
        let remaining = Default::default();
        seen.authority.lease = Some(LeaseReport { epoch: Epoch(epoch), stands, source: None, remaining });
        seen
    }

    #[test]
    fn a_higher_epoch_or_revision_freezes_and_nothing_else() {
        let record = cluster();
        let views = |seen| BTreeMap::from([(name(2), view(seen))]);
        assert_eq!(frozen(&record, &views(observation(name(2))), Revision(0)), None);
        assert!(frozen(&record, &views(primary_at(2, true)), Revision(0)).is_some());
        let mut stale = views(observation(name(2)));
        let stale_view = stale.get_mut(&name(2)).unwrap();
        (stale_view.stale_store, stale_view.revision) = (true, Revision(9));
        assert!(frozen(&record, &stale, Revision(5)).is_some());
        assert_eq!(frozen(&record, &stale, Revision(1009)), None, "something above it was adopted");
    }

    #[test]
    fn a_primary_that_obeys_a_version_which_is_not_stored_freezes() {
        let mut record = cluster();
        record.reign = Some(Reign::new(Epoch(1), name(2), [name(1)].into(), true));
        let views = |version| {
            let mut seen = primary_at(1, true);
            seen.authority.electorate = Some(Electorate { version, members: BTreeSet::new() });
            BTreeMap::from([(name(2), view(seen))])
        };
        assert_eq!(frozen(&record, &views(1), Revision(0)), None);
        let why = frozen(&record, &views(2), Revision(0)).unwrap();
        assert!(why.contains("db2 obeys version 2"), "{why}");
        record.reign.as_mut().unwrap().set_electorate(BTreeSet::new());
        assert_eq!(frozen(&record, &views(2), Revision(0)), None, "it is stored, and may be acknowledged");
    }

    #[test]
    fn a_standing_lease_is_adopted_with_its_epoch_and_electorate() {
        let mut record = cluster();
        let mut follower = observation(name(1));
        follower.engine.upstream = Some(name(2));
        adopt(&mut record, &[(name(1), follower), (name(2), primary_at(7, true))].into());
        assert_eq!(
            (record.epoch, record.primary.clone(), record.token),
            (Epoch(7), Some(name(2)), OperationToken(1040))
        );
        let reign = record.reign.as_ref().unwrap();
        assert_eq!((reign.newest().version, reign.promotable()), (1004, [name(1)].into()));
        assert!(record.members.values().all(|member| member.state == MemberState::Ready));
    }

    /// db2, made the primary of epoch 1001 by a person who named db1 as off.
    fn forced_primary(stands: bool) -> Observation {
        let mut seen = primary_at(1001, stands);
        seen.authority.electorate = Some(Electorate { version: 1, members: BTreeSet::new() });
        let at = jiff::Timestamp::UNIX_EPOCH;
        seen.authority.forced = Some(Forced { at, confirmed_off: [name(1)].into() });
        seen
    }

    #[test]
    fn a_forced_primary_is_adopted_without_those_that_were_named_as_off() {
        let mut record = cluster();
        let views = BTreeMap::from([(name(2), view(forced_primary(true)))]);
        let why = frozen(&record, &views, Revision(0)).unwrap();
        assert!(why.contains("a person has made db2 the primary of epoch 1001"), "{why}");
        let reports: BTreeMap<_, _> = reports(&record, &record, &views)
            .unwrap()
            .into_iter()
            .map(|(member, seen)| (member, seen.clone()))
            .collect();
        let told = forced(&record, &reports);
        assert_eq!(told.len(), 1);
        assert!(told[0].1.contains("named as off: db1"), "{}", told[0].1);
        adopt(&mut record, &reports);
        assert_eq!((record.epoch, record.primary.clone(), record.established), (Epoch(1001), Some(name(2)), true));
        assert!(record.promotable().is_empty(), "nobody could take its place yet");
        assert_eq!(record.members[&name(1)].state, MemberState::NeedsRejoin);
        assert_eq!(record.members[&name(2)].state, MemberState::Ready);
        assert_eq!(forced(&record, &reports), [], "it is written down once");
        assert_eq!(frozen(&record, &views, Revision(0)), None);
    }

    #[test]
    fn a_persons_word_is_not_enough_where_somebody_has_seen_a_higher_epoch() {
        let mut record = cluster();
        let third = record.members[&name(2)].clone();
        record.members.insert(name(3), third);
        let mut views = BTreeMap::from([(name(2), view(forced_primary(true)))]);
        assert_eq!(reports(&record, &record, &views), Err(vec![name(3)]), "nobody said that db3 is off");
        views.insert(name(3), view(primary_at(1002, false)));
        assert_eq!(reports(&record, &record, &views), Err(vec![name(1)]), "db1 is waited for like in every adoption");
    }

    #[test]
    fn a_forced_primary_without_a_lease_is_prepared_like_any_other() {
        let mut record = cluster();
        adopt(&mut record, &[(name(2), forced_primary(false))].into());
        assert_eq!((record.epoch, record.primary.clone()), (Epoch(2001), None));
        assert_eq!(record.may_be_writable, [name(2)].into());
        assert_eq!(record.members[&name(1)].state, MemberState::NeedsRejoin);
    }

    #[test]
    fn without_a_lease_everybody_is_prepared_above_every_epoch() {
        let mut record = cluster();
        adopt(&mut record, &[(name(1), observation(name(1))), (name(2), primary_at(7, false))].into());
        assert_eq!((record.epoch, record.primary.clone()), (Epoch(1007), None));
        assert_eq!(record.may_be_writable, [name(2)].into());
        assert_eq!(record.promotable(), [name(1)].into());
    }

    /// A cluster of which a backup was made while it was being made.
    fn unmade() -> ClusterRecord {
        let mut record = cluster();
        (record.phase, record.candidate, record.primary) = (Phase::Creating, record.primary.take(), None);
        record.operation = Some(OperationId::from_parts(1, 1));
        record
    }

    #[test]
    fn a_cluster_of_which_nobody_has_data_goes_on_being_made() {
        let mut record = unmade();
        let mut empty = observation(name(1));
        (empty.token, empty.engine.state) = (OperationToken(7), EngineState::Absent);
        adopt(&mut record, &[(name(1), empty.clone()), (name(2), empty.clone())].into());
        let expected = ClusterRecord { token: OperationToken(1007), ..unmade() };
        assert_eq!(record, expected);
        empty.engine.state = EngineState::Starting;
        let views = BTreeMap::from([(name(1), view(empty.clone())), (name(2), view(empty.clone()))]);
        assert_eq!(reports(&record, &record, &views).unwrap_err().len(), 2, "nobody has looked yet");
        empty.engine.state = EngineState::Absent;
        empty.authority.writable_epoch = Some(Epoch(1));
        adopt(&mut record, &[(name(1), empty.clone()), (name(2), empty)].into());
        assert_eq!((record.phase, record.operation), (Phase::Active, None), "its data is lost, and no new one is made");
    }

    #[test]
    fn a_cluster_that_was_made_since_the_backup_is_reached_where_its_agents_say() {
        let mut record = unmade();
        let endpoint = |port| Some(Endpoint { host: "h".to_owned(), port });
        let primary = Observation { endpoint: endpoint(1), ..primary_at(1, true) };
        let mut follower = Observation { endpoint: endpoint(2), ..observation(name(1)) };
        follower.engine.upstream = Some(name(2));
        adopt(&mut record, &[(name(1), follower), (name(2), primary)].into());
        assert_eq!((record.phase, &record.primary), (Phase::Active, &Some(name(2))));
        assert_eq!(
            (&record.members[&name(1)].endpoint, &record.members[&name(2)].endpoint),
            (&endpoint(2), &endpoint(1))
        );
    }

    #[test]
    fn the_sides_of_a_pair_go_on_as_they_are_and_nobody_reigns() {
        let side = |number: u32, upstream: Option<u32>, open: &str| {
            let mut seen = observation(name(number));
            (seen.epoch, seen.engine.role) = (Epoch(1), Some(Role::Active));
            seen.engine.upstream = upstream.map(name);
            seen.engine.set_open(open == "yes");
            (name(number), seen)
        };
        let adopted = |first, second| {
            let mut record = ClusterRecord { mode: "multi-master".to_owned(), primary: None, ..cluster() };
            adopt(&mut record, &[first, second].into());
            assert_eq!((&record.primary, &record.reign, record.epoch), (&None, &None, Epoch(1001)));
            let ready = |n: u32| record.members[&name(n)].state == MemberState::Ready;
            (ready(1), ready(2), record.survivor)
        };
        assert_eq!(adopted(side(1, Some(2), "yes"), side(2, Some(1), "yes")), (true, true, None));
        assert_eq!(adopted(side(1, None, "yes"), side(2, Some(1), "no")), (true, false, Some(name(1))));
        assert_eq!(adopted(side(1, Some(2), "yes"), side(2, None, "yes")), (false, true, Some(name(2))));
        assert_eq!(adopted(side(1, Some(2), "no"), side(2, Some(1), "no")), (true, true, None));
    }

    #[test]
    fn it_waits_for_whom_a_ledger_names_and_the_store_does_not_know() {
        let record = cluster();
        let report = |change: fn(&mut Observation)| {
            let mut seen = observation(name(1));
            change(&mut seen);
            BTreeMap::from([(name(1), view(seen)), (name(2), view(observation(name(2))))])
        };
        let follows = report(|seen| seen.engine.upstream = Some(name(4)));
        assert_eq!(reports(&record, &record, &follows), Err(vec![name(4)]), "db4 came after the backup, and may reign");
        let asks = report(|seen| {
            seen.authority.electorate = Some(Electorate { version: 2, members: [name(2), name(5)].into() });
        });
        assert_eq!(reports(&record, &record, &asks), Err(vec![name(5)]));
        assert!(reports(&record, &record, &report(|seen| seen.engine.upstream = Some(name(2)))).is_ok());
    }

    #[test]
    fn who_was_released_after_the_backup_is_not_waited_for() {
        let record = cluster();
        let left = |stale_store, quarantine: &str| {
            let quarantine = quarantine.to_owned();
            let revision = Revision(9);
            let spare = NodeView { connected: true, stale_store, revision, quarantine, ..NodeView::default() };
            let views = BTreeMap::from([(name(1), view(observation(name(1)))), (name(2), spare)]);
            let recast = recast(&record, &views, &BTreeMap::new(), Revision(0));
            reports(&record, &recast, &views).map(|seen| (seen.len(), recast.members.len()))
        };
        assert_eq!(left(true, ""), Ok((1, 1)));
        let everybody = NodeView { connected: true, stale_store: true, revision: Revision(9), ..NodeView::default() };
        let views = BTreeMap::from([1, 2].map(|n| (name(n), everybody.clone())));
        assert_eq!(frozen(&record, &views, Revision(0)), None, "members that are only being assigned their nodes");
        let mut assigned = record.clone();
        for stored in assigned.members.values_mut() {
            stored.endpoint = Some(Endpoint { host: "h".to_owned(), port: 1 });
        }
        assert!(frozen(&assigned, &views, Revision(0)).unwrap().contains("was released after this store's backup"));
        assert!(recast(&record, &views, &BTreeMap::new(), Revision(0)).members.is_empty(), "it was removed since");
        assert_eq!(
            frozen(&assigned, &views, Revision(9)),
            None,
            "members of after the adoption, which are not made yet"
        );
        assert_eq!(left(false, ""), Err(vec![name(2)]), "its ledger has not seen anything newer: it may be lost");
        assert_eq!(left(true, "no ledger"), Err(vec![name(2)]));
    }

    #[test]
    fn who_came_after_the_backup_is_taken_in_where_its_own_ledger_has_seen_a_newer_store() {
        let record = cluster();
        let node = |n: u32| format!("n{n}").parse::<NodeName>().unwrap();
        let newer = |n: u32| NodeView { stale_store: true, revision: Revision(9), ..view(observation(name(n))) };
        let follows = |n: u32| {
            let mut seen = observation(name(n));
            seen.engine.upstream = Some(name(4));
            NodeView { stale_store: true, revision: Revision(9), ..view(seen) }
        };
        let views = BTreeMap::from([(name(1), follows(1)), (name(2), newer(2))]);
        let of_before = BTreeMap::from([(node(4), view(observation(name(4))))]);
        let recast_by = |sighted: BTreeMap<_, _>| recast(&record, &views, &sighted, Revision(0));
        assert_eq!(recast_by(of_before).members, record.members, "one that was removed while it was away, say");
        let came = recast_by([(node(4), newer(4)), (node(9), newer(9))].into());
        assert_eq!(came.members.keys().cloned().collect::<Vec<_>>(), [1, 2, 4, 9].map(name));
        assert_eq!(came.next_number, 10, "no number is used twice");
        let mut all = views.clone();
        assert_eq!(reports(&record, &came, &all), Err(vec![name(4), name(9)]));
        all.extend([(name(4), newer(4)), (name(9), newer(9))]);
        assert_eq!(reports(&record, &came, &all).unwrap().len(), 4);
        // A node that was released and taken in again is another member than the store thinks.
        let own = record.members[&name(2)].node.clone();
        let again = recast_by([(own.clone(), newer(5))].into());
        assert_eq!(again.members.keys().cloned().collect::<Vec<_>>(), [name(1), name(5)]);
        assert_eq!(again.members[&name(5)].node, own);
    }

    #[test]
    fn nodes_are_assigned_to_whom_the_recast_record_names() {
        let (record, mut recast) = (cluster(), cluster());
        let (released, kept) = (record.members[&name(1)].node.clone(), record.members[&name(2)].node.clone());
        recast.members.remove(&name(1));
        recast.members.remove(&name(2));
        let came: NodeName = "n9".parse().unwrap();
        for (number, node) in [(5, &kept), (9, &came)] {
            recast.members.insert(name(number), MemberRecord::new(node.clone()));
        }
        let member = |number| Assignment { cluster: record.name.clone(), member: name(number) };
        let expected = Transaction::default()
            .delete(keys::assignment(&released))
            .put_json(keys::assignment(&kept), &member(5))
            .put_json(keys::assignment(&came), &member(9));
        assert_eq!(assignments(&record, &recast, Transaction::default()), expected);
        assert_eq!(assignments(&record, &record, Transaction::default()), Transaction::default());
    }

    #[test]
    fn it_waits_for_everybody() {
        let (record, mut views) = (cluster(), BTreeMap::from([(name(2), view(observation(name(2))))]));
        assert_eq!(reports(&record, &record, &views), Err(vec![name(1)]));
        views.insert(name(1), view(observation(name(1))));
        assert_eq!(reports(&record, &record, &views).unwrap().len(), 2);
    }
}
