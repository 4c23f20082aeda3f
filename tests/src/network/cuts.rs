//! Cuts by direction, as a table of nftables at the hub.
//!
//! ARP and the like of IPv6 pass: the machines are as far from each other as behind a router, where a cut is silence and not an error.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{CLIENTS, machine::port};

/// What the hub passes no longer. Belongs to the namespace it was made in.
#[derive(Debug)]
pub(super) struct Cuts;

/// Frames from a port to a port are forwarded; those of clients begin or end at the hub itself.
const TABLE: &str = r"
table bridge regent_test {
    set between { type ifname . ifname; }
    set from_clients { type ifname; }
    set to_clients { type ifname; }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ether type arp accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        iifname . oifname @between drop
    }
    chain output {
        type filter hook output priority 0; policy accept;
        ether type arp accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        oifname @from_clients drop
    }
    chain input {
        type filter hook input priority 0; policy accept;
        ether type arp accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        iifname @to_clients drop
    }
}
";

/// Runs a script of nft as one transaction.
fn nft(script: &str) -> Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    nft.stdin.take().context("stdin is a pipe")?.write_all(script.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\n{script}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

// === impl Cuts ===

impl Cuts {
    /// Makes the table, with nothing cut.
    pub(super) fn new() -> Result<Self> {
        nft(TABLE)?;
        Ok(Self)
    }

    /// Cuts directions, all at one moment.
    pub(super) fn add(&mut self, directions: &[(&str, &str)]) -> Result<()> {
        let mut script = String::new();
        for (from, to) in directions {
            ensure!(from != to, "{from} cannot be cut from itself");
            let element = match (*from, *to) {
                (CLIENTS, to) => format!("from_clients {{ \"{}\" }}", port(to)),
                (from, CLIENTS) => format!("to_clients {{ \"{}\" }}", port(from)),
                (from, to) => format!("between {{ \"{}\" . \"{}\" }}", port(from), port(to)),
            };
            script.push_str(&format!("add element bridge regent_test {element}\n"));
        }
        nft(&script)
    }

    /// Mends all.
    pub(super) fn clear(&mut self) -> Result<()> {
        let sets = ["between", "from_clients", "to_clients"];
        nft(&sets.map(|set| format!("flush set bridge regent_test {set}\n")).concat())
    }
}
