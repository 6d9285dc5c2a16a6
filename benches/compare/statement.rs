//! The counting statement alone, without a broker: what it costs PostgreSQL, by batch size and
//! connections, beside one written without thought.

use futures::future::join_all;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use time::OffsetDateTime;
use tokio::time::Instant;
use vote_aggregator::model::vote::{self, Vote};

use crate::measure::{Bench, Run};
use crate::report::{Figures, Report};
use vote_aggregator::operator::publish::{Samples, Shape};

/// The service's own.
const COUNT: &str = include_str!("../../src/adapters/store/count.sql");

/// As one writes it at first: a serial number for a key, the hash UNIQUE in the database's own
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
    let mut figures: Vec<Figures> = each
        .iter()
        .map(|(variant, size, connections)| {
            Figures::of(format!("{}, {size} a batch, {connections} connections", variant.name))
        })
        .collect();
    for round in 0..rounds {
        for turn in 0..each.len() {
            let which = (round + turn) % each.len();
            let (variant, size, connections) = each[which];
            let run = measure(bench, variant, votes, size, connections).await;
            eprintln!("round {} of {rounds}: {}: {run}", round + 1, figures[which].name);
            figures[which].push(run);
        }
    }
    Report::new("The statement alone", figures)
}

async fn measure(
    bench: &Bench,
    variant: Variant,
    votes: u64,
    size: usize,
    connections: usize,
) -> Run {
    bench.empty().await;
    for tables in variant.tables {
        bench.sql((*tables).to_owned()).await;
    }
    let count = usize::try_from(votes).expect("64 bits");
    let seed = fastrand::u64(..);
    let shape = Shape::distinct(count, 5, seed);
    let decoded = Samples::new(shape).map(|body| vote::decode(&body, 16_384).expect("a vote"));
    let mut shares: Vec<Vec<Vec<Vote>>> = vec![Vec::new(); connections];
    let decoded: Vec<Vote> = decoded.collect();
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
    let open = join_all(shares.iter().map(|_| PgConnection::connect_with(&options))).await;
    let mut open: Vec<PgConnection> =
        open.into_iter().map(|connection| connection.expect("connected")).collect();
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
    Run { votes, seconds, database, ..Run::default() }
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
