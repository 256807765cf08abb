//! Servers and groups of servers: each its own process, port and folder.

mod account;
mod disk;
mod installation;
mod lease;
mod network;
mod pooler;
pub mod process;
mod rig;
mod scratch;
mod server;
mod tls;

pub use disk::SmallDisk;
pub use installation::Installation;
pub use lease::Share;
pub use network::{Network, Place};
pub use pooler::{Pooler, POOLER};
pub use rig::{Rig, RigOptions, DATABASE, PASSWORD};
pub use scratch::Scratch;
pub use server::{Server, ServerOptions, Stop};
pub use tls::Authority;
