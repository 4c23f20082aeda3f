//! Processor time, from /proc/stat: counters since boot, of which two make a share.

/// Counters of all processors together, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CpuTimes {
    busy: u64,
    idle: u64,
}

// === impl CpuTimes ===

impl CpuTimes {
    /// Reads the first line: user nice system idle iowait irq softirq steal ...
    pub(super) fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // Guest time is counted in user time already: the first eight are all.
        let counters: Vec<u64> = line.split_whitespace().take(8).map_while(|number| number.parse().ok()).collect();
        let [user, nice, system, idle, io_wait, rest @ ..] = counters.as_slice() else { return None };
        Some(Self { busy: user + nice + system + rest.iter().sum::<u64>(), idle: idle + io_wait })
    }

    /// Share of the time since then in which a processor was busy, 0 to 100.
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub(super) fn busy_percent_since(self, before: Self) -> f64 {
        let busy = self.busy.saturating_sub(before.busy);
        let idle = self.idle.saturating_sub(before.idle);
        if busy + idle == 0 { 0.0 } else { busy as f64 * 100.0 / (busy + idle) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_made_of_two_readings() {
        let first = CpuTimes::parse("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!(first, CpuTimes { busy: 150, idle: 850 });
        let second = CpuTimes::parse("cpu  150 0 75 825 50 0 0 0 0 0\n").unwrap();
        assert!((second.busy_percent_since(first) - 75.0).abs() < 1e-9);
        assert!(first.busy_percent_since(first).abs() < 1e-9);
        assert_eq!(CpuTimes::parse("intr 1\n"), None);
    }
}
