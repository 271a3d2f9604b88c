//! The events of a node, for its user and for remote clients: what they are, and the channel to any number of
//! readers.
//!
//! The parts of a node publish an event where they own the state that has changed: the raft loop, the log
//! writer, and the measurement of the disk. Publishing never waits. Each reader gets every event in order, or
//! the number of events that it missed.

use std::fmt;
use std::sync::Arc;

use futures_util::stream::{Stream, unfold};
use parking_lot::Mutex;
use raftify_core::error::StopReason;
use raftify_core::{LogIndex, LogPosition, Member, MemberRole, NodeId, Role, Term, mutated};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many of the newest events a reader can still get. A power of two: the channel would round it up.
const KEPT: usize = 256;

/// How many remote clients may read the events of a node at once.
pub(crate) const REMOTE_READERS_MAX: usize = 64;

/// One change of the state of a node.
///
/// The node reports its own view: another node may learn of the same change earlier or later. A state that
/// lasts shorter than the node needs to publish it is not reported, as in the
/// [`status`](crate::RaftNode::status).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The node knows another leader, or none, or the same one in another term.
    LeaderChanged {
        /// The leader; `None`: none is known.
        leader: Option<NodeId>,
        /// The term of the node.
        term: Term,
    },
    /// The node is in another term.
    TermChanged {
        /// The new term.
        term: Term,
    },
    /// The node has another role in its term.
    RoleChanged {
        /// The new role.
        role: Role,
        /// The term of the node.
        term: Term,
    },
    /// A node became a member, as far as applied here.
    MemberAdded {
        /// The member, with its first role.
        member: Member,
        /// The index of the membership.
        index: LogIndex,
    },
    /// A member came closer to a vote: it is a voter now, or a learner that will become one.
    MemberPromoted {
        /// The member.
        id: NodeId,
        /// Its new role.
        role: MemberRole,
        /// The index of the membership.
        index: LogIndex,
    },
    /// A member lost its vote, or its prospect of one.
    MemberDemoted {
        /// The member.
        id: NodeId,
        /// Its new role.
        role: MemberRole,
        /// The index of the membership.
        index: LogIndex,
    },
    /// A node is no longer a member.
    MemberRemoved {
        /// The node.
        id: NodeId,
        /// The index of the membership.
        index: LogIndex,
    },
    /// A member has another address.
    MemberMoved {
        /// The member.
        id: NodeId,
        /// Its previous address.
        from: String,
        /// Its new address.
        to: String,
        /// The index of the membership.
        index: LogIndex,
    },
    /// The node begins to take a snapshot. `SnapshotTaken` or `SnapshotFailed` follows, unless the node
    /// stops.
    SnapshotBegun {
        /// The last applied index: the snapshot is at this index, or a later one.
        index: LogIndex,
    },
    /// A snapshot that the node has taken is durable and in use.
    SnapshotTaken {
        /// Its position.
        position: LogPosition,
    },
    /// The node could not take a snapshot.
    SnapshotFailed {
        /// Why.
        reason: String,
    },
    /// A snapshot that the leader has sent is durable and in use.
    SnapshotInstalled {
        /// Its position.
        position: LogPosition,
    },
    /// The node, as the leader, begins to send a snapshot. `SnapshotSent` or `SnapshotNotSent` follows,
    /// unless the node stops.
    SnapshotSending {
        /// The receiver.
        to: NodeId,
        /// Its position.
        position: LogPosition,
    },
    /// The receiver has installed a snapshot.
    SnapshotSent {
        /// The receiver.
        to: NodeId,
        /// Its position.
        position: LogPosition,
    },
    /// A snapshot was not installed by its receiver; if it is needed, the node tries again.
    SnapshotNotSent {
        /// The receiver.
        to: NodeId,
        /// Its position.
        position: LogPosition,
        /// Why.
        reason: String,
    },
    /// This node has connected to a member at the address of the membership, and the member answers there.
    PeerReachable {
        /// The member.
        id: NodeId,
    },
    /// The connection to a member broke, or the first attempt to connect failed; the node tries again.
    PeerUnreachable {
        /// The member.
        id: NodeId,
    },
    /// A durable write of the log took longer than an election timeout.
    DiskSlow {
        /// How long it took, in milliseconds.
        millis: u64,
        /// The election timeout, in milliseconds.
        limit_millis: u64,
    },
    /// The disk has less free space than [`storage_reserve_bytes`](crate::Config::storage_reserve_bytes): the
    /// node takes no proposals. [`DiskHasRoom`](Self::DiskHasRoom) follows as soon as it does again.
    DiskFull {
        /// Free space for this process, in bytes.
        free_bytes: u64,
        /// The size of the file system, in bytes.
        size_bytes: u64,
    },
    /// The disk was full, and has room again: the node takes proposals.
    DiskHasRoom {
        /// Free space for this process, in bytes.
        free_bytes: u64,
        /// The size of the file system, in bytes.
        size_bytes: u64,
    },
    /// The storage failed, for instance because the disk is full: the node stops.
    DiskFailed {
        /// Why, with the error of the operating system.
        reason: String,
    },
    /// The node stops: the last event.
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// The reader was too slow and missed this many events before the next one.
    Missed(u64),
    /// From a node of a newer version: an event that this version does not know, in words.
    Other(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::LeaderChanged { leader: Some(leader), term } => {
                write!(f, "node {leader} leads in term {term}")
            }
            Event::LeaderChanged { leader: None, term } => write!(f, "no leader is known in term {term}"),
            Event::TermChanged { term } => write!(f, "term {term}"),
            Event::RoleChanged { role, term } => write!(f, "it is {role} in term {term}"),
            Event::MemberAdded { member: Member { id, address, role, .. }, index } => {
                write!(f, "node {id} at {address} was added as {role}, at index {index}")
            }
            Event::MemberPromoted { id, role, index } => {
                write!(f, "node {id} was promoted to {role}, at index {index}")
            }
            Event::MemberDemoted { id, role, index } => {
                write!(f, "node {id} was demoted to {role}, at index {index}")
            }
            Event::MemberRemoved { id, index } => write!(f, "node {id} was removed, at index {index}"),
            Event::MemberMoved { id, from, to, index } => {
                write!(f, "node {id} moved from {from} to {to}, at index {index}")
            }
            Event::SnapshotBegun { index } => write!(f, "takes a snapshot at index {index} or later"),
            Event::SnapshotTaken { position } => write!(f, "has taken the snapshot at {position}"),
            Event::SnapshotFailed { reason } => write!(f, "could not take a snapshot: {reason}"),
            Event::SnapshotInstalled { position } => write!(f, "has installed the snapshot at {position}"),
            Event::SnapshotSending { to, position } => {
                write!(f, "sends the snapshot at {position} to node {to}")
            }
            Event::SnapshotSent { to, position } => {
                write!(f, "node {to} has installed the snapshot at {position}")
            }
            Event::SnapshotNotSent { to, position, reason } => {
                write!(f, "node {to} has not installed the snapshot at {position}: {reason}")
            }
            Event::PeerReachable { id } => write!(f, "reaches node {id}"),
            Event::PeerUnreachable { id } => write!(f, "does not reach node {id}"),
            Event::DiskSlow { millis, limit_millis } => {
                write!(
                    f,
                    "a write to the log took {millis} ms, more than an election timeout ({limit_millis} ms)"
                )
            }
            Event::DiskFull { free_bytes, size_bytes } => {
                write!(
                    f,
                    "the disk is full: {free_bytes} of {size_bytes} bytes are free, less than the reserve"
                )
            }
            Event::DiskHasRoom { free_bytes, size_bytes } => {
                write!(f, "the disk has room again: {free_bytes} of {size_bytes} bytes are free")
            }
            Event::DiskFailed { reason } => write!(f, "the storage failed: {reason}"),
            Event::Stopped { reason } => write!(f, "stops: {reason}"),
            Event::Missed(count) => write!(f, "{count} events were missed here"),
            Event::Other(text) => f.write_str(text),
        }
    }
}

/// An event with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventRecord {
    /// Events are counted from 1, from the moment at which the node is set up: it starts again with each
    /// process. That of [`Event::Missed`] is the number of the last missed event.
    pub sequence: u64,
    /// The event.
    pub event: Event,
}

/// The publishing end: shared by the parts of a node, and by its handles, which subscribe.
pub(crate) struct NodeEvents {
    published: Mutex<Published>,
    remote_readers: Arc<Semaphore>,
}

struct Published {
    /// The number of the last event.
    sequence: u64,
    /// `None` once the node has ended.
    sender: Option<Sender<EventRecord>>,
}

impl NodeEvents {
    pub(crate) fn new() -> Arc<NodeEvents> {
        let sender = Some(Sender::new(KEPT));
        Arc::new(NodeEvents {
            published: Mutex::new(Published { sequence: 0, sender }),
            remote_readers: Arc::new(Semaphore::new(REMOTE_READERS_MAX)),
        })
    }

    /// Numbers an event and passes it to all readers. Never waits for a reader.
    pub(crate) fn publish(&self, event: Event) {
        // One lock for both, so that the numbers have the order of the events.
        let mut published = self.published.lock();
        published.sequence += 1;
        let record = EventRecord { sequence: published.sequence, event };
        let Some(sender) = &published.sender else { return };
        if mutated!(SlowReaderHoldsUpTheNode) {
            while sender.receiver_count() > 0 && sender.len() >= KEPT {
                std::thread::yield_now();
            }
        }
        // An error means that there is no reader.
        let _ = sender.send(record);
    }

    /// A reader of all events from now on.
    pub(crate) fn subscribe(&self) -> Events {
        let published = self.published.lock();
        let receiver = match &published.sender {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1, // Its sender is gone: it has ended.
        };
        Events { receiver, last: published.sequence }
    }

    /// The same for a remote client; `None`: too many of them are reading. It counts until the permit is
    /// dropped.
    pub(crate) fn subscribe_remotely(&self) -> Option<(Events, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.remote_readers).try_acquire_owned().ok()?;
        Some((self.subscribe(), permit))
    }

    /// Ends the streams of all readers, once they have read the events so far.
    fn end(&self) {
        self.published.lock().sender = None;
    }
}

/// The node exists as long as this does: dropping it ends the streams of events.
pub(crate) struct EventsEnd(pub(crate) Arc<NodeEvents>);

impl Drop for EventsEnd {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A reader of a node's events: see [`RaftNode::events`](crate::RaftNode::events).
pub struct Events {
    receiver: Receiver<EventRecord>,
    /// The number of the last event before the next one.
    last: u64,
}

impl Events {
    /// The next event; `None` once the node has stopped and all its events were read.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<EventRecord> {
        loop {
            match self.receiver.recv().await {
                Ok(record) => {
                    self.last = record.sequence;
                    return Some(record);
                }
                Err(RecvError::Lagged(missed)) => {
                    self.last += missed;
                    if mutated!(MissedEventsAreNotReported) {
                        continue;
                    }
                    return Some(EventRecord { sequence: self.last, event: Event::Missed(missed) });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The same as a stream, for combinators. It ends once the node has stopped.
    pub fn into_stream(self) -> impl Stream<Item = EventRecord> + Send + 'static {
        unfold(self, async |mut events| events.next().await.map(|record| (record, events)))
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("last", &self.last).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn term(number: usize) -> Event {
        Event::TermChanged { term: Term(number as u64) }
    }

    fn next(events: &mut Events) -> Option<EventRecord> {
        events.next().now_or_never().expect("an event, or the end")
    }

    #[test]
    fn a_reader_that_reads_nothing_does_not_hold_up_the_node() {
        let events = NodeEvents::new();
        let reader = events.subscribe();
        let (published, all) = mpsc::channel();
        // Ends with the process, if the node is held up.
        thread::spawn(move || {
            (1..=3 * KEPT).for_each(|number| events.publish(term(number)));
            let _ = published.send(());
        });
        assert_eq!(all.recv_timeout(Duration::from_secs(30)), Ok(()), "publishing waits for a reader");
        drop(reader);
    }

    #[test]
    fn a_slow_reader_is_told_exactly_how_many_events_it_missed() {
        let events = NodeEvents::new();
        events.publish(term(1));
        let (mut slow, mut quick) = (events.subscribe(), events.subscribe());
        for number in 2..=KEPT + 8 {
            events.publish(term(number));
            let record = next(&mut quick).unwrap();
            assert_eq!((record.sequence, record.event), (number as u64, term(number)));
        }
        // Of the events 2 to 264, the newest 256 are kept: 2 to 8 are gone.
        let missed = next(&mut slow).unwrap();
        assert_eq!((missed.sequence, missed.event), (8, Event::Missed(7)));
        for number in 9..=KEPT + 8 {
            let record = next(&mut slow).unwrap();
            assert_eq!((record.sequence, record.event), (number as u64, term(number)));
        }
        assert!(slow.next().now_or_never().is_none(), "there is no other event");
    }

    #[test]
    fn a_stream_ends_after_the_last_event_and_one_that_begins_later_is_empty() {
        let events = NodeEvents::new();
        let end = EventsEnd(Arc::clone(&events));
        let reader = events.subscribe();
        events.publish(term(1));
        drop(end);
        events.publish(term(2));
        let all: Vec<EventRecord> = reader.into_stream().collect().now_or_never().expect("it has ended");
        assert_eq!(all.iter().map(|record| &record.event).collect::<Vec<_>>(), [&term(1)]);
        assert_eq!(next(&mut events.subscribe()), None);
    }
}
