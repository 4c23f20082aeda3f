//! Finds out whether a kernel lets a table belong to one process and outlive it, by trying it in a table that is thrown away.

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{
    message::{self, TABLE_OWNED, TABLE_PERSISTS},
    netlink::{Netlink, Refusal},
    table::{self, Kept},
};

/// Makes an owned table, tries to delete it as somebody else, ends its owner, and takes it over. Why a table of this kernel does not
/// survive a foreign flush and the end of its owner, where it does not.
pub(crate) fn survives_flush(trial: &str) -> Result<(), String> {
    let attempt = || -> Result<(), String> {
        let open = || Netlink::open(NETLINK_NETFILTER).map_err(|error| error.to_string());
        let (mut owner, mut other) = (open()?, open()?);
        let flags = TABLE_OWNED | TABLE_PERSISTS;
        owner.batch(&[message::add_table(trial, flags)]).map_err(|refusal| refused(&refusal))?;
        if other.batch(&[message::delete_table(trial)]).is_ok() {
            return Err("another process could delete an owned table".to_owned());
        }
        drop(owner);
        match table::keep_soon(&mut other, trial, true).map_err(|refusal| refused(&refusal))? {
            Kept::Owned => Ok(()),
            Kept::Shared => Err("an owned table could not be taken over from a process that ended".to_owned()),
            Kept::Absent => Err("an owned table did not stay when its owner ended".to_owned()),
        }
    };
    let outcome = attempt();
    if let Ok(mut netlink) = Netlink::open(NETLINK_NETFILTER) {
        // Where this fails the next trial has another name, and an empty table does nothing.
        let _ = table::remove(&mut netlink, trial);
    }
    outcome
}

/// A refusal for people, with what to do.
pub(crate) fn refused(refusal: &Refusal) -> String {
    let advice = if refusal.is(Errno::EPERM) || refusal.is(Errno::EACCES) {
        ": run the agent as root, or with CAP_NET_ADMIN"
    } else if refusal.is(Errno::EOPNOTSUPP) || refusal.is(Errno::EINVAL) || refusal.is(Errno::ENOENT) {
        ": use a kernel with nftables, of the inet family with filter chains (module nf_tables)"
    } else {
        ""
    };
    format!("{}{advice}", refusal.text())
}
