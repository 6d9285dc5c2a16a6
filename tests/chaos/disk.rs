//! A disk that can be filled up: vote_audit lives in a tablespace on a small file system in
//! memory, whose size is set to what is in use. Without the right to mount one, a trigger raises
//! the same SQLSTATE, and the report says so.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::Result;
use crate::servers::Servers;

/// More than the votes of hours.
const SIZE: &str = "size=4g";
/// In /var/tmp, which any account can reach.
const PLACE: &str = "/var/tmp";
const PREFIX: &str = "vote-chaos-";

/// How out of disk is brought about.
pub enum Disk {
    Mount(PathBuf),
    /// Why there is no file system.
    Trigger(String),
}

impl Disk {
    /// Mounts the file system and creates the tablespace on it; settles for the trigger.
    pub async fn prepare(servers: &Servers) -> Self {
        unmount_left_behind().await;
        let place = Path::new(PLACE).join(format!("{PREFIX}{}", std::process::id()));
        match mount(servers, &place).await {
            Ok(()) => Self::Mount(place),
            Err(error) => {
                unmount(&place).await;
                Self::Trigger(error.to_string())
            }
        }
    }

    /// Puts vote_audit of a new database on it.
    pub async fn take_in(&self, servers: &Servers, database: &str) -> Result<()> {
        let statements = match self {
            Self::Mount(_) => {
                "ALTER TABLE vote_audit SET TABLESPACE chaos;
                 ALTER INDEX vote_audit_pkey SET TABLESPACE chaos;"
            }
            Self::Trigger(_) => {
                "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN RAISE SQLSTATE '53100' USING MESSAGE = 'no space left'; END $$;"
            }
        };
        servers.execute(database, statements).await
    }

    pub async fn fill(&self, servers: &Servers, database: &str) -> Result<()> {
        let Self::Mount(place) = self else {
            let create = "CREATE TRIGGER disk_full BEFORE INSERT ON vote_audit
                          EXECUTE FUNCTION disk_full()";
            return servers.execute(database, create).await;
        };
        // What was written between the look and the resize makes the size too small to be taken.
        let mut resized = Ok(());
        for slack in [0, 64, 256, 1024] {
            let used = run("df", &["--output=used", "-k", &place.to_string_lossy()]).await?;
            let used: u64 = used.lines().nth(1).unwrap_or_default().trim().parse()?;
            resized = resize(place, &format!("size={}k", used + slack)).await;
            if resized.is_ok() {
                break;
            }
        }
        resized
    }

    pub async fn clear(&self, servers: &Servers, database: &str) -> Result<()> {
        match self {
            Self::Mount(place) => resize(place, SIZE).await,
            Self::Trigger(_) => {
                servers.execute(database, "DROP TRIGGER IF EXISTS disk_full ON vote_audit").await
            }
        }
    }

    /// Removes the mount, once nothing uses it any more.
    pub async fn release(&self) {
        if let Self::Mount(place) = self {
            unmount(place).await;
        }
    }
}

async fn mount(servers: &Servers, place: &Path) -> Result<()> {
    let owner = servers.postgres_owner().await?;
    std::fs::create_dir(place)?;
    run("mount", &["-t", "tmpfs", "-o", SIZE, "vote-chaos", &place.to_string_lossy()]).await?;
    let space = place.join("space");
    std::fs::create_dir(&space)?;
    std::os::unix::fs::chown(&space, Some(owner), None)?;
    let create = format!("CREATE TABLESPACE chaos LOCATION '{}'", space.display());
    servers.execute(servers.get("POSTGRES_DB"), &create).await
}

async fn resize(place: &Path, size: &str) -> Result<()> {
    run("mount", &["-o", &format!("remount,{size}"), &place.to_string_lossy()]).await.map(drop)
}

/// Ignores errors: there may be no mount.
async fn unmount(place: &Path) {
    run("umount", &[&place.to_string_lossy()]).await.ok();
    std::fs::remove_dir(place).ok();
}

/// A run that was killed could not unmount.
async fn unmount_left_behind() {
    for entry in std::fs::read_dir(PLACE).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(run) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if !Path::new("/proc").join(run).exists() {
            unmount(&entry.path()).await;
        }
    }
}

async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", stderr.trim()).into())
}
