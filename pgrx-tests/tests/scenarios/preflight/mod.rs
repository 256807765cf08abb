//! Every check of preflight fires when it has to, and a clean database makes
//! none of them say more than `info`.

mod list;
mod nodes;
mod programs;
mod rows;
mod servers;

use reshard_scenarios::migration::{DESTINATION, PUBLICATION, SOURCE};
use reshard_scenarios::session::literal;
use reshard_scenarios::{Result, Session};

/// A row of `reshard_preflight()`.
#[derive(Debug)]
struct Finding {
    check: String,
    severity: String,
    text: String,
    hint: Option<String>,
}

async fn preflight(
    session: &Session,
    (source, destination, publication): (&str, &str, &str),
    options: &str,
) -> Result<Vec<Finding>> {
    let rows = session
        .rows(&format!(
            "SELECT check_name, severity, concat_ws(' | ', object, detail), hint
             FROM reshard_preflight({}, {}, {}, {})",
            literal(source),
            literal(destination),
            literal(publication),
            literal(options)
        ))
        .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let mut fields = row.into_iter();
            let mut next = || fields.next().flatten();
            Finding {
                check: next().unwrap_or_default(),
                severity: next().unwrap_or_default(),
                text: next().unwrap_or_default(),
                hint: next(),
            }
        })
        .collect())
}

/// A finding that must be there; `text` is what its object or detail names.
fn expect(found: &[Finding], check: &str, severity: &str, text: &str) {
    let finding =
        found.iter().find(|f| f.check == check && f.severity == severity && f.text.contains(text));
    match finding {
        None => panic!("no {severity} of {check} that names {text}: {found:#?}"),
        Some(finding) => {
            println!(
                "{check}: {} HINT: {}",
                finding.text,
                finding.hint.clone().unwrap_or_default()
            );
            assert!(severity == "info" || finding.hint.is_some(), "no hint: {finding:?}");
        }
    }
}

/// The statement that the first hint of a check ends with, by what it begins with.
fn pasted<'f>(found: &'f [Finding], check: &str, begin: &str) -> &'f str {
    let hints = found.iter().filter(|f| f.check == check).filter_map(|f| f.hint.as_deref());
    let mut statements = hints.filter_map(|hint| hint.find(begin).map(|at| &hint[at..]));
    statements.next().expect("a statement to paste")
}

const WHOLE: (&str, &str, &str) = (SOURCE, DESTINATION, PUBLICATION);

/// No error, and no warning but of the two keys that really hold per shard only.
async fn clean(session: &Session) -> Result<()> {
    let found = preflight(session, WHOLE, "{}").await?;
    let bad: Vec<&Finding> = found
        .iter()
        .filter(|f| f.severity != "info")
        .filter(|f| !f.text.contains("docs_pkey") && !f.text.contains("events_pkey"))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    Ok(())
}
