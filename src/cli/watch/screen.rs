//! The screen, drawn from the readings and the time alone. No colours, so that it reads the same on
//! every terminal.

use std::time::Duration;

use comfy_table::TableStyle;
use indicatif::HumanCount;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Paragraph, Wrap};
use time::OffsetDateTime;
use tokio::time::Instant;
use vote_aggregator::model::results::{
    LawResult, Order, Reading, Trend, grouped, moment, percentages, printable,
};

use crate::cli::output;

/// The table's head and its sums.
const AROUND_LAWS: usize = 2;
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const MARK: Style = Style::new().add_modifier(Modifier::REVERSED).add_modifier(Modifier::BOLD);

/// Everything that is drawn.
pub(in crate::cli) struct View {
    order: Order,
    top: usize,
    /// The laws asked for; none: all.
    pub(super) asked: Vec<String>,
    trend: Trend,
    away: Option<Away>,
}

/// PostgreSQL does not answer.
struct Away {
    since: OffsetDateTime,
    reason: String,
}

impl View {
    pub(in crate::cli) fn new(order: Order, top: usize, asked: Vec<String>) -> Self {
        Self { order, top, asked, trend: Trend::default(), away: None }
    }

    /// Whether nothing was ever read.
    pub(super) const fn is_empty(&self) -> bool {
        self.trend.last().is_none()
    }

    pub(super) fn read(&mut self, at: Instant, mut reading: Reading) {
        reading.sort(self.order);
        self.trend.push(at, reading);
        self.away = None;
    }

    pub(super) fn failed(&mut self, now: OffsetDateTime, reason: String) {
        let since = self.away.take().map_or(now, |away| away.since);
        self.away = Some(Away { since, reason });
    }
}

/// Draws `view` as it is at `now`, by the calendar and by the clock of the readings.
pub(super) fn draw(frame: &mut Frame, view: &View, now: OffsetDateTime, instant: Instant) {
    let heights = [
        Constraint::Length(1),
        Constraint::Length(u16::from(view.away.is_some()) * 3),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ];
    let [head, mark, _, body, foot] = Layout::vertical(heights).areas(frame.area());

    let now = moment(Some(now));
    let clock = match view.trend.at() {
        Some(at) => format!("{now}, read {} ago", short(instant.saturating_duration_since(at))),
        None => now,
    };
    frame.render_widget(Paragraph::new(header(view)).style(BOLD), head);
    frame.render_widget(Paragraph::new(clock).alignment(Alignment::Right), head);
    if let Some(Away { since, reason }) = &view.away {
        let since = moment(Some(*since));
        let then = if view.is_empty() { "" } else { "; these are the last counts" };
        let outage = format!("PostgreSQL has been unavailable since {since}{then}; retrying");
        let lines = [Line::styled(outage, MARK), Line::raw(printable(reason))];
        let paragraph = Paragraph::new(Text::from_iter(lines)).wrap(Wrap { trim: true });
        frame.render_widget(paragraph, mark);
    }
    let text = match view.trend.last() {
        Some(reading) if !reading.laws.is_empty() => {
            table(view, reading, body.width.into(), body.height.into())
        }
        Some(_) => Text::raw("no votes are counted yet"),
        None if view.away.is_none() => Text::raw("reading ..."),
        None => Text::default(),
    };
    frame.render_widget(text, body);
    frame.render_widget(Paragraph::new(footer(view)).style(DIM), foot);
}

fn header(view: &View) -> String {
    match view.trend.last().map_or(0, |reading| reading.laws.len()) {
        0 => "results".to_owned(),
        count => format!("results: {}", laws(count)),
    }
}

pub(in crate::cli) fn laws(count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} law{plural}", HumanCount(count as u64))
}

fn footer(view: &View) -> String {
    let missing = view.trend.last().map(|reading| reading.not_counted(&view.asked));
    match missing.unwrap_or_default().as_slice() {
        [] => "q or Ctrl-C ends".to_owned(),
        laws => format!("q or Ctrl-C ends; no votes yet for {}", printable(&laws.join(", "))),
    }
}

/// Which columns go first on a narrow terminal: last update, rate over a minute, shares, rate.
const DISPENSABLE: [usize; 5] = [8, 7, 5, 4, 6];

fn table(view: &View, reading: &Reading, width: usize, height: usize) -> Text<'static> {
    let spans = [view.trend.since_last(), view.trend.minute()];
    let wanted = reading.laws.len().min(view.top);
    let most = height.saturating_sub(AROUND_LAWS);
    // One line less where it has to say that there are more.
    let shown = if wanted < reading.laws.len() || wanted > most {
        wanted.min(most.saturating_sub(1))
    } else {
        wanted
    };
    let hidden = reading.laws.len() - shown;

    let row = |law: &LawResult, rates: [Option<f64>; 2]| {
        let mut cells = counts(law);
        cells.extend(rates.map(rate));
        cells.push(moment(law.updated_at));
        cells
    };
    let laws = reading.laws.iter().take(shown);
    let mut rows: Vec<Vec<String>> =
        laws.map(|law| row(law, spans.map(|span| span.map(|span| span.of(&law.law_id))))).collect();
    let sum = LawResult { law_id: "all".to_owned(), ..reading.sum() };
    rows.push(row(&sum, spans.map(|span| span.map(|span| span.all()))));
    let over =
        spans[1].map_or("over 1 min".to_owned(), |span| format!("over {}", short(span.length())));
    let head = ["law", "oui", "non", "total", "oui %", "non %", "votes/s", &over, "last update"];
    let lines = lines(&head, &rows, width).into_iter();
    let mut lines: Vec<Line<'static>> = lines.map(Line::raw).collect();
    lines[0].style = BOLD;
    lines[rows.len()].style = BOLD;
    if hidden > 0 {
        let more = format!("... and {} more", HumanCount(hidden as u64));
        lines.insert(rows.len(), Line::styled(more, DIM));
    }
    Text::from(lines)
}

/// The table in lines of at most `width` columns if that can be: the least important columns go first.
fn lines(head: &[&str], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let mut kept: Vec<usize> = (0..head.len()).collect();
    let mut dispensable = DISPENSABLE.iter();
    loop {
        let cells =
            |row: &Vec<String>| kept.iter().map(|&column| row[column].clone()).collect::<Vec<_>>();
        let head = kept.iter().map(|&column| head[column]);
        let mut table = output::table(head, rows.iter().map(cells), 1..kept.len());
        table.load_style(TableStyle::new());
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        let fits = lines.iter().all(|line| line.chars().count() <= width);
        match dispensable.next() {
            Some(column) if !fits => kept.retain(|kept| kept != column),
            _ => return lines,
        }
    }
}

/// A law's name, counts and shares, as cells of a table.
pub(in crate::cli) fn counts(law: &LawResult) -> Vec<String> {
    let mut cells = vec![printable(&law.law_id)];
    cells.extend([law.oui, law.non, law.total()].map(grouped));
    cells.extend(percentages(law.oui, law.non));
    cells
}

/// Votes a second, with a decimal below ten.
fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate == 0.0 || rate.abs() >= 9.95 => grouped(rate.round() as i64),
        // What would round to 0.0 is not shown as nothing.
        Some(rate) if rate.abs() < 0.05 => if rate > 0.0 { "<0.1" } else { "-<0.1" }.to_owned(),
        Some(rate) => format!("{rate:.1}"),
    }
}

fn short(time: Duration) -> String {
    match time.as_secs_f64().round() as u64 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 21:15:06 UTC);

    fn law(law_id: &str, oui: i64, non: i64) -> LawResult {
        let updated_at = Some(datetime!(2026-11-25 21:15:03 UTC));
        LawResult { law_id: law_id.to_owned(), oui, non, updated_at }
    }

    fn reading(laws: Vec<LawResult>) -> Reading {
        Reading { laws, at: datetime!(2026-11-25 21:15:04 UTC) }
    }

    fn drawn(view: &View, size: (u16, u16), instant: Instant) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("a terminal");
        terminal.draw(|frame| draw(frame, view, NOW, instant)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..size.1).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    /// Two readings, two seconds apart.
    fn two_readings(asked: &[&str]) -> (View, Instant) {
        let asked = asked.iter().map(|&law| law.to_owned()).collect();
        let mut view = View::new(Order::Votes, usize::MAX, asked);
        let began = Instant::now();
        view.read(began, reading(vec![law("law-1", 1_000, 10), law("law-2", 1_003, 2)]));
        let again = began + Duration::from_secs(2);
        view.read(again, reading(vec![law("law-1", 1_001, 10), law("law-2", 11_003, 2)]));
        (view, again)
    }

    #[test]
    fn the_leader_comes_first_with_rates_of_each_law_and_of_all() {
        let (view, at) = two_readings(&["law-1", "law-2", "law-9"]);
        let lines = drawn(&view, (120, 10), at + Duration::from_secs(3));
        assert!(lines[0].starts_with("results: 2 laws "), "{lines:#?}");
        assert!(lines[0].ends_with(" 2026-11-25 21:15:06Z, read 3 s ago"), "{lines:#?}");
        let head = "law oui non total oui % non % votes/s over 2 s last update";
        assert_eq!(words(&lines[2]).join(" "), head);
        let update = ["2026-11-25", "21:15:03Z"];
        let row = ["law-2", "11,003", "2", "11,005", ">99.9", "<0.1", "5,000", "5,000"];
        assert_eq!(words(&lines[3]), [&row[..], &update].concat());
        let row = ["law-1", "1,001", "10", "1,011", "99.0", "1.0", "0.5", "0.5"];
        assert_eq!(words(&lines[4]), [&row[..], &update].concat());
        let row = ["all", "12,004", "12", "12,016", "99.9", "0.1", "5,001", "5,001"];
        assert_eq!(words(&lines[5]), [&row[..], &update].concat());
        assert_eq!(lines[9], "q or Ctrl-C ends; no votes yet for law-9");
    }

    #[test]
    fn while_postgresql_is_away_the_last_counts_stay_and_are_marked() {
        let (mut view, at) = two_readings(&[]);
        view.failed(datetime!(2026-11-25 21:14:50 UTC), "refused\x1b[2J".to_owned());
        view.failed(NOW, "still refused\x1b[2J".to_owned());
        let lines = drawn(&view, (120, 12), at + Duration::from_secs(600));
        assert!(lines[0].ends_with("read 10 min ago"), "{lines:#?}");
        let mark =
            "PostgreSQL has been unavailable since 2026-11-25 21:14:50Z; these are the last counts";
        assert!(lines[1].starts_with(mark), "{lines:#?}");
        assert_eq!(lines[2], "still refused\\u{1b}[2J");
        assert_eq!(words(&lines[6])[..4], ["law-2", "11,003", "2", "11,005"]);

        view.read(at + Duration::from_secs(601), reading(vec![law("law-1", 2_000, 10)]));
        let lines = drawn(&view, (120, 12), at + Duration::from_secs(601));
        assert!(!lines.join("\n").contains("away"), "{lines:#?}");
    }

    #[test]
    fn before_the_first_reading_it_says_what_it_waits_for() {
        let mut view = View::new(Order::Votes, usize::MAX, vec![]);
        assert!(drawn(&view, (80, 6), Instant::now()).join("\n").contains("reading ..."));
        view.failed(NOW, "connection refused".to_owned());
        let lines = drawn(&view, (80, 6), Instant::now()).join("\n");
        assert!(
            lines.contains("unavailable since") && lines.contains("connection refused"),
            "{lines}"
        );
        assert!(!lines.contains("last counts"), "{lines}");
        view.read(Instant::now(), reading(vec![]));
        let lines = drawn(&view, (80, 6), Instant::now()).join("\n");
        assert!(lines.contains("no votes are counted yet"), "{lines}");
    }

    /// Whatever the size: no panic, and where there are three lines for it, the sums.
    #[test]
    fn it_fits_the_terminal_and_says_what_it_leaves_out() {
        let mut view = View::new(Order::Law, 30, vec![]);
        let laws = (0..40).map(|n| law(&format!("law-{n:02}"), n, 1)).collect();
        view.read(Instant::now(), reading(laws));
        let lines = drawn(&view, (100, 10), Instant::now());
        let shown: Vec<&str> =
            lines[3..9].iter().map(|line| words(line).first().copied().unwrap_or("")).collect();
        assert_eq!(shown, ["law-00", "law-01", "law-02", "law-03", "...", "all"], "{lines:#?}");
        assert_eq!(lines[7], "... and 36 more");
        let lines = drawn(&view, (100, 60), Instant::now());
        assert!(lines.iter().any(|line| line.starts_with("... and 10 more")), "--top: {lines:#?}");
        let narrow = drawn(&view, (50, 10), Instant::now());
        assert_eq!(words(&narrow[2]).join(" "), "law oui non total oui % non % votes/s");
        let narrow = drawn(&view, (34, 10), Instant::now());
        assert_eq!(words(&narrow[2]), ["law", "oui", "non", "total", "votes/s"]);
        let narrow = drawn(&view, (30, 10), Instant::now());
        assert_eq!(words(&narrow[2]), ["law", "oui", "non", "total"], "the counts go last");
        for height in 1..12 {
            for width in [1, 10, 40, 200] {
                drawn(&view, (width, height), Instant::now());
            }
        }
    }

    #[test]
    fn a_rate_below_ten_has_a_decimal() {
        for (value, shown) in
            [(0.0, "0"), (0.01, "<0.1"), (0.5, "0.5"), (9.94, "9.9"), (9.96, "10"), (-2.0, "-2.0")]
        {
            assert_eq!(rate(Some(value)), shown);
        }
        assert_eq!((rate(Some(12_345.6)), rate(None)), ("12,346".to_owned(), "-".to_owned()));
    }
}
