//! What a file is that is no file of votes, a JSON object a line, by its first bytes: each of its lines
//! would become a dead letter.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tokio::io::{self, AsyncReadExt};

use super::lines::{BOM, Input};

/// Bytes that are looked at, at most: a longer first line is published without a look at its shape.
pub const HEAD: usize = 4_096;

/// A file in another format.
#[derive(Debug, thiserror::Error)]
#[error("{name} is {what}, and not one JSON object a line; nothing is published. {remedy}")]
pub struct Unsuitable {
    name: String,
    what: String,
    remedy: String,
}

/// The first line that is not blank, as far as it goes into [`HEAD`] bytes; what was read with it comes
/// along. Waits for no more than that: a line may be all that there is for an hour.
///
/// # Errors
/// What reading ran into.
pub async fn head(input: &mut Input) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    loop {
        let room = (HEAD - head.len()) as u64;
        let read = (&mut *input).take(room).read_buf(&mut head).await?;
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
    let Some(Format { what, remedy }) = recognise(head) else {
        return Ok(());
    };
    let remedy = match remedy {
        Remedy::Pipe(doing, command) => {
            let from = match (name, command.as_str()) {
                ("-", "unzip -p") => "... | funzip".to_owned(),
                ("-", "tar -xOf") => "... | tar -xOf -".to_owned(),
                ("-", command) => format!("... | {command}"),
                (name, command) => format!("{command} {}", quoted(name)),
            };
            format!("{doing}: {from} | vote-aggregator publish --file -")
        }
        Remedy::Export => "Export it as one JSON object a line".to_owned(),
    };
    let name = if name == "-" { "standard input" } else { name };
    Err(Unsuitable { name: name.to_owned(), what, remedy })
}

struct Format {
    what: String,
    remedy: Remedy,
}

enum Remedy {
    /// What a command before the pipe does, and that command.
    Pipe(&'static str, String),
    Export,
}

fn pipe(what: &str, doing: &'static str, command: &str) -> Option<Format> {
    Some(Format { what: what.to_owned(), remedy: Remedy::Pipe(doing, command.to_owned()) })
}

fn export(what: &str) -> Option<Format> {
    Some(Format { what: what.to_owned(), remedy: Remedy::Export })
}

fn recognise(head: &[u8]) -> Option<Format> {
    binary(head).or_else(|| text(head))
}

fn binary(head: &[u8]) -> Option<Format> {
    let unpack = |what, command| pipe(what, "Unpack it on the way", command);
    let convert = |what, from: &str| {
        let command = format!("iconv -f {from} -t UTF-8");
        pipe(what, "Convert it on the way", &command)
    };
    match head {
        [0x1f, 0x8b, ..] => unpack("compressed with gzip", "zcat"),
        [0x1f, 0x9d, ..] => unpack("compressed with compress", "zcat"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            unpack("compressed with zstd", "zstdcat")
        }
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => unpack("compressed with bzip2", "bzcat"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unpack("compressed with xz", "xzcat"),
        [b'L', b'Z', b'I', b'P', ..] => unpack("compressed with lzip", "lzip -dc"),
        [0x04, 0x22, 0x4d, 0x18, ..] => unpack("compressed with lz4", "lz4cat"),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => {
            unpack("a zip archive, or a spreadsheet in one", "unzip -p")
        }
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => unpack("a 7z archive", "7z x -so"),
        _ if head.get(257..262) == Some(b"ustar") => unpack("a tar archive", "tar -xOf"),
        [0xd0, 0xcf, 0x11, 0xe0, ..] => export("an Office document"),
        [b'P', b'A', b'R', b'1', ..] => export("a Parquet file"),
        [b'O', b'b', b'j', 1, ..] => export("an Avro file"),
        [b'P', b'G', b'D', b'M', b'P', ..] => export("a dump of PostgreSQL"),
        [b'%', b'P', b'D', b'F', ..] => export("a PDF document"),
        _ if head.starts_with(b"SQLite format 3\0") => export("an SQLite database"),
        // With a byte order mark, and by where the zero bytes are: JSON begins with ASCII.
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => convert("UTF-32 text", "UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => convert("UTF-16 text", "UTF-16"),
        [b'\t'..=b'~', 0, 0, 0, ..] => convert("UTF-32 text", "UTF-32LE"),
        [0, 0, 0, b'\t'..=b'~', ..] => convert("UTF-32 text", "UTF-32BE"),
        [b'\t'..=b'~', 0, ..] => convert("UTF-16 text", "UTF-16LE"),
        [0, b'\t'..=b'~', ..] => convert("UTF-16 text", "UTF-16BE"),
        // Between braces it is a vote with a zero byte, whose line the service rejects.
        _ if head.contains(&0) && !head.trim_ascii_start().starts_with(b"{") => {
            export("binary data")
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
        [b'[', ..] => pipe("a JSON array", "Take it apart on the way", "jq -c '.[]'"),
        [0x1e, ..] => pipe("a JSON text sequence", "Convert it on the way", r"sed 's/^\x1e//'"),
        [b'{', ..] if whole => object(line),
        [b'<', ..] => export("XML or HTML"),
        b"---" | [b'-', b' ', ..] => export("YAML"),
        _ if whole => separated(line),
        _ => None,
    }
}

/// A line that begins as an object does, and is not one, or not one vote.
fn object(line: &[u8]) -> Option<Format> {
    let mut values = serde_json::Deserializer::from_slice(line).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => match line[values.byte_offset()..].trim_ascii_start() {
            [] => wrapped(line),
            [b'{', ..] => {
                let what = "JSON with several objects a line";
                pipe(what, "Give each a line on the way", "jq -c .")
            }
            [b','] => {
                let what = "JSON with a comma behind each object";
                pipe(what, "Take them away on the way", "sed 's/,[[:space:]]*$//'")
            }
            _ => None,
        },
        // A vote that was cut off ends anywhere else.
        Some(Err(error)) if error.is_eof() && matches!(line, [.., b'{' | b'[' | b',' | b':']) => {
            pipe("JSON over several lines", "Give each object a line on the way", "jq -c .")
        }
        _ => None,
    }
}

/// A whole object around votes, or around one.
fn wrapped(line: &[u8]) -> Option<Format> {
    let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    if object.contains_key("citizen_id") {
        return None;
    }
    let is_vote = |value: &Value| value.get("vote_hash").is_some();
    let plain = |key: &&String| key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let found = |holds: &dyn Fn(&Value) -> bool| {
        object.iter().find(|(_, value)| holds(value)).map(|(key, _)| key).filter(plain)
    };
    if object.get("headers").is_some_and(Value::is_object)
        && (object.contains_key("body") || object.contains_key("body_base64"))
    {
        let what = "what `dlq purge --save` wrote, whose votes are texts in \"body\"";
        return pipe(what, "Take them out on the way", "jq -r '.body // empty'");
    }
    if let Some(key) = found(&is_vote) {
        let what = format!("JSON with each vote within {key:?}");
        return pipe(&what, "Take them out on the way", &format!("jq -c '.{key}'"));
    }
    let key = found(&|value| value.get(0).is_some_and(is_vote))?;
    let what = format!("one JSON object with the votes in an array, {key:?}");
    pipe(&what, "Take it apart on the way", &format!("jq -c '.{key}[]'"))
}

/// Columns with the same separator, and no JSON.
fn separated(line: &[u8]) -> Option<Format> {
    if serde_json::from_slice::<IgnoredAny>(line).is_ok() {
        return None;
    }
    let columns = [(b',', ","), (b';', ";"), (b'\t', "tab"), (b'|', "|")];
    // As a vote has five fields; a sentence with a comma is no table.
    let (_, separator) = columns
        .into_iter()
        .find(|(separator, _)| line.iter().filter(|byte| *byte == separator).count() >= 3)?;
    let command = match separator {
        "," => "mlr --icsv --ojsonl -S cat".to_owned(),
        other => format!("mlr --icsv --ifs '{other}' --ojsonl -S cat"),
    };
    let doing = "With the names of the fields in its first line, Miller converts it on the way";
    pipe("CSV", doing, &command)
}

/// For a shell.
fn quoted(name: &str) -> String {
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
            (b"\x28\xb5\x2f\xfd\x04".to_vec(), "zstd", "zstdcat votes |"),
            (b"BZh91AY".to_vec(), "bzip2", "bzcat votes |"),
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
            (b"{ \"vote_hash\": \"a\",\r\n".to_vec(), "several lines", "jq -c ."),
            (wrapped("VOTE VOTE\n").into(), "several objects", "jq -c ."),
            (wrapped("VOTE\rVOTE\r").into(), "several objects", "jq -c ."),
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
            let told = refused(&head);
            assert!(told.contains(what) && told.contains(command), "{told}");
        }
        let mut tar = vec![b'x'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(refused(&tar).contains("tar -xOf votes |"));
    }

    #[test]
    fn votes_and_what_is_broken_in_its_own_way_are_published() {
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
            "dear all, this is no vote\n",
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
        let told = |name| check(b"\x1f\x8b\x08", name).expect_err("gzip").to_string();
        assert!(told("-").contains(": ... | zcat | vote-aggregator publish --file -"));
        assert!(told("-").starts_with("standard input is compressed with gzip"));
        assert!(told("a b").contains("zcat 'a b' |") && told("it's").contains(r"'it'\''s'"));
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
