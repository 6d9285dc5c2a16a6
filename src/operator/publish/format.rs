//! Recognises a file that is not one JSON object a line by its first bytes: each of its lines would
//! become a dead letter.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tokio::io::{self, AsyncReadExt};

use super::lines::{BOM, Input};

/// Bytes that are examined at most: a longer first line is published unexamined.
pub const HEAD: usize = 4_096;

/// A file in another format.
#[derive(Debug, thiserror::Error)]
#[error("{name} is {what}, and not one JSON object a line; nothing is published. {remedy}")]
pub struct Unsuitable {
    name: String,
    what: String,
    remedy: String,
}

/// Reads the first line that is not blank, at most [`HEAD`] bytes of it, and what arrives with it.
/// Waits for no more than that: the next line may take an hour.
///
/// # Errors
/// The error of a read.
pub async fn head(input: &mut Input) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    loop {
        let left = (HEAD - head.len()) as u64;
        let read = (&mut *input).take(left).read_buf(&mut head).await?;
        if read == 0 || head.len() >= HEAD || head.trim_ascii_start().contains(&b'\n') {
            return Ok(head);
        }
    }
}

/// Refuses a file that begins with `head` and is recognised as something else. `name` is for messages,
/// and `-` is standard input.
///
/// # Errors
/// [`Unsuitable`].
pub fn check(head: &[u8], name: &str) -> Result<(), Unsuitable> {
    let Some((what, command)) = binary(head).or_else(|| text(head)) else { return Ok(()) };
    let convert = match (name, command.as_str()) {
        ("-", "unzip -p") => "... | funzip".to_owned(),
        ("-", "tar -xOf") => "... | tar -xOf -".to_owned(),
        ("-", command) => format!("... | {command}"),
        (name, command) => format!("{command} {}", shell_quoted(name)),
    };
    let remedy = match command.is_empty() {
        true => "Export it as one JSON object a line".to_owned(),
        false => format!("Convert it: {convert} | vote-aggregator publish --file -"),
    };
    let name = if name == "-" { "standard input" } else { name };
    Err(Unsuitable { name: name.to_owned(), what, remedy })
}

/// What a file is, and the command that converts it; empty where there is none.
type Format = (String, String);

fn recognised(what: &str, command: &str) -> Option<Format> {
    Some((what.to_owned(), command.to_owned()))
}

/// First bytes, their format, and the command that converts it.
const MAGIC: [(&[u8], &str, &str); 20] = [
    (b"\x1f\x8b", "compressed with gzip", "zcat"),
    (b"\x1f\x9d", "compressed with compress", "zcat"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstdcat"),
    (b"BZh", "compressed with bzip2", "bzcat"),
    (b"\xfd7zXZ\0", "compressed with xz", "xzcat"),
    (b"LZIP", "compressed with lzip", "lzip -dc"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "lz4cat"),
    (b"PK\x03\x04", "a zip archive, or a spreadsheet in one", "unzip -p"),
    (b"PK\x05\x06", "a zip archive, or a spreadsheet in one", "unzip -p"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so"),
    (b"\xd0\xcf\x11\xe0", "an Office document", ""),
    (b"PAR1", "a Parquet file", ""),
    (b"Obj\x01", "an Avro file", ""),
    (b"PGDMP", "a dump of PostgreSQL", ""),
    (b"%PDF", "a PDF document", ""),
    (b"SQLite format 3\0", "an SQLite database", ""),
    (b"\xff\xfe\0\0", "UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
];

fn binary(head: &[u8]) -> Option<Format> {
    if let Some((_, what, command)) = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return recognised(what, command);
    }
    match head {
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => recognised("compressed with zstd", "zstdcat"),
        _ if head.get(257..262) == Some(b"ustar") => recognised("a tar archive", "tar -xOf"),
        // By where the zero bytes are: JSON begins with ASCII.
        [b'\t'..=b'~', 0, 0, 0, ..] => recognised("UTF-32 text", "iconv -f UTF-32LE -t UTF-8"),
        [0, 0, 0, b'\t'..=b'~', ..] => recognised("UTF-32 text", "iconv -f UTF-32BE -t UTF-8"),
        [b'\t'..=b'~', 0, ..] => recognised("UTF-16 text", "iconv -f UTF-16LE -t UTF-8"),
        [0, b'\t'..=b'~', ..] => recognised("UTF-16 text", "iconv -f UTF-16BE -t UTF-8"),
        // Between braces it is a vote with a zero byte, whose line the service rejects.
        _ if head.contains(&0) && !head.trim_ascii_start().starts_with(b"{") => {
            recognised("binary data", "")
        }
        _ => None,
    }
}

fn text(head: &[u8]) -> Option<Format> {
    let head = head.strip_prefix(BOM).unwrap_or(head).trim_ascii_start();
    let (line, whole) = match head.iter().position(|&byte| byte == b'\n') {
        Some(end) => (head[..end].trim_ascii(), true),
        None => (head.trim_ascii(), head.len() < HEAD),
    };
    match line {
        [b'[', ..] => recognised("a JSON array", "jq -c '.[]'"),
        [0x1e, ..] => recognised("a JSON text sequence", r"sed 's/^\x1e//'"),
        [b'{', ..] if whole => object(line),
        [b'<', ..] => recognised("XML or HTML", ""),
        b"---" | [b'-', b' ', ..] => recognised("YAML", ""),
        _ if whole => separated(line),
        _ => None,
    }
}

/// Recognises a line that begins like an object and is not one, or not one vote.
fn object(line: &[u8]) -> Option<Format> {
    let mut values = serde_json::Deserializer::from_slice(line).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => match line[values.byte_offset()..].trim_ascii_start() {
            [] => wrapped(line),
            [b'{', ..] => recognised("JSON with several objects a line", "jq -c ."),
            [b','] => recognised("JSON with a comma after each object", "sed 's/,[[:space:]]*$//'"),
            _ => None,
        },
        // A vote that was cut off ends anywhere else.
        Some(Err(error)) if error.is_eof() && matches!(line, [.., b'{' | b'[' | b',' | b':']) => {
            recognised("JSON over several lines", "jq -c .")
        }
        _ => None,
    }
}

/// Recognises an object around votes, or around one.
fn wrapped(line: &[u8]) -> Option<Format> {
    let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    if object.contains_key("citizen_id") {
        return None;
    }
    if object.get("headers").is_some_and(Value::is_object)
        && (object.contains_key("body") || object.contains_key("body_base64"))
    {
        let what = "what `dlq purge --save` wrote, whose votes are texts in \"body\"";
        return recognised(what, "jq -r '.body // empty'");
    }
    let is_vote = |value: &Value| value.get("vote_hash").is_some();
    let plain = |key: &str| key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let mut fields = object.iter().filter(|(key, _)| plain(key));
    if let Some((key, _)) = fields.clone().find(|(_, value)| is_vote(value)) {
        return recognised(&format!("JSON with each vote in {key:?}"), &format!("jq -c '.{key}'"));
    }
    let (key, _) = fields.find(|(_, value)| value.get(0).is_some_and(is_vote))?;
    let what = format!("one JSON object with the votes in an array, {key:?}");
    recognised(&what, &format!("jq -c '.{key}[]'"))
}

/// Recognises columns with the same separator.
fn separated(line: &[u8]) -> Option<Format> {
    if serde_json::from_slice::<IgnoredAny>(line).is_ok() {
        return None;
    }
    let separators =
        [(b',', ""), (b';', "--ifs ';' "), (b'\t', "--ifs 'tab' "), (b'|', "--ifs '|' ")];
    // A vote has five fields; a sentence with a comma is not a table.
    let is_table = |separator| line.iter().filter(|byte| **byte == separator).count() >= 3;
    let (_, option) = separators.into_iter().find(|(separator, _)| is_table(*separator))?;
    let command = format!("mlr --icsv {option}--ojsonl -S cat");
    recognised("CSV, whose first line must name the fields (mlr is Miller)", &command)
}

fn shell_quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    match name.chars().all(plain) && !name.starts_with('-') {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const VOTE: &str = r#"{"vote_hash":"a","citizen_id":"c","law_id":"l","choice":"oui","timestamp":"2025-11-14T12:00:00Z","metadata":{"ip":"::1"}}"#;

    fn utf_16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    fn utf_32(text: &str, bytes: fn(u32) -> [u8; 4]) -> Vec<u8> {
        text.chars().flat_map(|c| bytes(c.into())).collect()
    }

    fn refused(head: &[u8]) -> String {
        let refused = check(head, "votes").expect_err(&format!("{:?}", head.escape_ascii()));
        refused.to_string()
    }

    #[test]
    fn other_formats_are_named_with_what_to_do() {
        let wrapped = |text: &str| text.replace("VOTE", VOTE);
        let marked = |mark: &str| format!("{mark}{VOTE}\n");
        for (head, what, command) in [
            (b"\x1f\x8b\x08\0".to_vec(), "gzip", "zcat votes |"),
            (b"\xfd7zXZ\0\0".to_vec(), "xz", "xzcat votes |"),
            (b"PK\x03\x04\x14".to_vec(), "zip", "unzip -p votes |"),
            (b"PAR1\x15".to_vec(), "Parquet", "Export"),
            (b"\x7fELF\0".to_vec(), "binary", "Export"),
            (utf_16(&marked("\u{feff}"), u16::to_le_bytes), "UTF-16", "iconv -f UTF-16 "),
            (utf_16(&marked("\u{feff}"), u16::to_be_bytes), "UTF-16", "iconv -f UTF-16 "),
            (utf_32(&marked("\u{feff}"), u32::to_le_bytes), "UTF-32", "iconv -f UTF-32 "),
            (utf_32(&marked("\u{feff}"), u32::to_be_bytes), "UTF-32", "iconv -f UTF-32 "),
            (utf_16(&marked(""), u16::to_le_bytes), "UTF-16", "iconv -f UTF-16LE "),
            (utf_16(&marked("\n"), u16::to_be_bytes), "UTF-16", "iconv -f UTF-16BE "),
            (utf_32(&marked(""), u32::to_le_bytes), "UTF-32", "iconv -f UTF-32LE "),
            (utf_32(&marked(""), u32::to_be_bytes), "UTF-32", "iconv -f UTF-32BE "),
            (wrapped("[VOTE,VOTE]").into(), "array", "jq -c '.[]' votes |"),
            (b"\xef\xbb\xbf \n[\n".to_vec(), "array", "jq -c '.[]'"),
            (b"{\n  \"vote_hash\": \"a\",\n".to_vec(), "several lines", "jq -c . votes |"),
            (wrapped("VOTE VOTE\n").into(), "several objects", "jq -c ."),
            (wrapped("VOTE,\nVOTE,\n").into(), "comma", "sed"),
            (wrapped("{\"id\":1,\"data\":VOTE}\n").into(), "\"data\"", "jq -c '.data' votes"),
            (wrapped("{\"votes\":[VOTE]}").into(), "\"votes\"", "jq -c '.votes[]'"),
            (b"{\"body\":\"{}\",\"headers\":{}}\n".to_vec(), "dlq purge", "jq -r '.body"),
            (b"vote_hash,citizen_id,law_id,choice,timestamp\n".to_vec(), "CSV", "mlr --icsv"),
            (b"\"a\";\"b\";\"c\";\"oui\"\n".to_vec(), "CSV", "--ifs ';'"),
            (b"a\tb\tc\toui\tnow\n".to_vec(), "CSV", "--ifs 'tab'"),
            (b"<?xml version=\"1.0\"?>\n".to_vec(), "XML", "Export"),
            (b"---\nvote_hash: a\n".to_vec(), "YAML", "Export"),
        ] {
            let message = refused(&head);
            assert!(message.contains(what) && message.contains(command), "{message}");
        }
        let mut tar = vec![b'x'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(refused(&tar).contains("tar -xOf votes |"));
    }

    #[test]
    fn votes_and_invalid_lines_are_published() {
        let long = format!("{{\"vote_hash\":{}", "\"a\",".repeat(HEAD));
        for head in [
            "",
            "\n \n",
            VOTE,
            "\u{feff}\n",
            "{}\n",
            "{\"vote_hash\":\"a\"}\n",
            "{\"vote_hash\":\"a\",\"cit\n",
            "{\"vote_hash\":\"a\0\"}\n",
            "not json\n",
            "dear all, this is not a vote\n",
            "\"one, two, three, four\"\n",
            "3\n",
            &long[..HEAD],
        ] {
            assert!(check(head.as_bytes(), "votes").is_ok(), "{head:?}");
        }
        assert!(check(format!("\u{feff}{VOTE}\n").as_bytes(), "votes").is_ok());
    }

    #[test]
    fn a_command_can_be_pasted() {
        let message = |name| check(b"\x1f\x8b\x08", name).expect_err("gzip").to_string();
        assert!(message("-").contains(": ... | zcat | vote-aggregator publish --file -"));
        assert!(message("-").starts_with("standard input is compressed with gzip"));
        assert!(message("a b").contains("zcat 'a b' |") && message("it's").contains(r"'it'\''s'"));
    }

    #[tokio::test]
    async fn of_a_stream_no_more_than_the_first_line_is_waited_for() {
        let endless = tokio::io::empty().chain(tokio::io::repeat(b'x'));
        let mut endless: Input = Box::new(endless);
        assert_eq!(head(&mut endless).await.expect("read").len(), HEAD);
        let (mut ours, theirs) = tokio::io::duplex(64);
        let mut theirs: Input = Box::new(theirs);
        tokio::io::AsyncWriteExt::write_all(&mut ours, b"\n{}\n").await.expect("written");
        assert_eq!(head(&mut theirs).await.expect("read"), b"\n{}\n");
        let mut short: Input = Box::new(Cursor::new(b"{}"));
        assert_eq!(head(&mut short).await.expect("read"), b"{}");
    }
}
