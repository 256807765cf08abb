//! Compares what the servers hold with what they must hold.
//!
//! The schemas: what pg_dump says of each server, statement by statement ([`schema`]).
//! The rows, in two ways: against the clients' record of acknowledged writes, row by row
//! ([`record`]), and table by table between the source and the union of the
//! shards ([`tables`]).

mod footprint;
mod moved;
mod record;
mod schema;
mod tables;

pub use footprint::{helper_objects, Footprint};
pub use moved::compare_moved_when_quiet;
pub use record::{check_record, check_record_but, Verdict};
pub use schema::{dump, objects, run_script, same_schema};
pub use tables::{compare, compare_when_quiet, fingerprint, Difference};
