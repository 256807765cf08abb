//! The cutover flag: read on the source, or on the shards while the source is away.

use std::time::{Duration, Instant};

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
                .await?;
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
    source: Server,
    shards: Vec<Server>,
    epoch: i64,
}

impl Flags {
    /// Nothing is opened yet.
    pub fn new(config: &Config) -> Self {
        Flags {
            name: config.traffic.clone(),
            source: Server::new(config.source()),
            shards: config.shards().map(Server::new).collect(),
            epoch: 0,
        }
    }

    /// The flag as the source has it, or the one of the highest epoch that a shard
    /// has. None where nobody knows one that is not outdated.
    pub async fn read(&mut self) -> Option<Flag> {
        let mut best = match self.source.read(&self.name).await {
            Ok(flag) => flag,
            Err(_) => {
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
        };
        best = best.filter(|flag| flag.epoch >= self.epoch);
        if let Some(flag) = &best {
            self.epoch = flag.epoch;
        }
        best
    }

    /// Tells the source what this pooler obeys.
    pub async fn acknowledge(&mut self, pooler: &str, flag: &Flag) -> Result<(), Error> {
        let state = if flag.paused { "paused" } else { "open" };
        self.source
            .client()
            .await?
            .execute("SELECT reshard_pooler_ack($1, $2, $3)", &[&pooler, &flag.epoch, &state])
            .await?;
        Ok(())
    }
}
