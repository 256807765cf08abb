//! All scenarios, one module per subject; each test is named by the promise it checks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bounds;
mod bypass;
mod calls;
mod common;
mod copied_data;
mod copy;
mod cutover;
mod ddl;
mod ddl_phases;
mod faults;
mod filters;
mod flows;
mod full_disk;
mod harness;
mod key_columns;
mod load;
mod mistakes;
mod nodes;
mod placement;
mod pooler;
mod preflight;
mod restarts;
mod rows;
mod schema;
mod secrets;
mod sequences;
mod snapshots;
mod staying;
mod stop_and_cancel;
mod tls;
mod verify;
mod waves;
mod way_back;
mod whole_run;
