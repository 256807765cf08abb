//! Many tables, and large ones.

use reshard_scenarios::migration::{declare_shards, DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::{Migration, Result, RigOptions, Server, Session};

use super::super::common::{run, with_extension, STEP};
use super::{declare_whole, sync};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two thousand tables"]
async fn two_thousand_tables_take_less_than_twice_as_long_as_pg_restore_and_little_memory() {
    run(RigOptions::new(2).alone(), |rig| async move {
        let session = rig.source.connect().await?;
        for chunk in 0..20 {
            session
                .execute(&format!(
                    "DO $$ BEGIN FOR n IN {}..{} LOOP
                         EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, a integer, b text, c timestamptz DEFAULT now(), CHECK (a > 0))', n);
                         EXECUTE format('CREATE INDEX ON t%s (a)', n);
                         EXECUTE format('CREATE INDEX ON t%s (b, c)', n);
                     END LOOP; END $$",
                    chunk * 100,
                    chunk * 100 + 99
                ))
                .await?;
        }
        session.execute("CREATE EXTENSION reshard").await?;
        declare_shards(&rig, &session).await?;
        session
            .execute(&format!(
                "SELECT reshard_set_sharding_key('{DESTINATION}', 'id'); CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
            ))
            .await?;

        let began = std::time::Instant::now();
        let spare = tokio::task::block_in_place(|| rig.add_server("spare"))?;
        println!("a server more: {:?}", began.elapsed());
        let restored = tokio::task::block_in_place(|| restore_pre_data(&rig.source, &spare))?;

        let what = format!("'{SOURCE}', '{DESTINATION}', '{PUBLICATION}'");
        let began = std::time::Instant::now();
        let findings: i64 = session
            .one(&format!("SELECT count(*) FROM reshard_preflight({what}) WHERE severity = 'error'"))
            .await?;
        let preflight = began.elapsed();
        println!("preflight: {preflight:?}");
        assert!(preflight < restored, "{preflight:?} against {restored:?}");
        assert_eq!(findings, 0);
        sync(&rig, "pre", "{}").await?;
        let took: f64 = session
            .one("SELECT extract(epoch FROM finished_at - started_at) FROM reshard.tasks ORDER BY id DESC LIMIT 1")
            .await?;
        let memory = coordinator_memory(&session).await?;
        println!("pg_dump and pg_restore --section=pre-data: {restored:?}; phase pre: {took:.1} s; coordinator: {memory} kB");
        assert!(took < 2.0 * restored.as_secs_f64(), "{took} s against {restored:?}");
        assert!(memory < 600_000, "{memory} kB");
        let began = std::time::Instant::now();
        sync(&rig, "post", "{}").await?;
        println!("phase post: {:?}", began.elapsed());
        Ok(())
    })
    .await;
}

/// Time that pg_dump and pg_restore take for the same.
fn restore_pre_data(source: &Server, spare: &Server) -> Result<std::time::Duration> {
    let began = std::time::Instant::now();
    let script = format!(
        "'{dump}' -Fc -s -N reshard -h '{}' -p {} -U postgres app | '{restore}' --section=pre-data -h '{}' -p {} -U postgres -d app",
        source.folder().display(),
        source.port(),
        spare.folder().display(),
        spare.port(),
        dump = source.installation().program("pg_dump").display(),
        restore = source.installation().program("pg_restore").display(),
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(reshard_scenarios::Error::io("run pg_restore"))?;
    print!("{}", String::from_utf8_lossy(&output.stderr));
    Ok(began.elapsed())
}

/// The most memory that the coordinator has used, in kB.
async fn coordinator_memory(session: &Session) -> Result<u64> {
    let pid: String = session
        .one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'reshard coordinator'")
        .await?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    Ok(line.split_whitespace().nth(1).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_progress_of_an_index_is_told_while_it_is_built() {
    with_extension(1, |rig| async move {
        let session = rig.source.connect().await?;
        session
            .execute(
                "CREATE TABLE t (id bigint PRIMARY KEY, a text, b text);
                 INSERT INTO t SELECT g, md5(g::text), md5((g + 1)::text) FROM generate_series(1, 1500000) g;
                 CREATE INDEX t_a ON t (a, b)",
            )
            .await?;
        declare_whole(&rig).await?;
        rig.shards[0].execute("ALTER SYSTEM SET maintenance_work_mem = '2MB'").await?;
        rig.shards[0].execute("SELECT pg_reload_conf()").await?;
        let run = Migration::start(&rig, false).await?;
        let mut seen = std::collections::BTreeSet::new();
        let what = format!(
            "SELECT status || ' ' || coalesce(percent::text, '') FROM reshard.schema_sync
             WHERE task_id = {} AND object_name = 't_a'",
            run.id
        );
        let deadline = std::time::Instant::now() + STEP;
        loop {
            let state = session.text(&what).await?.unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "{state}");
            match state.split_once(' ') {
                Some(("succeeded", _)) => break,
                Some(("running", percent)) if !percent.is_empty() => drop(seen.insert(percent.to_owned())),
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
        println!("{seen:?}");
        assert!(seen.len() >= 2, "{seen:?}");
        run.cancel(STEP).await
    })
    .await;
}
