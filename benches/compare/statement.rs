//! The counting statement alone, without a broker: what it costs PostgreSQL, by batch size and
//! connections, beside a naive one.

use futures::future::join_all;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use time::OffsetDateTime;
use tokio::time::Instant;
use vote_aggregator::model::vote::{self, Vote};

use crate::figures::in_turn;
use crate::measure::{Bench, Run};
use crate::report::{Figures, Report};
use vote_aggregator::operator::publish::{Samples, Shape};

/// The service's own.
const COUNT: &str = include_str!("../../src/adapters/store/count.sql");

/// As one might write it first: a serial number for a key, the hash UNIQUE in the database's own
/// collation (C.UTF-8 here, as in any database that is not made with C), rows in order of arrival.
const NAIVE_TABLES: &str = "
    DROP SCHEMA IF EXISTS naive CASCADE;
    CREATE SCHEMA naive;
    CREATE TABLE naive.vote_results (
        law_id varchar(50) COLLATE \"C.utf8\" PRIMARY KEY,
        oui_count integer NOT NULL DEFAULT 0, non_count integer NOT NULL DEFAULT 0,
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE naive.vote_audit (
        id bigserial PRIMARY KEY,
        vote_hash varchar(64) COLLATE \"C.utf8\" NOT NULL UNIQUE,
        citizen_id varchar(100) NOT NULL,
        law_id varchar(50) COLLATE \"C.utf8\" NOT NULL,
        choice varchar(3) NOT NULL,
        \"timestamp\" timestamptz NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )";
/// For the queries that come to mind.
const NAIVE_INDEXES: &str = "
    CREATE INDEX ON naive.vote_audit (law_id);
    CREATE INDEX ON naive.vote_audit (citizen_id)";
const NAIVE: &str = include_str!("../peers/count.sql");

#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    tables: &'static [&'static str],
    sql: &'static str,
    sorted: bool,
}

const VARIANTS: [Variant; 3] = [
    Variant { name: "ours", tables: &[], sql: COUNT, sorted: true },
    Variant { name: "naive", tables: &[NAIVE_TABLES], sql: NAIVE, sorted: false },
    Variant {
        name: "naive, indexes on law and citizen",
        tables: &[NAIVE_TABLES, NAIVE_INDEXES],
        sql: NAIVE,
        sorted: false,
    },
];
/// Votes in a batch, and connections.
const SHAPES: [(usize, usize); 4] = [(100, 1), (100, 4), (2_000, 1), (2_000, 4)];

/// Every variant in every shape, in turn.
pub async fn run(bench: &Bench, rounds: usize, votes: u64) -> Report {
    let each: Vec<(Variant, usize, usize)> = SHAPES
        .iter()
        .flat_map(|&(size, connections)| VARIANTS.map(|variant| (variant, size, connections)))
        .collect();
    let name = |(variant, size, connections): &(Variant, usize, usize)| {
        Figures::of(format!("{}, {size} a batch, {connections} connections", variant.name))
    };
    let mut figures: Vec<Figures> = each.iter().map(name).collect();
    in_turn(rounds, each.len(), async |which, round| {
        let (variant, size, connections) = each[which];
        let run = measure(bench, variant, votes, size, connections).await;
        eprintln!("{round}: {}: {run}", figures[which].name);
        figures[which].runs.push(run);
    })
    .await;
    Report::new("The statement alone", figures)
}

async fn measure(
    bench: &Bench,
    variant: Variant,
    votes: u64,
    size: usize,
    connections: usize,
) -> Run {
    bench.stage.empty().await;
    for tables in variant.tables {
        bench.sql(tables).await;
    }
    let count = usize::try_from(votes).expect("64 bits");
    let samples = Samples::new(Shape::distinct(count, 5, fastrand::u64(..)));
    let decoded: Vec<Vote> =
        samples.map(|body| vote::decode(&body, 16_384).expect("a vote")).collect();
    let mut shares: Vec<Vec<Vec<Vote>>> = vec![Vec::new(); connections];
    for (number, batch) in decoded.chunks(size).enumerate() {
        let mut batch = batch.to_vec();
        if variant.sorted {
            batch.sort_by(|a, b| a.vote_hash.cmp(&b.vote_hash));
        }
        shares[number % connections].push(batch);
    }
    drop(decoded);

    // Of the tables of one name, those of the variant.
    let path = if variant.tables.is_empty() { "public" } else { "naive" };
    let options = (*bench.stage.sql.connect_options()).clone().options([("search_path", path)]);
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(PgConnection::connect_with(&options).await.expect("connected"));
    }
    bench.quiet(true).await;

    let (began, before) = (Instant::now(), bench.database_cpu());
    let counting = open.iter_mut().zip(&shares).map(async |(connection, batches)| {
        for batch in batches {
            count_batch(connection, variant.sql, batch).await;
        }
    });
    join_all(counting).await;
    let seconds = began.elapsed().as_secs_f64();
    let database = bench.database_cpu() - before;
    for connection in open {
        connection.close().await.expect("closed");
    }
    Run { votes, seconds, cpu: [0.0, 0.0, database], ..Run::default() }
}

async fn count_batch(connection: &mut PgConnection, sql: &'static str, batch: &[Vote]) {
    let texts = |field: fn(&Vote) -> &str| batch.iter().map(field).collect::<Vec<&str>>();
    let cast_at: Vec<OffsetDateTime> = batch.iter().map(|vote| vote.timestamp).collect();
    connection.execute(sqlx::raw_sql("BEGIN")).await.expect("begun");
    sqlx::query(AssertSqlSafe(sql))
        .bind(texts(|vote| &vote.vote_hash))
        .bind(texts(|vote| &vote.citizen_id))
        .bind(texts(|vote| &vote.law_id))
        .bind(texts(|vote| vote.choice.as_str()))
        .bind(cast_at)
        .fetch_all(&mut *connection)
        .await
        .expect("counted");
    connection.execute(sqlx::raw_sql("COMMIT")).await.expect("committed");
}
