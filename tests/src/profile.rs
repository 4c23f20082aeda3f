//! The profiles of detection as a user knows them: what is promised for each, against which scenarios are measured.
//!
//! The times are those of the design, not read from the product: that it keeps them is what is tested.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// A profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Within a data centre.
    Fast,
    /// The default.
    Standard,
    /// Between data centres.
    Relaxed,
}

// === impl Profile ===

impl Profile {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Standard => "standard",
            Self::Relaxed => "relaxed",
        }
    }

    /// How long a lease lasts.
    pub fn ttl(self) -> Duration {
        match self {
            Self::Fast => Duration::from_millis(1_500),
            Self::Standard => Duration::from_secs(5),
            Self::Relaxed => Duration::from_secs(15),
        }
    }

    /// From the loss of the primary's node until writes are accepted elsewhere.
    pub fn node_lost(self) -> Duration {
        match self {
            Self::Fast => Duration::from_secs(2),
            Self::Standard => Duration::from_secs(6),
            Self::Relaxed => Duration::from_secs(17),
        }
    }
}
