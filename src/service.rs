//! The service, in its order: metrics, database, totals, broker, counting, stop.

mod acknowledged;
mod background;
mod queue_warnings;
mod reconciler;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::acknowledged::Seen;
pub use self::background::TaskEnded;
use self::background::{Background, supervised};
use self::reconciler::Reconciler;
use crate::adapters::broker::{QueueWatch, RabbitMq};
use crate::adapters::store::{self, PgStore, StartError, Totals};
use crate::counting::pipeline::{Acknowledged, Limits, PLAIN_AFTER, RetryPolicy};
use crate::counting::supervisor::Supervisor;
use crate::model::ports::{Fault, OpenError};
use crate::platform::config::Config;
use crate::platform::http;
use crate::platform::retry::Jitter;
use crate::platform::service_manager::ServiceManager;
use crate::platform::telemetry::{
    Health, Instruments, Metrics, MetricsError, Spans, Suppressed, dropped_lines, metrics_wanted,
    seconds,
};

/// How often the counting runtime shows that it runs its tasks.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often the database is asked for something, at least.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How often the broker is asked for the depths of its queues, and how long it may take.
const POLL_EVERY: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_secs(8);
/// Most deliveries that one ack covers. The broker sends as many again at once, and where they are
/// on disk, behind a queue of millions, 1,000 cost it more than 500 (docs/performance.md).
const MOST_ACKED: u64 = 500;
/// The log message of an outage that no batch meets; it is rate-limited.
const NO_ANSWER: &str = "PostgreSQL does not answer";
/// How long closing the pool may take: by then nothing is in a transaction.
const POOL_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the service did not start, or ended before it was stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Bind(#[from] http::BindError),
    #[error(transparent)]
    Store(#[from] StartError),
    #[error(transparent)]
    Broker(#[from] OpenError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Http(#[from] http::StartError),
    #[error(transparent)]
    TaskEnded(#[from] TaskEnded),
}

/// Counts votes until `stop`; deliveries already received are settled. `manager` is notified of the state.
///
/// # Errors
/// [`ServiceError`]: what keeps the service from starting, which servers that are down do not, or
/// the background task that ended.
pub async fn run(
    config: &Config,
    manager: Option<&ServiceManager>,
    stop: &CancellationToken,
) -> Result<(), ServiceError> {
    run_with(config, manager, stop, Background::new()).await
}

async fn run_with(
    config: &Config,
    manager: Option<&ServiceManager>,
    stop: &CancellationToken,
    (background, mut ended): (Background, UnboundedReceiver<TaskEnded>),
) -> Result<(), ServiceError> {
    let health = Arc::new(Health::default());
    // A child, so that a task that ends can stop counting as a signal does.
    let stop = stop.child_token();
    let mut counting = Box::pin(count(config, Arc::clone(&health), background, &stop));
    // In the task that counts, so that the watchdog is not notified while that task is blocked.
    let attending =
        manager.map(|manager| supervised("service manager", manager.attend(&health, &stop)));
    let ended = tokio::select! {
        result = &mut counting => return result,
        Some(ended) = ended.recv() => ended,
        Some(ended) = OptionFuture::from(attending) => ended,
    };
    tracing::error!(task = ended.name, "stopping: {ended}");
    stop.cancel();
    // As at a signal: deliveries already received are settled, unless that takes too long.
    match tokio::time::timeout(config.shutdown.timeout, counting).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("counting ended with an error, too: {error}"),
        Err(_) => tracing::error!("deliveries were not settled within SHUTDOWN_TIMEOUT_SECONDS"),
    }
    Err(ended.into())
}

async fn count(
    config: &Config,
    health: Arc<Health>,
    mut background: Background,
    stop: &CancellationToken,
) -> Result<(), ServiceError> {
    let began = Instant::now();
    health.watch_hosts([config.rabbitmq.host.clone(), config.postgres.host.clone()]);
    let metrics = if metrics_wanted() {
        let monitoring = &config.monitoring;
        let (laws, totals) = (monitoring.max_laws, monitoring.totals);
        Metrics::new(laws, totals, Arc::clone(&health), config.rabbitmq.cell)?
    } else {
        tracing::warn!("OTEL_METRICS_EXPORTER=none: /metrics shows nothing, no alert can fire");
        Metrics::off(Arc::clone(&health))
    };
    let mut instruments = metrics.instruments.clone();
    instruments.spans = Spans::new(config);
    let jitter = Jitter::from_entropy();

    let address = SocketAddr::new(config.monitoring.host, config.monitoring.port);
    let listener = http::bind(address, http::METRICS)?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "metrics and health");
    }
    let (beat, heartbeat) = watch::channel(());
    background.spawn("heartbeat", send_heartbeats(beat));
    let sources =
        http::Sources { metrics, health: Arc::clone(&health), stop: stop.clone(), heartbeat };
    background.spawn("http", http::start(listener, sources)?.ended());

    let preparing = store::prepare(config, &jitter, &health);
    let Some(store) = stop.run_until_cancelled(preparing).await.transpose()? else {
        return Ok(());
    };
    health.postgres_answers();
    let pool = store.clone();
    instruments.watch_pool(move || pool.pool_use());
    let acknowledged = Arc::<Acknowledged>::default();
    let mut watch = Watch {
        store: store.clone(),
        instruments: instruments.clone(),
        health: Arc::clone(&health),
        acknowledged: Arc::clone(&acknowledged),
        accepted: config.postgres.accept_lost.clone(),
        seen: Seen::default(),
        max_laws: config.monitoring.max_laws,
        refresh: config.monitoring.totals_refresh,
    };
    // Before the first vote is counted, so that the gauges are right from the first scrape on.
    watch.refresh_totals().await;
    // With an open alarm the service must not be ready even for a moment.
    watch.check_acknowledged().await;
    background.spawn("totals and database health", watch.run());
    if let Some(interval) = config.monitoring.reconcile_interval {
        let reconciler = Reconciler {
            store: store.clone(),
            instruments: instruments.clone(),
            jitter: Jitter::from_entropy(),
            interval,
            shown: config.monitoring.totals,
            differed: false,
            alone: false,
        };
        background.spawn("reconciler", reconciler.run());
    }
    let limited = instruments.clone();
    let summaries = async move { limited.log_limiter.run(log_suppressed).await };
    background.spawn("suppressed log lines", summaries);
    background.spawn("dropped log lines", warn_of_dropped_lines());
    let queues = QueueWatch::new(config.rabbitmq.clone());
    background.spawn("queue depths", watch_queues(queues, instruments.clone()));

    let observer = queue_warnings::observer(config.rabbitmq.queue.clone(), Arc::clone(&health));
    let broker = RabbitMq::observed(config.rabbitmq.clone(), observer);
    let supervisor = Supervisor {
        broker: &broker,
        store: &store,
        limits: &limits(config),
        prefetch: config.rabbitmq.prefetch,
        jitter: &jitter,
        instruments: &instruments,
        health: &health,
        acknowledged: &acknowledged,
    };
    let shutdown_summary = ShutdownSummary { instruments: instruments.clone(), began };
    supervisor.run(stop).await?;

    if tokio::time::timeout(POOL_CLOSE_TIMEOUT, store.close()).await.is_err() {
        tracing::warn!("the connections to PostgreSQL did not close in time");
    }
    drop(shutdown_summary);
    Ok(())
}

/// Logs the summary when counting ends, also when it is dropped half-way.
struct ShutdownSummary {
    instruments: Instruments,
    began: Instant,
}

impl Drop for ShutdownSummary {
    fn drop(&mut self) {
        self.instruments.log_limiter.flush().iter().for_each(log_suppressed);
        let elapsed = seconds(self.began.elapsed());
        tracing::info!(elapsed, "stopped; {}", self.instruments.deliveries());
    }
}

fn log_suppressed(suppressed: &Suppressed) {
    let Suppressed { reason, lines, elapsed, .. } = *suppressed;
    tracing::warn!(reason, suppressed = lines, elapsed = seconds(elapsed), "{suppressed}");
}

fn limits(config: &Config) -> Limits {
    Limits {
        batch_size: config.batch.size,
        batch_timeout: config.batch.timeout,
        batch_deadline: config.batch_deadline(),
        in_flight: config.batches_in_flight(),
        max_message_bytes: config.batch.max_message_bytes,
        cell: config.rabbitmq.cell,
        most_acked: MOST_ACKED,
        plain_after: PLAIN_AFTER,
        retry: RetryPolicy { max_attempts: config.retry.max_attempts, delay: config.retry.delay },
    }
}

/// Logs that lines are missing from the log, once it takes lines again.
async fn warn_of_dropped_lines() {
    let mut before = 0;
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let lines = dropped_lines() - before;
        if lines > 0 {
            before += lines;
            tracing::warn!(
                lines,
                "log lines were dropped: standard error was not read fast enough"
            );
        }
    }
}

/// Sends a heartbeat a second, as long as this runtime runs its tasks.
async fn send_heartbeats(beat: watch::Sender<()>) {
    loop {
        beat.send_replace(());
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Keeps the depths of the queues up to date, until it is dropped.
async fn watch_queues(mut queues: QueueWatch, instruments: Instruments) {
    loop {
        let polled = tokio::time::timeout(POLL_TIMEOUT, queues.poll()).await;
        if let Ok(Err(error)) = &polled {
            // The session meets the same and warns of it.
            tracing::debug!("the depth of the queues is not known: {error}");
        }
        instruments.queue_depths(polled.ok().and_then(Result::ok).unwrap_or_default());
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// Polls what no batch shows: totals that other instances change, acknowledged votes that are lost, a
/// database that is down while no vote arrives.
struct Watch {
    store: PgStore,
    instruments: Instruments,
    health: Arc<Health>,
    acknowledged: Arc<Acknowledged>,
    /// POSTGRES_ACCEPT_LOST: the alarms that an operator accepted.
    accepted: Vec<String>,
    seen: Seen,
    max_laws: usize,
    refresh: Duration,
}

impl Watch {
    async fn run(mut self) {
        let mut refreshed = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.refresh.min(PING_EVERY)) => {}
                // After a reconnect it may be another server.
                () = self.store.reconnected() => self.store.close_reader().await,
            }
            if refreshed.elapsed() >= self.refresh {
                self.refresh_totals().await;
                refreshed = Instant::now();
            }
            self.check_acknowledged().await;
        }
    }

    async fn check_acknowledged(&mut self) {
        let found = self.look_up_acknowledged().await;
        self.note(found);
    }

    async fn refresh_totals(&mut self) {
        let mark = self.instruments.refresh_begins();
        let totals = self.store.totals(self.instruments.named_laws(), self.max_laws).await;
        let refreshed = totals.map(|Totals { laws, rest }| {
            self.instruments.totals_refreshed(mark, laws, rest);
        });
        self.note(refreshed);
        self.instruments.standbys(self.store.standbys().await.ok());
    }

    /// The log has the details of an outage: readiness shows a general phrase.
    fn note(&self, answered: Result<(), Fault>) {
        match answered {
            Ok(()) => self.health.postgres_answers(),
            Err(fault) => {
                if self.instruments.log_limiter.admit(NO_ANSWER, fault.class.as_str()) {
                    tracing::warn!(sqlstate = fault.sqlstate, "{NO_ANSWER}: {fault}");
                }
                self.health.postgres_failed(&fault);
            }
        }
    }
}

#[cfg(test)]
mod tests;
