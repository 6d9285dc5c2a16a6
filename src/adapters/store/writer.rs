//! Several addresses: which of them has the server that takes writes, as libpq's
//! `target_session_attrs=read-write` finds out.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, FromRow};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::connection::Address;
use super::error::StartError;
use super::sqlstate::fatal_at_start;
use super::{CONNECT_TIMEOUT, PgStore, no_answer};
use crate::model::ports::{Class, Fault};
use crate::platform::config::{Postgres, ServerAddress};

/// Over the simple protocol: one round trip.
const ROLE: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";
/// SQLSTATE of a write on a server that takes none.
const READ_ONLY: &str = "25006";

/// The search for the server that takes writes.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// A connection to it was lost, or it refused a write.
    lost: AtomicBool,
    /// When the last search ended, and how.
    last: Mutex<Option<(Instant, Result<(), Fault>)>>,
}

/// What a server of a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    TakesWrites,
    Standby,
    /// No standby, but `default_transaction_read_only` is on.
    ReadOnly,
}

/// The server behind each address of a list.
pub async fn roles(config: &Postgres) -> Vec<(ServerAddress, Result<Role, StartError>)> {
    let address = Address::limited(config, config.statement_timeout);
    let address = address.named("vote-aggregator check");
    let probe = async |index: usize| {
        let connected = address.at(index).connect_with_role().await;
        (config.at(index).address(), connected.map(|(_, role)| role))
    };
    join_all((0..config.host.count()).map(probe)).await
}

impl Address {
    /// A connection, which is to the server that takes writes if there are several addresses: the one in
    /// use before the others in their order, and the one that is found is in use from now on. All are asked
    /// at the same time, so that silent ones together cost no more than one.
    pub(super) async fn connect(&self) -> Result<PgConnection, StartError> {
        let hosts = &self.config.host;
        if hosts.count() == 1 {
            return self.open().await;
        }
        let mut refusals = Vec::new();
        let asked = hosts.in_turn().map(|index| async move {
            let address = self.at(index);
            let answer = address.connect_with_role().await;
            (index, address, answer)
        });
        let mut answers = stream::iter(asked).buffered(hosts.count());
        while let Some((index, address, answer)) = answers.next().await {
            let refusal = match answer {
                Ok((connection, Role::TakesWrites)) => {
                    if hosts.set_in_use(index) {
                        let address = address.config.address().to_string();
                        tracing::info!(address, "another server takes writes");
                    }
                    return Ok(connection);
                }
                Ok((_, Role::Standby)) => takes_no_writes("a standby"),
                Ok((_, Role::ReadOnly)) => takes_no_writes("default_transaction_read_only is on"),
                Err(error) => error,
            };
            refusals.push((address.config.address(), refusal));
        }
        Err(none_takes_writes(refusals))
    }

    /// The address with this index alone.
    fn at(&self, index: usize) -> Self {
        Self { options: self.options.clone(), config: self.config.at(index), ..*self }
    }

    async fn connect_with_role(&self) -> Result<(PgConnection, Role), StartError> {
        let mut connection = self.open().await?;
        let asking = sqlx::raw_sql(ROLE).fetch_one(&mut connection);
        let row = timeout(CONNECT_TIMEOUT, asking).await;
        let row = row.map_err(|_| no_answer(Class::Reconnect, CONNECT_TIMEOUT))??;
        let (standby, read_only) = <(bool, bool)>::from_row(&row)?;
        Ok((
            connection,
            match (standby, read_only) {
                (true, _) => Role::Standby,
                (_, true) if !self.reads => Role::ReadOnly,
                _ => Role::TakesWrites,
            },
        ))
    }
}

pub(super) fn takes_no_writes(what: &str) -> StartError {
    let fault = Fault::new(Class::Reconnect, format!("it takes no writes: {what}"));
    Fault { sqlstate: Some(READ_ONLY.to_owned()), ..fault }.into()
}

/// The error of all addresses together. The service waits as long as one of them may take writes later.
fn none_takes_writes(refusals: Vec<(ServerAddress, StartError)>) -> StartError {
    let reasons = refusals.iter().map(|(address, refusal)| format!("{address}: {refusal}"));
    let reasons = reasons.collect::<Vec<_>>().join("; ");
    let lasts = |refusal: &StartError| match refusal {
        StartError::Unavailable(fault) => {
            fault.sqlstate.as_deref().is_some_and(|code| code == "3D000" || fatal_at_start(code))
        }
        _ => true,
    };
    let all_last = refusals.iter().all(|(_, refusal)| lasts(refusal));
    let mut refusals = refusals.into_iter().map(|(_, refusal)| refusal);
    let first = refusals.find(|refusal| lasts(refusal) == all_last);
    let mut first = first.expect("a list has addresses");
    if let StartError::Unavailable(fault)
    | StartError::Certificate(fault)
    | StartError::Tls(fault)
    | StartError::Settings(fault) = &mut first
    {
        fault.message = format!("none of the addresses takes writes: {reasons}");
    }
    first
}

impl PgStore {
    /// A connection outside the pool, as [`Address::connect`] opens it; where that is at another address
    /// than before, the pool follows.
    pub(super) async fn connect(&self) -> Result<PgConnection, StartError> {
        let hosts = &self.address.config.host;
        let before = hosts.in_use();
        let opened = self.address.connect().await;
        // Also for the connections that the pool opens by itself, to keep its minimum.
        self.address.renew_options(&self.pool);
        if hosts.in_use() != before {
            self.generation.invalidate();
        }
        opened
    }

    /// Notes that the server may no longer take writes.
    pub(super) fn lose_writer(&self) {
        let is_list = self.address.config.host.count() > 1;
        self.search.lost.store(is_list, Ordering::Relaxed);
    }

    /// Finds the server that takes writes if it was lost: once for all batches that wait for it.
    pub(super) async fn find_writer(&self) -> Result<(), Fault> {
        let Search { lost, last } = &*self.search;
        if !lost.load(Ordering::Relaxed) {
            return Ok(());
        }
        let asked = Instant::now();
        let mut last = last.lock().await;
        if let Some((ended, found)) = &*last
            && *ended >= asked
        {
            return found.clone();
        }
        let found = match self.connect().await {
            Ok(connection) => {
                lost.store(false, Ordering::Relaxed);
                connection.close().await.ok();
                Ok(())
            }
            Err(error) => Err(error.into()),
        };
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errors: [StartError; 2]) -> StartError {
        let address = |host: &str| ServerAddress { host: host.to_owned(), port: 5432 };
        none_takes_writes([address("a"), address("b")].into_iter().zip(errors).collect())
    }

    fn login() -> StartError {
        let fault = Fault::new(Class::Pause, "password authentication failed");
        Fault { sqlstate: Some("28P01".to_owned()), ..fault }.into()
    }

    #[test]
    fn a_list_is_waited_for_unless_every_address_is_refused_for_good() {
        let standby = refused([login(), takes_no_writes("a standby")]);
        let StartError::Unavailable(fault) = &standby else { panic!("{standby}") };
        assert_eq!(fault.sqlstate.as_deref(), Some(READ_ONLY));
        for reason in ["a:5432: password", "b:5432: it takes no writes: a standby"] {
            assert!(fault.message.contains(reason), "{fault}");
        }
        let StartError::Unavailable(fault) = refused([login(), login()]) else { panic!("a fault") };
        assert_eq!(fault.sqlstate.as_deref(), Some("28P01"), "fatal at start");
        let tls = || StartError::Tls(Fault::new(Class::Reconnect, "not trusted"));
        assert!(matches!(refused([login(), tls()]), StartError::Unavailable(_)));
        assert!(matches!(refused([tls(), login()]), StartError::Tls(_)));
    }
}
