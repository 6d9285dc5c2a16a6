//! What processes have had of the processors and of memory, read from /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rustix::param::clock_ticks_per_second;

/// Seconds of processor time that a process and all below it have had, those that have ended among
/// them as far as their parents have taken note.
pub fn cpu_seconds(root: u32) -> f64 {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut spent: BTreeMap<u32, u64> = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("Linux").flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended meanwhile is in its parent's figures.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((parent, ticks)) = parse(&stat) {
            children.entry(parent).or_default().push(process);
            spent.insert(process, ticks);
        }
    }
    let mut seen = BTreeSet::new();
    let mut open = vec![root];
    let mut ticks = 0;
    while let Some(process) = open.pop() {
        if seen.insert(process) {
            ticks += spent.get(&process).copied().unwrap_or_default();
            open.extend(children.get(&process).into_iter().flatten());
        }
    }
    ticks as f64 / clock_ticks_per_second() as f64
}

/// The parent, and user and system time with that of children waited for.
fn parse(stat: &str) -> Option<(u32, u64)> {
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().unwrap_or_default());
    Some((fields.get(1)?.parse().ok()?, ticks.sum()))
}

/// The most memory that a process has had in use so far, in MiB.
pub fn peak_memory(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim_end_matches("kB").trim().parse::<f64>().ok());
    kilobytes.unwrap_or_default() / 1024.0
}
