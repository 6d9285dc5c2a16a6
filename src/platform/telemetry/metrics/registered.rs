//! Series of commands that have a registry of their own: a variant's name behind the command's is the metric's, its
//! documentation is the help text.

use prometheus::core::Collector;
use prometheus::{Gauge, IntCounter, IntGauge, Opts, Registry};
use strum::EnumMessage;

use super::series::help;

/// Registers what it returns.
pub(super) struct Registered<'r>(pub &'r Registry);

impl Registered<'_> {
    pub fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    pub fn gauge(&self, opts: Opts) -> prometheus::Result<Gauge> {
        self.add(Gauge::with_opts(opts)?)
    }

    pub fn int_gauge(&self, opts: Opts) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::with_opts(opts)?)
    }

    pub fn counter(&self, opts: Opts) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::with_opts(opts)?)
    }
}

/// Name and help text of a series.
pub(super) fn opts<S>(command: &str, series: &S) -> Opts
where
    S: EnumMessage,
    for<'s> &'s S: Into<&'static str>,
{
    let name: &str = series.into();
    Opts::new(format!("{command}_{name}"), help(series))
}
