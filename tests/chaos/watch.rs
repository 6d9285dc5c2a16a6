//! Looks at the totals all through a run: they must never decrease. Also a part of `cluster`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::phase::Phase;
use crate::tables::{RESULTS, Totals, totals};

const EVERY: Duration = Duration::from_millis(250);
/// A server that stands still is asked again, on another connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What was seen.
#[derive(Debug, Default)]
pub struct Watched {
    /// Votes counted, at each look.
    pub counted: Vec<(Instant, u64)>,
    pub decreases: Vec<String>,
}

/// Waits for the standbys, where some are named: what was read before is on one of them then. A primary
/// that is about to be lost may show more.
const REPLICATED: &str = "SELECT CASE WHEN current_setting('synchronous_standby_names') <> '' \
                          THEN pg_logical_emit_message(true, 'watch', '')::text END";

async fn look(connection: &mut PgConnection) -> sqlx::Result<Totals> {
    let totals = totals(&mut *connection, RESULTS).await?;
    sqlx::query(REPLICATED).execute(connection).await?;
    Ok(totals)
}

/// Looks until `stop`, and keeps `phase.counted` up to date.
pub async fn watch(phase: &'static Phase, stop: CancellationToken) -> Watched {
    let mut watched = Watched::default();
    let mut highest = Totals::new();
    let mut connection = None;
    while !stop.is_cancelled() {
        sleep(EVERY).await;
        if connection.is_none() {
            connection = phase.setup.servers.sql(&phase.database).await.ok();
        }
        let Some(mut current) = connection.take() else { continue };
        let looked = timeout(ANSWER_WITHIN, look(&mut current)).await;
        let Ok(Ok(totals)) = looked else { continue };
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
