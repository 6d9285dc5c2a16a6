//! Figures of several rounds, as a table and as JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::measure::Run;
use crate::median::median;

/// All rounds of one.
pub struct Figures {
    pub name: String,
    runs: Vec<Run>,
}

impl Figures {
    pub fn of(name: impl Into<String>) -> Self {
        Self { name: name.into(), runs: Vec::new() }
    }

    pub fn push(&mut self, run: Run) {
        self.runs.push(run);
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

    /// Round by round, since the machine's mood is the round's.
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
        let figures: Vec<Value> = self.figures.iter().map(|figures| self.object(figures)).collect();
        json!({"title": self.title, "figures": figures})
    }

    fn object(&self, figures: &Figures) -> Value {
        let [client, broker, database] = figures.cost();
        let rounds = figures.runs.iter().map(|run| {
            let [client, broker, database] = run.cost();
            json!({
                "votes": run.votes,
                "seconds": run.seconds,
                "votes_per_second": run.rate(),
                "cpu_seconds_per_million":
                    {"client": client, "broker": broker, "database": database},
                "peak_memory_mib": run.memory,
            })
        });
        json!({
            "name": figures.name,
            "median": {
                "votes_per_second": figures.rate(),
                "ratio": figures.against(self.base()),
                "cpu_seconds_per_million":
                    {"client": client, "broker": broker, "database": database},
                "peak_memory_mib": figures.median(|run| run.memory),
            },
            "rounds": rounds.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "medians",
            "votes/s",
            "ratio",
            "client CPU-s/M",
            "broker",
            "database",
            "of what the cores allow",
            "MiB",
        ]);
        for figures in &self.figures {
            let [client, broker, database] = figures.cost();
            let ceiling = cores * 1e6 / (client + broker + database);
            table.add_row([
                figures.name.clone(),
                format!("{:.0}", figures.rate()),
                format!("{:.2}", figures.against(self.base())),
                format!("{client:.2}"),
                format!("{broker:.2}"),
                format!("{database:.2}"),
                format!("{:.2}", figures.rate() / ceiling),
                format!("{:.0}", figures.median(|run| run.memory)),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{}\n\n{table}", self.title)
    }
}
