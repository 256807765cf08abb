//! The program: options, exit status, and that its text is a script.
#![allow(clippy::unwrap_used)]

use reshard_schema::{Plan, Step};
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_reshard-schema"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that stops at its options doesn't read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const DUMP: &str = "-- Dumped from database version 17.2 (Debian 17.2-1)\n\
    SET row_security = off;\n\
    SET default_tablespace = '';\n\
    SET default_tablespace = fast;\n\
    CREATE TABLE public.t (a integer);\n\
    ALTER TABLE ONLY public.t ADD CONSTRAINT t_pkey PRIMARY KEY (a);\n\
    CREATE PUBLICATION p FOR ALL TABLES;\n";

#[test]
fn json_is_the_default() {
    let output = run(&[], DUMP.as_bytes());
    assert!(output.status.success());
    let plan: Plan = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan.version, 2);
    assert_eq!(plan.server_version.as_deref(), Some("17.2"));
    assert_eq!(plan.statements.len(), 2);
    assert_eq!(output.stdout, run(&["--format", "json"], DUMP.as_bytes()).stdout);
}

#[test]
fn json_has_the_words_of_the_contract() {
    let output = run(&["--with-publications"], DUMP.as_bytes());
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let key = &plan["statements"][1];
    let expected = serde_json::json!({
        "ordinal": 2,
        "phase": "post",
        "step": "keys",
        "kind": "primary_key",
        "object_kind": "primary_key",
        "schema_name": "public",
        "object_name": "t_pkey",
        "table_schema": "public",
        "table_name": "t",
        "columns": ["a"],
        "settings": ["SET default_tablespace = fast"],
        "sql": "ALTER TABLE ONLY public.t ADD CONSTRAINT t_pkey PRIMARY KEY (a)",
    });
    assert_eq!(key, &expected);
    assert_eq!(
        plan["session"],
        serde_json::json!(["SET row_security = off", "SET default_tablespace = ''"])
    );
    assert_eq!(plan["statements"][2]["schema_name"], serde_json::Value::Null);
    assert_eq!(plan["left_out"], serde_json::json!([]));
    let words: Vec<String> = Step::ALL
        .iter()
        .map(|s| serde_json::to_value(s).unwrap().as_str().unwrap().into())
        .collect();
    assert_eq!(words, Step::ALL.map(|s| s.as_str()));
}

#[test]
fn text_is_a_script() {
    let output = run(&["--format=text"], DUMP.as_bytes());
    let script = text(&output.stdout);
    let at = |part: &str| script.find(part).unwrap();
    assert!(at("SET row_security = off;") < at("CREATE TABLE public.t (a integer);"));
    assert!(at("-- 2 primary_key public.t_pkey on public.t") < at("PRIMARY KEY (a);"));
    let restored = "RESET default_tablespace;\nSET default_tablespace = '';\n";
    assert!(at("PRIMARY KEY (a);") < script.rfind(restored).unwrap());
    assert!(script.contains("-- publication p: publications belong to the source"));
}

#[test]
fn the_status_tells_what_went_wrong() {
    let refused = run(&[], b"CREATE TABLE public.t (a integer);\nDROP TABLE public.t;\n");
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty());
    assert!(text(&refused.stderr).contains("line 2 (DropStmt): DROP TABLE public.t"));

    let latin1 = run(&[], b"--\n-- \nCOMMENT ON SCHEMA x IS '\xe9';\n");
    assert_eq!(latin1.status.code(), Some(1));
    assert!(text(&latin1.stderr).contains("isn't UTF-8 at line 3"));

    for args in [&["--frobnicate"][..], &["--format"], &["--format", "xml"], &["x"]] {
        let wrong = run(args, b"");
        assert_eq!(wrong.status.code(), Some(2), "{args:?}");
        assert!(text(&wrong.stderr).contains("--help"));
    }
}

#[test]
fn help_and_version_are_shown() {
    let help = run(&["--help"], b"");
    assert!(help.status.success() && text(&help.stdout).contains("--with-publications"));
    let version = run(&["--version"], b"");
    let expected = format!("reshard-schema {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&version.stdout), expected);
}
