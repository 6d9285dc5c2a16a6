//! `migrate`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;
use vote_aggregator::config::Config;
use vote_aggregator::retry::Jitter;
use vote_aggregator::store::{self, Migrated};
use vote_aggregator::telemetry::Health;

use super::exit;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator migrate                       waits for PostgreSQL, applies what is missing
  vote-aggregator migrate --wait 600            waits up to 10 minutes for locks that others hold
  vote-aggregator migrate --print > init_db.sql the schema as one script for psql -f

Each migration is one transaction that waits at most 2 s for a lock, so that counting goes on, and is
tried again until --wait is over. Then the exit code is 75, and the log names who holds the lock.")]
pub(super) struct Arguments {
    /// Print the whole schema as one SQL script and touch no database
    #[arg(long)]
    pub(super) print: bool,
    /// Seconds to wait for locks that other sessions hold
    #[arg(long, value_name = "SECONDS", default_value_t = 60, conflicts_with = "print")]
    wait: u32,
}

pub(super) async fn migrate(config: &Config, arguments: &Arguments) -> ExitCode {
    let (jitter, health) = (Jitter::from_entropy(), Health::default());
    let patience = Duration::from_secs(arguments.wait.into());
    let stop = CancellationToken::new();
    match store::migrate(config, &jitter, &health, patience, &stop).await {
        Ok(migrated) => match migrated.unwrap_or_default() {
            Migrated { applied: 0, newer } if newer.is_empty() => {
                println!("the schema is up to date");
            }
            Migrated { applied: 0, newer } => println!(
                "nothing to do: the database has later migrations, {newer:?}, which this release \
                 can run on"
            ),
            Migrated { applied, .. } => println!("migrations applied: {applied}"),
        },
        Err(error) => {
            tracing::error!("cannot migrate: {error}");
            return ExitCode::from(exit::of_postgres(&error));
        }
    }
    ExitCode::SUCCESS
}
