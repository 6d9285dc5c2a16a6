//! How many answers the public board gives and what each costs, and what counting beside it loses.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use vote_aggregator::model::ports::{Store, Votes};

use crate::contender::{Contender, Peers};
use crate::figures::{in_turn, median, table};
use crate::it::support::{Service, Stage, login, votes};
use crate::load::Load;
use crate::measure::{Bench, Run};
use crate::meter::{cpu_seconds, peak_memory};

/// For how long each load lasts.
const LASTS: Duration = Duration::from_secs(10);
/// For how long nobody asks.
const IDLE: Duration = Duration::from_secs(30);
const LOADS: [(&str, Load); 2] = [
    ("64 connections", Load { connections: 64, anew: false, rate: None }),
    ("a connection each", Load { connections: 64, anew: true, rate: None }),
];
/// Beside counting.
const VIEWERS: Load = Load { connections: 64, anew: false, rate: Some(2_000) };
/// Longer than any counting.
const UNTIL_STOPPED: Duration = Duration::from_secs(3_600);

type Round = BTreeMap<String, f64>;

/// All rounds.
pub struct Boards {
    answers: Vec<Round>,
    /// Counting beside a board that nobody asks, and beside one that many ask.
    counting: [Vec<Run>; 2],
}

pub async fn run(bench: &Bench, rounds: usize, votes: u64) -> Boards {
    let stage = &bench.stage;
    stage.grant_roles();
    let role = stage.role("board", "IN ROLE vote_board").await;
    bench
        .sql(
            "INSERT INTO result_publications (state, not_before, reason, test) \
             VALUES ('counting', '2020-01-01Z', 'benchmark', true)",
        )
        .await;
    let mut all = Boards { answers: Vec::new(), counting: [Vec::new(), Vec::new()] };
    for number in 1..=rounds {
        let round = answers(bench, &role).await;
        eprintln!("round {number} of {rounds}: {round:.1?}");
        all.answers.push(round);
    }
    in_turn(rounds, 2, async |which, round| {
        stage.empty().await;
        let (board, address) = board(stage, &role).await;
        let viewers = (which == 1)
            .then(|| tokio::spawn(async move { VIEWERS.run(&address, UNTIL_STOPPED).await }));
        let start =
            |stage: &Stage<'_>| vec![Contender::Throughput.start(stage, &Peers::new(None), votes)];
        let run = bench.consume(votes, 5, true, start).await;
        if let Some(viewers) = viewers {
            assert!(!viewers.is_finished(), "viewers until the end");
            viewers.abort();
        }
        board.stop().await;
        eprintln!("{round}: {} viewers: {run}", ["without", "with"][which]);
        all.counting[which].push(run);
    })
    .await;
    all
}

/// A board with its address.
async fn board(stage: &Stage<'_>, role: &str) -> (Service, String) {
    let options = ["board", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let environment = stage.environment_with(&login(role));
    let board = Service::spawn(&stage.queue, &options, &environment).await;
    board.until_ready().await;
    let address = board.listens_for("the board").await;
    (board, address)
}

async fn answers(bench: &Bench, role: &str) -> Round {
    bench.stage.empty().await;
    bench.stage.store().await.count(Votes::new(votes(0, 1_000))).await.expect("counted");
    let (board, address) = board(&bench.stage, role).await;
    let mut round = Round::new();
    let spent = || cpu_seconds(board.id());
    let before = spent();
    sleep(IDLE).await;
    let share = (spent() - before) / IDLE.as_secs_f64();
    round.insert("without viewers, % of a core".to_owned(), 100.0 * share);
    for (name, load) in LOADS {
        let before = spent();
        let answers = load.run(&address, LASTS).await;
        let each = (spent() - before) * 1e6 / answers.took.len() as f64;
        for (figure, value) in [
            ("answers/s", answers.rate()),
            ("CPU of an answer, µs", each),
            ("p99, ms", answers.p99()),
        ] {
            round.insert(format!("{name}: {figure}"), value);
        }
    }
    round.insert("memory, MiB".to_owned(), peak_memory(board.id()));
    board.stop().await;
    round
}

impl Boards {
    /// Of each figure, the median of the rounds.
    fn medians(&self) -> BTreeMap<String, f64> {
        let all =
            |name: &String| self.answers.iter().filter_map(|it| it.get(name).copied()).collect();
        let names = self.answers.first().into_iter().flat_map(Round::keys);
        let mut medians: BTreeMap<String, f64> =
            names.map(|name| (name.clone(), median(all(name)))).collect();
        // Round by round, since a machine's speed varies.
        let ratio = |figure: fn(&Run) -> f64| {
            let pairs = self.counting[0].iter().zip(&self.counting[1]);
            median(pairs.map(|(without, with)| figure(with) / figure(without)).collect())
        };
        let cost = |run: &Run| run.cost().iter().sum::<f64>();
        medians
            .insert("counting beside 2,000 answers/s: votes/s, ratio".to_owned(), ratio(Run::rate));
        medians
            .insert("counting beside 2,000 answers/s: CPU a vote, ratio".to_owned(), ratio(cost));
        medians
    }

    pub fn json(&self) -> Value {
        json!({"title": "The public board", "median": self.medians(), "rounds": self.answers})
    }
}

impl fmt::Display for Boards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.medians().into_iter();
        let rows = rows.map(|(name, value)| {
            let digits = if value < 10.0 { 3 } else { 0 };
            vec![name, format!("{value:.digits$}")]
        });
        write!(f, "{}", table(&["the public board", "median"], rows))
    }
}
