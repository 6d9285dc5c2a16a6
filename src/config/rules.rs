//! Rules that span sections: what fits together.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::{self, Key};
use super::reader::Reader;
use super::values::{seconds, whole};
use super::{Batch, Retry};
use crate::{retry, tls};

/// Jitter lengthens a delay between retries by at most this factor.
const JITTER: f64 = 1.0 + retry::JITTER;

/// Statements of one transaction that may each take as long as the statement timeout allows.
const STATEMENTS: u32 = 2;

/// What one attempt at a batch may take beyond its statements: a connection to get, a commit.
const ATTEMPT_OVERHEAD: Duration = Duration::from_secs(5);

/// The longest time one attempt at a batch may take.
pub(super) fn transaction_deadline(statement_timeout: Duration) -> Duration {
    statement_timeout * STATEMENTS + ATTEMPT_OVERHEAD
}

/// The values that rules of more than one section are about; none when refused, which is noted.
pub(super) struct Shared {
    pub prefetch: Option<u16>,
    pub consumer_timeout: Option<Duration>,
    pub statement_timeout: Option<Duration>,
    pub batch: Option<Batch>,
    pub retry: Option<Retry>,
}

/// Reads these values and applies the rules to them.
pub(super) fn read(reader: &mut Reader) -> Shared {
    let size = reader.required(&keys::BATCH_SIZE, whole(1, 65_535));
    let timeout = reader.required(&keys::BATCH_TIMEOUT_SECONDS, seconds(0.001, 3600.0));
    // 128 MiB is the largest message RabbitMQ can carry.
    let max_message_bytes = reader.required(&keys::MAX_MESSAGE_BYTES, whole(256, 134_217_728));
    let max_attempts = reader.required(&keys::MAX_RETRY_ATTEMPTS, whole(0, 30));
    let delay = reader.required(&keys::RETRY_DELAY_SECONDS, seconds(0.0, 3600.0));
    let shared = Shared {
        prefetch: prefetch(reader, size),
        consumer_timeout: reader
            .required(&keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS, seconds(1.0, 31_536_000.0)),
        statement_timeout: reader
            .required(&keys::POSTGRES_STATEMENT_TIMEOUT_SECONDS, seconds(0.1, 3600.0)),
        batch: (|| {
            Some(Batch {
                size: usize::from(size?),
                timeout: timeout?,
                max_message_bytes: max_message_bytes?,
            })
        })(),
        retry: (|| Some(Retry { max_attempts: max_attempts?, delay: delay? }))(),
    };
    check_deadline(reader, &shared);
    shared
}

/// The prefetch count. Below the batch size a batch could never fill: one that nobody set rises
/// to the batch size, one that was set lower, or to 0, is refused.
fn prefetch(reader: &mut Reader, batch_size: Option<u16>) -> Option<u16> {
    let key = &keys::RABBITMQ_PREFETCH_COUNT;
    let prefetch = reader.required(key, whole(0, 65_535))?;
    let batch_size = batch_size?;
    if prefetch >= batch_size {
        return Some(prefetch);
    }
    let found = reader.find(key)?;
    if found.shipped {
        reader.derived(key, &keys::BATCH_SIZE);
        return Some(batch_size);
    }
    let size = reader.find(&keys::BATCH_SIZE)?;
    let path = keys::BATCH_SIZE.path;
    let why = if prefetch == 0 {
        "has no bound to AMQP, and memory would have none either; it must be at least"
    } else {
        "is too low for a batch ever to fill; it must be at least"
    };
    let wrong = format!("{why} {path} = {batch_size} ({})", size.set_by);
    let help = format!(
        "raise {} to {batch_size} or more, or lower {path}, or remove {} so that it follows",
        key.path, key.variable
    );
    reader.refuse(key, &found, wrong, help);
    None
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

/// What is begun at the batch's deadline has to end before the broker's consumer timeout, with as much
/// time again in reserve.
fn check_deadline(reader: &mut Reader, shared: &Shared) {
    let (Some(batch), Some(statement_timeout), Some(limit)) =
        (&shared.batch, shared.statement_timeout, shared.consumer_timeout)
    else {
        return;
    };
    let attempt = transaction_deadline(statement_timeout) + batch.timeout;
    if attempt <= limit / 4 {
        return;
    }
    let key = &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS;
    let Some(found) = reader.find(key) else {
        return;
    };
    let wrong = format!(
        "must be at least four times the longest time of one attempt at a batch, {} s: \
         {STATEMENTS} statements of {} s + {} s + {} s for the batch to fill",
        attempt.as_secs_f64(),
        statement_timeout.as_secs_f64(),
        ATTEMPT_OVERHEAD.as_secs_f64(),
        batch.timeout.as_secs_f64(),
    );
    let mut causes = Vec::new();
    for key in [&keys::POSTGRES_STATEMENT_TIMEOUT_SECONDS, &keys::BATCH_TIMEOUT_SECONDS] {
        if let Some(found) = reader.find(key) {
            causes.push(format!("{} ({})", key.path, found.set_by));
        }
    }
    let help = format!(
        "lower {}; or raise the broker's consumer_timeout and this setting with it",
        causes.join(" or ")
    );
    reader.refuse(key, &found, wrong, help);
}

/// A client's certificate and its private key: both or neither. Options as for
/// [`Reader::optional`].
pub(super) fn certificate_and_key(
    reader: &mut Reader,
    both: [&'static Key; 2],
) -> [Option<Option<PathBuf>>; 2] {
    for (present, missing) in [(both[0], both[1]), (both[1], both[0])] {
        if let (Some(found), None) = (reader.find(present), reader.find(missing)) {
            let wrong = format!("is given without {}", missing.path);
            let help = format!("set {} too, or remove it", missing.variable);
            reader.refuse(present, &found, wrong, help);
            return [None, None];
        }
    }
    let [certificate_key, key_key] = both;
    // The private key first: the certificate is held to it.
    let key = reader.pem(key_key, tls::check_key);
    let private = key.clone().flatten().map(|(_, pem)| pem).unwrap_or_default();
    let certificate = reader.pem(certificate_key, |pem| tls::check_identity(pem, &private));
    [certificate, key].map(|file| file.map(|given| given.map(|(path, _)| path)))
}
