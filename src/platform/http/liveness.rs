//! Whether the counting runtime still runs its tasks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A counting runtime without a heartbeat for longer is stalled: nothing it does takes a fraction
/// of that between two awaits.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// When the last heartbeat arrived, by the clock of the runtime that answers: an instant of another
/// runtime cannot be compared with it where a test pauses one of their clocks.
#[derive(Clone, Debug)]
pub(super) struct Liveness(Arc<Mutex<Instant>>);

impl Default for Liveness {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Liveness {
    /// Notes each heartbeat; ends with the sender of them.
    pub(super) async fn follow(&self, mut heartbeat: watch::Receiver<()>) {
        while heartbeat.changed().await.is_ok() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// The time since the last heartbeat, when that is too long ago.
    pub(super) fn stalled_for(&self) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(last.elapsed()).filter(|age| *age > STALLED_AFTER)
    }
}
