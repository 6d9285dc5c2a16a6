use super::*;

#[test]
fn a_prefetch_that_nobody_set_rises_to_the_batch_size() {
    let config = load(&[("BATCH_SIZE", "500")]);
    assert_eq!(config.rabbitmq.prefetch, 500);
    assert_eq!(
        source(&config, "rabbitmq.prefetch_count"),
        "follows batch.size (environment variable BATCH_SIZE)"
    );
    let config = load(&[("PIPELINE_PROFILE", "throughput"), ("BATCH_SIZE", "9000")]);
    assert_eq!(config.rabbitmq.prefetch, 9000);
    assert_eq!(load(&[("BATCH_SIZE", "50")]).rabbitmq.prefetch, 100);
}

#[test]
fn a_prefetch_that_was_set_too_low_is_refused() {
    let directory = Directory::new(&[
        ("pipeline.toml", "[default.rabbitmq]\nprefetch_count = 50"),
        ("none.toml", ""),
    ]);
    let low = only(refused(&directory.sources(&[("BATCH_SIZE", "60")])));
    assert_eq!(low.key, "rabbitmq.prefetch_count");
    assert!(low.set_by.ends_with("pipeline.toml: default.rabbitmq.prefetch_count"));
    assert!(low.wrong.contains("batch.size = 60 (environment variable BATCH_SIZE)"), "{low}");

    for prefetch in ["99", "0"] {
        let low = problem(&[("RABBITMQ_PREFETCH_COUNT", prefetch)]);
        assert_eq!(low.set_by, "environment variable RABBITMQ_PREFETCH_COUNT");
        assert!(low.wrong.contains("batch.size = 100 (shipped defaults)"), "{low}");
    }
    let equal = [("RABBITMQ_PREFETCH_COUNT", "65535"), ("BATCH_SIZE", "65535")];
    assert_eq!(load(&equal).batches_in_flight(), 1);
    assert_eq!(problem(&[("BATCH_SIZE", "65536")]).key, "batch.size");
    assert_eq!(problem(&[("RABBITMQ_PREFETCH_COUNT", "65536")]).key, "rabbitmq.prefetch_count");
}

#[test]
fn batches_in_flight_follow_prefetch_and_pool() {
    let in_flight = |prefetch, size, connections| {
        load(&[
            ("RABBITMQ_PREFETCH_COUNT", prefetch),
            ("BATCH_SIZE", size),
            ("POSTGRES_MAX_CONNECTIONS", connections),
        ])
        .batches_in_flight()
    };
    assert_eq!(in_flight("100", "100", "10"), 1);
    assert_eq!(in_flight("399", "100", "10"), 3);
    assert_eq!(in_flight("4000", "100", "10"), 10);
    assert_eq!(in_flight("4000", "100", "1"), 1);
}

#[test]
fn the_deadline_of_a_batch_is_half_of_the_consumer_timeout() {
    assert_eq!(load(&[]).batch_deadline(), Duration::from_secs(900));
    // 1 + 2 + 4 s, a quarter on top.
    assert_eq!(load(&[]).retry_delays(), Duration::from_secs_f64(8.75));
    let longest = [("MAX_RETRY_ATTEMPTS", "30"), ("RETRY_DELAY_SECONDS", "3600")];
    assert!(load(&longest).retry_delays() > Duration::from_secs(1 << 40), "no overflow");
}

#[test]
fn an_attempt_longer_than_a_quarter_of_the_consumer_timeout_is_refused() {
    // 2 statements of 10 s, 5 s, and 1 s to fill.
    assert!(Config::load(&environment(&[("RABBITMQ_CONSUMER_TIMEOUT_SECONDS", "104")])).is_ok());
    let low = problem(&[("RABBITMQ_CONSUMER_TIMEOUT_SECONDS", "103.5")]);
    assert_eq!(low.set_by, "environment variable RABBITMQ_CONSUMER_TIMEOUT_SECONDS");

    let long = problem(&[("POSTGRES_STATEMENT_TIMEOUT_SECONDS", "300")]);
    assert_eq!(long.key, "rabbitmq.consumer_timeout_seconds");
    for part in ["606 s", "2 statements of 300 s", "5 s", "1 s"] {
        assert!(long.wrong.contains(part), "{part}: {}", long.wrong);
    }
    let cause = "environment variable POSTGRES_STATEMENT_TIMEOUT_SECONDS";
    assert!(long.help.contains(cause), "{}", long.help);
}

#[test]
fn the_pools_minimum_stays_at_or_below_its_maximum() {
    let config = load(&[("POSTGRES_MAX_CONNECTIONS", "1")]);
    assert_eq!((config.postgres.min_connections, config.postgres.max_connections), (1, 1));
    let above = problem(&[("POSTGRES_MIN_CONNECTIONS", "11")]);
    assert_eq!(above.key, "postgres.min_connections");
    assert!(above.wrong.contains("postgres.max_connections = 10 (shipped defaults)"));
    assert_eq!(problem(&[("POSTGRES_MAX_CONNECTIONS", "0")]).key, "postgres.max_connections");
}

#[test]
fn the_dead_letter_queue_differs_from_the_queue() {
    let config = load(&[("RABBITMQ_QUEUE", "ballots")]);
    assert_eq!(config.rabbitmq.dead_letter_queue, "ballots.dlq");
    assert_eq!(
        source(&config, "rabbitmq.dead_letter_queue"),
        "follows rabbitmq.queue (environment variable RABBITMQ_QUEUE)"
    );
    let same = problem(&[("RABBITMQ_DEAD_LETTER_QUEUE", "votes.aggregation")]);
    assert_eq!(same.key, "rabbitmq.dead_letter_queue");

    let long = "x".repeat(252);
    assert!(problem(&[("RABBITMQ_QUEUE", &long)]).wrong.contains(".dlq"));
    let both = [("RABBITMQ_QUEUE", long.as_str()), ("RABBITMQ_DEAD_LETTER_QUEUE", "d")];
    assert_eq!(load(&both).rabbitmq.queue, long);
    assert_eq!(problem(&[("RABBITMQ_QUEUE", &"x".repeat(256))]).key, "rabbitmq.queue");
}

#[test]
fn values_out_of_range_are_refused() {
    let long = "\u{e9}".repeat(128);
    for (name, values) in [
        ("RABBITMQ_PORT", &["0", "65536", "amqp", "-1"][..]),
        ("PROMETHEUS_PORT", &["65536"]),
        ("PROMETHEUS_HOST", &["example.org"]),
        ("BATCH_SIZE", &["0", "1.5", "1e3", "0x10", "1_000", "true"]),
        ("BATCH_TIMEOUT_SECONDS", &["0", "-1", "NaN", "inf", "1e999", "0.0001", "1s", "3600.1"]),
        ("MAX_MESSAGE_BYTES", &["255", "1000000000"]),
        ("MAX_RETRY_ATTEMPTS", &["31", "-1"]),
        ("RETRY_DELAY_SECONDS", &["-0.1", "NaN"]),
        ("SHUTDOWN_TIMEOUT_SECONDS", &["0", "3601", "inf"]),
        ("RABBITMQ_HEARTBEAT_SECONDS", &["0", "1.5"]),
        ("POSTGRES_STATEMENT_TIMEOUT_SECONDS", &["0"]),
        ("METRICS_MAX_LAWS", &["0"]),
        ("TOTALS_REFRESH_SECONDS", &["0"]),
        ("RECONCILE_INTERVAL_SECONDS", &["-1", "86401", "never"]),
        ("MIGRATE_ON_START", &["maybe", "2", "t"]),
        ("POSTGRES_ACCEPT_LOST", &["0a1b2c3", "0a1b2c3d,"]),
        ("POSTGRES_SSLMODE", &["verify"]),
        ("LOG_LEVEL", &["loud"]),
        ("LOG_FORMAT", &["xml"]),
        ("RABBITMQ_VHOST", &["a\u{1}"]),
        ("RABBITMQ_QUEUE", &["amq.x", "a\nb", &long]),
        ("RABBITMQ_HOST", &["amqp://h", "h:1", "a b", "h/x", "u@h", "h%", "[]", "h?"]),
        ("POSTGRES_SSLROOTCERT", &["src", "/dev/zero"]),
    ] {
        for value in values {
            let problem = problem(&[("POSTGRES_SSLMODE", "verify-full"), (name, value)]);
            assert_eq!(problem.set_by, format!("environment variable {name}"), "{value}");
        }
    }
}

#[test]
fn values_may_be_spelled_as_people_do() {
    for (name, spellings, value) in [
        ("POSTGRES_ALLOW_LOSSY", &["true", "TRUE", "1", "yes", "Yes", " on "][..], "true"),
        ("MIGRATE_ON_START", &["false", "False", "0", "no", "off"], "false"),
        ("BATCH_TIMEOUT_SECONDS", &["0.25", " 0.250 "], "0.25"),
        ("RABBITMQ_PORT", &["5673", " 5673 "], "5673"),
        ("RABBITMQ_HOST", &["::1", "[::1]"], "::1"),
        ("POSTGRES_HOST", &["/var/run/postgresql"], "/var/run/postgresql"),
        ("PROMETHEUS_HOST", &["127.0.0.1", "localhost"], "127.0.0.1"),
        ("PROMETHEUS_HOST", &["::", "[::]"], "::"),
        ("POSTGRES_USER", &["vote's \"a\" \u{e9}"], "vote's \"a\" \u{e9}"),
        ("LOG_LEVEL", &["WARNING", "warn"], "warn"),
        ("LOG_LEVEL", &["ERROR", "CRITICAL", "fatal"], "error"),
    ] {
        let key = keys::by_variable(name).expect("a setting");
        for spelling in spellings {
            let config = load(&[(name, spelling)]);
            assert_eq!(setting(&config, key.path).value, value, "{name}={spelling}");
        }
    }
}

#[test]
fn tls_wants_its_files_and_a_key_with_each_certificate() {
    let directory = Directory::new(&[("a.pem", &pem())]);
    let pem = directory.file("a.pem");
    let on = ("RABBITMQ_TLS", "true");

    let config = load(&[on, ("RABBITMQ_TLS_CA_FILE", &pem)]);
    assert_eq!(config.rabbitmq.tls_ca_file, Some(pem.clone().into()));
    assert!(load(&[on]).rabbitmq.tls);

    for (name, other) in [
        ("RABBITMQ_TLS_CERT_FILE", "rabbitmq.tls_key_file"),
        ("RABBITMQ_TLS_KEY_FILE", "rabbitmq.tls_cert_file"),
        ("POSTGRES_SSLCERT", "postgres.sslkey"),
        ("POSTGRES_SSLKEY", "postgres.sslcert"),
    ] {
        assert!(problem(&[on, (name, &pem)]).wrong.contains(other), "{name}");
    }
    for name in ["RABBITMQ_TLS_CA_FILE", "POSTGRES_SSLROOTCERT"] {
        assert!(problem(&[on, (name, "/nowhere.pem")]).wrong.contains("cannot be read"));
    }
    let unused = problem(&[("RABBITMQ_TLS_CA_FILE", &pem)]);
    assert!(unused.help.contains("RABBITMQ_TLS=true"), "{unused}");
    // A relative path starts at the working directory.
    let sources = directory.sources(&[on, ("RABBITMQ_TLS_CA_FILE", "a.pem")]);
    assert_eq!(loaded(&sources).rabbitmq.tls_ca_file, Some(pem.into()));
}

/// A client that trusts nobody, or has nothing to show, would find out only from the server.
#[test]
fn a_file_that_holds_something_else_is_refused() {
    let directory =
        Directory::new(&[("good.pem", &pem()), ("other.pem", &pem()), ("bad.pem", "-- oops --")]);
    let [good, other, bad] = ["good.pem", "other.pem", "bad.pem"].map(|name| directory.file(name));
    let on = [("RABBITMQ_TLS", "true"), ("POSTGRES_SSLMODE", "verify-full")];
    let with = |more: &[(&str, &str)]| problem(&[&on[..], more].concat());
    for ca in ["RABBITMQ_TLS_CA_FILE", "POSTGRES_SSLROOTCERT"] {
        let refused = with(&[(ca, &bad)]);
        assert!(refused.wrong.contains("no certificate"), "{refused}");
        assert!(refused.set_by.contains(ca), "{refused}");
        assert!(refused.to_string().contains("bad.pem"), "{refused}");
    }
    for [cert, key] in [
        ["RABBITMQ_TLS_CERT_FILE", "RABBITMQ_TLS_KEY_FILE"],
        ["POSTGRES_SSLCERT", "POSTGRES_SSLKEY"],
    ] {
        for (cert_file, key_file, wrong, at) in [
            (&bad, &good, "no certificate", cert),
            (&good, &bad, "no private key", key),
            (&good, &other, "not the certificate of the private key", cert),
        ] {
            let refused = with(&[(cert, cert_file), (key, key_file)]);
            assert!(refused.wrong.contains(wrong), "{refused}");
            assert!(refused.set_by.ends_with(at), "{refused}");
        }
    }
}

/// Whoever names an authority believes that the server's certificate is checked.
#[test]
fn an_sslrootcert_that_nothing_is_checked_against_is_refused() {
    let directory = Directory::new(&[("a.pem", &pem())]);
    let pem = directory.file("a.pem");
    for mode in ["disable", "allow", "prefer", "require"] {
        let unused = problem(&[("POSTGRES_SSLMODE", mode), ("POSTGRES_SSLROOTCERT", &pem)]);
        assert_eq!(unused.key, "postgres.sslrootcert");
        assert!(unused.help.contains("POSTGRES_SSLMODE=verify-full"), "{unused}");
    }
    load(&[("POSTGRES_SSLMODE", "verify-ca"), ("POSTGRES_SSLROOTCERT", &pem)]);
    let client = [("POSTGRES_SSLCERT", pem.as_str()), ("POSTGRES_SSLKEY", &pem)];
    load(&[&[("POSTGRES_SSLMODE", "require")], &client[..]].concat());
    let plain = problem(&[&[("POSTGRES_SSLMODE", "disable")], &client[..]].concat());
    assert!(plain.wrong.contains("no effect"), "{plain}");
}

#[test]
fn with_tls_a_port_that_nobody_set_is_5671() {
    let config = load(&[("RABBITMQ_TLS", "true")]);
    assert_eq!(config.rabbitmq.port, 5671);
    assert!(source(&config, "rabbitmq.port").starts_with("follows rabbitmq.tls"));
    let config = load(&[("RABBITMQ_TLS", "true"), ("RABBITMQ_PORT", "5672")]);
    assert_eq!(config.rabbitmq.port, 5672);
}

/// docker's `--env-file` keeps quotation marks: a queue of that name would be created, and nothing
/// counted from it.
#[test]
fn a_text_with_something_around_it_is_refused_with_where_it_comes_from() {
    for variable in [
        "RABBITMQ_URL",
        "RABBITMQ_HOST",
        "RABBITMQ_USER",
        "RABBITMQ_VHOST",
        "RABBITMQ_QUEUE",
        "RABBITMQ_DEAD_LETTER_QUEUE",
        "RABBITMQ_MANAGEMENT_URL",
        "DATABASE_URL",
        "POSTGRES_HOST",
        "POSTGRES_DB",
        "POSTGRES_USER",
        "POSTGRES_PASSWORD_FILE",
        "PIPELINE_CONFIG",
    ] {
        for (value, wrong) in
            [("\"x\"", "quotation marks"), ("x ", "ends with a blank"), ("\tx", "begins with")]
        {
            let problem = problem(&[(variable, value)]);
            assert!(problem.wrong.contains(wrong), "{variable}: {problem}");
            assert_eq!(problem.set_by, format!("environment variable {variable}"));
            assert!(problem.help.contains("without"), "{problem}");
        }
    }
    for (variable, value) in [("POSTGRES_SSLCERT", "'/c.pem'"), ("POSTGRES_SSLKEY", "'/k.pem'")] {
        let problems = refused(&environment(&[
            ("POSTGRES_SSLCERT", "'/c.pem'"),
            ("POSTGRES_SSLKEY", "'/k.pem'"),
        ]));
        let of = |problem: &&Problem| problem.set_by.ends_with(variable);
        let problem = problems.iter().find(of).expect("both are named");
        assert!(problem.wrong.contains("quotation marks"), "{value}: {problem}");
    }
    let list = problem(&[("RABBITMQ_HOST", "a,b,c")]);
    assert!(list.wrong.contains("list of hosts") && list.help.contains("one host"), "{list}");
}

/// With service links Kubernetes sets `RABBITMQ_PORT` for a Service named rabbitmq.
#[test]
fn a_port_that_kubernetes_set_is_refused_with_what_set_it() {
    for (name, value) in [
        ("RABBITMQ_PORT", "tcp://10.0.0.5:5672"),
        ("POSTGRES_PORT", "tcp://10.0.0.6:5432"),
        ("PROMETHEUS_PORT", "tcp://10.0.0.7:9090"),
    ] {
        let problem = problem(&[(name, value)]);
        assert!(problem.wrong.contains("Kubernetes"), "{problem}");
        assert!(problem.help.contains("enableServiceLinks: false"), "{problem}");
        assert_eq!(problem.set_by, format!("environment variable {name}"));
    }
}

#[test]
fn what_is_suspicious_in_environment_and_dotenv_is_kept_beside_the_settings() {
    let dotenv = "NAME=h\nBATCH_TIMEOUT=5\nRABBITMQ_HOST=${NAME}\n";
    let directory = Directory::new(&[(".env", dotenv)]);
    let config = loaded(&directory.sources(&[("RABITMQ_HOST", "mq"), ("HOME", "/root")]));
    let keys = |problems: &[Problem]| problems.iter().map(|it| it.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&config.suspicions.unread), ["RABITMQ_HOST", "BATCH_TIMEOUT"]);
    assert_eq!(keys(&config.suspicions.expanded), ["RABBITMQ_HOST"]);
    assert_eq!(config.rabbitmq.host, "h");
    assert_eq!(load(&[]).suspicions, Suspicions::default());
}
