//! Encrypted connections to both servers: they work, and what does not verify counts nothing.

use crate::support::{Authority, Files, Servers, Service, Stage, Validity, login, votes};

/// The name in the servers' certificate; the other name of the same host is not in it.
const HOST: &str = "localhost";
const OTHER_NAME: &str = "127.0.0.1";

const RABBITMQ_CA: &str = "RABBITMQ_TLS_CA_FILE";
const POSTGRES_CA: &str = "POSTGRES_SSLROOTCERT";
const POSTGRES_MODE: &str = "POSTGRES_SSLMODE";

type Settings<'a> = &'a [(&'a str, &'a str)];

/// Servers with a certificate for [`HOST`], and clients that trust its authority.
struct Encrypted {
    servers: Servers,
    authority: Authority,
    files: Files,
    ca_file: String,
    /// The certificate of an authority that signed nothing.
    other_ca_file: String,
}

impl Encrypted {
    fn up(name: &str, options: &[&str]) -> Self {
        let authority = Authority::new("the authority");
        let files = Files::new(name);
        let ca_file = files.write("ca.pem", &authority.pem);
        let other_ca_file = files.write("other.pem", &Authority::new("another authority").pem);
        let good = Files::of_server(&authority.issue(HOST, Validity::Today), &authority);
        let path = good.path();
        let servers = Servers::private_with(name, &[&["--tls", &path], options].concat());
        Self { servers, authority, files, ca_file, other_ca_file }
    }

    /// Restarts both servers with a certificate of that validity.
    fn renew(&self, validity: Validity) {
        let files = Files::of_server(&self.authority.issue(HOST, validity), &self.authority);
        self.servers.script(&["up", "--tls", &files.path()]);
    }

    /// Settings that verify both servers, with changes; an empty value counts as not set.
    fn verified<'a>(&'a self, changed: Settings<'a>) -> Vec<(&'a str, &'a str)> {
        let verified = [
            ("RABBITMQ_HOST", HOST),
            ("RABBITMQ_PORT", self.servers.get("RABBITMQ_TLS_PORT")),
            ("RABBITMQ_TLS", "true"),
            (RABBITMQ_CA, &self.ca_file),
            ("POSTGRES_HOST", HOST),
            (POSTGRES_MODE, "verify-full"),
            (POSTGRES_CA, &self.ca_file),
        ];
        [&verified, changed].concat()
    }

    /// The files of a client's certificate and of its key.
    fn client(&self, name: &str, signed_by: &Authority) -> [String; 2] {
        let identity = signed_by.issue(name, Validity::Today);
        [("pem", identity.certificate), ("key", identity.key)]
            .map(|(ending, text)| self.files.write(&format!("{name}.{ending}"), text))
    }

    /// How a message names the encrypted RabbitMQ, and PostgreSQL.
    fn places(&self) -> [String; 2] {
        let port = |name| self.servers.get(name);
        let rabbitmq = format!("RabbitMQ on {HOST}:{}", port("RABBITMQ_TLS_PORT"));
        [rabbitmq, format!("on {HOST}:{} as user", port("POSTGRES_PORT"))]
    }
}

/// Is up, not ready because of `check`, and logs each of `texts`.
async fn assert_waiting(service: &Service, check: &str, texts: &[&str]) {
    service.until_check(check, false).await;
    for text in texts {
        service.until_logged(text).await;
    }
}

/// Of two names of the same servers only the second is in their certificate.
async fn verifies_the_name_of_each_address(encrypted: &Encrypted, stage: &Stage<'_>) {
    let names = format!("{OTHER_NAME},{HOST}");
    let both = [("RABBITMQ_HOST", names.as_str()), ("POSTGRES_HOST", &names)];
    let service = stage.start(&encrypted.verified(&both)).await;
    let checks = service.checks().await;
    for side in ["rabbitmq", "postgres"] {
        assert_eq!(checks[side]["address"], "2 of 2", "{checks}");
    }
    service.stop().await;
}

#[tokio::test]
async fn votes_are_counted_over_tls_and_what_does_not_verify_counts_nothing() {
    let encrypted = Encrypted::up("tls", &[]);
    let stage = Stage::migrated(&encrypted.servers, "tls").await;
    stage.publish_votes(&votes(0, 150)).await;

    refuses_servers_that_do_not_verify(&encrypted, &stage).await;
    waits_where_a_port_with_tls_only_hangs_up(&encrypted, &stage).await;
    stage.assert_counted_exactly(&[]).await;
    assert_eq!(stage.ready(&stage.queue).await, Some(150), "nothing is taken");

    trusts_the_systems_authorities_as_well(&encrypted, &stage).await;
    verifies_the_name_of_each_address(&encrypted, &stage).await;
    let service = stage.start(&encrypted.verified(&[])).await;
    stage.until_counted(150).await;
    let ours = "application_name = 'vote-aggregator'";
    let clear = format!("{ours} AND pid IN (SELECT pid FROM pg_stat_ssl WHERE NOT ssl)");
    assert!(stage.sessions(ours).await > 0);
    assert_eq!(stage.sessions(&clear).await, 0, "every connection is encrypted");
    let connections = encrypted.servers.ctl(&["list_connections", "ssl", "client_properties"]);
    let ours = connections.lines().filter(|line| line.contains("vote-aggregator: consumer"));
    let ours: Vec<&str> = ours.collect();
    assert!(!ours.is_empty() && ours.iter().all(|line| line.starts_with("true")), "{connections}");

    outlives_expired_certificates(&encrypted, &stage, &service).await;
    stage.finish([service], &votes(0, 200)).await;
}

/// Settings that do not fit the server end the start: waiting does not repair them.
async fn refuses_servers_that_do_not_verify(encrypted: &Encrypted, stage: &Stage<'_>) {
    let other_ca = encrypted.other_ca_file.as_str();
    let [rabbitmq, postgres] = &encrypted.places();
    let amqp_port = stage.servers.get("RABBITMQ_PORT");
    let clear_port = Servers::shared().get("POSTGRES_PORT");
    let clear_rabbitmq = &format!("RabbitMQ on {HOST}:{amqp_port}");
    let clear_postgres = &format!("on {HOST}:{clear_port} as user");
    let [other_rabbitmq, other_postgres] =
        &[rabbitmq, postgres].map(|place| place.replace(HOST, OTHER_NAME));

    let untrusted = "invalid peer certificate: UnknownIssuer";
    let misnamed = "certificate not valid for name";
    let valid_for = "only valid for DnsName(\\\"localhost\\\")";
    let no_tls = "server does not support TLS";
    let misnamed_rabbitmq = [misnamed, OTHER_NAME, "RABBITMQ_HOST", valid_for, other_rabbitmq];
    let misnamed_postgres = [misnamed, OTHER_NAME, "POSTGRES_HOST", other_postgres];
    let untrusted_postgres = [untrusted, POSTGRES_CA, other_ca, postgres];
    let verify_ca = [(POSTGRES_CA, other_ca), (POSTGRES_MODE, "verify-ca")];
    let require = [("POSTGRES_PORT", clear_port), (POSTGRES_MODE, "require"), (POSTGRES_CA, "")];
    let refuses = |mode| [no_tls, "ssl = on", mode, clear_postgres];
    let cases: [(Settings, &[&str]); 10] = [
        (&[(RABBITMQ_CA, other_ca)], &[untrusted, RABBITMQ_CA, other_ca, rabbitmq]),
        (&[(RABBITMQ_CA, "")], &[untrusted, "RABBITMQ_TLS_CA_FILE is not set", rabbitmq]),
        (&[("RABBITMQ_HOST", OTHER_NAME)], &misnamed_rabbitmq),
        (&[("RABBITMQ_PORT", amqp_port)], &["InvalidContentType", "RABBITMQ_PORT", clear_rabbitmq]),
        (&[(POSTGRES_CA, other_ca)], &untrusted_postgres),
        (&[(POSTGRES_CA, "")], &[untrusted, "POSTGRES_SSLROOTCERT is not set", postgres]),
        (&verify_ca, &untrusted_postgres),
        (&[("POSTGRES_HOST", OTHER_NAME)], &misnamed_postgres),
        (&[("POSTGRES_PORT", clear_port)], &refuses("POSTGRES_SSLMODE=verify-full")),
        (&require, &refuses("POSTGRES_SSLMODE=require")),
    ];
    for (changed, texts) in cases {
        stage.spawn(&encrypted.verified(changed)).await.assert_ends(78, texts).await;
    }
    // The server itself refuses this, as it refuses a password.
    let disabled = encrypted.verified(&[(POSTGRES_MODE, "disable"), (POSTGRES_CA, "")]);
    let texts = ["no encryption", "pg_hba.conf", "POSTGRES_SSLMODE is disable", postgres];
    stage.spawn(&disabled).await.assert_ends(77, &texts).await;

    // verify-ca checks who signed, and not the name; less than that only encrypts.
    let verify_ca = [(POSTGRES_MODE, "verify-ca"), (POSTGRES_CA, &encrypted.ca_file)];
    stage.prepare(&verify_ca).await.expect("encrypted");
    for mode in ["require", "prefer", "allow"] {
        stage.prepare(&[(POSTGRES_MODE, mode)]).await.expect("encrypted");
    }
}

/// A CA file adds to the system's authorities, which SSL_CERT_FILE names, and replaces none.
async fn trusts_the_systems_authorities_as_well(encrypted: &Encrypted, stage: &Stage<'_>) {
    let by_system = [
        ("SSL_CERT_FILE", encrypted.ca_file.as_str()),
        (RABBITMQ_CA, &encrypted.other_ca_file),
        (POSTGRES_CA, &encrypted.other_ca_file),
    ];
    stage.start(&encrypted.verified(&by_system)).await.stop().await;
}

/// A broker that stops hangs up as well: waited for, and the log names the likelier reason.
async fn waits_where_a_port_with_tls_only_hangs_up(encrypted: &Encrypted, stage: &Stage<'_>) {
    let clear = encrypted.verified(&[("RABBITMQ_TLS", "false"), (RABBITMQ_CA, "")]);
    let service = stage.spawn(&clear).await;
    assert_waiting(&service, "rabbitmq", &["RABBITMQ_TLS=true", &encrypted.places()[0]]).await;
    service.stop().await;
}

/// The server renews an expired certificate: both sides wait for that, at start and later.
async fn outlives_expired_certificates(
    encrypted: &Encrypted,
    stage: &Stage<'_>,
    running: &Service,
) {
    let [rabbitmq, postgres] = &encrypted.places();
    encrypted.renew(Validity::Past);
    stage.publish_votes(&votes(150, 50)).await;
    let for_postgres = stage.spawn(&encrypted.verified(&[])).await;
    let unchecked = encrypted.verified(&[(POSTGRES_MODE, "require"), (POSTGRES_CA, "")]);
    let for_rabbitmq = stage.spawn(&unchecked).await;
    for (service, check, place) in [
        (&for_postgres, "postgres", postgres),
        (&for_rabbitmq, "rabbitmq", rabbitmq),
        (running, "postgres", postgres),
        (running, "rabbitmq", rabbitmq),
    ] {
        let texts = ["certificate expired", "Renew it on the server", place];
        assert_waiting(service, check, &texts).await;
    }
    assert_eq!(stage.ready(&stage.queue).await, Some(50), "nothing is taken");

    encrypted.renew(Validity::Today);
    for service in [running, &for_postgres, &for_rabbitmq] {
        service.until_ready().await;
    }
    for_postgres.stop().await;
    for_rabbitmq.stop().await;
}

#[tokio::test]
async fn both_servers_may_ask_for_a_clients_certificate() {
    let encrypted = Encrypted::up("mutual", &["--client-certificates"]);
    let stage = Stage::migrated(&encrypted.servers, "mutual").await;
    // PostgreSQL asks everyone except its superuser, with which `script/services psql` connects.
    stage.execute(&include_str!("../../roles.sql").replace("\\set", "--")).await;
    let role = stage.role("counter", "IN ROLE vote_service").await;
    let all = stage.publish_new(0, 150).await;

    let login = login(&role);
    let known = encrypted.client("counter", &encrypted.authority);
    let unknown = encrypted.client("stranger", &Authority::new("another authority"));
    let password = stage.servers.get("POSTGRES_PASSWORD");
    let superuser = [("POSTGRES_USER", "postgres"), ("POSTGRES_PASSWORD", password)];
    let spawn = async |settings: &[&[(&str, &str)]]| {
        stage.spawn(&[&encrypted.verified(&[])[..], &settings.concat()].concat()).await
    };
    let [rabbitmq, postgres] = &encrypted.places();

    let texts = ["valid client certificate", "POSTGRES_SSLCERT is not set", postgres];
    spawn(&[&login]).await.assert_ends(77, &texts).await;
    let alert = "received fatal alert: UnknownCA";
    let texts = [alert, "refuses the client certificate", "POSTGRES_SSLCERT", postgres];
    spawn(&[&login, &for_postgres(&unknown)]).await.assert_ends(77, &texts).await;
    // As PostgreSQL's superuser, to see what RabbitMQ answers. It closes the socket behind its alert,
    // and the alert may be lost: then it is tried again, and the log names the likely reason.
    let none = spawn(&[&superuser]).await;
    let stranger = spawn(&[&superuser, &for_rabbitmq(&unknown)]).await;
    for service in [none, stranger] {
        for text in ["certificate", "RABBITMQ_TLS_CERT_FILE", rabbitmq] {
            service.until_logged(text).await;
        }
    }
    stage.assert_counted_exactly(&[]).await;

    let service = spawn(&[&login, &for_rabbitmq(&known), &for_postgres(&known)]).await;
    stage.until_counted(150).await;
    let with_certificate = "usename LIKE 'counter_%' AND pid IN \
                            (SELECT pid FROM pg_stat_ssl WHERE client_dn LIKE '%counter%')";
    assert!(stage.sessions(with_certificate).await > 0, "the certificate was asked for and shown");

    // Restarted, the servers ask for certificates again, and the service comes back.
    encrypted.servers.script(&["restart"]);
    service.until_logged("session with RabbitMQ lost").await;
    service.until_ready().await;
    spawn(&[&login]).await.assert_ends(77, &["valid client certificate"]).await;
    stage.finish([service], &all).await;
}

fn for_rabbitmq([certificate, key]: &[String; 2]) -> [(&str, &str); 2] {
    [("RABBITMQ_TLS_CERT_FILE", certificate), ("RABBITMQ_TLS_KEY_FILE", key)]
}

fn for_postgres([certificate, key]: &[String; 2]) -> [(&str, &str); 2] {
    [("POSTGRES_SSLCERT", certificate), ("POSTGRES_SSLKEY", key)]
}
