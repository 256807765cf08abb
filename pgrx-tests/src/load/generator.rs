//! Starts the clients and the poller, ends them, gathers what they did.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::Client;
use super::flag::{follow, Active, Flag, Switch};
use super::outcome::{ClientOutcome, Outcome};
use crate::cluster::{Rig, Server, DATABASE};
use crate::error::{Error, Result};
use crate::placement::Placement;
use crate::session::Session;
use crate::wait::{wait_for, Seen};

/// What clients run.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Clients that follow the flag.
    pub followers: u32,
    /// Clients that only know the source.
    pub direct: u32,
    /// Seed of all their choices.
    pub seed: u64,
    /// Mean pause between two transactions of a client.
    pub pace: Duration,
    /// Whether clients also read, now and then between two transactions.
    pub reads: bool,
    /// Whether followers write to omni tables while the source is active.
    pub omni: bool,
    /// A fixed route instead of the flag, for servers without the extension.
    pub fixed: Option<Active>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            followers: 8,
            direct: 0,
            seed: 1,
            pace: Duration::from_millis(10),
            reads: false,
            omni: true,
            fixed: None,
        }
    }
}

/// Where a server is reached.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    folder: PathBuf,
    port: u16,
}

impl Endpoint {
    fn of(server: &Server) -> Endpoint {
        Endpoint { folder: server.folder().to_owned(), port: server.port() }
    }

    pub(super) async fn connect(&self, name: &str) -> Result<Session> {
        Session::open_socket(&self.folder, self.port, "postgres", DATABASE, name).await
    }
}

/// All servers of a rig.
#[derive(Debug, Clone)]
pub(super) struct Endpoints {
    /// Where the flag is.
    pub(super) source: Endpoint,
    /// The shards of the source cluster.
    pub(super) sources: Vec<Endpoint>,
    pub(super) shards: Vec<Endpoint>,
    /// How rows are placed on `sources`, and on `shards`.
    pub(super) placements: [Placement; 2],
}

impl Endpoints {
    /// The shards of a cluster.
    pub(super) fn of(&self, active: Active) -> &[Endpoint] {
        match active {
            Active::Source => &self.sources,
            Active::Shards => &self.shards,
        }
    }

    /// The number of a tenant's shard in a cluster.
    pub(super) fn shard_of(&self, active: Active, tenant: i64) -> usize {
        let [source, shards] = &self.placements;
        let placement = match active {
            Active::Source => source,
            Active::Shards => shards,
        };
        placement.shard_of(tenant, self.of(active).len() as u64)
    }
}

/// Numbers of clients that don't follow the flag start here.
const DIRECT: u32 = 100;

/// Running clients. Dropped without [`Load::finish`], they just end.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    flag: watch::Receiver<Flag>,
    progress: Vec<watch::Receiver<u64>>,
    followers: usize,
    clients: Vec<JoinHandle<ClientOutcome>>,
    placements: [Placement; 2],
    poller: JoinHandle<Vec<Switch>>,
}

impl Load {
    /// Starts the clients against the tables of [`super::schema`].
    pub fn start(rig: &Rig, options: &LoadOptions) -> Load {
        let endpoints = Endpoints {
            source: Endpoint::of(&rig.source),
            sources: rig.sources().into_iter().map(Endpoint::of).collect(),
            shards: rig.destination().into_iter().map(Endpoint::of).collect(),
            placements: [rig.source_placement.clone(), rig.placement.clone()],
        };
        let (stop, stopped) = watch::channel(false);
        let begin = Flag { active: options.fixed.unwrap_or(Active::Source), ..Flag::BEGIN };
        let (publish, flag) = watch::channel(begin);
        let poller = match options.fixed {
            None => tokio::spawn(follow(endpoints.clone(), publish, stopped.clone())),
            Some(_) => tokio::spawn(async move {
                publish.closed().await;
                Vec::new()
            }),
        };
        let mut progress = Vec::new();
        let mut clients = Vec::new();
        let numbers = (1..=options.followers).chain(DIRECT + 1..=DIRECT + options.direct);
        for number in numbers {
            let (count, counted) = watch::channel(0);
            progress.push(counted);
            let client = Client::new(
                number,
                number <= DIRECT,
                options,
                endpoints.clone(),
                flag.clone(),
                stopped.clone(),
                count,
            );
            clients.push(tokio::spawn(client.run()));
        }
        let followers = options.followers as usize;
        let placements = endpoints.placements;
        Load { stop, flag, progress, followers, clients, placements, poller }
    }

    /// Acknowledged transactions so far.
    pub fn acknowledged(&self) -> u64 {
        self.progress.iter().map(|count| *count.borrow()).sum()
    }

    /// The flag as the clients see it.
    pub fn flag(&self) -> Flag {
        *self.flag.borrow()
    }

    /// Waits until each client has had `count` more transactions acknowledged.
    pub async fn each_acknowledged(&self, count: u64, deadline: Duration) -> Result<()> {
        self.first_acknowledged(self.progress.len(), count, deadline).await
    }

    /// The same without clients that don't follow the flag: those may be fenced.
    pub async fn each_acknowledged_by_followers(
        &self,
        count: u64,
        deadline: Duration,
    ) -> Result<()> {
        self.first_acknowledged(self.followers, count, deadline).await
    }

    async fn first_acknowledged(
        &self,
        clients: usize,
        count: u64,
        deadline: Duration,
    ) -> Result<()> {
        let begin: Vec<u64> = self.progress.iter().map(|count| *count.borrow()).collect();
        let what = format!("{count} transactions of each client");
        wait_for(deadline, what, || async {
            let slow = self
                .progress
                .iter()
                .zip(&begin)
                .take(clients)
                .position(|(now, before)| *now.borrow() < before + count);
            Ok(match slow {
                None => Seen::Done(()),
                Some(client) => Seen::NotYet(format!("client {client} is behind")),
            })
        })
        .await
    }

    /// Lets each client end its transaction, and gathers what all did.
    pub async fn finish(mut self) -> Result<Outcome> {
        self.stop.send_replace(true);
        let mut clients = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            let ended = tokio::time::timeout(Duration::from_secs(60), client).await;
            clients.push(ended.map_err(lost)?.map_err(lost)?);
        }
        let active = self.flag().active;
        drop(std::mem::replace(&mut self.flag, watch::channel(Flag::BEGIN).1));
        let poller = std::mem::replace(&mut self.poller, tokio::spawn(async { Vec::new() }));
        let switches = poller.await.map_err(lost)?;
        let placements = self.placements.clone();
        Ok(Outcome { clients, switches, active, placements })
    }
}

fn lost(error: impl std::fmt::Display) -> Error {
    Error::Unexpected(format!("a client of the load did not end: {error}"))
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for client in &self.clients {
            client.abort();
        }
        self.poller.abort();
    }
}
