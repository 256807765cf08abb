//! Sorts the statements of a `pg_dump` into phases.
