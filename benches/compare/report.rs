//! Figures of several rounds, as a table and as JSON.

use std::fmt;

use serde_json::{Value, json};

use crate::figures::{median, table};
use crate::measure::Run;

/// All rounds of one.
pub struct Figures {
    pub name: String,
    pub runs: Vec<Run>,
}

impl Figures {
    pub fn of(name: impl Into<String>) -> Self {
        Self { name: name.into(), runs: Vec::new() }
    }

    pub fn median(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(figure).collect())
    }

    /// Of votes a second.
    pub fn rate(&self) -> f64 {
        self.median(Run::rate)
    }

    /// Processor seconds a million votes: client, broker, database.
    pub fn cost(&self) -> [f64; 3] {
        [0, 1, 2].map(|of| self.median(|run| run.cost()[of]))
    }

    /// The median of ratios round by round, since a machine's speed varies from round to round.
    fn against(&self, base: &Self) -> f64 {
        let pairs = self.runs.iter().zip(&base.runs);
        median(pairs.map(|(run, base)| run.rate() / base.rate()).collect())
    }
}

/// What was compared.
pub struct Report {
    pub title: String,
    pub figures: Vec<Figures>,
    base: usize,
}

impl Report {
    /// Ratios are to the first, unless [`Report::against`] names another.
    pub fn new(title: impl Into<String>, figures: Vec<Figures>) -> Self {
        Self { title: title.into(), figures, base: 0 }
    }

    pub fn against(self, name: &str) -> Self {
        let base = self.figures.iter().position(|figures| figures.name == name).unwrap_or(0);
        Self { base, ..self }
    }

    fn base(&self) -> &Figures {
        &self.figures[self.base]
    }

    pub fn json(&self) -> Value {
        let figures = self.figures.iter().map(|figures| {
            let memory = figures.median(|run| run.memory);
            let mut median = object(figures.rate(), figures.cost(), memory);
            median["ratio"] = figures.against(self.base()).into();
            let rounds = figures.runs.iter().map(|run| {
                let mut round = object(run.rate(), run.cost(), run.memory);
                round["votes"] = run.votes.into();
                round["seconds"] = run.seconds.into();
                round
            });
            json!({"name": figures.name, "median": median, "rounds": rounds.collect::<Vec<_>>()})
        });
        json!({"title": self.title, "figures": figures.collect::<Vec<_>>()})
    }
}

fn object(rate: f64, [client, broker, database]: [f64; 3], memory: f64) -> Value {
    json!({
        "votes_per_second": rate,
        "cpu_seconds_per_million": {"client": client, "broker": broker, "database": database},
        "peak_memory_mib": memory,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let header = [
            "medians",
            "votes/s",
            "ratio",
            "client CPU-s/M",
            "broker",
            "database",
            "of what the cores allow",
            "MiB",
        ];
        let rows = self.figures.iter().map(|figures| {
            let [client, broker, database] = figures.cost();
            let ceiling = cores * 1e6 / (client + broker + database);
            vec![
                figures.name.clone(),
                format!("{:.0}", figures.rate()),
                format!("{:.2}", figures.against(self.base())),
                format!("{client:.2}"),
                format!("{broker:.2}"),
                format!("{database:.2}"),
                format!("{:.2}", figures.rate() / ceiling),
                format!("{:.0}", figures.median(|run| run.memory)),
            ]
        });
        write!(f, "{}\n\n{}", self.title, table(&header, rows))
    }
}
