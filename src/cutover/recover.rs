//! What happens after a crash in the middle of a cutover: before its commit point
//! it is undone, after it it is finished.
use crate::cutover::switch::Switch;
use crate::cutover::Step;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::transaction;
use crate::state::{cutover, event, intent, traffic};

/// Ends the cutover that was interrupted, one way or the other.
///
/// # Errors
/// A server can't be reached; it has to be repeated then.
pub async fn run(switch: &Switch<'_>, interrupted: &cutover::Cutover) -> Result<()> {
    let flag = transaction(|| traffic::load(switch.traffic))?;
    let committed = flag.active_cluster == interrupted.to_cluster && !interrupted.dry_run;
    let message = match committed {
        true => "a cutover was interrupted after its commit point; the rest of it is done now",
        false => "a cutover was interrupted before its commit point; the old cluster stays active",
    };
    transaction(|| {
        event::write(
            Some(switch.task_id),
            event::Severity::Warning,
            "cutover_recovery",
            message,
            serde_json::json!({ "cutover": interrupted.id }),
        )
    })?;
    if committed {
        return switch.finish(&interrupted.to_cluster, flag.epoch).await;
    }
    // Nobody knows how far it came.
    switch.at.set(Step::StartFlow);
    switch.undo().await?;
    let error = Error::new(Kind::ConnectionLost, "the cutover was interrupted")
        .detail("The worker or its server ended before the commit point; nothing was switched.")
        .hint("Call reshard_cutover() again.");
    transaction(|| {
        cutover::abort(interrupted.id, &error)?;
        intent::switch_was_interrupted(switch.task_id, interrupted, &error)
    })
}
