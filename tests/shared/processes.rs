//! A process and all below it: PostgreSQL has one for each connection.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal to all of them.
pub fn signal_tree(root: i32, signal: Signal) {
    // It may have ended since it was listed. Once it is stopped, it starts no other.
    Pid::from_raw(root).map(|pid| kill_process(pid, signal).ok());
    for thread in fs::read_dir(format!("/proc/{root}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            signal_tree(child, signal);
        }
    }
}
