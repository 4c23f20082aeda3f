//! Free TCP ports on loopback.
//!
//! Ports are taken below the range from which the kernel gives out ports of its own, so that an outgoing connection never
//! takes one between its being found and its being used; each process starts looking at another place, and a lock file in
//! the temporary folder keeps two tests from finding the same one. The agent's tests over real engines have this very file.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

/// Where to look; the kernel gives out ports from 32768 on, and engines of the quickstart use 15432-15439.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Locks of the ports that this process has been given; held until it ends.
static TAKEN: Mutex<Vec<(u16, File)>> = Mutex::new(Vec::new());

/// Finds `count` ports on which nothing listens, all different, and keeps other tests from finding them.
pub fn free(count: usize) -> io::Result<Vec<u16>> {
    let mut taken = TAKEN.lock().expect("nothing panics while it holds this lock");
    let length = u32::from(RANGE.end - RANGE.start);
    let start = std::process::id().wrapping_mul(97) % length;
    let mut found = Vec::new();
    for step in 0..length {
        let port = RANGE.start + u16::try_from((start + step) % length).expect("less than the range's length");
        if found.len() == count {
            break;
        }
        if taken.iter().any(|(known, _)| *known == port) || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
            continue;
        }
        if let Some(lock) = lock(port)? {
            taken.push((port, lock));
            found.push(port);
        }
    }
    if found.len() < count {
        return Err(io::Error::other(format!("no {count} free ports in {RANGE:?}")));
    }
    Ok(found)
}

fn lock(port: u16) -> io::Result<Option<File>> {
    let folder = std::env::temp_dir().join(format!("regent-test-ports-{}", nix::unistd::geteuid()));
    std::fs::create_dir_all(&folder)?;
    let file = OpenOptions::new().create(true).append(true).open(folder.join(port.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_given_out_once() {
        let (mut first, second) = (free(3).unwrap(), free(3).unwrap());
        for port in first.iter().chain(&second) {
            TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap();
        }
        first.retain(|port| second.contains(port));
        assert!(first.is_empty(), "given out twice: {first:?}");
    }
}
