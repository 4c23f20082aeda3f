//! What `deploy/` ships is what the code reads.

use std::fs;

use regent_coordinator::config::Config;

use super::root;

#[test]
fn the_coordinators_example_names_every_key_with_its_default() {
    let text = fs::read_to_string(root().join("deploy/config/coordinator.example.toml")).unwrap();
    let example: Config = toml::from_str(&text).unwrap();
    assert_eq!(format!("{example:?}"), format!("{:?}", Config::default()), "an example shows the defaults");
    let table: toml::Table = toml::from_str(&text).unwrap();
    // What serde says of an unknown key is the one list of known ones that exists.
    let known = toml::from_str::<Config>("no_such_key = 1").unwrap_err().to_string();
    let known = known.split_once("expected one of").expect("serde lists the keys").1;
    let missing: Vec<_> = known.split('`').skip(1).step_by(2).filter(|key| !table.contains_key(*key)).collect();
    assert!(missing.is_empty(), "coordinator.example.toml does not name {missing:?}");
    assert!(table.len() >= 8, "the list of known keys was read");
}
