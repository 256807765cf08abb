//! A network between servers that can be cut: each server is reached through a port
//! that hands bytes on, or keeps them while the shard at one end is cut off.
//!
//! Nothing is lost, as with TCP: what was sent meanwhile arrives when the network is
//! back. Connections made meanwhile get no answer.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::rig::{Rig, DATABASE, PASSWORD};
use super::server::Server;
use crate::error::{Error, Result};

/// Ports in front of all servers of a rig.
#[derive(Debug)]
pub struct Network {
    /// The shard that is cut off.
    cut: Arc<watch::Sender<Option<usize>>>,
    source: Gate,
    shards: Vec<Gate>,
}

#[derive(Debug)]
struct Gate {
    port: u16,
    listener: JoinHandle<()>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Network {
    /// Opens a port for each server.
    pub async fn before(rig: &Rig) -> Result<Network> {
        let cut = Arc::new(watch::channel(None).0);
        let source = Gate::open(&rig.source, None, &cut).await?;
        let mut shards = Vec::new();
        for (number, shard) in rig.shards.iter().enumerate() {
            shards.push(Gate::open(shard, Some(number), &cut).await?);
        }
        Ok(Network { cut, source, shards })
    }

    /// Cuts off one shard: nothing gets to it, and none of its subscriptions to the
    /// source.
    pub fn cut(&self, shard: usize) {
        self.cut.send_replace(Some(shard));
    }

    /// Puts everything together again.
    pub fn mend(&self) {
        self.cut.send_replace(None);
    }

    /// Connection string of the source, for the extension.
    pub fn source(&self) -> String {
        conninfo(self.source.port)
    }

    /// Connection strings of the shards.
    pub fn shards(&self) -> Vec<String> {
        self.shards.iter().map(|gate| conninfo(gate.port)).collect()
    }
}

fn conninfo(port: u16) -> String {
    format!("host=127.0.0.1 port={port} dbname={DATABASE} user=postgres password={PASSWORD}")
}

impl Gate {
    async fn open(
        server: &Server,
        shard: Option<usize>,
        cut: &Arc<watch::Sender<Option<usize>>>,
    ) -> Result<Gate> {
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.map_err(Error::io("open a port"))?;
        let port = listener.local_addr().map_err(Error::io("read a port"))?.port();
        let (to, cut) = (server.port(), Arc::clone(cut));
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, to, shard, cut.subscribe()));
            }
        });
        Ok(Gate { port, listener })
    }
}

async fn serve(
    client: TcpStream,
    to: u16,
    shard: Option<usize>,
    cut: watch::Receiver<Option<usize>>,
) {
    let (mut from_client, to_client) = client.into_split();
    let mut first = vec![0; 8192];
    let Ok(length) = from_client.read(&mut first).await else { return };
    first.truncate(length);
    let shard = shard.or_else(|| shard_of_subscription(&first));
    let mut gate = cut.clone();
    if passes(&mut gate, shard).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let (from_server, mut to_server) = server.into_split();
    if to_server.write_all(&first).await.is_err() {
        return;
    }
    tokio::select! {
        () = hand_on(from_client, to_server, shard, cut.clone()) => {}
        () = hand_on(from_server, to_client, shard, cut) => {}
    }
}

async fn hand_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shard: Option<usize>,
    mut cut: watch::Receiver<Option<usize>>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(length) = from.read(&mut buffer).await else { return };
        if passes(&mut cut, shard).await.is_err() || length == 0 {
            return;
        }
        let Some(bytes) = buffer.get(..length) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

async fn passes(
    cut: &mut watch::Receiver<Option<usize>>,
    shard: Option<usize>,
) -> std::result::Result<(), watch::error::RecvError> {
    match shard {
        None => Ok(()),
        Some(_) => cut.wait_for(|cut| *cut != shard).await.map(drop),
    }
}

/// A subscription connects under its own name, which ends with the shard's number.
fn shard_of_subscription(startup: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(startup);
    let name = text.split('\0').find(|field| field.starts_with("reshard_"))?;
    name.rsplit_once("_d")?.1.parse().ok()
}
