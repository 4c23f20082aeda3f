//! Sizes, durations and times as people read them, and the few that people type. Pure: `now` is an argument.
//!
//! **Invariant:** sizes are binary (1 KiB is 1024 bytes), times are UTC.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Text that is not a size, a duration or a time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    /// Not a size.
    #[error("{0:?} is not a size: write bytes or a number with KiB, MiB, GiB or TiB, such as 50MiB")]
    Size(String),
    /// Not a duration.
    #[error("{0:?} is not a duration: write a number with s, m, h or d, such as 90m")]
    Duration(String),
    /// Neither a duration nor a time.
    #[error("{0:?} is neither a duration (such as 1h) nor a time (such as 2026-01-31T12:00:00Z)")]
    Since(String),
}

const BINARY: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];

/// A size in bytes, such as "1.5 GiB".
pub fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in BINARY {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A share of a whole, such as "3.0 GiB of 8.0 GiB".
pub fn bytes_of(part: u64, whole: u64) -> String {
    format!("{} of {}", bytes(part), bytes(whole))
}

/// How much of the whole a part is, 0 to 100; the whole is not 0.
pub fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(u64::MAX).min(100)
}

/// A span of time, such as "4.2 s" or "3 min 05 s".
pub fn span(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The span between two times; nothing when the later one is earlier (two clocks).
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// The wire's timestamp; nothing when it is absent or out of range.
pub fn time(wire: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    wire.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
}

/// Distance to `now`, such as "12 s ago" or "in 1 h 00 min".
pub fn distance(at: Timestamp, now: Timestamp) -> String {
    if at > now {
        format!("in {}", coarse(between(now, at)))
    } else {
        let past = between(at, now);
        if past < Duration::from_secs(1) { "just now".to_owned() } else { format!("{} ago", coarse(past)) }
    }
}

/// Distance of a wire timestamp; "-" without one.
pub fn wire_distance(at: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    time(at).map_or_else(|| "-".to_owned(), |at| distance(at, now))
}

/// A time, absolute and relative; "-" without one.
pub fn when(at: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    time(at).map_or_else(|| "-".to_owned(), |at| format!("{} ({})", absolute(at), distance(at, now)))
}

/// A time to the second.
pub fn absolute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A time to the millisecond in RFC 3339.
pub fn precise(at: Option<&prost_types::Timestamp>) -> String {
    time(at).map_or_else(|| "-".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// A span to the second.
pub fn coarse(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        _ => span(duration),
    }
}

/// Reads a size such as "50MiB", "1.5 GiB", "50MiB/s" or "4096".
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let problem = || UnitError::Size(text.to_owned());
    let trimmed = text.trim().trim_end_matches("/s").trim_end();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(problem()),
    };
    let number: f64 = number.parse().map_err(|_| problem())?;
    let value = number * factor;
    if value.is_finite() && value >= 0.0 && value < u64::MAX as f64 { Ok(value as u64) } else { Err(problem()) }
}

/// Reads a duration such as "1h", "90m" or "1h 30m".
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let problem = || UnitError::Duration(text.to_owned());
    // A day is 24 hours here: tokens and look-backs do not care for calendars.
    let signed = match text.trim().strip_suffix('d').map(str::parse::<i64>) {
        Some(Ok(days)) => SignedDuration::from_hours(days.checked_mul(24).ok_or_else(problem)?),
        Some(Err(_)) | None => text.trim().parse::<SignedDuration>().map_err(|_| problem())?,
    };
    Duration::try_from(signed).map_err(|_| problem())
}

/// A time in the past, as a distance from now or as itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(Timestamp),
}

impl Since {
    /// Reads "1h" or an RFC 3339 time.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        if let Ok(at) = text.trim().parse::<Timestamp>() {
            return Ok(Self::At(at));
        }
        parse_duration(text).map(Self::Ago).map_err(|_| UnitError::Since(text.to_owned()))
    }

    /// The time that is meant.
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }

    /// The time that is meant, for the wire.
    pub fn wire(self, now: Timestamp) -> prost_types::Timestamp {
        let at = self.resolve(now);
        prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("50MiB"), Ok(50 * 1024 * 1024));
        assert_eq!(parse_bytes("50 MiB/s"), Ok(50 * 1024 * 1024));
        assert_eq!(parse_bytes("1.5g"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for wrong in ["", "MiB", "-1", "5 parsec", "1.2.3k", "99999999999999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_are_written_with_the_largest_unit_that_keeps_a_whole_digit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(5_368_709_120), "5.0 GiB");
    }

    #[test]
    fn durations_are_read_and_negative_ones_refused() {
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("-5m").is_err());
    }

    #[test]
    fn spans_have_the_precision_that_fits_their_length() {
        assert_eq!(span(Duration::from_millis(250)), "250 ms");
        assert_eq!(span(Duration::from_millis(4210)), "4.2 s");
        assert_eq!(span(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(span(Duration::from_secs(7800)), "2 h 10 min");
        assert_eq!(span(Duration::from_secs(90_000)), "1 d 01 h");
    }

    #[test]
    fn since_is_a_distance_or_a_time() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        assert_eq!(Since::parse("1d").unwrap().resolve(now).to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(Since::parse("2025-12-31T00:00:00Z").unwrap().resolve(now).to_string(), "2025-12-31T00:00:00Z");
        assert!(Since::parse("yesterday").is_err());
    }
}
