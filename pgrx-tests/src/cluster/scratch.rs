//! The folder that a rig lives in, and its removal in every case.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::account::Account;
use crate::error::{Error, Result};

/// A folder under /tmp that its servers' account can reach; removed on drop,
/// unless `RESHARD_KEEP=1`.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

const PREFIX: &str = "reshard-rig-";
const LOCK: &str = "lock";
const KEEP: &str = "keep";

impl Scratch {
    pub(super) fn create(account: Account) -> Result<Scratch> {
        sweep();
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("{PREFIX}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).map_err(Error::io(format!("make folder {}", path.display())))?;
        let lock = File::create(path.join(LOCK)).map_err(Error::io("make a lock file"))?;
        lock.lock().map_err(Error::io("lock a new file"))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o755))
            .map_err(Error::io("open the folder"))?;
        account.own(&path)?;
        if keep() {
            File::create(path.join(KEEP)).map_err(Error::io("mark the folder as kept"))?;
        }
        Ok(Scratch { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match keep() {
            true => eprintln!("kept {}", self.path.display()),
            false => drop(std::fs::remove_dir_all(&self.path)),
        }
    }
}

pub(super) fn keep() -> bool {
    std::env::var("RESHARD_KEEP").is_ok_and(|value| value == "1")
}

/// Ends servers and removes folders of test processes that were killed. Whoever
/// lives still holds the lock of its folder.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let ours =
            folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !ours || folder.join(KEEP).exists() {
            continue;
        }
        let orphaned = File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if orphaned {
            end_servers(&folder);
            drop(std::fs::remove_dir_all(&folder));
        }
    }
}

fn end_servers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(file) = std::fs::read_to_string(entry.path().join("data/postmaster.pid")) else {
            continue;
        };
        let pid = file.lines().next().and_then(|line| line.parse::<u32>().ok());
        if let Some(pid) = pid {
            let command_line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            let same = command_line.is_ok_and(|line| line.contains(&*folder.to_string_lossy()));
            if same {
                drop(signal("QUIT", pid));
            }
        }
    }
}

/// Sends a signal to one process of ours.
pub(super) fn signal(name: &str, pid: u32) -> Result<()> {
    super::installation::run(Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")))
}
