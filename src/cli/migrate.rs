//! `migrate`.

use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;
use vote_aggregator::config::Config;
use vote_aggregator::retry::Jitter;
use vote_aggregator::store;
use vote_aggregator::telemetry::Health;

use super::exit;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator migrate                       waits for PostgreSQL, applies what is missing
  vote-aggregator migrate --print > init_db.sql the schema as one script for psql -f")]
pub(super) struct Arguments {
    /// Print the whole schema as one SQL script and touch no database
    #[arg(long)]
    pub(super) print: bool,
}

pub(super) async fn migrate(config: &Config) -> ExitCode {
    let (jitter, health) = (Jitter::from_entropy(), Health::default());
    match store::migrate(config, &jitter, &health, &CancellationToken::new()).await {
        Ok(Some(0)) => println!("the schema is up to date"),
        Ok(applied) => println!("migrations applied: {}", applied.unwrap_or_default()),
        Err(error) => {
            tracing::error!("cannot migrate: {error}");
            return ExitCode::from(exit::of_postgres(&error));
        }
    }
    ExitCode::SUCCESS
}
