//! The SQL functions, one file per family. Thin: they check what can be checked
//! at once, write an intent, and wake a worker for after the commit.
mod admin;
mod argument;
mod clone;
mod control;
mod ddl;
mod elsewhere;
mod foreseen;
mod mapping;
mod node;
mod placement;
mod pooler;
mod preflight;
mod redeclare;
mod shards;
mod start;
mod verify;
mod wait;
