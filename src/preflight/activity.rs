//! Checks of what goes on now: transactions that hold up slots and the cutover.
use crate::cluster::Side;
use crate::error::Kind;
use crate::preflight::facts::{Facts, Transaction};
use crate::preflight::finding::Finding;

/// Transactions that have been open for more than a minute.
pub fn long_transactions(facts: &Facts<'_>) -> Vec<Finding> {
    let mut out = Vec::new();
    for (server, known) in facts.known_of(Side::Source) {
        for transaction in &known.long_transactions {
            out.push(
                Finding::warning(
                    "long_transactions",
                    format!(
                        "a transaction has been open for {} on {}",
                        age(transaction),
                        server.endpoint
                    ),
                )
                .object(format!("process {}", transaction.pid))
                .detail(format!(
                    "Process {}, user \"{}\", application \"{}\", state \"{}\": it can hold up the \
                     creation of replication slots and the cutover.",
                    transaction.pid,
                    transaction.user.as_deref().unwrap_or(""),
                    transaction.application.as_deref().unwrap_or(""),
                    transaction.state.as_deref().unwrap_or(""),
                ))
                .hint(format!("Let it end, or: SELECT pg_terminate_backend({});", transaction.pid)),
            );
        }
    }
    out
}

fn age(transaction: &Transaction) -> String {
    match transaction.seconds {
        s if s < 120 => format!("{s} seconds"),
        s if s < 7200 => format!("{} minutes", s / 60),
        s => format!("{} hours", s / 3600),
    }
}

/// Prepared transactions, which nobody may ever end.
pub fn prepared_transactions(facts: &Facts<'_>) -> Vec<Finding> {
    let mut out = Vec::new();
    for (server, known) in facts.known_of(Side::Source) {
        for gid in &known.prepared {
            out.push(
                Finding::warning(
                    "prepared_transactions",
                    format!("a prepared transaction is open on {}", server.endpoint),
                )
                .object(gid.clone())
                .detail("It holds up the creation of replication slots until it is ended.")
                .hint(format!(
                    "COMMIT PREPARED '{0}'; or: ROLLBACK PREPARED '{0}';",
                    gid.replace('\'', "''")
                )),
            );
        }
    }
    out
}

/// Someone else's subscriptions that write to tables which move.
pub fn subscriptions(facts: &Facts<'_>) -> Vec<Finding> {
    if !facts.verb.has_flows() {
        return Vec::new();
    }
    facts
        .content
        .iter()
        .flat_map(|content| &content.subscriptions)
        .map(|subscription| {
            Finding::error(
                "subscriptions",
                Kind::WrongState,
                format!("subscription \"{}\" writes to tables that move", subscription.name),
            )
            .object(subscription.name.clone())
            .detail(format!(
                "The fence can't hold its apply worker, which fires no statement triggers: it would \
                 write to the source after the switch. Tables: {}.",
                subscription.tables
            ))
            .hint(format!(
                "ALTER SUBSCRIPTION {} DISABLE; or move its publisher's tables instead.",
                subscription.quoted
            ))
        })
        .collect()
}
