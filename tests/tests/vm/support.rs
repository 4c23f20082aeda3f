//! What these tests have in common.

use std::{future::Future, time::Duration};

use regent_tests::{network, profile::Profile};

/// The profile of these tests: what holds with the shortest times holds with the others, and takes less of everybody's.
pub(crate) const PROFILE: Profile = Profile::Fast;
/// How long anything may take that a person would wait for.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Runs a test in a network of its own.
pub(crate) fn inside<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    network::inside(test).unwrap();
}
