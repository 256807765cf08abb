//! PgBouncer: its console, and the file with its databases.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{fchown, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tokio::task::JoinHandle;

use crate::flag::connect;
use crate::{Config, Error};

/// A PgBouncer and what it was told last.
pub struct Bouncer {
    config: Config,
    /// The cluster that its databases lead to.
    pub cluster: Option<String>,
    pausing: Option<JoinHandle<Result<(), Error>>>,
    /// Clients wait.
    pub paused: bool,
}

impl Bouncer {
    /// Says nothing to it yet.
    pub fn new(config: &Config) -> Self {
        Bouncer { config: config.clone(), cluster: None, pausing: None, paused: false }
    }

    /// Has new transactions wait; true once the open ones have ended. To be called
    /// until it is.
    pub async fn pause(&mut self) -> Result<bool, Error> {
        if self.paused {
            return Ok(true);
        }
        let admin = &self.config.admin;
        let pausing = self.pausing.get_or_insert_with(|| {
            let admin = admin.clone();
            tokio::spawn(async move { console(&admin, "PAUSE").await })
        });
        if !pausing.is_finished() {
            return Ok(false);
        }
        let outcome = pausing.await;
        self.pausing = None;
        match outcome.map_err(|error| Error::Console(error.to_string()))? {
            // Someone paused it before: "already suspended/paused".
            Err(Error::Postgres(error))
                if error.as_db_error().is_some_and(|e| e.message().contains("already")) => {}
            outcome => outcome?,
        }
        self.paused = true;
        Ok(true)
    }

    /// Leads its databases to a cluster where nothing leads them anywhere yet. What was
    /// written before stays: the flag may be gone because all is over.
    pub async fn begin_with(&mut self, cluster: &str) -> Result<(), Error> {
        match std::fs::metadata(&self.config.databases) {
            Ok(file) if file.len() > 0 => Ok(()),
            _ => self.lead_to(cluster).await,
        }
    }

    /// Leads its databases to a cluster.
    pub async fn lead_to(&mut self, cluster: &str) -> Result<(), Error> {
        write(&self.config.databases, &self.config.databases(cluster)?)?;
        console(&self.config.admin, "RELOAD").await?;
        self.cluster = Some(cluster.to_owned());
        Ok(())
    }

    /// Lets clients go on, also those that wait for a pause to come about.
    pub async fn resume(&mut self) -> Result<(), Error> {
        match console(&self.config.admin, "RESUME").await {
            // It was not paused.
            Err(Error::Postgres(error)) if error.as_db_error().is_some() => {}
            outcome => outcome?,
        }
        if let Some(pausing) = self.pausing.take() {
            pausing.abort();
        }
        self.paused = false;
        Ok(())
    }

    /// Whether a pause is under way or complete.
    pub fn is_held(&self) -> bool {
        self.paused || self.pausing.is_some()
    }
}

/// One command, on a connection of its own: PAUSE keeps its connection busy.
async fn console(admin: &str, command: &str) -> Result<(), Error> {
    connect(admin).await?.simple_query(command).await?;
    Ok(())
}

/// Replaces the file as a whole: PgBouncer never reads half of it.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    replace(path, text).map_err(|error| Error::Config(format!("{}: {error}", path.display())))
}

/// There are passwords in it: only its owner may read it, or who could read the one before.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    match std::fs::metadata(path) {
        Ok(before) => take_after(&file, &before)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, path)
}

/// Gives a file the owner and the mode of another one.
fn take_after(file: &File, before: &std::fs::Metadata) -> std::io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
        fchown(file, Some(before.uid()), Some(before.gid()))?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(before.mode() & 0o777))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn passwords_are_for_the_owner_or_for_whom_the_file_was_opened_to() {
        let folder = std::env::temp_dir().join(format!("reshard-pgbouncer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("databases.ini");
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        write(&path, "one").unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        // One that was interrupted.
        std::fs::write(path.with_extension("new"), "half").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(mode(), 0o640);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
