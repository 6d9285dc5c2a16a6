//! For spreadsheets: the columns of `results --csv`, and those of French open data.

use crate::model::results::{self, Reading, field, percent};
use crate::operator::board::Language;
use crate::operator::board::view::{Row, View};

/// By which a spreadsheet knows UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The header, and the laws that have votes, while they are public.
pub fn results(view: &View<'_>) -> String {
    let laws = view.laws.iter().filter_map(|row| row.result.cloned()).collect();
    results::csv(&Reading { laws, at: view.checked_at }, usize::MAX)
}

/// With semicolons and decimal commas. A column that is not known of any law is left out.
pub fn french(view: &View<'_>) -> String {
    let (titled, registered) = (
        view.laws.iter().any(|row| row.title.is_some()),
        view.laws.iter().any(|row| row.registered.is_some()),
    );
    let share = |part, whole| match percent(part, whole) {
        Some(share) => share.to_string().replace('.', ","),
        None => String::new(),
    };
    let line = |row: &Row<'_>| {
        let law = row.result?;
        let (total, voters) = (law.total(), row.registered);
        let columns = [
            Some(field(row.law_id)),
            titled.then(|| field(row.title(Language::Fr))),
            registered.then(|| voters.map(|count| count.to_string()).unwrap_or_default()),
            Some(total.to_string()),
            registered.then(|| voters.map(|count| share(total, count)).unwrap_or_default()),
            Some(law.oui.to_string()),
            Some(share(law.oui, total)),
            Some(law.non.to_string()),
            Some(share(law.non, total)),
        ];
        Some(columns.into_iter().flatten().collect::<Vec<_>>())
    };
    let header = [
        Some("Loi"),
        titled.then_some("Intitulé"),
        registered.then_some("Inscrits"),
        Some("Exprimés"),
        registered.then_some("% Exp/Ins"),
        Some("Oui"),
        Some("% Oui/Exp"),
        Some("Non"),
        Some("% Non/Exp"),
    ];
    let header = header.into_iter().flatten().map(str::to_owned).collect();
    let mut text = BYTE_ORDER_MARK.to_string();
    for columns in [header].into_iter().chain(view.laws.iter().filter_map(line)) {
        text.push_str(&columns.join(";"));
        text.push_str("\r\n");
    }
    text
}
