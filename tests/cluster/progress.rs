//! Follows each instance by its metrics: when it has committed.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::instances::Instance;
use crate::lock;
use crate::servers::{address, get};

const EVERY: Duration = Duration::from_millis(500);

/// An instance, where it runs, and when it was seen to have committed a batch.
pub struct Member {
    pub instance: Instance,
    pub host: u8,
    /// Of its metrics.
    pub port: u16,
    commits: Mutex<Vec<Instant>>,
}

impl Member {
    pub fn new(instance: Instance, host: u8, port: u16) -> Self {
        Self { instance, host, port, commits: Mutex::default() }
    }

    /// Asks for as long as the run lasts.
    pub async fn follow(&self) {
        let mut before = None;
        loop {
            sleep(EVERY).await;
            let Some(now) = self.metric("batch_size_processed_total").await else { continue };
            // A process that was started again begins at 0.
            if before.is_some_and(|before| before != now) && now > 0.0 {
                lock(&self.commits).push(Instant::now());
            }
            before = Some(now);
        }
    }

    /// A metric without labels; `None` if it does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = get(&address(self.host), self.port, "/metrics").await.ok()?;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        body.lines().find_map(value)
    }

    /// The first commit that was seen after `then`.
    pub fn committed_after(&self, then: Instant) -> Option<Instant> {
        let commits = lock(&self.commits);
        commits.get(commits.partition_point(|at| *at <= then)).copied()
    }
}
