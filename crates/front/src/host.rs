//! What the metrics page says of the machine: processor and memory, from the kernel's own tables.

use parking_lot::Mutex;
use std::fs::read_to_string;

/// Busy and all jiffies of the machine so far.
type Jiffies = (u64, u64);

/// As of the last page: utilisation is measured from page to page.
static LAST: Mutex<Option<Jiffies>> = Mutex::new(None);

/// Name, help and value. Missing where the kernel does not say.
pub fn gauges() -> Vec<(&'static str, &'static str, f64)> {
    let mut gauges = Vec::new();
    if let Some(now) = read_to_string("/proc/stat").ok().as_deref().and_then(jiffies) {
        let before = LAST.lock().replace(now).unwrap_or((0, 0));
        let (busy, all) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
        let share = if all == 0 { 0.0 } else { busy as f64 / all as f64 };
        gauges.push(("nv_cpu_utilization", "CPU utilization of the machine since the last page, 0.0 to 1.0", share));
    }
    if let Some((total, available)) = read_to_string("/proc/meminfo").ok().as_deref().and_then(memory) {
        gauges.push(("nv_cpu_memory_total_bytes", "Memory of the machine", total as f64));
        gauges.push((
            "nv_cpu_memory_used_bytes",
            "Memory of the machine in use",
            total.saturating_sub(available) as f64,
        ));
    }
    gauges
}

/// The first line of `/proc/stat` (proc(5)): user nice system idle iowait irq softirq steal.
fn jiffies(stat: &str) -> Option<Jiffies> {
    let fields: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8).flat_map(str::parse).collect();
    let all: u64 = fields.iter().sum();
    let idle = fields.get(3)? + fields.get(4)?;
    Some((all - idle, all))
}

/// Total and available bytes of `/proc/meminfo`, which counts in KiB.
fn memory(table: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((field("MemTotal")?, field("MemAvailable")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tables_are_read() {
        assert_eq!(jiffies("cpu  10 1 5 80 4 0 0 0 0 0\ncpu0 1 2 3"), Some((16, 100)));
        assert_eq!(memory("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\n"), Some((102_400, 40_960)));
        assert_eq!(jiffies("nonsense"), None);
        assert_eq!(memory(""), None);
    }
}
