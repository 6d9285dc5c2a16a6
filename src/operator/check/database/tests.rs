//! What the facts mean; where they come from is tested against real servers.

use std::time::Duration;

use time::macros::datetime;

use super::super::tests::config;
use super::*;
use crate::adapters::store::Server;

use Severity::Info;

/// A server and a role as they should be.
fn good() -> Server {
    Server {
        version: "15.20".to_owned(),
        version_number: 150_020,
        standby: false,
        read_only: false,
        encoding: "UTF8".to_owned(),
        tls: None,
        superuser: false,
        audit_privileges: Vec::new(),
        may_create: false,
        owns_tables: false,
        max_connections: 100,
        reserved: 3,
        used: 7,
        ours: 1,
        role_limit: None,
        database_limit: None,
        transaction_timeout: 0,
        logs_votes: Vec::new(),
    }
}

/// Findings worse than a note: severity, subject, value.
fn found_on(server: &Server) -> Vec<(Severity, String, String)> {
    let found = server::findings(&config(""), server).into_iter();
    found
        .filter(|finding| finding.severity != Info)
        .map(|finding| (finding.severity, finding.subject, finding.value.unwrap_or_default()))
        .collect()
}

#[test]
fn each_rule_sees_what_it_is_about() {
    let delete = vec!["DELETE".to_owned()];
    let logs_votes = vec!["log_statement=all".to_owned()];
    let place = "PostgreSQL on localhost:5432";
    let connections = "postgres.max_connections";
    for (server, severity, named) in [
        (Server { version_number: 130_022, ..good() }, Warning, place),
        (Server { standby: true, read_only: true, ..good() }, Error, "a standby"),
        (Server { read_only: true, ..good() }, Error, "read-only"),
        (Server { encoding: "LATIN1".to_owned(), ..good() }, Warning, "encoding LATIN1"),
        (
            Server { superuser: true, audit_privileges: delete.clone(), ..good() },
            Warning,
            "a superuser",
        ),
        (Server { audit_privileges: delete, ..good() }, Warning, "DELETE on vote_audit"),
        // The pool of ten and three beside it.
        (Server { max_connections: 21, ..good() }, Warning, connections),
        (Server { role_limit: Some(12), ..good() }, Warning, connections),
        (Server { database_limit: Some(12), ..good() }, Warning, connections),
        (Server { transaction_timeout: 24_000, ..good() }, Warning, "transaction_timeout=24000 ms"),
        (Server { logs_votes, ..good() }, Warning, "log_statement=all"),
    ] {
        let found_on = found_on(&server);
        let [(found, subject, value)] = found_on.as_slice() else {
            panic!("{named}: {found_on:?}")
        };
        assert_eq!(*found, severity, "{named}");
        assert!(subject == named || value == named, "{named}: {found_on:?}");
    }
    for enough in [
        good(),
        Server { max_connections: 22, ..good() },
        // Instances that run already are no competition.
        Server { max_connections: 22, used: 17, ours: 11, ..good() },
        Server { role_limit: Some(13), database_limit: Some(13), ..good() },
        Server { transaction_timeout: 25_000, ..good() },
        Server { version_number: 140_000, ..good() },
    ] {
        assert_eq!(found_on(&enough), []);
    }
}

#[test]
fn an_unencrypted_connection_is_noted_where_it_leaves_the_machine() {
    for (host, tls, value) in [
        ("localhost", None, None),
        ("db.example", None, Some("unencrypted")),
        ("db.example", Some("TLSv1.3, x"), Some("TLSv1.3, x")),
    ] {
        let server = Server { tls: tls.map(str::to_owned), ..good() };
        let found = server::findings(&config(&format!("POSTGRES_HOST={host}")), &server);
        assert_eq!(found[0].value.as_deref(), Some("PostgreSQL 15.20"));
        assert_eq!(found.get(1).and_then(|finding| finding.value.as_deref()), value, "{host}");
    }
}

#[test]
fn pending_migrations_are_for_the_start_if_it_may_and_can() {
    let pending = SchemaState::Pending(vec![2]);
    let severity = |start: &str, server: &Server, state: &SchemaState| {
        let config = config(&format!("MIGRATE_ON_START={start}"));
        let found = migrations::finding(&config, server, state, &Rehearsal::Done(Ok(())));
        found.map(|finding| finding.severity)
    };
    let owner = Server { may_create: true, owns_tables: true, ..good() };
    let superuser = Server { superuser: true, ..good() };
    let creator = Server { owns_tables: false, ..owner.clone() };
    for (start, server, state, expected) in [
        ("true", &owner, &pending, Some(Info)),
        ("true", &superuser, &pending, Some(Info)),
        ("true", &good(), &pending, Some(Error)),
        ("true", &creator, &pending, Some(Error)),
        ("false", &owner, &pending, Some(Error)),
        ("true", &owner, &SchemaState::Unknown(9), Some(Error)),
        ("true", &owner, &SchemaState::Differs(1), Some(Error)),
        ("true", &owner, &SchemaState::Newer(vec![9]), Some(Info)),
        ("true", &owner, &SchemaState::Current, None),
    ] {
        assert_eq!(severity(start, server, state), expected, "{start} {state:?}");
    }
}

#[test]
fn a_standby_that_no_commit_waits_for_is_a_warning_and_where_one_is_required_an_error() {
    let severity = |required, connected, named| {
        let standbys = Standbys { connected, named, waited_for: named };
        let config = config(&format!("POSTGRES_REQUIRE_STANDBY={required}"));
        standby(&config, standbys).map(|finding| finding.severity)
    };
    for (required, connected, named, expected) in [
        ("false", 0, false, None),
        ("false", 1, false, Some(Warning)),
        ("false", 1, true, None),
        ("true", 1, false, Some(Error)),
        ("true", 0, false, Some(Error)),
        ("true", 0, true, None),
    ] {
        assert_eq!(
            severity(required, connected, named),
            expected,
            "{required} {connected} {named}"
        );
    }
}

#[test]
fn clocks_differ_only_by_more_than_the_round_trip_explains() {
    let here = datetime!(2026-11-25 20:00 UTC);
    let found_on = |seconds: i64, round_trip| {
        let there = here + time::Duration::seconds(seconds);
        let clocks = Clocks { here, server: there, round_trip: Duration::from_secs(round_trip) };
        clock(clocks).and_then(|finding| finding.value)
    };
    for (seconds, round_trip, found) in [
        (0, 0, None),
        (5, 0, None),
        (-5, 0, None),
        (6, 0, Some("PostgreSQL is 6.0 s ahead of this machine")),
        (-6, 0, Some("PostgreSQL is 6.0 s behind this machine")),
        // Half of twelve seconds each way, or all of them one way.
        (12, 12, None),
        (12, 4, Some("PostgreSQL is 10.0 s ahead of this machine")),
    ] {
        assert_eq!(found_on(seconds, round_trip).as_deref(), found, "{seconds} {round_trip}");
    }
}
