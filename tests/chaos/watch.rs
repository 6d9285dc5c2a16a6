//! Looks at the totals all through a run: they must never decrease.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::phase::Phase;

const EVERY: Duration = Duration::from_millis(250);
/// A server that stands still is asked again, on another connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// `law_id` → `[oui, non]`.
pub type Totals = BTreeMap<String, [i64; 2]>;

/// What was seen.
#[derive(Debug, Default)]
pub struct Watched {
    /// Votes counted, at each look.
    pub counted: Vec<(Instant, u64)>,
    pub decreases: Vec<String>,
}

/// Looks until `stop`, and keeps `phase.counted` up to date.
pub async fn watch(phase: &'static Phase, stop: CancellationToken) -> Watched {
    let mut watched = Watched::default();
    let mut highest = Totals::new();
    let mut connection = None;
    while !stop.is_cancelled() {
        sleep(EVERY).await;
        let mut current = match connection.take() {
            Some(current) => current,
            None => match phase.setup.servers.sql(&phase.database).await {
                Ok(current) => current,
                Err(_) => continue,
            },
        };
        let Ok(Ok(totals)) = timeout(ANSWER_WITHIN, totals(&mut current)).await else { continue };
        connection = Some(current);
        for (law, before) in &highest {
            let now = totals.get(law).copied().unwrap_or_default();
            if now[0] < before[0] || now[1] < before[1] {
                watched.decreases.push(format!("{law}: {before:?} became {now:?}"));
            }
        }
        let sum = u64::try_from(totals.values().flatten().sum::<i64>()).unwrap_or_default();
        watched.counted.push((Instant::now(), sum));
        phase.counted.store(sum, Ordering::Relaxed);
        highest = totals;
    }
    watched
}

impl Watched {
    /// Votes that were seen to be counted by then.
    pub fn counted_by(&self, then: Instant) -> u64 {
        let looks = self.counted.partition_point(|(at, _)| *at <= then);
        self.counted[..looks].last().map_or(0, |look| look.1)
    }
}

/// Every row of vote_results.
pub async fn totals(connection: &mut PgConnection) -> Result<Totals> {
    read(connection, "SELECT law_id, oui_count, non_count FROM vote_results").await
}

/// Rows of `law_id`, `oui_count`, `non_count`.
pub async fn read(connection: &mut PgConnection, query: &'static str) -> Result<Totals> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(query).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(law, oui, non)| (law, [oui, non])).collect())
}
