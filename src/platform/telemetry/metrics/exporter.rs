//! The registry that instruments are scraped from, and whether metrics are on.

use std::sync::Arc;

use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};

use super::gauges::Gauge;
use super::{Count, Instruments};
use crate::model::cell::Cell;
use crate::platform::config::ShownTotals;
use crate::platform::telemetry::health::Health;
use crate::platform::telemetry::laws::Laws;

/// The instruments and the registry they are scraped from.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    pub instruments: Instruments,
    // Dropping the provider shuts its instruments down.
    _provider: SdkMeterProvider,
}

impl Metrics {
    /// Instruments of their own registry, with series for at most `max_laws` laws and `other`, or for the
    /// sum of all, as `totals` says; all of them with the label of the cell if there is one.
    ///
    /// # Errors
    /// When the exporter can't be set up: a mistake of this service.
    pub fn new(
        max_laws: usize,
        totals: ShownTotals,
        health: Arc<Health>,
        cell: Option<Cell>,
    ) -> Result<Self, MetricsError> {
        let label = cell.map(|cell| [("cell".to_owned(), cell.number.to_string())].into());
        let registry =
            Registry::new_custom(None, label).map_err(|error| MetricsError::new(&error))?;
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|error| MetricsError(error.to_string()))?;
        // The SDK folds everything past 2,000 series into one; we bound them ourselves.
        let cardinality = 2 * (max_laws + 1) + 1;
        let per_law = move |instrument: &Instrument| {
            let laws: [&str; 2] = [Count::VotesAggregated.into(), Gauge::CurrentVoteTotals.into()];
            let stream = Stream::builder().with_cardinality_limit(cardinality);
            if laws.contains(&instrument.name()) { stream.build().ok() } else { None }
        };
        let provider = SdkMeterProvider::builder().with_reader(exporter).with_view(per_law).build();
        let metrics = Self::of(registry, provider, Laws::new(max_laws, totals), &health);
        metrics.instruments.cells(cell.map_or(1, |cell| cell.of));
        Ok(metrics)
    }

    /// Instruments that measure nothing, and a scrape without series. Health, logs and the shutdown
    /// summary work as usual.
    pub fn off(health: Arc<Health>) -> Self {
        let (provider, laws) =
            (SdkMeterProvider::builder().build(), Laws::new(0, ShownTotals::Full));
        Self::of(Registry::new(), provider, laws, &health)
    }

    fn of(
        registry: Registry,
        provider: SdkMeterProvider,
        laws: Laws,
        health: &Arc<Health>,
    ) -> Self {
        let instruments = Instruments::new(&provider.meter("vote-aggregator"), laws, health);
        Self { registry, instruments, _provider: provider }
    }

    /// All series in Prometheus' text format.
    ///
    /// # Errors
    /// When a series can't be encoded: a mistake of this service.
    pub fn scrape(&self) -> Result<String, MetricsError> {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .map_err(|error| MetricsError::new(&error))
    }
}

/// The metrics can't be set up or encoded.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(String);

impl MetricsError {
    pub(super) fn new(error: &prometheus::Error) -> Self {
        Self(error.to_string())
    }
}

/// False when `OTEL_METRICS_EXPORTER` says `none`. Any other value leaves `/metrics` as it is: a
/// platform may set `otlp` for all its programs, and Prometheus goes on scraping this one.
pub fn metrics_wanted() -> bool {
    std::env::var("OTEL_METRICS_EXPORTER").as_deref() != Ok("none")
}
