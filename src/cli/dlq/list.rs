//! `dlq list` and `dlq show`: everything is requeued before anything is printed, so that a reader who
//! pages through it holds nothing on the broker.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use comfy_table::Table;
use indicatif::HumanCount;
use serde_json::{Value, json};
use vote_aggregator::adapters::broker::DeadLetterMessage;
use vote_aggregator::operator::dlq::{
    self, DeadLetterReason, Death, Examined, Selection, Shown, Tally,
};
use vote_aggregator::platform::config::Config;
use vote_aggregator::platform::terminal::{json_line, printable};

use super::super::output;
use super::{Failed, Filters, limit, read};

/// Bytes of a binary body in a `show` for people.
const MAX_HEX: usize = 4_096;
/// Bodies and headers that `show` keeps until it prints them, in bytes.
const MAX_SHOWN_BYTES: usize = 64 << 20;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq list
  vote-aggregator dlq list --reason malformed --max 0
  vote-aggregator dlq list --sqlstate 23 --law law-001
  vote-aggregator dlq list --json --max 0 | jq -r .reason | sort | uniq -c

The summary is about all messages that match, also those beyond --max. Reasons are the decoder's
(properties, not_json, missing_field, ...: malformed for all of them), the SQLSTATE of a vote that
PostgreSQL refused (refused; odd for a header that is not an SQLSTATE), and RabbitMQ's for valid
votes: rejected, delivery_limit, expired, maxlen. After a decoder's reason comes what the first bytes
or the names of the fields reveal: gzip, UTF-16, an envelope of MassTransit. Bodies are neither kept
nor shown.")]
pub(super) struct List {
    #[command(flatten)]
    filters: Filters,
    /// Messages to show at most; 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    max: u64,
    /// Print one JSON object a line, and no summary
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq show --hash 4f2a...
  vote-aggregator dlq show --reason missing_field --max 3
  vote-aggregator dlq show --hash 4f2a... --reveal     with the citizen: confidential
  vote-aggregator dlq show --json --max 0 | jq .

Of a body the values of vote_hash, law_id, choice and timestamp are shown, all others are ***, and
so is a citizen_id anywhere else; a body that is not JSON is not shown at all, nor are the message_id,
correlation_id and reply_to beside it. --reveal shows everything as it is, with control
characters escaped. Who sent it: user_id (RabbitMQ has checked it), app_id, and the headers.")]
pub(super) struct Show {
    #[command(flatten)]
    filters: Filters,
    /// Messages to show at most; 0 for all
    #[arg(long, value_name = "N", default_value_t = 10)]
    max: u64,
    /// Show bodies and headers as they are: they say who voted what
    #[arg(long)]
    reveal: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(config: &Config, arguments: &List) -> Result<u8, Failed> {
    let List { filters, max, json } = arguments;
    let filter = filters.filter();
    let selection = Selection::of(config, &filter);
    let (mut rows, mut advice) = (Vec::new(), BTreeMap::new());
    let tally = read(config, filters.hold, &selection, |message, examined| {
        advice.insert(examined.reason.label(), examined.reason.advice());
        if limit(*max).is_none_or(|max| (rows.len() as u64) < max) {
            rows.push((message.tag, examined));
        }
    });
    let tally = tally.await?;
    let queue = &config.rabbitmq.dead_letter_queue;
    output::print(if *json {
        rows.iter().map(|(number, examined)| line(&object(*number, examined))).collect()
    } else if tally.matched == 0 {
        nothing(&tally, queue)
    } else {
        format!(
            "{}\n\n{}\n\nshowing {} of {} messages that match; {} are in {queue}\n",
            table(&rows),
            summary(&tally, &advice),
            HumanCount(rows.len() as u64),
            HumanCount(tally.matched),
            HumanCount(tally.depth)
        )
    })?;
    Ok(0)
}

fn line(object: &Value) -> String {
    json_line(&object.to_string()) + "\n"
}

fn nothing(tally: &Tally, queue: &str) -> String {
    match tally.depth {
        0 => format!("{queue} is empty\n"),
        depth => format!("none of the {} messages in {queue} matches\n", HumanCount(depth)),
    }
}

fn or_dash(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| "-".to_owned())
}

fn table(rows: &[(u64, Examined)]) -> Table {
    let rows = rows.iter().map(|(number, examined)| {
        let reason = match examined.reason.detail() {
            Some(detail) => format!("{}: {detail}", examined.reason.label()),
            None => examined.reason.label(),
        };
        let cells = [
            number.to_string(),
            or_dash(&examined.vote_hash),
            or_dash(&examined.law_id),
            reason,
            or_dash(&examined.when),
            examined.size.to_string(),
            examined.replays.to_string(),
        ];
        cells.map(|cell| printable(&cell))
    });
    let header = ["#", "vote_hash", "law", "reason", "when", "bytes", "replays"];
    output::table(header, rows, [0, 5, 6])
}

fn summary(tally: &Tally, advice: &BTreeMap<String, &'static str>) -> Table {
    let rows = tally.reasons.iter().map(|(label, count)| {
        let advice = advice.get(label).copied().unwrap_or_default();
        [printable(label), HumanCount(*count).to_string(), advice.to_owned()]
    });
    output::table(["reason", "messages", "what to do"], rows, [1])
}

fn object(number: u64, examined: &Examined) -> Value {
    let field = match &examined.reason {
        DeadLetterReason::Malformed(rejection) => rejection.field,
        _ => None,
    };
    json!({
        "number": number,
        "vote_hash": examined.vote_hash,
        "law_id": examined.law_id,
        "reason": examined.reason.code(),
        "field": field,
        "detail": examined.reason.detail(),
        "malformed": !examined.reason.is_valid(),
        "sqlstate": examined.sqlstate,
        "x_death_reason": examined.deaths.first().map(|death| &death.reason),
        "dead_lettered_at": examined.when,
        "bytes": examined.size,
        "replays": examined.replays,
        "given_back": examined.deliveries,
    })
}

pub(super) async fn show(config: &Config, arguments: &Show) -> Result<u8, Failed> {
    let Show { filters, max, reveal, json } = arguments;
    let filter = filters.filter();
    let selection = Selection { max: limit(*max), ..Selection::of(config, &filter) };
    let (mut shown, mut bytes, mut left_out) = (String::new(), 0, 0_u64);
    let each = |message: &DeadLetterMessage, examined: Examined| {
        bytes += message.size();
        if bytes > MAX_SHOWN_BYTES {
            left_out += 1;
        } else if *json {
            shown += &line(&whole_object(message, &examined, *reveal));
        } else {
            shown += &(text(message, &examined, *reveal) + "\n");
        }
    };
    let tally = read(config, filters.hold, &selection, each).await?;
    if left_out > 0 {
        let left_out = HumanCount(left_out);
        output::note(format_args!("{left_out} more messages are too large to be shown together"));
    }
    if shown.is_empty() && !json {
        shown = nothing(&tally, &config.rabbitmq.dead_letter_queue);
    }
    output::print(shown)?;
    Ok(0)
}

fn whole_object(message: &DeadLetterMessage, examined: &Examined, reveal: bool) -> Value {
    let mut object = object(message.tag, examined);
    object["why"] = examined.reason.explanation().into();
    object["what_to_do"] = examined.reason.advice().into();
    object["properties"] = json!(BTreeMap::from_iter(dlq::properties(message, reveal)));
    object["headers"] = json!(BTreeMap::from_iter(dlq::headers(message, reveal)));
    match dlq::show(&message.body, reveal) {
        Shown::Text(text) => object["body"] = text.into(),
        Shown::Bytes(bytes) => object["body_base64"] = STANDARD.encode(bytes).into(),
        Shown::Hidden(why) => object["body_hidden"] = why.into(),
    }
    object
}

fn text(message: &DeadLetterMessage, examined: &Examined, reveal: bool) -> String {
    let Examined { reason, vote_hash, law_id, deaths, when, size, replays, deliveries, .. } =
        examined;
    let counts = format!(
        "{size} bytes; replayed {replays} times; requeued after reading {deliveries} times"
    );
    let mut lines = vec![
        ("law", or_dash(law_id)),
        ("reason", reason.label()),
        ("why", reason.explanation()),
        ("fix", reason.advice().to_owned()),
        ("when", or_dash(when)),
        ("counts", counts),
    ];
    lines.extend(deaths.iter().map(|Death { reason, queue, count, time }| {
        let time = time.as_deref().unwrap_or("an unknown time");
        ("x-death", format!("{reason} in {queue}, {count} times, first at {time}"))
    }));
    let properties = dlq::properties(message, reveal).into_iter();
    lines.extend(properties.map(|(name, value)| ("property", format!("{name}: {value}"))));
    let headers = dlq::headers(message, reveal).into_iter().filter(|(name, _)| name != "x-death");
    lines.extend(headers.map(|(name, value)| ("header", format!("{name}: {value}"))));
    let body = match dlq::show(&message.body, reveal) {
        Shown::Text(text) => text,
        Shown::Bytes(bytes) => hex(&bytes),
        Shown::Hidden(why) => format!("not shown: {why}; --reveal shows it"),
    };
    lines.push(("body", body));
    let lines = lines.iter().map(|(label, text)| format!("  {label:<8} {}\n", printable(text)));
    let (tag, vote_hash) = (message.tag, printable(&or_dash(vote_hash)));
    format!("#{tag}  vote_hash {vote_hash}\n{}", lines.collect::<String>())
}

fn hex(bytes: &[u8]) -> String {
    let shown = bytes.iter().take(MAX_HEX).map(|byte| format!("{byte:02x}"));
    let more = if bytes.len() > MAX_HEX { "... (all of it with --json)" } else { "" };
    format!("hex {}{more}", shown.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_letter(body: &[u8], headers: Value) -> (DeadLetterMessage, Examined) {
        let Value::Object(headers) = headers else { panic!("headers are an object") };
        let message = DeadLetterMessage::new(body, headers.into_iter().collect());
        let examined = dlq::examine(&message, 16_384, None);
        (message, examined)
    }

    fn shown(body: &[u8], headers: Value, reveal: bool) -> String {
        let (message, examined) = dead_letter(body, headers);
        text(&message, &examined, reveal)
    }

    #[test]
    fn control_characters_of_a_message_never_reach_the_terminal() {
        let headers = json!({"x-death": [{"reason": "a\u{1b}[2J", "queue": "q\r\n"}],
                             "x-vote-hash": "\u{202e}h", "x\u{9b}1m": "\u{1b}]0;title\u{7}"});
        for (body, reveal) in
            [(&b"{\"a\":\"\x1b[2J\"}"[..], true), (b"\x1b\xff", true), (b"{}", false)]
        {
            let shown = shown(body, headers.clone(), reveal);
            let obeyed = |c: char| c.is_control() && c != '\n';
            assert!(!shown.contains(obeyed) && !shown.contains('\u{202e}'), "{shown:?}");
            assert_eq!(shown.matches('\n').count(), shown.lines().count());
        }
    }

    #[test]
    fn a_body_that_cannot_be_masked_is_described_by_its_size() {
        let hidden = shown(b"citizen-7 voted", json!({}), false);
        assert!(hidden.contains("15 bytes") && hidden.contains("--reveal"), "{hidden}");
        assert!(!hidden.contains("citizen-7"), "{hidden}");
        assert!(shown(b"citizen-7 voted", json!({}), true).contains("citizen-7 voted"));
        assert!(shown(b"\xffab", json!({}), true).contains("hex ff6162"));
        let (message, examined) = dead_letter(b"\xffab", json!({}));
        let object = whole_object(&message, &examined, true);
        assert_eq!(object["body_base64"], "/2Fi");
    }
}
