//! What the facts about the server and our role mean.

use std::time::Duration;

use crate::adapters::store::Server;
use crate::operator::check::{Finding, Severity, is_local};
use crate::platform::config::{Config, keys};

use Severity::{Error, Info, Warning};

/// The first that reads a table by ranges of pages, as `recount` does, and that ends a statement
/// whose client has gone.
const WHOLE_FROM: i32 = 140_000;
/// Connections of an instance beside its pool: for the totals, a probe, and the comparison of
/// totals with the audit.
const BESIDE_THE_POOL: i64 = 3;

/// Everything that there is to say of it.
pub(super) fn findings(config: &Config, server: &Server) -> Vec<Finding> {
    let rules = [version, encryption, read_only, encoding, grants, connections, limits, log];
    rules.iter().filter_map(|rule| rule(config, server)).collect()
}

fn place(config: &Config) -> String {
    let host = &config.postgres.host;
    let separator = if host.starts_with('/') { "/.s.PGSQL." } else { ":" };
    format!("PostgreSQL on {host}{separator}{}", config.postgres.port)
}

fn version(config: &Config, server: &Server) -> Option<Finding> {
    let (severity, meaning, remedy) = if server.version_number < WHOLE_FROM {
        (
            Warning,
            "before version 14 recount reads all of vote_audit for each of its parts, and a \
             comparison whose instance has died runs on",
            "upgrade PostgreSQL to 14 or newer",
        )
    } else {
        (Info, "new enough for everything that the service asks of it", "nothing")
    };
    let finding = Finding::new(severity, place(config), meaning, remedy);
    Some(finding.with_value(format!("PostgreSQL {}", server.version)))
}

/// That a mode does not insist on it is for the rules about the configuration.
fn encryption(config: &Config, server: &Server) -> Option<Finding> {
    let finding = match &server.tls {
        Some(tls) => Finding::new(
            Info,
            place(config),
            format!("the connection is encrypted; POSTGRES_SSLMODE={}", config.postgres.sslmode),
            "nothing",
        )
        .with_value(tls.clone()),
        None if is_local(&config.postgres.host) => return None,
        None => Finding::new(
            Info,
            place(config),
            format!(
                "the connection is not encrypted: the server offers no TLS, or \
                 POSTGRES_SSLMODE={} does not ask for it",
                config.postgres.sslmode
            ),
            "set ssl = on on the server, and POSTGRES_SSLMODE=verify-full",
        )
        .with_value("in clear"),
    };
    Some(finding)
}

fn read_only(config: &Config, server: &Server) -> Option<Finding> {
    let (value, remedy) = match (server.standby, server.read_only) {
        (true, _) => ("a standby", "set POSTGRES_HOST to the primary, or promote this server"),
        (_, true) => (
            "read-only",
            "set default_transaction_read_only to off for this role and database, and on the server",
        ),
        _ => return None,
    };
    let meaning = "it takes no writes (25006): nothing would be counted; counting was not tried";
    Some(Finding::new(Error, place(config), meaning, remedy).with_value(value))
}

fn encoding(config: &Config, server: &Server) -> Option<Finding> {
    (server.encoding != "UTF8").then(|| {
        let database = format!("database {:?}", config.postgres.database);
        Finding::new(
            Warning,
            database,
            "a vote whose citizen_id has a character that this encoding lacks, or counts as \
             several, is refused and dead-lettered",
            "make the database anew with ENCODING 'UTF8' TEMPLATE template0, before votes are in it",
        )
        .with_value(format!("encoding {}", server.encoding))
    })
}

/// More than roles.sql gives.
fn grants(config: &Config, server: &Server) -> Option<Finding> {
    let value = if server.superuser {
        "a superuser".to_owned()
    } else if server.audit_privileges.is_empty() {
        return None;
    } else {
        format!("{} on vote_audit", server.audit_privileges.join(", "))
    };
    let finding = Finding::new(
        Warning,
        format!("role {:?}", config.postgres.user),
        "more than it needs to count: whoever gets hold of this password can change or delete \
         votes that were counted, and the audit of them",
        "run roles.sql as the owner of the tables, and set POSTGRES_USER to a role in vote_service",
    );
    Some(finding.with_value(value))
}

/// Whether there is room for the pool of one instance.
fn connections(config: &Config, server: &Server) -> Option<Finding> {
    let needed = i64::from(config.postgres.max_connections) + BESIDE_THE_POOL;
    let others = server.used - server.ours;
    let free = server.max_connections - server.reserved - others;
    let limits = [server.role_limit, server.database_limit];
    let least = limits.into_iter().flatten().chain([free]).min().unwrap_or(free);
    (needed > least).then(|| {
        let granted = |limit: Option<i64>| limit.map_or("no limit".to_owned(), |n| n.to_string());
        Finding::of_setting(
            Warning,
            config,
            &keys::POSTGRES_MAX_CONNECTIONS,
            format!(
                "an instance opens up to {needed} connections ({BESIDE_THE_POOL} beside the pool), \
                 and {} are left for all instances: max_connections {}, of these {} reserved and \
                 {others} in use by others; limit of the role: {}, of the database: {}",
                least.max(0),
                server.max_connections,
                server.reserved,
                granted(server.role_limit),
                granted(server.database_limit),
            ),
            "lower POSTGRES_MAX_CONNECTIONS, or raise max_connections (or CONNECTION LIMIT) on the \
             server; each instance needs as many",
        )
    })
}

/// Session settings that we set ourselves go before the server's; this one nobody sets.
fn limits(config: &Config, server: &Server) -> Option<Finding> {
    let limit = Duration::from_millis(server.transaction_timeout.unsigned_abs());
    let needed = config.postgres.transaction_deadline();
    (!limit.is_zero() && limit < needed).then(|| {
        Finding::new(
            Warning,
            place(config),
            format!(
                "PostgreSQL ends a transaction, and the connection with it, after that; one batch \
                 may take {} s (postgres.statement_timeout_seconds)",
                needed.as_secs_f64()
            ),
            "raise transaction_timeout for this role, or lower POSTGRES_STATEMENT_TIMEOUT_SECONDS",
        )
        .with_value(format!("transaction_timeout={} ms", limit.as_millis()))
    })
}

fn log(config: &Config, server: &Server) -> Option<Finding> {
    (!server.logs_votes.is_empty()).then(|| {
        Finding::new(
            Warning,
            place(config),
            "the server's log holds the parameters of statements, and these are votes: who voted \
             what",
            "set log_parameter_max_length = 0 and log_parameter_max_length_on_error = 0, or log no \
             statements, at least for this role: ALTER ROLE ... SET",
        )
        .with_value(server.logs_votes.join(", "))
    })
}
