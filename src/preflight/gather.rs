//! Reads the facts from every server, in read-only sessions, at the same time.
use futures::future::join_all;
use serde::de::DeserializeOwned;
use tokio_postgres::types::ToSql;

use crate::cluster::{ShardingRule, Side};
use crate::error::{Error, Kind, Result};
use crate::preflight::facts::{
    Behind, Content, Existing, Facts, Server, ServerFacts, ServerState, Table, Use,
};
use crate::preflight::{collation, nodes, placement, programs, rows, strays, ways};
use crate::remote::quote::qualified;
use crate::remote::{self, Connection, Endpoint, Needed, Purpose};
use crate::state::options::SchemaScope;

/// Nothing is changed, nothing is waited for: a lock that the caller's own
/// transaction holds would be waited for in vain.
const SESSION: &str = "SET default_transaction_read_only = on; SET lock_timeout = '5s'";
/// How long one question may take, where nothing else is said.
pub(super) const TIMEOUT: &str = "SET statement_timeout = '30s'";
/// Tables that one question is about.
const TABLES_AT_ONCE: usize = 100;

/// Sessions on the servers that can be asked.
#[derive(Default)]
pub(super) struct Sessions {
    /// This database.
    here: Option<Connection>,
    /// Its number among the servers of the facts.
    home: usize,
    /// The other shards of the source.
    others: Vec<(Endpoint, Connection)>,
    /// The shards of the destination, with their numbers among the servers.
    shards: Vec<(usize, Connection)>,
}

/// Fills in all that other servers know. What can't be read is a fact too.
pub async fn all(facts: &mut Facts<'_>) {
    let (programs, sessions) = futures::join!(
        programs::look(facts.verb),
        join_all(facts.servers.iter().map(|s| ask(s.endpoint)))
    );
    facts.programs = programs;
    let sessions = sort(facts, sessions);
    // What needs nothing but the servers' own answers comes at the same time.
    let (read, refused, (free, ways)) = futures::join!(
        async { Some(content(facts, sessions.here.as_ref()?).await) },
        ways::refused(facts),
        async {
            let free = free_space(&sessions).await;
            (free, ways::unreachable(facts, Side::Destination, &sessions).await)
        },
    );
    for (server, free) in free {
        facts.servers[server].free_bytes = free;
    }
    facts.unreachable = ways;
    if let (Some(here), Some(read)) = (&sessions.here, read) {
        facts.content = keep(facts, sessions.home, read);
        of_source(facts, &sessions, here).await;
    }
    of_shards(facts, &sessions).await;
    for (server, error) in refused {
        // The shards don't get in there either: said once.
        let node = facts.servers[server].endpoint.shard;
        facts.unreachable.retain(|way| way.to.shard != node);
        fail(facts, server, error);
    }
    let ways = ways::unreachable(facts, Side::Source, &sessions).await;
    facts.unreachable.extend(ways);
}

impl Sessions {
    /// The session on a server, by its number among those of the facts.
    pub(super) fn on(&self, facts: &Facts<'_>, server: usize) -> Option<&Connection> {
        let Server { side, endpoint, .. } = &facts.servers[server];
        match side {
            Side::Source if server == self.home => self.here.as_ref(),
            Side::Source => {
                let own = self.others.iter().find(|(other, _)| other.shard == endpoint.shard);
                own.map(|(_, session)| session)
            }
            Side::Destination => {
                self.shards.iter().find(|(number, _)| *number == server).map(|(_, session)| session)
            }
        }
    }
}

/// Keeps what the servers said, and the sessions by what they are for.
fn sort(facts: &mut Facts<'_>, asked: Vec<(ServerState, Option<Connection>)>) -> Sessions {
    let mut out = Sessions::default();
    for (i, (state, session)) in asked.into_iter().enumerate() {
        let is_here = matches!(&state, ServerState::Known(known) if facts.is_here(known));
        let server = &mut facts.servers[i];
        server.state = state;
        match server.side {
            Side::Source if is_here => {
                out.here = session;
                out.home = i;
            }
            Side::Source => out.others.extend(session.map(|s| (server.endpoint.clone(), s))),
            Side::Destination => out.shards.extend(session.map(|s| (i, s))),
        }
    }
    out
}

/// What the source holds, and what all servers say of its keys.
async fn of_source(facts: &mut Facts<'_>, sessions: &Sessions, here: &Connection) {
    let Sessions { home, others, shards, .. } = sessions;
    if let (Some(content), false) = (&facts.content, others.is_empty()) {
        let read = nodes::gather(facts, content, here, others).await;
        facts.nodes = keep(facts, *home, read);
    }
    if let Some(mut content) = facts.content.take() {
        let read = rows::gather(facts, &mut content, here, others).await;
        facts.content = Some(content);
        keep(facts, *home, read);
    }
    let others: Vec<(&Endpoint, &Connection)> = others.iter().map(|(e, s)| (e, s)).collect();
    let read = placement::gather(facts, here, &others).await;
    facts.mapped = keep(facts, *home, read).unwrap_or_default();
    let own = facts.servers[*home].endpoint;
    let nodes: Vec<_> = std::iter::once((own, here)).chain(others).collect();
    let there = shards.iter().map(|(i, s)| (facts.servers[*i].endpoint, s));
    let servers: Vec<_> = nodes.iter().copied().chain(there).collect();
    let read = collation::gather(facts, &servers).await;
    facts.orders = keep(facts, *home, read).unwrap_or_default();
    let read = strays::gather(facts, &nodes).await;
    facts.strays = keep(facts, *home, read).unwrap_or_default();
}

/// What the shards have already of what would come.
async fn of_shards(facts: &mut Facts<'_>, sessions: &Sessions) {
    let wanted = wanted(facts);
    let Some(wanted) = keep(facts, sessions.home, wanted) else { return };
    let token = facts.token.clone();
    let found = join_all(sessions.shards.iter().map(|(_, s)| existing(s, &wanted, &token))).await;
    for ((i, _), found) in sessions.shards.iter().zip(found) {
        let mut found = keep(facts, *i, found).unwrap_or_default();
        for relation in &mut found {
            relation.published = facts.tables().any(|t| {
                t.schema_name == relation.schema_name && t.table_name == relation.table_name
            });
        }
        facts.servers[*i].existing = found;
    }
    if let Some(here) = &sessions.here {
        let read = definitions(facts, here).await;
        keep(facts, sessions.home, read);
    }
}

/// What was read; an error becomes the state of that server.
fn keep<T>(facts: &mut Facts<'_>, server: usize, read: Result<T>) -> Option<T> {
    read.map_err(|error| fail(facts, server, error)).ok()
}

/// Asks the shards' machines, by number, for their free space; some don't let us.
async fn free_space(sessions: &Sessions) -> Vec<(usize, Option<i64>)> {
    let asked = sessions.shards.iter();
    join_all(asked.map(|(i, session)| async { (*i, space_of(session).await.ok()) })).await
}

/// Free bytes where a server's data is. A server's folder is that of its data.
async fn space_of(session: &Connection) -> Result<i64> {
    let begun = session
        .batch(
            "BEGIN READ WRITE; SET LOCAL statement_timeout = '5s'; \
             CREATE TEMPORARY TABLE reshard_space (line text) ON COMMIT DROP; \
             COPY pg_temp.reshard_space FROM PROGRAM 'df -P -k .'",
        )
        .await;
    let bytes = match begun {
        Ok(()) => {
            let sql = "SELECT (regexp_match(line, '\\s\\d+\\s+\\d+\\s+(\\d+)\\s+\\d+%'))[1]::bigint * 1024 \
                         FROM pg_temp.reshard_space WHERE line ~ '\\d%' LIMIT 1";
            session.value(sql, &[]).await
        }
        Err(error) => Err(error),
    };
    session.batch("ROLLBACK").await?;
    bytes
}

fn fail(facts: &mut Facts<'_>, server: usize, error: Error) {
    facts.servers[server].state = ServerState::Unreachable(error);
}

/// Asks one server about itself; keeps the session where it may be asked more.
async fn ask(endpoint: &Endpoint) -> (ServerState, Option<Connection>) {
    match try_ask(endpoint).await {
        Ok((facts, session)) => (ServerState::Known(Box::new(facts)), Some(session)),
        Err(error) if error.kind == Kind::Privilege => (ServerState::Unprivileged(error), None),
        Err(error) => (ServerState::Unreachable(error), None),
    }
}

async fn try_ask(endpoint: &Endpoint) -> Result<(ServerFacts, Connection)> {
    let session = remote::connect(endpoint, Purpose::Preflight).await?;
    session.batch(&format!("{SESSION}; {TIMEOUT}")).await?;
    let facts = json(&session, include_str!("server.sql"), &[]).await?;
    Ok((facts, session))
}

/// The value of a query that answers with one JSON document.
async fn json<T: DeserializeOwned>(
    session: &Connection,
    sql: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<T> {
    let text: String = session.value(sql, params).await?;
    Ok(serde_json::from_str(&text)?)
}

/// Forgets relations that won't come along by the run's options.
async fn restrict(facts: &Facts<'_>, session: &Connection, content: &mut Content) -> Result<()> {
    if !is_narrowed(facts) {
        return Ok(());
    }
    let excluded = &facts.options.exclude_schemas;
    content.relations.retain(|r| !excluded.contains(&r.schema_name));
    keep_used(content, |object| !object.is_in(excluded));
    let scoped = facts.options.schema_scope == SchemaScope::Publication;
    let needed = Needed::by_publication(session, facts.publication).await?;
    content.needed_behind = behind(session, &needed, excluded, scoped).await?;
    if scoped {
        keep_used(content, |object| match (&object.class, &object.name) {
            (Some(class), Some(name)) => needed.has(class, object.schema_name.as_deref(), name),
            _ => true,
        });
        content.relations.retain(|r| needed.has("relation", Some(&r.schema_name), &r.table_name));
        let extensions =
            facts.known_of(Side::Source).flat_map(|(_, known)| known.extensions.keys());
        content.needed_extensions =
            Some(extensions.filter(|x| needed.has("extension", None, x)).cloned().collect());
    }
    Ok(())
}

/// Whether options leave a part of the schema out.
fn is_narrowed(facts: &Facts<'_>) -> bool {
    facts.options.schema_scope == SchemaScope::Publication
        || !facts.options.exclude_schemas.is_empty()
}

/// Forgets uses that don't come along, then roles and tablespaces without any.
fn keep_used(content: &mut Content, is_kept: impl Fn(&Use) -> bool) {
    content.used_roles.retain_mut(|role| {
        role.uses.retain(&is_kept);
        !role.uses.is_empty()
    });
    content.tablespaces.retain_mut(|space| {
        space.uses.retain(&is_kept);
        !space.uses.is_empty()
    });
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
    let params: [&(dyn ToSql + Sync); 3] =
        [&facts.publication, &facts.options.no_owner, &is_narrowed(facts)];
    let mut content: Content = json(session, include_str!("source.sql"), &params).await?;
    restrict(facts, session, &mut content).await?;
    content.tables = tables(session, facts.publication, &facts.rules).await?;
    let oids: Vec<i64> = content.tables.iter().map(|t| t.oid).collect();
    content.foreign_keys = json(session, include_str!("foreign_keys.sql"), &[&oids]).await?;
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
