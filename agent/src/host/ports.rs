//! The TCP ports on which a process and what belongs to it listen, read from the kernel: never from a configuration, which
//! may say less than the engine does (a second protocol, an included file, an option on the command line).
//!
//! What belongs to a process: its descendants, and the members of the process group that it leads, whose parent may have
//! ended. Only sockets of the calling thread's network namespace are seen.
//!
//! The sockets come from the kernel in one short list; which of them are whose is found in `/proc/PID/fd`, which costs some
//! microseconds per descriptor. That ends as soon as every listening socket of the machine has been found, and begins with
//! the process itself, which is the one that listens in most engines. A caller that asks every heartbeat should do it where
//! a thread may block.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use procfs::{
    ProcError,
    process::{FDTarget, Process, all_processes},
};

use crate::nftables::sockets::{Listener, Sockets};

/// Where a process stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    parent: i32,
    group: i32,
}

/// The TCP ports, of IPv4 and IPv6, on which this process or one that belongs to it listens. Fails when there is no such
/// process, and when its descriptors may not be read: an answer is complete or none.
pub fn listening_ports(pid: u32) -> io::Result<BTreeSet<u16>> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
    let mut places = BTreeMap::new();
    for process in all_processes().map_err(into_io)?.flatten() {
        if let Ok(stat) = process.stat() {
            places.insert(stat.pid, Place { parent: stat.ppid, group: stat.pgrp });
        }
    }
    if !places.contains_key(&pid) {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no process {pid}")));
    }
    let mut unknown: BTreeMap<u64, u16> =
        Sockets::open()?.listeners()?.into_iter().map(|Listener { inode, port }| (inode, port)).collect();
    let mut ports = BTreeSet::new();
    for member in members(pid, &places) {
        if unknown.is_empty() {
            break;
        }
        for inode in socket_inodes(member)? {
            ports.extend(unknown.remove(&inode));
        }
    }
    Ok(ports)
}

/// The TCP ports on which processes listen that work in a folder, or below it: an engine whose driver is not known works in its
/// data. Processes that end meanwhile, or may not be looked at, count for nothing.
pub fn listening_below(folder: &Path) -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for process in all_processes().map_err(into_io)?.flatten() {
        let below = process.cwd().is_ok_and(|cwd| cwd.starts_with(folder));
        if let Some(pid) = below.then(|| u32::try_from(process.pid).ok()).flatten() {
            ports.extend(listening_ports(pid).unwrap_or_default());
        }
    }
    Ok(ports)
}

/// The process first, then all that belong to it.
fn members(pid: i32, places: &BTreeMap<i32, Place>) -> Vec<i32> {
    let mut members = vec![pid];
    let mut known = BTreeSet::from([pid]);
    let mut next = 0;
    for (member, place) in places {
        if place.group == pid && known.insert(*member) {
            members.push(*member);
        }
    }
    while let Some(&parent) = members.get(next) {
        next += 1;
        for (member, place) in places {
            if place.parent == parent && known.insert(*member) {
                members.push(*member);
            }
        }
    }
    members
}

/// The sockets that a process holds; none of one that has ended.
fn socket_inodes(pid: i32) -> io::Result<Vec<u64>> {
    let descriptors = match Process::new(pid).and_then(|process| process.fd()) {
        Ok(descriptors) => descriptors,
        Err(ProcError::NotFound(_)) => return Ok(Vec::new()),
        Err(error) => return Err(into_io(error)),
    };
    let mut inodes = Vec::new();
    for descriptor in descriptors {
        match descriptor {
            Ok(descriptor) => {
                if let FDTarget::Socket(inode) = descriptor.target {
                    inodes.push(inode);
                }
            }
            // It was closed meanwhile, or its process has ended.
            Err(ProcError::NotFound(_)) => {}
            Err(error) => return Err(into_io(error)),
        }
    }
    Ok(inodes)
}

fn into_io(error: ProcError) -> io::Error {
    match error {
        ProcError::PermissionDenied(_) => io::Error::new(io::ErrorKind::PermissionDenied, error.to_string()),
        ProcError::NotFound(_) => io::Error::new(io::ErrorKind::NotFound, error.to_string()),
        ProcError::Io(error, _) => error,
        ProcError::Incomplete(_) | ProcError::Other(_) | ProcError::InternalError(_) => {
            io::Error::other(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn own_listeners_are_found_and_nothing_else_is() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).unwrap());
        let ports = listening_ports(std::process::id()).unwrap();
        for listener in &listeners {
            assert!(ports.contains(&listener.local_addr().unwrap().port()));
        }
        let [closed, _] = listeners;
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        assert!(!listening_ports(std::process::id()).unwrap().contains(&port));
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert_eq!(listening_ports(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(listening_ports(i32::MAX as u32).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn descendants_and_the_group_belong_to_a_process() {
        let places = BTreeMap::from([
            (10, Place { parent: 1, group: 10 }),
            (11, Place { parent: 10, group: 11 }),
            (12, Place { parent: 11, group: 12 }),
            (13, Place { parent: 1, group: 10 }),
            (14, Place { parent: 13, group: 14 }),
            (20, Place { parent: 1, group: 20 }),
        ]);
        let mut found = members(10, &places);
        assert_eq!(found.first(), Some(&10));
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13, 14]);
    }
}
