//! Clients that write, follow the cutover flag or don't, and remember what was
//! acknowledged.
//!
//! Each client owns its rows, so that the state after its acknowledged
//! transactions is known exactly, whatever the others do. Each transaction also
//! writes a row of `journal`, so that the fate of one whose COMMIT was never
//! answered can be looked up.

mod client;
mod flag;
mod generator;
mod model;
mod outcome;
mod plan;
pub mod schema;

pub use flag::{Active, Flag, Switch};
pub use generator::{Load, LoadOptions};
pub use model::{Row, State, Table};
pub use outcome::{ClientOutcome, Counts, Outcome, Pause};
pub use plan::tenants;
