//! Rules about more than one setting: what fits together, and what follows from what.

use std::time::Duration;

use figment::Figment;

use super::keys::{self, Key};
use super::layers::{self, Found};
use super::password::Password;
use super::postgres::SslMode;
use super::problems::{Problem, Refusal};
use super::settings::Settings;
use super::values::{LONGEST_AMQP_NAME, read_pem, truth};
use super::{Config, Postgres, RabbitMq, Retry, urls};
use crate::platform::{retry, tls};

/// Jitter lengthens a delay between retries by at most this factor.
const JITTER: f64 = 1.0 + retry::JITTER;

/// Statements of one transaction that may each take as long as the statement timeout allows.
const STATEMENTS: u32 = 2;

/// What one attempt at a batch may take beyond its statements: a connection to get, a commit.
const ATTEMPT_OVERHEAD: Duration = Duration::from_secs(5);

/// The port that AMQP over TLS has by convention.
const TLS_PORT: u16 = 5671;

/// The longest time one attempt at a batch may take.
pub(super) fn transaction_deadline(statement_timeout: Duration) -> Duration {
    statement_timeout * STATEMENTS + ATTEMPT_OVERHEAD
}

/// How long after its first delivery was taken something may be begun for a batch: half of the
/// broker's consumer timeout, as the broker looks only now and then, and what was begun takes its time.
pub(super) fn batch_deadline(consumer_timeout: Duration) -> Duration {
    consumer_timeout / 2
}

/// All delays between the attempts at a batch, at their longest.
pub(super) fn retry_delays(retry: &Retry) -> Duration {
    let total = retry.delay.as_secs_f64() * (f64::from(retry.max_attempts).exp2() - 1.0) * JITTER;
    Duration::try_from_secs_f64(total).unwrap_or(Duration::MAX)
}

/// Applies every rule: completes the values that follow from others, and notes those that contradict
/// each other.
pub(super) fn apply(config: &mut Config, settings: &mut Settings) {
    let Config { rabbitmq, postgres, .. } = config;
    rabbitmq.prefetch = prefetch(settings, rabbitmq.prefetch, config.batch.size);
    postgres.min_connections = min_connections(settings, postgres);
    dead_letter_queue(settings, rabbitmq);
    certificate_and_key(settings, &keys::RABBITMQ_TLS_CERT_FILE, &keys::RABBITMQ_TLS_KEY_FILE);
    certificate_and_key(settings, &keys::POSTGRES_SSLCERT, &keys::POSTGRES_SSLKEY);
    rabbitmq_tls(settings, rabbitmq);
    unused_ssl_files(settings, postgres.sslmode);
    let [rabbitmq_password, postgres_password] =
        keys::PASSWORDS.map(|(password, file)| password_in_file(settings, password, file));
    rabbitmq.password = rabbitmq_password.unwrap_or_else(|| rabbitmq.password.clone());
    postgres.password = postgres_password.or_else(|| postgres.password.take());
    if let Some(management) = &mut rabbitmq.management_url {
        if management.user.is_empty() {
            management.user.clone_from(&rabbitmq.user);
        }
        if !management.password.is_given() {
            management.password.clone_from(&rabbitmq.password);
        }
    }
    consumer_timeout(settings, config);
}

/// `rabbitmq.tls` is set to the opposite of what a URL's scheme says. Letting either win silently
/// could send a password in clear. `own` is without the parts of URLs.
pub(super) fn contradicted_scheme(own: &Figment) -> Option<Problem> {
    let (key, url_key) = (&keys::RABBITMQ_TLS, &keys::RABBITMQ_URL);
    let alone = layers::find(own, key).filter(|alone| !alone.shipped)?;
    let url = layers::find(own, url_key)?;
    let says = urls::amqp(&url.text).ok()?.contains(&(key, true.to_string()));
    if truth(&alone.text) == Ok(says) {
        return None;
    }
    let scheme = if says { "amqps" } else { "amqp" };
    let refusal = Refusal::new(
        format!("contradicts the scheme {scheme} of {} ({})", url_key.path, url.set_by),
        format!("remove {}, or write the scheme that is meant", key.variable),
    );
    Some(Problem::refused(key, &alone.text, &alone.set_by, refusal))
}

/// The prefetch count. Below the batch size a batch could never fill: a default rises
/// to the batch size, a lower one that a user set, or 0, is refused.
fn prefetch(settings: &mut Settings, prefetch: u16, batch_size: usize) -> u16 {
    let (key, size_key) = (&keys::RABBITMQ_PREFETCH_COUNT, &keys::BATCH_SIZE);
    if usize::from(prefetch) >= batch_size || settings.any_refused(&[key, size_key]) {
        return prefetch;
    }
    if follows_unless_set(settings, key, size_key) {
        return u16::try_from(batch_size).unwrap_or(u16::MAX);
    }
    let why = if prefetch == 0 {
        "has no bound to AMQP, and memory would have none either; it must be at least"
    } else {
        "is too low for a batch ever to fill; it must be at least"
    };
    let path = size_key.path;
    let wrong = format!("{why} {path} = {batch_size} ({})", settings.source(size_key));
    let help = format!(
        "raise {} to {batch_size} or more, or lower {path}, or remove {} so that it follows",
        key.path, key.variable
    );
    settings.refuse(key, Refusal::new(wrong, help));
    prefetch
}

/// The pool's minimum, at most its maximum: a default sinks to it, a higher one that a user set
/// is refused.
fn min_connections(settings: &mut Settings, postgres: &Postgres) -> u32 {
    let (key, max_key) = (&keys::POSTGRES_MIN_CONNECTIONS, &keys::POSTGRES_MAX_CONNECTIONS);
    let (min, max) = (postgres.min_connections, postgres.max_connections);
    if min <= max || settings.any_refused(&[key, max_key]) {
        return min;
    }
    if follows_unless_set(settings, key, max_key) {
        return max;
    }
    let path = max_key.path;
    let wrong = format!("is more than {path} = {max} ({})", settings.source(max_key));
    let help = format!("lower it to {max} or less, or raise {path}");
    settings.refuse(key, Refusal::new(wrong, help));
    min
}

/// Whether a value is a default, so that it may follow another setting; it then does.
fn follows_unless_set(settings: &mut Settings, key: &'static Key, from: &Key) -> bool {
    let shipped = settings.find(key).is_some_and(|found| found.shipped);
    if shipped {
        settings.follows(key, from);
    }
    shipped
}

/// The queue for what cannot be counted: unless set, the queue's name with `.dlq`.
fn dead_letter_queue(settings: &mut Settings, rabbitmq: &mut RabbitMq) {
    let (key, queue_key) = (&keys::RABBITMQ_DEAD_LETTER_QUEUE, &keys::RABBITMQ_QUEUE);
    if settings.any_refused(&[key, queue_key]) {
        return;
    }
    if rabbitmq.dead_letter_queue == rabbitmq.queue {
        let wrong =
            format!("is also {}: a rejected message would come back without end", queue_key.path);
        settings.refuse(key, Refusal::new(wrong, "give the two queues different names"));
    }
    if rabbitmq.dead_letter_queue.is_empty() {
        rabbitmq.dead_letter_queue = format!("{}.dlq", rabbitmq.queue);
        settings.follows(key, queue_key);
    }
    if rabbitmq.dead_letter_queue.len() > LONGEST_AMQP_NAME {
        let wrong = format!("leaves no room for .dlq within AMQP's {LONGEST_AMQP_NAME} bytes");
        let help = format!("shorten it, or set {} ({})", key.path, key.variable);
        settings.refuse(queue_key, Refusal::new(wrong, help));
    }
}

/// With TLS the port is the conventional other one, unless a port is set; without it no file of
/// certificates is used.
fn rabbitmq_tls(settings: &mut Settings, rabbitmq: &mut RabbitMq) {
    let key = &keys::RABBITMQ_TLS;
    if settings.any_refused(&[key]) {
        return;
    }
    if rabbitmq.tls {
        if follows_unless_set(settings, &keys::RABBITMQ_PORT, key) {
            rabbitmq.port = TLS_PORT;
        }
        return;
    }
    let refusal = Refusal::new(
        format!("has no effect, because {} is off", key.path),
        format!("set {}=true, or remove it", key.variable),
    );
    let files =
        [&keys::RABBITMQ_TLS_CA_FILE, &keys::RABBITMQ_TLS_CERT_FILE, &keys::RABBITMQ_TLS_KEY_FILE];
    refuse_unused_files(settings, &files, refusal);
}

fn unused_ssl_files(settings: &mut Settings, mode: SslMode) {
    let (authorities, cert, key) =
        (&keys::POSTGRES_SSLROOTCERT, &keys::POSTGRES_SSLCERT, &keys::POSTGRES_SSLKEY);
    let unused = match mode {
        SslMode::VerifyCa | SslMode::VerifyFull => &[][..],
        SslMode::Allow | SslMode::Prefer | SslMode::Require => &[authorities],
        SslMode::Disable => &[authorities, cert, key],
    };
    let mode_key = &keys::POSTGRES_SSLMODE;
    if !settings.any_refused(&[mode_key]) {
        let refusal = Refusal::new(
            format!("has no effect with {} = {mode}", mode_key.path),
            format!("set {}=verify-full, or remove it", mode_key.variable),
        );
        refuse_unused_files(settings, unused, refusal);
    }
}

/// Refuses the first of these files that is set: who names one believes that it is used.
fn refuse_unused_files(settings: &mut Settings, files: &[&Key], refusal: Refusal) {
    let set = |key: &&&Key| settings.find(key).is_some();
    if let Some(key) = files.iter().find(set)
        && !settings.any_refused(files)
    {
        settings.refuse(key, refusal);
    }
}

/// A client's certificate and its private key: both or neither, and the one made for the other.
fn certificate_and_key(settings: &mut Settings, certificate: &Key, key: &Key) {
    if settings.any_refused(&[certificate, key]) {
        return;
    }
    let given_without = |missing: &Key| {
        let wrong = format!("is given without {}", missing.path);
        Refusal::new(wrong, format!("set {} too, or remove it", missing.variable))
    };
    match (settings.path(certificate), settings.path(key)) {
        (Some(_), None) => settings.refuse(certificate, given_without(key)),
        (None, Some(_)) => settings.refuse(key, given_without(certificate)),
        (None, None) => {}
        (Some(certificate_file), Some(key_file)) => {
            // The private key first: the certificate is held to it.
            let private = read_pem(&key_file).and_then(|pem| {
                tls::check_key(&pem).map_err(Refusal::of_pem)?;
                Ok(pem)
            });
            let private = private.unwrap_or_else(|refusal| {
                settings.refuse(key, refusal);
                Vec::new()
            });
            let matching = read_pem(&certificate_file)
                .and_then(|pem| tls::check_identity(&pem, &private).map_err(Refusal::of_pem));
            if let Err(refusal) = matching {
                settings.refuse(certificate, refusal);
            }
        }
    }
}

/// The password in a file, if one is named. A higher layer's file or password replaces those of a lower
/// one; in one layer only one of the two may be given.
fn password_in_file(
    settings: &mut Settings,
    key: &'static Key,
    file_key: &'static Key,
) -> Option<Password> {
    let path = settings.path(file_key)?;
    let Found { text, set_by, .. } = settings.find(file_key)?;
    if let Some(given) = settings.find(key) {
        settings.note(Problem::about(
            key.path,
            format!("{} and {set_by}", given.set_by),
            format!("is given twice: as itself and as {}", file_key.path),
            "keep one of the two",
        ));
        return None;
    }
    match Password::in_file(&text, path, file_key) {
        Ok(password) => {
            settings.set_source(key, set_by);
            Some(password)
        }
        Err(refusal) => {
            settings.refuse(file_key, refusal);
            None
        }
    }
}

/// What is begun at the batch's deadline has to end before the broker's consumer timeout, with as much
/// time again in reserve.
fn consumer_timeout(settings: &mut Settings, config: &Config) {
    let key = &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS;
    let causes = [&keys::POSTGRES_STATEMENT_TIMEOUT_SECONDS, &keys::BATCH_TIMEOUT_SECONDS];
    let (statement, fill) = (config.postgres.statement_timeout, config.batch.timeout);
    let attempt = transaction_deadline(statement) + fill;
    if attempt <= config.rabbitmq.consumer_timeout / 4
        || settings.any_refused(&[key, causes[0], causes[1]])
    {
        return;
    }
    let wrong = format!(
        "must be at least four times the longest time of one attempt at a batch, {} s: \
         {STATEMENTS} statements of {} s + {} s + {} s for the batch to fill",
        attempt.as_secs_f64(),
        statement.as_secs_f64(),
        ATTEMPT_OVERHEAD.as_secs_f64(),
        fill.as_secs_f64(),
    );
    let causes = causes.map(|key| format!("{} ({})", key.path, settings.source(key)));
    let help = format!(
        "lower {}; or raise the broker's consumer_timeout and this setting with it",
        causes.join(" or ")
    );
    settings.refuse(key, Refusal::new(wrong, help));
}
