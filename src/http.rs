//! `/metrics`, `/livez`, `/readyz`, `/startupz` on one port, safe against slow and hostile clients: one request
//! a connection, a bound on connections, on headers and on the time each may take.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Health, Metrics};

/// Connections served at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
/// From the first byte of a request to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// From accept to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request line and headers, in bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// What the answers are made of.
#[derive(Clone)]
pub struct Sources {
    pub metrics: Metrics,
    pub health: Arc<Health>,
    /// Once it is cancelled the service is on its way out, and not ready.
    pub stop: CancellationToken,
}

/// Binds `address`; port 0 takes a free one.
///
/// # Errors
/// The address and what the system said.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// The metrics port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for metrics and health: {source}. Is another instance running? \
     Set PROMETHEUS_PORT (0 takes a free one) or PROMETHEUS_HOST"
)]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, sources: Sources) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .with_state(sources);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: leave time for some to come free.
                tracing::warn!(%error, "cannot accept a connection on the metrics port");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that hangs up or dawdles is its own affair.
            if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
                tracing::debug!(%error, "a request on the metrics port failed");
            }
            drop(slot);
        });
    }
}

async fn metrics(State(sources): State<Sources>) -> Response {
    match sources.metrics.scrape() {
        Ok(text) => {
            let format = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, format)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The process runs and its runtime takes work.
async fn livez() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "alive" }))
}

/// Both sides work: votes are being counted, or would be.
async fn readyz(State(sources): State<Sources>) -> Response {
    if sources.stop.is_cancelled() {
        sources.health.rabbitmq_failed("stopping");
    }
    let report = sources.health.report();
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

/// It was ready once: from here on, what is amiss is for `/readyz` to tell.
async fn startupz(State(sources): State<Sources>) -> Response {
    if sources.health.has_started() {
        return Json(serde_json::json!({ "status": "started" })).into_response();
    }
    let report = sources.health.report();
    let starting = serde_json::json!({ "status": "starting", "checks": report.checks });
    (StatusCode::SERVICE_UNAVAILABLE, Json(starting)).into_response()
}
