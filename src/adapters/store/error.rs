//! Why PostgreSQL cannot be used: the one error of starts, commands and checks.

use std::time::Duration;

use super::migrate::{ForeignObject, SchemaState};
use super::sqlstate::fatal_at_start;
use crate::model::ports::{Class, Fault};
use crate::platform::config::{Config, Postgres};

/// Why PostgreSQL cannot be used. All but [`StartError::Unavailable`] last until an operator acts.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database is down, starting up or busy: retried.
    #[error(transparent)]
    Unavailable(#[from] Fault),
    #[error("PostgreSQL refuses the login or a permission: {fault}; {place}. {advice}")]
    Credentials { fault: Fault, place: String, advice: String },
    /// The server refuses the client certificate, or requires one.
    #[error("PostgreSQL refuses the client certificate, or requires one: {0}")]
    Certificate(Fault),
    /// We refuse the server, or it offers no TLS.
    #[error("no encrypted connection to PostgreSQL: {0}")]
    Tls(Fault),
    /// The driver can't use the settings.
    #[error("no connection to PostgreSQL can be made with these settings: {0}")]
    Settings(Fault),
    #[error("PostgreSQL has no such database: {fault}; {place}. Create it, or set POSTGRES_DB")]
    NoDatabase { fault: Fault, place: String },
    #[error("the schema does not fit: {reason}; {place}")]
    Schema { reason: String, place: String },
    /// The migrating role would touch what another role made.
    #[error(
        "objects of another role are in the way: {objects}; {place}. Drop them, or change their \
         owner if you know who made them (ALTER ... OWNER TO), or run as the role that owns all of \
         them; a trigger, rule or policy of your own you can create again after the migration"
    )]
    Foreign { objects: String, place: String },
    /// A server that is away, or read-only, for longer than a command may wait.
    #[error("gave up after {} s (--retry-for), waiting for PostgreSQL: {fault}; {place}", away.as_secs())]
    Away { away: Duration, fault: Fault, place: String },
    /// A lock was not granted in the time that a command may wait.
    #[error(
        "a migration waits for a lock: {fault}; {place}. Have its holder end, and run it again"
    )]
    Locked { fault: Fault, place: String },
    #[error(
        "PostgreSQL could lose committed votes: {settings}; {place}. {remedy}; or accept the loss \
         with POSTGRES_ALLOW_LOSSY=true"
    )]
    Lossy { settings: String, remedy: String, place: String },
    #[error(
        "POSTGRES_REQUIRE_STANDBY is set, and synchronous_standby_names is empty: a failover would \
         lose acknowledged votes; {place}. Set synchronous_standby_names, or \
         POSTGRES_REQUIRE_STANDBY=false"
    )]
    NoStandby { place: String },
    /// Queue and database would not be those of one cell.
    #[error("votes could be counted twice: {reason}; {place}")]
    OtherCell { reason: String, place: String },
    /// What a command met once it was connected.
    #[error("PostgreSQL failed: {fault}; {place}")]
    Failed { fault: Fault, place: String },
}

impl From<sqlx::Error> for StartError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Unavailable(fault)
            | StartError::Certificate(fault)
            | StartError::Tls(fault)
            | StartError::Settings(fault) => fault,
            other => Self::new(Class::Pause, other.to_string()),
        }
    }
}

impl StartError {
    pub(super) fn schema(config: &Config, reason: String) -> Self {
        Self::Schema { reason, place: describe(&config.postgres) }
    }

    pub(super) fn misfit(config: &Config, state: &SchemaState) -> Self {
        let (reason, remedy) = state.unfit();
        Self::schema(config, format!("{reason}; {remedy}"))
    }

    pub(super) fn foreign<'a>(
        config: &Config,
        objects: impl IntoIterator<Item = &'a ForeignObject>,
    ) -> Self {
        let objects: Vec<String> = objects.into_iter().map(ToString::to_string).collect();
        Self::Foreign { objects: objects.join(", "), place: describe(&config.postgres) }
    }

    /// The refusal behind a fault, where its SQLSTATE names one that lasts until an operator acts.
    pub fn classified(self, config: &Config) -> Self {
        let Self::Unavailable(fault) = self else { return self };
        let place = describe(&config.postgres);
        match fault.sqlstate.as_deref() {
            Some("3D000") => Self::NoDatabase { fault, place },
            Some(code) if fatal_at_start(code) => {
                let advice = advice(&config.postgres, code);
                Self::Credentials { fault, place, advice }
            }
            _ => Self::Unavailable(fault),
        }
    }
}

/// The error of a command that is connected, from `fault` while `doing` its work.
pub(super) fn failed(config: &Config, fault: Fault, doing: &str) -> StartError {
    let place = describe(&config.postgres);
    match (fault.class, fault.sqlstate.as_deref()) {
        // Nothing is committed, or all of it, which the next try sees.
        (Class::Retry | Class::Reconnect | Class::UnknownOutcome, _) => fault.into(),
        (_, Some(code)) if code == "42P05" || fatal_at_start(code) => fault.into(),
        (_, Some(code)) if code.starts_with("42") => StartError::Schema {
            reason: format!(
                "{doing} fails: {fault}; run `vote-aggregator migrate` as the owner of the \
                 tables, or compare them with init_db.sql"
            ),
            place,
        },
        _ => StartError::Failed { fault, place },
    }
}

/// Where and as whom we connect, for messages: never the password.
pub fn describe(config: &Postgres) -> String {
    let Postgres { database, user, .. } = config;
    format!("database {database:?} on {} as user {user:?}", config.address())
}

/// What to do about a refusal. 28000 is the server's answer to a role that may not log in, to a
/// connection that pg_hba.conf does not take, in clear say, and to a missing certificate.
fn advice(config: &Postgres, sqlstate: &str) -> String {
    match sqlstate {
        "42501" => "Check POSTGRES_USER and the role's grants (roles.sql)".to_owned(),
        "28000" => format!(
            "Check POSTGRES_USER (or DATABASE_URL) and what the server's pg_hba.conf asks of this \
             connection: POSTGRES_SSLMODE is {}, POSTGRES_SSLCERT is {}",
            config.sslmode,
            config.sslcert.as_ref().map_or("not set".to_owned(), |path| path.display().to_string()),
        ),
        _ => "Check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)".to_owned(),
    }
}
