//! Votes divided into cells: queues with a database each, one view over their results, a database that moves.

mod setting;

use std::collections::BTreeMap;
use std::fs;

use futures::future::join_all;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use tokio::process::Command;
use vote_aggregator::model::cell;

use crate::support::{BINARY, Files, Servers, Service, Stage, eventually, message};

/// Oui and non of each law.
type Laws = BTreeMap<String, [i64; 2]>;

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/roles.sql");
const SUM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/postgres/cells.sql");

/// A database on the same server, and a queue, named after those of `stage`.
async fn beside<'s>(stage: &Stage<'s>, number: u16) -> Stage<'s> {
    let database = format!("{}_{number}", stage.database);
    stage.execute(&format!("CREATE DATABASE {database}")).await;
    on(stage, stage.servers, database, number)
}

/// The cell of this number with its database on `servers`.
fn on<'s>(stage: &Stage<'s>, servers: &Servers, database: String, number: u16) -> Stage<'s> {
    let port = servers.get("POSTGRES_PORT").parse().expect("a port");
    let options = (*stage.sql.connect_options()).clone().database(&database).port(port);
    let options = options.password(servers.get("POSTGRES_PASSWORD"));
    let sql = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
    Stage { servers: stage.servers, database, queue: format!("{}.{number}", stage.queue), sql }
}

/// So many cells on one server, and the sum of their results in the database of a further stage.
struct Cells<'s> {
    sum: Stage<'s>,
    all: Vec<Stage<'s>>,
    /// Before each cell in its setting.
    router: &'static str,
}

impl Cells<'static> {
    async fn new(name: &str, router: &'static str, count: u16) -> Self {
        let sum = Stage::new(Servers::shared(), name).await;
        let mut cells = Self { sum, all: Vec::new(), router };
        for number in 0..count {
            cells.all.push(beside(&cells.sum, number).await);
        }
        for (number, cell) in cells.all.iter().enumerate() {
            let setting = format!("{router}{number}/{count}");
            let marked = format!("this database is cell {setting}");
            cell.run("migrate", &["--cell", &setting]).await.assert(0, &[&marked]);
        }
        let get = |name| cells.sum.servers.get(name);
        let variables = [
            format!("cells={count}"),
            format!("database={}_", cells.sum.database),
            format!("host={}", get("POSTGRES_HOST")),
            format!("port={}", get("POSTGRES_PORT")),
            format!("role={}", get("POSTGRES_USER")),
            format!("password={}", get("POSTGRES_PASSWORD")),
        ];
        let variables = variables.iter().flat_map(|variable| ["-v", variable.as_str()]);
        cells.sum.psql(&variables.chain(["-f", SUM]).collect::<Vec<_>>());
        cells
    }

    fn setting(&self, number: usize) -> String {
        format!("{}{number}/{}", self.router, self.all.len())
    }

    async fn start(&self) -> Vec<Service> {
        let started = self.all.iter().enumerate().map(|(number, cell)| async move {
            cell.start(&[("CELL", self.setting(number).as_str())]).await
        });
        join_all(started).await
    }

    /// The sum as `results` shows it.
    async fn results(&self) -> Laws {
        let results = self.sum.run("results", &["--json"]).await.assert(0, &[]).json();
        let laws = results["laws"].as_array().expect("laws").iter();
        let count = |law: &Value, name| law[name].as_i64().expect("a count");
        let law = |law: &Value| law["law_id"].as_str().expect("a law").to_owned();
        laws.map(|it| (law(it), [count(it, "oui"), count(it, "non")])).collect()
    }

    /// Publishes samples with these options, and waits until their expected counts are the sum.
    async fn publish(&self, options: &[&str]) {
        let files = Files::new("cells");
        let report = files.file("report.json");
        let samples = ["--count", "4000", "--duplicates", "0.2", "--malformed", "0.05"];
        let arguments = [&samples[..], &["--report", &report], options].concat();
        self.sum.run("publish", &arguments).await.assert(0, &["confirmed by the broker: 4000"]);
        let expected = self.until_counted(&report).await;
        let mut audited = 0;
        for cell in &self.all {
            cell.assert_drained().await;
            cell.run("recount", &[]).await.assert(0, &[]);
            let share = cell.number("SELECT count(*) FROM vote_audit").await;
            assert!(share > 500, "a fair share");
            audited += share;
        }
        assert_eq!(audited, expected.values().flatten().sum::<i64>());
    }

    /// Waits until the sum is what a report of `publish` expects, and returns that.
    async fn until_counted(&self, report: &str) -> Laws {
        let report = fs::read(report).expect("a report");
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        let laws = report["expected"]["laws"].clone();
        let expected: Laws = serde_json::from_value(laws).expect("counts");
        eventually("the sum is as expected", async || self.results().await == expected).await;
        expected
    }
}

#[tokio::test]
async fn four_cells_count_exactly_and_refuse_the_votes_of_each_other() {
    let cells = Cells::new("cells", "crc32:", 4).await;
    let services = cells.start().await;
    cells.publish(&["--cells", "4"]).await;
    for (number, cell) in (0..).zip(&cells.all) {
        let audit = cell.audit().await;
        assert!(audit.iter().all(|vote| cell::of_hash(&vote.vote_hash, 4) == number));
    }

    // A vote that its own cell has counted.
    let (counted, other) = (&cells.all[1], &cells.all[0]);
    let stray = counted.audit().await.pop_first().expect("a vote");
    let sum = cells.results().await;
    other.publish(&[message(&stray)]).await;
    services[0].until_metric("votes_rejected_total{reason=\"wrong_cell\",cell=\"0\"}", 1.0).await;
    assert_eq!(cells.results().await, sum);
    let setting = cells.setting(0);
    let cell = [("CELL", setting.as_str())];
    let list = ["dlq", "list", "--reason", "wrong_cell"];
    other.run_with(&list, &cell).await.assert(0, &["wrong_cell (vote_hash)", &stray.vote_hash]);
    let replay = ["dlq", "replay", "--reason", "wrong_cell", "--yes"];
    other.run_with(&replay, &cell).await.assert(1, &["skipped: malformed"]);
    assert_eq!(cells.results().await, sum);

    // A cell that is away, and a server that leads to another cell than its own.
    let alter = format!("ALTER DATABASE {} ALLOW_CONNECTIONS", cells.all[3].database);
    let read = async || cells.sum.run("results", &["--retry-for", "0"]).await;
    cells.sum.execute(&format!("{alter} false")).await;
    read().await.assert(75, &["cell_3"]);
    cells.sum.execute(&format!("{alter} true")).await;
    read().await.assert(0, &[]);
    let lead =
        |to: &Stage<'_>| format!("ALTER SERVER cell_3 OPTIONS (SET dbname '{}')", to.database);
    cells.sum.execute(&lead(&cells.all[2])).await;
    let misled = "the foreign server of cell 3/4 leads to a database that is cell crc32:2/4";
    read().await.assert(70, &[misled]);
    cells.sum.execute(&lead(&cells.all[3])).await;
    assert_eq!(cells.results().await, sum);
    for service in services {
        service.stop().await;
    }
}

/// The exchange is built into RabbitMQ from 4.3 on.
#[tokio::test]
async fn an_exchange_that_hashes_divides_votes_into_cells() {
    let cells = Cells::new("hashed", "", 4).await;
    if cells.sum.servers.version() < (4, 3) {
        return;
    }
    let services = cells.start().await;
    let exchange = cells.sum.queue.as_str();
    let kind = ExchangeKind::Custom("x-modulus-hash".to_owned());
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default;
    let declare = async |channel: &Channel| {
        channel.exchange_declare(exchange.into(), kind, durable, none()).await
    };
    cells.sum.on_channel(declare).await.expect("declared");
    let publish = async |to: &str| {
        cells.sum.run("publish", &["--exchange", to, "--count", "1", "--retry-for", "0"]).await
    };
    publish("nowhere").await.assert(78, &["nowhere", "Create the exchange"]);
    publish(exchange).await.assert(1, &["has no queue for a message"]);
    for cell in &cells.all {
        let (queue, options) = (cell.queue.as_str(), QueueBindOptions::default());
        let bind = async |channel: &Channel| {
            channel.queue_bind(queue.into(), exchange.into(), "".into(), options, none()).await
        };
        cells.sum.on_channel(bind).await.expect("bound");
    }
    cells.publish(&["--exchange", exchange]).await;
    for service in services {
        service.stop().await;
    }
}

/// As docs/scaling.md describes it: stop the cell, dump and restore, compare, lead the sum there, start.
#[tokio::test]
async fn the_database_of_a_cell_moves_to_another_server_while_votes_arrive() {
    let cells = Cells::new("moving", "crc32:", 2).await;
    let other = Servers::private("cellmove");
    let mut services = cells.start().await;
    let files = Files::new("moving");
    let report = files.file("report.json");
    let mut publish = Command::new(BINARY);
    let slowly =
        ["publish", "--cells", "2", "--count", "6000", "--duplicates", "0.2", "--rate", "300"];
    publish.args(slowly).args(["--report", &report]);
    let publisher = Service::spawn_as(&cells.sum.queue, publish, &cells.sum.environment());
    let arrived = async |cell: &Stage<'_>, more: i64| {
        let counted = async || cell.number("SELECT count(*) FROM vote_audit").await;
        let before = counted().await;
        eventually("more votes are counted", async || counted().await >= before + more).await;
    };
    arrived(&cells.all[1], 100).await;

    let (cell, service) = (&cells.all[1], services.pop().expect("two"));
    service.stop().await;
    cell.sql.close().await;
    let old = format!("{}_moved", cell.database);
    cells.sum.execute(&format!("ALTER DATABASE {} RENAME TO {old}", cell.database)).await;
    cells.sum.run("results", &["--retry-for", "0"]).await.assert(75, &["cell_1"]);
    let dump = files.file("dump.sql");
    let options = ["pg_dump", "--", "--no-owner", "--no-privileges", "--file", &dump, &old];
    cells.sum.servers.script(&options);
    let moved = on(&cells.sum, &other, cell.database.clone(), 1);
    other.script(&["psql", "--", "-qc", &format!("CREATE DATABASE {}", cell.database)]);
    let psql = ["psql", "--", "-d", &cell.database, "-X", "-q", "-v", "ON_ERROR_STOP=1"];
    for file in [dump.as_str(), ROLES] {
        other.script(&[&psql[..], &["-f", file]].concat());
    }
    let (port, password) = (other.get("POSTGRES_PORT"), other.get("POSTGRES_PASSWORD"));
    let setting = cells.setting(1);
    let there =
        [("CELL", setting.as_str()), ("POSTGRES_PORT", port), ("POSTGRES_PASSWORD", password)];
    moved.run_with(&["recount"], &there).await.assert(0, &[]);
    let lead = format!(
        "ALTER SERVER cell_1 OPTIONS (SET port '{port}'); \
         ALTER USER MAPPING FOR CURRENT_USER SERVER cell_1 OPTIONS (SET password '{password}')"
    );
    cells.sum.execute(&lead).await;
    cells.results().await;
    // Votes of the cell have waited.
    assert!(cells.sum.ready(&moved.queue).await > Some(0));

    services.push(moved.start(&there).await);
    arrived(&moved, 100).await;
    publisher.assert_ends(0, &[]).await;
    cells.until_counted(&report).await;
    for service in services {
        service.stop().await;
    }
    moved.run_with(&["recount"], &there).await.assert(0, &[]);
    cells.all[0].run("recount", &[]).await.assert(0, &[]);
    // Nothing can count into the old database any more, whose name is gone.
    let stale = moved.run_with(&["check", "--connect"], &[("CELL", &setting)]).await;
    stale.assert(1, &["does not exist"]);
}
