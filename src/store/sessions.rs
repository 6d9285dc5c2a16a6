//! Sessions that hold locks on the service's tables, and who waits for them. Never what they ran.

use std::cmp::Ordering;
use std::fmt;

use sqlx::postgres::PgConnection;
use sqlx::{Error, FromRow};

const SESSIONS: &str = include_str!("sessions.sql");

/// Most sessions that are named.
const NAMED: usize = 3;

/// A session, or a prepared transaction, as far as our role may see it.
#[derive(Clone, Debug, Default, PartialEq, FromRow)]
pub(super) struct Session {
    /// `None` for a prepared transaction.
    pub(super) pid: Option<i32>,
    /// The identifier of a prepared transaction.
    pub(super) gid: Option<String>,
    /// Which transaction it is in.
    #[sqlx(rename = "virtualtransaction")]
    pub(super) transaction: String,
    pub(super) role: Option<String>,
    #[sqlx(rename = "application_name")]
    pub(super) application: Option<String>,
    pub(super) client: Option<String>,
    pub(super) state: Option<String>,
    pub(super) wait_event: Option<String>,
    /// In seconds.
    pub(super) age: Option<f64>,
    /// Client, state, age and wait event are not shown to our role.
    pub(super) hidden: bool,
    /// Only a superuser may end it.
    pub(super) superuser: bool,
    /// Modes and tables.
    pub(super) holds: Option<String>,
    /// It holds a lock that counting may have to wait for.
    pub(super) exclusive: bool,
    /// It holds the lock of migrations.
    pub(super) migrates: bool,
    pub(super) waits_for: Vec<i32>,
    /// Sessions that wait for it, at first or second hand.
    pub(super) blocks: Vec<i32>,
}

impl Session {
    /// Whether it is one of this service's, by its application name.
    pub(super) fn is_ours(&self) -> bool {
        self.application.as_deref().is_some_and(|name| name.starts_with("vote-aggregator"))
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => write!(f, "prepared transaction")?,
        }
        for (name, value) in [
            ("gid", &self.gid),
            ("user", &self.role),
            ("application", &self.application),
            ("client", &self.client),
            ("state", &self.state),
            ("waits in", &self.wait_event),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                // Quoted: a client chooses its own application name.
                write!(f, ", {name} {value:?}")?;
            }
        }
        if let Some(age) = self.age {
            write!(f, ", transaction open for {} s", age as u64)?;
        }
        if let Some(holds) = &self.holds {
            write!(f, ", holds {holds}")?;
        }
        if !self.waits_for.is_empty() {
            write!(f, ", waits for {}", pids(&self.waits_for))?;
        }
        Ok(())
    }
}

/// Process ids in one text. PostgreSQL calls a prepared transaction 0.
pub(super) fn pids(pids: &[i32]) -> String {
    let name = |pid: &i32| match pid {
        0 => "a prepared transaction".to_owned(),
        pid => format!("pid {pid}"),
    };
    pids.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// All sessions that hold a lock on our tables, or that sessions which use them wait for.
pub(super) async fn sessions(connection: &mut PgConnection) -> Result<Vec<Session>, Error> {
    let rows = sqlx::raw_sql(SESSIONS).fetch_all(connection).await?;
    rows.iter().map(Session::from_row).collect()
}

/// Who holds a lock that a migration waits for, the oldest transactions first: the lock of migrations
/// itself, or any on the tables.
pub(super) async fn holders(
    connection: &mut PgConnection,
    lock_of_migrations: bool,
) -> Result<Vec<String>, Error> {
    let mut sessions = sessions(connection).await?;
    sessions.retain(|session| session.migrates || !lock_of_migrations);
    sessions.sort_by(|a, b| b.age.partial_cmp(&a.age).unwrap_or(Ordering::Equal));
    Ok(sessions.iter().take(NAMED).map(ToString::to_string).collect())
}
