//! What the seeds have a liking for: every other seed has a theme, whose script ([`super::plays`]) brings about the moment at which
//! one rule of the protocol matters.

use std::time::Duration;

use regent_common::{lease::Profile, mutation::Rule};

use super::{
    chance::Chance,
    plays::Cast,
    script::Script,
    seeds, strikes,
    trace::traced,
    world::{MOST_NODES, Simulation},
};

macro_rules! themes {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a seed has a liking for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Theme {
            /// Nothing: any fault at any time.
            Free,
            /// One fault at one step ([`super::strikes`]); of no seed.
            Struck,
            $($(#[$doc])* $name,)*
        }

        /// Those that seeds have.
        const THEMES: &[Theme] = &[$(Theme::$name,)*];
    };
}

themes! {
    /// Members that have endorsed a primary start again when it is cut off.
    EndorserRestarts,
    /// A primary that was given up is endorsed anew before the endorser is prepared.
    EndorsedAnew,
    /// A primary that was cut off asks members which have been prepared.
    PreparedAsked,
    /// A coordinator starts again while the primary is cut off.
    CoordinatorRestarts,
    /// A member leaves the electorate, and the primary is cut off with the others.
    MemberLeaves,
    /// A member joins the electorate, and the primary's agent starts again on the other side of a partition.
    MemberJoins,
    /// The first member joins an empty electorate, and the primary's agent stops.
    GateOfOne,
    /// An answer that names an electorate of before arrives after a newer one was acknowledged.
    OldElectorate,
    /// A primary is lost while a member is being resynced.
    ResyncCut,
    /// A primary is left alone while the only other member is being resynced.
    ResyncAlone,
    /// A promotion does not come to its end.
    PromotionFails,
    /// A candidate becomes writable, alone, and the coordinator does not hear of it.
    PromotionUnheard,
    /// A candidate whose promotion was not heard of is back while another is promoted.
    TwoCandidates,
    /// A candidate's engine fails while the old primary stays away.
    CandidateFails,
    /// A coordinator dies while its store commits.
    SlowStore,
    /// Steps of an operation arrive after the coordinator that sent them has died.
    OldSteps,
    /// The cluster's times become shorter while the primary does not hear that.
    ShorterTimes,
    /// The coordinator starts again when it has just made the cluster's times shorter, and the primary is gone.
    ShorterTimesForgotten,
    /// Answers arrive again, and late.
    Replays,
    /// An engine hangs and goes on when it is not expected to.
    EngineHangs,
    /// An agent stands still in the midst of a renewal.
    LateRenewals,
    /// The primary's agent is told to end, and is away, or lost when it is back.
    AgentRestarts,
    /// A partition that lasts, after which there has to be one writer.
    Sides,
    /// An old backup of the store is put back.
    OldStore,
    /// A copy is renewed from one that is going away.
    SourceGone,
    /// A member is promoted by a person's word that the primary is off, and that one boots.
    OffByWord,
    /// A fence comes to an agent whose disk hangs.
    FencedOnPaper,
    /// A candidate dies before it reigns, and is gone.
    NeverReigned,
    /// A primary that was given up is back before the others are prepared.
    OldPrimaryBack,
    /// A step arrives when its operation is over.
    LateStep,
    /// A promotion takes longer than anybody waits for it.
    LongPromotion,
    /// The copy that is to survive another is lost.
    SourceLost,
    /// A member that was prepared could go on streaming.
    StreamGoesOn,
    /// A backup from before a member left the electorate is put back.
    OldElectoratePutBack,
    /// A person makes a member the primary while there is no coordinator.
    Forced,
}

// === impl Theme ===

impl Theme {
    /// That of a seed: every other has one, in turn.
    pub(crate) fn of(seed: u64) -> Self {
        if strikes::on_this_thread().is_some() {
            return Self::Struck;
        }
        if let Some(name) = seeds::text("REGENT_TEST_THEME") {
            let named = THEMES.iter().chain(&[Self::Free]).copied().find(|theme| format!("{theme:?}") == name);
            return named.unwrap_or_else(|| panic!("there is no theme {name}"));
        }
        if !seed.is_multiple_of(2) {
            return Self::Free;
        }
        let count = u64::try_from(THEMES.len()).expect("a small number");
        THEMES[usize::try_from(seed / 2 % count).expect("an index")]
    }

    /// The times of its cluster.
    pub(crate) fn profile(self, seed: u64) -> Profile {
        match self {
            Self::EndorserRestarts
            | Self::CoordinatorRestarts
            | Self::ShorterTimes
            | Self::ShorterTimesForgotten
            | Self::NeverReigned
            | Self::AgentRestarts
            | Self::EngineHangs => Profile::Standard,
            Self::PreparedAsked
            | Self::EndorsedAnew
            | Self::MemberLeaves
            | Self::OldElectorate
            | Self::ResyncAlone
            | Self::PromotionUnheard
            | Self::TwoCandidates
            | Self::CandidateFails
            | Self::OffByWord
            | Self::FencedOnPaper
            | Self::OldPrimaryBack
            | Self::LateStep
            | Self::LongPromotion
            | Self::StreamGoesOn
            | Self::OldElectoratePutBack
            | Self::Sides => Profile::Fast,
            Self::Free
            | Self::Struck
            | Self::MemberJoins
            | Self::GateOfOne
            | Self::ResyncCut
            | Self::PromotionFails
            | Self::SlowStore
            | Self::OldSteps
            | Self::Replays
            | Self::LateRenewals
            | Self::OldStore
            | Self::Forced
            | Self::SourceLost
            | Self::SourceGone => {
                if (seed / 2).is_multiple_of(3) {
                    Profile::Standard
                } else {
                    Profile::Fast
                }
            }
        }
    }

    /// How many nodes its cluster has.
    pub(crate) fn nodes(self, chance: &mut Chance) -> usize {
        let any = match chance.within(0..10) {
            0 => 1,
            1 => 2,
            2 => MOST_NODES,
            _ => 3,
        };
        match self {
            Self::Free => any,
            Self::Struck => strikes::NODES,
            Self::GateOfOne
            | Self::EndorsedAnew
            | Self::ResyncAlone
            | Self::OffByWord
            | Self::FencedOnPaper
            | Self::OldPrimaryBack
            | Self::LateStep
            | Self::OldElectoratePutBack
            | Self::SourceLost => 2,
            Self::EndorserRestarts if chance.percent(70) => 2,
            Self::MemberLeaves
            | Self::MemberJoins
            | Self::OldElectorate
            | Self::SlowStore
            | Self::PromotionUnheard
            | Self::TwoCandidates
            | Self::NeverReigned
            | Self::LongPromotion
            | Self::StreamGoesOn
            | Self::Sides => 3,
            Self::CandidateFails if chance.percent(50) => 2,
            Self::EndorserRestarts
            | Self::PreparedAsked
            | Self::CoordinatorRestarts
            | Self::ResyncCut
            | Self::PromotionFails
            | Self::CandidateFails
            | Self::OldSteps
            | Self::ShorterTimes
            | Self::ShorterTimesForgotten
            | Self::Replays
            | Self::EngineHangs
            | Self::LateRenewals
            | Self::AgentRestarts
            | Self::OldStore
            | Self::Forced
            | Self::SourceGone => any.max(2),
        }
    }

    /// In how many of a hundred cases an answer is delivered again, or late.
    pub(crate) fn replays(self) -> u64 {
        if self == Self::Replays { 50 } else { 4 }
    }

    /// Whether the person also asks for a resync now and then, which takes a member away that a script may count on.
    pub(crate) fn is_resynced(self) -> bool {
        !matches!(
            self,
            Self::Struck
                | Self::ResyncAlone
                | Self::NeverReigned
                | Self::LateStep
                | Self::OldElectoratePutBack
                | Self::Forced
        )
    }

    /// The theme that was made for a rule: its seeds are looked at first when the rule is broken.
    pub(crate) fn for_rule(rule: Rule) -> Self {
        match rule {
            Rule::E2Start => Self::EndorserRestarts,
            Rule::E2Promise => Self::EndorsedAnew,
            Rule::E3Prepared => Self::PreparedAsked,
            Rule::M2Leaving => Self::MemberLeaves,
            Rule::M1Ledger => Self::MemberJoins,
            Rule::M1Gate => Self::GateOfOne,
            Rule::M1Monotone => Self::OldElectorate,
            Rule::M3Resync => Self::ResyncAlone,
            Rule::L5Established => Self::PromotionUnheard,
            Rule::P2Candidate => Self::TwoCandidates,
            Rule::P2Base => Self::NeverReigned,
            Rule::T3Store => Self::SlowStore,
            Rule::T1Token => Self::LateStep,
            Rule::T1Running => Self::LongPromotion,
            Rule::G5Ledger => Self::FencedOnPaper,
            Rule::E1Reboot => Self::OffByWord,
            Rule::P3Cut => Self::StreamGoesOn,
            Rule::P5Old => Self::OldPrimaryBack,
            Rule::L2Maximum => Self::ShorterTimes,
            Rule::L2Restart => Self::ShorterTimesForgotten,
            Rule::L7Wait | Rule::L7Replaced => Self::AgentRestarts,
            Rule::L1Nonce | Rule::L1Stamp | Rule::L2Wait | Rule::P1Evidence => Self::Replays,
            Rule::G5Event => Self::EngineHangs,
            Rule::G2Late => Self::LateRenewals,
            Rule::E4Alive | Rule::E1Some => Self::Sides,
            Rule::T4Stale => Self::OldStore,
            Rule::T2Wipe => Self::SourceLost,
            Rule::L6Boot | Rule::G1Output | Rule::G1Peers | Rule::M2Joining | Rule::LedgerFlush => Self::Free,
        }
    }

    /// Its script for the state that is reached; none without a primary or a theme, or before the cluster is made.
    pub(crate) fn script(self, simulation: &Simulation<'_>, chance: &mut Chance) -> Option<Script> {
        if let Some(strike) = strikes::on_this_thread().filter(strikes::Strike::is_of_creation) {
            let names = simulation.machines().iter().map(|machine| machine.name.clone()).collect::<Vec<_>>();
            let mut cast = Cast::new(names[0].clone(), names[1..].to_vec(), Duration::ZERO, chance);
            strike.play(&mut cast);
            return Some(Script::new(cast.into_stages(), simulation));
        }
        let primary = simulation.primary()?;
        let mut others: Vec<String> =
            simulation.machines().iter().map(|machine| machine.name.clone()).filter(|name| *name != primary).collect();
        if chance.percent(50) {
            others.reverse();
        }
        if self == Self::Free || others.is_empty() || !simulation.is_active() {
            return None;
        }
        let ttl: Duration = simulation.machine(&primary).profile.timing().ttl;
        traced!("SCRIPT {self:?}");
        let mut cast = Cast::new(primary, others, ttl, chance);
        cast.play(self);
        Some(Script::new(cast.into_stages(), simulation))
    }
}
