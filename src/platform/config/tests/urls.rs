use secrecy::ExposeSecret as _;

use super::*;

#[test]
fn a_rabbitmq_url_wins_over_the_parts_of_its_layer_and_below() {
    let directory = Directory::new(&[(".env", "RABBITMQ_USER=below\n")]);
    let config = loaded(&directory.sources(&[
        ("RABBITMQ_URL", "amqps://u:p%40@mq/%2fvotes"),
        ("RABBITMQ_HOST", "other"),
        ("RABBITMQ_PORT", "1"),
        ("RABBITMQ_PASSWORD", "other"),
        ("RABBITMQ_VHOST", "other"),
    ]));
    let rabbitmq = &config.rabbitmq;
    assert_eq!((rabbitmq.host.to_string().as_str(), rabbitmq.port), ("mq", 5671));
    assert_eq!((rabbitmq.user.as_str(), rabbitmq.vhost.as_str()), ("u", "/votes"));
    assert_eq!(rabbitmq.password.current().expose_secret(), "p@");
    assert!(rabbitmq.tls);
    assert_eq!(source(&config, "rabbitmq.host"), "environment variable RABBITMQ_URL");
}

#[test]
fn what_a_url_leaves_out_comes_from_the_parts() {
    let config = load(&[
        ("RABBITMQ_URL", "amqp://mq"),
        ("RABBITMQ_USER", "u"),
        ("RABBITMQ_PASSWORD", "p"),
        ("RABBITMQ_PORT", "1"),
        ("DATABASE_URL", "postgres://pg"),
        ("POSTGRES_DB", "d"),
    ]);
    assert_eq!((config.rabbitmq.user.as_str(), config.rabbitmq.vhost.as_str()), ("u", "/"));
    // The port of the address, not the one that was set for another host.
    assert_eq!(config.rabbitmq.port, 5672);
    assert_eq!((config.postgres.database.as_str(), config.postgres.port), ("d", 5432));
    assert_eq!(load(&[("RABBITMQ_URL", "amqp://[::1]")]).rabbitmq.host.to_string(), "::1");
}

#[test]
fn a_part_of_a_higher_layer_wins_over_a_url() {
    let directory = Directory::new(&[(".env", "RABBITMQ_URL=amqp://u:p@mq/v\n")]);
    let config = loaded(&directory.sources(&[("RABBITMQ_HOST", "above")]));
    assert_eq!(config.rabbitmq.host.to_string(), "above");
    assert_eq!(config.rabbitmq.user, "u");
}

#[test]
fn of_two_urls_the_higher_counts_whole() {
    let directory = Directory::new(&[(".env", "RABBITMQ_URL=amqp://u:p@below/v\n")]);
    let config = loaded(&directory.sources(&[("RABBITMQ_URL", "amqp://above")]));
    assert_eq!(config.rabbitmq.host.to_string(), "above");
    // Credentials for one host never go to another.
    assert_eq!(config.rabbitmq.user, "guest");
}

#[test]
fn a_password_in_a_url_wins_over_a_password_file() {
    let directory = Directory::new(&[("secret", "from file")]);
    let file = ("RABBITMQ_PASSWORD_FILE", "secret");
    let config = loaded(&directory.sources(&[file, ("RABBITMQ_URL", "amqp://u:in-url@mq")]));
    assert_eq!(config.rabbitmq.password.current().expose_secret(), "in-url");
    let config = loaded(&directory.sources(&[file, ("RABBITMQ_URL", "amqp://u@mq")]));
    assert_eq!(config.rabbitmq.password.current().expose_secret(), "from file");
}

#[test]
fn a_parameter_of_a_database_url_wins_and_is_checked_as_its_setting() {
    let mode = |mode| [("DATABASE_URL", mode), ("POSTGRES_SSLMODE", "disable")];
    let postgres = load(&mode("postgres://pg/votes?sslmode=require")).postgres;
    assert_eq!(postgres.sslmode, SslMode::Require);
    let refused = problem(&mode("postgres://pg/votes?sslmode=maybe"));
    assert_eq!(refused.key, "postgres.sslmode");
    assert_eq!(refused.set_by, "environment variable DATABASE_URL");
}

#[test]
fn tls_that_contradicts_the_scheme_is_refused() {
    for (url, tls) in [("amqp://mq", "true"), ("amqps://mq", "false"), ("amqps://mq", "no idea")] {
        let problem = problem(&[("RABBITMQ_URL", url), ("RABBITMQ_TLS", tls)]);
        assert_eq!(problem.key, "rabbitmq.tls");
        assert!(problem.wrong.contains("environment variable RABBITMQ_URL"), "{problem}");
    }
    let agreed = load(&[("RABBITMQ_URL", "amqps://mq"), ("RABBITMQ_TLS", "1")]);
    assert!(agreed.rabbitmq.tls);
}

#[test]
fn the_management_login_is_rabbitmqs_unless_the_url_has_its_own() {
    let management = |url| {
        let config = load(&[("RABBITMQ_MANAGEMENT_URL", url), ("RABBITMQ_PASSWORD", "p")]);
        config.rabbitmq.management_url.expect("it is set")
    };
    let own = management("https://a%40:secret@mq:15671/prefix");
    assert_eq!((own.url.as_str(), own.user.as_str()), ("https://mq:15671/prefix", "a@"));
    assert_eq!(own.password.current().expose_secret(), "secret");
    let shared = management("http://mq:15672");
    assert_eq!((shared.user.as_str(), shared.password.current().expose_secret()), ("guest", "p"));
}
