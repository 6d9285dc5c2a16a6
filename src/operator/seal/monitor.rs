//! The port of the sealer: metrics, and whether it seals.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;
use tokio::time::Instant;

use crate::platform::http::{self, Scrape};
use crate::platform::telemetry::{MetricsError, SealMetrics};

/// Why nothing is sealed, as the metric names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Stopped {
    /// It cannot be read.
    Database,
    /// Another sealer of this log is connected to it.
    Lock,
    /// It is another one, or an earlier state.
    Lineage,
}

const REASONS: &[&str] = &["database", "lock", "lineage"];

/// What happened to a sealer, for its metrics and its health.
#[derive(Clone)]
pub struct Monitor {
    pub metrics: SealMetrics,
    /// A round may take so much longer than the time between two.
    stalled_after: Duration,
    state: Arc<Mutex<State>>,
}

struct State {
    ticked: Instant,
    problem: Option<String>,
}

impl Monitor {
    /// # Errors
    /// When the metrics cannot be set up: a mistake of this program.
    pub fn new(stalled_after: Duration) -> Result<Self, MetricsError> {
        let problem = Some("nothing was read yet".to_owned());
        let state = Arc::new(Mutex::new(State { ticked: Instant::now(), problem }));
        Ok(Self { metrics: SealMetrics::new(REASONS)?, stalled_after, state })
    }

    /// A round ended, or why it did not. Returns whether that is another reason than before.
    pub fn ended(&self, stopped: Option<(Stopped, String)>) -> bool {
        self.metrics.stopped(stopped.as_ref().map(|(reason, _)| (*reason).into()));
        let mut state = self.state();
        state.ticked = Instant::now();
        let problem = stopped.map(|(_, problem)| problem);
        let changed = state.problem != problem;
        state.problem = problem;
        changed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The router of the port.
    pub fn router(&self) -> Router {
        let (scrape, metrics) = (Arc::new(Scrape::default()), self.metrics.clone());
        let metrics = move || {
            let answer = scrape.answer(|| metrics.scrape());
            async { answer }
        };
        let (alive, ready) = (self.clone(), self.clone());
        Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(async move || alive.livez()))
            .route("/readyz", get(async move || ready.readyz()))
            .layer(axum::middleware::map_response(uncached))
    }

    fn livez(&self) -> Response {
        let alive = self.state().ticked.elapsed() <= self.stalled_after;
        http::answer(alive, json!({ "status": if alive { "alive" } else { "stalled" } }))
    }

    /// Whether the last round ended well. The reason is in the log: it may name addresses.
    fn readyz(&self) -> Response {
        let ready = self.state().problem.is_none();
        http::answer(ready, json!({ "status": if ready { "ready" } else { "not ready" } }))
    }
}

async fn uncached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
