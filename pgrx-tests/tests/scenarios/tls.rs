//! Connections with TLS, as the connection strings ask for it.

use reshard_scenarios::cluster::Authority;
use reshard_scenarios::migration::{declare_at, DESTINATION};
use reshard_scenarios::oracle::compare_when_quiet;
use reshard_scenarios::session::literal;
use reshard_scenarios::wait::wait_until;
use reshard_scenarios::{load::schema, Error, Migration, Result, Rig, RigOptions};

use super::common::{run, KEY, STEP};

/// Sessions of ours, and of subscriptions, that came in without TLS.
const PLAIN: &str = "SELECT count(*) FROM pg_stat_activity AS a JOIN pg_stat_ssl AS s USING (pid)
                      WHERE a.client_addr IS NOT NULL AND NOT s.ssl";
const ENCRYPTED: &str =
    "SELECT count(*) FROM pg_stat_activity AS a JOIN pg_stat_ssl AS s USING (pid)
                          WHERE a.application_name LIKE 'reshard%' AND s.ssl";

/// Packaged builds of PostgreSQL exist that have no TLS: connection strings that ask for it
/// are refused there.
async fn has_tls(rig: &Rig) -> Result<bool> {
    let library = rig.source.text("SELECT current_setting('ssl_library')").await?;
    Ok(library.is_some_and(|name| !name.is_empty()))
}

async fn refused(rig: &Rig, conninfo: &str) -> Result<Error> {
    let session = rig.source.connect().await?;
    session.execute("CREATE EXTENSION IF NOT EXISTS reshard").await?;
    let add = format!("SELECT reshard_add_shard('{DESTINATION}', 0, {})", literal(conninfo));
    Ok(session.execute(&add).await.unwrap_err())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_not_connected_to_where_tls_is_asked_for() {
    run(RigOptions::new(1), |rig| async move {
        let plain = rig.shards[0].conninfo();
        let error = refused(&rig, &format!("{plain} sslmode=require")).await?;
        assert_eq!(error.sqlstate(), Some("08001"), "{error}");
        assert!(error.to_string().contains("does not support TLS"), "{error}");
        let error = refused(&rig, &format!("{plain} sslmode=verify-full")).await?;
        assert_eq!(error.sqlstate(), Some("22023"), "{error}");
        assert!(error.to_string().contains("sslrootcert"), "{error}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_between_servers_that_take_tls_alone_goes_there_and_back() {
    run(RigOptions::new(3), |rig| async move {
        if !has_tls(&rig).await? {
            return Ok(());
        }
        let (authority, stranger) = (Authority::new(&rig, "ca")?, Authority::new(&rig, "other")?);
        for server in rig.servers() {
            authority.secure(&rig, server).await?;
        }
        refusals(&rig, &authority, &stranger).await?;

        let session = rig.source.connect().await?;
        schema::create(&session).await?;
        schema::seed(&session, 2_000).await?;
        let root = authority.root();
        let verified = |mode: &str| format!(" sslmode={mode} sslrootcert={}", root.display());
        let ways = [verified("verify-full"), " sslmode=require".to_owned(), String::new()];
        let shards: Vec<String> =
            rig.shards.iter().zip(&ways).map(|(s, way)| s.conninfo() + way).collect();
        let source = rig.source.conninfo() + &verified("verify-ca");
        declare_at(&rig, KEY, &[source], &shards).await?;
        let migration = Migration::start(&rig, false).await?;
        migration.watch(&["replicating"], STEP).await?;
        for server in rig.servers() {
            let session = server.connect().await?;
            let what = format!("an encrypted session on {}", server.name());
            wait_until(STEP, &what, || async { Ok(session.one::<i64>(ENCRYPTED).await? > 0) })
                .await?;
            assert_eq!(session.one::<i64>(PLAIN).await?, 0, "{}", server.name());
        }
        migration.cutover(STEP).await?;
        migration.rollback(STEP).await?;
        compare_when_quiet(&rig, KEY, STEP).await
    })
    .await;
}

async fn refusals(rig: &Rig, authority: &Authority, stranger: &Authority) -> Result<()> {
    wait_until(STEP, "the shard to take TLS", || async {
        Ok(rig.shards[0].text("SHOW ssl").await?.as_deref() == Some("on"))
    })
    .await?;
    let shard = rig.shards[0].conninfo();
    let trusting = |authority: &Authority| format!("sslrootcert={}", authority.root().display());
    let named = shard.replace("127.0.0.1", "localhost");
    for (conninfo, code, says) in [
        (format!("{shard} sslmode=disable"), "28000", "no encryption"),
        (format!("{shard} sslmode=verify-ca {}", trusting(stranger)), "08001", "verify failed"),
        (format!("{named} sslmode=verify-full {}", trusting(authority)), "08001", "mismatch"),
        (format!("{shard} sslmode=require sslrootcert=/none"), "22023", "/none"),
    ] {
        let error = refused(rig, &conninfo).await?;
        println!("{error}");
        assert_eq!(error.sqlstate(), Some(code), "{conninfo}: {error}");
        assert!(error.to_string().contains(says), "{conninfo}: {error}");
    }
    Ok(())
}
