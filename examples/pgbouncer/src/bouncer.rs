//! PgBouncer: its console, and the file with its databases.

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
    let failed = |error: std::io::Error| Error::Config(format!("{}: {error}", path.display()));
    let new = path.with_extension("new");
    std::fs::write(&new, text).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}
