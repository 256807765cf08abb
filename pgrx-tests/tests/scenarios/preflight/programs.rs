//! The programs that read the source's schema are missing, or of another version.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use reshard_scenarios::Stop;

use super::super::common::{application, with_extension};
use super::{clean, expect, preflight, WHOLE};

/// A program that says its version, and nothing else.
fn says(path: &Path, version: &str) {
    std::fs::write(path, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_are_missing_or_of_another_version_are_named() {
    with_extension(1, |rig| async move {
        application(&rig, 10).await?;
        let copy = tokio::task::block_in_place(|| {
            let copy = rig.source.installation().copied(&rig.folder().join("installation"))?;
            rig.source.stop(Stop::Fast)?;
            rig.source.run_from(copy.clone());
            rig.source.start()?;
            Ok::<_, reshard_scenarios::Error>(copy)
        })?;
        let session = rig.source.connect().await?;
        clean(&session).await?;
        let (pg_dump, planner) = (copy.program("pg_dump"), copy.program("reshard-schema"));
        std::fs::remove_file(&pg_dump).unwrap();
        std::fs::remove_file(&planner).unwrap();
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "programs", "error", "\"pg_dump\" is not installed");
        expect(&found, "programs", "error", "\"reshard-schema\" is not installed");
        // What says nothing, and what says the wrong thing.
        says(&pg_dump, "pg_dump (PostgreSQL) 9.6.24");
        says(&planner, "reshard-schema 0.0.1");
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "programs", "error", "pg_dump (PostgreSQL) 9.6.24");
        expect(&found, "programs", "error", "reshard-schema 0.0.1");
        std::fs::write(&planner, "#!/bin/sh\nexit 3\n").unwrap();
        let found = preflight(&session, WHOLE, "{}").await?;
        expect(&found, "programs", "error", "exit code 3");
        Ok(())
    })
    .await;
}
