//! Files that commands write: replaced as a whole, and never through a link.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

/// The mode of a file that only its owner may read.
pub const PRIVATE: u32 = 0o600;
/// The mode of a file that everybody may read.
pub const READABLE: u32 = 0o644;

/// Replaces the file at `path`, or creates it, with this mode and, if one is given, this time of its last
/// change. On return it is on the disk; after an
/// error or a crash the file from before is still there, whole.
///
/// # Errors
/// Also when there is something other than a regular file at `path`: in a directory that others can
/// write to, a link could lead anywhere.
pub fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    modified: Option<SystemTime>,
) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            let reason = "it is a link, or not a regular file; name another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
        }
        _ => {}
    }
    let mut beside = path.as_os_str().to_owned();
    // A name that no other file has: one that exists is never removed.
    beside.push(format!(".{:08x}.new", fastrand::u32(..)));
    // O_EXCL follows no link.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let replaced = file
        .write_all(content)
        .and_then(|()| modified.map_or(Ok(()), |modified| file.set_modified(modified)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if let Err(error) = replaced {
        // The error above says more than one of the removal.
        fs::remove_file(&beside).ok();
        return Err(error);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
pub(in crate::operator) mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A directory that is removed at the end of a test.
    pub struct Directory(PathBuf);

    impl Directory {
        pub fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("votes-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }

        pub fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub fn write(&self, name: &str, text: &str) -> PathBuf {
            fs::write(self.path(name), text).expect("written");
            self.path(name)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn a_file_is_for_its_owner_alone_and_replaced_as_a_whole() {
        let directory = Directory::new("mode");
        let path = directory.path("report");
        let unrelated = directory.write("report.new", "precious");
        for content in ["first", "2nd"] {
            replace(&path, content.as_bytes(), PRIVATE, None).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), content);
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_to_string(&unrelated).expect("still there"), "precious");
        assert_eq!(
            fs::read_dir(&directory.0).expect("read").count(),
            2,
            "no temporary file is left"
        );
    }

    #[test]
    fn links_are_not_followed() {
        let directory = Directory::new("links");
        let (target, link) = (directory.write("target", "precious"), directory.path("link"));
        let (missing, dangling) = (directory.path("missing"), directory.path("dangling"));
        symlink(&target, &link).expect("a link");
        symlink(&missing, &dangling).expect("a link");
        for path in [link, dangling, PathBuf::from("/dev/null")] {
            assert!(replace(&path, b"x", PRIVATE, None).is_err(), "{}", path.display());
        }
        assert_eq!(fs::read_to_string(&target).expect("read"), "precious");
        assert!(!missing.exists());
    }
}
