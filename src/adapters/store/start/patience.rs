//! How long a command waits for PostgreSQL. The service waits without a limit.

use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::store::error::{StartError, describe};
use crate::model::ports::Fault;
use crate::platform::config::Config;

/// How long a command tries again, counted from the first failure. The last try may begin within that
/// time and succeed after it.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// While the server is away, or read-only.
    pub retry_for: Duration,
    /// While others hold a lock; as `retry_for` where nothing is said.
    pub locks: Option<Duration>,
}

impl Patience {
    pub const fn new(retry_for: Duration) -> Self {
        Self { retry_for, locks: None }
    }

    /// What is left after `fault`; `since` is the first failure of its kind: for a lock, or not.
    ///
    /// # Errors
    /// [`StartError::Locked`] or [`StartError::Away`] when nothing is left.
    pub(super) fn left(
        self,
        since: &mut Option<(bool, Instant)>,
        fault: &Fault,
        config: &Config,
    ) -> Result<Duration, StartError> {
        let lock = self.locks.filter(|_| fault.sqlstate.as_deref() == Some("55P03"));
        let first = since.filter(|(of_lock, _)| *of_lock == lock.is_some());
        let (_, began) = *since.insert(first.unwrap_or((lock.is_some(), Instant::now())));
        let away = began.elapsed();
        let left = lock.unwrap_or(self.retry_for).saturating_sub(away);
        if !left.is_zero() {
            return Ok(left);
        }
        let (fault, place) = (fault.clone(), describe(&config.postgres));
        Err(match lock {
            Some(_) => StartError::Locked { fault, place },
            None => StartError::Away { away, fault, place },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ports::Class;
    use crate::platform::config::Sources;

    fn fault(sqlstate: &str) -> Fault {
        Fault { sqlstate: Some(sqlstate.to_owned()), ..Fault::new(Class::Reconnect, "no") }
    }

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_the_first_failure_and_locks_have_a_time_of_their_own() {
        let config = Config::load(&Sources::default()).expect("the defaults are good");
        let seconds = Duration::from_secs;
        let patience = Patience { locks: Some(seconds(60)), ..Patience::new(seconds(300)) };
        let (read_only, locked) = (fault("25006"), fault("55P03"));
        let mut since = None;
        let mut left = |fault: &Fault| patience.left(&mut since, fault, &config);
        tokio::time::advance(seconds(1_000)).await;
        assert_eq!(left(&fault("57P03")).ok(), Some(seconds(300)));
        tokio::time::advance(seconds(299)).await;
        assert_eq!(left(&read_only).ok(), Some(seconds(1)));
        tokio::time::advance(seconds(1)).await;
        let Err(StartError::Away { away, .. }) = left(&read_only) else { panic!("away") };
        assert_eq!(away, seconds(300));
        // It answers, and is held up by a lock: from the beginning.
        assert_eq!(left(&locked).ok(), Some(seconds(60)));
        tokio::time::advance(seconds(60)).await;
        assert!(matches!(left(&locked), Err(StartError::Locked { .. })));

        let mut since = None;
        let mut left = |fault: &Fault| Patience::new(seconds(5)).left(&mut since, fault, &config);
        assert_eq!(left(&locked).ok(), Some(seconds(5)));
        tokio::time::advance(seconds(5)).await;
        assert!(matches!(left(&locked), Err(StartError::Away { .. })));
        assert!(Patience::new(Duration::ZERO).left(&mut None, &read_only, &config).is_err());
    }
}
