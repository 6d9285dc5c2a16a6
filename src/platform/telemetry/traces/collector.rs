//! The way to the collector: requests over HTTP, and one log line when it takes no spans.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// A client that blocks: spans are sent by a thread of their own.
#[derive(Debug)]
pub(super) struct Blocking(ureq::Agent);

impl Blocking {
    pub(super) fn new(timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            // The exporter judges the status.
            .http_status_as_error(false);
        Self(config.build().new_agent())
    }
}

#[async_trait]
impl HttpClient for Blocking {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(parts, &body[..]))?;
        let (parts, mut body) = answer.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}

/// An exporter whose failures are logged once until it works again, and not with every request.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    /// Spans lost since it failed first.
    lost: AtomicU64,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E) -> Self {
        Self { exporter, lost: AtomicU64::new(0) }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        match &exported {
            Ok(()) => {
                let lost = self.lost.swap(0, Relaxed);
                if lost > 0 {
                    tracing::info!(lost, "the collector accepts spans again");
                }
            }
            Err(error) => {
                if self.lost.fetch_add(spans, Relaxed) == 0 {
                    tracing::warn!(
                        "the collector does not accept spans; they are dropped until it does, and \
                         counting continues. Check OTEL_EXPORTER_OTLP_ENDPOINT and \
                         OTEL_EXPORTER_OTLP_PROTOCOL: {error}"
                    );
                }
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
