//! What the facts about the server and our role mean.

use std::time::Duration;

use super::subject;
use crate::adapters::store::Server;
use crate::operator::check::{Finding, Severity, is_local};
use crate::platform::config::{Config, Postgres, keys};

use Severity::{Error, Info, Warning};

/// The first version that reads a table by ranges of pages, as `recount` does, and that ends a statement
/// whose client has gone.
const WHOLE_FROM: i32 = 140_000;
/// Connections of an instance beside its pool: for the totals, a probe, and the comparison of
/// totals with the audit.
const BESIDE_THE_POOL: i64 = 3;

pub(super) fn findings(config: &Config, server: &Server) -> Vec<Finding> {
    let Postgres { user, sslmode, .. } = &config.postgres;
    let address = config.postgres.address();
    let place = format!("PostgreSQL on {address}");
    let mut found = Vec::new();
    let mut add = |severity, subject: &str, value: &str, meaning: &str, remedy: &str| {
        found.push(Finding::new(severity, subject, meaning, remedy).with_value(value));
    };

    let version = format!("PostgreSQL {}", server.version);
    if server.version_number < WHOLE_FROM {
        let meaning = "before version 14 recount reads all of vote_audit for each of its parts, and a \
                       comparison whose instance has died runs on";
        add(Warning, &place, &version, meaning, "upgrade PostgreSQL to 14 or newer");
    } else {
        let meaning = "new enough for everything that the service asks of it";
        add(Info, &place, &version, meaning, "nothing");
    }
    // The rules about the configuration warn of a mode that does not insist on encryption.
    if let Some(tls) = &server.tls {
        let meaning = format!("the connection is encrypted; POSTGRES_SSLMODE={sslmode}");
        add(Info, &place, tls, &meaning, "nothing");
    } else if !is_local(&address.host) {
        let meaning = format!(
            "the connection is not encrypted: the server offers no TLS, or POSTGRES_SSLMODE={sslmode} \
             does not ask for it"
        );
        let remedy = "set ssl = on on the server, and POSTGRES_SSLMODE=verify-full";
        add(Info, &place, "unencrypted", &meaning, remedy);
    }
    if server.standby || server.read_only {
        let meaning = "it is read-only (25006): nothing would be counted; counting was not tried";
        let (value, remedy) = match server.standby {
            true => ("a standby", "set POSTGRES_HOST to the primary, or promote this server"),
            false => (
                "read-only",
                "set default_transaction_read_only to off for this role and database, and on the \
                 server",
            ),
        };
        add(Error, &place, value, meaning, remedy);
    }
    if server.encoding != "UTF8" {
        let meaning = "a vote whose citizen_id has a character that this encoding lacks, or counts as \
                       several, is refused and dead-lettered";
        let remedy = "recreate the database with ENCODING 'UTF8' TEMPLATE template0, before votes are \
                      in it";
        let value = format!("encoding {}", server.encoding);
        add(Warning, &subject(config), &value, meaning, remedy);
    }
    if server.superuser || !server.audit_privileges.is_empty() {
        let value = match server.superuser {
            true => "a superuser".to_owned(),
            false => format!("{} on vote_audit", server.audit_privileges.join(", ")),
        };
        let meaning = "more privileges than counting needs: anyone with this password can change \
                       or delete counted votes and their audit";
        let remedy = "run roles.sql as the owner of the tables, and set POSTGRES_USER to a role in \
                      vote_service";
        add(Warning, &format!("role {user:?}"), &value, meaning, remedy);
    }
    // The service sets the other limits itself.
    let limit = Duration::from_millis(server.transaction_timeout.unsigned_abs());
    let needed = config.postgres.transaction_deadline();
    if !limit.is_zero() && limit < needed {
        let meaning = format!(
            "PostgreSQL ends a transaction, and the connection with it, after that; one batch may \
             take {} s (postgres.statement_timeout_seconds)",
            needed.as_secs_f64()
        );
        let remedy =
            "raise transaction_timeout for this role, or lower POSTGRES_STATEMENT_TIMEOUT_SECONDS";
        let value = format!("transaction_timeout={} ms", limit.as_millis());
        add(Warning, &place, &value, &meaning, remedy);
    }
    if !server.logs_votes.is_empty() {
        let meaning = "the server's log holds the parameters of statements, and these are votes: who \
                       voted what";
        let remedy = "set log_parameter_max_length = 0 and log_parameter_max_length_on_error = 0, or \
                      log no statements, at least for this role: ALTER ROLE ... SET";
        add(Warning, &place, &server.logs_votes.join(", "), meaning, remedy);
    }
    found.extend(connections(config, server));
    found
}

/// Whether the connections that are left are enough for one instance.
fn connections(config: &Config, server: &Server) -> Option<Finding> {
    let Server { max_connections, reserved, role_limit, database_limit, .. } = *server;
    let needed = i64::from(config.postgres.max_connections) + BESIDE_THE_POOL;
    let others = server.used - server.ours;
    let free = max_connections - reserved - others;
    let least = [role_limit, database_limit].into_iter().flatten().fold(free, i64::min);
    if needed <= least {
        return None;
    }
    let shown = |limit: Option<i64>| limit.map_or("no limit".to_owned(), |n| n.to_string());
    let meaning = format!(
        "an instance opens up to {needed} connections ({BESIDE_THE_POOL} beside the pool), and {} are \
         left for all instances: max_connections {max_connections}, of these {reserved} reserved and \
         {others} in use by others; limit of the role: {}, of the database: {}",
        least.max(0),
        shown(role_limit),
        shown(database_limit),
    );
    let remedy = "lower POSTGRES_MAX_CONNECTIONS, or raise max_connections (or CONNECTION LIMIT) on \
                  the server; each instance needs as many";
    let key = &keys::POSTGRES_MAX_CONNECTIONS;
    Some(Finding::of_setting(Warning, config, key, meaning, remedy))
}
