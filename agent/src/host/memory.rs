//! Memory, from /proc/meminfo.

/// Memory in bytes; 0 while unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Physical memory.
    pub(super) total: u64,
    /// What programs could still get.
    pub(super) available: u64,
}

/// Reads `MemTotal` and `MemAvailable`.
pub(super) fn parse(text: &str) -> Memory {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kibibytes| kibibytes * 1024)
    };
    Memory { total: field("MemTotal"), available: field("MemAvailable") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_fields_are_found() {
        let text = "MemTotal:       2048 kB\nMemFree:         100 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(parse(text), Memory { total: 2_097_152, available: 1_048_576 });
        assert_eq!(parse(""), Memory::default());
    }
}
