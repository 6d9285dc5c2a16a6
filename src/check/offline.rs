//! What a configuration that can be loaded still tells about itself, without any server.
//!
//! A rule stays silent about the shipped defaults on this machine: they are meant.

use std::time::Duration;

use super::{Finding, Report, Severity, is_local};
use crate::config::{Config, Sources, SslMode, Suspicions, keys};

use Severity::{Info, Warning};

/// After this `docker stop` kills, unless it is told otherwise.
const DOCKER_STOP: Duration = Duration::from_secs(10);
/// After this Kubernetes kills, unless it is told otherwise.
const KUBERNETES_STOP: Duration = Duration::from_secs(30);
/// Bodies held at once that are worth a thought: the memory limit of deploy/kubernetes.
const MUCH_MEMORY: u64 = 256 << 20;
/// RabbitMQ's own default; with a longer one a dead broker goes unnoticed for minutes.
const LONG_HEARTBEAT: Duration = Duration::from_secs(60);

/// A configuration, and the defaults that it is held against.
struct Given<'a> {
    config: &'a Config,
    shipped: Option<Config>,
}

type Rule = fn(&Given<'_>) -> Option<Finding>;

const RULES: &[Rule] = &[
    guest_from_afar,
    rabbitmq_in_clear,
    management_in_clear,
    heartbeat_too_long,
    postgres_unproven,
    losses_allowed,
    one_vote_a_batch,
    one_batch_at_a_time,
    more_batches_than_connections,
    much_in_memory,
    no_retries,
    retries_without_a_pause,
    retries_past_the_deadline,
    killed_before_it_stops,
    stops_before_a_statement_ends,
    never_reconciled,
    unknown_port,
];

/// Applies every rule.
pub fn configuration(config: &Config) -> Report {
    // Nothing but the shipped file: it is part of this program, and loads.
    let given = Given { config, shipped: Config::load(&Sources::default()).ok() };
    Report {
        checked: vec![format!(
            "the configuration: {} settings, profile {}",
            config.redacted().len(),
            config.profile
        )],
        findings: RULES.iter().filter_map(|rule| rule(&given)).chain(suspicious(config)).collect(),
    }
}

impl Given<'_> {
    /// Whether `values` are as shipped.
    fn is_shipped<V: PartialEq>(&self, values: impl Fn(&Config) -> V) -> bool {
        self.shipped.as_ref().is_some_and(|shipped| values(shipped) == values(self.config))
    }
}

/// What was most likely meant in another way, and is no setting's value.
fn suspicious(config: &Config) -> impl Iterator<Item = Finding> {
    let Suspicions { unread, expanded } = &config.suspicions;
    let all = unread.iter().chain(expanded);
    all.map(|problem| Finding { severity: Warning, ..Finding::from(problem) })
}

fn guest_from_afar(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    (config.rabbitmq.user == "guest" && !is_local(&config.rabbitmq.host)).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::RABBITMQ_USER,
            format!(
                "RabbitMQ takes guest from its own machine alone, unless its loopback_users say \
                 otherwise: {} would refuse us, and the service end with 77. Everybody knows \
                 guest's password",
                config.rabbitmq.host
            ),
            "make a user for this service (rabbitmqctl add_user, set_permissions) and set \
             RABBITMQ_USER and RABBITMQ_PASSWORD",
        )
    })
}

fn rabbitmq_in_clear(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    (!config.rabbitmq.tls && !is_local(&config.rabbitmq.host)).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::RABBITMQ_TLS,
            format!(
                "the password and every vote travel in clear to {}, and nothing proves that it is \
                 RabbitMQ that answers",
                config.rabbitmq.host
            ),
            "set RABBITMQ_TLS=true (port 5671), and RABBITMQ_TLS_CA_FILE where the authority is \
             your own",
        )
    })
}

fn management_in_clear(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    let url = &config.rabbitmq.management_url.as_ref()?.url;
    (url.scheme() == "http" && !is_local(url.host_str()?.trim_matches(['[', ']']))).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::RABBITMQ_MANAGEMENT_URL,
            "RabbitMQ's password travels in clear with every question",
            "give an https address",
        )
    })
}

fn heartbeat_too_long(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    (config.rabbitmq.heartbeat > LONG_HEARTBEAT).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::RABBITMQ_HEARTBEAT_SECONDS,
            format!(
                "a broker that vanishes without a word is noticed after {} s; nothing is counted \
                 until then",
                2 * config.rabbitmq.heartbeat.as_secs()
            ),
            "set RABBITMQ_HEARTBEAT_SECONDS to 10",
        )
    })
}

fn postgres_unproven(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    let host = &config.postgres.host;
    let risk = match config.postgres.sslmode {
        SslMode::VerifyCa | SslMode::VerifyFull => return None,
        SslMode::Disable => "the password and every vote travel in clear",
        SslMode::Allow | SslMode::Prefer => {
            "encrypted only when whoever answers offers it, and the certificate is not checked: \
             somebody in between can read the password and every vote"
        }
        SslMode::Require => {
            "encrypted, but the certificate is not checked: somebody in between can pose as the \
             server, and read and answer everything"
        }
    };
    (!is_local(host)).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::POSTGRES_SSLMODE,
            format!("{risk} (host {host})"),
            "set POSTGRES_SSLMODE=verify-full, and POSTGRES_SSLROOTCERT where the authority is \
             your own",
        )
    })
}

fn losses_allowed(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    config.postgres.allow_lossy.then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::POSTGRES_ALLOW_LOSSY,
            "the service starts on a PostgreSQL that forgets commits in a crash: votes that were \
             acknowledged would be gone for ever",
            "remove it wherever votes matter",
        )
    })
}

fn one_vote_a_batch(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    (config.batch.size == 1).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::BATCH_SIZE,
            "every vote is a transaction of its own, with a wait for the disk of its own: a \
             fraction of the votes a second that batches reach",
            "set BATCH_SIZE to 100 or more; a batch that does not fill is counted after \
             BATCH_TIMEOUT_SECONDS all the same",
        )
    })
}

fn one_batch_at_a_time(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    let connections = config.postgres.max_connections;
    if config.batches_in_flight() > 1
        || connections < 2
        || given.is_shipped(|config| (config.rabbitmq.prefetch, config.batch.size))
    {
        return None;
    }
    let (prefetch, size) = (config.rabbitmq.prefetch, config.batch.size);
    Some(Finding::of_setting(
        Warning,
        config,
        &keys::RABBITMQ_PREFETCH_COUNT,
        format!(
            "less than two batches of {size} fit into a prefetch of {prefetch}: one batch is on \
             its way at a time, {} of {connections} connections are never used, and no vote comes \
             while one is written",
            connections - 1
        ),
        format!("set RABBITMQ_PREFETCH_COUNT to {}: four batches", (4 * size).min(65_535)),
    ))
}

fn more_batches_than_connections(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    let size = config.batch.size;
    let fit = u32::from(config.rabbitmq.prefetch) / u32::try_from(size).unwrap_or(u32::MAX).max(1);
    let connections = config.postgres.max_connections;
    // With batches of one vote the size is what is wrong.
    (fit > connections && size > 1).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::POSTGRES_MAX_CONNECTIONS,
            format!(
                "{fit} batches of {size} fit into the prefetch ({}), and {connections} can be on \
                 their way: the other votes wait here, where no other instance can take them",
                config.rabbitmq.prefetch
            ),
            format!(
                "set POSTGRES_MAX_CONNECTIONS to {fit}, or RABBITMQ_PREFETCH_COUNT to {}",
                u64::from(connections) * size as u64
            ),
        )
    })
}

fn much_in_memory(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    let prefetch = u64::from(config.rabbitmq.prefetch);
    let most = prefetch * config.batch.max_message_bytes as u64;
    (most > MUCH_MEMORY).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::RABBITMQ_PREFETCH_COUNT,
            format!(
                "{prefetch} messages of up to {} bytes (batch.max_message_bytes) can be held at \
                 once: {} MiB, before anything else is counted in",
                config.batch.max_message_bytes,
                most >> 20
            ),
            "lower RABBITMQ_PREFETCH_COUNT or MAX_MESSAGE_BYTES, or see that the memory is there",
        )
    })
}

fn no_retries(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    (config.retry.max_attempts == 0).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::MAX_RETRY_ATTEMPTS,
            "a connection to PostgreSQL that drops once gives all votes at hand back to the queue \
             and stops counting until a probe write succeeds; each time counts towards the queue's \
             delivery limit",
            "set MAX_RETRY_ATTEMPTS to 3",
        )
    })
}

fn retries_without_a_pause(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    (config.retry.max_attempts > 0 && config.retry.delay.is_zero()).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::RETRY_DELAY_SECONDS,
            format!(
                "all {} retries follow at once: a PostgreSQL that restarts is not back by then, and \
                 the votes go back to the queue",
                config.retry.max_attempts
            ),
            "set RETRY_DELAY_SECONDS to 1",
        )
    })
}

/// Retries that never happen.
fn retries_past_the_deadline(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    let (delays, deadline) = (config.retry_delays(), config.batch_deadline());
    (delays >= deadline).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::MAX_RETRY_ATTEMPTS,
            format!(
                "the delays between retries take {} s in all, but a batch is given up after {} s, \
                 half of the broker's consumer timeout: the last retries never happen",
                delays.as_secs(),
                deadline.as_secs()
            ),
            "lower MAX_RETRY_ATTEMPTS or RETRY_DELAY_SECONDS",
        )
    })
}

fn killed_before_it_stops(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    let stop = config.shutdown.timeout;
    if stop < DOCKER_STOP {
        return None;
    }
    let who = if stop < KUBERNETES_STOP {
        "docker stop kills after 10 s"
    } else {
        "docker stop kills after 10 s, Kubernetes after 30 s"
    };
    Some(Finding::of_setting(
        Warning,
        config,
        &keys::SHUTDOWN_TIMEOUT_SECONDS,
        format!(
            "{who} unless told otherwise, which is no longer than a stop may take here: nothing is \
             lost by it, and what was under way is done again by the next instance"
        ),
        format!(
            "lower SHUTDOWN_TIMEOUT_SECONDS, or give more than {} s to docker stop (--time, \
             stop_grace_period) or the pod (terminationGracePeriodSeconds)",
            stop.as_secs_f64()
        ),
    ))
}

/// The shipped eight seconds are below the shipped ten of a statement, and docker stop's ten leave
/// no choice: only less than that is somebody's mistake.
fn stops_before_a_statement_ends(given: &Given<'_>) -> Option<Finding> {
    let Given { config, shipped } = given;
    let (stop, statement) = (config.shutdown.timeout, config.postgres.statement_timeout);
    let lowered = shipped.as_ref().is_some_and(|shipped| stop < shipped.shutdown.timeout);
    (lowered && stop < statement).then(|| {
        Finding::of_setting(
            Warning,
            config,
            &keys::SHUTDOWN_TIMEOUT_SECONDS,
            format!(
                "a statement may take {} s (postgres.statement_timeout_seconds): a slow one is cut \
                 off by a stop, which ends with 75, and its votes are delivered again",
                statement.as_secs_f64()
            ),
            "set SHUTDOWN_TIMEOUT_SECONDS to 8, or lower POSTGRES_STATEMENT_TIMEOUT_SECONDS",
        )
    })
}

fn never_reconciled(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    config.monitoring.reconcile_interval.is_none().then(|| {
        Finding::of_setting(
            Info,
            config,
            &keys::RECONCILE_INTERVAL_SECONDS,
            "the service never compares its totals with the audit",
            "set it on one instance at least, or run vote-aggregator recount now and then",
        )
    })
}

fn unknown_port(given: &Given<'_>) -> Option<Finding> {
    let Given { config, .. } = given;
    (config.monitoring.port == 0).then(|| {
        Finding::of_setting(
            Info,
            config,
            &keys::PROMETHEUS_PORT,
            "the port is another one at each start, known from the log alone: neither Prometheus \
             nor vote-aggregator health-check finds it",
            "set PROMETHEUS_PORT, 8001 say",
        )
    })
}
