use super::*;
use crate::platform::config::ShownTotals;

/// The reply to a commit may be read after the loss of another connection was noticed.
#[tokio::test(start_paused = true)]
async fn a_reconnect_is_counted_once_and_by_a_later_transaction_only() {
    let metrics = Metrics::new(1, ShownTotals::Full, Arc::default(), None).expect("metrics");
    let reconnects = || {
        let scrape = metrics.scrape().expect("encodable");
        let series = "reconnects_total{side=\"postgres\"}";
        let line = scrape.lines().find(|line| line.starts_with(series)).map(str::to_owned);
        line.expect("touched")
    };
    let second = || tokio::time::advance(Duration::from_secs(1));
    let commit = |begun| metrics.instruments.committed(&Counted::default(), begun);
    let earlier = Instant::now();
    second().await;
    metrics.instruments.database_fault(Class::UnknownOutcome);
    metrics.instruments.database_fault(Class::Reconnect);
    second().await;
    commit(earlier);
    assert!(reconnects().ends_with(" 0"), "{}", reconnects());
    commit(Instant::now());
    commit(Instant::now());
    assert!(reconnects().ends_with(" 1"), "{}", reconnects());
}
