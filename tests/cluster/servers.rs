//! The three hosts, as `script/cluster` starts them and breaks them.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::{PATIENCE, Result};

pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/script/cluster");
pub const HOSTS: [u8; 3] = [1, 2, 3];
/// A server that answers does so at once: all are on this machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A host that was lost is copied anew, if the worst comes to the worst.
const HEALTHY_WITHIN: Duration = Duration::from_secs(240);

/// Variables and their values.
pub type Environment = BTreeMap<String, String>;

pub struct Servers {
    pub dir: PathBuf,
    /// `script/cluster env`: addresses and credentials under the service's own variable names.
    pub env: Environment,
    /// Which node the publisher tries next.
    next: AtomicU8,
}

/// What the addresses of all hosts begin with.
static NETWORK: OnceLock<String> = OnceLock::new();

pub fn address(host: u8) -> String {
    format!("{}.{host}", NETWORK.get().map_or("", String::as_str))
}

impl Servers {
    pub async fn new(dir: PathBuf) -> Result<Self> {
        let mut servers = Self { dir, env: Environment::new(), next: AtomicU8::new(0) };
        let lines = servers.script(&["env"]).await?;
        let exports = lines.split_whitespace().filter_map(|word| word.split_once('='));
        servers.env = exports.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let first = servers.get("POSTGRES_HOST").split(',').next();
        let network = first.and_then(|first| first.rsplit_once('.')).ok_or("no addresses")?.0;
        NETWORK.set(network.to_owned())?;
        Ok(servers)
    }

    /// Runs a command of script/cluster; returns its output.
    pub async fn script(&self, arguments: &[&str]) -> Result<String> {
        let Some((command, rest)) = arguments.split_first() else { return Ok(String::new()) };
        let mut script = Command::new(SCRIPT);
        script.args([command, "--dir"]).arg(&self.dir).args(rest).kill_on_drop(true);
        let output = timeout(2 * PATIENCE, script.output()).await.map_err(|_| {
            format!("script/cluster {}: no end in {:?}", arguments.join(" "), 2 * PATIENCE)
        })??;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("script/cluster {}: {stderr}", arguments.join(" ")).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command of script/cluster on these hosts and services; on all services without a name.
    pub async fn act(&self, command: &str, hosts: &[u8], services: &[&str]) -> Result<()> {
        let hosts = hosts.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
        self.script(&[&[command, hosts.as_str()], services].concat()).await.map(drop)
    }

    pub async fn link(&self, host: u8, state: &str) -> Result<()> {
        self.script(&["link", &host.to_string(), state]).await.map(drop)
    }

    /// Whether each host has links that can fail.
    pub fn has_links(&self) -> bool {
        !address(1).starts_with("127.")
    }

    fn get(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    // --- PostgreSQL ---

    /// The host whose Patroni says that it is the primary.
    pub async fn find_primary(&self) -> Option<u8> {
        for host in HOSTS {
            if matches!(get(&address(host), 8008, "/primary").await, Ok((200, _))) {
                return Some(host);
            }
        }
        None
    }

    pub async fn primary(&self) -> Result<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(primary) = self.find_primary().await {
                return Ok(primary);
            }
            if Instant::now() > deadline {
                return Err("no PostgreSQL is the primary".into());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits for a primary other than this one.
    pub async fn primary_after(&self, before: u8) -> Result<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.find_primary().await {
                Some(primary) if primary != before => return Ok(primary),
                _ if Instant::now() > deadline => return Err("no standby was promoted".into()),
                _ => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    pub async fn until_primary(&self, host: u8) {
        while self.find_primary().await != Some(host) {
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Whether a primary holds the key in etcd, by what the Patroni of this host sees.
    pub async fn has_leader(&self, host: u8) -> bool {
        let Ok(cluster) = self.cluster(host).await else { return true };
        let members = cluster["members"].as_array();
        members.into_iter().flatten().any(|member| member["role"] == "leader")
    }

    async fn cluster(&self, host: u8) -> Result<Value> {
        let (_, body) = get(&address(host), 8008, "/cluster").await?;
        Ok(serde_json::from_str(&body)?)
    }

    /// Bytes of WAL that a standby has.
    pub async fn received(&self, host: u8) -> Result<i64> {
        let received = "SELECT (GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0')::bigint";
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asking = async {
                let mut sql = self.sql_on(host, "postgres").await?;
                Ok::<i64, Box<dyn Error + Send + Sync>>(
                    sqlx::query_scalar(received).fetch_one(&mut sql).await?,
                )
            };
            match asking.await {
                Ok(received) => return Ok(received),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(300)).await,
            }
        }
    }

    /// A connection to the server on this host, as the owner of everything.
    pub async fn sql_on(&self, host: u8, database: &str) -> Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&address(host))
            .username(self.get("POSTGRES_USER"))
            .password(self.get("POSTGRES_PASSWORD"))
            .database(database)
            .disable_statement_logging();
        let connecting = timeout(ANSWER_WITHIN, options.connect()).await;
        Ok(connecting.map_err(|_| format!("PostgreSQL on host {host} does not answer"))??)
    }

    /// A connection to the primary.
    pub async fn sql(&self, database: &str) -> Result<PgConnection> {
        let primary = self.find_primary().await.ok_or("no PostgreSQL is the primary")?;
        self.sql_on(primary, database).await
    }

    /// A connection to the primary, as soon as there is one.
    pub async fn sql_at_last(&self, database: &str) -> Result<PgConnection> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.sql(database).await {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(300)).await,
            }
        }
    }

    /// Runs statements without parameters on the primary, on a connection of their own.
    pub async fn execute(&self, database: &str, statements: &str) -> Result<()> {
        let mut connection = self.sql_at_last(database).await?;
        let run = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection);
        timeout(PATIENCE, run).await??;
        connection.close().await?;
        Ok(())
    }

    /// Deadlocks in the logs of all three.
    pub fn deadlocks(&self) -> Result<usize> {
        let mut deadlocks = 0;
        for host in HOSTS {
            let log = std::fs::read(self.dir.join(format!("{host}-patroni.log")))?;
            deadlocks += String::from_utf8_lossy(&log).matches("ERROR:  deadlock detected").count();
        }
        Ok(deadlocks)
    }

    // --- RabbitMQ ---

    /// The host of the queue's leader.
    pub async fn leader(&self, queue: &str) -> Result<u8> {
        let deadline = Instant::now() + PATIENCE;
        for host in HOSTS.into_iter().cycle() {
            let host = host.to_string();
            let list = ["ctl", &host, "--", "--quiet", "list_queues", "name", "leader"];
            let queues = self.script(&list).await;
            let found = queues.as_ref().ok().and_then(|queues| {
                let mut rows = queues.lines().filter_map(|line| line.split_once('\t'));
                let (_, leader) = rows.find(|(name, _)| *name == queue)?;
                leader.trim().rsplit('.').next()?.parse().ok()
            });
            match (found, queues) {
                (Some(leader), _) => return Ok(leader),
                (None, Ok(_)) if Instant::now() > deadline => break,
                (None, Err(error)) if Instant::now() > deadline => return Err(error),
                _ => sleep(Duration::from_millis(500)).await,
            }
        }
        Err("the queue has no leader".into())
    }

    /// A connection to one of the nodes, another one at each call. Its heartbeat notices a node that stands
    /// still.
    pub async fn amqp(&self) -> Result<Connection> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.amqp_on(HOSTS[usize::from(next) % HOSTS.len()]).await
    }

    /// A connection to the first node that answers.
    pub async fn amqp_anywhere(&self) -> Result<Connection> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.amqp().await {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn amqp_on(&self, host: u8) -> Result<Connection> {
        let [user, password] =
            ["USER", "PASSWORD"].map(|name| self.get(&format!("RABBITMQ_{name}")));
        let uri = format!("amqp://{user}:{password}@{}:5672/%2f?heartbeat=5", address(host));
        let connecting = Connection::connect(&uri, ConnectionProperties::default());
        let connected = timeout(ANSWER_WITHIN, connecting).await;
        Ok(connected.map_err(|_| format!("RabbitMQ on host {host} does not answer"))??)
    }

    /// Messages ready in a queue, and its consumers, by one of the nodes that answers.
    pub async fn queue(&self, queue: &str) -> Result<(u32, u32)> {
        let deadline = Instant::now() + PATIENCE;
        for host in HOSTS.into_iter().cycle() {
            match timeout(ANSWER_WITHIN, self.queue_on(host, queue)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) if Instant::now() > deadline => return Err(error),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                _ => sleep(Duration::from_millis(300)).await,
            }
        }
        Err("no node of RabbitMQ".into())
    }

    /// Waits until a node answers about the queue.
    pub async fn until_node(&self, host: u8, queue: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !matches!(timeout(ANSWER_WITHIN, self.queue_on(host, queue)).await, Ok(Ok(_))) {
            if Instant::now() > deadline {
                return Err(format!("the node on host {host} did not come back").into());
            }
            sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }

    /// Messages ready or unacked.
    pub async fn messages(&self, queue: &str) -> Result<u64> {
        let (ready, _) = self.queue(queue).await?;
        if ready > 0 {
            return Ok(ready.into());
        }
        // Only the broker's own tool counts what is unacked, and it takes its time.
        let queues =
            self.script(&["ctl", "1", "--", "--quiet", "list_queues", "name", "messages"]).await?;
        let mut columns = queues.lines().filter_map(|line| line.split_once('\t'));
        let ours = columns.find(|(name, _)| *name == queue);
        Ok(ours.ok_or("the queue is gone")?.1.trim().parse()?)
    }

    async fn queue_on(&self, host: u8, queue: &str) -> Result<(u32, u32)> {
        let connection = self.amqp_on(host).await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        // A connection that the broker ended cannot be closed.
        connection.close(200, "OK".into()).await.ok();
        let declared = declared?;
        Ok((declared.message_count(), declared.consumer_count()))
    }

    // --- all of it ---

    /// Waits until every server is back where it belongs: a primary with two standbys, and on each host
    /// a queue that answers and an etcd with a leader.
    pub async fn until_healthy(&self, queue: &str) -> Result<()> {
        let deadline = Instant::now() + HEALTHY_WITHIN;
        loop {
            let Err(reason) = self.healthy(queue).await else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(format!("not healthy in {HEALTHY_WITHIN:?}: {reason}").into());
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn healthy(&self, queue: &str) -> Result<()> {
        let primary = self.find_primary().await.ok_or("no primary")?;
        let (_, config) = get(&address(primary), 8008, "/config").await?;
        let is_synchronous =
            serde_json::from_str::<Value>(&config)?["synchronous_mode"] == "quorum";
        let role = if is_synchronous { "quorum_standby" } else { "replica" };
        for host in HOSTS {
            // By what each host sees: a standby promotes itself only if its Patroni knows it as a synchronous one.
            let cluster = self.cluster(host).await?;
            let members = cluster["members"].as_array().into_iter().flatten();
            let standbys =
                members.filter(|member| member["role"] == role && member["state"] == "streaming");
            if standbys.count() != 2 {
                return Err(format!("host {host}: {cluster}").into());
            }
        }
        for host in HOSTS {
            timeout(ANSWER_WITHIN, self.queue_on(host, queue)).await??;
            // Whether etcd has a leader there; and Patroni promotes none that the primary has not yet listed since
            // it came back.
            let (_, etcd) = get(&address(host), 2379, "/health").await?;
            let (_, listed) = get(&address(host), 8008, "/failsafe").await?;
            let all_listed = HOSTS.iter().all(|host| listed.contains(&format!("host{host}")));
            if !etcd.contains("true") || !all_listed {
                return Err(format!("host {host}: etcd {etcd}, Patroni lists {listed}").into());
            }
        }
        Ok(())
    }
}

/// One request by HTTP: status and body.
pub async fn get(host: &str, port: u16, path: &str) -> Result<(u16, String)> {
    let asking = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP")?;
        let status = head.split(' ').nth(1).ok_or("no status")?.parse()?;
        Ok::<_, Box<dyn Error + Send + Sync>>((status, body.to_owned()))
    };
    timeout(ANSWER_WITHIN, asking).await.map_err(|_| format!("{host}:{port} does not answer"))?
}
