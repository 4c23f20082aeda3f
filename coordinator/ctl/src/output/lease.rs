//! Sentences for people about the lease of a primary, its electorate, and what a failover may lose.
//!
//! **Invariant:** a lease of which nothing was heard is "not known", never "none".

use std::time::Duration;

use regent_proto::{coordinator::v1 as wire, types::v1 as types};

use super::{
    units::{bytes, span},
    words,
};

/// Name of the detail under which an engine says how fast its log grows.
const LOG_RATE: &str = "log_bytes_per_second";

/// The primary's lease.
pub fn lease(cluster: &wire::Cluster) -> String {
    let Some(lease) = &cluster.lease else { return "not known".to_owned() };
    match lease.handed_over_millis {
        0 => held(cluster, lease),
        left => format!(
            "{}; one that was granted for a restart of its agent may stand for {} yet",
            held(cluster, lease),
            millis(left)
        ),
    }
}

fn held(cluster: &wire::Cluster, lease: &wire::PrimaryLease) -> String {
    let may_stand = match lease.may_stand_millis {
        0 => "one that this coordinator granted is over".to_owned(),
        left => format!("one that this coordinator granted may stand for {} yet", millis(left)),
    };
    if lease.reported_by.is_empty() {
        return format!("not known: {} has said nothing of epoch {}; {may_stand}", lease.member, lease.epoch);
    }
    if !lease.stands {
        return format!(
            "NONE by what was last heard, {} ago: nobody can write to it; {may_stand}",
            millis(lease.age_millis)
        );
    }
    let passed_on = if lease.reported_by == lease.member {
        String::new()
    } else {
        format!("; {} passed this on, {} ago", lease.reported_by, millis(lease.age_millis))
    };
    let left = match (lease.source(), lease.remaining_millis) {
        (types::LeaseSource::Alone, 0) => "without an end".to_owned(),
        (
            types::LeaseSource::Unspecified
            | types::LeaseSource::Coordinator
            | types::LeaseSource::Endorsement
            | types::LeaseSource::Alone,
            left,
        ) => format!("for {} if it is not renewed", millis(left)),
    };
    let source = match lease.source() {
        types::LeaseSource::Coordinator => "granted by the coordinator".to_owned(),
        types::LeaseSource::Endorsement => format!("endorsed by {}", electors(cluster)),
        types::LeaseSource::Alone => "alone: there is nobody who could be promoted".to_owned(),
        types::LeaseSource::Unspecified => "from whom is not known".to_owned(),
    };
    format!("{} holds it {left}, of epoch {}, {source}{passed_on}", lease.member, lease.epoch)
}

fn electors(cluster: &wire::Cluster) -> String {
    cluster.electorate.as_ref().map_or_else(|| "its electorate".to_owned(), |known| words::all_of(&known.members))
}

/// Who endorses the primary while no coordinator does, and may take its place.
pub fn electorate(cluster: &wire::Cluster) -> String {
    let Some(electorate) = &cluster.electorate else { return "not known".to_owned() };
    let acknowledged = if cluster.electorate_acknowledged {
        format!("version {}, acknowledged", electorate.version)
    } else {
        format!("version {}, NOT ACKNOWLEDGED by the primary yet: who is new in it does not count", electorate.version)
    };
    if electorate.members.is_empty() {
        return format!("nobody may take over, and without a coordinator the primary goes on alone ({acknowledged})");
    }
    let all = words::all_of(&electorate.members);
    let endorse = if electorate.members.len() == 1 { "has to endorse it" } else { "all have to endorse it" };
    format!("{all} may take over; while no coordinator is there, {endorse} ({acknowledged})")
}

/// Whether a failover needs a person, and what it may lose, also in seconds of the primary's present writing.
pub fn failover(cluster: &wire::Cluster) -> String {
    if cluster.paused {
        return "paused: nothing is decided by itself".to_owned();
    }
    if cluster.healing() == wire::HealingMode::RestorePrimary {
        return "the primary is restarted on its own data; another one only on a person's word".to_owned();
    }
    match cluster.automatic_failover {
        None => return "not known".to_owned(),
        Some(false) => return "switched off for this cluster: a person has to act".to_owned(),
        Some(true) => {}
    }
    let Some(limit) = cluster.max_lag_on_failover else { return "automatic".to_owned() };
    format!("automatic, to a member that is known to lack at most {}{}", bytes(limit), worth(cluster, limit))
}

/// What a number of bytes is worth in time of the primary's present writing.
fn worth(cluster: &wire::Cluster, limit: u64) -> String {
    let primary = cluster.members.iter().find(|member| words::short(&member.name) == cluster.primary);
    let seen = primary.and_then(|member| member.observation.as_ref());
    let rate = seen.and_then(|seen| seen.details.get(LOG_RATE)).and_then(|rate| rate.parse::<u64>().ok());
    match rate {
        None => String::new(),
        Some(0) => " (the primary writes nothing now)".to_owned(),
        Some(rate) => {
            let seconds = Duration::from_millis(limit.saturating_mul(1000) / rate);
            format!(" (what it writes in {} at its present {}/s)", span(seconds), bytes(rate))
        }
    }
}

fn millis(millis: u64) -> String {
    span(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(rate: Option<&str>) -> wire::Cluster {
        let details = rate.map(|rate| (LOG_RATE.to_owned(), rate.to_owned())).into_iter().collect();
        wire::Cluster {
            primary: "db1".into(),
            automatic_failover: Some(true),
            max_lag_on_failover: Some(16 << 20),
            members: vec![wire::Member {
                name: "clusters/db/members/db1".into(),
                observation: Some(types::MemberObservation { details, ..Default::default() }),
                ..Default::default()
            }],
            electorate: Some(types::Electorate { version: 2, members: vec!["db2".into(), "db3".into()] }),
            electorate_acknowledged: true,
            lease: Some(wire::PrimaryLease {
                member: "db1".into(),
                epoch: 3,
                stands: true,
                source: types::LeaseSource::Endorsement.into(),
                remaining_millis: 4200,
                reported_by: "db2".into(),
                age_millis: 300,
                may_stand_millis: 0,
                handed_over_millis: 0,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_limit_is_told_in_time_of_what_the_primary_writes() {
        let limit = "automatic, to a member that is known to lack at most 16.0 MiB";
        assert_eq!(failover(&cluster(None)), limit);
        assert_eq!(failover(&cluster(Some("0"))), format!("{limit} (the primary writes nothing now)"));
        let worth = format!("{limit} (what it writes in 32.0 s at its present 512.0 KiB/s)");
        assert_eq!(failover(&cluster(Some("524288"))), worth);
        let off = wire::Cluster { automatic_failover: Some(false), ..cluster(None) };
        assert!(failover(&off).contains("a person has to act"));
        assert_eq!(failover(&wire::Cluster::default()), "not known");
    }

    #[test]
    fn a_lease_says_from_whom_it_is_and_who_said_so() {
        let held = |change: fn(&mut wire::PrimaryLease)| {
            let mut cluster = cluster(None);
            change(cluster.lease.as_mut().unwrap());
            lease(&cluster)
        };
        assert_eq!(
            held(|_| ()),
            "db1 holds it for 4.2 s if it is not renewed, of epoch 3, endorsed by db2 and db3; db2 passed this on, 300 ms ago"
        );
        let own = held(|lease| {
            lease.set_source(types::LeaseSource::Coordinator);
            lease.reported_by = "db1".into();
        });
        assert_eq!(own, "db1 holds it for 4.2 s if it is not renewed, of epoch 3, granted by the coordinator");
        let alone = held(|lease| {
            lease.set_source(types::LeaseSource::Alone);
            (lease.remaining_millis, lease.reported_by) = (0, "db1".into());
        });
        assert!(alone.starts_with("db1 holds it without an end, of epoch 3, alone"), "{alone}");
        let none = held(|lease| lease.stands = false);
        assert!(none.starts_with("NONE by what was last heard, 300 ms ago"), "{none}");
        let unknown = held(|lease| (lease.reported_by, lease.may_stand_millis) = (String::new(), 900));
        assert!(unknown.starts_with("not known") && unknown.ends_with("may stand for 900 ms yet"), "{unknown}");
        let restarting = held(|lease| lease.handed_over_millis = 26_000);
        assert!(
            restarting.ends_with("; one that was granted for a restart of its agent may stand for 26.0 s yet"),
            "{restarting}"
        );
        assert_eq!(lease(&wire::Cluster::default()), "not known");
    }

    #[test]
    fn an_electorate_that_is_not_acknowledged_says_so() {
        assert_eq!(
            electorate(&cluster(None)),
            "db2 and db3 may take over; while no coordinator is there, all have to endorse it (version 2, acknowledged)"
        );
        let pending = electorate(&wire::Cluster { electorate_acknowledged: false, ..cluster(None) });
        assert!(pending.contains("NOT ACKNOWLEDGED"), "{pending}");
        let empty = wire::Cluster { electorate: Some(types::Electorate::default()), ..cluster(None) };
        assert!(electorate(&empty).starts_with("nobody may take over"));
    }
}
