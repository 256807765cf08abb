//! A network between servers that can be cut: each server is reached through a port
//! that hands bytes on, or keeps them while the server at one end is cut off.
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

/// A server that can be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A shard of the source cluster.
    Node(usize),
    /// A shard of the destination.
    Shard(usize),
}

/// Ports in front of all servers of a rig.
#[derive(Debug)]
pub struct Network {
    /// The server that is cut off.
    cut: Arc<watch::Sender<Option<Place>>>,
    nodes: Vec<Gate>,
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
        let mut nodes = Vec::new();
        for (number, node) in rig.sources().into_iter().enumerate() {
            nodes.push(Gate::open(node, Place::Node(number), &cut).await?);
        }
        let mut shards = Vec::new();
        for (number, shard) in rig.shards.iter().enumerate() {
            shards.push(Gate::open(shard, Place::Shard(number), &cut).await?);
        }
        Ok(Network { cut, nodes, shards })
    }

    /// Cuts off one server: nothing gets to it, and none of its subscriptions to
    /// their publishers. Not for the server that the migration was started on.
    pub fn cut(&self, place: Place) {
        self.cut.send_replace(Some(place));
    }

    /// Puts everything together again.
    pub fn mend(&self) {
        self.cut.send_replace(None);
    }

    /// Connection strings of the source's shards, for the extension.
    pub fn nodes(&self) -> Vec<String> {
        self.nodes.iter().map(|gate| conninfo(gate.port)).collect()
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
        place: Place,
        cut: &Arc<watch::Sender<Option<Place>>>,
    ) -> Result<Gate> {
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.map_err(Error::io("open a port"))?;
        let port = listener.local_addr().map_err(Error::io("read a port"))?.port();
        let (to, cut) = (server.port(), Arc::clone(cut));
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, to, place, cut.subscribe()));
            }
        });
        Ok(Gate { port, listener })
    }
}

async fn serve(client: TcpStream, to: u16, place: Place, cut: watch::Receiver<Option<Place>>) {
    let (mut from_client, to_client) = client.into_split();
    let mut first = vec![0; 8192];
    let Ok(length) = from_client.read(&mut first).await else { return };
    first.truncate(length);
    let mut ends = vec![place];
    ends.extend(ends_of_subscription(&first).into_iter().flatten());
    let mut gate = cut.clone();
    if passes(&mut gate, &ends).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let (from_server, mut to_server) = server.into_split();
    if to_server.write_all(&first).await.is_err() {
        return;
    }
    tokio::select! {
        () = hand_on(from_client, to_server, &ends, cut.clone()) => {}
        () = hand_on(from_server, to_client, &ends, cut) => {}
    }
}

async fn hand_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    ends: &[Place],
    mut cut: watch::Receiver<Option<Place>>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(length) = from.read(&mut buffer).await else { return };
        if passes(&mut cut, ends).await.is_err() || length == 0 {
            return;
        }
        let Some(bytes) = buffer.get(..length) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

async fn passes(
    cut: &mut watch::Receiver<Option<Place>>,
    ends: &[Place],
) -> std::result::Result<(), watch::error::RecvError> {
    cut.wait_for(|cut| cut.is_none_or(|place| !ends.contains(&place))).await.map(drop)
}

/// A subscription connects under its own name, which ends with the numbers of the
/// two shards that it is between.
fn ends_of_subscription(startup: &[u8]) -> Option<[Place; 2]> {
    let text = String::from_utf8_lossy(startup);
    let name = text.split('\0').find(|field| field.starts_with("reshard_"))?;
    let (rest, shard) = name.rsplit_once("_d")?;
    let (_, node) = rest.rsplit_once("_s")?;
    Some([Place::Node(node.parse().ok()?), Place::Shard(shard.parse().ok()?)])
}
