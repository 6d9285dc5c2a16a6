//! The limit of open files, of which every connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For files, the database, and the other port.
const RESERVED: u64 = 64;

/// Raises the limit as far as `connections` need it and the system allows it, and returns how many connections are
/// possible.
pub(super) fn allow(connections: usize) -> usize {
    let limits = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(RESERVED);
    let (current, maximum) =
        (limits.current.unwrap_or(u64::MAX), limits.maximum.unwrap_or(u64::MAX));
    let raised = wanted.min(maximum);
    let allowed = if current >= wanted {
        current
    } else {
        let raised_limits = Rlimit { current: Some(raised), maximum: limits.maximum };
        setrlimit(Resource::Nofile, raised_limits).map_or(current, |()| raised)
    };
    let possible = allowed.saturating_sub(RESERVED).max(1);
    let possible = usize::try_from(possible).unwrap_or(usize::MAX).min(connections);
    if possible < connections {
        tracing::warn!(
            possible,
            "the limit of open files allows no more than {possible} connections; for {connections} raise it \
             (LimitNOFILE, ulimit -n) to {wanted}"
        );
    }
    possible
}
