//! The cell that a database is, kept in its table `vote_cell`: a copied `.env` must not count the votes of one
//! cell into another one.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error};

use super::connection::{Address, options};
use super::error::{StartError, describe};
use super::within;
use crate::model::cell::Cell;
use crate::platform::config::Config;

const MARK: &str = include_str!("mark_cell.sql");
/// The migration that made the table.
const MIGRATION: i64 = 4;

/// Reads which cell the database is; `None`: none.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Option<String>, Error> {
    sqlx::query_scalar("SELECT setting FROM vote_cell").fetch_optional(connection).await
}

/// Whether the database is the cell that CELL names.
pub(super) fn verify(config: &Config, database: Option<&str>) -> Result<(), StartError> {
    let setting = config.rabbitmq.cell.map(|cell| cell.to_string());
    let queue = &config.rabbitmq.queue;
    let reason = match (setting, database) {
        (setting, database) if setting.as_deref() == database => return Ok(()),
        (Some(setting), None) => format!(
            "CELL is {setting}, and the database is not marked as a cell; if it is new, run \
             `vote-aggregator migrate --cell {setting}` as the owner of the tables"
        ),
        (Some(setting), Some(database)) => format!(
            "CELL is {setting}, the queue is {queue:?}, and the database is cell {database}; set the three of \
             one cell"
        ),
        (None, _) => format!(
            "the database is cell {}, and CELL is not set; set CELL and the queue of that cell",
            database.unwrap_or_default()
        ),
    };
    Err(StartError::OtherCell { reason, place: describe(&config.postgres) })
}

/// Marks the database, which has no votes yet, as this cell. Again, it changes nothing.
///
/// # Errors
/// [`StartError::OtherCell`] when it is another cell, or has votes.
pub(super) async fn mark(config: &Config, cell: Cell) -> Result<(), StartError> {
    let setting = cell.to_string();
    let marking = async {
        let mut connection =
            Address::new(&config.postgres, options(&config.postgres)).connect().await?;
        let marked = sqlx::query_scalar::<_, Option<String>>(MARK).bind(&setting).bind(MIGRATION);
        let marked = marked.fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok::<_, StartError>(marked)
    };
    let reason = match within(config.postgres.transaction_deadline(), marking).await? {
        Some(marked) if marked == setting => return Ok(()),
        Some(other) => format!("it is cell {other} and not {setting}, and a cell never changes"),
        None => format!(
            "it has votes, some of which may belong to another cell than {setting}; create a new database"
        ),
    };
    Err(StartError::OtherCell { reason, place: describe(&config.postgres) })
}
