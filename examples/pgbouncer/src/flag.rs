//! The cutover flag: read on the coordinator, or on the shards while that is away.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::{Config, Error};

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Pause before a server that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// A row of `reshard.traffic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The cluster that takes the writes.
    pub active: String,
    /// New transactions are to wait.
    pub paused: bool,
    /// Grows with every switch.
    pub epoch: i64,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A flag that is not outdated.
    Flag(Flag),
    /// The coordinator has none: nothing was started yet, or all is over.
    NoFlag,
    /// Nobody who answers knows one that is not outdated.
    Unknown,
}

/// A server that knows the flag.
struct Server {
    conninfo: String,
    client: Option<Client>,
    not_before: Instant,
}

impl Server {
    fn new(conninfo: &str) -> Self {
        Server { conninfo: conninfo.to_owned(), client: None, not_before: Instant::now() }
    }

    async fn client(&mut self) -> Result<&Client, Error> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            if self.not_before > Instant::now() {
                return Err(Error::Away);
            }
            self.not_before = Instant::now() + RETRY;
            self.client = Some(connect(&self.conninfo).await?);
        }
        self.client.as_ref().ok_or(Error::Away)
    }

    async fn read(&mut self, name: &str) -> Result<Option<Flag>, Error> {
        let asked = async {
            let row = self
                .client()
                .await?
                .query_opt(
                    "SELECT active_cluster, state = 'paused', epoch FROM reshard.traffic WHERE name = $1",
                    &[&name],
                )
                .await;
            let row = match row {
                // Without the extension there is no flag either.
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => None,
                row => row?,
            };
            let Some(row) = row else { return Ok(None) };
            Ok(Some(Flag {
                active: row.try_get(0)?,
                paused: row.try_get(1)?,
                epoch: row.try_get(2)?,
            }))
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.client = None;
                Err(Error::Away)
            }
        }
    }
}

/// Opens a connection that ends with its client.
pub async fn connect(conninfo: &str) -> Result<Client, Error> {
    let mut config: tokio_postgres::Config = conninfo.parse()?;
    config.connect_timeout(ANSWER).application_name("reshard-pgbouncer");
    let (client, connection) = config.connect(NoTls).await?;
    // The client's calls report the same error.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// All servers that know the flag.
pub struct Flags {
    name: String,
    coordinator: Server,
    shards: Vec<Server>,
    epoch: i64,
}

impl Flags {
    /// Nothing is opened yet.
    pub fn new(config: &Config) -> Self {
        Flags {
            name: config.traffic.clone(),
            coordinator: Server::new(config.coordinator()),
            shards: config.shards().map(Server::new).collect(),
            epoch: 0,
        }
    }

    /// The flag as the coordinator has it, or the one of the highest epoch that a shard
    /// has.
    pub async fn read(&mut self) -> Seen {
        let best = match self.coordinator.read(&self.name).await {
            Ok(Some(flag)) => Some(flag),
            Ok(None) => return Seen::NoFlag,
            Err(_) => self.highest().await,
        };
        match best.filter(|flag| flag.epoch >= self.epoch) {
            Some(flag) => {
                self.epoch = flag.epoch;
                Seen::Flag(flag)
            }
            None => Seen::Unknown,
        }
    }

    async fn highest(&mut self) -> Option<Flag> {
        let mut best: Option<Flag> = None;
        for shard in &mut self.shards {
            if let Ok(Some(flag)) = shard.read(&self.name).await {
                if best.as_ref().is_none_or(|best| best.epoch < flag.epoch) {
                    best = Some(flag);
                }
            }
        }
        best
    }

    /// Tells the coordinator what this pooler obeys.
    pub async fn acknowledge(&mut self, pooler: &str, flag: &Flag) -> Result<(), Error> {
        let state = if flag.paused { "paused" } else { "open" };
        self.coordinator
            .client()
            .await?
            .execute("SELECT reshard_pooler_ack($1, $2, $3)", &[&pooler, &flag.epoch, &state])
            .await?;
        Ok(())
    }
}
