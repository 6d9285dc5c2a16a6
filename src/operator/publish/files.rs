//! Files that commands write: replaced as a whole, and never through a link.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The mode of a file that only its owner may read.
pub const PRIVATE: u32 = 0o600;

/// Replaces the file at `path`, or creates it, with this mode. On return it is on the disk; after an
/// error or a crash the file from before is still there, whole.
///
/// # Errors
/// Also when there is something other than a regular file at `path`: in a directory that others can
/// write to, a link could lead anywhere.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
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
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A directory that is removed at the end of a test.
    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("vote-files-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
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
        let path = directory.0.join("report");
        for content in ["first", "2nd"] {
            replace(&path, content.as_bytes(), PRIVATE).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), content);
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&directory.0).expect("read").count(), 1, "nothing is left beside");
    }

    #[test]
    fn files_beside_it_are_left_alone() {
        let directory = Directory::new("beside");
        let path = directory.0.join("report");
        let unrelated = directory.0.join("report.new");
        fs::write(&unrelated, "precious").expect("written");
        replace(&path, b"x", PRIVATE).expect("written");
        assert_eq!(fs::read_to_string(&unrelated).expect("still there"), "precious");
        assert_eq!(fs::read_dir(&directory.0).expect("read").count(), 2);
    }

    #[test]
    fn links_are_not_followed() {
        let directory = Directory::new("links");
        let [target, link] = ["target", "link"].map(|name| directory.0.join(name));
        fs::write(&target, "precious").expect("written");
        symlink(&target, &link).expect("a link");
        assert!(replace(&link, b"x", PRIVATE).is_err());
        assert!(replace(Path::new("/dev/null"), b"x", PRIVATE).is_err());
        assert_eq!(fs::read_to_string(&target).expect("read"), "precious");
        // Dangling: it would be created somewhere else.
        let dangling = directory.0.join("dangling");
        symlink(directory.0.join("nowhere"), &dangling).expect("a link");
        assert!(replace(&dangling, b"x", PRIVATE).is_err());
        assert!(!directory.0.join("nowhere").exists());
    }
}
