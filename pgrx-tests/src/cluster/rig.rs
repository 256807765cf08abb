//! A source and its shards.

use std::path::Path;
use std::sync::Arc;

use super::account::Account;
use super::installation::Installation;
use super::lease::{Share, Turn};
use super::scratch::Scratch;
use super::server::{Server, ServerOptions};
use crate::error::{Error, Result};
use crate::placement::Placement;

/// Database that is moved, on every server.
pub const DATABASE: &str = "app";
/// Password of role `postgres` on every server; must never be seen anywhere.
pub const PASSWORD: &str = "Zx9-never-shown-4711";

/// How a rig is set up.
#[derive(Debug, Clone)]
pub struct RigOptions {
    /// Number of shards.
    pub shards: usize,
    /// Number of shards that the source cluster has.
    pub sources: usize,
    /// Settings of the source beside the usual ones.
    pub source_settings: Vec<(String, String)>,
    /// Settings of each shard beside the usual ones.
    pub shard_settings: Vec<(String, String)>,
    /// Whether the source loads the extension's library at its start.
    pub preload: bool,
    /// How the application's rows are placed on the source's shards.
    pub source_placement: Placement,
    /// How the application's rows are placed on the shards.
    pub placement: Placement,
    /// Whether the source's shards are the first ones of the destination as well.
    pub staying: bool,
    /// How this rig shares the machine with others.
    pub share: Share,
}

impl RigOptions {
    /// A source with the library preloaded and `shards` plain servers.
    pub fn new(shards: usize) -> Self {
        RigOptions {
            shards,
            sources: 1,
            source_settings: Vec::new(),
            shard_settings: Vec::new(),
            preload: true,
            source_placement: Placement::Hash,
            placement: Placement::Hash,
            staying: false,
            share: Share::Turn,
        }
    }

    /// On a machine without other rigs.
    pub fn alone(mut self) -> Self {
        self.share = Share::Alone;
        self
    }

    /// A source whose shards stay, and so many that join them.
    pub fn staying(sources: usize, joining: usize) -> Self {
        RigOptions { staying: true, ..RigOptions::several(sources, joining) }
    }

    /// A source of several shards, each with the library preloaded.
    pub fn several(sources: usize, shards: usize) -> Self {
        RigOptions { sources, ..RigOptions::new(shards) }
    }

    /// Plain PostgreSQL everywhere.
    pub fn plain(shards: usize) -> Self {
        RigOptions { preload: false, ..RigOptions::new(shards) }
    }

    /// Places rows in other ways than by hash.
    pub fn placed(mut self, source: Placement, shards: Placement) -> Self {
        (self.source_placement, self.placement) = (source, shards);
        self
    }

    /// Adds a setting of the source.
    pub fn source(mut self, name: &str, value: &str) -> Self {
        self.source_settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a setting of each shard.
    pub fn shard(mut self, name: &str, value: &str) -> Self {
        self.shard_settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A source and its shards, each a server of its own. Fields are dropped in
/// order: the servers end before their folder goes.
#[derive(Debug)]
pub struct Rig {
    /// The server that data is moved from, and that migrations are started on: the
    /// last shard of the source cluster.
    pub source: Server,
    /// The other shards of the source cluster, by number.
    pub nodes: Vec<Server>,
    /// The servers that data is moved to, by shard number; where the source's shards stay,
    /// those that join them.
    pub shards: Vec<Server>,
    /// Whether the source's shards are the first ones of the destination as well.
    pub staying: bool,
    /// How the application's rows are placed on the source's shards.
    pub source_placement: Placement,
    /// How the application's rows are placed on the shards.
    pub placement: Placement,
    scratch: Scratch,
    account: Account,
    installation: Arc<Installation>,
    shard_options: ServerOptions,
    _turn: Turn,
}

impl Rig {
    /// Starts all servers, in parallel.
    pub async fn start(options: RigOptions) -> Result<Rig> {
        let turn = Turn::take(options.share).await?;
        tokio::task::spawn_blocking(move || Rig::start_servers(options, turn))
            .await
            .map_err(|error| Error::Unexpected(format!("starting a rig: {error}")))?
    }

    fn start_servers(options: RigOptions, turn: Turn) -> Result<Rig> {
        let account = Account::find()?;
        let installation = Arc::new(Installation::find()?);
        if options.preload && !installation.has_reshard() {
            return Err(Error::Unexpected(
                "the extension is not installed; run \"make install\" first".to_owned(),
            ));
        }
        let scratch = Scratch::create(account)?;
        let mut source_options = ServerOptions { settings: options.source_settings.clone() };
        if options.preload {
            let preload = ("shared_preload_libraries".to_owned(), "reshard".to_owned());
            source_options.settings.insert(0, preload);
        }
        let shard_options = ServerOptions { settings: options.shard_settings.clone() };
        let others = options.sources.saturating_sub(1);
        let mut plan = vec![("source".to_owned(), &source_options)];
        plan.extend((0..others).map(|number| (format!("node{number}"), &source_options)));
        plan.extend((0..options.shards).map(|number| (format!("shard{number}"), &shard_options)));
        let mut servers = create_all(&plan, scratch.path(), account, &installation)?;
        let source = servers.remove(0);
        let shards = servers.split_off(others);
        Ok(Rig {
            source,
            nodes: servers,
            shards,
            staying: options.staying,
            source_placement: options.source_placement,
            placement: options.placement,
            scratch,
            account,
            installation,
            shard_options,
            _turn: turn,
        })
    }

    /// The shards of the source cluster, by number.
    pub fn sources(&self) -> Vec<&Server> {
        self.nodes.iter().chain([&self.source]).collect()
    }

    /// The shards of the destination cluster, by number.
    pub fn destination(&self) -> Vec<&Server> {
        let staying = if self.staying { self.sources() } else { Vec::new() };
        staying.into_iter().chain(&self.shards).collect()
    }

    /// The source, its other shards, then the shards.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.source).chain(&self.nodes).chain(&self.shards)
    }

    /// Starts one more server, set up as the shards are, in the rig's folder. Blocks.
    pub fn add_server(&self, name: &str) -> Result<Server> {
        let installation = Arc::clone(&self.installation);
        Server::create(name, self.scratch.path(), self.account, installation, &self.shard_options)
    }

    /// The account that its servers run under.
    pub(super) fn account(&self) -> Account {
        self.account
    }

    /// The folder that holds all of it.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }
}

fn create_all(
    plan: &[(String, &ServerOptions)],
    folder: &Path,
    account: Account,
    installation: &Arc<Installation>,
) -> Result<Vec<Server>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = plan
            .iter()
            .map(|(name, options)| {
                let installation = Arc::clone(installation);
                scope.spawn(move || Server::create(name, folder, account, installation, options))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(Error::Unexpected("starting a server panicked".to_owned()))
                })
            })
            .collect()
    })
}
