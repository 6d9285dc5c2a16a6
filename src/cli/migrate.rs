//! `migrate`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use vote_aggregator::adapters::store::{self, Migrated, Patience};
use vote_aggregator::platform::config::Config;

use super::{RETRY_FOR, exit, output};

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator migrate                       waits for PostgreSQL, applies what is missing
  vote-aggregator migrate --wait 600            waits up to 10 minutes for locks that others hold
  vote-aggregator migrate --print > init_db.sql the schema as one script for psql -f

Each migration is one transaction that waits at most 2 s for a lock, so that counting goes on, and is
tried again until --wait is over. Then the exit code is 75, and the log names who holds the lock. A
PostgreSQL that is away or read-only is tried again until --retry-for is over; then it is 75, too.")]
pub(super) struct Arguments {
    /// Print the whole schema as one SQL script and touch no database
    #[arg(long)]
    pub(super) print: bool,
    /// Seconds to wait for locks that other sessions hold
    #[arg(long, value_name = "SECONDS", default_value_t = 60, conflicts_with = "print")]
    wait: u32,
    /// Seconds to try for while PostgreSQL is away or read-only; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = RETRY_FOR, conflicts_with = "print")]
    retry_for: u32,
}

pub(super) async fn migrate(config: &Config, arguments: &Arguments) -> ExitCode {
    let [retry_for, wait] =
        [arguments.retry_for, arguments.wait].map(|seconds| Duration::from_secs(seconds.into()));
    let patience = Patience { locks: Some(wait), ..Patience::new(retry_for) };
    match store::migrate(config, patience).await {
        Ok(migrated) => output::ended(output::report(&text(&migrated)), 0),
        Err(error) => {
            tracing::error!("cannot migrate: {error}");
            ExitCode::from(exit::of_postgres(&error))
        }
    }
}

fn text(migrated: &Migrated) -> String {
    match migrated {
        Migrated { applied: 0, newer } if newer.is_empty() => {
            "the schema is up to date\n".to_owned()
        }
        Migrated { applied: 0, newer } => format!(
            "nothing to do: the database has later migrations, {newer:?}, which this release can \
             run on\n"
        ),
        Migrated { applied, .. } => format!("migrations applied: {applied}\n"),
    }
}
