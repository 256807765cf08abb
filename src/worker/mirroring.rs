//! What the views here show of a task is shown by those of the source's other shards too:
//! what has changed is sent to each of them, about once a second. The task never waits for
//! that: a shard that is away gets all again when it is back, and while a cutover holds
//! writers nothing is read.
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cutover::hold;
use crate::error::{Error, Result};
use crate::pg::xact::{transaction, transaction_async};
use crate::remote::{connect, Connection, Purpose};
use crate::state::event::{self, Severity};
use crate::state::mirror::{self, Feed, Horizon, View};
use crate::state::{self, cluster, task};

/// Pause between two looks at what has changed.
const PERIOD: Duration = Duration::from_secs(1);
/// Pause after which a shard that is away is tried again.
const AWAY: Duration = Duration::from_secs(5);
/// The coordinator's time is that of all tasks: of each view no more than one part of so
/// many is spent on reading what there is to send...
const SHARE: u32 = 50;
/// ... where that doesn't leave it longer than this without a look.
const LONGEST: Duration = Duration::from_secs(60);
/// The same for page after page of rows that change at the same time.
const SHARE_OF_PAGES: u32 = 4;
/// Bytes of rows after which those are sent that there are.
const BATCH: usize = 256 * 1024;

const SEND: &str = "INSERT INTO reshard.mirrored_row AS m \
            (view_name, token, root_id, key, shown, generation) \
     SELECT $1::text, $2::text, $3::bigint, r.key, r.shown, $4::text::timestamptz \
       FROM jsonb_to_recordset($5::text::jsonb) AS r (key jsonb, shown jsonb) \
     ON CONFLICT (view_name, token, root_id, key) \
     DO UPDATE SET shown = excluded.shown, generation = excluded.generation";

/// Sends what has changed of a task to another shard, until the task has ended and all is
/// there.
pub async fn run(feed: Feed) {
    let mut mirror = Mirror::new(feed);
    loop {
        let pause = match mirror.pass().await {
            Ok(true) => PERIOD,
            Ok(false) => return,
            Err(error) => {
                mirror.complain(&error);
                AWAY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

struct Mirror {
    feed: Feed,
    session: Option<Rc<Connection>>,
    /// This database's token.
    token: String,
    /// Other shards of the source: each has a mirror.
    peers: u32,
    /// What the other shard has of each of [`mirror::VIEWS`].
    known: Vec<Known>,
    /// Time spent on reading since this was last set.
    busy: Cell<Duration>,
    complained: bool,
}

/// What another shard has of a view.
struct Known {
    /// All that was committed by then; nothing for sure without it.
    since: Option<Horizon>,
    /// When all rows were last sent.
    generation: String,
    /// When it was last looked at.
    looked: Instant,
    /// When it is looked at again.
    due: Instant,
}

impl Known {
    fn nothing() -> Self {
        let now = Instant::now();
        Self { since: None, generation: String::new(), looked: now, due: now }
    }
}

impl Mirror {
    fn new(feed: Feed) -> Self {
        Self {
            feed,
            session: None,
            token: String::new(),
            peers: 1,
            known: Vec::new(),
            busy: Cell::new(Duration::ZERO),
            complained: false,
        }
    }

    /// Reads here, while nobody is held.
    async fn read<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        hold::released().await;
        let began = Instant::now();
        let outcome = transaction(work);
        self.busy.set(self.busy.get() + began.elapsed());
        outcome
    }

    /// Sends what has changed since the last pass; false once there is nothing more to
    /// come.
    async fn pass(&mut self) -> Result<bool> {
        let Some(session) = self.session().await? else { return Ok(false) };
        for (nr, view) in mirror::VIEWS.iter().enumerate() {
            if self.known[nr].due <= Instant::now() {
                self.known[nr] = self.update(&session, view, &self.known[nr]).await?;
            }
        }
        self.calm()?;
        let oldest = self.known.iter().min_by_key(|known| known.looked);
        if self.known.iter().any(|known| known.since.is_none()) {
            return Ok(true);
        }
        if let Some(at) = oldest.and_then(|known| known.since.as_ref()).map(|since| &since.at) {
            transaction_async(|| mirror::sent(self.feed, at))?;
        }
        Ok(self.read(mirror::unsettled).await?.contains(&self.feed))
    }

    /// Sends what has changed in a view.
    async fn update(&self, session: &Connection, view: &View, known: &Known) -> Result<Known> {
        self.busy.set(Duration::ZERO);
        let looked = Instant::now();
        let now = self.read(mirror::horizon).await?;
        let generation = match known.since {
            Some(_) => known.generation.clone(),
            None => now.at.clone(),
        };
        let has_lost = match &known.since {
            Some(since) if view.of_tables && !self.have_tables_changed(since).await? => false,
            Some(since) => {
                let sent = self.send(session, view, Some(since), &generation).await?;
                self.has_lost(session, view, sent).await?
            }
            None => {
                self.send(session, view, None, &generation).await?;
                self.forget_older(session, view, &generation).await?;
                false
            }
        };
        let rest = (self.busy.get() * SHARE * self.peers).min(LONGEST);
        // Where rows have gone, all of those that are left are sent the next time.
        let since = (!has_lost).then_some(now);
        Ok(Known { since, generation, looked, due: Instant::now() + rest })
    }

    async fn have_tables_changed(&self, since: &Horizon) -> Result<bool> {
        self.read(|| mirror::has_changed_tables(self.feed.task_id, since)).await
    }

    /// The session on the other shard, which knows who sends; none where it can show
    /// nothing, or is no shard of the source any more.
    async fn session(&mut self) -> Result<Option<Rc<Connection>>> {
        if let Some(open) = self.session.clone().filter(|s| !s.is_closed()) {
            return Ok(Some(open));
        }
        self.session = None;
        self.known = mirror::VIEWS.iter().map(|_| Known::nothing()).collect();
        let feed = self.feed;
        let (node, shards, token) = self
            .read(|| {
                let task = task::load(feed.task_id)?;
                Ok((task.options.node, cluster::endpoints(&task.source)?, state::token()?))
            })
            .await?;
        let Some(there) = shards.iter().find(|s| s.shard == feed.shard) else {
            return self.forget();
        };
        let here = shards.iter().find(|s| s.shard == node).map(|s| s.conninfo.address());
        let session = connect(there, Purpose::Mirror).await?;
        let can_show: bool =
            session.value("SELECT to_regclass('reshard.mirrored_row') IS NOT NULL", &[]).await?;
        if !can_show {
            return self.forget();
        }
        // What an installation sent that was there before this one: nobody keeps it up.
        session
            .execute(
                "DELETE FROM reshard.coordinator AS c \
                  WHERE c.token <> $1 AND c.shard = $2 AND c.address IS NOT DISTINCT FROM $3",
                &[&token, &(node as i32), &here],
            )
            .await?;
        session
            .execute(
                "INSERT INTO reshard.coordinator AS c (token, shard, address) VALUES ($1, $2, $3) \
                 ON CONFLICT (token) \
                 DO UPDATE SET shard = excluded.shard, address = excluded.address",
                &[&token, &(node as i32), &here],
            )
            .await?;
        self.token = token;
        self.peers = (shards.len() as u32).saturating_sub(1).max(1);
        self.session = Some(Rc::new(session));
        Ok(self.session.clone())
    }

    fn forget(&self) -> Result<Option<Rc<Connection>>> {
        transaction(|| mirror::forget(self.feed)).map(|()| None)
    }

    /// Sends rows of a view that have changed, page by page; how many those were.
    async fn send(
        &self,
        session: &Connection,
        view: &View,
        since: Option<&Horizon>,
        generation: &str,
    ) -> Result<usize> {
        let (mut sent, mut after) = (0, None::<String>);
        loop {
            let busy = self.busy.get();
            let rows =
                self.read(|| view.changed(self.feed.task_id, since, after.as_deref())).await?;
            self.write(session, view, generation, &rows).await?;
            sent += rows.len();
            match rows.into_iter().next_back() {
                Some((last, _)) if view.pages && sent % mirror::PAGE == 0 => after = Some(last),
                _ => return Ok(sent),
            }
            let page = self.busy.get() - busy;
            tokio::time::sleep(page * SHARE_OF_PAGES * self.peers).await;
        }
    }

    async fn write(
        &self,
        session: &Connection,
        view: &View,
        generation: &str,
        rows: &[(String, String)],
    ) -> Result<()> {
        let mut batch = String::new();
        for (nr, (key, shown)) in (1..).zip(rows) {
            batch.push(if batch.is_empty() { '[' } else { ',' });
            batch.push_str(&format!("{{\"key\":{key},\"shown\":{shown}}}"));
            if batch.len() < BATCH && nr < rows.len() {
                continue;
            }
            batch.push(']');
            session
                .execute(SEND, &[&view.name, &self.token, &self.feed.task_id, &generation, &batch])
                .await?;
            batch.clear();
        }
        Ok(())
    }

    /// Whether the other shard shows rows that there are none of here any more.
    async fn has_lost(&self, session: &Connection, view: &View, sent: usize) -> Result<bool> {
        let Some(here) = self.read(|| view.count(self.feed.task_id, sent)).await? else {
            return Ok(false);
        };
        let there: i64 = session
            .value(
                "SELECT count(*) FROM reshard.mirrored_row AS m \
                  WHERE m.view_name = $1 AND m.token = $2 AND m.root_id = $3",
                &[&view.name, &self.token, &self.feed.task_id],
            )
            .await?;
        Ok(there > here)
    }

    /// All rows of a view that there are have been sent: the others are gone.
    async fn forget_older(
        &self,
        session: &Connection,
        view: &View,
        generation: &str,
    ) -> Result<()> {
        session
            .execute(
                "DELETE FROM reshard.mirrored_row AS m \
                  WHERE m.view_name = $1 AND m.token = $2 AND m.root_id = $3 \
                    AND m.generation <> $4::text::timestamptz",
                &[&view.name, &self.token, &self.feed.task_id, &generation],
            )
            .await
            .map(drop)
    }

    /// Writes down, once until that is over, that the other shard does not show the task.
    fn complain(&mut self, error: &Error) {
        self.session = None;
        if std::mem::replace(&mut self.complained, true) {
            return;
        }
        let Feed { task_id, shard } = self.feed;
        let noted = transaction(|| {
            event::write(
                Some(task_id),
                Severity::Warning,
                "mirror",
                &format!("shard {shard} of the source does not show how the task stands"),
                serde_json::json!({
                    "sqlstate": error.sqlstate(),
                    "detail": error.one_line(),
                    "hint": error.hint,
                }),
            )
        });
        if let Err(lost) = noted {
            pgrx::warning!("reshard could not note an error: {}", lost.one_line());
        }
    }

    /// Writes down that it shows it again.
    fn calm(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.complained) {
            return Ok(());
        }
        let Feed { task_id, shard } = self.feed;
        let message = format!("shard {shard} of the source shows how the task stands again");
        transaction(|| event::info(task_id, "mirror", &message))
    }
}
