//! The comparison as bars.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::Report;

const WIDTH: u32 = 860;
const BAR: i32 = 34;
/// Space for the names on the left and the figures on the right.
const MARGINS: (i32, i32) = (230, 90);
const HEAD: i32 = 50;
const OURS: RGBColor = RGBColor(28, 110, 180);
const OTHERS: RGBColor = RGBColor(150, 160, 170);

/// One bar each, as long as it has votes a second.
pub fn draw(report: &Report, file: &Path) {
    let height = HEAD + BAR * i32::try_from(report.figures.len()).expect("a few") + 14;
    let size = (WIDTH, u32::try_from(height).expect("positive"));
    let area = SVGBackend::new(file, size).into_drawing_area();
    area.fill(&WHITE).expect("drawn");
    let text = |size: i32, x: HPos| {
        ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(x, VPos::Center))
    };
    let title = format!("{}: votes a second, medians", report.title);
    area.draw(&Text::new(title, (12, HEAD / 2), text(18, HPos::Left))).expect("drawn");
    let most = report.figures.iter().map(|figures| figures.rate()).fold(1.0, f64::max);
    let widest = f64::from(WIDTH as i32 - MARGINS.0 - MARGINS.1);
    for (row, figures) in report.figures.iter().enumerate() {
        let top = HEAD + BAR * i32::try_from(row).expect("a few");
        let end = MARGINS.0 + (widest * figures.rate() / most).round() as i32;
        let colour = if figures.name.starts_with("vote-aggregator") { OURS } else { OTHERS };
        let bar = [(MARGINS.0, top + 5), (end, top + BAR - 5)];
        area.draw(&Rectangle::new(bar, colour.filled())).expect("drawn");
        let middle = top + BAR / 2;
        let name =
            Text::new(figures.name.as_str(), (MARGINS.0 - 10, middle), text(14, HPos::Right));
        area.draw(&name).expect("drawn");
        let rate =
            Text::new(format!("{:.0}", figures.rate()), (end + 8, middle), text(14, HPos::Left));
        area.draw(&rate).expect("drawn");
    }
    area.present().expect("written");
}
