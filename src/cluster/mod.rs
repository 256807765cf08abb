//! Clusters, their shards and the placement of rows. Pure: no call of the
//! server, so it is tested without one.
pub mod direction;
pub mod placement;
pub mod rule;
pub mod topology;

pub use direction::{Direction, Side};
pub use placement::{Placement, ShardNo};
pub use rule::ShardingRule;
pub use topology::Cluster;
