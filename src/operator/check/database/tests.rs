//! What the facts mean; where they come from is tested against real servers.

use std::ffi::OsString;
use std::time::Duration;

use time::macros::datetime;

use super::*;
use crate::adapters::store::Server;
use crate::model::ports::{Class, Fault};
use crate::platform::config::Sources;

fn config(variables: &[(&str, &str)]) -> Config {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

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

/// What is worse than a note: severity, subject, value.
fn found_on(server: &Server) -> Vec<(Severity, String, String)> {
    let found = server::findings(&config(&[]), server).into_iter();
    found
        .filter(|finding| finding.severity != Info)
        .inspect(|finding| assert!(!finding.meaning.is_empty() && !finding.remedy.is_empty()))
        .map(|finding| (finding.severity, finding.subject, finding.value.unwrap_or_default()))
        .collect()
}

#[test]
fn a_server_as_it_should_be_gives_notes_only() {
    assert_eq!(found_on(&good()), []);
    let version = server::findings(&config(&[]), &good());
    assert_eq!(version[0].value.as_deref(), Some("PostgreSQL 15.20"));
}

#[test]
fn each_rule_sees_what_it_is_about() {
    let superuser = ["UPDATE", "DELETE", "TRUNCATE"].map(str::to_owned).to_vec();
    let cases = [
        (Server { version_number: 130_022, ..good() }, Warning, "PostgreSQL on localhost:5432"),
        (Server { standby: true, read_only: true, ..good() }, Error, "a standby"),
        (Server { read_only: true, ..good() }, Error, "read-only"),
        (Server { encoding: "LATIN1".to_owned(), ..good() }, Warning, "encoding LATIN1"),
        (Server { superuser: true, audit_privileges: superuser, ..good() }, Warning, "a superuser"),
        (
            Server { audit_privileges: vec!["DELETE".to_owned()], ..good() },
            Warning,
            "DELETE on vote_audit",
        ),
        // The pool of ten and three beside it.
        (Server { max_connections: 21, ..good() }, Warning, "postgres.max_connections"),
        (Server { role_limit: Some(12), ..good() }, Warning, "postgres.max_connections"),
        (Server { database_limit: Some(12), ..good() }, Warning, "postgres.max_connections"),
        (Server { transaction_timeout: 24_000, ..good() }, Warning, "transaction_timeout=24000 ms"),
        (
            Server { logs_votes: vec!["log_statement=all".to_owned()], ..good() },
            Warning,
            "log_statement=all",
        ),
    ];
    for (server, severity, named) in cases {
        let found_on = found_on(&server);
        let [(found, subject, value)] = found_on.as_slice() else {
            panic!("{named}: {found_on:?}")
        };
        assert_eq!(*found, severity, "{named}");
        assert!(subject == named || value == named, "{named}: {found_on:?}");
    }
    for enough in [
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
fn a_connection_in_clear_is_told_where_it_leaves_the_machine() {
    let value = |host, tls: Option<&str>| {
        let server = Server { tls: tls.map(str::to_owned), ..good() };
        let found = server::findings(&config(&[("POSTGRES_HOST", host)]), &server);
        found.get(1).and_then(|finding| finding.value.clone())
    };
    assert_eq!(value("localhost", None), None);
    assert_eq!(value("db.example", None).as_deref(), Some("in clear"));
    assert_eq!(value("db.example", Some("TLSv1.3, x")).as_deref(), Some("TLSv1.3, x"));
}

#[test]
fn pending_migrations_are_for_the_start_if_it_may_and_can() {
    let pending = SchemaState::Pending(vec![2]);
    let severity = |start: &str, server: &Server, state: &SchemaState| {
        let config = config(&[("MIGRATE_ON_START", start)]);
        migrations::finding(&config, server, state, &Rehearsal::Done(Ok(()))).severity
    };
    let owner = Server { may_create: true, owns_tables: true, ..good() };
    assert_eq!(severity("true", &owner, &pending), Info);
    assert_eq!(severity("true", &Server { superuser: true, ..good() }, &pending), Info);
    assert_eq!(severity("true", &good(), &pending), Error);
    assert_eq!(severity("true", &Server { owns_tables: false, ..owner.clone() }, &pending), Error);
    assert_eq!(severity("false", &owner, &pending), Error);
    assert_eq!(severity("true", &owner, &SchemaState::Unknown(9)), Error);
    assert_eq!(severity("true", &owner, &SchemaState::Differs(1)), Error);
}

#[test]
fn losses_that_are_accepted_are_warned_of() {
    let severity = |allowed| {
        let risk = Risk { risk: "fsync=off".to_owned(), remedy: "set fsync to on".to_owned() };
        lossy(&config(&[("POSTGRES_ALLOW_LOSSY", allowed)]), &risk).severity
    };
    assert_eq!((severity("false"), severity("true")), (Error, Warning));
}

#[test]
fn a_standby_that_no_commit_waits_for_is_a_warning_and_where_one_is_required_an_error() {
    let severity = |required, connected, named| {
        let standbys = Standbys { connected, named, waited_for: named };
        let config = config(&[("POSTGRES_REQUIRE_STANDBY", required)]);
        standby(&config, standbys).map(|finding| finding.severity)
    };
    assert_eq!(severity("false", 0, false), None);
    assert_eq!(severity("false", 1, false), Some(Warning));
    assert_eq!(severity("false", 1, true), None);
    assert_eq!(severity("true", 1, false), Some(Error));
    assert_eq!(severity("true", 0, false), Some(Error));
    assert_eq!(severity("true", 0, true), None);
}

#[test]
fn clocks_differ_only_by_more_than_the_round_trip_explains() {
    let here = datetime!(2026-11-25 20:00 UTC);
    let found_on = |seconds: i64, round_trip| {
        let there = here + time::Duration::seconds(seconds);
        let clocks = Clocks { here, server: there, round_trip: Duration::from_secs(round_trip) };
        clock(clocks).and_then(|finding| finding.value)
    };
    assert_eq!(found_on(0, 0), None);
    assert_eq!(found_on(5, 0), None);
    assert_eq!(found_on(-5, 0), None);
    assert_eq!(found_on(6, 0).as_deref(), Some("PostgreSQL is 6.0 s ahead of this machine"));
    assert_eq!(found_on(-6, 0).as_deref(), Some("PostgreSQL is 6.0 s behind this machine"));
    assert_eq!(found_on(12, 12), None, "half of twelve seconds each way, or all of them one way");
    assert_eq!(found_on(12, 4).as_deref(), Some("PostgreSQL is 10.0 s ahead of this machine"));
}

#[test]
fn a_refusal_names_the_setting_that_is_most_likely_wrong() {
    let config = config(&[("POSTGRES_PASSWORD", "hunter2")]);
    let of = |code: &str| {
        let sqlstate = Some(code.to_owned());
        let message = "refused".to_owned();
        let fault = Fault { class: Class::Pause, sqlstate, message };
        let finding = refusal(&config, fault.into());
        assert!(!format!("{finding:?}").contains("hunter2"));
        (finding.severity, finding.subject)
    };
    assert_eq!(of("28P01"), (Error, "postgres.user".to_owned()));
    assert_eq!(of("3D000"), (Error, "postgres.database".to_owned()));
    assert_eq!(of("57P03"), (Error, "postgres.host".to_owned()));
}
