//! Rules about more than one setting: what fits together, and what follows from what.

use std::path::PathBuf;

use secrecy::ExposeSecret as _;

use super::hosts::ServerAddress;
use super::keys::{self, Key};
use super::postgres::{ATTEMPT_OVERHEAD, STATEMENTS, SslMode};
use super::problems::Refusal;
use super::settings::Settings;
use super::values::{LONGEST_AMQP_NAME, read_pem};
use super::{Config, Postgres, RabbitMq};
use crate::platform::tls;

/// The port that AMQP over TLS has by convention.
const TLS_PORT: u16 = 5671;

/// Applies every rule: completes the values that follow from others, and notes those that contradict
/// each other.
pub(super) fn apply(config: &mut Config, settings: &mut Settings) {
    prefetch(settings, config);
    min_connections(settings, &mut config.postgres);
    queues_of_a_cell(settings, &mut config.rabbitmq);
    dead_letter_queue(settings, &mut config.rabbitmq);
    let Config { rabbitmq, postgres, .. } = config;
    let keys = [&keys::RABBITMQ_TLS_CERT_FILE, &keys::RABBITMQ_TLS_KEY_FILE];
    certificate_and_key(settings, keys, [&rabbitmq.tls_cert_file, &rabbitmq.tls_key_file]);
    let keys = [&keys::POSTGRES_SSLCERT, &keys::POSTGRES_SSLKEY];
    certificate_and_key(settings, keys, [&postgres.sslcert, &postgres.sslkey]);
    rabbitmq_tls(settings, rabbitmq);
    let keys = [&keys::RABBITMQ_HOST, &keys::RABBITMQ_PORT];
    repeated_address(settings, keys, &rabbitmq.addresses());
    let keys = [&keys::POSTGRES_HOST, &keys::POSTGRES_PORT];
    repeated_address(settings, keys, &postgres.addresses());
    unused_ssl_files(settings, postgres.sslmode);
    let password = settings.password_in_file(keys::PASSWORDS[0], rabbitmq.password_file.take());
    rabbitmq.password = password.unwrap_or_else(|| rabbitmq.password.clone());
    let password = settings.password_in_file(keys::PASSWORDS[1], postgres.password_file.take());
    postgres.password = password.or_else(|| postgres.password.take());
    management_login(rabbitmq);
    consumer_timeout(settings, config);
}

/// The prefetch count. Below the batch size a batch could never fill: a default rises
/// to the batch size, a lower one that a user set, or 0, is refused.
fn prefetch(settings: &mut Settings, config: &mut Config) {
    let (key, size_key) = (&keys::RABBITMQ_PREFETCH_COUNT, &keys::BATCH_SIZE);
    let (prefetch, size) = (&mut config.rabbitmq.prefetch, config.batch.size);
    if usize::from(*prefetch) >= size || settings.any_refused(&[key, size_key]) {
        return;
    }
    if settings.follows_unless_set(key, size_key) {
        *prefetch = u16::try_from(size).unwrap_or(u16::MAX);
        return;
    }
    let why = if *prefetch == 0 {
        "has no bound to AMQP, and memory would have none either; it must be at least"
    } else {
        "is too low for a batch ever to fill; it must be at least"
    };
    let path = size_key.path;
    let wrong = format!("{why} {path} = {size} ({})", settings.source(size_key));
    let help = format!(
        "raise {} to {size} or more, or lower {path}, or remove {} so that it follows",
        key.path, key.variable
    );
    settings.refuse(key, Refusal::new(wrong, help));
}

/// The pool's minimum, at most its maximum: a default sinks to it, a higher one that a user set
/// is refused.
fn min_connections(settings: &mut Settings, postgres: &mut Postgres) {
    let (key, max_key) = (&keys::POSTGRES_MIN_CONNECTIONS, &keys::POSTGRES_MAX_CONNECTIONS);
    let max = postgres.max_connections;
    if postgres.min_connections <= max || settings.any_refused(&[key, max_key]) {
        return;
    }
    if settings.follows_unless_set(key, max_key) {
        postgres.min_connections = max;
        return;
    }
    let path = max_key.path;
    let wrong = format!("is more than {path} = {max} ({})", settings.source(max_key));
    settings
        .refuse(key, Refusal::new(wrong, format!("lower it to {max} or less, or raise {path}")));
}

/// The queue of a cell: unless set, the default's name with the cell's number. Another cell's, which a copied
/// `.env` names, is refused, for it as for its dead letters: a replay of those would count them in this cell.
fn queues_of_a_cell(settings: &mut Settings, rabbitmq: &mut RabbitMq) {
    let (key, queue_key) = (&keys::CELL, &keys::RABBITMQ_QUEUE);
    let Some(cell) = rabbitmq.cell.filter(|_| !settings.any_refused(&[key, queue_key])) else {
        return;
    };
    let ending = format!(".{}", cell.number);
    let is_its_queue = rabbitmq.queue.ends_with(&ending);
    if !is_its_queue && settings.follows_unless_set(queue_key, key) {
        rabbitmq.queue += &ending;
    } else if !is_its_queue {
        let wrong = format!("is not the queue of cell {cell} ({})", settings.source(key));
        let help =
            format!("give the queue of this cell, whose name ends in {ending}, or change CELL");
        settings.refuse(queue_key, Refusal::new(wrong, help));
    }
    let (dlq, beginning) = (&rabbitmq.dead_letter_queue, format!("{}.", rabbitmq.queue));
    let dlq_key = &keys::RABBITMQ_DEAD_LETTER_QUEUE;
    if !dlq.is_empty() && !dlq.starts_with(&beginning) && !settings.any_refused(&[dlq_key]) {
        let wrong = format!("is not a queue of cell {cell} ({})", settings.source(key));
        let help = format!("remove it, or give a name that begins with {beginning}");
        settings.refuse(dlq_key, Refusal::new(wrong, help));
    }
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
        let wrong = format!("leaves no space for .dlq within AMQP's {LONGEST_AMQP_NAME} bytes");
        let help = format!("shorten it, or set {} ({})", key.path, key.variable);
        settings.refuse(queue_key, Refusal::new(wrong, help));
    }
}

/// The login for the management API: RabbitMQ's own for what its URL leaves out.
fn management_login(rabbitmq: &mut RabbitMq) {
    if let Some(management) = &mut rabbitmq.management_url {
        if management.user.is_empty() {
            management.user.clone_from(&rabbitmq.user);
        }
        if management.password.current().expose_secret().is_empty() {
            management.password.clone_from(&rabbitmq.password);
        }
    }
}

/// An address that a list names twice, which would be tried twice.
fn repeated_address(settings: &mut Settings, keys: [&Key; 2], addresses: &[ServerAddress]) {
    let repeated = (1..).zip(addresses).find(|(number, it)| addresses[..number - 1].contains(it));
    if let Some((number, address)) = repeated
        && !settings.any_refused(&keys)
    {
        let refusal = Refusal::new(format!("{address} is named twice"), "remove one of the two");
        settings.refuse(keys[0], refusal.of_address(number));
    }
}

/// With TLS the default port is 5671; without it files of certificates are refused.
fn rabbitmq_tls(settings: &mut Settings, rabbitmq: &mut RabbitMq) {
    let key = &keys::RABBITMQ_TLS;
    if settings.any_refused(&[key]) {
        return;
    }
    if rabbitmq.tls {
        if settings.follows_unless_set(&keys::RABBITMQ_PORT, key) {
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
    let key = &keys::POSTGRES_SSLMODE;
    if settings.any_refused(&[key]) {
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
    refuse_unused_files(settings, unused, refusal);
}

/// Refuses the first of these files that is set: it would have no effect.
fn refuse_unused_files(settings: &mut Settings, files: &[&Key], refusal: Refusal) {
    if let Some(key) = files.iter().find(|key| settings.find(key).is_some())
        && !settings.any_refused(files)
    {
        settings.refuse(key, refusal);
    }
}

/// A client's certificate and its private key: both or neither, and the one made for the other.
fn certificate_and_key(settings: &mut Settings, keys: [&Key; 2], files: [&Option<PathBuf>; 2]) {
    if settings.any_refused(&keys) {
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
        settings.refuse(key, refusal);
    }
}

/// What is begun at the batch's deadline has to end before the broker's consumer timeout, with as much
/// time again in reserve.
fn consumer_timeout(settings: &mut Settings, config: &Config) {
    let key = &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS;
    let causes = [&keys::POSTGRES_STATEMENT_TIMEOUT_SECONDS, &keys::BATCH_TIMEOUT_SECONDS];
    let Config { postgres, batch, .. } = config;
    let attempt = postgres.transaction_deadline() + batch.timeout;
    if attempt <= config.rabbitmq.consumer_timeout / 4
        || settings.any_refused(&[key, causes[0], causes[1]])
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
    let causes = causes.map(|key| format!("{} ({})", key.path, settings.source(key)));
    let help = format!(
        "lower {}; or raise the broker's consumer_timeout and this setting with it",
        causes.join(" or ")
    );
    settings.refuse(key, Refusal::new(wrong, help));
}
