//! Things that test processes share: ports, and turns at the machine.
//!
//! Each is a file that its holder keeps locked. The system unlocks it when the
//! holder ends, however it ends, so a lease can't be left behind.

use std::fs::{File, OpenOptions, Permissions};
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Below the range that the system takes ports of outgoing connections from.
const PORTS: Range<u16> = 21_000..29_000;

/// Rigs that run at the same time on this machine, where `RESHARD_RIGS` says nothing else.
const RIGS: usize = 2;

/// A port of 127.0.0.1 that is ours while this lives.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    _lock: File,
}

impl Port {
    pub(super) fn take() -> Result<Port> {
        let begin = std::process::id() as u16 % 4_000;
        let offset = PORTS.start + begin;
        for number in (offset..PORTS.end).chain(PORTS.start..offset) {
            if let Some(lock) = try_lock(&format!("port-{number}"))? {
                if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                    return Ok(Port { number, _lock: lock });
                }
            }
        }
        Err(Error::Unexpected("no free port".to_owned()))
    }
}

/// How a rig shares the machine with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// It waits for its turn among them.
    Turn,
    /// It waits until it is alone: what it measures are times.
    Alone,
    /// It asks nobody.
    Unasked,
}

/// The right to use the machine's cores for one rig.
#[derive(Debug)]
pub(super) struct Turn {
    _locks: Vec<File>,
}

impl Turn {
    /// Waits for it; tests hold theirs for minutes, so this has no deadline.
    pub(super) async fn take(share: Share) -> Result<Turn> {
        let rigs =
            std::env::var("RESHARD_RIGS").ok().and_then(|value| value.parse().ok()).unwrap_or(RIGS);
        let mut locks = Vec::new();
        match share {
            Share::Turn => locks.push(one_of(0..rigs).await?),
            // In their order: two that want all of them never wait for one another.
            Share::Alone => {
                for number in 0..rigs {
                    locks.push(one_of(number..number + 1).await?);
                }
            }
            Share::Unasked => {}
        }
        Ok(Turn { _locks: locks })
    }
}

/// Waits for one of these turns to be free.
async fn one_of(numbers: Range<usize>) -> Result<File> {
    loop {
        for number in numbers.clone() {
            if let Some(lock) = try_lock(&format!("turn-{number}"))? {
                return Ok(lock);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn try_lock(name: &str) -> Result<Option<File>> {
    let folder = PathBuf::from("/tmp/reshard-locks");
    if !folder.exists() {
        std::fs::create_dir_all(&folder).map_err(Error::io("make the folder for locks"))?;
        std::fs::set_permissions(&folder, Permissions::from_mode(0o1777))
            .map_err(Error::io("open the folder for locks"))?;
    }
    let path = folder.join(name);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let Ok(file) = opened else {
        // Another account's lock file.
        return Ok(None);
    };
    Ok(file.try_lock().is_ok().then_some(file))
}
