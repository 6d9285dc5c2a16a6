//! Variables that no setting reads although one was most likely meant: the service would silently work
//! on its defaults.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::keys;
use super::problems::Problem;

/// What the official images of RabbitMQ and PostgreSQL, and RabbitMQ itself, set or read.
/// `POSTGRES_USER_FILE` and `POSTGRES_DB_FILE` are not there: they look like settings
/// of this service.
const SET_BY_OTHERS: &str = include_str!("set_by_others.txt");

/// The variables of the environment and of `.env` that no setting reads, with the name that was most likely
/// meant. Their values are not repeated.
pub(super) fn unread(
    environment: &BTreeMap<String, OsString>,
    dotenv: &BTreeMap<String, String>,
) -> Vec<Problem> {
    let environment = environment.iter().map(|(n, v)| ("environment variable ", n, v.as_os_str()));
    let dotenv = dotenv.iter().map(|(n, v)| (".env: ", n, OsStr::new(v)));
    let unread = environment.chain(dotenv).filter_map(|(place, name, value)| {
        // An empty value counts as not set.
        let read = keys::by_variable(name).is_some();
        if read || value.is_empty() || is_set_by_others(name, value) {
            return None;
        }
        let help = match keys::closest_key(name) {
            Some(near) => format!("did you mean {}?", near.variable),
            None if begins_like_ours(name) => {
                "remove it; .env.example lists every variable".to_owned()
            }
            None => return None,
        };
        let name = name.escape_debug().to_string();
        let set_by = format!("{place}{name}");
        Some(Problem::about(name, set_by, "is not read: no setting has this variable", help))
    });
    unread.collect()
}

/// Whether something else sets it: an image, or Kubernetes and Docker for each service of that name.
fn is_set_by_others(name: &str, value: &OsStr) -> bool {
    // POSTGRES_PORT_5432_TCP, POSTGRES_PORT_5432_TCP_ADDR and so on.
    let is_numbered = |(_, port): (&str, &str)| {
        let mut words = port.split('_');
        words.next().is_some_and(|number| number.parse::<u16>().is_ok())
            && words.next().is_some_and(|it| ["TCP", "UDP", "SCTP"].contains(&it))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && value.to_string_lossy().contains("://")
        || name.rsplit_once("_PORT_").is_some_and(is_numbered)
        || SET_BY_OTHERS.lines().any(|other| other == name)
}

/// Whether the first word is that of one of our variables.
fn begins_like_ours(name: &str) -> bool {
    let name = keys::as_variable(name);
    let first = |name: &str| name.split_once('_').map(|(first, _)| first.to_owned());
    first(&name).is_some() && keys::with_variables().any(|key| first(key.variable) == first(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found about a variable of the environment.
    fn found(name: &str, value: &str) -> Option<Problem> {
        let environment = [(name.to_owned(), OsString::from(value))].into();
        unread(&environment, &BTreeMap::new()).pop()
    }

    #[test]
    fn a_misspelt_name_is_reported_with_the_setting_that_was_meant() {
        for (meant, written) in [
            ("RABBITMQ_HOST", "RABITMQ_HOST RABBTIMQ_HOST RABBITMQ_HOSTNAME rabbitmq.host"),
            ("RABBITMQ_USER", "RABBITMQ_USERNAME"),
            ("RABBITMQ_PASSWORD", "RABBIT_MQ_PASSWORD RABBITMQ_PASS"),
            ("RABBITMQ_PREFETCH_COUNT", "RABBITMQ_PREFETCH"),
            ("RABBITMQ_QUEUE", "RABBITMQ_QUEUE_NAME"),
            ("RABBITMQ_TLS_CA_FILE", "RABBITMQ_SSL_CA_FILE"),
            ("RABBITMQ_TLS_CERT_FILE", "RABBITMQ_TLS_CERT"),
            ("RABBITMQ_HEARTBEAT_SECONDS", "RABBITMQ_HEARTBEAT_MS"),
            ("DATABASE_URL", "POSTGRES_URL DATABASE_URI"),
            ("POSTGRES_HOST", "DATABASE_HOST"),
            ("POSTGRES_DB", "POSTGRES_DATABASE"),
            ("POSTGRES_USER", "POSTGRE_USER POSTGRES_USER_FILE"),
            ("POSTGRES_PASSWORD", "POSTGRESQL_PASSWORD"),
            ("BATCH_SIZE", "BATCHSIZE batch_size"),
            ("BATCH_TIMEOUT_SECONDS", "BATCH_TIMEOUT"),
            ("MAX_RETRY_ATTEMPTS", "RETRY_MAX_ATTEMPTS"),
            ("RETRY_DELAY_SECONDS", "RETRY_DELAY RETRY_DELAY_MS"),
            ("PROMETHEUS_PORT", "MONITORING_PORT"),
            ("LOG_LEVEL", "LOGLEVEL"),
            ("SHUTDOWN_TIMEOUT_SECONDS", "SHUTDOWN_TIMEOUT"),
            ("PIPELINE_PROFILE", "PIPELINE_PROFIL"),
        ] {
            for written in written.split(' ') {
                let problem = found(written, "hunter2").expect(written);
                assert_eq!((problem.key.as_str(), problem.value.as_deref()), (written, None));
                assert_eq!(problem.help, format!("did you mean {meant}?"));
            }
        }
    }

    #[test]
    fn a_name_that_only_begins_like_ours_is_reported() {
        for written in ["RABBITMQ_ZEBRA", "BATCH_COLOUR", "PROMETHEUS_MULTIPROC_DIR"] {
            let problem = found(written, "x").expect(written);
            assert!(problem.help.contains(".env.example"), "{problem}");
        }
    }

    #[test]
    fn what_is_read_what_is_empty_and_what_others_set_is_not_reported() {
        for key in keys::with_variables() {
            assert_eq!(found(key.variable, "x"), None);
        }
        assert_eq!(found("RABBITMQ_USERNAME", ""), None);
        for name in "RABBITMQ_SERVICE_HOST RABBITMQ_SERVICE_PORT RABBITMQ_SERVICE_PORT_AMQP \
            RABBITMQ_PORT_5672_TCP_ADDR RABBITMQ_PORT_5672_TCP_PORT RABBITMQ_PORT_5672_TCP_PROTO \
            RABBITMQ_DEFAULT_USER RABBITMQ_HOME POSTGRES_INITDB_ARGS PGDATA PGHOST HOME LOGNAME \
            LOGS_DIRECTORY OTEL_SERVICE_NAME RUST_LOG CACHE_SIZE AWS_PROFILE GIT_CONFIG CONFIG PROFILE \
            MIGRATIONS_DIR POSTGRESQL_VERSION LOGGING_LEVEL"
            .split_whitespace()
        {
            assert_eq!(found(name, "5"), None);
        }
        for name in "RABBITMQ_PORT RABBITMQ_PORT_5672_TCP RABBITMQ_MANAGEMENT_PORT KUBERNETES_PORT \
            PROMETHEUS_OPERATED_PORT_9090_TCP"
            .split_whitespace()
        {
            assert_eq!(found(name, "tcp://10.0.0.5:5672"), None);
        }
    }

    #[test]
    fn the_place_is_shown_and_never_the_value() {
        let environment = [("RABITMQ_HOST".to_owned(), OsString::from("hunter2"))].into();
        let dotenv = [("BATCH_\u{1b}TIMEOUT".to_owned(), "hunter2".to_owned())].into();
        let unread = unread(&environment, &dotenv);
        let places: Vec<&str> = unread.iter().map(|it| it.set_by.as_str()).collect();
        assert_eq!(places, ["environment variable RABITMQ_HOST", ".env: BATCH_\\u{1b}TIMEOUT"]);
        assert!(!format!("{unread:?}").contains("hunter2"));
    }
}
