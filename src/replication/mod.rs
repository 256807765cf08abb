//! Replication by PostgreSQL's own means: replica identities, publications,
//! slots and subscriptions, in both directions, and how to be rid of them.
//!
//! Every step can be repeated: names follow from the migration's number, and
//! what is there already is left as it is.
pub mod adopt;
pub mod cleanup;
pub mod filter;
pub mod guard;
pub mod handoff;
pub mod health;
mod identity_index;
pub mod join;
pub mod locked;
pub mod marker;
pub mod monitor;
pub mod publication;
pub mod settle;
pub mod slot;
pub mod staying;
pub mod subscription;
pub mod trial;
