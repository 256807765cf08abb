//! Clusters, their shards and the placement of rows. Pure: no call of the
//! server, so it is tested without one.
pub mod condition;
pub mod direction;
pub mod keymap;
pub mod placement;
pub mod rule;
pub mod staying;
pub mod topology;

pub use condition::KeySql;
pub use direction::{Direction, Side};
pub use keymap::KeyMap;
pub use placement::{Placement, ShardNo};
pub use rule::{Method, ShardingKey, ShardingRule};
pub use topology::Cluster;
