//! Who brings rows to one shard: loads part after part over a session that is kept,
//! in the order in which they are sent. A part can be on its way while the shard
//! still commits the one before.
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use crate::copy::load::{Job, Link, Load};
use crate::error::Result;
use crate::remote::Endpoint;

/// A shard's courier. Dropping it ends the session once all is loaded.
pub(super) struct Courier {
    errands: UnboundedSender<Errand>,
}

struct Errand {
    job: Arc<Job>,
    data: UnboundedReceiver<Load>,
    end: oneshot::Sender<Result<()>>,
}

impl Courier {
    /// A courier of that shard, not connected yet.
    pub(super) fn start(runtime: &Runtime, endpoint: Endpoint) -> Self {
        let (errands, mut waiting) = unbounded_channel::<Errand>();
        runtime.spawn(async move {
            let mut link = Link::new(endpoint);
            while let Some(Errand { job, data, end }) = waiting.recv().await {
                // Who sent the part may have given it up.
                drop(end.send(link.load(&job, data).await));
            }
        });
        Self { errands }
    }

    /// Has a part loaded: where its rows go, and what says how it ended. Where the
    /// sender is dropped before the end, nothing of it stays on the shard.
    pub(super) fn load(
        &self,
        job: Arc<Job>,
    ) -> (UnboundedSender<Load>, oneshot::Receiver<Result<()>>) {
        let (sender, data) = unbounded_channel();
        let (end, ended) = oneshot::channel();
        // A courier that is gone drops `end`, which tells.
        drop(self.errands.send(Errand { job, data, end }));
        (sender, ended)
    }
}
