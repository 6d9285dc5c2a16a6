//! The port for operators: metrics, and whether the board reads, makes and writes its files.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::Board;
use crate::adapters::store::Snapshot;
use crate::model::publication::{EMBARGOED, Published};
use crate::platform::http::{self, KeepAlive, Scrape};
use crate::platform::telemetry::{BoardLabels, BoardMetrics, MetricsError};

/// A board that did not try to read for longer is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Clocks that are further apart are worth a warning.
const MAX_SKEW: Duration = Duration::from_secs(2);
const STATES: &[&str] = &["withheld", EMBARGOED, "counting", "provisional", "final"];
const STALE: &[&str] = &["database", "decrease", "older"];
const STATUSES: &[u16] = &[200, 304, 404, 405, 503];

/// What happened to a board, for its metrics and its health.
#[derive(Clone)]
pub struct Monitor {
    pub metrics: BoardMetrics,
    state: Arc<Mutex<State>>,
}

struct State {
    ticked: Instant,
    reading: Option<String>,
    writing: Option<String>,
    skewed: bool,
}

impl Monitor {
    /// # Errors
    /// When the metrics cannot be set up: a mistake of this program.
    pub fn new() -> Result<Self, MetricsError> {
        let labels = BoardLabels { states: STATES, stale: STALE, statuses: STATUSES };
        let state = State {
            ticked: Instant::now(),
            reading: Some("nothing was read yet".to_owned()),
            writing: None,
            skewed: false,
        };
        Ok(Self { metrics: BoardMetrics::new(labels)?, state: Arc::new(Mutex::new(state)) })
    }

    /// A reading took from `began` to `ended`, by this machine's clock. Warns once of clocks that are apart.
    pub fn read(&self, snapshot: &Snapshot, began: OffsetDateTime, ended: OffsetDateTime) {
        // The snapshot was taken in between.
        let (skew, ahead) = if snapshot.as_of < began {
            (began - snapshot.as_of, true)
        } else {
            (snapshot.as_of - snapshot.as_of.min(ended), false)
        };
        let skew = skew.unsigned_abs();
        self.metrics.read(skew, ahead);
        let mut state = self.state();
        state.reading = None;
        let skewed = skew > MAX_SKEW;
        if skewed && !state.skewed {
            let side = if ahead { "ahead of" } else { "behind" };
            tracing::warn!(
                seconds = skew.as_secs_f64(),
                "the clock of this machine is {side} PostgreSQL's: results open by the later of the two; \
                 synchronize both with NTP"
            );
        }
        state.skewed = skewed;
    }

    /// A reading failed.
    pub fn read_failed(&self, failure: &str) {
        self.state().reading = Some(failure.to_owned());
    }

    /// The files were written, or why not. Returns a failure after a success.
    pub fn written(&self, failure: Option<String>) -> Option<String> {
        match &failure {
            None => self.metrics.written(),
            Some(_) => self.metrics.write_failed(),
        }
        let before = std::mem::replace(&mut self.state().writing, failure.clone());
        failure.filter(|_| before.is_none())
    }

    /// What is shown now; also the sign that the board goes on.
    pub fn shown(&self, board: &Board) {
        self.state().ticked = Instant::now();
        let shown = board.shown();
        let published = shown.and_then(|shown| shown.published.as_ref());
        let state = published.map_or(STATES[0], Published::state_name);
        let since_final = shown.and_then(|shown| shown.since_final).unwrap_or(0);
        self.metrics.shown(state, board.stale().map(Into::into), since_final);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The router of the port.
pub struct Admin;

impl Admin {
    pub fn router(monitor: Monitor, connections: Option<KeepAlive>) -> Router {
        let scrape = Arc::new(Scrape::default());
        let metrics = {
            let monitor = monitor.clone();
            move || {
                let open = connections.as_ref().map_or(0, KeepAlive::open);
                let answer = scrape.answer(|| monitor.metrics.scrape(open));
                async { answer }
            }
        };
        let alive = monitor.clone();
        Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(async move || livez(&alive)))
            .route("/readyz", get(async move || readyz(&monitor)))
            .layer(axum::middleware::map_response(uncached))
    }
}

/// Whether the board tries to read.
fn livez(monitor: &Monitor) -> Response {
    let age = monitor.state().ticked.elapsed();
    let status = if age > STALLED_AFTER { "stalled" } else { "alive" };
    http::answer(age <= STALLED_AFTER, json!({ "status": status }))
}

/// Whether what is shown is what the database has.
fn readyz(monitor: &Monitor) -> Response {
    let state = monitor.state();
    let problems = [("postgresql", &state.reading), ("files", &state.writing)];
    let ready = problems.iter().all(|(_, problem)| problem.is_none());
    let checks = problems
        .map(|(name, problem)| json!({ "name": name, "ok": problem.is_none(), "reason": problem }));
    let status = if ready { "ready" } else { "not ready" };
    http::answer(ready, json!({ "status": status, "checks": checks }))
}

async fn uncached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::*;
    use crate::model::publication::State as Publication;
    use crate::operator::board::Stale;

    #[test]
    fn every_state_and_reason_has_a_series() {
        let states = Publication::VARIANTS.iter().map(Into::into).chain([EMBARGOED]);
        assert!(states.clone().all(|state: &str| STATES.contains(&state)));
        assert_eq!(states.count(), STATES.len());
        assert_eq!(Stale::VARIANTS.iter().map(Into::into).collect::<Vec<&str>>(), STALE);
    }
}
