//! What commands write: their answer to standard output, notes to standard error. `println!` and its
//! kind panic where they can't write, so a lint keeps them out.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, LineStyle, Row, Table, TableStyle};
use vote_aggregator::platform::telemetry::with_priority;
use vote_aggregator::platform::terminal::printable;

use super::exit::{self, Exit, Outcome};

/// A line below the header and no others.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('-').junction('-'));

/// Writes an answer. A closed pipe is no error: its reader has seen enough.
///
/// # Errors
/// Anything else, a full disk for example, ends the command with 70.
pub(super) fn print(text: impl AsRef<[u8]>) -> Result<(), Exit> {
    written(write(text.as_ref()), String::new)
}

/// As [`print`], for a command that changed something: where standard output cannot be written, standard
/// error says what was done.
///
/// # Errors
/// As [`print`].
pub(super) fn report(text: &str) -> Result<(), Exit> {
    written(write(text.as_bytes()), || format!("; the work is done: {}", one_line(text)))
}

/// Writes an answer, and ends with `code`.
pub(super) fn answer(text: impl AsRef<[u8]>, code: u8) -> Outcome {
    print(text).map(|()| code)
}

/// One line on standard error. Where that cannot be written, there is no place left for an error.
pub(super) fn note(text: impl Display) {
    writeln!(io::stderr(), "{text}").ok();
}

/// A note with its priority for the journal, before there is a log.
pub(super) fn note_at(level: tracing::Level, text: impl Display) {
    note(with_priority(level, &text.to_string()));
}

/// Reports arguments that clap accepts and the command does not.
pub(super) fn usage(problem: impl Display) -> Exit {
    note(problem);
    Exit(exit::USAGE)
}

/// Refuses a command that would ask a question where standard input cannot answer it.
pub(super) fn need_terminal(problem: &str) -> Result<(), Exit> {
    if io::stdin().is_terminal() { Ok(()) } else { Err(usage(problem)) }
}

/// Asks on the terminal. Anything but a yes ends the command.
pub(super) fn ask(question: &str) -> Result<(), Exit> {
    let mut answer = String::new();
    let asked =
        write!(io::stderr(), "{question} [y/N] ").and_then(|()| io::stdin().read_line(&mut answer));
    if asked.is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(());
    }
    note("nothing is changed");
    Err(Exit(exit::FINDINGS))
}

/// Help, the version, or what is wrong with the arguments, as clap words it.
pub(super) fn of_clap(error: &clap::Error) -> Exit {
    let code = u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
    let printed = error.print().and_then(|()| io::stdout().flush());
    if error.use_stderr() {
        return Exit(code);
    }
    written(printed, String::new).err().unwrap_or(Exit(code))
}

fn write(bytes: &[u8]) -> io::Result<()> {
    io::stdout().write_all(bytes).and_then(|()| io::stdout().flush())
}

fn written(result: io::Result<()>, done: impl FnOnce() -> String) -> Result<(), Exit> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            note(format_args!("cannot write to standard output: {error}{}", done()));
            Err(Exit(exit::INTERNAL))
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

/// Breaks text at spaces into lines of at most `width` columns, each of which begins at column `indent`.
/// The caller writes what precedes the first one. Control characters are escaped.
pub(super) fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let (mut lines, mut column) = (String::new(), indent);
    for word in printable(text).split(' ') {
        let length = word.chars().count();
        if column > indent && column + 1 + length > width {
            lines += &format!("\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines += word;
        column += length;
    }
    lines
}

/// A table of `rows`; the `numbers` are the columns to align to the right.
pub(super) fn table(
    header: impl Into<Row>,
    rows: impl IntoIterator<Item = impl Into<Row>>,
    numbers: impl IntoIterator<Item = usize>,
) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(header);
    table.add_rows(rows);
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
        let rows = [["put back", "3"]];
        let table = table(["of the messages", "messages"], rows, [1]);
        assert_eq!(one_line(&format!("{table}\n")), "of the messages messages; put back 3");
        assert_eq!(one_line("law  drift\n\ncorrected: 3 votes\n"), "corrected: 3 votes");
        assert_eq!(one_line("confirmed: 3\n3 lines\n"), "confirmed: 3; 3 lines");
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error_and_a_full_disk_is() {
        let failed = |kind: io::ErrorKind| written(Err(kind.into()), String::new);
        assert_eq!(failed(io::ErrorKind::BrokenPipe), Ok(()));
        assert_eq!(failed(io::ErrorKind::StorageFull), Err(Exit(exit::INTERNAL)));
    }
}
