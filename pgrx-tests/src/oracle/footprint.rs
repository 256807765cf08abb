//! Everything on a server that a migration may make or change, to see that a
//! refused one touched nothing and that an ended one left nothing.

use std::collections::BTreeSet;

use crate::cluster::{Rig, Server};
use crate::error::Result;

/// Objects that count; what belongs to the extension itself doesn't.
const OBJECTS: &str = "
SELECT 'slot ' || slot_name FROM pg_replication_slots
UNION ALL SELECT 'publication ' || pubname FROM pg_publication
UNION ALL SELECT 'published ' || pubname || ' ' || schemaname || '.' || tablename
    FROM pg_publication_tables WHERE schemaname <> 'reshard'
UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
UNION ALL SELECT 'trigger ' || tgname || ' on ' || tgrelid::regclass FROM pg_trigger
    WHERE NOT tgisinternal
UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger e WHERE NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
UNION ALL SELECT 'prepared ' || gid FROM pg_prepared_xacts
UNION ALL SELECT 'replica identity ' || relreplident::text || ' of ' || c.oid::regclass
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE relkind IN ('r', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
UNION ALL SELECT 'relation ' || c.oid::regclass || ' ' || relkind::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'reshard', 'pg_toast')
      AND nspname NOT LIKE 'pg_temp%' AND nspname NOT LIKE 'pg_toast_temp%'
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace n
    WHERE nspname NOT LIKE 'pg\\_%' AND NOT EXISTS (
        SELECT FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
        WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
      AND NOT (nspname = 'reshard' AND EXISTS (SELECT FROM pg_extension WHERE extname = 'reshard'))
UNION ALL SELECT 'function ' || p.oid::regprocedure FROM pg_proc p
    JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%'
    AND rolname NOT LIKE 'reshard%'
UNION ALL SELECT 'setting ' || setdatabase || ' ' || setrole || ' ' || setconfig::text
    FROM pg_db_role_setting
ORDER BY 1";

/// The objects of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Takes a server's.
    pub async fn of(server: &Server) -> Result<Footprint> {
        let objects = server.connect().await?.column(OBJECTS).await?;
        Ok(Footprint(objects.into_iter().collect()))
    }

    /// Of the source and of each shard.
    pub async fn of_rig(rig: &Rig) -> Result<Vec<Footprint>> {
        let mut all = Vec::new();
        for server in rig.servers() {
            all.push(Footprint::of(server).await?);
        }
        Ok(all)
    }

    /// What came (`+`) and what went (`-`) since `before`.
    pub fn since(&self, before: &Footprint) -> Vec<String> {
        let came = self.0.difference(&before.0).map(|text| format!("+ {text}"));
        let went = before.0.difference(&self.0).map(|text| format!("- {text}"));
        came.chain(went).collect()
    }
}

/// Objects on a server that can only be a migration's own: none may outlive it.
/// On the source the extension's own schema, and the fence where `fenced`, stay.
pub async fn helper_objects(server: &Server, fenced: bool) -> Result<Vec<String>> {
    let fence = match fenced {
        true => "false",
        false => "true",
    };
    let query = format!(
        "SELECT 'slot ' || slot_name FROM pg_replication_slots
         UNION ALL SELECT 'publication ' || pubname FROM pg_publication WHERE pubname LIKE '%reshard%'
         UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
         UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
         UNION ALL SELECT 'trigger ' || tgname || ' on ' || tgrelid::regclass FROM pg_trigger
             WHERE {fence} AND NOT tgisinternal
               AND (tgname LIKE '%reshard%' OR tgfoid::regprocedure::text LIKE '%reshard%')
         UNION ALL SELECT 'schema reshard' FROM pg_namespace WHERE nspname = 'reshard'
             AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'reshard')
         ORDER BY 1"
    );
    server.connect().await?.column(&query).await
}
