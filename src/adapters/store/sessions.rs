//! Sessions that hold locks on the service's tables, and which sessions wait for them. Never their queries.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Error, FromRow};

const SESSIONS: &str = include_str!("sessions.sql");

/// A transaction that counts is over by then, and a longer one makes counting wait. Sessions are read
/// twice, since the age of another role's transaction is hidden from a role without pg_monitor.
const A_MOMENT: Duration = Duration::from_secs(1);

/// Most sessions that are named.
const NAMED: usize = 3;

/// A session, or a prepared transaction, as far as our role may see it.
#[derive(Clone, Debug, Default, PartialEq, FromRow)]
pub struct Session {
    /// `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// The identifier of a prepared transaction.
    pub gid: Option<String>,
    /// Which transaction it is in.
    #[sqlx(rename = "virtualtransaction")]
    pub transaction: String,
    pub role: Option<String>,
    #[sqlx(rename = "application_name")]
    pub application: Option<String>,
    pub client: Option<String>,
    pub state: Option<String>,
    pub wait_event: Option<String>,
    /// In seconds.
    pub age: Option<f64>,
    /// Client, state, age and wait event are not shown to our role.
    pub hidden: bool,
    /// Only a superuser may end it.
    pub superuser: bool,
    /// Modes and tables.
    pub holds: Option<String>,
    /// It holds a lock that counting may have to wait for.
    pub exclusive: bool,
    /// It holds the lock of migrations.
    pub migrates: bool,
    pub waits_for: Vec<i32>,
    /// Sessions that wait for it, at first or second hand.
    pub blocks: Vec<i32>,
}

impl Session {
    /// Whether it is one of this service's, by its application name.
    pub fn is_ours(&self) -> bool {
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
pub fn pids(pids: &[i32]) -> String {
    let name = |pid: &i32| match pid {
        0 => "a prepared transaction".to_owned(),
        pid => format!("pid {pid}"),
    };
    pids.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// All sessions that hold a lock on our tables, or that sessions which use them wait for.
async fn sessions(connection: &mut PgConnection) -> Result<Vec<Session>, Error> {
    let rows = sqlx::raw_sql(SESSIONS).fetch_all(connection).await?;
    rows.iter().map(Session::from_row).collect()
}

/// Sessions that keep counting waiting, or would: seen twice, a moment apart, in the same transaction.
pub(super) async fn blockers(connection: &mut PgConnection) -> Result<Vec<Session>, Error> {
    let before = sessions(connection).await?;
    if !before.iter().any(in_the_way) {
        return Ok(Vec::new());
    }
    tokio::time::sleep(A_MOMENT).await;
    let after = sessions(connection).await?;
    Ok(staying(&before, &after).cloned().collect())
}

/// Ours that wait for a lock are what is blocked.
fn in_the_way(session: &Session) -> bool {
    let is_blocked = session.is_ours() && !session.waits_for.is_empty();
    !is_blocked && (session.exclusive || !session.blocks.is_empty())
}

/// In the way both times, in the same transaction.
fn staying<'a>(before: &[Session], after: &'a [Session]) -> impl Iterator<Item = &'a Session> {
    after.iter().filter(|session| in_the_way(session)).filter(|session| {
        before.iter().any(|earlier| {
            in_the_way(earlier)
                && (earlier.pid, &earlier.transaction) == (session.pid, &session.transaction)
        })
    })
}

/// The holders of a lock that a migration waits for, the oldest transactions first: of the lock of
/// migrations itself, or of any on the tables.
pub(super) async fn holders(
    connection: &mut PgConnection,
    lock_of_migrations: bool,
) -> Result<Vec<String>, Error> {
    let mut sessions = sessions(connection).await?;
    sessions.retain(|session| session.migrates || !lock_of_migrations);
    sessions.sort_by(|a, b| b.age.partial_cmp(&a.age).unwrap_or(Ordering::Equal));
    Ok(sessions.iter().take(NAMED).map(ToString::to_string).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A session with a lock that counting may have to wait for.
    pub(crate) fn session(pid: i32, transaction: &str) -> Session {
        Session {
            pid: Some(pid),
            transaction: transaction.to_owned(),
            exclusive: true,
            ..Session::default()
        }
    }

    #[test]
    fn only_what_stays_in_one_transaction_is_in_the_way() {
        let reader = Session { exclusive: false, ..session(3, "5/1") };
        let waiting = Session {
            application: Some("vote-aggregator".to_owned()),
            waits_for: vec![1],
            ..session(4, "6/1")
        };
        let before = [session(1, "3/1"), session(2, "4/1"), reader.clone(), waiting.clone()];
        let after = [session(1, "3/1"), session(2, "4/2"), reader, waiting];
        let pids: Vec<_> = staying(&before, &after).map(|session| session.pid).collect();
        assert_eq!(pids, [Some(1)]);
    }
}
