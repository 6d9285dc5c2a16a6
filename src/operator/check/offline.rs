//! What a configuration that can be loaded still tells about itself, without any server.
//!
//! A rule stays silent about the shipped defaults on this machine: they are meant.

use std::time::Duration;

use super::{Finding, Report, Severity, is_local};
use crate::platform::config::keys::{self, Key};
use crate::platform::config::{Config, Sources, SslMode, Suspicions};

use Severity::{Info, Warning};

/// After this `docker stop` kills, unless it is told otherwise.
const DOCKER_STOP: Duration = Duration::from_secs(10);
/// After this Kubernetes kills, unless it is told otherwise.
const KUBERNETES_STOP: Duration = Duration::from_secs(30);
/// Bodies held at once that are worth a thought: the memory limit of deploy/kubernetes.
const MUCH_MEMORY: u64 = 256 << 20;
/// RabbitMQ's own default; with a longer one a dead broker goes unnoticed for minutes.
const LONG_HEARTBEAT: Duration = Duration::from_secs(60);

/// Applies every rule.
pub fn configuration(config: &Config) -> Report {
    // Nothing but the shipped file: it is part of this program, and loads.
    let shipped = Config::load(&Sources::default()).ok();
    let mut rules = Rules { config, shipped, findings: Vec::new() };
    rules.rabbitmq();
    rules.postgres();
    rules.batches();
    rules.retries();
    rules.stop();
    rules.monitoring();
    let Suspicions { unread, expanded } = &config.suspicions;
    // Most likely meant in another way, and no setting's value.
    let suspicious = unread.iter().chain(expanded);
    let suspicious =
        suspicious.map(|problem| Finding { severity: Warning, ..Finding::from(problem) });
    Report {
        checked: vec![format!(
            "the configuration: {} settings, profile {}",
            config.redacted().len(),
            config.profile
        )],
        findings: rules.findings.into_iter().chain(suspicious).collect(),
    }
}

/// A configuration, the defaults that it is compared with, and what there is to say.
struct Rules<'a> {
    config: &'a Config,
    shipped: Option<Config>,
    findings: Vec<Finding>,
}

impl Rules<'_> {
    /// Whether `values` are as shipped.
    fn is_shipped<V: PartialEq>(&self, values: impl Fn(&Config) -> V) -> bool {
        self.shipped.as_ref().is_some_and(|shipped| values(shipped) == values(self.config))
    }

    fn add(
        &mut self,
        severity: Severity,
        key: &Key,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.findings.push(Finding::of_setting(severity, self.config, key, meaning, remedy));
    }

    fn warn(&mut self, key: &Key, meaning: impl Into<String>, remedy: impl Into<String>) {
        self.add(Warning, key, meaning, remedy);
    }

    fn rabbitmq(&mut self) {
        let rabbitmq = &self.config.rabbitmq;
        let (host, is_remote) = (&rabbitmq.host, !is_local(&rabbitmq.host));
        if rabbitmq.user == "guest" && is_remote {
            self.warn(
                &keys::RABBITMQ_USER,
                format!(
                    "RabbitMQ takes guest from its own machine alone, unless its loopback_users say \
                     otherwise: {host} would refuse us, and the service end with 77. Everybody \
                     knows guest's password"
                ),
                "make a user for this service (rabbitmqctl add_user, set_permissions) and set \
                 RABBITMQ_USER and RABBITMQ_PASSWORD",
            );
        }
        if !rabbitmq.tls && is_remote {
            self.warn(
                &keys::RABBITMQ_TLS,
                format!(
                    "the password and every vote travel in clear to {host}, and nothing proves that \
                     it is RabbitMQ that answers"
                ),
                "set RABBITMQ_TLS=true (port 5671), and RABBITMQ_TLS_CA_FILE where the authority is \
                 your own",
            );
        }
        if let Some(management) = &rabbitmq.management_url
            && management.url.scheme() == "http"
            && let Some(host) = management.url.host_str()
            && !is_local(host.trim_matches(['[', ']']))
        {
            self.warn(
                &keys::RABBITMQ_MANAGEMENT_URL,
                "RabbitMQ's password travels in clear with every question",
                "give an https address",
            );
        }
        if rabbitmq.heartbeat > LONG_HEARTBEAT {
            self.warn(
                &keys::RABBITMQ_HEARTBEAT_SECONDS,
                format!(
                    "a broker that vanishes without a word is noticed after {} s; nothing is \
                     counted until then",
                    2 * rabbitmq.heartbeat.as_secs()
                ),
                "set RABBITMQ_HEARTBEAT_SECONDS to 10",
            );
        }
    }

    fn postgres(&mut self) {
        let postgres = &self.config.postgres;
        let risk = match postgres.sslmode {
            SslMode::VerifyCa | SslMode::VerifyFull => None,
            SslMode::Disable => Some("the password and every vote travel in clear"),
            SslMode::Allow | SslMode::Prefer => Some(
                "encrypted only when whoever answers offers it, and the certificate is not checked: \
                 an attacker in between can read the password and every vote",
            ),
            SslMode::Require => Some(
                "encrypted, but the certificate is not checked: an attacker in between can pose as \
                 the server, and read and answer everything",
            ),
        };
        if let Some(risk) = risk.filter(|_| !is_local(&postgres.host)) {
            self.warn(
                &keys::POSTGRES_SSLMODE,
                format!("{risk} (host {})", postgres.host),
                "set POSTGRES_SSLMODE=verify-full, and POSTGRES_SSLROOTCERT where the authority is \
                 your own",
            );
        }
        if postgres.allow_lossy {
            self.warn(
                &keys::POSTGRES_ALLOW_LOSSY,
                "the service starts on a PostgreSQL that forgets commits in a crash: votes that \
                 were acknowledged would be lost",
                "remove it wherever votes matter",
            );
        }
    }

    fn batches(&mut self) {
        let Config { rabbitmq, batch, postgres, .. } = self.config;
        let (prefetch, size) = (rabbitmq.prefetch, batch.size);
        let connections = postgres.max_connections;
        if size == 1 {
            self.warn(
                &keys::BATCH_SIZE,
                "every vote is a transaction of its own, with a wait for the disk of its own: a \
                 fraction of the votes a second that batches reach",
                "set BATCH_SIZE to 100 or more; a batch that does not fill is counted after \
                 BATCH_TIMEOUT_SECONDS all the same",
            );
        }
        if self.config.batches_in_flight() <= 1
            && connections >= 2
            && !self.is_shipped(|config| (config.rabbitmq.prefetch, config.batch.size))
        {
            self.warn(
                &keys::RABBITMQ_PREFETCH_COUNT,
                format!(
                    "less than two batches of {size} fit into a prefetch of {prefetch}: one batch is \
                     on its way at a time, {} of {connections} connections are never used, and no \
                     vote comes while one is written",
                    connections - 1
                ),
                format!("set RABBITMQ_PREFETCH_COUNT to {}: four batches", (4 * size).min(65_535)),
            );
        }
        let fit = u32::from(prefetch) / u32::try_from(size).unwrap_or(u32::MAX).max(1);
        // With batches of one vote the size is what is wrong.
        if fit > connections && size > 1 {
            self.warn(
                &keys::POSTGRES_MAX_CONNECTIONS,
                format!(
                    "{fit} batches of {size} fit into the prefetch ({prefetch}), and {connections} \
                     can be on their way: the other votes wait here, where no other instance can \
                     take them"
                ),
                format!(
                    "set POSTGRES_MAX_CONNECTIONS to {fit}, or RABBITMQ_PREFETCH_COUNT to {}",
                    u64::from(connections) * size as u64
                ),
            );
        }
        let most = u64::from(prefetch) * batch.max_message_bytes as u64;
        if most > MUCH_MEMORY {
            self.warn(
                &keys::RABBITMQ_PREFETCH_COUNT,
                format!(
                    "{prefetch} messages of up to {} bytes (batch.max_message_bytes) can be held at \
                     once: {} MiB, before anything else is counted in",
                    batch.max_message_bytes,
                    most >> 20
                ),
                "lower RABBITMQ_PREFETCH_COUNT or MAX_MESSAGE_BYTES, or see that the memory is \
                 there",
            );
        }
    }

    fn retries(&mut self) {
        let attempts = self.config.retry.max_attempts;
        if attempts == 0 {
            self.warn(
                &keys::MAX_RETRY_ATTEMPTS,
                "a connection to PostgreSQL that drops once gives all votes at hand back to the queue \
                 and stops counting until a probe write succeeds; each time counts towards the queue's \
                 delivery limit",
                "set MAX_RETRY_ATTEMPTS to 3",
            );
        }
        if attempts > 0 && self.config.retry.delay.is_zero() {
            self.warn(
                &keys::RETRY_DELAY_SECONDS,
                format!(
                    "all {attempts} retries follow at once: a PostgreSQL that restarts is not back \
                     by then, and the votes go back to the queue"
                ),
                "set RETRY_DELAY_SECONDS to 1",
            );
        }
        let (delays, deadline) = (self.config.retry_delays(), self.config.batch_deadline());
        if delays >= deadline {
            self.warn(
                &keys::MAX_RETRY_ATTEMPTS,
                format!(
                    "the delays between retries take {} s in all, but a batch is given up after {} \
                     s, half of the broker's consumer timeout: the last retries never happen",
                    delays.as_secs(),
                    deadline.as_secs()
                ),
                "lower MAX_RETRY_ATTEMPTS or RETRY_DELAY_SECONDS",
            );
        }
    }

    fn stop(&mut self) {
        let (stop, statement) =
            (self.config.shutdown.timeout, self.config.postgres.statement_timeout);
        if stop >= DOCKER_STOP {
            let killers = if stop < KUBERNETES_STOP {
                "docker stop kills after 10 s"
            } else {
                "docker stop kills after 10 s, Kubernetes after 30 s"
            };
            self.warn(
                &keys::SHUTDOWN_TIMEOUT_SECONDS,
                format!(
                    "{killers} unless configured otherwise, which is no longer than a stop may take \
                     here: nothing is lost by it, and what was under way is done again by the next \
                     instance"
                ),
                format!(
                    "lower SHUTDOWN_TIMEOUT_SECONDS, or give more than {} s to docker stop (--time, \
                     stop_grace_period) or the pod (terminationGracePeriodSeconds)",
                    stop.as_secs_f64()
                ),
            );
        }
        // The shipped eight seconds are below the shipped ten of a statement, and docker stop's ten
        // leave no choice: only less than that is a mistake.
        let is_lowered =
            self.shipped.as_ref().is_some_and(|shipped| stop < shipped.shutdown.timeout);
        if is_lowered && stop < statement {
            self.warn(
                &keys::SHUTDOWN_TIMEOUT_SECONDS,
                format!(
                    "a statement may take {} s (postgres.statement_timeout_seconds): a slow one is \
                     cut off by a stop, which ends with 75, and its votes are delivered again",
                    statement.as_secs_f64()
                ),
                "set SHUTDOWN_TIMEOUT_SECONDS to 8, or lower POSTGRES_STATEMENT_TIMEOUT_SECONDS",
            );
        }
    }

    fn monitoring(&mut self) {
        if self.config.monitoring.reconcile_interval.is_none() {
            self.add(
                Info,
                &keys::RECONCILE_INTERVAL_SECONDS,
                "the service never compares its totals with the audit",
                "set it on one instance at least, or run vote-aggregator recount now and then",
            );
        }
        if self.config.monitoring.port == 0 {
            self.add(
                Info,
                &keys::PROMETHEUS_PORT,
                "the port is another one at each start, known from the log alone: neither Prometheus \
                 nor vote-aggregator health-check finds it",
                "set PROMETHEUS_PORT, 8001 say",
            );
        }
    }
}
