//! Making faults, and undoing them.

use std::{fs, time::Duration};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;

use regent_proto::coordinator::v1 as wire;

use super::{CLUSTER, Cast, Fault, Part, Rig};
use crate::{api, cluster::COORDINATOR, process, profile::Profile, wait};

/// How long a bounced daemon is away. Within a second, starting included.
const AWAY: Duration = Duration::from_millis(300);
/// How long a member of a healthy cluster may take until it may be promoted.
const PROMOTABLE: Duration = Duration::from_secs(30);

/// What has to be done to heal.
#[derive(Debug, PartialEq, Eq)]
enum Undo {
    Thaw(String),
    Continue(Vec<u32>),
    MendNetwork,
    PowerOn(String),
    Start(String),
}

/// Faults that have been made.
#[derive(Debug, Default)]
#[must_use = "a fault that is not healed stays"]
pub struct Injected {
    undo: Vec<Undo>,
}

/// A process and everything that descends from it.
fn family(first: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in brackets may contain anything.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<(u32, u32)> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut family = vec![first];
    let mut next = 0;
    while let Some(&pid) = family.get(next) {
        family.extend(all.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        next += 1;
    }
    family
}

/// Name of the daemon that a part is.
fn daemon(cast: &Cast, part: Part) -> Result<&str> {
    match part {
        Part::Agent(who) => Ok(cast.machine(who)),
        Part::Coordinator => Ok(COORDINATOR),
        Part::Engine(_) => bail!("an engine is no daemon of Regent"),
    }
}

// === impl Injected ===

impl Injected {
    /// Makes all faults, as nearly at once as can be: what kills comes first, so that a cut cannot hold it up.
    pub async fn make(fleet: &mut impl Rig, cast: &Cast, faults: &[Fault], profile: Profile) -> Result<Self> {
        let mut injected = Self::default();
        let mut cuts: Vec<(&str, &str)> = Vec::new();
        for fault in faults {
            match fault {
                Fault::Cut { from, to } => {
                    cuts.extend(from.iter().flat_map(|f| to.iter().map(|t| (cast.machine(*f), cast.machine(*t)))));
                }
                Fault::PowerOff(who) => {
                    let machine = cast.machine(*who).to_owned();
                    fleet.power_off(&machine)?;
                    injected.undo.push(Undo::PowerOn(machine));
                }
                Fault::Kill(part) => injected.kill(fleet, cast, *part)?,
                Fault::Stop(part) => injected.stop(fleet, cast, *part)?,
                Fault::Bounce(part) => match part {
                    // Its agent brings it back.
                    Part::Engine(_) => injected.kill(fleet, cast, *part)?,
                    Part::Agent(_) | Part::Coordinator => fleet.bounce_daemon(daemon(cast, *part)?, AWAY).await?,
                },
                Fault::Promote(who) => {
                    let (name, member) = (format!("clusters/{CLUSTER}"), cast.actor(*who)?.member.clone());
                    // Just after something else it may not be in the electorate yet; a person would look as well.
                    wait::until("that it may be promoted", PROMOTABLE, || async {
                        let cluster = fleet.api().cluster(CLUSTER).await?;
                        let actions = &api::member(&cluster, &member)?.available_actions;
                        let promote = actions.iter().find(|action| action.action == "promote");
                        ensure!(promote.is_some_and(|promote| promote.available), "{promote:?}");
                        Ok(())
                    })
                    .await?;
                    let request_id = api::request_id();
                    let request = wire::PromoteMemberRequest { name, member, request_id, ..Default::default() };
                    fleet.api().clusters().promote_member(request).await?;
                }
                Fault::Restart(who) => {
                    let node = cast.machine(*who);
                    fleet.stop_daemon(node).await?;
                    tokio::time::sleep(AWAY + profile.ttl()).await;
                    fleet.start_daemon(node)?;
                }
                Fault::FreezeDisk(who) => {
                    let machine = cast.machine(*who).to_owned();
                    injected.undo.push(Undo::Thaw(machine.clone()));
                    fleet.network()?.with_disk(&machine, crate::network::Disk::freeze)?;
                }
            }
        }
        if !cuts.is_empty() {
            injected.undo.push(Undo::MendNetwork);
            fleet.network()?.cut(&cuts)?;
        }
        Ok(injected)
    }

    fn kill(&mut self, fleet: &mut impl Rig, cast: &Cast, part: Part) -> Result<()> {
        match part {
            // Its agent brings it back.
            Part::Engine(who) => process::signal(cast.actor(who)?.engine, Signal::SIGKILL)?,
            Part::Agent(_) | Part::Coordinator => {
                let name = daemon(cast, part)?.to_owned();
                fleet.kill_daemon(&name)?;
                self.undo.push(Undo::Start(name));
            }
        }
        Ok(())
    }

    fn stop(&mut self, fleet: &impl Rig, cast: &Cast, part: Part) -> Result<()> {
        let pids = match part {
            // An engine's processes are each in a group of their own.
            Part::Engine(who) => family(cast.actor(who)?.engine),
            Part::Agent(_) | Part::Coordinator => vec![fleet.daemon_pid(daemon(cast, part)?)?],
        };
        process::signal(pids[0], Signal::SIGSTOP)?;
        for pid in &pids[1..] {
            // A backend may just have ended; the first process does not.
            drop(process::signal(*pid, Signal::SIGSTOP));
        }
        self.undo.push(Undo::Continue(pids));
        Ok(())
    }

    /// Heals all.
    pub fn heal(self, fleet: &mut impl Rig) -> Result<()> {
        for undo in self.undo {
            match undo {
                Undo::Thaw(machine) => fleet.network()?.with_disk(&machine, crate::network::Disk::thaw)?,
                Undo::Continue(pids) => {
                    for pid in pids.into_iter().filter(|pid| process::lives(*pid)) {
                        // It may have been killed meanwhile, which is what a fence does.
                        drop(process::signal(pid, Signal::SIGCONT));
                    }
                }
                Undo::MendNetwork => fleet.network()?.heal()?,
                Undo::PowerOn(machine) => fleet.power_on(&machine)?,
                Undo::Start(name) => fleet.start_daemon(&name)?,
            }
        }
        Ok(())
    }
}

// === impl Fault ===

impl Fault {
    /// Whether it can be made only where machines are.
    pub fn needs_a_network(self) -> bool {
        match self {
            Self::Cut { .. } | Self::PowerOff(_) | Self::FreezeDisk(_) => true,
            Self::Kill(_) | Self::Stop(_) | Self::Bounce(_) | Self::Promote(_) | Self::Restart(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{
        super::{Actor, Who},
        *,
    };

    #[test]
    fn a_family_has_grandchildren() {
        let mut parent =
            Command::new("sh").args(["-c", "sh -c 'echo; sleep 60; :'; :"]).stdout(Stdio::piped()).spawn().unwrap();
        // The grandchild's word says that all are there, but for the sleep.
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.stdout.take().unwrap()), &mut line).unwrap();
        let found = family(parent.id());
        assert!(found.len() >= 2 && found[0] == parent.id(), "{found:?}");
        for pid in family(parent.id()) {
            process::signal(pid, Signal::SIGKILL).unwrap();
        }
        parent.wait().unwrap();
    }

    #[test]
    fn only_members_have_engines() {
        let actor = |node: &str| Actor {
            node: node.to_owned(),
            member: format!("db-{node}"),
            endpoint: String::new(),
            engine: 0,
        };
        let cast = Cast { epoch: 1, primary: actor("a"), first: actor("b"), second: actor("c") };
        assert_eq!(cast.actor(Who::SecondReplica).unwrap().node, "c");
        assert!(cast.actor(Who::Clients).is_err());
    }
}
