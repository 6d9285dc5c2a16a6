//! `migrate`.

use std::time::Duration;

use clap::Args;
use vote_aggregator::adapters::store::{self, Migrated, Patience};
use vote_aggregator::model::cell::Cell;
use vote_aggregator::platform::config::Config;

use super::exit::{self, Outcome};
use super::{RETRY_FOR, output, seconds};

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator migrate                       waits for PostgreSQL, applies what is missing
  vote-aggregator migrate --wait 600            waits up to 10 minutes for locks that others hold
  vote-aggregator migrate --print > init_db.sql the schema as one script for psql -f
  vote-aggregator migrate --cell 3/16           marks a new database as cell 3 of 0 to 15

Each migration is one transaction that waits at most 2 s for a lock, so that counting goes on, and is
tried again until --wait is over. Then the exit code is 75, and the log names who holds the lock. A
PostgreSQL that is unavailable or read-only is retried until --retry-for is over; then it is 75, too.")]
pub(super) struct Arguments {
    /// Print the whole schema as one SQL script and touch no database
    #[arg(long)]
    pub(super) print: bool,
    /// Mark a database without votes as this cell, such as 3/16 or crc32:3/16, for good
    #[arg(long, value_name = "CELL", conflicts_with = "print")]
    cell: Option<Cell>,
    /// Seconds to wait for locks that other sessions hold
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds(), conflicts_with = "print")]
    wait: Duration,
    /// Seconds to retry while PostgreSQL is unavailable or read-only; 0: do not retry
    #[arg(long, value_name = "SECONDS", default_value = RETRY_FOR, value_parser = seconds(), conflicts_with = "print")]
    retry_for: Duration,
}

pub(super) async fn migrate(config: &Config, arguments: &Arguments) -> Outcome {
    let patience = Patience { locks: Some(arguments.wait), ..Patience::new(arguments.retry_for) };
    if let (Some(setting), Some(cell)) = (config.rabbitmq.cell, arguments.cell)
        && setting != cell
    {
        let error = format!("--cell {cell} contradicts CELL={setting}");
        return Err(exit::cannot("migrate", error, exit::USAGE));
    }
    let migrated = store::migrate(config, patience, arguments.cell).await;
    let migrated = migrated.map_err(exit::without_postgres("migrate"))?;
    let marked = arguments.cell.map(|cell| format!("this database is cell {cell}\n"));
    output::report(&(text(&migrated) + &marked.unwrap_or_default()))?;
    Ok(0)
}

fn text(Migrated { applied, newer }: &Migrated) -> String {
    match applied {
        0 if newer.is_empty() => "the schema is up to date\n".to_owned(),
        0 => format!(
            "nothing to do: the database has later migrations, {newer:?}, which this release can \
             run on\n"
        ),
        _ => format!("migrations applied: {applied}\n"),
    }
}
