//! What the measurements share: their order, their median, their table.

use comfy_table::{CellAlignment, Table, presets};

/// Measures each of `count` in every round, in an order that moves on from round to round. `measure`
/// gets which one it is, and the name of the round.
pub async fn in_turn(rounds: usize, count: usize, mut measure: impl AsyncFnMut(usize, &str)) {
    for round in 0..rounds {
        let name = format!("round {} of {rounds}", round + 1);
        for turn in 0..count {
            measure((round + turn) % count, &name).await;
        }
    }
}

/// The middle one, or the mean of the two in the middle; 0 of nothing.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => figures[middle],
        _ => (figures[middle - 1] + figures[middle]) / 2.0,
    }
}

/// The first column is text, the others are numbers.
pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
