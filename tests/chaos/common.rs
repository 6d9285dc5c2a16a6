//! What runs of chaos and of the three hosts prepare and measure in the same way.

use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::phase::Setup;
use crate::servers::{Environment, Servers};
use crate::traffic::POISONOUS;
use crate::{PATIENCE, Result};

/// Waiting longer is useless: the verdict is no by then.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);

/// The variables of an instance: the servers', `settings`, and its own. Of three, one has the defaults, one tries again
/// quickly with several batches in flight, one has large batches.
pub fn environment(servers: &Servers, index: usize, settings: &str) -> Environment {
    let own = match index % 3 {
        1 => "RETRY_DELAY_SECONDS=0.2 RABBITMQ_PREFETCH_COUNT=400 BATCH_TIMEOUT_SECONDS=0.2",
        2 => "PIPELINE_PROFILE=throughput",
        _ => "",
    };
    let settings = format!("LOG_FORMAT=json {own} {settings}");
    let settings = settings.split_whitespace().filter_map(|setting| setting.split_once('='));
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    servers.env.clone().into_iter().chain(settings).collect()
}

/// Creates the database that these variables name, with its tables.
pub async fn migrate(setup: &Setup, environment: &Environment) -> Result<()> {
    let Setup { servers, binary, directory, .. } = setup;
    let create = format!("CREATE DATABASE {}", environment["POSTGRES_DB"]);
    servers.execute("postgres", &create).await?;
    let mut migrate = Command::new(binary);
    migrate.arg("migrate").env_clear().envs(environment).current_dir(directory).kill_on_drop(true);
    let migrated = timeout(PATIENCE, migrate.output()).await??;
    if !migrated.status.success() {
        let stderr = String::from_utf8_lossy(&migrated.stderr);
        return Err(format!("{} migrate: {stderr}", binary.display()).into());
    }
    Ok(())
}

/// Has the database refuse some votes.
pub async fn refuse_poison(servers: &Servers, database: &str) -> Result<()> {
    let check = format!("CHECK (citizen_id NOT LIKE '{POISONOUS}%')");
    let constraint = format!("ALTER TABLE vote_audit ADD CONSTRAINT no_poison {check}");
    servers.execute(database, &constraint).await
}

/// Seconds until the queue has no message, neither ready nor unacked.
pub async fn drain(messages: impl AsyncFn() -> Result<u64>) -> Result<Option<f64>> {
    let began = Instant::now();
    while began.elapsed() < DRAIN_PATIENCE {
        let asked = began.elapsed();
        if messages().await? == 0 {
            return Ok(Some(asked.as_secs_f64()));
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(None)
}
