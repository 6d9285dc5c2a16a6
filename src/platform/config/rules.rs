//! Rules about more than one setting: what fits together, and what follows from what.

use std::path::PathBuf;

use super::keys::{self, Key};
use super::postgres::{ATTEMPT_OVERHEAD, STATEMENTS, SslMode};
use super::problems::Refusal;
use super::reader::Reader;
use super::values::{LONGEST_AMQP_NAME, read_pem};
use super::{Config, Postgres, RabbitMq};
use crate::platform::tls;

/// The port that AMQP over TLS has by convention.
const TLS_PORT: u16 = 5671;

/// Applies every rule: completes the values that follow from others, and notes those that contradict
/// each other.
pub(super) fn apply(config: &mut Config, reader: &mut Reader) {
    prefetch(reader, config);
    min_connections(reader, &mut config.postgres);
    dead_letter_queue(reader, &mut config.rabbitmq);
    let Config { rabbitmq, postgres, .. } = config;
    let keys = [&keys::RABBITMQ_TLS_CERT_FILE, &keys::RABBITMQ_TLS_KEY_FILE];
    certificate_and_key(reader, keys, [&rabbitmq.tls_cert_file, &rabbitmq.tls_key_file]);
    let keys = [&keys::POSTGRES_SSLCERT, &keys::POSTGRES_SSLKEY];
    certificate_and_key(reader, keys, [&postgres.sslcert, &postgres.sslkey]);
    rabbitmq_tls(reader, rabbitmq);
    unused_ssl_files(reader, postgres.sslmode);
    consumer_timeout(reader, config);
}

/// The prefetch count. Below the batch size a batch could never fill: a default rises
/// to the batch size, a lower one that a user set, or 0, is refused.
fn prefetch(reader: &mut Reader, config: &mut Config) {
    let (key, size_key) = (&keys::RABBITMQ_PREFETCH_COUNT, &keys::BATCH_SIZE);
    let (prefetch, size) = (&mut config.rabbitmq.prefetch, config.batch.size);
    if usize::from(*prefetch) >= size || reader.any_refused(&[key, size_key]) {
        return;
    }
    if reader.follows_unless_set(key, size_key) {
        *prefetch = u16::try_from(size).unwrap_or(u16::MAX);
        return;
    }
    let why = if *prefetch == 0 {
        "has no bound to AMQP, and memory would have none either; it must be at least"
    } else {
        "is too low for a batch ever to fill; it must be at least"
    };
    let path = size_key.path;
    let wrong = format!("{why} {path} = {size} ({})", reader.source(size_key));
    let help = format!(
        "raise {} to {size} or more, or lower {path}, or remove {} so that it follows",
        key.path, key.variable
    );
    reader.refuse(key, Refusal::new(wrong, help));
}

/// The pool's minimum, at most its maximum: a default sinks to it, a higher one that a user set
/// is refused.
fn min_connections(reader: &mut Reader, postgres: &mut Postgres) {
    let (key, max_key) = (&keys::POSTGRES_MIN_CONNECTIONS, &keys::POSTGRES_MAX_CONNECTIONS);
    let max = postgres.max_connections;
    if postgres.min_connections <= max || reader.any_refused(&[key, max_key]) {
        return;
    }
    if reader.follows_unless_set(key, max_key) {
        postgres.min_connections = max;
        return;
    }
    let path = max_key.path;
    let wrong = format!("is more than {path} = {max} ({})", reader.source(max_key));
    reader.refuse(key, Refusal::new(wrong, format!("lower it to {max} or less, or raise {path}")));
}

/// The queue for what cannot be counted: unless set, the queue's name with `.dlq`.
fn dead_letter_queue(reader: &mut Reader, rabbitmq: &mut RabbitMq) {
    let (key, queue_key) = (&keys::RABBITMQ_DEAD_LETTER_QUEUE, &keys::RABBITMQ_QUEUE);
    if reader.any_refused(&[key, queue_key]) {
        return;
    }
    if rabbitmq.dead_letter_queue == rabbitmq.queue {
        let wrong =
            format!("is also {}: a rejected message would come back without end", queue_key.path);
        reader.refuse(key, Refusal::new(wrong, "give the two queues different names"));
    }
    if rabbitmq.dead_letter_queue.is_empty() {
        rabbitmq.dead_letter_queue = format!("{}.dlq", rabbitmq.queue);
        reader.follows(key, queue_key);
    }
    if rabbitmq.dead_letter_queue.len() > LONGEST_AMQP_NAME {
        let wrong = format!("leaves no space for .dlq within AMQP's {LONGEST_AMQP_NAME} bytes");
        let help = format!("shorten it, or set {} ({})", key.path, key.variable);
        reader.refuse(queue_key, Refusal::new(wrong, help));
    }
}

/// With TLS the default port is 5671; without it files of certificates are refused.
fn rabbitmq_tls(reader: &mut Reader, rabbitmq: &mut RabbitMq) {
    let key = &keys::RABBITMQ_TLS;
    if reader.any_refused(&[key]) {
        return;
    }
    if rabbitmq.tls {
        if reader.follows_unless_set(&keys::RABBITMQ_PORT, key) {
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
    refuse_unused_files(reader, &files, refusal);
}

fn unused_ssl_files(reader: &mut Reader, mode: SslMode) {
    let key = &keys::POSTGRES_SSLMODE;
    if reader.any_refused(&[key]) {
        return;
    }
    let files = [&keys::POSTGRES_SSLROOTCERT, &keys::POSTGRES_SSLCERT, &keys::POSTGRES_SSLKEY];
    let unused = match mode {
        SslMode::VerifyCa | SslMode::VerifyFull => &files[..0],
        SslMode::Allow | SslMode::Prefer | SslMode::Require => &files[..1],
        SslMode::Disable => &files[..],
    };
    let refusal = Refusal::new(
        format!("has no effect with {} = {mode}", key.path),
        format!("set {}=verify-full, or remove it", key.variable),
    );
    refuse_unused_files(reader, unused, refusal);
}

/// Refuses the first of these files that is set: it would have no effect.
fn refuse_unused_files(reader: &mut Reader, files: &[&Key], refusal: Refusal) {
    if let Some(key) = files.iter().find(|key| reader.find(key).is_some())
        && !reader.any_refused(files)
    {
        reader.refuse(key, refusal);
    }
}

/// A client's certificate and its private key: both or neither, and the one made for the other.
fn certificate_and_key(reader: &mut Reader, keys: [&Key; 2], files: [&Option<PathBuf>; 2]) {
    if reader.any_refused(&keys) {
        return;
    }
    let [certificate_key, private_key] = keys;
    let without = |missing: &Key| {
        let help = format!("set {} too, or remove it", missing.variable);
        Refusal::new(format!("is given without {}", missing.path), help)
    };
    let matching = match files {
        [None, None] => Ok(()),
        [Some(_), None] => Err((certificate_key, without(private_key))),
        [None, Some(_)] => Err((private_key, without(certificate_key))),
        [Some(certificate), Some(private)] => read_pem(certificate)
            .and_then(|pem| tls::check_identity(&pem, &read_pem(private)?).map_err(Refusal::of_pem))
            .map_err(|refusal| (certificate_key, refusal)),
    };
    if let Err((key, refusal)) = matching {
        reader.refuse(key, refusal);
    }
}

/// What is begun at the batch's deadline has to end before the broker's consumer timeout, with as much
/// time again in reserve.
fn consumer_timeout(reader: &mut Reader, config: &Config) {
    let key = &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS;
    let causes = [&keys::POSTGRES_STATEMENT_TIMEOUT_SECONDS, &keys::BATCH_TIMEOUT_SECONDS];
    let Config { postgres, batch, .. } = config;
    let attempt = postgres.transaction_deadline() + batch.timeout;
    if attempt <= config.rabbitmq.consumer_timeout / 4
        || reader.any_refused(&[key, causes[0], causes[1]])
    {
        return;
    }
    let wrong = format!(
        "must be at least four times the longest time of one attempt at a batch, {} s: \
         {STATEMENTS} statements of {} s + {} s + {} s for the batch to fill",
        attempt.as_secs_f64(),
        postgres.statement_timeout.as_secs_f64(),
        ATTEMPT_OVERHEAD.as_secs_f64(),
        batch.timeout.as_secs_f64(),
    );
    let causes = causes.map(|key| format!("{} ({})", key.path, reader.source(key)));
    let help = format!(
        "lower {}; or raise the broker's consumer_timeout and this setting with it",
        causes.join(" or ")
    );
    reader.refuse(key, Refusal::new(wrong, help));
}
