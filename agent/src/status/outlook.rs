//! What would happen if the coordinator stayed away from now on, in one sentence. Pure; it decides nothing.

use std::collections::BTreeMap;

use regent_common::{
    ids::MemberName,
    lease::{Electorate, LeaseSource},
    topology::Role,
};

use super::LeaseStatus;
use crate::{answers::Answering, ledger::Membership};

/// What the sentence is made from.
pub(super) struct Outlook<'a> {
    /// The ledger's word.
    pub(super) membership: &'a Membership,
    /// Whether the machine was booted since the engine became writable.
    pub(super) rebooted: bool,
    /// The lease; `None` unless this member is the primary.
    pub(super) lease: Option<&'a LeaseStatus>,
    /// Whether a gate closes by itself.
    pub(super) gated: bool,
    /// What those answer who are being asked for endorsement.
    pub(super) answers: &'a BTreeMap<MemberName, Answering>,
    /// Who keeps this member from being promoted or pointed elsewhere.
    pub(super) endorses: Option<&'a MemberName>,
}

// === impl Outlook ===

impl Outlook<'_> {
    pub(super) fn sentence(&self) -> String {
        match self.membership.role {
            None => "nothing runs here yet".to_owned(),
            Some(Role::Replica) => self.of_replica(),
            Some(Role::Primary) => self.of_primary(),
            Some(Role::Active) => self.of_active(),
        }
    }

    fn of_active(&self) -> String {
        match &self.membership.upstream {
            Some(other) => {
                format!("goes on as an active side that follows {other}: both take writes, and need no lease")
            }
            None => "goes on as an active side that follows nobody, and needs no lease".to_owned(),
        }
    }

    fn of_replica(&self) -> String {
        let upstream = self.membership.upstream.as_ref().map_or("its upstream", MemberName::as_str);
        match self.endorses {
            Some(primary) => format!("goes on as a replica of {upstream}, and endorses {primary} while it is asked"),
            None => format!("goes on as a replica of {upstream}; nobody is promoted without a coordinator"),
        }
    }

    fn of_primary(&self) -> String {
        let membership = self.membership;
        let epoch = membership.epoch;
        let Some(lease) = self.lease else {
            return format!("accepts no writes before a coordinator is back: it does not reign in epoch {epoch}");
        };
        if !membership.established {
            return self.stops(lease, "no lease was ever granted in this epoch, so that nobody may endorse it");
        }
        let Some(electorate) = &membership.electorate else {
            return self.stops(lease, "its electorate is not known here, so that it cannot ask for endorsement");
        };
        if electorate.is_empty() { self.alone(lease) } else { self.endorsed(lease, electorate) }
    }

    fn alone(&self, lease: &LeaseStatus) -> String {
        let others: Vec<&MemberName> = self.others().collect();
        let confirmed = lease.source == Some(LeaseSource::Alone);
        if confirmed || !self.rebooted || others.is_empty() {
            return "goes on alone: nobody could be promoted in its place".to_owned();
        }
        let silent: Vec<&MemberName> =
            others.iter().filter(|member| self.answers.get(**member) == Some(&Answering::Silent)).copied().collect();
        if !silent.is_empty() {
            let verb = if silent.len() == 1 { "does" } else { "do" };
            return self.stops(
                lease,
                &format!("{} {verb} not answer, and after a reboot every other member has to", names(silent)),
            );
        }
        format!(
            "goes on alone once {} {} answered: the machine was booted meanwhile",
            names(others.iter().copied()),
            if others.len() == 1 { "has" } else { "have" }
        )
    }

    fn endorsed(&self, lease: &LeaseStatus, electorate: &Electorate) -> String {
        let those = |how| {
            let members = electorate.members.iter();
            members.filter(|member| self.answers.get(*member) == Some(&how)).collect::<Vec<_>>()
        };
        let (refusing, silent) = (those(Answering::Refuses), those(Answering::Silent));
        let verb = |members: &Vec<_>| if members.len() == 1 { "does" } else { "do" };
        if !refusing.is_empty() {
            let verb = verb(&refusing);
            return self.stops(lease, &format!("{} {verb} not endorse it any more", names(refusing)));
        }
        if !silent.is_empty() {
            let verb = verb(&silent);
            return self.stops(lease, &format!("{} {verb} not answer", names(silent)));
        }
        let verb = if electorate.members.len() == 1 { "answers" } else { "answer" };
        format!("goes on as long as {} {verb}", names(&electorate.members))
    }

    /// Writes stop, or have stopped.
    fn stops(&self, lease: &LeaseStatus, why: &str) -> String {
        let what = if self.gated { "its gate closes" } else { "its engine is stopped" };
        if !lease.stands {
            let state = if self.gated { "its gate is closed" } else { "it holds no lease" };
            return format!("stands still, {state}: {why}");
        }
        match lease.remaining_millis {
            Some(left) => format!("stops within {} s, when {what}: {why}", left.div_ceil(1000)),
            None => format!("stops, when {what}: {why}"),
        }
    }

    fn others(&self) -> impl Iterator<Item = &MemberName> {
        let own = &self.membership.member;
        self.membership.spec.members.iter().map(|peer| &peer.member).filter(move |member| *member != own)
    }
}

/// "db2", "db2 and db3", "db2, db3 and db4".
fn names<'a>(members: impl IntoIterator<Item = &'a MemberName>) -> String {
    let mut names: Vec<&str> = members.into_iter().map(MemberName::as_str).collect();
    let Some(last) = names.pop() else { return "nobody".to_owned() };
    if names.is_empty() { last.to_owned() } else { format!("{} and {last}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use regent_common::ids::Epoch;

    use super::*;
    use crate::status::tests::membership;

    const STANDS: LeaseStatus = LeaseStatus {
        epoch: Epoch(3),
        stands: true,
        source: Some(LeaseSource::Endorsement),
        remaining_millis: Some(4200),
        until: None,
    };

    fn name(text: &str) -> MemberName {
        text.parse().unwrap()
    }

    /// The sentence about db1, primary of epoch 3 with the electorate db2 and db3, after a change.
    fn said(
        lease: Option<&LeaseStatus>,
        answers: &[(&str, Answering)],
        change: impl FnOnce(&mut Membership, &mut Outlook<'_>),
    ) -> String {
        let before = membership();
        let mut changed = before.clone();
        let answers = answers.iter().map(|(member, how)| (name(member), *how)).collect();
        let mut outlook =
            Outlook { membership: &before, rebooted: false, lease, gated: true, answers: &answers, endorses: None };
        change(&mut changed, &mut outlook);
        Outlook { membership: &changed, ..outlook }.sentence()
    }

    #[test]
    fn a_primary_with_an_electorate_goes_on_as_long_as_all_of_it_answer() {
        assert_eq!(said(Some(&STANDS), &[], |_, _| ()), "goes on as long as db2 and db3 answer");
        let both = [("db2", Answering::Endorses), ("db3", Answering::Endorses)];
        assert_eq!(said(Some(&STANDS), &both, |_, _| ()), "goes on as long as db2 and db3 answer");
        let one = [("db2", Answering::Endorses), ("db3", Answering::Silent)];
        assert_eq!(said(Some(&STANDS), &one, |_, _| ()), "stops within 5 s, when its gate closes: db3 does not answer");
        let over = LeaseStatus { stands: false, source: None, remaining_millis: None, ..STANDS };
        assert_eq!(said(Some(&over), &one, |_, _| ()), "stands still, its gate is closed: db3 does not answer");
        let refused = [("db2", Answering::Refuses), ("db3", Answering::Silent)];
        let refused = said(Some(&STANDS), &refused, |_, outlook| outlook.gated = false);
        assert_eq!(refused, "stops within 5 s, when its engine is stopped: db2 does not endorse it any more");
    }

    #[test]
    fn a_primary_without_an_electorate_goes_on_alone_and_after_a_boot_only_when_the_others_have_answered() {
        let empty = |membership: &mut Membership| {
            membership.electorate.as_mut().unwrap().members.clear();
        };
        let alone = "goes on alone: nobody could be promoted in its place";
        assert_eq!(said(Some(&STANDS), &[], |membership, _| empty(membership)), alone);
        let rebooted = |answers: &[(&str, Answering)]| {
            said(Some(&STANDS), answers, |membership, outlook| {
                empty(membership);
                outlook.rebooted = true;
            })
        };
        assert_eq!(rebooted(&[]), "goes on alone once db2 and db3 have answered: the machine was booted meanwhile");
        assert!(
            rebooted(&[("db2", Answering::Silent)]).contains("db2 does not answer, and after a reboot every other")
        );
    }

    #[test]
    fn a_primary_that_nobody_may_endorse_stops() {
        let never = said(Some(&STANDS), &[], |membership, _| membership.established = false);
        assert!(never.starts_with("stops within 5 s") && never.contains("nobody may endorse it"), "{never}");
        let unknown = said(Some(&STANDS), &[], |membership, _| membership.electorate = None);
        assert!(unknown.contains("cannot ask for endorsement"), "{unknown}");
        assert!(said(None, &[], |_, _| ()).starts_with("accepts no writes before a coordinator is back"));
    }

    #[test]
    fn a_replica_goes_on_as_one() {
        let replica = |membership: &mut Membership| {
            (membership.role, membership.upstream) = (Some(Role::Replica), Some(name("db2")));
        };
        let said = said(None, &[], |membership, _| replica(membership));
        assert_eq!(said, "goes on as a replica of db2; nobody is promoted without a coordinator");
    }

    #[test]
    fn an_active_side_needs_nobody() {
        let active = |upstream: Option<&str>| {
            said(None, &[], |membership, _| {
                (membership.role, membership.upstream) = (Some(Role::Active), upstream.map(name));
            })
        };
        assert_eq!(
            active(Some("db2")),
            "goes on as an active side that follows db2: both take writes, and need no lease"
        );
        assert_eq!(active(None), "goes on as an active side that follows nobody, and needs no lease");
    }
}
