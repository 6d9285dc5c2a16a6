//! Whether anybody wants metrics, after OpenTelemetry's own variable.

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
