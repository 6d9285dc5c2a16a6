//! The servers that are harmed: a RabbitMQ and a PostgreSQL of this run's own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, PgConnection};
use tokio::process::Command;
use tokio::time::timeout;

use crate::processes::signal_tree;
use crate::{PATIENCE, Result};

#[derive(Clone, Copy, Debug)]
pub enum Server {
    RabbitMq,
    Postgres,
}

impl Server {
    /// As `script/services` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Postgres => "postgres",
        }
    }
}

/// Variables and their values.
pub type Environment = BTreeMap<String, String>;

/// Started and ended by `script/services`.
pub struct Servers {
    dir: PathBuf,
    /// `script/services env`: addresses and credentials under the service's own variable names.
    pub env: Environment,
}

impl Servers {
    /// Beside the servers of the test run, where script/test finds what a killed run left behind.
    pub fn new() -> Self {
        let name = format!("chaos-{}", std::process::id());
        let dir = match std::env::var_os("SERVICES_DIR") {
            Some(shared) => PathBuf::from(shared).with_file_name(name),
            None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("services").join(name),
        };
        Self { dir, env: BTreeMap::new() }
    }

    pub async fn up(&mut self) -> Result<()> {
        self.script(&["up"]).await?;
        let lines = self.script(&["env"]).await?;
        let exports =
            lines.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let exports = exports.map(|(name, value)| (name, value.trim_matches('\'')));
        self.env = exports.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(())
    }

    /// Ends both, whatever state they are in, and deletes their data.
    pub async fn down(&self) -> Result<()> {
        self.script(&["down"]).await.map(drop)
    }

    /// One value of `script/services env`.
    pub fn get(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    pub fn address(&self, server: &str) -> Result<SocketAddr> {
        let (host, port) = (format!("{server}_HOST"), format!("{server}_PORT"));
        Ok(format!("{}:{}", self.get(&host), self.get(&port)).parse()?)
    }

    /// Runs a command of script/services; returns its output.
    pub async fn script(&self, arguments: &[&str]) -> Result<String> {
        let Some((command, rest)) = arguments.split_first() else { return Ok(String::new()) };
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/script/services"));
        let output = script.args([command, "--dir"]).arg(&self.dir).args(rest).output().await?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("script/services {}: {stderr}", arguments.join(" ")).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command of `rabbitmqctl`; returns its output.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        self.script(&[&["ctl", "--", "--quiet"], arguments].concat()).await
    }

    /// Sends a signal to a server's process and all below it: PostgreSQL has one for each connection.
    pub async fn signal(&self, server: Server, signal: Signal) -> Result<()> {
        signal_tree(self.script(&["pid", server.name()]).await?.trim().parse()?, signal);
        Ok(())
    }

    /// Deadlocks in PostgreSQL's log so far: sorted batches must cause none. The seeded mutant
    /// `lock-hashes-in-another-order` shows that the log has them.
    pub async fn deadlocks(&self) -> Result<usize> {
        Ok(self.script(&["log", "postgres"]).await?.matches("ERROR:  deadlock detected").count())
    }

    /// The account that PostgreSQL runs as.
    pub async fn postgres_owner(&self) -> Result<u32> {
        use std::os::unix::fs::MetadataExt;
        let pid = self.script(&["pid", "postgres"]).await?;
        Ok(std::fs::metadata(format!("/proc/{}", pid.trim()))?.uid())
    }

    /// A connection past every proxy, as the owner of everything.
    pub async fn sql(&self, database: &str) -> Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass()
            .host(self.get("POSTGRES_HOST"))
            .port(self.get("POSTGRES_PORT").parse()?)
            .username(self.get("POSTGRES_USER"))
            .password(self.get("POSTGRES_PASSWORD"))
            .database(database)
            .disable_statement_logging();
        Ok(timeout(PATIENCE, options.connect()).await??)
    }

    /// Runs statements without parameters, on a connection of their own.
    pub async fn execute(&self, database: &str, statements: &str) -> Result<()> {
        let mut connection = self.sql(database).await?;
        let run = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection);
        timeout(PATIENCE, run).await??;
        connection.close().await?;
        Ok(())
    }

    /// Messages ready in a queue.
    pub async fn ready(&self, queue: &str) -> Result<u32> {
        let connection = self.amqp().await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        // A connection that the broker ended cannot be closed.
        connection.close(200, "OK".into()).await.ok();
        Ok(declared?.message_count())
    }

    /// A connection past every proxy. Its heartbeat notices a broker that stands still.
    pub async fn amqp(&self) -> Result<Connection> {
        let [host, port, user, password] =
            ["HOST", "PORT", "USER", "PASSWORD"].map(|name| self.get(&format!("RABBITMQ_{name}")));
        let uri = format!("amqp://{user}:{password}@{host}:{port}/%2f?heartbeat=5");
        let connecting = Connection::connect(&uri, ConnectionProperties::default());
        Ok(timeout(PATIENCE, connecting).await??)
    }
}
