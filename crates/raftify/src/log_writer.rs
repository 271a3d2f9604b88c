//! The only writer of the log: makes turns durable, and lets their messages leave only then.
//!
//! Owns the [`StableStorage`]. The raft loop hands it turns in order; whatever has queued up while one write was under
//! way becomes one durable write. A write that fails is never tried again: the node stops.

use raftify_core::error::StopReason;
use raftify_core::storage::Write;
use raftify_core::{RaftMessage, StableStorage, TurnNumber};
use tokio::sync::mpsc;

use crate::outbox::Outbox;
use crate::raft_loop::Event;
use crate::worker::{Worker, caught};

/// At most this many turns are merged into one write. More would only delay the first of them.
const MERGED_TURNS_MAX: usize = 1024;

/// A turn, as far as it concerns the disk.
pub(crate) struct ToWrite {
    pub(crate) number: TurnNumber,
    pub(crate) write: Option<Write>,
    /// Must not leave before this turn and all before it are durable.
    pub(crate) send_after: Vec<RaftMessage>,
}

/// Starts the log writer on a thread of its own. It ends, and closes the storage, when the sender is dropped and
/// everything queued is written, or when a write fails.
///
/// The queue is unbounded because the core bounds what it hands out.
pub(crate) fn start<S: StableStorage>(
    storage: S,
    events: mpsc::UnboundedSender<Event>,
    outbox: Outbox,
) -> Result<(mpsc::UnboundedSender<ToWrite>, Worker), StopReason> {
    let (sender, queue) = mpsc::unbounded_channel();
    let worker = Worker::start("raftify-log", write_all(storage, queue, events, outbox))?;
    Ok((sender, worker))
}

async fn write_all<S: StableStorage>(
    mut storage: S,
    mut queue: mpsc::UnboundedReceiver<ToWrite>,
    events: mpsc::UnboundedSender<Event>,
    outbox: Outbox,
) {
    let mut turns = Vec::new();
    while queue.recv_many(&mut turns, MERGED_TURNS_MAX).await > 0 {
        let Some(newest) = turns.last().map(|turn| turn.number) else {
            continue;
        };
        let mut writes = Vec::new();
        let mut messages = Vec::new();
        for turn in turns.drain(..) {
            writes.extend(turn.write);
            messages.extend(turn.send_after);
        }
        let outcome = match caught(|| storage.write(&writes)) {
            Ok(Ok(())) => Event::Written(newest),
            Ok(Err(error)) => Event::Failed(StopReason::Storage(error.to_string())),
            Err(panic) => Event::Failed(StopReason::Storage(format!("it {panic}"))),
        };
        let failed = matches!(outcome, Event::Failed(_));
        // The loop hears of it before any peer does, so that an answer never overtakes the news. If the loop is gone,
        // the node has stopped, and the messages go nowhere.
        let _ = events.send(outcome);
        if failed {
            return;
        }
        if !messages.is_empty() {
            outbox.send(messages);
        }
    }
}
