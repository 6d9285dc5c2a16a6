//! A line that tells what goes on: redrawn on a terminal, repeated now and then elsewhere.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use crate::QueueType;
use crate::faults::Field;
use crate::ledger::Ledger;
use crate::phase::figures;

const REDRAW: Duration = Duration::from_millis(500);
/// Redraws between two lines in a log.
const LINE_EVERY: u64 = 30;

/// Ends when it is dropped.
pub struct Progress {
    bar: ProgressBar,
    _drawing: JoinSet<()>,
}

impl Progress {
    pub fn show(
        queue_type: QueueType,
        field: &Arc<Field>,
        ledger: &Arc<Mutex<Ledger>>,
        counted: &Arc<AtomicU64>,
    ) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        let mut drawing = JoinSet::new();
        let (field, ledger) = (Arc::downgrade(field), Arc::clone(ledger));
        let (counted, drawn) = (Arc::clone(counted), bar.clone());
        drawing.spawn(async move {
            for tick in 1.. {
                tokio::time::sleep(REDRAW).await;
                let Some(field) = field.upgrade() else { return };
                let names: BTreeSet<_> = field.under_way().values().map(|k| k.name()).collect();
                let names = names.into_iter().collect::<Vec<_>>().join("; ");
                let (confirmed, counted) = figures(&ledger, &counted);
                let line = format!(
                    "{} {:>4} s  published {}  counted {}  {names}",
                    queue_type.name(),
                    field.began.elapsed().as_secs(),
                    HumanCount(confirmed),
                    HumanCount(counted),
                );
                if std::io::stderr().is_terminal() {
                    drawn.tick();
                    drawn.set_message(line);
                } else if tick % LINE_EVERY == 0 {
                    eprintln!("{line}");
                }
            }
        });
        Self { bar, _drawing: drawing }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
