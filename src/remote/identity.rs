//! Queries that tell which server, and which database of it, a connection has led to.

/// A server that runs. Clones of one share its system identifier, as does a standby; no two
/// of them start at once.
pub const SERVER: &str = "SELECT pg_catalog.concat_ws('/', c.system_identifier, \
     extract(epoch FROM pg_catalog.pg_postmaster_start_time()), \
     pg_catalog.current_setting('port')) FROM pg_catalog.pg_control_system() AS c";

/// A database, wherever its server runs: a standby that was promoted has the same one.
pub const DATABASE: &str = "SELECT pg_catalog.concat_ws('/', c.system_identifier, d.oid) \
     FROM pg_catalog.pg_control_system() AS c \
     JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()";
