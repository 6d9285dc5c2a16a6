//! What commands write: their answer to standard output, notes to standard error. `println!` and its
//! kind panic where they can't write, so a lint keeps them out.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

use vote_aggregator::platform::telemetry::with_priority;

use super::exit;

/// A line below the header and no others.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('-').junction('-'));

/// Standard output did not take an answer; standard error has been told why.
#[derive(Debug)]
pub(super) struct NotWritten;

/// Writes an answer. A reader that is gone has seen enough: the command goes on as if all were read.
///
/// # Errors
/// [`NotWritten`] for anything else, a full disk for example.
pub(super) fn print(text: impl AsRef<[u8]>) -> Result<(), NotWritten> {
    write(text.as_ref(), String::new)
}

/// As [`print`], of what a command has changed: where it can't be written, standard error has it, so
/// that nobody takes the work for undone.
///
/// # Errors
/// As [`print`].
pub(super) fn report(text: &str) -> Result<(), NotWritten> {
    write(text.as_bytes(), || format!("; the work is done: {}", one_line(text)))
}

/// Writes an answer, and ends with `code`, or with 70 where it can't be written.
pub(super) fn answer(text: impl AsRef<[u8]>, code: u8) -> ExitCode {
    ended(print(text), code)
}

/// `code`, unless the answer was not written.
pub(super) fn ended(written: Result<(), NotWritten>, code: u8) -> ExitCode {
    ExitCode::from(if written.is_ok() { code } else { exit::INTERNAL })
}

/// One line on standard error. Where that takes none, there is nobody left to tell.
pub(super) fn note(text: impl Display) {
    writeln!(io::stderr(), "{text}").ok();
}

/// What is to be found by its priority in the journal, before there is a log.
pub(super) fn note_at(level: tracing::Level, text: impl Display) {
    note(with_priority(level, &text.to_string()));
}

/// Help, the version, or what is wrong with the arguments, as clap words it.
pub(super) fn of_clap(error: &clap::Error) -> ExitCode {
    let code = u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
    let printed = error.print().and_then(|()| io::stdout().flush());
    if error.use_stderr() {
        return ExitCode::from(code);
    }
    ended(written(printed, String::new), code)
}

fn write(bytes: &[u8], done: impl FnOnce() -> String) -> Result<(), NotWritten> {
    written(io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()), done)
}

fn written(result: io::Result<()>, done: impl FnOnce() -> String) -> Result<(), NotWritten> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            note(format_args!("cannot write to standard output: {error}{}", done()));
            Err(NotWritten)
        }
        _ => Ok(()),
    }
}

/// The last paragraph of a text, in which a command sums up, without the rules of its tables.
fn one_line(text: &str) -> String {
    let summary = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
    let lines = summary.lines().filter(|line| line.contains(|c| c != '-' && c != ' '));
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    lines.map(words).collect::<Vec<_>>().join("; ")
}

/// A table of `rows`, with the columns of these numbers, which hold numbers, to the right.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    numbers: impl IntoIterator<Item = usize>,
) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_summed_up_in_one_line() {
        let rows = [["put back".to_owned(), "3".to_owned()]];
        let table = table(["of the messages", "messages"], rows, [1]);
        assert_eq!(one_line(&format!("{table}\n")), "of the messages messages; put back 3");
        assert_eq!(one_line("law  drift\n\ncorrected: 3 votes\n"), "corrected: 3 votes");
        assert_eq!(one_line("confirmed: 3\n3 lines\n"), "confirmed: 3; 3 lines");
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error_and_a_full_disk_is() {
        let failed = |kind: io::ErrorKind| written(Err(kind.into()), String::new);
        assert!(failed(io::ErrorKind::BrokenPipe).is_ok());
        assert!(failed(io::ErrorKind::StorageFull).is_err());
        assert_eq!(ended(Ok(()), 1), ExitCode::from(1));
        assert_eq!(ended(Err(NotWritten), 0), ExitCode::from(70));
    }
}
