//! Breaks rules of the safety protocol on purpose, so that the simulation can show that it would notice.
//!
//! It exists for tests alone: without the feature `mutations` nothing is ever broken and the compiler removes the question,
//! and a build without debug assertions refuses the feature. **Invariant:** what is broken holds for one thread, so that
//! simulations side by side do not see each other.

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!("the feature `mutations` breaks the safety protocol on purpose: it must not be in a release build");

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A rule that can be broken. The names are those of the safety protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule that can be broken.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name, as people write it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

rules! {
    /// The lease counts from the arrival of the grant, not from the stamp of the heartbeat.
    L1Stamp = "l1-stamp";
    /// An answer without a known nonce confers a lease.
    L1Nonce = "l1-nonce";
    /// A lease is taken for over at once.
    L2Wait = "l2-wait";
    /// The end of the last grant counts, not the latest end of all.
    L2Maximum = "l2-maximum";
    /// A coordinator that has started takes all leases for over.
    L2Restart = "l2-restart";
    /// A grant is sent before `established` is stored.
    L5Established = "l5-established";
    /// A lease that was granted for a restart of an agent is waited for like any other.
    L7Wait = "l7-wait";
    /// The first word of a new process takes back the end of the lease that the one before was granted for the restart.
    L7Replaced = "l7-replaced";
    /// An engine starts as a primary without a lease.
    L6Boot = "l6-boot";
    /// The gate drops only what comes in.
    G1Output = "g1-output";
    /// The gate lets peers through.
    G1Peers = "g1-peers";
    /// A late renewal opens the gate past the end of the lease.
    G2Late = "g2-late";
    /// The news that an engine has ended counts as the answer to a fence.
    G5Event = "g5-event";
    /// A fence is answered before the ledger has it.
    G5Ledger = "g5-ledger";
    /// Some endorsements are enough.
    E1Some = "e1-some";
    /// With an empty electorate a primary goes on alone after a boot, without asking the others.
    E1Reboot = "e1-reboot";
    /// A member that endorses promises nothing.
    E2Promise = "e2-promise";
    /// A member that has started does not wait before it is prepared.
    E2Start = "e2-start";
    /// A member that was prepared goes on endorsing lower epochs.
    E3Prepared = "e3-prepared";
    /// Any sign of life of the primary counts as a standing lease.
    E4Alive = "e4-alive";
    /// An electorate is acknowledged before the ledger has it.
    M1Ledger = "m1-ledger";
    /// An electorate is acknowledged before the kernel has a fitting gate.
    M1Gate = "m1-gate";
    /// An older electorate may follow a newer one.
    M1Monotone = "m1-monotone";
    /// A member leaves the electorate when that is acknowledged, not when it is stored.
    M2Leaving = "m2-leaving";
    /// A member joins the electorate when that is stored, not when it is acknowledged.
    M2Joining = "m2-joining";
    /// A member in a resync stays in the electorate.
    M3Resync = "m3-resync";
    /// A failover begins without evidence that no lease stands.
    P1Evidence = "p1-evidence";
    /// A second candidate is promoted under the same epoch.
    P2Candidate = "p2-candidate";
    /// An epoch that was never established is taken for the base of the next.
    P2Base = "p2-base";
    /// Prepare leaves the member's stream as it is.
    P3Cut = "p3-cut";
    /// The old primary is not revoked when it is prepared.
    P5Old = "p5-old";
    /// A lower operation token is accepted.
    T1Token = "t1-token";
    /// A higher token does not wait for the end of what runs under a lower one.
    T1Running = "t1-running";
    /// A wipe does not ask the copy that must survive.
    T2Wipe = "t2-wipe";
    /// Something is sent before the store has it.
    T3Store = "t3-store";
    /// A store that is older than what agents know decides all the same.
    T4Stale = "t4-stale";
    /// The ledger is not flushed.
    LedgerFlush = "ledger-flush";
}

#[cfg(feature = "mutations")]
mod chosen {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        /// One bit for each rule.
        static BROKEN: Cell<u64> = const { Cell::new(0) };
    }

    const _: () = assert!(Rule::ALL.len() <= 64, "a rule has a bit of its own");

    /// Breaks these rules for this thread, and no other.
    pub fn break_on_this_thread(rules: &[Rule]) {
        BROKEN.set(rules.iter().fold(0, |bits, rule| bits | bit(*rule)));
    }

    /// Whether a rule is broken on this thread.
    pub fn broken(rule: Rule) -> bool {
        BROKEN.get() & bit(rule) != 0
    }

    fn bit(rule: Rule) -> u64 {
        1 << (rule as u32)
    }
}

#[cfg(feature = "mutations")]
pub use chosen::{break_on_this_thread, broken};

/// Whether a rule is broken: never.
#[cfg(not(feature = "mutations"))]
#[inline]
pub const fn broken(_: Rule) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_rule_has_a_name_of_its_own_and_none_is_broken_unless_chosen() {
        let names: BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.as_str()).collect();
        assert_eq!(names.len(), Rule::ALL.len());
        assert!(!Rule::ALL.iter().any(|rule| broken(*rule)));
    }

    #[cfg(feature = "mutations")]
    #[test]
    fn several_are_broken_together_and_none_beside_them() {
        break_on_this_thread(&[Rule::L1Stamp, Rule::LedgerFlush]);
        let found: Vec<_> = Rule::ALL.iter().copied().filter(|rule| broken(*rule)).collect();
        break_on_this_thread(&[]);
        assert_eq!(found, [Rule::L1Stamp, Rule::LedgerFlush]);
    }
}
