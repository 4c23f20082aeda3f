//! What these tests have in common.

use std::{future::Future, time::Duration};

use regent_tests::{
    network,
    place::Place,
    profile::Profile,
    scenario::{Bed, Engine},
};

/// The profile of these tests: what holds with the shortest times holds with the others, and takes less of everybody's.
pub(crate) const PROFILE: Profile = Profile::Fast;
/// Limits of time are those of a median on a machine with nothing else to do; this is one run of an unoptimised build on a
/// shared one.
pub(crate) const SLACK: f64 = 2.0;
/// How long anything may take that a person would wait for.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Runs a test in a network of its own.
pub(crate) fn inside<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    network::inside(test).unwrap();
}

/// A bed of PostgreSQL with the profile of these tests.
pub(crate) async fn bed() -> Bed {
    Bed::start(Engine::Postgresql, PROFILE).await.unwrap()
}

/// The place of a node.
pub(crate) fn place(bed: &Bed, node: &str) -> Place {
    bed.fleet.agents[node].place().clone()
}
