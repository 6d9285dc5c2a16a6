//! A directory of one test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Authority;
use super::certificates::Identity;

/// An empty directory, removed with this value unless the test fails.
pub struct Files(PathBuf);

impl Files {
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{name}-{}-{number}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }

    /// What `script/services up --tls` takes: a server's identity, and who signs its clients.
    pub fn of_server(identity: &Identity, clients: &Authority) -> Self {
        let files = Self::new("server");
        files.write("server.pem", &identity.certificate);
        files.write("server.key", &identity.key);
        files.write("ca.pem", &clients.pem);
        files
    }

    /// The path of a file with this text.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::write(self.join(name), text).expect("written");
        self.file(name)
    }

    /// The path of a file in this directory.
    pub fn file(&self, name: &str) -> String {
        self.join(name).display().to_string()
    }

    /// As [`Files::file`].
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.0).ok();
        }
    }
}
