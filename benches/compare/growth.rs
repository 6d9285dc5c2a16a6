//! Whether counting stays fast: with an audit that has grown, with few laws and with many, and with
//! several instances.

use std::time::Duration;

use vote_aggregator::adapters::store::{self, Patience};

use crate::contender::{Contender, Peers};
use crate::figures::in_turn;
use crate::it::support::Stage;
use crate::measure::Bench;
use crate::report::{Figures, Report};

/// Rows are made in parts, to show progress.
const PART: u64 = 5_000_000;
/// How full a B-tree's leaves are whose keys came in random order, in per cent.
const GROWN: u32 = 70;
/// Measurements between two checkpoints. The first change of a page after one writes the whole page
/// to the log; the larger the index, the more votes meet such a page. Eight of 400,000 votes are
/// those of a minute; `throughput.conf` has a checkpoint in a quarter of an hour.
const PARTS: u64 = 8;
const LAWS: [u32; 3] = [1, 100, 10_000];
const INSTANCES: [usize; 3] = [1, 2, 4];

/// Sizes from the smallest to the largest, since growing takes long; the others in turn.
pub async fn run(bench: &Bench, rounds: usize, votes: u64, rows: &[u64]) -> Report {
    let peers = Peers::new(None);
    let one = async |laws: u32, instances: usize, checkpoint: bool, name: &str| {
        let start = |stage: &Stage<'_>| {
            (0..instances).map(|_| Contender::Throughput.start(stage, &peers, votes)).collect()
        };
        let run = bench.consume(votes, laws, checkpoint, start).await;
        eprintln!("{name}: {run}");
        run
    };

    let mut all = Vec::new();
    for instances in INSTANCES {
        all.push((5, instances, Figures::of(format!("{instances} instances"))));
    }
    for laws in LAWS {
        all.push((laws, 1, Figures::of(format!("{laws} laws"))));
    }
    in_turn(rounds, all.len(), async |which, round| {
        bench.stage.empty().await;
        let (laws, instances, figures) = &mut all[which];
        let name = format!("{round}: {}", figures.name);
        figures.runs.push(one(*laws, *instances, true, &name).await);
    })
    .await;
    let mut all: Vec<Figures> = all.into_iter().map(|(.., figures)| figures).collect();

    bench.stage.empty().await;
    let mut there = 0;
    for &rows in rows {
        grow(bench, there, rows).await;
        let mut first = Figures::of(format!("{rows} rows, first {votes} after a checkpoint"));
        let mut sustained = Figures::of(format!("{rows} rows, {} votes", PARTS * votes));
        for round in 0..rounds {
            let mut parts = Vec::new();
            for part in 0..PARTS {
                let name =
                    format!("round {} of {rounds}: {rows} rows, part {}", round + 1, part + 1);
                parts.push(one(5, 1, part == 0, &name).await);
            }
            first.runs.push(parts[0].clone());
            sustained.runs.push(parts.into_iter().sum());
        }
        // What was counted is there as well.
        there = rows + rounds as u64 * PARTS * votes;
        all.extend([first, sustained]);
    }
    let log = bench.stage.servers.script(&["log", "postgres"]);
    let deadlocks = log.lines().filter(|line| line.contains("deadlock detected")).count();
    Report::new(format!("Throughput profile; {deadlocks} deadlocks in PostgreSQL's log"), all)
}

/// Fills the audit, and the totals with it. The key's index is made anew with leaves as full as
/// those of one that has grown: filling it row by row takes an hour.
async fn grow(bench: &Bench, mut there: u64, rows: u64) {
    let drop_keys = "ALTER TABLE duplicate_attempts
                         DROP CONSTRAINT IF EXISTS duplicate_attempts_vote_hash_fkey;
                     ALTER TABLE vote_audit DROP CONSTRAINT vote_audit_pkey";
    bench.sql(drop_keys).await;
    while there < rows {
        let until = rows.min(there + PART);
        eprintln!("making rows: {there} of {rows}");
        let insert = format!(
            "INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, \"timestamp\")
             SELECT encode(sha256(convert_to('grown-' || n, 'UTF8')), 'hex'),
                    'citizen-' || n, 'law-' || lpad((1 + n % 5)::text, 3, '0'),
                    CASE WHEN n % 2 = 0 THEN 'oui' ELSE 'non' END, now()
             FROM generate_series({there}::bigint, {until}::bigint - 1) AS n"
        );
        bench.sql(&insert).await;
        there = until;
    }
    eprintln!("making the index of {rows} rows");
    let add_keys = format!(
        "SET maintenance_work_mem = '2GB';
         ALTER TABLE vote_audit ADD CONSTRAINT vote_audit_pkey PRIMARY KEY (vote_hash)
             WITH (fillfactor = {GROWN});
         ALTER INDEX vote_audit_pkey RESET (fillfactor);
         ALTER TABLE duplicate_attempts ADD CONSTRAINT duplicate_attempts_vote_hash_fkey
             FOREIGN KEY (vote_hash) REFERENCES vote_audit (vote_hash);
         RESET maintenance_work_mem"
    );
    bench.sql(&add_keys).await;
    bench.sql("VACUUM (ANALYZE) vote_audit").await;
    // A server that has counted them all has as much of the index in memory as fits.
    let read = "SET enable_seqscan = off; SELECT count(vote_hash) FROM vote_audit;
                RESET enable_seqscan";
    bench.sql(read).await;
    let config = bench.stage.config(&[]);
    let patience = Patience::new(Duration::ZERO);
    let corrected = store::correct(&config, patience, Some("grown"), |_| {}).await;
    corrected.expect("the totals follow the audit");
}
