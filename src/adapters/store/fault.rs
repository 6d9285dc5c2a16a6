//! Errors of sqlx and of the server as [`Fault`]s, in words that hold nothing of a vote.

use sqlx::Error;
use sqlx::postgres::PgDatabaseError;

use super::CONNECT_TIMEOUT;
use super::sqlstate::{classify, is_listed};
use crate::model::ports::{Class, Fault};

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        let (class, message) = match error {
            Error::Database(database) => return ServerError::new(database.downcast_ref()).fault(),
            Error::ColumnDecode { .. }
            | Error::ColumnNotFound(_)
            | Error::Decode(_)
            | Error::Encode(_) => (Class::Bug, error.to_string()),
            // Its words quote a character of the password.
            Error::Configuration(_) => (
                Class::Reconnect,
                "the driver cannot use the login, or the files of the client certificate"
                    .to_owned(),
            ),
            Error::PoolTimedOut => (
                Class::Reconnect,
                format!("the pool gave no connection within {CONNECT_TIMEOUT:?}"),
            ),
            // Sockets, TLS, protocol: the connection is at fault.
            _ => (Class::Reconnect, error.to_string()),
        };
        Self { class, sqlstate: None, message }
    }
}

/// The fields of an error of PostgreSQL. Table, column and constraint are names of objects.
#[derive(Clone, Copy, Debug, Default)]
struct ServerError<'a> {
    sqlstate: &'a str,
    message: &'a str,
    detail: Option<&'a str>,
    hint: Option<&'a str>,
    table: Option<&'a str>,
    column: Option<&'a str>,
    constraint: Option<&'a str>,
    /// The words are those of a function's RAISE, and not the server's.
    raised: bool,
}

impl<'a> ServerError<'a> {
    fn new(error: &'a PgDatabaseError) -> Self {
        Self {
            sqlstate: error.code(),
            message: error.message(),
            detail: error.detail(),
            hint: error.hint(),
            table: error.table(),
            column: error.column(),
            constraint: error.constraint(),
            raised: error.routine() == Some("exec_stmt_raise"),
        }
    }

    /// No vote is at fault where `count_batch` refuses a row, which holds nothing of one.
    fn class(&self) -> Class {
        match classify(self.sqlstate, self.constraint) {
            Class::Isolate if self.table == Some("count_batch") => Class::Pause,
            class => class,
        }
    }

    fn fault(&self) -> Fault {
        Fault {
            class: self.class(),
            sqlstate: Some(self.sqlstate.to_owned()),
            message: self.message(),
        }
    }

    /// One line. The server quotes a refused value, and in the detail the whole row; a trigger may say
    /// anything under a code of its own. Message, detail and hint are passed on only where they name
    /// objects and nothing else.
    fn message(&self) -> String {
        let refused = classify(self.sqlstate, self.constraint) == Class::Isolate;
        let mut parts = Vec::new();
        if refused || !is_listed(self.sqlstate) {
            parts.push("a value is refused".to_owned());
        } else {
            parts.push(self.message.to_owned());
            if names_objects(self.sqlstate) && !self.raised {
                let more = [self.detail, self.hint];
                parts.extend(more.into_iter().flatten().map(|text| text.replace('\n', ", ")));
            }
        }
        let places =
            [("table", self.table), ("column", self.column), ("constraint", self.constraint)];
        parts.extend(
            places
                .into_iter()
                .filter_map(|(kind, name)| Some(format!("{kind} {}", name?)))
                .filter(|place| !parts[0].contains(place.as_str()))
                .collect::<Vec<_>>(),
        );
        parts.extend(cause(self.sqlstate).map(str::to_owned));
        parts.join("; ")
    }
}

/// Codes whose DETAIL and HINT name objects. That of 23xxx quotes a row.
fn names_objects(sqlstate: &str) -> bool {
    ["0A", "2B", "42", "55"].iter().any(|class| sqlstate.starts_with(class))
}

/// What lies behind codes whose message does not say it: the server, or a pooler in front of it.
fn cause(sqlstate: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "25006" => {
            "the server is read-only: a standby, or default_transaction_read_only is on. Set \
             POSTGRES_HOST to the primary, or to the list of all servers, or that setting to off"
        }
        "08P01" => {
            "most likely from a pooler: PgBouncer needs ignore_startup_parameters = \
             extra_float_digits,options (docs/scaling.md)"
        }
        "26000" | "42P05" => {
            "most likely from a pooler that changes the server connection between statements: use \
             PgBouncer 1.24 or later with max_prepared_statements = 200, or pool_mode = session \
             (docs/scaling.md)"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = "Failing row contains (h-1, citizen-1, law-1, oui).";

    #[test]
    fn a_refused_value_is_reported_by_its_place_alone() {
        for (sqlstate, message) in
            [("23502", "null value"), ("23514", "new row"), ("22P02", "invalid \"citizen-1\"")]
        {
            let error = ServerError {
                sqlstate,
                message,
                detail: Some(ROW),
                hint: Some(ROW),
                table: Some("vote_audit"),
                column: Some("station"),
                ..ServerError::default()
            };
            let expected = "a value is refused; table vote_audit; column station";
            assert_eq!(error.message(), expected, "{sqlstate}");
        }
        let unique = ServerError {
            sqlstate: "23505",
            message: "duplicate key value violates unique constraint \"k\"",
            detail: Some("Key (vote_hash)=(h-1) already exists."),
            table: Some("vote_audit"),
            constraint: Some("k"),
            ..ServerError::default()
        };
        assert_eq!(unique.message(), format!("{}; table vote_audit; constraint k", unique.message));
    }

    #[test]
    fn a_constraint_of_the_batches_is_no_vote_s_fault() {
        let class = |table| {
            ServerError { sqlstate: "23514", table: Some(table), ..ServerError::default() }.class()
        };
        assert_eq!(["vote_audit", "count_batch"].map(class), [Class::Isolate, Class::Pause]);
    }

    #[test]
    fn detail_and_hint_are_passed_on_where_they_name_objects_and_no_function_raised_them() {
        let drop = ServerError {
            sqlstate: "2BP01",
            message: "cannot drop view vote_statistics",
            detail: Some("view a depends\nview b depends"),
            hint: Some("Use DROP ... CASCADE"),
            ..ServerError::default()
        };
        assert!(drop.message().ends_with("view a depends, view b depends; Use DROP ... CASCADE"));
        let raised = ServerError { sqlstate: "42501", detail: Some(ROW), raised: true, ..drop };
        assert!(!raised.message().contains("citizen-1"), "{}", raised.message());
    }

    #[test]
    fn codes_of_a_standby_and_of_a_pooler_name_their_cause() {
        for (sqlstate, named) in [
            ("25006", "a standby"),
            ("08P01", "ignore_startup_parameters"),
            ("42P05", "pool_mode"),
            ("26000", "pool_mode"),
        ] {
            let message = ServerError { sqlstate, ..ServerError::default() }.message();
            assert!(message.contains(named), "{sqlstate}: {message}");
        }
    }
}
