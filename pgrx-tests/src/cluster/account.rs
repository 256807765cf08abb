//! The operating system account that servers run under: PostgreSQL refuses root.

use std::os::unix::fs::{chown, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};

/// Where servers run: as ourselves, or as `postgres` where we are root.
#[derive(Debug, Clone, Copy)]
pub(super) enum Account {
    Ourselves,
    Other { uid: u32, gid: u32 },
}

impl Account {
    pub(super) fn find() -> Result<Account> {
        let ours = std::fs::metadata("/proc/self")
            .map_err(Error::io("read the owner of this process"))?
            .uid();
        if ours != 0 {
            return Ok(Account::Ourselves);
        }
        let passwd =
            std::fs::read_to_string("/etc/passwd").map_err(Error::io("read /etc/passwd"))?;
        passwd
            .lines()
            .find_map(|line| {
                let mut fields = line.split(':');
                (fields.next()? == "postgres").then_some(())?;
                let uid = fields.nth(1)?.parse().ok()?;
                let gid = fields.next()?.parse().ok()?;
                Some(Account::Other { uid, gid })
            })
            .ok_or_else(|| {
                Error::Unexpected("no account \"postgres\" to run servers under".to_owned())
            })
    }

    /// Makes `command` run under this account.
    pub(super) fn apply(self, command: &mut Command) {
        if let Account::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Gives a file or folder to this account.
    pub(super) fn own(self, path: &Path) -> Result<()> {
        match self {
            Account::Ourselves => Ok(()),
            Account::Other { uid, gid } => chown(path, Some(uid), Some(gid))
                .map_err(Error::io(format!("change the owner of {}", path.display()))),
        }
    }
}
