//! The schema on the shards is that of the source, whatever it consists of.

mod again;
mod cancel;
mod kinds;
mod many;
mod receiving;
mod scope;

use std::sync::Arc;

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::session::{identifier, literal};
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{Migration, Result, Rig};

use super::common::STEP;

/// CREATE EXTENSION, both clusters, a publication of all tables; no sharding key.
async fn declare_whole(rig: &Rig) -> Result<()> {
    let session = rig.source.connect().await?;
    session.execute("CREATE EXTENSION IF NOT EXISTS reshard").await?;
    declare_shards(rig, &session).await?;
    session.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")).await
}

/// Resumes a failed task and waits until a worker is on it.
async fn resume(task: &Migration) -> Result<()> {
    task.verb("reshard_resume").await?;
    wait_until(STEP, "the task to go on", || async { Ok(task.state().await?.status != "failed") })
        .await
}

/// One phase of the schema, to its end.
async fn sync(rig: &Arc<Rig>, phase: &str, options: &str) -> Result<Migration> {
    let task = Migration::call(
        rig,
        &format!(
            "SELECT reshard_schema_sync('{phase}', '{SOURCE}', '{DESTINATION}', '{PUBLICATION}', \
             options => '{options}')"
        ),
    )
    .await?;
    task.watch(&["succeeded"], STEP).await?;
    Ok(task)
}

/// Whether an extension can be had from the source's installation.
async fn has_extension(rig: &Rig, name: &str) -> Result<bool> {
    let found: i64 = rig
        .source
        .connect()
        .await?
        .one(&format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{name}'"))
        .await?;
    Ok(found > 0)
}

/// Names that break what isn't quoted, or cut, or compared as it should be.
const ODD_NAMES: &[&str] = &[
    "select",
    "UPPER lower",
    "quo\"te",
    "apo'strophe",
    "back\\slash",
    "semi;colon --",
    "$$",
    "dot.ted",
    "%I %s {}",
    " space ",
    "new\nline",
    "grün 表 🐘",
    // 63 bytes, the most that a name can have.
    "a23456789012345678901234567890123456789012345678901234567890123",
];

/// Objects of many kinds with the same odd name.
fn named_oddly(name: &str) -> String {
    let n = identifier(name);
    format!(
        "CREATE SCHEMA {n};
         CREATE TYPE {n}.{n} AS ENUM ({v}, 'ok');
         CREATE DOMAIN {n}.\"d\" AS text CONSTRAINT {n} CHECK (VALUE <> {v});
         CREATE SEQUENCE {n}.\"s\" INCREMENT 3;
         CREATE FUNCTION {n}.{n}({n} integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 1';
         CREATE FUNCTION {n}.\"t\"() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
         CREATE TABLE {n}.\"parent\" ({n} integer PRIMARY KEY, \"e\" {n}.{n} DEFAULT {v});
         CREATE TABLE {n}.\"child\" (
             {n} integer, \"d\" {n}.\"d\", \"i\" bigint GENERATED ALWAYS AS IDENTITY,
             \"n\" bigint DEFAULT nextval({s}), CONSTRAINT {n} UNIQUE ({n}, \"i\"),
             CONSTRAINT \"fk\" FOREIGN KEY ({n}) REFERENCES {n}.\"parent\" ({n}) ON DELETE CASCADE);
         ALTER SEQUENCE {n}.\"s\" OWNED BY {n}.\"child\".\"n\";
         CREATE INDEX \"ix\" ON {n}.\"child\" (({n}.{n}({n}))) WHERE {n} > 0;
         CREATE VIEW {n}.\"v\" AS SELECT {n} FROM {n}.\"child\";
         CREATE MATERIALIZED VIEW {n}.\"m\" AS SELECT count(*) AS {n} FROM {n}.\"child\";
         CREATE TRIGGER {n} BEFORE INSERT ON {n}.\"child\" FOR EACH ROW EXECUTE FUNCTION {n}.\"t\"({v});
         CREATE POLICY {n} ON {n}.\"child\" USING ({n} > 0);
         CREATE STATISTICS {n}.\"st\" ON {n}, \"i\" FROM {n}.\"child\";
         CREATE TABLE {n}.\"parts\" ({n} integer) PARTITION BY LIST ({n});
         CREATE TABLE {n}.\"part\" PARTITION OF {n}.\"parts\" FOR VALUES IN (1);
         COMMENT ON COLUMN {n}.\"child\".{n} IS {v}",
        v = literal(name),
        s = literal(&format!("{n}.\"s\"")),
    )
}
