//! The facts about a database for `vote-aggregator check`. Changes nothing.

use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::connection::Address;
use super::durability::{Risk, risks, standbys};
use super::error::StartError;
use super::migrate::{Examined, SchemaState, Surroundings, examine, open_schema, rehearse_pending};
use super::misfits::Misfits;
use super::publication::{PublicationStatus, read_publication_status};
use super::sessions::{Session, blockers};
use super::start::{fits, not_applied};
use super::{cell, transaction, within};
use crate::model::ports::Fault;
use crate::platform::config::Config;
use crate::platform::telemetry::Standbys;

const SERVER: &str = include_str!("server.sql");

/// What was found out before everything was known, or an error ended the look.
#[derive(Debug, Default)]
pub struct DatabaseFacts {
    pub server: Option<Server>,
    pub risks: Vec<Risk>,
    pub standbys: Option<Standbys>,
    pub clocks: Option<Clocks>,
    /// Sessions that keep counting waiting, or would.
    pub blockers: Option<Vec<Session>>,
    pub surroundings: Option<Surroundings>,
    /// `None` also where reading the schema could run another role's code.
    pub schema: Option<SchemaState>,
    pub misfits: Option<Misfits>,
    pub rehearsal: Option<Rehearsal>,
    /// `None` also where reading it could run another role's code.
    pub publication_status: Option<PublicationStatus>,
    /// What ended the look.
    pub refused: Option<StartError>,
}

/// One row of server.sql: the server, and our role on it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Server {
    pub version: String,
    pub version_number: i32,
    pub standby: bool,
    pub read_only: bool,
    pub encoding: String,
    /// Protocol and cipher; `None` for a connection in clear.
    pub tls: Option<String>,
    pub superuser: bool,
    pub audit_privileges: Vec<String>,
    pub may_create: bool,
    pub owns_tables: bool,
    pub max_connections: i64,
    pub reserved: i64,
    /// Connections that there are, ours included.
    pub used: i64,
    /// Those of this role and this service, the one that asks included.
    pub ours: i64,
    pub role_limit: Option<i64>,
    pub database_limit: Option<i64>,
    /// In milliseconds; 0: none.
    pub transaction_timeout: i64,
    /// Settings that write parameters of statements to the server's log.
    pub logs_votes: Vec<String>,
}

impl Server {
    /// Whether our role may apply migrations.
    pub fn may_migrate(&self) -> bool {
        self.superuser || (self.may_create && self.owns_tables)
    }
}

/// The same moment on both machines, to within half a round trip.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub here: OffsetDateTime,
    pub server: OffsetDateTime,
    pub round_trip: Duration,
}

/// Whether a batch was counted, behind the pending migrations if there are any; all rolled back.
#[derive(Debug)]
pub enum Rehearsal {
    /// With the error that a start would end with.
    Done(Result<(), StartError>),
    Skipped(Skipped),
}

/// Why nothing was rehearsed.
#[derive(Debug)]
pub enum Skipped {
    /// The server takes no writes.
    ReadOnly,
    /// Our role may not migrate.
    NotOwner,
    /// The limit is zero.
    Disabled,
    /// Objects of another role are in the way.
    Foreign,
    /// PUBLIC may create objects in this schema, which could take the place of ours.
    OpenSchema(String),
    /// Another instance applied the migrations meanwhile.
    Applied,
    /// A lock was not granted or a statement not finished within this limit.
    TimedOut(Duration, Fault),
    /// Neither up to date nor pending.
    Unfit,
}

/// Looks at the database that `config` names: whether it accepts us, keeps what it confirms, has the
/// schema, and lets this role count. Never waits for one that is down. A batch is counted as at start,
/// and rolled back, and so are pending migrations before it: no statement of theirs runs, or waits for a
/// lock, for longer than `limit`, and with zero they are not rehearsed.
pub async fn inspect(config: &Config, limit: Duration) -> DatabaseFacts {
    let mut facts = DatabaseFacts::default();
    let deadline = config.postgres.transaction_deadline() + 4 * limit;
    let collected = within(deadline, collect(config, limit, &mut facts)).await;
    facts.refused = collected.err();
    facts
}

async fn collect(
    config: &Config,
    limit: Duration,
    facts: &mut DatabaseFacts,
) -> Result<(), StartError> {
    let address = Address::limited(&config.postgres, config.postgres.statement_timeout);
    let mut connection = address.named("vote-aggregator check").connect().await?;

    let server = facts.server.insert(sqlx::query_as(SERVER).fetch_one(&mut connection).await?);
    facts.risks = risks(&mut connection).await?;
    facts.standbys = Some(standbys(&mut connection).await?);
    facts.clocks = Some(clocks(&mut connection).await?);
    facts.blockers = Some(blockers(&mut connection).await?);

    let examined = examine(&mut connection, config.postgres.migrate_on_start).await;
    let Examined { surroundings, state } = examined?;
    let surroundings = facts.surroundings.insert(surroundings);
    if surroundings.foreign.is_empty() {
        facts.publication_status = Some(read_publication_status(&mut connection).await?);
    }
    if let Some(state) = state {
        let state = facts.schema.insert(state);
        facts.misfits = Some(Misfits::of(&mut connection).await?);
        let examined = (&*server, &*surroundings);
        facts.rehearsal = Some(rehearse(&mut connection, config, examined, state, limit).await?);
    }
    connection.close().await.ok();
    Ok(())
}

/// Rehearses where this role may. `limit` bounds each wait for a lock and each statement of a migration,
/// and thereby how long a service that counts on these tables waits.
async fn rehearse(
    connection: &mut PgConnection,
    config: &Config,
    (server, surroundings): (&Server, &Surroundings),
    state: &SchemaState,
    limit: Duration,
) -> Result<Rehearsal, StartError> {
    let mut pending: &[i64] = &[];
    let skipped = match state {
        _ if server.read_only => Some(Skipped::ReadOnly),
        SchemaState::Current | SchemaState::Newer(_) => {
            let database = cell::read(connection).await?;
            let rehearsed = transaction::rehearse(connection).await;
            let fits = fits(config, rehearsed);
            return Ok(Rehearsal::Done(fits.and(cell::verify(config, database.as_deref()))));
        }
        SchemaState::Pending(_) if !server.may_migrate() => Some(Skipped::NotOwner),
        SchemaState::Pending(_) if limit.is_zero() => Some(Skipped::Disabled),
        SchemaState::Pending(_) if !surroundings.foreign.is_empty() => Some(Skipped::Foreign),
        SchemaState::Pending(versions) => {
            pending = versions;
            open_schema(connection).await?.map(|(schema, _)| Skipped::OpenSchema(schema))
        }
        _ => Some(Skipped::Unfit),
    };
    if let Some(skipped) = skipped {
        return Ok(Rehearsal::Skipped(skipped));
    }
    let deadline = config.postgres.transaction_deadline() + limit;
    let count = async |connection: &mut PgConnection| {
        transaction::rehearse_in_transaction(connection).await
    };
    Ok(match rehearse_pending(connection, config, limit, deadline, count).await {
        Ok(None) => Rehearsal::Skipped(Skipped::Applied),
        Ok(Some(rehearsed)) => Rehearsal::Done(fits(config, rehearsed)),
        Err(StartError::Unavailable(fault))
            if matches!(fault.sqlstate.as_deref(), Some("55P03" | "57014")) =>
        {
            Rehearsal::Skipped(Skipped::TimedOut(limit, fault))
        }
        Err(error) => Rehearsal::Done(Err(not_applied(config, pending, error))),
    })
}

/// Asks the server for its time.
async fn clocks(connection: &mut PgConnection) -> Result<Clocks, Fault> {
    let ask = async |connection: &mut PgConnection| {
        let asked = sqlx::query_scalar::<_, OffsetDateTime>("SELECT clock_timestamp()");
        asked.fetch_one(connection).await
    };
    // Prepares the statement, so that the next one is a single round trip.
    ask(connection).await?;
    let (here, began) = (OffsetDateTime::now_utc(), Instant::now());
    let server = ask(connection).await?;
    Ok(Clocks { here, server, round_trip: began.elapsed() })
}
