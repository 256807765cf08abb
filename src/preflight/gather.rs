//! Reads the facts from every server, in read-only sessions, at the same time.
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde::de::DeserializeOwned;

use crate::cluster::{ShardingRule, Side};
use crate::error::{Error, Result};
use crate::preflight::facts::{
    Behind, Content, Existing, Facts, ForeignKey, ServerState, Table, Unreachable, Use,
};
use crate::preflight::{nodes, placement, programs, sample, strays};
use crate::remote::quote::{ident, qualified};
use crate::remote::{self, replication, Connection, Endpoint, Needed, Purpose};
use crate::state::options::SchemaScope;

/// Nothing is changed, nothing is waited for: a lock that the caller's own
/// transaction holds would be waited for in vain.
const SESSION: &str = "SET default_transaction_read_only = on; SET lock_timeout = '5s'";
/// How long one question may take, where nothing else is said.
pub(super) const TIMEOUT: &str = "SET statement_timeout = '30s'";
/// Tables that one question is about.
const TABLES_AT_ONCE: usize = 100;
/// How long rows are searched for that break a foreign key.
const FOREIGN_KEY_TIMEOUT: &str = "2s";
/// How long they are searched for in all of them.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fills in all that other servers know. What can't be read is a fact too.
pub async fn all(facts: &mut Facts<'_>) {
    let asked = join_all(facts.servers.iter().map(|server| ask(server.endpoint)));
    let (programs, sessions) = futures::join!(programs::look(facts.verb), asked);
    facts.programs = programs;
    let mut source = None;
    let mut others = Vec::new();
    let mut home = 0;
    let mut shards = Vec::new();
    for (i, (state, session)) in sessions.into_iter().enumerate() {
        let server = &mut facts.servers[i];
        server.state = state;
        let (side, endpoint) = (server.side, server.endpoint);
        let several = facts.source.size() > 1;
        let is_here = match &facts.servers[i].state {
            ServerState::Known(known) => facts.is_here(known),
            _ => false,
        };
        match side {
            Side::Source if !several || is_here => {
                source = session;
                home = i;
            }
            Side::Source => others.extend(session.map(|s| (endpoint.clone(), s))),
            Side::Destination => shards.extend(session.map(|s| (i, s))),
        }
    }
    if let Some(session) = &source {
        match content(facts, session).await {
            Ok(content) => facts.content = Some(content),
            Err(error) => fail(facts, home, error),
        }
    }
    if let (Some(session), Some(content), false) = (&source, &facts.content, others.is_empty()) {
        match nodes::gather(facts, content, session, &others).await {
            Ok(nodes) => facts.nodes = Some(nodes),
            Err(error) => fail(facts, home, error),
        }
    }
    if let Some(session) = &source {
        let others: Vec<(&Endpoint, &Connection)> = others.iter().map(|(e, s)| (e, s)).collect();
        match placement::gather(facts, session, &others).await {
            Ok(mapped) => facts.mapped = mapped,
            Err(error) => fail(facts, home, error),
        }
        let here = facts.servers[home].endpoint;
        let nodes: Vec<_> = std::iter::once((here, session)).chain(others).collect();
        match strays::gather(facts, &nodes).await {
            Ok(strays) => facts.strays = strays,
            Err(error) => fail(facts, home, error),
        }
    }
    let wanted = match wanted(facts) {
        Ok(wanted) => wanted,
        Err(error) => return fail(facts, home, error),
    };
    let token = facts.token.clone();
    let found = join_all(shards.iter().map(|(_, s)| existing(s, &wanted, &token))).await;
    for ((i, _), found) in shards.iter().zip(found) {
        match found {
            Ok(mut found) => {
                for relation in &mut found {
                    relation.published = facts.tables().any(|t| {
                        t.schema_name == relation.schema_name && t.table_name == relation.table_name
                    });
                }
                facts.servers[*i].existing = found;
            }
            Err(error) => fail(facts, *i, error),
        }
    }
    if let Some(session) = &source {
        if let Err(error) = definitions(facts, session).await {
            fail(facts, home, error);
        }
    }
    free_space(facts).await;
    if facts.verb.has_flows() {
        replication_connections(facts).await;
        ways_between(facts).await;
    }
}

/// Asks the shards' machines for their free space; some don't let us.
async fn free_space(facts: &mut Facts<'_>) {
    let asked = facts.servers.iter().map(|server| async move {
        match (&server.state, server.side) {
            (ServerState::Known(_), Side::Destination) => space_of(server.endpoint).await.ok(),
            _ => None,
        }
    });
    let free = join_all(asked).await;
    for (server, free) in facts.servers.iter_mut().zip(free) {
        server.free_bytes = free;
    }
}

/// Free bytes where a server's data is. A server's folder is that of its data.
async fn space_of(endpoint: &Endpoint) -> Result<i64> {
    let session = remote::connect(endpoint, Purpose::Preflight).await?;
    session
        .batch(
            "BEGIN; SET LOCAL statement_timeout = '5s'; \
             CREATE TEMPORARY TABLE reshard_space (line text) ON COMMIT DROP; \
             COPY pg_temp.reshard_space FROM PROGRAM 'df -P -k .'",
        )
        .await?;
    let bytes: i64 = session
        .value(
            "SELECT (regexp_match(line, '\\s\\d+\\s+\\d+\\s+(\\d+)\\s+\\d+%'))[1]::bigint * 1024 \
               FROM pg_temp.reshard_space WHERE line ~ '\\d%' LIMIT 1",
            &[],
        )
        .await?;
    session.batch("ROLLBACK").await?;
    Ok(bytes)
}

/// Lets the subscribers of both directions connect to their publishers.
async fn ways_between(facts: &mut Facts<'_>) {
    let known = |side| {
        let of = facts.servers.iter().filter(move |s| s.side == side);
        of.filter(|s| matches!(s.state, ServerState::Known(_))).map(|s| s.endpoint)
    };
    let pairs = known(Side::Source).flat_map(|node| {
        known(Side::Destination).flat_map(move |shard| [(shard, node), (node, shard)])
    });
    let tried = join_all(pairs.map(|(from, to)| async move {
        let error = remote::reach(from, to).await.err()?;
        Some(Unreachable { from: from.clone(), to: to.clone(), error })
    }))
    .await;
    facts.unreachable = tried.into_iter().flatten().collect();
}

fn fail(facts: &mut Facts<'_>, server: usize, error: Error) {
    facts.servers[server].state = ServerState::Unreachable(error);
}

/// Asks one server about itself; keeps the session where it may be asked more.
async fn ask(endpoint: &Endpoint) -> (ServerState, Option<Connection>) {
    match try_ask(endpoint).await {
        Ok((state @ ServerState::Known(_), session)) => (state, Some(session)),
        Ok((state, _)) => (state, None),
        Err(error) => (ServerState::Unreachable(error), None),
    }
}

async fn try_ask(endpoint: &Endpoint) -> Result<(ServerState, Connection)> {
    let session = remote::connect(endpoint, Purpose::Preflight).await?;
    session.batch(&format!("{SESSION}; {TIMEOUT}")).await?;
    let unprivileged: Option<String> = session
        .value(
            "SELECT CASE WHEN NOT r.rolsuper THEN quote_ident(r.rolname) END \
               FROM pg_roles AS r WHERE r.rolname = current_user",
            &[],
        )
        .await?;
    if let Some(role) = unprivileged {
        return Ok((ServerState::Unprivileged(role), session));
    }
    let facts = json(&session, include_str!("server.sql"), &[]).await?;
    Ok((ServerState::Known(Box::new(facts)), session))
}

/// The value of a query that answers with one JSON document.
async fn json<T: DeserializeOwned>(
    session: &Connection,
    sql: &str,
    params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<T> {
    let text: String = session.value(sql, params).await?;
    Ok(serde_json::from_str(&text)?)
}

/// Forgets relations that won't come along by the run's options.
async fn restrict(facts: &Facts<'_>, session: &Connection, content: &mut Content) -> Result<()> {
    let excluded = &facts.options.exclude_schemas;
    content.relations.retain(|r| !excluded.contains(&r.schema_name));
    let scoped = facts.options.schema_scope == SchemaScope::Publication;
    if !scoped && excluded.is_empty() {
        return Ok(());
    }
    let needed = Needed::by_publication(session, facts.publication).await?;
    content.needed_behind = behind(session, &needed, excluded, scoped).await?;
    if scoped {
        let is_needed = |object: &Use| match (&object.class, &object.name) {
            (Some(class), Some(name)) => needed.has(class, object.schema_name.as_deref(), name),
            _ => true,
        };
        content.used_roles.retain(|role| role.uses.iter().any(is_needed));
        content.relations.retain(|r| needed.has("relation", Some(&r.schema_name), &r.table_name));
        let extensions =
            facts.known_of(Side::Source).flat_map(|(_, known)| known.extensions.keys());
        content.needed_extensions =
            Some(extensions.filter(|x| needed.has("extension", None, x)).cloned().collect());
    }
    Ok(())
}

/// What of the schemas that stay behind is needed: by the published tables; or because an
/// extension comes along, for all of them do where the scope is the database.
async fn behind(
    session: &Connection,
    needed: &Needed,
    excluded: &[String],
    scoped: bool,
) -> Result<Vec<Behind>> {
    let rows = session
        .query(
            "SELECT n.nspname::text, x.extname::text \
               FROM pg_extension AS x JOIN pg_namespace AS n ON n.oid = x.extnamespace \
              WHERE n.nspname = ANY ($1) ORDER BY x.extname",
            &[&excluded],
        )
        .await?;
    let mut out = Vec::new();
    for row in rows {
        let get = |e: tokio_postgres::Error| session.error(&e);
        let (schema_name, name): (String, String) =
            (row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?);
        if !scoped || needed.has("extension", None, &name) {
            out.push(Behind { class: "extension".to_owned(), schema_name, name });
        }
    }
    // Row types come with their tables, arrays with their elements.
    let comes_with_another = |schema: &str, name: &str| {
        let element = name.strip_prefix('_');
        needed.has("relation", Some(schema), name)
            || element.is_some_and(|element| needed.has("type", Some(schema), element))
    };
    let objects = needed
        .in_schemas(excluded)
        .filter(|(class, schema, name)| *class != "type" || !comes_with_another(schema, name));
    out.extend(objects.map(|(class, schema, name)| Behind {
        class: class.to_owned(),
        schema_name: schema.to_owned(),
        name: name.to_owned(),
    }));
    Ok(out)
}

async fn content(facts: &Facts<'_>, session: &Connection) -> Result<Content> {
    let no_owner = facts.options.no_owner;
    let scoped = facts.options.schema_scope == SchemaScope::Publication;
    let mut content: Content =
        json(session, include_str!("source.sql"), &[&facts.publication, &no_owner, &scoped])
            .await?;
    restrict(facts, session, &mut content).await?;
    content.tables = tables(session, facts.publication, &facts.rules).await?;
    let oids: Vec<i64> = content.tables.iter().map(|t| t.oid).collect();
    content.foreign_keys = json(session, include_str!("foreign_keys.sql"), &[&oids]).await?;
    if facts.is_spread() {
        session.batch(&format!("SET statement_timeout = '{FOREIGN_KEY_TIMEOUT}'")).await?;
        let tables = content.tables.clone();
        let began = Instant::now();
        for foreign_key in &mut content.foreign_keys {
            if began.elapsed() > PATIENCE {
                break;
            }
            foreign_key.crosses = crosses(session, &tables, foreign_key).await?;
        }
        sample::look(session, &mut content.tables, facts.destination).await?;
    }
    Ok(content)
}

/// The published tables, and partitioned ones above them, with their keys by these rules,
/// which may be of the caller's own transaction.
pub(super) async fn tables(
    session: &Connection,
    publication: &str,
    rules: &[ShardingRule],
) -> Result<Vec<Table>> {
    let rules = serde_json::to_string(rules)?;
    json(session, include_str!("tables.sql"), &[&publication, &rules]).await
}

/// Whether a foreign key between sharded tables, in which the sharding keys
/// aren't part, has rows whose sharding keys differ.
async fn crosses(
    session: &Connection,
    tables: &[Table],
    foreign_key: &ForeignKey,
) -> Result<Option<bool>> {
    let of = |oid| tables.iter().find(|t| t.oid == oid && t.is_sharded());
    let (Some(from), Some(to)) = (of(foreign_key.from), of(foreign_key.to)) else {
        return Ok(None);
    };
    let (Some(from_key), Some(to_key)) = (&from.key, &to.key) else { return Ok(None) };
    let comparable = from.has_types_of(to) && from.is_placed_like(to);
    if foreign_key.holds_keys(from_key, to_key) || !comparable {
        return Ok(None);
    }
    let joined: Vec<String> = foreign_key
        .from_columns
        .iter()
        .zip(&foreign_key.to_columns)
        .map(|(f, t)| format!("f.{} = t.{}", ident(f), ident(t)))
        .collect();
    let differing: Vec<String> = from_key
        .iter()
        .zip(to_key)
        .map(|(f, t)| format!("f.{} IS DISTINCT FROM t.{}", ident(f), ident(t)))
        .collect();
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {} AS f JOIN {} AS t ON {} WHERE {})",
        qualified(&from.schema_name, &from.table_name),
        qualified(&to.schema_name, &to.table_name),
        joined.join(" AND "),
        differing.join(" OR "),
    );
    match session.value(&sql, &[]).await {
        Ok(found) => Ok(Some(found)),
        // It takes too long, or the operators aren't in pg_catalog: not known.
        Err(error) if matches!(error.sqlstate(), "57014" | "42883" | "55P03") => Ok(None),
        Err(error) => Err(error),
    }
}

/// The relations that a shard is asked for.
fn wanted(facts: &Facts<'_>) -> Result<String> {
    let relations = facts.content.as_ref().map_or(&[][..], |c| &c.relations);
    Ok(serde_json::to_string(relations)?)
}

/// What the relations look like here that are on a shard already.
async fn definitions(facts: &mut Facts<'_>, session: &Connection) -> Result<()> {
    let found: Vec<serde_json::Value> = facts
        .servers
        .iter()
        .flat_map(|server| &server.existing)
        .map(|e| serde_json::json!({ "schema_name": e.schema_name, "table_name": e.table_name }))
        .collect();
    if let (Some(content), false) = (&mut facts.content, found.is_empty()) {
        let sent = serde_json::Value::Array(found).to_string();
        content.definitions = json(session, include_str!("existing.sql"), &[&sent]).await?;
    }
    Ok(())
}

/// Which of the relations a shard has, whether tables hold rows, and who made them.
async fn existing(session: &Connection, wanted: &str, token: &str) -> Result<Vec<Existing>> {
    let mut found: Vec<Existing> = json(session, include_str!("existing.sql"), &[&wanted]).await?;
    if found.is_empty() {
        return Ok(found);
    }
    let mut tables: Vec<&mut Existing> = found.iter_mut().filter(|t| t.is_table).collect();
    for chunk in tables.chunks_mut(TABLES_AT_ONCE) {
        let asked: Vec<String> = chunk
            .iter()
            .map(|t| {
                let name = qualified(&t.schema_name, &t.table_name);
                format!("EXISTS (SELECT 1 FROM ONLY {name})")
            })
            .collect();
        let sql = format!("SELECT ARRAY[{}]", asked.join(", "));
        let answers: Vec<bool> = session.value(&sql, &[]).await?;
        for (table, has_rows) in chunk.iter_mut().zip(answers) {
            table.has_rows = has_rows;
        }
    }
    let noted: bool =
        session.value("SELECT to_regclass('reshard.applied_statement') IS NOT NULL", &[]).await?;
    if noted {
        let oids: Vec<i64> = session
            .value(
                "SELECT coalesce(array_agg(o::bigint), '{}') \
                   FROM reshard.applied_statement AS a, unnest(a.objects) AS o WHERE a.token = $1",
                &[&token],
            )
            .await?;
        for table in &mut found {
            table.ours = oids.contains(&table.oid);
        }
    }
    Ok(found)
}

/// Proves that the nodes let us in for replication: pg_hba.conf and walsenders.
async fn replication_connections(facts: &mut Facts<'_>) {
    for i in 0..facts.servers.len() {
        let server = &facts.servers[i];
        let known = matches!(&server.state,
            ServerState::Known(known) if known.used_senders < known.max_senders);
        if server.side != Side::Source || !known {
            continue;
        }
        if let Err(error) = replication::connect(server.endpoint, Purpose::Preflight).await {
            fail(facts, i, error);
        }
    }
}
