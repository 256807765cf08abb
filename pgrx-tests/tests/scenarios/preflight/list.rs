//! No check without a scenario, and none that the reference doesn't know.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Checks that scenarios can't, or need not, name: with the reason.
const OTHERWISE: &[(&str, &str)] = &[
    ("server_version", "needs a server of another version; its unit test shows it"),
    ("destination_tables", "a verb's error shows it, reshard_preflight() has no use for it"),
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// All Rust files of a folder, as one text, without their unit tests.
fn text_of(folder: &str, without: &str) -> String {
    let mut out = String::new();
    for entry in std::fs::read_dir(repository(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "rs") && !path.ends_with(without) {
            let text = std::fs::read_to_string(&path).unwrap();
            out.push_str(text.split("#[cfg(test)]").next().unwrap_or_default());
        }
    }
    out
}

/// Names of checks in the code: the first literal after what makes a finding.
fn names_in_code() -> BTreeSet<String> {
    let code = text_of("src/preflight", "finding.rs");
    let mut names = BTreeSet::new();
    for maker in [
        "Finding::error(",
        "Finding::warning(",
        "Finding::info(",
        "Finding::from_error(",
        "check_name: ",
        "wrong_columns(",
        "unreachable(",
    ] {
        for (at, _) in code.match_indices(maker) {
            let rest = code[at + maker.len()..].trim_start();
            let rest = rest.strip_prefix("facts,").unwrap_or(rest).trim_start();
            if let Some((name, _)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

/// Names in the table of checks of the reference.
fn names_in_reference() -> BTreeSet<String> {
    let text = std::fs::read_to_string(repository("docs/reference.md")).unwrap();
    let table = text.split("| check_name |").nth(1).unwrap_or_default();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|line| line.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_check_has_a_scenario_and_a_line_in_the_reference() {
    let code = names_in_code();
    assert!(code.len() > 50, "the checks were not found: {code:?}");
    assert_eq!(code, names_in_reference());
    let scenarios = text_of("pgrx-tests/tests/scenarios/preflight", "list.rs");
    let others = text_of("pgrx-tests/tests/scenarios", "main.rs");
    let shown = |name: &&String| {
        scenarios.contains(&format!("\"{name}\""))
            || others.contains(&format!("check_name = '{name}'"))
            || OTHERWISE.iter().any(|(other, _)| other == name)
    };
    let unseen: Vec<&String> = code.iter().filter(|name| !shown(name)).collect();
    assert!(unseen.is_empty(), "no scenario makes these checks fire: {unseen:?}");
    let gone: Vec<_> = OTHERWISE.iter().filter(|(name, _)| !code.contains(*name)).collect();
    assert!(gone.is_empty(), "no such checks: {gone:?}");
}
