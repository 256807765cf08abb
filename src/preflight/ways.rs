//! Tries the ways between the servers, as replication will use them.
use futures::future::join_all;

use crate::cluster::Side;
use crate::error::Error;
use crate::preflight::facts::{Facts, Server, ServerState, Unreachable};
use crate::preflight::gather::Sessions;
use crate::preflight::staying;
use crate::remote::{self, replication, Connection, Endpoint, Purpose};

/// So many servers are tried from one session, one after the other: a session costs more
/// than to try one from it.
const WAYS_A_SESSION: usize = 4;

/// The nodes, by number, that don't let us in for replication: pg_hba.conf and walsenders.
pub(super) async fn refused(facts: &Facts<'_>) -> Vec<(usize, Error)> {
    if !facts.verb.has_flows() {
        return Vec::new();
    }
    let nodes = facts.servers.iter().enumerate().filter(|(_, server)| {
        server.side == Side::Source
            && matches!(&server.state,
                ServerState::Known(known) if known.used_senders < known.max_senders)
    });
    let tried = nodes.map(|(number, server)| async move {
        let tried = replication::connect(server.endpoint, Purpose::Preflight).await;
        Some((number, tried.err()?))
    });
    join_all(tried).await.into_iter().flatten().collect()
}

/// Lets the subscribers of a side connect to their publishers: from the sessions that there
/// are, and more of them where one has many ways to go.
pub(super) async fn unreachable(
    facts: &Facts<'_>,
    side: Side,
    sessions: &Sessions,
) -> Vec<Unreachable> {
    if !facts.verb.has_flows() {
        return Vec::new();
    }
    // Rows that move between shards that stay.
    let receive = side == Side::Source && staying::receive(facts);
    let known =
        facts.servers.iter().enumerate().filter_map(|(number, server)| match &server.state {
            ServerState::Known(known) => Some((number, server, known.version)),
            _ => None,
        });
    let tries = known.clone().filter(|(_, server, _)| server.side == side).filter_map(
        |(number, Server { endpoint, .. }, version)| {
            let publishers = known
                .clone()
                .filter(|(other, server, _)| server.side != side || receive && *other != number);
            let publishers = publishers.map(|(_, server, _)| server.endpoint).collect();
            let subscriber = Subscriber { endpoint, version, session: sessions.on(facts, number)? };
            Some(async move { subscriber.try_all(publishers).await })
        },
    );
    join_all(tries).await.into_iter().flatten().collect()
}

/// A server whose subscriptions have to connect to others.
struct Subscriber<'a> {
    endpoint: &'a Endpoint,
    version: i32,
    session: &'a Connection,
}

impl Subscriber<'_> {
    async fn try_all(&self, publishers: Vec<&Endpoint>) -> Vec<Unreachable> {
        let tries = publishers.chunks(WAYS_A_SESSION).enumerate().map(|(i, some)| async move {
            match i {
                0 => self.try_from(self.session, some).await,
                _ => self.try_anew(some).await,
            }
        });
        join_all(tries).await.into_iter().flatten().collect()
    }

    /// Tries them one after the other; once one can't be reached, which may have taken its
    /// time, the rest at once.
    async fn try_from(&self, session: &Connection, publishers: &[&Endpoint]) -> Vec<Unreachable> {
        let mut rest = publishers.iter();
        for publisher in &mut rest {
            if let Err(error) = remote::reach(session, self.version, self.endpoint, publisher).await
            {
                let mut found = vec![self.failed(publisher, error)];
                let others = rest.map(|publisher| self.try_anew(std::slice::from_ref(publisher)));
                found.extend(join_all(others).await.into_iter().flatten());
                return found;
            }
        }
        Vec::new()
    }

    /// Tries them from a session of their own.
    async fn try_anew(&self, publishers: &[&Endpoint]) -> Vec<Unreachable> {
        match remote::connect(self.endpoint, Purpose::Preflight).await {
            Ok(session) => Box::pin(self.try_from(&session, publishers)).await,
            Err(error) => publishers.iter().map(|to| self.failed(to, error.clone())).collect(),
        }
    }

    fn failed(&self, publisher: &Endpoint, error: Error) -> Unreachable {
        Unreachable { from: self.endpoint.clone(), to: publisher.clone(), error }
    }
}
