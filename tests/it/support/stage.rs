//! A database and a queue of a test's own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::sync::atomic::{AtomicU32, Ordering};

use lapin::message::Delivery;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::timeout;
use vote_aggregator::adapters::broker::RabbitMq;
use vote_aggregator::adapters::store::{self, PgStore, StartError};
use vote_aggregator::model::vote::Vote;
use vote_aggregator::platform::config::{Config, Sources};
use vote_aggregator::platform::retry::Jitter;
use vote_aggregator::platform::telemetry::Health;

use super::process::Environment;
use super::tables::{self, AUDIT, RECOUNT, RESULTS, Totals};
use super::{PATIENCE, Servers, Service, eventually, messages, settings, votes};

/// Publishes that may wait for their confirm at a time.
const UNCONFIRMED: usize = 5_000;

/// The database and the queue of one test.
pub struct Stage<'s> {
    pub servers: &'s Servers,
    pub database: String,
    pub queue: String,
    /// Connected as the owner of the tables.
    pub sql: PgPool,
}

impl<'s> Stage<'s> {
    /// An empty database and the name of a queue that does not exist yet.
    pub async fn new(servers: &'s Servers, name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{name}_{}_{number}", std::process::id());
        let options = PgConnectOptions::new_without_pgpass()
            .host(servers.get("POSTGRES_HOST"))
            .port(servers.get("POSTGRES_PORT").parse().expect("a port"))
            .username(servers.get("POSTGRES_USER"))
            .password(servers.get("POSTGRES_PASSWORD"));
        let admin = options.clone().database(servers.get("POSTGRES_DB"));
        let admin = PgConnection::connect_with(&admin).await;
        let mut admin = admin.expect("the private PostgreSQL takes connections");
        let create = AssertSqlSafe(format!("CREATE DATABASE {unique}"));
        sqlx::raw_sql(create).execute(&mut admin).await.expect("a new database");
        admin.close().await.expect("closed");
        let sql =
            PgPoolOptions::new().max_connections(4).connect_lazy_with(options.database(&unique));
        Self { servers, queue: format!("test.{unique}"), database: unique, sql }
    }

    /// With the tables.
    pub async fn migrated(servers: &'s Servers, name: &str) -> Self {
        let stage = Self::new(servers, name).await;
        stage.store().await;
        stage
    }

    /// With the tables and the grants of `roles.sql` on them.
    pub async fn with_roles(servers: &'s Servers, name: &str) -> Self {
        let stage = Self::migrated(servers, name).await;
        stage.grant_roles();
        stage
    }

    /// Runs `roles.sql`.
    pub fn grant_roles(&self) {
        self.psql(&["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/roles.sql")]);
    }

    /// Runs psql on this database; returns its output.
    pub fn psql(&self, arguments: &[&str]) -> String {
        let psql = ["psql", "--", "-d", &self.database, "-X", "-q", "-v", "ON_ERROR_STOP=1"];
        self.servers.script(&[&psql, arguments].concat())
    }

    /// Empties the tables.
    pub async fn empty(&self) {
        let emptied = "TRUNCATE vote_results, vote_audit, duplicate_attempts, count_batch";
        sqlx::raw_sql(emptied).execute(&self.sql).await.expect("emptied");
    }

    /// The settings that lead to this stage, as environment variables.
    pub fn environment(&self) -> Environment {
        self.environment_with(&[])
    }

    /// [`Stage::environment`] with `overrides`.
    pub fn environment_with(&self, overrides: &[(&str, &str)]) -> Environment {
        let servers = ["RABBITMQ", "POSTGRES"].iter().flat_map(|server| {
            ["HOST", "PORT", "USER", "PASSWORD"].map(|part| format!("{server}_{part}"))
        });
        let servers = servers.map(|name| (name.clone(), self.servers.get(&name).to_owned()));
        let own = [("POSTGRES_DB", &*self.database), ("RABBITMQ_QUEUE", &self.queue)];
        let others = settings("PROMETHEUS_HOST=127.0.0.1 PROMETHEUS_PORT=0 LOG_FORMAT=json");
        let all = own.iter().chain(&others).chain(overrides);
        servers.chain(all.map(|(name, value)| ((*name).into(), (*value).into()))).collect()
    }

    /// The configuration that `overrides` on top of [`Stage::environment`] make.
    pub fn config(&self, overrides: &[(&str, &str)]) -> Config {
        let environment = self.environment_with(overrides).into_iter();
        let environment = environment.map(|(name, value)| (name, OsString::from(value))).collect();
        Config::load(&Sources { environment, ..Sources::default() }).expect("a good configuration")
    }

    /// What `store::prepare` makes of this stage.
    pub async fn prepare(&self, overrides: &[(&str, &str)]) -> Result<PgStore, StartError> {
        let jitter = Jitter::seeded(1);
        let (config, health) = (self.config(overrides), Health::default());
        let prepared = store::prepare(&config, &jitter, &health);
        timeout(PATIENCE, prepared).await.expect("prepared or refused in time")
    }

    /// The store on this stage's database, migrated.
    pub async fn store(&self) -> PgStore {
        self.prepare(&[]).await.expect("the database is as it should be")
    }

    /// The service as a process, consuming.
    pub async fn start(&self, overrides: &[(&str, &str)]) -> Service {
        let service = self.spawn(overrides).await;
        service.until_ready().await;
        service
    }

    /// The service as a process, without waiting for anything.
    pub async fn spawn(&self, overrides: &[(&str, &str)]) -> Service {
        Service::spawn(&self.queue, &["run"], &self.environment_with(overrides)).await
    }

    /// A connection with a channel.
    pub async fn channel(&self) -> (Connection, Channel) {
        let [host, port, user, password] = ["HOST", "PORT", "USER", "PASSWORD"]
            .map(|n| self.servers.get(&format!("RABBITMQ_{n}")));
        let uri = format!("amqp://{user}:{password}@{host}:{port}/%2f");
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await;
        let connection = connection.expect("the private RabbitMQ takes connections");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    /// Does something on a channel of its own.
    pub async fn on_channel<T>(&self, act: impl AsyncFnOnce(&Channel) -> T) -> T {
        let (connection, channel) = self.channel().await;
        // The channel is not dropped before its connection is closed.
        let result = act(&channel).await;
        connection.close(200, "OK".into()).await.expect("closed");
        result
    }

    /// Declares a queue that only the returned connection may use, and that ends with it.
    pub async fn exclusive_queue(&self, queue: &str) -> Connection {
        let (connection, channel) = self.channel().await;
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), exclusive, FieldTable::default()).await;
        declared.expect("declared");
        connection
    }

    /// Publishes, confirmed; creates the queue as the service would when it does not exist.
    pub async fn publish(&self, bodies: &[Vec<u8>]) {
        self.publish_each(bodies).await;
    }

    /// As [`Stage::publish`], of bodies that need not all be in memory at the same time.
    pub async fn publish_each(&self, bodies: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        self.publish_to(&self.queue, bodies, &[]).await;
    }

    /// Publishes to any queue, confirmed, with these headers.
    pub async fn publish_to(
        &self,
        queue: &str,
        bodies: impl IntoIterator<Item = impl AsRef<[u8]>>,
        headers: &[(&str, &str)],
    ) {
        let rabbitmq = RabbitMq::new(self.config(&[]).rabbitmq);
        let publisher = rabbitmq.publisher().await.expect("RabbitMQ takes a publisher");
        let mut confirms = VecDeque::new();
        for body in bodies {
            let confirm = publisher.publish(queue, body.as_ref(), headers).await;
            confirms.push_back(confirm.expect("published"));
            if confirms.len() > UNCONFIRMED {
                confirms.pop_front().expect("not empty").await.expect("confirmed");
            }
        }
        for confirm in confirms {
            confirm.await.expect("confirmed");
        }
        publisher.close().await.expect("closed");
    }

    /// Publishes one message with these properties.
    pub async fn publish_with(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions::default();
        self.on_channel(async |channel| {
            channel.basic_publish("".into(), queue.into(), options, body, properties).await
        })
        .await
        .expect("published");
    }

    pub async fn publish_votes(&self, votes: &[Vote]) {
        self.publish(&messages(votes)).await;
    }

    /// Publishes [`votes`], which it returns.
    pub async fn publish_new(&self, first: u64, count: u64) -> Vec<Vote> {
        let votes = votes(first, count);
        self.publish_votes(&votes).await;
        votes
    }

    /// As [`Stage::publish_new`]; waits until these and those numbered before them are counted.
    pub async fn count(&self, first: u64, count: u64) -> Vec<Vote> {
        let votes = self.publish_new(first, count).await;
        self.until_counted((first + count) as usize).await;
        votes
    }

    /// Declares the test's queue with these arguments.
    pub async fn declare(&self, durable: bool, arguments: &[(&str, AMQPValue)]) {
        self.declare_queue(&self.queue, durable, arguments).await;
    }

    pub async fn declare_queue(&self, queue: &str, durable: bool, arguments: &[(&str, AMQPValue)]) {
        let options = QueueDeclareOptions { durable, ..QueueDeclareOptions::default() };
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        self.on_channel(async |channel| channel.queue_declare(queue.into(), options, table).await)
            .await
            .expect("declared");
    }

    /// A policy for the test's queue alone, in place of the one before.
    pub fn set_policy(&self, definition: &Value) {
        let pattern = format!("^{}$", self.queue.replace('.', "\\."));
        self.servers.ctl(&["set_policy", &self.queue, &pattern, &definition.to_string()]);
    }

    pub async fn delete(&self, queue: &str) {
        self.on_channel(async |channel| {
            channel.queue_delete(queue.into(), Default::default()).await
        })
        .await
        .expect("deleted");
    }

    /// Messages ready in a queue, by a passive declare; `None` when there is no such queue.
    pub async fn ready(&self, queue: &str) -> Option<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self
            .on_channel(async |channel| {
                channel.queue_declare(queue.into(), passive, FieldTable::default()).await
            })
            .await;
        declared.ok().map(|queue| queue.message_count())
    }

    pub fn dead_letter_queue(&self) -> String {
        format!("{}.dlq", self.queue)
    }

    /// Takes all messages out of the dead-letter queue: bodies and headers.
    pub async fn take_dead_letters(&self) -> Vec<(Vec<u8>, BTreeMap<String, AMQPValue>)> {
        let taken = self.take(&self.dead_letter_queue()).await.into_iter();
        taken.map(|delivery| (delivery.data, headers(&delivery.properties))).collect()
    }

    /// Takes all messages out of a queue, which exists.
    pub async fn take(&self, queue: &str) -> Vec<Delivery> {
        let get = async |channel: &Channel| {
            let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await;
            got.expect("the queue exists").map(|got| got.delivery)
        };
        self.on_channel(async |channel| {
            let mut taken = Vec::new();
            while let Some(delivery) = get(channel).await {
                taken.push(delivery);
            }
            taken
        })
        .await
    }

    /// Every row of vote_audit, as the votes they are.
    pub async fn audit(&self) -> BTreeSet<Vote> {
        let votes = tables::votes(&self.sql, AUDIT).await.expect("vote_audit can be read");
        votes.into_iter().collect()
    }

    /// Every row of vote_results.
    pub async fn results(&self) -> Totals {
        tables::totals(&self.sql, RESULTS).await.expect("the totals can be read")
    }

    /// What vote_results should be: recounted from vote_audit.
    pub async fn recount(&self) -> Totals {
        tables::totals(&self.sql, RECOUNT).await.expect("vote_audit can be read")
    }

    /// One number out of a query.
    pub async fn number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.sql).await.expect("a number")
    }

    /// Ends the sessions of this database of which the condition on pg_stat_activity holds; returns how
    /// many.
    pub async fn terminate(&self, condition: &str) -> i64 {
        self.count_sessions("pg_terminate_backend(pid)", condition).await
    }

    /// Waits until there is one to end.
    pub async fn until_terminated(&self, condition: &str) {
        eventually(condition, async || self.terminate(condition).await == 1).await;
    }

    /// Waits until the condition on pg_stat_activity holds for so many sessions of this database.
    pub async fn until_sessions(&self, condition: &str, count: i64) {
        let what = format!("{count} sessions: {condition}");
        eventually(&what, async || self.sessions(condition).await == count).await;
    }

    /// Counts the sessions of this database of which the condition on pg_stat_activity holds.
    pub async fn sessions(&self, condition: &str) -> i64 {
        self.count_sessions("pid", condition).await
    }

    /// In the condition, `what` would be evaluated for other sessions as well.
    async fn count_sessions(&self, what: &str, condition: &str) -> i64 {
        let ours = format!("datname = current_database() AND {condition}");
        let query = format!("SELECT count({what}) FROM pg_stat_activity WHERE {ours}");
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.sql).await.expect("a number")
    }

    /// Waits until `count` votes are in the audit.
    pub async fn until_counted(&self, count: usize) {
        let counted = async || self.number("SELECT count(*) FROM vote_audit").await;
        let what = format!("{count} votes counted");
        eventually(&what, async || counted().await >= count as i64).await;
    }

    /// Asserts that exactly these votes are in the audit, as they were sent, and that the totals agree
    /// with it.
    pub async fn assert_counted_exactly(&self, votes: &[Vote]) {
        let expected: BTreeSet<Vote> = votes.iter().cloned().collect();
        let audit = self.audit().await;
        let missing = expected.difference(&audit).count();
        let extra = audit.difference(&expected).count();
        assert_eq!((missing, extra), (0, 0), "votes missing and extra in the audit");
        assert_eq!(self.results().await, self.recount().await, "totals against the audit");
    }

    /// Waits until the queue is empty. Without a consumer, unacked messages are ready again.
    pub async fn assert_drained(&self) {
        eventually("the queue is empty", async || self.ready(&self.queue).await == Some(0)).await;
    }
}

impl Stage<'static> {
    /// On the shared servers, with the tables and the store.
    pub async fn with_store(name: &str) -> (Self, PgStore) {
        let stage = Self::new(Servers::shared(), name).await;
        let store = stage.store().await;
        (stage, store)
    }

    /// On the shared servers, with the tables, and a service that consumes.
    pub async fn started(name: &str, overrides: &[(&str, &str)]) -> (Self, Service) {
        let stage = Self::migrated(Servers::shared(), name).await;
        let service = stage.start(overrides).await;
        (stage, service)
    }
}

pub fn headers(properties: &BasicProperties) -> BTreeMap<String, AMQPValue> {
    let headers = properties.headers().clone().unwrap_or_default();
    headers.inner().iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}
