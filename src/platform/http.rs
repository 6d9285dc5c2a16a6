//! `/metrics`, `/livez`, `/readyz`, `/startupz` on one port, answered by a thread of their own; and what the ports
//! of other commands share with it.
//!
//! Architecture invariant: no client takes time from the thread that counts. The only work that
//! grows with the number of laws, rendering the metrics, happens at most once a second, and the
//! result is shared (`scrape.rs`). Connections are bounded in number and in time (`connections.rs`).

mod connections;
mod descriptors;
mod keep_alive;
mod liveness;
mod scrape;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::connections::serve as serve_router;
pub use self::keep_alive::KeepAlive;
use self::liveness::Liveness;
pub use self::scrape::Scrape;
use crate::platform::telemetry::{Health, Metrics};

/// The name of the thread, as `ps -L` and `/proc` show it.
const THREAD: &str = "http";
/// Connections that the kernel keeps until they are accepted; it drops those beyond, whose clients
/// try again after a second. Linux grants no more than `net.core.somaxconn`, by default as many.
const BACKLOG: u32 = 4_096;

/// What the answers are made of.
#[derive(Clone)]
pub struct Sources {
    pub metrics: Metrics,
    pub health: Arc<Health>,
    /// Once it is cancelled the service is on its way out, and not ready.
    pub stop: CancellationToken,
    /// Changes as long as the counting runtime runs its tasks.
    pub heartbeat: watch::Receiver<()>,
}

/// What a port is for, and how to choose another one.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    pub name: &'static str,
    pub advice: &'static str,
}

/// The port of the counting service.
pub const METRICS: Purpose = Purpose {
    name: "metrics and health",
    advice: "Set PROMETHEUS_PORT (0 takes a free one) or PROMETHEUS_HOST",
};

/// Binds `address` on the current runtime; port 0 takes a free one.
///
/// # Errors
/// The address and what the system said.
pub fn bind(address: SocketAddr, purpose: Purpose) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| BindError { address, purpose, source })
}

/// A port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for {}: {source}. Is another instance running? {}",
    purpose.name, purpose.advice
)]
pub struct BindError {
    address: SocketAddr,
    purpose: Purpose,
    source: io::Error,
}

/// The thread that answers could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread for metrics and health: {0}")]
pub struct StartError(#[from] io::Error);

/// The thread that answers; it ends when this value is dropped.
#[derive(Debug)]
pub struct HttpThread {
    _stop: DropGuard,
    ended: oneshot::Receiver<()>,
}

/// Starts a thread with a runtime of its own that answers on `listener`.
///
/// # Errors
/// [`StartError`] when the system gives no thread, or nothing to wait for sockets with.
pub fn start(listener: TcpListener, sources: Sources) -> Result<HttpThread, StartError> {
    // A socket belongs to the runtime that it was made on; this one is registered anew.
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = CancellationToken::new();
    let (alive, ended) = oneshot::channel();
    let stopped = stop.clone();
    thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
        // Dropped at the end of the thread, also when it panics.
        let _alive: oneshot::Sender<()> = alive;
        runtime.block_on(stopped.run_until_cancelled(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(listener, sources).await,
                Err(error) => tracing::error!(%error, "cannot use the socket for metrics"),
            }
        }));
    })?;
    Ok(HttpThread { _stop: stop.drop_guard(), ended })
}

impl HttpThread {
    /// Waits for the end of the thread, which comes by a panic only; dropped, it ends the thread.
    pub async fn ended(self) {
        // Nothing is ever sent: the sender is dropped with the thread.
        self.ended.await.ok();
    }
}

/// Answers until it is dropped.
async fn serve(listener: TcpListener, sources: Sources) {
    let liveness = Liveness::default();
    let following = liveness.follow(sources.heartbeat.clone());
    tokio::join!(following, connections::serve(listener, router(sources, &liveness)));
}

/// Everything that a handler reads.
#[derive(Clone)]
struct Shared {
    sources: Sources,
    scrape: Arc<Scrape>,
    liveness: Liveness,
}

fn router(sources: Sources, liveness: &Liveness) -> Router {
    let shared = Shared { sources, scrape: Arc::default(), liveness: liveness.clone() };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    shared.scrape.answer(|| shared.sources.metrics.scrape())
}

/// Answers whether the process runs and its counting runtime runs its tasks.
async fn livez(State(shared): State<Shared>) -> Response {
    let Some(age) = shared.liveness.stalled_for() else {
        return answer(true, json!({ "status": "alive" }));
    };
    let reason = format!("no heartbeat of the counting runtime for {} s", age.as_secs());
    answer(false, json!({ "status": "stalled", "reason": reason }))
}

/// Answers whether both sides work: votes are being counted, or would be.
async fn readyz(State(Shared { sources, .. }): State<Shared>) -> Response {
    if sources.stop.is_cancelled() {
        sources.health.rabbitmq_failed("stopping");
    }
    let report = sources.health.report();
    answer(report.is_ready(), report)
}

/// Answers whether it was ready once: from then on, `/readyz` says what does not work.
async fn startupz(State(Shared { sources, .. }): State<Shared>) -> Response {
    if sources.health.has_started() {
        return answer(true, json!({ "status": "started" }));
    }
    answer(false, json!({ "status": "starting", "checks": sources.health.report().checks }))
}

/// 200 or 503, with a JSON body.
pub fn answer(ok: bool, body: impl Serialize) -> Response {
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

#[cfg(test)]
mod tests;
