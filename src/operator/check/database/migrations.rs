//! What pending migrations and their rehearsal mean.

use super::subject;
use crate::adapters::store::{Misfits, Rehearsal, SchemaState, Server, Skipped};
use crate::operator::check::{Finding, Severity};
use crate::platform::config::Config;

use Severity::{Error, Info, Warning};

/// How bad it is that nothing was rehearsed, and what to do to have it rehearsed.
fn skipped(skipped: &Skipped) -> (Severity, String) {
    let reason = match skipped {
        Skipped::ReadOnly => "the server is read-only",
        Skipped::NotOwner => "run check --connect as the owner of the tables, too",
        Skipped::Disabled => "--rehearse 0",
        Skipped::Foreign => "objects of another role are in the way",
        Skipped::Applied => "another instance has just applied them: check again",
        Skipped::Unfit => "the schema has to fit first",
        Skipped::OpenSchema(schema) => {
            let reason = format!(
                "every role may create objects in schema {schema}; migrate takes that right from \
                 PUBLIC: do it now (REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC) and check again"
            );
            return (Warning, reason);
        }
        Skipped::TimedOut(limit, fault) => {
            // The wait for a lock is bounded more tightly than by the limit.
            let more = match fault.sqlstate.as_deref() {
                Some("55P03") => "",
                _ => ", or allow more with --rehearse SECONDS",
            };
            let reason = format!(
                "the tables were not free, or a statement took longer than {} s, for which \
                 counting would have to wait: {fault}; check again when less is going on{more}",
                limit.as_secs_f64()
            );
            return (Warning, reason);
        }
    };
    (Info, reason.to_owned())
}

/// What the catalogue alone shows, where nothing was rehearsed.
pub(super) fn misfits(config: &Config, misfits: &Misfits) -> impl Iterator<Item = Finding> {
    let meaning = "counting would fail, and no migration changes that: the service would not start";
    let remedy =
        "alter the table, or rename it if it is another program's; compare it with init_db.sql";
    let finding = Finding::new(Error, subject(config), meaning, remedy);
    misfits.unusable.iter().map(move |misfit| finding.clone().with_value(misfit))
}

/// What it means that the schema is not up to date.
pub(super) fn finding(
    config: &Config,
    server: &Server,
    state: &SchemaState,
    rehearsal: &Rehearsal,
) -> Option<Finding> {
    let (severity, rehearsed) = match rehearsal {
        Rehearsal::Done(Ok(())) => {
            (Info, "rehearsed on these tables, with a batch counted, and rolled back".to_owned())
        }
        Rehearsal::Done(Err(_)) => (Info, "rehearsed, and it failed".to_owned()),
        Rehearsal::Skipped(why) => {
            let (severity, reason) = skipped(why);
            (severity, format!("neither they nor counting were tried: {reason}"))
        }
    };
    let (severity, value, meaning, remedy) = match state {
        SchemaState::Current => return None,
        SchemaState::Newer(versions) => {
            let meaning = "a later release has migrated this database; none of its migrations \
                           requires that release, so this one runs on them";
            let value = format!("later migrations {versions:?}");
            (Info, value, meaning.to_owned(), "nothing")
        }
        SchemaState::Pending(versions) if config.postgres.migrate_on_start => {
            let value = format!("migrations {versions:?} are not applied");
            if server.may_migrate() {
                let meaning = format!(
                    "the service applies them at its start (MIGRATE_ON_START); {rehearsed}"
                );
                (
                    severity,
                    value,
                    meaning,
                    "nothing; or run vote-aggregator migrate now, and check again",
                )
            } else {
                let meaning = format!(
                    "the user {:?} may not create tables in this schema, or is not the owner of those \
                     that are there: the service would not start; {rehearsed}",
                    config.postgres.user
                );
                let remedy =
                    "run vote-aggregator migrate as the owner of the tables, then roles.sql";
                (Error, value, meaning, remedy)
            }
        }
        _ => {
            let (reason, remedy) = state.unfit();
            let meaning = format!("{reason}: the service would not start; {rehearsed}");
            (Error, "the schema does not fit".to_owned(), meaning, remedy)
        }
    };
    Some(Finding::new(severity, subject(config), meaning, remedy).with_value(value))
}
