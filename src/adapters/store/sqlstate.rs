//! What each SQLSTATE calls for. sqlx itself calls two codes transient; this table is total.

use crate::model::ports::Class;

/// Constraints whose violation passes when it is tried again: those under which a repeated vote_hash
/// would be reported, and the one of a migration that another instance has applied.
const KEYS_OF_A_RACE: [&str; 3] =
    ["vote_audit_pkey", "vote_audit_vote_hash_key", "_sqlx_migrations_pkey"];

/// The class of a server error, by its SQLSTATE (PostgreSQL's appendix A) and, for a unique
/// violation, the constraint it names. A code that is not listed pauses, so that nothing is lost.
pub fn classify(sqlstate: &str, constraint: Option<&str>) -> Class {
    match sqlstate {
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => Class::Retry,

        // transaction_resolution_unknown, statement_completion_unknown
        "08007" | "40003" => Class::UnknownOutcome,

        // Shut down, crashed, starting up, idle session ended; a transaction this connection
        // should not be in; a standby (failover under way); a lost prepared statement; no slot.
        "57P01" | "57P02" | "57P03" | "57P05" => Class::Reconnect,
        "25P02" | "25P03" | "25006" | "26000" | "53300" => Class::Reconnect,

        // query_canceled (statement_timeout), transaction_timeout, statement_too_complex
        "57014" | "25P04" | "54001" => Class::Split,

        // A count that overflows, a row updated twice in one statement: no vote can cause these.
        "21000" | "22003" => Class::Bug,
        "23505" if constraint.is_some_and(|name| KEYS_OF_A_RACE.contains(&name)) => Class::Retry,
        // A key of the catalogue: two instances created the same table.
        "23505" if constraint.is_some_and(|name| name.starts_with("pg_")) => Class::Retry,
        "23505" => Class::Bug,

        // not_null, foreign_key, check violations; program_limit_exceeded; raised by a trigger
        "23502" | "23503" | "23514" | "54000" | "P0001" => Class::Isolate,

        _ => match sqlstate.get(..2) {
            Some("08") => Class::Reconnect,
            Some("22") => Class::Isolate,
            // Disk full, out of memory, wrong password, no such database or table, …, unlisted.
            _ => Class::Pause,
        },
    }
}

/// Whether messages with this code are the server's own and quote no value: a trigger may raise any
/// other code with a text of its own.
pub fn is_listed(sqlstate: &str) -> bool {
    let classes = [
        "08", "21", "25", "26", "28", "2B", "40", "53", "55", "57", "58", "0A", "3D", "3F", "42",
        "54", "XX",
    ];
    sqlstate.get(..2).is_some_and(|class| classes.contains(&class)) || sqlstate == "23505"
}

/// Whether a start fails instead of waiting: credentials, a missing database, missing grants. After
/// the first success the same codes pause, since an operator may be fixing them.
pub fn fatal_at_start(sqlstate: &str) -> bool {
    sqlstate.starts_with("28") || matches!(sqlstate, "3D000" | "42501")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code that PostgreSQL 15 and 18 know, with the class that the rules give it.
    const CODES: &str = include_str!("../../../tests/data/sqlstates.tsv");

    #[test]
    fn every_code_of_postgresql_has_its_class() {
        let mut seen = 0;
        for line in CODES.lines() {
            let mut columns = line.split('\t');
            let (code, class) = (columns.next().unwrap_or(""), columns.next().unwrap_or(""));
            assert_eq!(classify(code, None).as_str(), class, "{line}");
            seen += 1;
        }
        assert!(seen > 250, "{seen} codes");
    }

    #[test]
    fn a_unique_violation_is_a_bug_unless_two_sessions_raced() {
        for key in ["vote_audit_pkey", "_sqlx_migrations_pkey", "pg_type_typname_nsp_index"] {
            assert_eq!(classify("23505", Some(key)), Class::Retry, "{key}");
        }
        assert_eq!(classify("23505", Some("vote_results_pkey")), Class::Bug);
    }

    #[test]
    fn an_unlisted_code_pauses_and_nothing_panics() {
        for code in ["", "0", "é", "éé", "00000", "01000", "ZZZZZ", "P0002", "72000", "F0000"] {
            assert_eq!(classify(code, None), Class::Pause, "{code:?}");
        }
    }

    /// A trigger's message, and one about a refused value, may quote a vote.
    #[test]
    fn only_messages_of_the_server_itself_are_passed_on() {
        for (codes, listed) in [
            ("08006 40P01 42501 42P01 53100 57P01 58030 23505 XX000", true),
            ("22001 22P02 23502 23514 P0001 P0002 ZZ999 01000 4", false),
        ] {
            codes.split(' ').for_each(|code| assert_eq!(is_listed(code), listed, "{code}"));
        }
    }

    #[test]
    fn fatal_at_start_are_credentials_database_and_grants() {
        for (codes, fatal) in
            [("28000 28P01 3D000 42501", true), ("57P03 53300 08006 42P01", false)]
        {
            codes.split(' ').for_each(|code| assert_eq!(fatal_at_start(code), fatal, "{code}"));
        }
    }
}
