//! What people may write, what it comes to, and that nothing of it is lost on the way.

use proptest::prelude::*;

use super::*;

fn list(texts: &[&str]) -> AllowList {
    AllowList::parse(texts).unwrap()
}

fn refused(text: &str) -> String {
    text.parse::<Network>().unwrap_err().to_string()
}

fn shown(list: &AllowList, family: Family) -> Vec<String> {
    list.ranges(family).iter().map(|range| format!("{}-{}", range.first, range.last)).collect()
}

#[test]
fn addresses_and_ranges_are_read_and_shown_as_they_are_usually_written() {
    for (given, canonical) in [
        ("192.0.2.7", "192.0.2.7"),
        (" 192.0.2.7/32 ", "192.0.2.7"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::1/128", "::1"),
        ("::/0", "::/0"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ] {
        assert_eq!(given.parse::<Network>().unwrap().to_string(), canonical, "{given}");
    }
}

#[test]
fn what_is_no_network_is_refused_with_what_to_write() {
    for text in
        ["", "db.example.org", "192.0.2", "192.0.2.0/", "192.0.2.0/+8", "192.0.2.0/8/8", "192.0.2.1-192.0.2.9", "10/8"]
    {
        assert!(refused(text).contains("write it as"), "{text}");
    }
    assert!(refused("192.0.2.0/33").contains("IPv4 addresses have 32"));
    assert!(refused("::/129").contains("IPv6 addresses have 128"));
    let told = refused("192.0.2.7/24");
    assert!(told.contains("write 192.0.2.0/24 for the range, or 192.0.2.7 for the single address"), "{told}");
    let told = refused("2001:db8::7/64");
    assert!(told.contains("write 2001:db8::/64 for"), "{told}");
    let told = refused("::ffff:10.1.2.3/104");
    assert!(told.contains("write 10.0.0.0/8 for the range, or 10.1.2.3"), "{told}");
    assert!(refused("::ffff:0:0/95").contains("write 0.0.0.0/0"), "{}", refused("::ffff:0:0/95"));
}

#[test]
fn overlapping_and_adjacent_ranges_are_merged_and_what_was_written_is_kept() {
    let written =
        list(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7", "192.0.2.1", "10.0.0.7/32", "2001:db8::1", "2001:db8::/127"]);
    assert_eq!(written.len(), 6, "a duplicate is no change");
    assert_eq!(shown(&written, Family::V4), ["10.0.0.0-10.0.1.255", "192.0.2.1-192.0.2.1"]);
    assert_eq!(shown(&written, Family::V6), ["2001:db8::-2001:db8::1"]);
    let texts: Vec<_> = written.networks().map(|network| network.to_string()).collect();
    assert_eq!(texts[..2], ["10.0.0.0/24", "10.0.0.7"]);
    // The highest addresses have none after them.
    assert_eq!(
        shown(&list(&["255.255.255.254/31", "255.255.255.255"]), Family::V4),
        ["255.255.255.254-255.255.255.255"]
    );
    assert_eq!(shown(&list(&["0.0.0.0/0", "10.0.0.0/8"]), Family::V4), ["0.0.0.0-255.255.255.255"]);
}

#[test]
fn an_empty_list_is_open_and_one_family_alone_closes_the_other() {
    let empty = AllowList::default();
    assert!(
        empty.lets_in("192.0.2.1".parse().unwrap()) && empty.is_open_to(Family::V6) && empty.fingerprint().is_empty()
    );
    let four = list(&["192.0.2.0/24"]);
    assert!(four.is_closed_to(Family::V6) && !four.lets_in("2001:db8::1".parse().unwrap()));
    assert!(four.lets_in("::ffff:192.0.2.9".parse().unwrap()), "a socket of both families shows it so");
    assert!(four.remarks()[0].contains("IPv6 is closed"), "{:?}", four.remarks());
    let halves = list(&["0.0.0.0/1", "128.0.0.0/1", "2001:db8::/32"]);
    assert!(halves.is_open_to(Family::V4) && !halves.is_open_to(Family::V6));
    assert_eq!(halves.remarks(), ["IPv4 is open to every address"]);
}

#[test]
fn a_list_has_a_largest_size() {
    let many = |count: u32| (0..count).map(|number| Network::single(Ipv4Addr::from(number * 2).into()).to_string());
    let most = u32::try_from(MOST_NETWORKS).unwrap();
    let full = AllowList::parse(many(most)).unwrap();
    assert_eq!(AllowList::parse(many(most + 1)), Err(AllowListError::TooMany { given: MOST_NETWORKS + 1 }));
    assert_eq!(full.with(&list(&["::1"])), Err(AllowListError::TooMany { given: MOST_NETWORKS + 1 }));
    assert_eq!(full.with(&list(&["0.0.0.2"])), Ok(full.clone()));
}

#[test]
fn what_is_taken_away_is_what_was_written() {
    let written = list(&["10.0.0.0/8", "10.0.0.7"]);
    assert_eq!(written.without(&list(&["10.0.0.7"])), list(&["10.0.0.0/8"]));
    assert_eq!(written.without(&list(&["10.0.0.8"])), written, "a part of a range is not the range");
}

fn network() -> impl Strategy<Value = Network> {
    // Near one another and near the ends, so that they overlap, touch, and reach the highest address.
    let four = (prop_oneof![0..64_u32, (u32::MAX - 64)..=u32::MAX], 24..=32_u8)
        .prop_map(|(number, prefix)| (IpAddr::from(Ipv4Addr::from(number)), prefix));
    let six = (prop_oneof![0..64_u128, (u128::MAX - 64)..=u128::MAX], 118..=128_u8)
        .prop_map(|(number, prefix)| (IpAddr::from(Ipv6Addr::from(number)), prefix));
    prop_oneof![four, six].prop_map(|(address, prefix)| {
        let family = Family::of(address);
        let first = family.address(number(address) & !host_bits(family, prefix));
        format!("{first}/{prefix}").parse().unwrap()
    })
}

fn lists() -> impl Strategy<Value = AllowList> {
    prop::collection::vec(network(), 0..12).prop_map(AllowList::from_iter)
}

proptest! {
    #[test]
    fn what_is_shown_is_read_as_the_same(network in network()) {
        prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
    }

    #[test]
    fn ranges_hold_exactly_what_the_networks_hold(list in lists(), probes in prop::collection::vec(network(), 8)) {
        for family in Family::ALL {
            let ranges = list.ranges(family);
            for probe in probes.iter().flat_map(|probe| [probe.range().first, probe.range().last]) {
                if Family::of(probe) != family || list.is_empty() {
                    continue;
                }
                let within = ranges.iter().filter(|range| range.contains(probe)).count();
                prop_assert_eq!(within, usize::from(list.lets_in(probe)), "{} in {:?}", probe, ranges);
                prop_assert_eq!(hold(&ranges, probe), list.lets_in(probe), "{} in {:?}", probe, ranges);
            }
            for pair in ranges.windows(2) {
                let after = pair[0].after();
                prop_assert!(after.is_some_and(|after| after < pair[1].first), "{:?}", pair);
            }
        }
    }

    #[test]
    fn a_list_survives_being_stored_and_its_order_says_nothing(list in lists()) {
        let stored = serde_json::to_string(&list).unwrap();
        prop_assert_eq!(&serde_json::from_str::<AllowList>(&stored).unwrap(), &list);
        let mut backwards: Vec<_> = list.networks().map(|network| network.to_string()).collect();
        backwards.reverse();
        let read = AllowList::parse(&backwards).unwrap();
        prop_assert_eq!(read.fingerprint(), list.fingerprint());
    }

    #[test]
    fn adding_and_taking_away_ends_where_it_began(list in lists(), more in lists()) {
        let both = list.with(&more).unwrap();
        prop_assert_eq!(both.without(&more), list.without(&more));
        prop_assert_eq!(both.with(&more), Ok(both.clone()));
    }
}
