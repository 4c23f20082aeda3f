//! The allow-list in the real kernel: each test in a network namespace of its own. Needs root, `nft`, `ip`.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod firewall;
#[allow(dead_code, reason = "the gate's own tests use more of it")]
mod gate;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use firewall::{Elsewhere, KernelWorld, TABLE, clients, echo_everywhere};
use gate::{after, command, in_namespace, now, only};
use regent_agent::{
    firewall::{
        Firewall, Passage,
        conformance::{self, CASES},
        nftables::{self, NftablesFirewall},
    },
    gate::Gate as _,
};
use regent_common::allow_list::{AllowList, Network};

fn passage(port: u16, texts: &[&str]) -> Arc<Passage> {
    Arc::new(Passage { ports: only(port), allowed: AllowList::parse(texts).unwrap(), always: BTreeSet::new() })
}

// --- the suite -------------------------------------------------------------------------------------------------------

fn conformance(owned: bool) {
    in_namespace(move || async move {
        let elsewhere = Arc::new(Elsewhere::new());
        let mut failures = Vec::new();
        for (name, case) in CASES {
            let world = KernelWorld::new(elsewhere.clone(), owned);
            failures.extend(conformance::run(&world, name, *case).await.err());
            nftables::remove(TABLE).unwrap();
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

#[test]
fn conformance_of_an_owned_table() {
    conformance(true);
}

#[test]
fn conformance_of_a_table_without_owner() {
    conformance(false);
}

// --- what else is in nftables ------------------------------------------------------------------------------------------

#[test]
fn an_owned_table_survives_a_flush_and_no_other_table_is_touched() {
    in_namespace(|| async {
        let elsewhere = Elsewhere::new();
        let [four, other, ..] = clients();
        let port = echo_everywhere();
        for words in [
            "add table inet others",
            "add set inet others blocked { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }",
            "add chain inet others input { type filter hook input priority 0; policy accept; }",
            "add rule inet others input ip saddr @blocked counter drop",
        ] {
            command("nft", &[words]);
        }
        let others = || command("nft", &["list", "table", "inet", "others"]);
        let before = others();
        let firewall = NftablesFirewall::open(TABLE);
        assert_eq!(firewall.problem(), None);
        firewall.keep(Some(passage(port, &[&four.to_string(), "10.64.0.0/10"]))).await.unwrap();
        firewall.keep(Some(passage(port, &[&four.to_string(), "10.64.0.0/10", "::/0"]))).await.unwrap();
        assert_eq!(others(), before);
        let shown = command("nft", &["list", "table", "inet", TABLE]);
        for part in
            ["10.9.0.2, 10.64.0.0/10", "::/0", "tcp dport @ports", "!= @allowed4 drop", "!= @allowed6 drop", "priority"]
        {
            assert!(shown.contains(part), "{part:?} is not in {shown}");
        }
        command("nft", &["flush", "ruleset"]);
        assert!(elsewhere.answers(four, port) && !elsewhere.answers(other, port));
        assert_eq!(firewall.verify().await.unwrap(), Vec::<String>::new());
        // Between two processes it has no owner: the next one takes it over.
        drop(firewall);
        assert!(!elsewhere.answers(other, port));
        let next = NftablesFirewall::open(TABLE);
        command("nft", &["flush", "ruleset"]);
        assert!(!elsewhere.answers(other, port));
        next.keep(None).await.unwrap();
        assert!(elsewhere.answers(other, port));
        assert_eq!(command("nft", &["list", "tables"]), "");
    });
}

#[test]
fn what_somebody_else_changes_in_a_shared_table_is_found_and_put_back() {
    in_namespace(|| async {
        let port = echo_everywhere();
        let firewall = NftablesFirewall::open_shared(TABLE);
        firewall.keep(Some(passage(port, &["10.9.0.0/24", "2001:db8::/32"]))).await.unwrap();
        for (change, found) in [
            (format!("add element inet {TABLE} allowed4 {{ 192.168.0.0/16 }}"), "allowed4"),
            (format!("delete element inet {TABLE} ports {{ {port} }}"), "ports"),
            (format!("flush set inet {TABLE} allowed6"), "allowed6"),
            (format!("flush chain inet {TABLE} input"), "input"),
            (format!("add rule inet {TABLE} input accept"), "input"),
            (format!("delete table inet {TABLE}"), "missing"),
        ] {
            command("nft", &[&change]);
            let faults = firewall.verify().await.unwrap().join("; ");
            assert!(faults.contains(found), "{change}: {faults:?}");
            assert_eq!(firewall.verify().await.unwrap(), Vec::<String>::new(), "{change}");
        }
    });
}

// --- long lists ----------------------------------------------------------------------------------------------------------

fn four(count: u32) -> impl Iterator<Item = Network> {
    (0..count).map(|number| Network::single(Ipv4Addr::from(0x0b00_0000 + number * 4).into()))
}

fn six(count: u32) -> impl Iterator<Item = Network> {
    (0..count)
        .map(|number| Network::single(Ipv6Addr::from((0x2001_0db8_u128 << 96) + (u128::from(number) << 8)).into()))
}

#[test]
fn ten_thousand_ranges_are_in_force_within_a_second_and_the_gate_goes_on() {
    in_namespace(|| async {
        let elsewhere = Elsewhere::new();
        let port = echo_everywhere();
        let firewall = Arc::new(NftablesFirewall::open(TABLE));
        let gate = gate::gate();
        gate.arm(&only(port)).await.unwrap();
        let lists =
            [four(10_000).collect::<AllowList>(), six(10_000).collect(), four(10_000).chain(six(10_000)).collect()];
        for list in lists {
            let client = clients()[0];
            let allowed = list.with(&AllowList::parse([client.to_string()]).unwrap()).unwrap_or_else(|_| list.clone());
            let passage = Arc::new(Passage { ports: only(port), allowed, always: [client].into() });
            let begun = now();
            let kept = tokio::spawn({
                let (firewall, passage) = (firewall.clone(), passage.clone());
                async move { firewall.keep(Some(passage)).await }
            });
            // What the lease does meanwhile: it shares the kernel's lock alone.
            let mut slowest = Duration::ZERO;
            let mut opened = 0;
            while !kept.is_finished() || opened == 0 {
                let asked = now();
                gate.open(Some(after(1000))).await.unwrap();
                slowest = slowest.max(asked.age(now()));
                opened += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            kept.await.unwrap().unwrap();
            let took = begun.age(now());
            println!(
                "{} ranges in {took:?}; {opened} openings of the gate meanwhile, the slowest in {slowest:?}",
                list.len()
            );
            assert!(took < Duration::from_secs(2), "it took {took:?}");
            gate.open(Some(after(5000))).await.unwrap();
            assert!(elsewhere.answers(client, port));
            assert!(!elsewhere.answers(clients()[1], port));
        }
        let begun = now();
        assert_eq!(firewall.verify().await.unwrap(), Vec::<String>::new());
        println!("verified in {:?}", begun.age(now()));
        drop(firewall);
        // Where everybody may change it each element is looked at.
        let list: AllowList = four(10_000).chain(six(10_000)).collect();
        let shared = NftablesFirewall::open_shared(TABLE);
        shared
            .keep(Some(Arc::new(Passage { ports: only(port), allowed: list, always: BTreeSet::new() })))
            .await
            .unwrap();
        // A long list is read back now and then.
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            let begun = now();
            assert_eq!(shared.verify().await.unwrap(), Vec::<String>::new());
            slowest = slowest.max(begun.age(now()));
        }
        println!("verified, with every element, in {slowest:?}");
    });
}

// --- the gate ------------------------------------------------------------------------------------------------------------

#[test]
fn the_gate_comes_first_and_neither_opens_what_the_other_closes() {
    in_namespace(|| async {
        let elsewhere = Elsewhere::new();
        let [listed, other, ..] = clients();
        let port = echo_everywhere();
        let (gate, firewall) = (gate::gate(), NftablesFirewall::open(TABLE));
        gate.arm(&only(port)).await.unwrap();
        firewall.keep(Some(passage(port, &[&listed.to_string()]))).await.unwrap();
        let answered = |client: IpAddr| elsewhere.answers(client, port);
        assert!(!answered(listed) && !answered(other), "the gate is closed");
        gate.open(None).await.unwrap();
        assert!(answered(listed) && !answered(other), "the gate is open");
        gate.close().await.unwrap();
        assert!(!answered(listed));
    });
}
