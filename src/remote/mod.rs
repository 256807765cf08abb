//! Connections to other servers (and to this one, as a node among nodes):
//! connection strings, errors that name the shard and never the secret, retries.
pub mod blockers;
pub mod connection;
pub mod conninfo;
pub mod identity;
pub mod links;
pub mod needed;
pub mod partition_key;
pub mod quote;
pub mod reach;
pub mod replication;
mod socket;
mod tls;

pub use connection::{connect, end_sessions, Connection, Endpoint, Purpose};
pub use conninfo::Conninfo;
pub use links::Links;
pub use needed::Needed;
pub use reach::reach;
