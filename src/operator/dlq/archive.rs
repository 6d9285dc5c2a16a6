//! The file that a purge writes: one JSON object a line, with everything that a message had.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::reason::Examined;
use crate::adapters::broker::DeadLetterMessage;

/// Why the archive could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct ArchiveError {
    path: PathBuf,
    source: std::io::Error,
}

/// Messages that are about to be removed.
pub struct PurgeArchive {
    path: PathBuf,
    file: BufWriter<File>,
}

impl PurgeArchive {
    /// Creates a new file that only its owner can read: it says who voted what.
    ///
    /// # Errors
    /// [`ArchiveError`], also when the file exists.
    pub async fn create(path: &Path) -> Result<Self, ArchiveError> {
        let failed = |source| ArchiveError { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(path).await.map_err(failed)?;
        // The directory's entry has to survive a crash as well.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new("."))).await.map_err(failed)?;
        directory.sync_all().await.map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    pub(super) async fn write(
        &mut self,
        message: &DeadLetterMessage,
        examined: &Examined,
    ) -> Result<(), ArchiveError> {
        let line = format!("{}\n", line(message, examined));
        self.file.write_all(line.as_bytes()).await.map_err(|source| self.failed(source))
    }

    /// Returns once everything written is on the disk.
    pub(super) async fn sync(&mut self) -> Result<(), ArchiveError> {
        self.file.flush().await.map_err(|source| self.failed(source))?;
        self.file.get_ref().sync_data().await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> ArchiveError {
        ArchiveError { path: self.path.clone(), source }
    }
}

fn line(message: &DeadLetterMessage, examined: &Examined) -> Value {
    let mut line = json!({
        "reason": examined.reason.label(),
        "vote_hash": examined.vote_hash,
        "law_id": examined.law_id,
        "detail": examined.reason.detail(),
        "dead_lettered_at": examined.when,
        "properties": message.plain_properties,
        "headers": message.headers,
    });
    match std::str::from_utf8(&message.body) {
        Ok(text) => line["body"] = text.into(),
        Err(_) => line["body_base64"] = STANDARD.encode(&message.body).into(),
    }
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::reason::examine;
    use super::*;

    #[test]
    fn a_line_holds_the_body_byte_for_byte() {
        for body in [&b"{\"a\": 1}\n\x00"[..], b"\xff\xfe", b""] {
            let message =
                DeadLetterMessage::new(body, BTreeMap::from([("own".to_owned(), json!([1]))]));
            let line = line(&message, &examine(&message, 100, None));
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
