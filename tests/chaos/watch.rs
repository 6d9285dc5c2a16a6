//! Looks at the totals all through a run: they must never decrease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::{PgConnection, Row};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::servers::Servers;

const EVERY: Duration = Duration::from_millis(250);
/// A server that stands still is asked anew, on another connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// `law_id` → `[oui, non]`.
pub type Totals = BTreeMap<String, [i64; 2]>;

/// What was seen.
#[derive(Debug, Default)]
pub struct Watched {
    pub looks: u64,
    /// Votes counted, at each look.
    pub counted: Vec<(Instant, u64)>,
    pub decreases: Vec<String>,
}

/// Looks until `stop`; `counted` is the sum of all totals.
pub async fn watch(
    servers: Arc<Servers>,
    database: String,
    counted: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Watched {
    let mut watched = Watched::default();
    let mut highest = Totals::new();
    let mut connection = None;
    while !stop.is_cancelled() {
        sleep(EVERY).await;
        let mut current = match connection.take() {
            Some(current) => current,
            None => match servers.sql(&database).await {
                Ok(current) => current,
                Err(_) => continue,
            },
        };
        let Ok(Ok(totals)) = timeout(ANSWER_WITHIN, totals(&mut current)).await else { continue };
        connection = Some(current);
        watched.compare(&mut highest, &totals);
        let sum: i64 = totals.values().flatten().sum();
        let sum = u64::try_from(sum).unwrap_or_default();
        watched.counted.push((Instant::now(), sum));
        counted.store(sum, Ordering::Relaxed);
    }
    watched
}

impl Watched {
    /// Votes that were seen to be counted by then.
    pub fn counted_by(&self, then: Instant) -> u64 {
        let looks = self.counted.partition_point(|(at, _)| *at <= then);
        looks.checked_sub(1).and_then(|last| self.counted.get(last)).map_or(0, |look| look.1)
    }

    fn compare(&mut self, highest: &mut Totals, totals: &Totals) {
        self.looks += 1;
        for (law, before) in highest.iter() {
            let now = totals.get(law).copied().unwrap_or_default();
            if now[0] < before[0] || now[1] < before[1] {
                self.decreases.push(format!("{law}: {before:?} became {now:?}"));
            }
        }
        highest.clone_from(totals);
    }
}

/// Every row of vote_results.
pub async fn totals(connection: &mut PgConnection) -> Result<Totals> {
    read(connection, "SELECT law_id, oui_count, non_count FROM vote_results").await
}

/// Rows of `law_id`, `oui_count`, `non_count`.
pub async fn read(connection: &mut PgConnection, query: &'static str) -> Result<Totals> {
    let rows = sqlx::query(query).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let counts = [row.try_get("oui_count")?, row.try_get("non_count")?];
            Ok((row.try_get("law_id")?, counts))
        })
        .collect()
}
