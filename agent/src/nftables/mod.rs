//! nftables over netlink, as the gate and the allow-list speak it: messages, rules, tables, and the kernel's list of sockets.
//!
//! The messages are written here rather than by a library: rustables is under the GPL, nftnl needs a C library, a forked `nft`
//! costs ten milliseconds per change, and what the fence rests on should be readable to the byte. Only the socket is a library's.
//!
//! Not here: what a table is for. Each user has a table and a socket of its own, so that none waits for another one's work but in
//! the kernel.

pub(crate) mod expressions;
pub(crate) mod message;
pub(crate) mod netlink;
pub(crate) mod sockets;
pub(crate) mod table;
pub(crate) mod trial;
