//! How long a command waits for PostgreSQL. The service waits without an end.

use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::store::error::{StartError, describe};
use crate::model::ports::Fault;
use crate::platform::config::Config;

/// How long a command tries again, counted from the first failure. A try that is under way when that
/// is over may end well.
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

    pub(super) fn of(self, config: &Config) -> Waiting<'_> {
        Waiting { config, patience: self, since: None }
    }
}

/// The waiting of one command.
pub(super) struct Waiting<'c> {
    config: &'c Config,
    patience: Patience,
    /// The first failure of this kind: for a lock, or not.
    since: Option<(bool, Instant)>,
}

impl Waiting<'_> {
    /// What is left after `fault`.
    ///
    /// # Errors
    /// [`StartError::Locked`] or [`StartError::Away`] when nothing is left.
    pub(super) fn left(&mut self, fault: &Fault) -> Result<Duration, StartError> {
        let Patience { retry_for, locks } = self.patience;
        let lock = locks.filter(|_| fault.sqlstate.as_deref() == Some("55P03"));
        if self.since.is_none_or(|(of_lock, _)| of_lock != lock.is_some()) {
            self.since = Some((lock.is_some(), Instant::now()));
        }
        let away = self.since.map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let left = lock.unwrap_or(retry_for).saturating_sub(away);
        if !left.is_zero() {
            return Ok(left);
        }
        let (fault, place) = (fault.clone(), describe(&self.config.postgres));
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

    fn fault(sqlstate: Option<&str>) -> Fault {
        let sqlstate = sqlstate.map(str::to_owned);
        Fault { class: Class::Reconnect, sqlstate, message: "no".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_the_first_failure_and_locks_have_a_time_of_their_own() {
        let config = Config::load(&Sources::default()).expect("the defaults are good");
        let seconds = Duration::from_secs;
        let patience = Patience { locks: Some(seconds(60)), ..Patience::new(seconds(300)) };
        let (read_only, locked) = (fault(Some("25006")), fault(Some("55P03")));
        let mut waiting = patience.of(&config);
        tokio::time::advance(seconds(1_000)).await;
        assert_eq!(waiting.left(&fault(None)).ok(), Some(seconds(300)));
        tokio::time::advance(seconds(299)).await;
        assert_eq!(waiting.left(&read_only).ok(), Some(seconds(1)));
        tokio::time::advance(seconds(1)).await;
        let Err(StartError::Away { away, .. }) = waiting.left(&read_only) else { panic!("away") };
        assert_eq!(away, seconds(300));
        // It answers, and is held up by a lock: from the beginning.
        assert_eq!(waiting.left(&locked).ok(), Some(seconds(60)));
        tokio::time::advance(seconds(60)).await;
        assert!(matches!(waiting.left(&locked), Err(StartError::Locked { .. })));

        let mut waiting = Patience::new(seconds(5)).of(&config);
        assert_eq!(waiting.left(&locked).ok(), Some(seconds(5)));
        tokio::time::advance(seconds(5)).await;
        assert!(matches!(waiting.left(&locked), Err(StartError::Away { .. })));
        assert!(Patience::new(Duration::ZERO).of(&config).left(&read_only).is_err());
    }
}
