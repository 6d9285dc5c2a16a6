//! How the process ends; the codes from 64 up are those of sysexits.h.

use std::fmt::Display;

use vote_aggregator::adapters::store::StartError;
use vote_aggregator::model::ports::OpenError;

/// A command's exit code, or how it ended early.
pub type Outcome = Result<u8, Exit>;

/// The command ends here, with this exit code; standard error or the log has the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("exit code {0}")]
pub struct Exit(pub u8);

/// Findings or differences; for `publish`: not everything was confirmed; for `health-check`: no;
/// for `dlq`: not everything that matches was put back or removed; for `publication`: not allowed; for
/// `verify`: not verified; for `seal`: refused, since it could sign a second history.
pub const FINDINGS: u8 = 1;
/// Arguments that make no sense, as clap itself ends with.
pub const USAGE: u8 = 2;
/// Something of the service itself failed.
pub const INTERNAL: u8 = 70;
/// The shutdown deadline passed, and what was not committed is not acked; for a command: PostgreSQL was
/// away for too long, or a lock was not granted in time.
pub const DEADLINE: u8 = 75;
/// RabbitMQ or PostgreSQL refused: password, client certificate, a missing permission.
pub const CREDENTIALS: u8 = 77;
/// The configuration, the schema, a port that is in use, a database that could lose commits, a
/// server whose certificate is not trusted.
pub const CONFIG: u8 = 78;

/// Every code and what it means, for the help and the manual page; a test compares the README with it.
/// `None` is 128+n.
pub const TABLE: [(Option<u8>, &str); 8] = [
    (Some(0), "done"),
    (
        Some(FINDINGS),
        "findings or differences; publish: not everything was confirmed, --dry-run: not every line \
         is a vote; health-check: no; dlq: not everything that matches was put back or removed; \
         publication: not allowed, or results and audit differ; verify: not verified; seal: refused, or \
         the audit is not as it was counted",
    ),
    (Some(USAGE), "wrong usage"),
    (Some(INTERNAL), "internal error; standard output or a file could not be written"),
    (
        Some(DEADLINE),
        "the shutdown deadline passed before everything was committed; migrate: a lock was not \
         granted in time; migrate, results, recount, publication: PostgreSQL was unavailable for \
         longer than --retry-for; seal init, seal --once: it was unavailable",
    ),
    (
        Some(CREDENTIALS),
        "RabbitMQ or PostgreSQL refused access at startup: password, permission, client \
         certificate; publish: also later, for the permission to write",
    ),
    (
        Some(CONFIG),
        "configuration, schema, a port that is in use, a database that could lose commits, objects \
         of another role in place of the service's, a server certificate that is not trusted; seal: \
         DIR is not a log's directory, or was changed",
    ),
    (None, "ended at once by a second signal n"),
];

/// Returns the exit code for an error of PostgreSQL.
pub const fn of_postgres(error: &StartError) -> u8 {
    match error {
        StartError::Credentials { .. } | StartError::Certificate(_) => CREDENTIALS,
        StartError::Failed { .. } => INTERNAL,
        StartError::Unavailable(_) | StartError::Locked { .. } | StartError::Away { .. } => {
            DEADLINE
        }
        StartError::Tls(_)
        | StartError::Settings(_)
        | StartError::NoDatabase { .. }
        | StartError::Schema { .. }
        | StartError::Foreign { .. }
        | StartError::NoStandby { .. }
        | StartError::OtherCell { .. }
        | StartError::Lossy { .. } => CONFIG,
    }
}

/// Returns the exit code for an error of RabbitMQ.
pub const fn of_rabbitmq(error: &OpenError) -> u8 {
    match error {
        OpenError::Credentials(_) => CREDENTIALS,
        OpenError::Configuration(_) => CONFIG,
        OpenError::Occupied { .. } | OpenError::Unavailable(_) => FINDINGS,
    }
}

/// Logs what a command cannot do, and why.
pub fn cannot(what: &str, error: impl Display, code: u8) -> Exit {
    tracing::error!("cannot {what}: {error}");
    Exit(code)
}

/// As [`cannot`], for what needs PostgreSQL.
pub fn without_postgres(what: &str) -> impl Fn(StartError) -> Exit {
    move |error| cannot(what, &error, of_postgres(&error))
}

/// A code as it is written.
pub fn name(code: Option<u8>) -> String {
    code.map_or_else(|| "128+n".to_owned(), |code| code.to_string())
}
