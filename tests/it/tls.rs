//! Encrypted connections to both servers: they work, and what does not verify counts nothing.

use sqlx::AssertSqlSafe;

use crate::support::{Authority, Files, Servers, Service, Stage, Validity, eventually, votes};

/// The name in the servers' certificate; the other name of the same host is not in it.
const HOST: &str = "localhost";
const OTHER_NAME: &str = "127.0.0.1";

/// Servers with a certificate for [`HOST`], and clients that trust its authority.
struct Encrypted {
    servers: Servers,
    authority: Authority,
    files: Files,
    ca_file: String,
}

type Settings = Vec<(&'static str, String)>;

impl Encrypted {
    fn up(name: &str, options: &[&str]) -> Self {
        let authority = Authority::new("the authority");
        let files = Files::new(name);
        let ca_file = files.write("ca.pem", &authority.pem);
        let good = Files::of_server(&authority.issue(HOST, Validity::Today), &authority);
        let path = good.path();
        let servers = Servers::private_with(name, &[&["--tls", &path], options].concat());
        Self { servers, authority, files, ca_file }
    }

    /// Restarts both servers with a certificate of that validity.
    fn renew(&self, validity: Validity) {
        let files = Files::of_server(&self.authority.issue(HOST, validity), &self.authority);
        self.servers.script(&["up", "--tls", &files.path()]);
    }

    /// Everything verified, on both sides.
    fn verified(&self) -> Settings {
        vec![
            ("RABBITMQ_HOST", HOST.to_owned()),
            ("RABBITMQ_PORT", self.servers.get("RABBITMQ_TLS_PORT").to_owned()),
            ("RABBITMQ_TLS", "true".to_owned()),
            ("RABBITMQ_TLS_CA_FILE", self.ca_file.clone()),
            ("POSTGRES_HOST", HOST.to_owned()),
            ("POSTGRES_SSLMODE", "verify-full".to_owned()),
            ("POSTGRES_SSLROOTCERT", self.ca_file.clone()),
        ]
    }

    /// A client's certificate in files of its own, under the variables of both sides.
    fn client(&self, name: &str, signed_by: &Authority) -> Settings {
        let identity = signed_by.issue(name, Validity::Today);
        let certificate = self.files.write(&format!("{name}.pem"), &identity.certificate);
        let key = self.files.write(&format!("{name}.key"), &identity.key);
        vec![
            ("RABBITMQ_TLS_CERT_FILE", certificate.clone()),
            ("RABBITMQ_TLS_KEY_FILE", key.clone()),
            ("POSTGRES_SSLCERT", certificate),
            ("POSTGRES_SSLKEY", key),
        ]
    }
}

/// The later of two settings of one name holds; an empty value counts as not set.
async fn spawn(stage: &Stage<'_>, settings: &[&[(&'static str, String)]]) -> Service {
    let settings = settings.concat();
    let borrowed: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    stage.spawn(&borrowed).await
}

fn set(settings: &[(&'static str, &str)]) -> Settings {
    settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// Does not start: ends with this code, and says all of this.
async fn assert_refused(mut service: Service, code: i32, words: &[&str]) {
    assert_eq!(service.exit_code().await, Some(code), "{words:?}; log:\n{}", service.log());
    let log = service.log();
    for word in words {
        assert!(log.contains(word), "{word:?} in {log}");
    }
}

/// Is up, not ready because of that side, and says all of this in its log.
async fn assert_waiting(service: &Service, side: &str, words: &[&str]) {
    eventually(&format!("{side} is not ready"), async || {
        service.get("/readyz").await.json()["checks"][side]["ok"] == false
    })
    .await;
    for word in words {
        service.until_logged(word).await;
    }
}

#[tokio::test]
async fn votes_are_counted_over_tls_and_what_does_not_verify_counts_nothing() {
    let encrypted = Encrypted::up("tls", &[]);
    let stage = Stage::migrated(&encrypted.servers, "tls").await;
    let first = votes(0, 150);
    stage.publish_votes(&first).await;

    refuses_servers_that_do_not_verify(&encrypted, &stage).await;
    waits_where_a_port_with_tls_only_hangs_up(&encrypted, &stage).await;
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 0, "nothing is counted");
    assert_eq!(stage.ready(&stage.queue).await, Some(150), "nothing is taken");

    trusts_the_systems_authorities_as_well(&encrypted, &stage).await;
    let service = spawn(&stage, &[&encrypted.verified()]).await;
    service.until_ready().await;
    stage.until_counted(150).await;
    let clear = "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
                 WHERE application_name = 'vote-aggregator' AND NOT ssl";
    let all = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'vote-aggregator'";
    assert!(stage.number(all).await > 0);
    assert_eq!(stage.number(clear).await, 0, "every connection is encrypted");
    let connections = encrypted.servers.script(&[
        "ctl",
        "--",
        "-q",
        "list_connections",
        "ssl",
        "client_properties",
    ]);
    let ours: Vec<&str> =
        connections.lines().filter(|line| line.contains("vote-aggregator: consumer")).collect();
    assert!(!ours.is_empty() && ours.iter().all(|line| line.starts_with("true")), "{connections}");

    outlives_a_certificate_that_expires(&encrypted, &stage, &service).await;
    service.stop().await;
    stage.assert_counted_exactly(&votes(0, 200)).await;
    stage.assert_drained().await;
}

/// Settings that do not fit the server are told of and end the start: waiting mends none of them.
async fn refuses_servers_that_do_not_verify(encrypted: &Encrypted, stage: &Stage<'_>) {
    let stranger = encrypted.files.write("stranger.pem", &Authority::new("a stranger").pem);
    let verified = encrypted.verified();
    let [tls_port, amqp_port, postgres_port] =
        ["RABBITMQ_TLS_PORT", "RABBITMQ_PORT", "POSTGRES_PORT"].map(|n| stage.servers.get(n));
    let rabbitmq = |host: &str, port: &str| format!("RabbitMQ on {host}:{port}");
    let postgres = |host: &str| format!("on {host}:{postgres_port} as user");
    let clear = Servers::shared();
    let clear_port = clear.get("POSTGRES_PORT");

    let untrusted = "invalid peer certificate: UnknownIssuer";
    let misnamed = "certificate not valid for name";
    let cases = [
        (
            set(&[("RABBITMQ_TLS_CA_FILE", stranger.as_str())]),
            78,
            vec![untrusted, "RABBITMQ_TLS_CA_FILE", &stranger],
            rabbitmq(HOST, tls_port),
        ),
        (
            set(&[("RABBITMQ_TLS_CA_FILE", "")]),
            78,
            vec![untrusted, "RABBITMQ_TLS_CA_FILE is not set"],
            rabbitmq(HOST, tls_port),
        ),
        (
            set(&[("RABBITMQ_HOST", OTHER_NAME)]),
            78,
            vec![
                misnamed,
                OTHER_NAME,
                "RABBITMQ_HOST",
                "only valid for DnsName(\\\"localhost\\\")",
            ],
            rabbitmq(OTHER_NAME, tls_port),
        ),
        (
            set(&[("RABBITMQ_PORT", amqp_port)]),
            78,
            vec!["InvalidContentType", "RABBITMQ_PORT"],
            rabbitmq(HOST, amqp_port),
        ),
        (
            set(&[("POSTGRES_SSLROOTCERT", stranger.as_str())]),
            78,
            vec![untrusted, "POSTGRES_SSLROOTCERT", &stranger],
            postgres(HOST),
        ),
        (
            set(&[("POSTGRES_SSLROOTCERT", "")]),
            78,
            vec![untrusted, "POSTGRES_SSLROOTCERT is not set"],
            postgres(HOST),
        ),
        (
            set(&[("POSTGRES_SSLROOTCERT", stranger.as_str()), ("POSTGRES_SSLMODE", "verify-ca")]),
            78,
            vec![untrusted, "POSTGRES_SSLROOTCERT", &stranger],
            postgres(HOST),
        ),
        (
            set(&[("POSTGRES_HOST", OTHER_NAME)]),
            78,
            vec![misnamed, OTHER_NAME, "POSTGRES_HOST"],
            postgres(OTHER_NAME),
        ),
        (
            set(&[("POSTGRES_PORT", clear_port)]),
            78,
            vec!["server does not support TLS", "ssl = on", "POSTGRES_SSLMODE=verify-full"],
            format!("on {HOST}:{clear_port} as user"),
        ),
        (
            set(&[
                ("POSTGRES_PORT", clear_port),
                ("POSTGRES_SSLMODE", "require"),
                ("POSTGRES_SSLROOTCERT", ""),
            ]),
            78,
            vec!["server does not support TLS", "ssl = on", "POSTGRES_SSLMODE=require"],
            format!("on {HOST}:{clear_port} as user"),
        ),
        // The server's own refusal, as that of a password.
        (
            set(&[("POSTGRES_SSLMODE", "disable"), ("POSTGRES_SSLROOTCERT", "")]),
            77,
            vec!["no encryption", "pg_hba.conf", "POSTGRES_SSLMODE is disable"],
            postgres(HOST),
        ),
    ];
    for (changed, code, mut words, place) in cases {
        words.push(&place);
        let service = spawn(stage, &[&verified, &changed]).await;
        assert_refused(service, code, &words).await;
    }

    // verify-ca asks who signed, not for whom; less than that asks nothing, but encrypts.
    for changed in [
        set(&[("POSTGRES_SSLMODE", "verify-ca"), ("POSTGRES_SSLROOTCERT", &encrypted.ca_file)]),
        set(&[("POSTGRES_SSLMODE", "require")]),
        set(&[("POSTGRES_SSLMODE", "prefer")]),
        set(&[("POSTGRES_SSLMODE", "allow")]),
    ] {
        let changed: Vec<(&str, &str)> = changed.iter().map(|(n, v)| (*n, v.as_str())).collect();
        stage.prepare(&changed).await.expect("encrypted");
    }
}

/// A CA file adds to the system's authorities, which this variable leads to, and replaces none.
async fn trusts_the_systems_authorities_as_well(encrypted: &Encrypted, stage: &Stage<'_>) {
    let stranger = encrypted.files.write("stranger.pem", &Authority::new("a stranger").pem);
    let by_system = set(&[
        ("SSL_CERT_FILE", &encrypted.ca_file),
        ("RABBITMQ_TLS_CA_FILE", &stranger),
        ("POSTGRES_SSLROOTCERT", &stranger),
    ]);
    let service = spawn(stage, &[&encrypted.verified(), &by_system]).await;
    service.until_ready().await;
    service.stop().await;
}

/// A broker that stops hangs up as well: waited for, with the likelier reason in the words.
async fn waits_where_a_port_with_tls_only_hangs_up(encrypted: &Encrypted, stage: &Stage<'_>) {
    let clear = set(&[("RABBITMQ_TLS", "false"), ("RABBITMQ_TLS_CA_FILE", "")]);
    let service = spawn(stage, &[&encrypted.verified(), &clear]).await;
    let place = format!("RabbitMQ on {HOST}:{}", stage.servers.get("RABBITMQ_TLS_PORT"));
    assert_waiting(&service, "rabbitmq", &["RABBITMQ_TLS=true", &place]).await;
    service.stop().await;
}

/// A certificate that is out of date is renewed on the server: waited for, at start and later, on
/// both sides; then counting goes on by itself.
async fn outlives_a_certificate_that_expires(
    encrypted: &Encrypted,
    stage: &Stage<'_>,
    running: &Service,
) {
    let verified = encrypted.verified();
    let unchecked = set(&[("POSTGRES_SSLMODE", "require"), ("POSTGRES_SSLROOTCERT", "")]);
    let [tls_port, postgres_port] =
        ["RABBITMQ_TLS_PORT", "POSTGRES_PORT"].map(|name| stage.servers.get(name));
    let rabbitmq = format!("RabbitMQ on {HOST}:{tls_port}");
    let postgres = format!("on {HOST}:{postgres_port} as user");

    encrypted.renew(Validity::Past);
    stage.publish_votes(&votes(150, 50)).await;
    let expired = ["certificate expired", "Renew it on the server"];
    let for_postgres = spawn(stage, &[&verified]).await;
    let for_rabbitmq = spawn(stage, &[&verified, &unchecked]).await;
    let words = |place| [&expired[..], &[place]].concat();
    assert_waiting(&for_postgres, "postgres", &words(postgres.as_str())).await;
    assert_waiting(&for_rabbitmq, "rabbitmq", &words(rabbitmq.as_str())).await;
    assert_waiting(running, "postgres", &words(postgres.as_str())).await;
    assert_waiting(running, "rabbitmq", &words(rabbitmq.as_str())).await;

    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 150, "nothing is counted");
    assert_eq!(stage.ready(&stage.queue).await, Some(50), "nothing is taken");

    encrypted.renew(Validity::Today);
    for service in [running, &for_postgres, &for_rabbitmq] {
        service.until_ready().await;
    }
    for_postgres.stop().await;
    for_rabbitmq.stop().await;
    stage.until_counted(200).await;
}

#[tokio::test]
async fn both_sides_may_ask_for_a_clients_certificate() {
    let encrypted = Encrypted::up("mutual", &["--client-certificates"]);
    let stage = Stage::migrated(&encrypted.servers, "mutual").await;
    // PostgreSQL asks all but its superuser, which `script/services psql` is.
    sqlx::raw_sql(AssertSqlSafe(include_str!("../../roles.sql").replace("\\set", "--")))
        .execute(&stage.sql)
        .await
        .expect("roles");
    sqlx::raw_sql("CREATE ROLE counter LOGIN PASSWORD 'least' IN ROLE vote_service")
        .execute(&stage.sql)
        .await
        .expect("a login role");
    let all = votes(0, 150);
    stage.publish_votes(&all).await;

    let role = set(&[("POSTGRES_USER", "counter"), ("POSTGRES_PASSWORD", "least")]);
    let verified = [encrypted.verified(), role].concat();
    let known = encrypted.client("counter", &encrypted.authority);
    let unknown = encrypted.client("stranger", &Authority::new("a stranger"));
    let superuser = set(&[
        ("POSTGRES_USER", "postgres"),
        ("POSTGRES_PASSWORD", stage.servers.get("POSTGRES_PASSWORD")),
    ]);
    let rabbitmq = format!("RabbitMQ on {HOST}:{}", stage.servers.get("RABBITMQ_TLS_PORT"));
    let postgres = format!("on {HOST}:{} as user", stage.servers.get("POSTGRES_PORT"));

    let none = spawn(&stage, &[&verified]).await;
    let words = ["valid client certificate", "POSTGRES_SSLCERT is not set", &postgres];
    assert_refused(none, 77, &words).await;
    let stranger = spawn(&stage, &[&verified, &unknown]).await;
    let words = [
        "received fatal alert: UnknownCA",
        "refuses our certificate",
        "POSTGRES_SSLCERT",
        &postgres,
    ];
    assert_refused(stranger, 77, &words).await;
    // Past PostgreSQL, to see what RabbitMQ says. It closes the socket behind its alert, over which
    // the alert may be lost: then it is tried again, and the log says what it may be.
    let none = spawn(&stage, &[&verified, &superuser]).await;
    let for_rabbitmq = &unknown[..2];
    let stranger = spawn(&stage, &[&verified, &superuser, for_rabbitmq]).await;
    for service in [none, stranger] {
        for word in ["certificate", "RABBITMQ_TLS_CERT_FILE", &rabbitmq] {
            service.until_logged(word).await;
        }
    }
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 0, "nothing is counted");

    let service = spawn(&stage, &[&verified, &known]).await;
    service.until_ready().await;
    stage.until_counted(150).await;
    let with_certificate = "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
                            WHERE usename = 'counter' AND client_dn LIKE '%counter%'";
    assert!(stage.number(with_certificate).await > 0, "the certificate was asked for and shown");

    // The instance keeps what it was told through a restart, and the service comes back.
    encrypted.servers.script(&["restart"]);
    service.until_logged("session with RabbitMQ lost").await;
    service.until_ready().await;
    service.stop().await;
    let none = spawn(&stage, &[&verified]).await;
    assert_refused(none, 77, &["valid client certificate"]).await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}

/// Nothing is bound or connected before that.
#[tokio::test]
async fn files_that_cannot_be_used_are_named_with_their_variables() {
    let files = Files::new("unusable");
    let bad = files.write("bad.pem", "-- not PEM --");
    let authority = Authority::new("the authority");
    let good = authority.issue("client", Validity::Today);
    let certificate = files.write("good.pem", &good.certificate);
    let key = files.write("good.key", &good.key);
    let other_key = files.write("other.key", &authority.issue("other", Validity::Today).key);
    let missing = format!("{}/missing.pem", files.path());
    let stage = Stage::new(Servers::shared(), "unusable").await;
    let on = set(&[("RABBITMQ_TLS", "true"), ("POSTGRES_SSLMODE", "verify-full")]);
    for [ca_variable, cert_variable, key_variable] in [
        ["RABBITMQ_TLS_CA_FILE", "RABBITMQ_TLS_CERT_FILE", "RABBITMQ_TLS_KEY_FILE"],
        ["POSTGRES_SSLROOTCERT", "POSTGRES_SSLCERT", "POSTGRES_SSLKEY"],
    ] {
        let identity = |certificate: &str, key: &str| {
            set(&[(cert_variable, certificate), (key_variable, key)])
        };
        for (settings, variable, file, wrong) in [
            (set(&[(ca_variable, &missing)]), ca_variable, &missing, "cannot be read"),
            (set(&[(ca_variable, &bad)]), ca_variable, &bad, "holds no certificate"),
            (identity(&bad, &key), cert_variable, &bad, "holds no certificate"),
            (identity(&certificate, &bad), key_variable, &bad, "holds no private key"),
            (identity(&certificate, &missing), key_variable, &missing, "cannot be read"),
            (
                identity(&certificate, &other_key),
                cert_variable,
                &certificate,
                "not the certificate",
            ),
        ] {
            let service = spawn(&stage, &[&on, &settings]).await;
            let set_by = format!("environment variable {variable}");
            assert_refused(service, 78, &["1 problem", &set_by, file, wrong]).await;
        }
    }
}
