use super::*;

/// The cells of a table, row by row.
fn rows<const N: usize>(table: &str) -> impl Iterator<Item = [&str; N]> {
    table.trim().lines().map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        cells.try_into().expect("as many cells as columns")
    })
}

/// The variables in a text such as `A=1 B=2`.
fn variables(text: &str) -> Vec<(&str, &str)> {
    text.split(' ').filter_map(|assignment| assignment.split_once('=')).collect()
}

#[test]
fn a_default_follows_another_setting_and_a_value_that_was_set_does_not() {
    const FOLLOWING: &str = "
        BATCH_SIZE=500 | rabbitmq.prefetch_count | 500 | follows batch.size (environment variable BATCH_SIZE)
        PIPELINE_PROFILE=throughput BATCH_SIZE=9000 | rabbitmq.prefetch_count | 9000 | follows batch.size
        BATCH_SIZE=50 | rabbitmq.prefetch_count | 100 | shipped defaults
        POSTGRES_MAX_CONNECTIONS=1 | postgres.min_connections | 1 | follows postgres.max_connections
        RABBITMQ_QUEUE=ballots | rabbitmq.dead_letter_queue | ballots.dlq | follows rabbitmq.queue
        CELL=3/16 | rabbitmq.queue | votes.aggregation.3 | follows rabbitmq.cell (environment variable CELL)
        CELL=crc32:3/16 | rabbitmq.dead_letter_queue | votes.aggregation.3.dlq | follows rabbitmq.queue
        RABBITMQ_TLS=true | rabbitmq.port | 5671 | follows rabbitmq.tls
        RABBITMQ_TLS=true RABBITMQ_PORT=5672 | rabbitmq.port | 5672 | environment variable RABBITMQ_PORT";
    for [given, path, value, set_by] in rows(FOLLOWING) {
        let found = setting(&load(&variables(given)), path);
        assert_eq!(found.value, value, "{given}");
        assert!(found.set_by.starts_with(set_by), "{given}: {}", found.set_by);
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    const CONTRADICTIONS: &str = "
        RABBITMQ_PREFETCH_COUNT=99 | rabbitmq.prefetch_count | batch.size = 100 (shipped defaults)
        RABBITMQ_PREFETCH_COUNT=0 | rabbitmq.prefetch_count | no bound
        POSTGRES_MIN_CONNECTIONS=11 | postgres.min_connections | postgres.max_connections = 10
        RABBITMQ_CONSUMER_TIMEOUT_SECONDS=103.5 | rabbitmq.consumer_timeout_seconds | 2 statements of 10 s + 5 s + 1 s
        POSTGRES_STATEMENT_TIMEOUT_SECONDS=300 | rabbitmq.consumer_timeout_seconds | variable POSTGRES_STATEMENT
        RABBITMQ_DEAD_LETTER_QUEUE=votes.aggregation | rabbitmq.dead_letter_queue | is also rabbitmq.queue
        RABBITMQ_QUEUE=LONG | rabbitmq.queue | .dlq
        CELL=16/16 | rabbitmq.cell | is not a cell
        CELL=3/16 RABBITMQ_QUEUE=votes.2 | rabbitmq.queue | ends in .3
        CELL=3/16 RABBITMQ_QUEUE=votes.13 | rabbitmq.queue | of cell 3/16 (environment variable CELL)
        CELL=3/16 RABBITMQ_QUEUE=votes | rabbitmq.queue | ends in .3
        CELL=3/16 RABBITMQ_DEAD_LETTER_QUEUE=votes.aggregation.2.dlq | rabbitmq.dead_letter_queue | of cell 3/16
        CELL=3/16 RABBITMQ_QUEUE=votes.3 RABBITMQ_DEAD_LETTER_QUEUE=votes.30.dlq | rabbitmq.dead_letter_queue | votes.3.
        RABBITMQ_TLS=true RABBITMQ_TLS_CERT_FILE=PEM | rabbitmq.tls_cert_file | rabbitmq.tls_key_file
        RABBITMQ_TLS=true RABBITMQ_TLS_KEY_FILE=PEM | rabbitmq.tls_key_file | rabbitmq.tls_cert_file
        POSTGRES_SSLCERT=PEM | postgres.sslcert | postgres.sslkey
        POSTGRES_SSLKEY=PEM | postgres.sslkey | postgres.sslcert
        RABBITMQ_HOST=a,b,a:5672 | rabbitmq.host | address 3: a:5672 is named twice
        POSTGRES_HOST=a,b,a | postgres.host | address 3: a:5432 is named twice
        RABBITMQ_TLS_CA_FILE=PEM | rabbitmq.tls_ca_file | RABBITMQ_TLS=true
        POSTGRES_SSLROOTCERT=PEM | postgres.sslrootcert | POSTGRES_SSLMODE=verify-full
        POSTGRES_SSLMODE=disable POSTGRES_SSLCERT=PEM POSTGRES_SSLKEY=PEM | postgres.sslcert | no effect";
    const FITTING: &str = "
        RABBITMQ_CONSUMER_TIMEOUT_SECONDS=104
        RABBITMQ_PREFETCH_COUNT=65535 BATCH_SIZE=65535
        RABBITMQ_QUEUE=LONG RABBITMQ_DEAD_LETTER_QUEUE=d
        CELL=3/16 RABBITMQ_QUEUE=votes.3 RABBITMQ_DEAD_LETTER_QUEUE=votes.3.rejected
        POSTGRES_SSLMODE=verify-ca POSTGRES_SSLROOTCERT=PEM
        POSTGRES_SSLMODE=require POSTGRES_SSLCERT=PEM POSTGRES_SSLKEY=PEM";
    let directory = Directory::new(&[("a.pem", &pem())]);
    let filled = |table: &str| {
        table.replace("PEM", &directory.file("a.pem")).replace("LONG", &"x".repeat(252))
    };
    for [given, key, text] in rows(&filled(CONTRADICTIONS)) {
        let problem = problem(&variables(given));
        assert_eq!(problem.key, key, "{given}");
        assert!(problem.to_string().contains(text), "{given}: {problem}");
    }
    for [given] in rows(&filled(FITTING)) {
        load(&variables(given));
    }
    // A relative path starts at the working directory.
    let on = ("RABBITMQ_TLS", "true");
    let sources = directory.sources(&[on, ("RABBITMQ_TLS_CA_FILE", "a.pem")]);
    let ca_file = loaded(&sources).rabbitmq.tls_ca_file;
    assert_eq!(ca_file, Some(directory.file("a.pem").into()));
}

#[test]
fn batches_in_flight_follow_prefetch_and_pool() {
    for (prefetch, connections, in_flight) in
        [("100", "10", 1), ("399", "10", 3), ("4000", "10", 10), ("4000", "1", 1)]
    {
        let config = load(&[
            ("RABBITMQ_PREFETCH_COUNT", prefetch),
            ("POSTGRES_MAX_CONNECTIONS", connections),
        ]);
        assert_eq!(config.batches_in_flight(), in_flight, "{prefetch}, {connections}");
    }
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
fn values_out_of_range_are_refused() {
    let long = "\u{e9}".repeat(128);
    for (name, values) in [
        ("RABBITMQ_PORT", &["0", "65536", "amqp", "-1"][..]),
        ("PROMETHEUS_PORT", &["65536"]),
        ("PROMETHEUS_HOST", &["example.org"]),
        ("RABBITMQ_PREFETCH_COUNT", &["65536"]),
        ("POSTGRES_MAX_CONNECTIONS", &["0"]),
        ("BATCH_SIZE", &["0", "65536", "1.5", "1e3", "0x10", "1_000", "true"]),
        ("BATCH_TIMEOUT_SECONDS", &["0", "-1", "NaN", "inf", "1e999", "0.0001", "1s", "3600.1"]),
        ("MAX_MESSAGE_BYTES", &["255", "1000000000"]),
        ("MAX_RETRY_ATTEMPTS", &["31", "-1"]),
        ("RETRY_DELAY_SECONDS", &["-0.1", "NaN"]),
        ("SHUTDOWN_TIMEOUT_SECONDS", &["0", "3601", "inf"]),
        ("RABBITMQ_HEARTBEAT_SECONDS", &["0", "1.5"]),
        ("POSTGRES_STATEMENT_TIMEOUT_SECONDS", &["0"]),
        ("METRICS_MAX_LAWS", &["0"]),
        ("METRICS_TOTALS", &["none"]),
        ("TOTALS_REFRESH_SECONDS", &["0"]),
        ("RECONCILE_INTERVAL_SECONDS", &["-1", "86401", "never"]),
        ("MIGRATE_ON_START", &["maybe", "2", "t"]),
        ("POSTGRES_ACCEPT_LOST", &["0a1b2c3", "0a1b2c3d,"]),
        ("POSTGRES_SSLMODE", &["verify"]),
        ("LOG_LEVEL", &["loud"]),
        ("LOG_FORMAT", &["xml"]),
        ("RABBITMQ_VHOST", &["a\u{1}"]),
        ("RABBITMQ_QUEUE", &["amq.x", "a\nb", &long]),
        ("RABBITMQ_TLS_CA_FILE", &["/nowhere.pem"]),
        (
            "RABBITMQ_HOST",
            &["amqp://h", "h:1", "a b", "h/x", "u@h", "h%", "[]", "h?", "a;b", "a,b:"],
        ),
        ("POSTGRES_SSLROOTCERT", &["src", "/dev/zero"]),
        ("RABBITMQ_MANAGEMENT_URL", &["ftp://mq", "http://mq/?a=1", "http://a,b"]),
    ] {
        for value in values {
            let problem = problem(&[("POSTGRES_SSLMODE", "verify-full"), (name, value)]);
            assert_eq!(problem.set_by, format!("environment variable {name}"), "{value}");
        }
    }
}

#[test]
fn values_may_be_spelled_as_people_do() {
    const SPELLINGS: &str = "
        POSTGRES_ALLOW_LOSSY | true, TRUE, 1, yes, Yes, on | true
        MIGRATE_ON_START | false, False, 0, no, off | false
        BATCH_TIMEOUT_SECONDS | 0.25, 0.250 | 0.25
        RABBITMQ_HOST | ::1, [::1] | ::1
        RABBITMQ_HOST | a,b:5673,[::1]:5672 | a,b:5673,[::1]:5672
        POSTGRES_HOST | /var/run/postgresql | /var/run/postgresql
        PROMETHEUS_HOST | 127.0.0.1, localhost | 127.0.0.1
        PROMETHEUS_HOST | ::, [::] | ::
        POSTGRES_USER | vote's \"a\" \u{e9} | vote's \"a\" \u{e9}
        LOG_LEVEL | WARNING, warn | warn
        LOG_LEVEL | ERROR, CRITICAL, fatal | error";
    for [name, spellings, value] in rows(SPELLINGS) {
        let key = keys::by_variable(name).expect("a setting");
        for spelling in spellings.split(", ") {
            let config = load(&[(name, spelling)]);
            assert_eq!(setting(&config, key.path).value, value, "{name}={spelling}");
        }
    }
    let blanks = load(&[("RABBITMQ_PORT", " 5673 "), ("MIGRATE_ON_START", " off ")]);
    assert_eq!((blanks.rabbitmq.port, blanks.postgres.migrate_on_start), (5673, false));
}

/// Without this check, the mistake would show only in a failed handshake.
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

/// docker's `--env-file` keeps quotation marks: a queue of that name would be created, and nothing
/// counted from it.
#[test]
fn a_text_with_something_around_it_is_refused_with_where_it_comes_from() {
    let variables = "RABBITMQ_URL RABBITMQ_HOST RABBITMQ_USER RABBITMQ_VHOST RABBITMQ_QUEUE \
        RABBITMQ_DEAD_LETTER_QUEUE RABBITMQ_MANAGEMENT_URL DATABASE_URL POSTGRES_HOST POSTGRES_DB \
        POSTGRES_USER POSTGRES_PASSWORD_FILE POSTGRES_SSLCERT PIPELINE_CONFIG";
    for variable in variables.split(' ') {
        for (value, wrong) in
            [("\"x\"", "quotation marks"), ("x ", "ends with a blank"), ("\tx", "begins with")]
        {
            let problem = problem(&[(variable, value)]);
            assert!(problem.wrong.contains(wrong), "{variable}: {problem}");
            assert_eq!(problem.set_by, format!("environment variable {variable}"));
            assert!(problem.help.contains("without"), "{problem}");
        }
    }
}

/// With service links Kubernetes sets `RABBITMQ_PORT` for a Service named rabbitmq.
#[test]
fn a_port_that_kubernetes_set_is_refused_with_what_set_it() {
    for name in ["RABBITMQ_PORT", "POSTGRES_PORT", "PROMETHEUS_PORT"] {
        let problem = problem(&[(name, "tcp://10.0.0.5:5672")]);
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
    assert_eq!(config.rabbitmq.host.to_string(), "h");
    assert_eq!(load(&[]).suspicions, Suspicions::default());
}

/// figment keeps the directory as text, so that the file is not found; the path must not panic.
#[test]
fn a_relative_path_in_a_working_directory_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt as _;

    let directory = Directory::new(&[]);
    let working_dir = directory.0.join(std::ffi::OsStr::from_bytes(b"\xff"));
    std::fs::create_dir(&working_dir).expect("a directory with such a name");
    std::fs::write(working_dir.join("a.pem"), pem()).expect("a file in it");
    let variables = [("RABBITMQ_TLS", "true"), ("RABBITMQ_TLS_CA_FILE", "a.pem")];
    let sources = Sources { working_dir: Some(working_dir), ..environment(&variables) };
    assert!(only(refused(&sources)).wrong.starts_with("cannot be read"));
}
