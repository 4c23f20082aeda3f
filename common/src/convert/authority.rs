//! What is said of authority: leases, electorates, fences.

use std::time::Duration;

use regent_proto::{agent::v1 as agent, types::v1 as wire};

use super::{ConvertError, missing, role_from_wire, role_to_wire, time_or_epoch, to_wire_time};
use crate::{
    ids::{Epoch, NameError},
    lease::{Authority, Electorate, FenceStages, Forced, Grant, HeardLease, LeaseReport, LeaseSource},
    topology::HeardPosition,
};

// === impl Authority and what it is made of ===

/// A duration to the wire, in whole milliseconds.
pub fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&Electorate> for wire::Electorate {
    fn from(electorate: &Electorate) -> Self {
        Self { version: electorate.version, members: electorate.members.iter().map(ToString::to_string).collect() }
    }
}

impl TryFrom<wire::Electorate> for Electorate {
    type Error = ConvertError;
    fn try_from(message: wire::Electorate) -> Result<Self, ConvertError> {
        let members = message.members.iter().map(|member| member.parse()).collect::<Result<_, NameError>>()?;
        Ok(Self { version: message.version, members })
    }
}

impl From<&LeaseReport> for wire::LeaseReport {
    fn from(lease: &LeaseReport) -> Self {
        let source = match lease.source {
            None => wire::LeaseSource::Unspecified,
            Some(LeaseSource::Coordinator) => wire::LeaseSource::Coordinator,
            Some(LeaseSource::Endorsement) => wire::LeaseSource::Endorsement,
            Some(LeaseSource::Alone) => wire::LeaseSource::Alone,
        };
        Self {
            epoch: lease.epoch.0,
            stands: lease.stands,
            source: source.into(),
            remaining_millis: to_millis(lease.remaining),
        }
    }
}

impl From<wire::LeaseReport> for LeaseReport {
    fn from(message: wire::LeaseReport) -> Self {
        let source = match message.source() {
            wire::LeaseSource::Unspecified => None,
            wire::LeaseSource::Coordinator => Some(LeaseSource::Coordinator),
            wire::LeaseSource::Endorsement => Some(LeaseSource::Endorsement),
            wire::LeaseSource::Alone => Some(LeaseSource::Alone),
        };
        Self {
            epoch: Epoch(message.epoch),
            stands: message.stands,
            source,
            remaining: Duration::from_millis(message.remaining_millis),
        }
    }
}

impl From<&HeardLease> for wire::HeardLease {
    fn from(heard: &HeardLease) -> Self {
        Self {
            member: heard.member.to_string(),
            lease: Some((&heard.lease).into()),
            position: heard.position.as_ref().map(Into::into),
            age_millis: to_millis(heard.age),
        }
    }
}

impl TryFrom<wire::HeardLease> for HeardLease {
    type Error = ConvertError;
    fn try_from(message: wire::HeardLease) -> Result<Self, ConvertError> {
        Ok(Self {
            member: message.member.parse()?,
            lease: message.lease.ok_or_else(|| missing("lease"))?.into(),
            position: message.position.map(Into::into),
            age: Duration::from_millis(message.age_millis),
        })
    }
}

impl From<&HeardPosition> for wire::HeardPosition {
    fn from(heard: &HeardPosition) -> Self {
        Self { member: heard.member.to_string(), position: Some((&heard.position).into()) }
    }
}

impl TryFrom<wire::HeardPosition> for HeardPosition {
    type Error = ConvertError;
    fn try_from(message: wire::HeardPosition) -> Result<Self, ConvertError> {
        Ok(Self {
            member: message.member.parse()?,
            position: message.position.ok_or_else(|| missing("position"))?.into(),
        })
    }
}

impl From<&FenceStages> for wire::FenceStages {
    fn from(fence: &FenceStages) -> Self {
        Self {
            timed_gate: fence.timed_gate,
            destroys_sockets: fence.destroys_sockets,
            survives_flush: fence.survives_flush,
            problems: fence.problems.clone(),
        }
    }
}

impl From<wire::FenceStages> for FenceStages {
    fn from(message: wire::FenceStages) -> Self {
        Self {
            timed_gate: message.timed_gate,
            destroys_sockets: message.destroys_sockets,
            survives_flush: message.survives_flush,
            problems: message.problems,
        }
    }
}

impl From<&Forced> for wire::Forced {
    fn from(forced: &Forced) -> Self {
        Self {
            at: Some(to_wire_time(forced.at)),
            confirmed_off: forced.confirmed_off.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<wire::Forced> for Forced {
    type Error = ConvertError;
    fn try_from(message: wire::Forced) -> Result<Self, ConvertError> {
        let confirmed_off = message.confirmed_off.iter().map(|member| member.parse()).collect::<Result<_, _>>()?;
        Ok(Self { at: time_or_epoch(message.at.as_ref()), confirmed_off })
    }
}

impl From<&Authority> for wire::Authority {
    fn from(authority: &Authority) -> Self {
        Self {
            role: role_to_wire(authority.role),
            established: authority.established,
            writable_epoch: authority.writable_epoch.map(|epoch| epoch.0),
            electorate: authority.electorate.as_ref().map(Into::into),
            lease: authority.lease.as_ref().map(Into::into),
            heard: authority.heard.as_ref().map(Into::into),
            prepare_in_millis: to_millis(authority.prepare_in),
            fence: Some((&authority.fence).into()),
            forced: authority.forced.as_ref().map(Into::into),
            hand_over: authority.hand_over,
            replaced: authority.replaced,
        }
    }
}

impl TryFrom<wire::Authority> for Authority {
    type Error = ConvertError;
    fn try_from(message: wire::Authority) -> Result<Self, ConvertError> {
        Ok(Self {
            role: role_from_wire(message.role)?,
            established: message.established,
            writable_epoch: message.writable_epoch.map(Epoch),
            electorate: message.electorate.map(Electorate::try_from).transpose()?,
            lease: message.lease.map(Into::into),
            heard: message.heard.map(HeardLease::try_from).transpose()?,
            prepare_in: Duration::from_millis(message.prepare_in_millis),
            fence: message.fence.map(Into::into).unwrap_or_default(),
            forced: message.forced.map(Forced::try_from).transpose()?,
            hand_over: message.hand_over,
            replaced: message.replaced,
        })
    }
}

impl From<&Grant> for agent::Grant {
    /// Without cluster and member, which the sender adds.
    fn from(grant: &Grant) -> Self {
        Self {
            cluster_id: String::new(),
            member: String::new(),
            epoch: grant.epoch.0,
            ttl_millis: u32::try_from(grant.ttl.as_millis()).unwrap_or(u32::MAX),
            electorate: Some((&grant.electorate).into()),
            established: true,
            handed_over: grant.handed_over,
        }
    }
}

impl TryFrom<agent::Grant> for Grant {
    type Error = ConvertError;
    fn try_from(message: agent::Grant) -> Result<Self, ConvertError> {
        if message.ttl_millis == 0 {
            return Err(ConvertError::OutOfRange { field: "ttl_millis", value: 0 });
        }
        Ok(Self {
            epoch: Epoch(message.epoch),
            ttl: Duration::from_millis(message.ttl_millis.into()),
            electorate: message.electorate.ok_or_else(|| missing("electorate"))?.try_into()?,
            handed_over: message.handed_over,
        })
    }
}
