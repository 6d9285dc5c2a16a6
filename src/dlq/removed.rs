//! The file that a purge writes: one JSON object a line, with everything that a letter was.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::purge::PurgeError;
use super::why::Examined;
use crate::broker::Letter;

/// Letters on their way out.
pub struct Removed {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Removed {
    /// A new file that only its owner can read: it names who voted what.
    ///
    /// # Errors
    /// [`PurgeError::Save`], also when the file exists.
    pub async fn create(path: &Path) -> Result<Self, PurgeError> {
        let wrong = |source| save(path, source);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await;
        let file = file.map_err(wrong)?;
        // A file that its directory forgets is none.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new("."))).await.map_err(wrong)?;
        directory.sync_all().await.map_err(wrong)?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    pub(super) async fn write(
        &mut self,
        letter: &Letter,
        examined: &Examined,
    ) -> Result<(), PurgeError> {
        let line = format!("{}\n", line(letter, examined));
        self.file.write_all(line.as_bytes()).await.map_err(|source| save(&self.path, source))
    }

    /// On return what was written is on the disk.
    pub(super) async fn sync(&mut self) -> Result<(), PurgeError> {
        let wrong = |source| save(&self.path, source);
        self.file.flush().await.map_err(wrong)?;
        self.file.get_ref().sync_data().await.map_err(wrong)
    }
}

fn save(path: &Path, source: std::io::Error) -> PurgeError {
    PurgeError::Save { path: path.display().to_string(), source }
}

fn line(letter: &Letter, examined: &Examined) -> Value {
    let mut line = json!({
        "reason": examined.why.label(),
        "vote_hash": examined.vote_hash,
        "law_id": examined.law_id,
        "detail": examined.why.detail(),
        "dead_lettered_at": examined.when,
        "properties": letter.plain_properties,
        "headers": letter.headers,
    });
    match std::str::from_utf8(&letter.body) {
        Ok(text) => line["body"] = text.into(),
        Err(_) => line["body_base64"] = STANDARD.encode(&letter.body).into(),
    }
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::why::examine;
    use super::*;

    #[test]
    fn a_line_holds_the_body_byte_for_byte() {
        for body in [&b"{\"a\": 1}\n\x00"[..], b"\xff\xfe", b""] {
            let letter = Letter::new(body, BTreeMap::from([("own".to_owned(), json!([1]))]));
            let line = line(&letter, &examine(&letter, 100));
            let kept = match (line.get("body"), line.get("body_base64")) {
                (Some(Value::String(text)), None) => text.clone().into_bytes(),
                (None, Some(Value::String(text))) => STANDARD.decode(text).expect("base64"),
                other => panic!("{other:?}"),
            };
            assert_eq!(kept, body);
            assert_eq!(line["headers"], json!({"own": [1]}));
            assert!(!line.to_string().contains('\n'), "one line");
        }
    }
}
