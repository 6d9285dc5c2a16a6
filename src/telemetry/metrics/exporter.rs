//! The registry that instruments are scraped from, and whether anybody wants it.

use std::sync::Arc;

use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};

use super::Instruments;
use super::catalogue as metric;
use crate::telemetry::health::Health;
use crate::telemetry::laws::Laws;

/// The instruments and the registry they are scraped from.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    pub instruments: Instruments,
    // Dropping the provider shuts its instruments down.
    _provider: SdkMeterProvider,
}

impl Metrics {
    /// Instruments of their own registry, with series for at most `max_laws` laws and `other`.
    ///
    /// # Errors
    /// When the exporter can't be set up: a mistake of this service.
    pub fn new(max_laws: usize, health: Arc<Health>) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|error| MetricsError(error.to_string()))?;
        // The SDK folds everything past 2,000 series into one; we bound them ourselves.
        let cardinality = 2 * (max_laws + 1) + 1;
        let per_law = move |instrument: &Instrument| {
            [metric::VOTES_AGGREGATED, metric::CURRENT_VOTE_TOTALS]
                .iter()
                .any(|entry| entry.name == instrument.name())
                .then(|| Stream::builder().with_cardinality_limit(cardinality).build().ok())
                .flatten()
        };
        let provider = SdkMeterProvider::builder().with_reader(exporter).with_view(per_law).build();
        let laws = Arc::new(Laws::new(max_laws));
        let instruments = Instruments::new(&provider.meter("vote-aggregator"), laws, health, false);
        Ok(Self { registry, instruments, _provider: provider })
    }

    /// Instruments that measure nothing, and a scrape without series. Health, logs and the stop
    /// line are as ever.
    pub fn off(health: Arc<Health>) -> Self {
        let provider = SdkMeterProvider::builder().build();
        let meter = provider.meter("vote-aggregator");
        let instruments = Instruments::new(&meter, Arc::new(Laws::new(0)), health, true);
        Self { registry: Registry::new(), instruments, _provider: provider }
    }

    /// All series in Prometheus' text format.
    ///
    /// # Errors
    /// When a series can't be encoded: a mistake of this service.
    pub fn scrape(&self) -> Result<String, MetricsError> {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .map_err(|error| MetricsError(error.to_string()))
    }
}

/// The metrics can't be set up or encoded.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(String);

/// False when `OTEL_METRICS_EXPORTER` says `none`. Any other value leaves `/metrics` as it is: a
/// platform may set `otlp` for all its programs, and Prometheus goes on scraping this one.
pub fn metrics_wanted() -> bool {
    wanted(std::env::var("OTEL_METRICS_EXPORTER").ok().as_deref())
}

fn wanted(exporter: Option<&str>) -> bool {
    exporter != Some("none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_none_means_none() {
        assert!(!wanted(Some("none")));
        for exporter in [None, Some(""), Some("prometheus"), Some("otlp")] {
            assert!(wanted(exporter), "{exporter:?}");
        }
    }
}
