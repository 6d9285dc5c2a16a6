//! `dlq list` and `dlq show`: everything goes back before anything is printed, so that a reader who
//! pages through it holds nothing on the broker.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use comfy_table::Table;
use indicatif::HumanCount;
use serde_json::{Map, Value, json};
use vote_aggregator::broker::Letter;
use vote_aggregator::config::Config;
use vote_aggregator::dlq::{self, Examined, Shown, Tally, Verdict, Why};
use vote_aggregator::terminal::{json_line, printable};

use super::super::output;
use super::{Failed, Meant, bar, everything, limit, open, tell_copies, tell_end};

/// Bytes of a body that is no text, in a `show` for people.
const HEX_AT_MOST: usize = 4_096;
/// Bodies and headers that `show` keeps until it prints them, in bytes.
const SHOWN_BYTES_AT_MOST: usize = 64 << 20;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq list
  vote-aggregator dlq list --reason malformed --max 0
  vote-aggregator dlq list --sqlstate 23 --law law-001
  vote-aggregator dlq list --json --max 0 | jq -r .reason | sort | uniq -c

The summary is about all messages that match, also those beyond --max. Reasons are the decoder's
(properties, not_json, missing_field, ...: malformed for all of them), the SQLSTATE of a vote that
PostgreSQL refused (refused; odd for a header that is no SQLSTATE), and RabbitMQ's for valid votes: rejected, delivery_limit, expired,
maxlen. Behind a decoder's reason stands what the first bytes or the names of the fields say: gzip,
UTF-16, an envelope of MassTransit. Bodies are neither kept nor shown.")]
pub(super) struct List {
    #[command(flatten)]
    meant: Meant,
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
  vote-aggregator dlq show --hash 4f2a... --reveal     with the citizen: for confidential eyes only
  vote-aggregator dlq show --json --max 0 | jq .

Of a body the values of vote_hash, law_id, choice and timestamp are shown, all others are ***, and
so is a citizen_id that stands anywhere else; a body that is no JSON is not shown at all, nor are the
message_id, correlation_id and reply_to beside it. --reveal shows everything as it is, with control
characters escaped. Who sent it: user_id (RabbitMQ has checked it), app_id, and the headers.")]
pub(super) struct Show {
    #[command(flatten)]
    meant: Meant,
    /// Messages to show at most; 0 for all
    #[arg(long, value_name = "N", default_value_t = 10)]
    max: u64,
    /// Show bodies and headers as they are: they tell who voted what
    #[arg(long)]
    reveal: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(config: &Config, arguments: &List) -> Result<bool, Failed> {
    let List { meant, max, json } = arguments;
    let filter = meant.filter();
    let selection = everything(config, &filter, None);
    let mut queue = open(config, meant.hold).await?;
    let bar = bar("reading", queue.depth());
    let (mut rows, mut advice) = (Vec::new(), BTreeMap::new());
    let tally = dlq::scan(&mut queue, &selection, |letter, examined, verdict| {
        bar.set_position(letter.tag);
        if verdict != Verdict::Taken {
            return;
        }
        if !json {
            advice.entry(examined.why.label()).or_insert_with(|| examined.why.advice());
        }
        if limit(*max).is_none_or(|max| (rows.len() as u64) < max) {
            rows.push((letter.tag, examined));
        }
    });
    let tally = tally.await?;
    let given_back = queue.finish().await?;
    bar.finish_and_clear();
    tell_end(&tally);
    tell_copies(given_back);
    if *json {
        let objects = rows.iter().map(|(number, examined)| object(*number, examined).into());
        output::print(json_lines(objects))?;
        return Ok(true);
    }
    let queue = &config.rabbitmq.dead_letter_queue;
    if tally.matched == 0 {
        output::print(nothing(&tally, queue))?;
        return Ok(true);
    }
    output::print(format!(
        "{}\n\n{}\n\nshowing {} of {} messages that match; {} are in {queue}\n",
        table(&rows),
        summary(&tally, &advice),
        HumanCount(rows.len() as u64),
        HumanCount(tally.matched),
        HumanCount(tally.depth)
    ))?;
    Ok(true)
}

/// One object a line.
fn json_lines(objects: impl Iterator<Item = Value>) -> String {
    objects.map(|object| json_line(&object.to_string()) + "\n").collect()
}

fn nothing(tally: &Tally, queue: &str) -> String {
    match tally.depth {
        0 => format!("{queue} is empty\n"),
        depth => format!("none of the {} messages in {queue} matches\n", HumanCount(depth)),
    }
}

fn table(rows: &[(u64, Examined)]) -> Table {
    let rows = rows.iter().map(|(number, examined)| {
        let text = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
        [
            number.to_string(),
            text(&examined.vote_hash),
            text(&examined.law_id),
            reason(&examined.why),
            text(&examined.when),
            examined.size.to_string(),
            examined.replays.to_string(),
        ]
    });
    let header = ["#", "vote_hash", "law", "reason", "when", "bytes", "replays"];
    output::table(header, rows, [0, 5, 6])
}

/// The reason, and what the message looks like.
fn reason(why: &Why) -> String {
    let label = printable(&why.label());
    why.detail().map_or_else(|| label.clone(), |detail| format!("{label}: {detail}"))
}

fn summary(tally: &Tally, advice: &BTreeMap<String, &'static str>) -> Table {
    let rows = tally.reasons.iter().map(|(label, count)| {
        let advice = advice.get(label).copied().unwrap_or_default();
        [printable(label), HumanCount(*count).to_string(), advice.to_owned()]
    });
    output::table(["reason", "messages", "what to do"], rows, [1])
}

fn object(number: u64, examined: &Examined) -> Map<String, Value> {
    let field = match &examined.why {
        Why::Malformed(rejection) => rejection.field,
        _ => None,
    };
    let object = json!({
        "number": number,
        "vote_hash": examined.vote_hash,
        "law_id": examined.law_id,
        "reason": examined.why.word(),
        "field": field,
        "detail": examined.why.detail(),
        "malformed": !examined.why.is_valid(),
        "sqlstate": examined.sqlstate,
        "x_death_reason": examined.deaths.first().map(|death| &death.reason),
        "dead_lettered_at": examined.when,
        "bytes": examined.size,
        "replays": examined.replays,
        "given_back": examined.given_back,
    });
    match object {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// One message, ready to be printed.
struct Seen {
    number: u64,
    examined: Examined,
    properties: Vec<(&'static str, Value)>,
    headers: Vec<(String, Value)>,
    body: Shown,
}

pub(super) async fn show(config: &Config, arguments: &Show) -> Result<bool, Failed> {
    let Show { meant, max, reveal, json } = arguments;
    let filter = meant.filter();
    let selection = everything(config, &filter, limit(*max));
    let mut queue = open(config, meant.hold).await?;
    let bar = bar("reading", queue.depth());
    let (mut seen, mut bytes, mut left_out) = (Vec::new(), 0, 0_u64);
    let tally = dlq::scan(&mut queue, &selection, |letter, examined, verdict| {
        bar.set_position(letter.tag);
        if verdict != Verdict::Taken {
            return;
        }
        bytes += letter.size();
        if bytes > SHOWN_BYTES_AT_MOST {
            left_out += 1;
            return;
        }
        seen.push(look(letter, examined, *reveal));
    });
    let tally = tally.await?;
    let given_back = queue.finish().await?;
    bar.finish_and_clear();
    tell_end(&tally);
    tell_copies(given_back);
    if left_out > 0 {
        output::note(format_args!(
            "{} more messages are too large to be shown together",
            HumanCount(left_out)
        ));
    }
    if *json {
        output::print(json_lines(seen.iter().map(whole_object)))?;
        return Ok(true);
    }
    output::print(match seen.is_empty() {
        true => nothing(&tally, &config.rabbitmq.dead_letter_queue),
        false => seen.iter().map(|seen| text(seen) + "\n").collect(),
    })?;
    Ok(true)
}

fn look(letter: &Letter, examined: Examined, reveal: bool) -> Seen {
    Seen {
        number: letter.tag,
        examined,
        properties: dlq::properties(letter, reveal),
        headers: dlq::headers(letter, reveal),
        body: dlq::show(&letter.body, reveal),
    }
}

fn whole_object(seen: &Seen) -> Value {
    let mut object = object(seen.number, &seen.examined);
    object.insert("why".to_owned(), seen.examined.why.told().into());
    object.insert("what_to_do".to_owned(), seen.examined.why.advice().into());
    let properties =
        seen.properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    object.insert("properties".to_owned(), Value::Object(properties.collect()));
    object.insert("headers".to_owned(), Value::Object(seen.headers.iter().cloned().collect()));
    let (name, body) = match &seen.body {
        Shown::Text(text) => ("body", text.clone()),
        Shown::Bytes(bytes) => ("body_base64", STANDARD.encode(bytes)),
        Shown::Hidden(why) => ("body_hidden", (*why).to_owned()),
    };
    object.insert(name.to_owned(), body.into());
    Value::Object(object)
}

fn text(seen: &Seen) -> String {
    let Seen { number, examined, properties, headers, body } = seen;
    let or_dash = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
    let mut lines = vec![
        format!("#{number}  vote_hash {}", or_dash(&examined.vote_hash)),
        format!("  law      {}", or_dash(&examined.law_id)),
        format!("  reason   {}", printable(&examined.why.label())),
        format!("  why      {}", printable(&examined.why.told())),
        format!("  to do    {}", examined.why.advice()),
        format!("  when     {}", or_dash(&examined.when)),
        format!(
            "  counts   {} bytes; put back by replay {} times; given back by readers {} times",
            examined.size, examined.replays, examined.given_back
        ),
    ];
    for death in &examined.deaths {
        let time = death.time.as_deref().unwrap_or("an unknown time");
        lines.push(format!(
            "  x-death  {} in {}, {} times, first at {}",
            printable(&death.reason),
            printable(&death.queue),
            death.count,
            printable(time)
        ));
    }
    for (name, value) in properties {
        lines.push(format!("  property {name}: {}", printable(&value.to_string())));
    }
    for (name, value) in headers.iter().filter(|(name, _)| name != "x-death") {
        lines.push(format!("  header   {}: {}", printable(name), printable(&value.to_string())));
    }
    lines.push(match body {
        Shown::Text(text) => format!("  body     {}", printable(text)),
        Shown::Bytes(bytes) => format!("  body     {}", hex(bytes)),
        Shown::Hidden(why) => format!("  body     not shown: {why}; --reveal shows it"),
    });
    lines.join("\n") + "\n"
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("hex ");
    for byte in bytes.iter().take(HEX_AT_MOST) {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
    }
    if bytes.len() > HEX_AT_MOST {
        text.push_str("... (all of it with --json)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(body: &[u8], headers: Value, reveal: bool) -> Seen {
        let Value::Object(headers) = headers else { panic!("headers are an object") };
        let letter = Letter::new(body, headers.into_iter().collect());
        let examined = dlq::examine(&letter, 16_384);
        look(&letter, examined, reveal)
    }

    #[test]
    fn what_a_message_holds_is_never_obeyed_by_a_terminal() {
        let headers = json!({"x-death": [{"reason": "a\u{1b}[2J", "queue": "q\r\n"}],
                             "x-vote-hash": "\u{202e}h", "x\u{9b}1m": "\u{1b}]0;title\u{7}"});
        for (body, reveal) in
            [(&b"{\"a\":\"\x1b[2J\"}"[..], true), (b"\x1b\xff", true), (b"{}", false)]
        {
            let shown = text(&seen(body, headers.clone(), reveal));
            let obeyed = |c: char| c.is_control() && c != '\n';
            assert!(!shown.contains(obeyed) && !shown.contains('\u{202e}'), "{shown:?}");
            assert_eq!(shown.matches('\n').count(), shown.lines().count());
        }
    }

    #[test]
    fn a_body_that_cannot_be_masked_is_told_by_its_size() {
        let hidden = text(&seen(b"citizen-7 voted", json!({}), false));
        assert!(hidden.contains("15 bytes") && hidden.contains("--reveal"), "{hidden}");
        assert!(!hidden.contains("citizen-7"), "{hidden}");
        assert!(text(&seen(b"citizen-7 voted", json!({}), true)).contains("citizen-7 voted"));
        assert!(text(&seen(b"\xffab", json!({}), true)).contains("hex ff6162"));
        let object = whole_object(&seen(b"\xffab", json!({}), true));
        assert_eq!(object["body_base64"], "/2Fi");
    }
}
