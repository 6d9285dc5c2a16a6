//! Findings about a configuration alone, without any server.
//!
//! No rule warns of the shipped defaults on this machine.

use std::time::Duration;

use super::{Finding, Report, Severity, is_local};
use crate::platform::config::keys::{self, Key};
use crate::platform::config::{Config, Sources, SslMode, Suspicions};

use Severity::{Info, Warning};

/// `docker stop` kills after this time by default.
const DOCKER_STOP: Duration = Duration::from_secs(10);
/// Kubernetes kills after this time by default.
const KUBERNETES_STOP: Duration = Duration::from_secs(30);
/// Bodies in memory that are worth a warning: the memory limit of deploy/kubernetes.
const MUCH_MEMORY: u64 = 256 << 20;
/// RabbitMQ's own default; with a longer one a dead broker goes unnoticed for minutes.
const LONG_HEARTBEAT: Duration = Duration::from_secs(60);

/// Applies every rule.
pub fn configuration(config: &Config) -> Report {
    let shipped = Config::load(&Sources::default()).expect("the program's own defaults load");
    let mut rules = Rules { config, shipped, findings: Vec::new() };
    rules.rabbitmq();
    rules.postgres();
    rules.batches();
    rules.retries();
    rules.stop();
    rules.monitoring();
    let Suspicions { unread, expanded } = &config.suspicions;
    let suspicious = unread.iter().chain(expanded).map(Finding::from);
    rules.findings.extend(suspicious.map(|finding| Finding { severity: Warning, ..finding }));
    let settings = config.redacted().len();
    let checked = format!("the configuration: {settings} settings, profile {}", config.profile);
    Report { checked: vec![checked], findings: rules.findings }
}

/// A configuration and the defaults that it is compared with.
struct Rules<'a> {
    config: &'a Config,
    shipped: Config,
    findings: Vec<Finding>,
}

impl Rules<'_> {
    fn warn(&mut self, key: &Key, meaning: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding::of_setting(Warning, self.config, key, meaning, remedy));
    }

    fn rabbitmq(&mut self) {
        let rabbitmq = &self.config.rabbitmq;
        let remote = rabbitmq.addresses().into_iter().map(|it| it.host).find(|it| !is_local(it));
        if let Some(host) = &remote
            && rabbitmq.user == "guest"
        {
            let meaning = format!(
                "RabbitMQ accepts guest only from its own machine by default (loopback_users): {host} \
                 would refuse the login, and the service would end with 77"
            );
            let remedy = "make a user for this service (rabbitmqctl add_user, set_permissions) and \
                          set RABBITMQ_USER and RABBITMQ_PASSWORD";
            self.warn(&keys::RABBITMQ_USER, meaning, remedy);
        }
        if let Some(host) = &remote
            && !rabbitmq.tls
        {
            let meaning = format!(
                "the password and every vote are sent unencrypted to {host}, which is not \
                 authenticated"
            );
            let remedy = "set RABBITMQ_TLS=true (port 5671), and RABBITMQ_TLS_CA_FILE where the \
                          authority is your own";
            self.warn(&keys::RABBITMQ_TLS, meaning, remedy);
        }
        if let Some(management) = &rabbitmq.management_url
            && management.url.scheme() == "http"
            && let Some(host) = management.url.host_str()
            && !is_local(host.trim_matches(['[', ']']))
        {
            let meaning = "RabbitMQ's password is sent unencrypted with every request";
            self.warn(&keys::RABBITMQ_MANAGEMENT_URL, meaning, "give an https address");
        }
        if rabbitmq.heartbeat > LONG_HEARTBEAT {
            let meaning = format!(
                "a dead connection to the broker is noticed after {} s; nothing is counted until then",
                2 * rabbitmq.heartbeat.as_secs()
            );
            let remedy = "set RABBITMQ_HEARTBEAT_SECONDS to 10";
            self.warn(&keys::RABBITMQ_HEARTBEAT_SECONDS, meaning, remedy);
        }
    }

    fn postgres(&mut self) {
        let postgres = &self.config.postgres;
        let risk = match postgres.sslmode {
            _ if postgres.addresses().iter().all(|it| is_local(&it.host)) => None,
            SslMode::VerifyCa | SslMode::VerifyFull => None,
            SslMode::Disable => Some("the password and every vote are sent unencrypted"),
            SslMode::Allow | SslMode::Prefer => Some(
                "encrypted only if the server offers it, and the certificate is not checked: a man in \
                 the middle can read the password and every vote",
            ),
            SslMode::Require => Some(
                "encrypted, but the certificate is not checked: a man in the middle can pose as the \
                 server",
            ),
        };
        if let Some(risk) = risk {
            let remedy = "set POSTGRES_SSLMODE=verify-full, and POSTGRES_SSLROOTCERT where the \
                          authority is your own";
            self.warn(&keys::POSTGRES_SSLMODE, format!("{risk} (host {})", postgres.host), remedy);
        }
        if postgres.allow_lossy {
            let meaning =
                "the service starts on a PostgreSQL that may lose acknowledged votes in a crash";
            self.warn(&keys::POSTGRES_ALLOW_LOSSY, meaning, "remove it wherever votes matter");
        }
    }

    fn batches(&mut self) {
        let Config { rabbitmq, batch, postgres, .. } = self.config;
        let (prefetch, size) = (rabbitmq.prefetch, batch.size);
        let connections = postgres.max_connections;
        if size == 1 {
            let meaning = "every vote is a transaction that waits for the disk: throughput is a \
                           fraction of that of batches";
            let remedy = "set BATCH_SIZE to 100 or more; BATCH_TIMEOUT_SECONDS bounds the wait for a \
                          batch to fill";
            self.warn(&keys::BATCH_SIZE, meaning, remedy);
        }
        let is_shipped =
            (prefetch, size) == (self.shipped.rabbitmq.prefetch, self.shipped.batch.size);
        if self.config.batches_in_flight() <= 1 && connections >= 2 && !is_shipped {
            let meaning = format!(
                "less than two batches of {size} fit into a prefetch of {prefetch}: one batch is in \
                 flight at a time, and {} of {connections} connections are never used",
                connections - 1
            );
            let four = (4 * size).min(65_535);
            let remedy = format!("set RABBITMQ_PREFETCH_COUNT to {four}: four batches");
            self.warn(&keys::RABBITMQ_PREFETCH_COUNT, meaning, remedy);
        }
        let fit = u32::from(prefetch) / u32::try_from(size).unwrap_or(u32::MAX).max(1);
        // With batches of one vote the size is what is wrong.
        if fit > connections && size > 1 {
            let meaning = format!(
                "{fit} batches of {size} fit into the prefetch ({prefetch}), and {connections} can be \
                 in flight: the other votes wait, and no other instance can count them"
            );
            let remedy = format!(
                "set POSTGRES_MAX_CONNECTIONS to {fit}, or RABBITMQ_PREFETCH_COUNT to {}",
                u64::from(connections) * size as u64
            );
            self.warn(&keys::POSTGRES_MAX_CONNECTIONS, meaning, remedy);
        }
        let most = u64::from(prefetch) * batch.max_message_bytes as u64;
        if most > MUCH_MEMORY {
            let meaning = format!(
                "{prefetch} messages of up to {} bytes (batch.max_message_bytes) can be held at once: \
                 {} MiB, without overhead",
                batch.max_message_bytes,
                most >> 20
            );
            let remedy =
                "lower RABBITMQ_PREFETCH_COUNT or MAX_MESSAGE_BYTES, or provide the memory";
            self.warn(&keys::RABBITMQ_PREFETCH_COUNT, meaning, remedy);
        }
    }

    fn retries(&mut self) {
        let attempts = self.config.retry.max_attempts;
        if attempts == 0 {
            let meaning = "one lost connection to PostgreSQL requeues all prefetched votes, and stops \
                           counting until a probe write succeeds; each requeue counts towards the \
                           queue's delivery limit";
            self.warn(&keys::MAX_RETRY_ATTEMPTS, meaning, "set MAX_RETRY_ATTEMPTS to 3");
        } else if self.config.retry.delay.is_zero() {
            let meaning = format!(
                "all {attempts} retries follow at once: if PostgreSQL restarts, they all fail, and the \
                 votes are requeued"
            );
            self.warn(&keys::RETRY_DELAY_SECONDS, meaning, "set RETRY_DELAY_SECONDS to 1");
        }
        let (delays, deadline) = (self.config.retry_delays(), self.config.batch_deadline());
        if delays >= deadline {
            let meaning = format!(
                "the delays between retries take {} s in all, but a batch is given up after {} s, \
                 half of the broker's consumer timeout: the last retries never happen",
                delays.as_secs(),
                deadline.as_secs()
            );
            let remedy = "lower MAX_RETRY_ATTEMPTS or RETRY_DELAY_SECONDS";
            self.warn(&keys::MAX_RETRY_ATTEMPTS, meaning, remedy);
        }
    }

    fn stop(&mut self) {
        let (stop, statement) =
            (self.config.shutdown.timeout, self.config.postgres.statement_timeout);
        if stop >= DOCKER_STOP {
            let kubernetes = if stop < KUBERNETES_STOP { "" } else { ", Kubernetes after 30 s" };
            let meaning = format!(
                "docker stop kills after 10 s{kubernetes} unless configured otherwise, before a stop \
                 may have finished: nothing is lost, and the next instance repeats the batches in flight"
            );
            let remedy = format!(
                "lower SHUTDOWN_TIMEOUT_SECONDS, or give more than {} s to docker stop (--time, \
                 stop_grace_period) or the pod (terminationGracePeriodSeconds)",
                stop.as_secs_f64()
            );
            self.warn(&keys::SHUTDOWN_TIMEOUT_SECONDS, meaning, remedy);
        }
        // The shipped eight seconds are below the shipped ten of a statement, and docker stop's ten
        // leave no choice: only less than that is a mistake.
        if stop < self.shipped.shutdown.timeout && stop < statement {
            let meaning = format!(
                "a statement may take {} s (postgres.statement_timeout_seconds): a stop interrupts a \
                 slow one and ends with 75; its votes are delivered again",
                statement.as_secs_f64()
            );
            let remedy =
                "set SHUTDOWN_TIMEOUT_SECONDS to 8, or lower POSTGRES_STATEMENT_TIMEOUT_SECONDS";
            self.warn(&keys::SHUTDOWN_TIMEOUT_SECONDS, meaning, remedy);
        }
    }

    fn monitoring(&mut self) {
        let mut note = |key, meaning, remedy| {
            self.findings.push(Finding::of_setting(Info, self.config, key, meaning, remedy));
        };
        if self.config.monitoring.reconcile_interval.is_none() {
            let meaning = "the service never compares its totals with the audit";
            let remedy =
                "set it on one instance at least, or run vote-aggregator recount regularly";
            note(&keys::RECONCILE_INTERVAL_SECONDS, meaning, remedy);
        }
        if self.config.monitoring.port == 0 {
            let meaning = "the port differs at each start, and only the log shows it: neither \
                           Prometheus nor vote-aggregator health-check finds it";
            note(&keys::PROMETHEUS_PORT, meaning, "set PROMETHEUS_PORT, for example to 8001");
        }
    }
}
