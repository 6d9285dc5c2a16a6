//! Traces over OTLP, switched on by OpenTelemetry's own variables; without them they cost nothing.
//!
//! A collector that is slow or down costs spans and nothing else: they wait in a bounded queue, a
//! thread of its own sends them, and those beyond the bound are dropped.

mod collector;
mod settings;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Tracer};
use opentelemetry_semantic_conventions::attribute as semconv;

use self::collector::{Blocking, Watched};
use self::settings::{Protocol, Settings};

/// Links that wait to be sent at a time, in all batches' spans together; some 100 bytes each.
const LINKS_QUEUED: usize = 100_000;
/// Links sent in one request: a collector refuses one of more than 4 MiB.
const LINKS_SENT: usize = 40_000;
/// OpenTelemetry's own defaults for spans.
const SPANS_QUEUED: usize = 2_048;
const SPANS_SENT: usize = 512;

static ON: AtomicBool = AtomicBool::new(false);

/// Whether traces are collected: if not, no trace context has to be read.
pub fn traces_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// What sends spans, or nothing.
#[derive(Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// As the environment of this process says. `batch_size` bounds the links of a span. Has to be
    /// called inside the runtime that carries the requests.
    ///
    /// # Errors
    /// [`TracesError`] with the variable and what it may be.
    pub fn from_env(batch_size: usize) -> Result<Self, TracesError> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(settings) = Settings::read(env)? else { return Ok(Self(None)) };
        // The SDK reads these variables itself, where they are set.
        let mut batches = BatchConfigBuilder::default();
        if env("OTEL_BSP_MAX_QUEUE_SIZE").is_none() {
            batches = batches.with_max_queue_size(spans(LINKS_QUEUED, batch_size, SPANS_QUEUED));
        }
        if env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_none() {
            batches = batches.with_max_export_batch_size(spans(LINKS_SENT, batch_size, SPANS_SENT));
        }
        let exporter = Watched::new(exporter(&settings)?);
        let processor =
            BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build();
        let version = KeyValue::new(semconv::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
        let mut resource = Resource::builder().with_attribute(version);
        if !settings.has_service_name {
            resource = resource.with_service_name("vote-aggregator");
        }
        let mut provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_span_processor(processor);
        if env("OTEL_SPAN_LINK_COUNT_LIMIT").is_none() {
            // The default of 128 would cut off the rest of a batch.
            provider = provider.with_max_links_per_span(u32::try_from(batch_size).unwrap_or(128));
        }
        ON.store(true, Ordering::Relaxed);
        Ok(Self(Some(provider.build())))
    }

    pub(super) fn tracer(&self) -> Option<Tracer> {
        self.0.as_ref().map(|provider| provider.tracer("vote-aggregator"))
    }

    /// Sends what is left, for no longer than `within`.
    pub async fn flush(self, within: Duration) {
        let Some(provider) = self.0 else { return };
        // Blocks until the sending thread has ended, or does not.
        let ended =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(within)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::info!("the last spans were not sent before the end");
        }
    }
}

/// How many spans with `batch_size` links each have no more than `links` together.
fn spans(links: usize, batch_size: usize, at_most: usize) -> usize {
    (links / batch_size.max(1)).clamp(16, at_most)
}

fn exporter(settings: &Settings) -> Result<SpanExporter, TracesError> {
    let built = match settings.protocol {
        Protocol::Grpc if settings.https => SpanExporter::builder()
            .with_tonic()
            // Without this no authority is trusted.
            .with_tls_config(ClientTlsConfig::new().with_enabled_roots())
            .build(),
        Protocol::Grpc => SpanExporter::builder().with_tonic().build(),
        Protocol::HttpProtobuf => SpanExporter::builder()
            .with_http()
            .with_http_client(Blocking::new(settings.timeout))
            .build(),
    };
    built.map_err(|error| TracesError(format!("no collector can be reached: {error}")))
}

/// The variables for traces make no sense.
#[derive(Debug, thiserror::Error)]
#[error("traces: {0}")]
pub struct TracesError(String);
