//! The steps of a cutover, in order.

/// One step. Each can be repeated; those before [`Step::Commit`] are undone by
/// opening the old cluster again, those after it are repeated until they succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Checks, the opposite flow, a marker's round trip. No client notices.
    Prepare,
    /// Poolers and applications are told to pause.
    Pause,
    /// Writers of the old cluster are drained and held.
    Lease,
    /// The new cluster's sequences go on where the old one's stopped.
    Sequences,
    /// Everything written before has been applied on the new cluster.
    Barrier,
    /// The opposite flow is set to begin here.
    Handoff,
    /// The old cluster's latch is shut.
    Latch,
    /// The switch is committed.
    Commit,
    /// The new cluster's latch is opened, and traffic with it.
    Open,
    /// The old flow is stopped.
    StopFlow,
    /// The opposite flow is started.
    StartFlow,
}

impl Step {
    /// As it stands in `reshard.cutover_step`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Pause => "pause",
            Self::Lease => "lease",
            Self::Barrier => "barrier",
            Self::Sequences => "sequences",
            Self::Handoff => "handoff",
            Self::Latch => "latch",
            Self::Commit => "commit",
            Self::Open => "open",
            Self::StopFlow => "stop_flow",
            Self::StartFlow => "start_flow",
        }
    }
}
