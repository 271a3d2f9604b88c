//! What a handle shows of its node without changing anything: the status, the events, and the diagnostics.

use raftify_core::error::StopReason;
use raftify_core::{Inspection, Status};
use tokio::sync::watch;

use super::RaftNode;
use crate::application::log_entry::LogEntry;
use crate::application::state_machine::StateMachine;
use crate::channels::node_events::Events;
use crate::verbs::inspect::Inspect;
use crate::verbs::verb::Verb;

impl<Entry, FSM> RaftNode<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// The status of this node, and every change of it. The receiver sees the newest status; intermediate
    /// ones may be skipped.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// The events of this node from now on: changes of the leader, the term, the role and the members,
    /// snapshots, connections to members, and trouble with the disk. See [`Event`](crate::events::Event).
    ///
    /// Any number of readers get the same events in the same order, each with a number. The newest 256 are
    /// kept for a reader: one that is slower misses the older ones, and gets
    /// [`Event::Missed`](crate::events::Event::Missed) with their exact number. A reader never holds the node
    /// up. The stream ends once the node has stopped, or at once if it has stopped already. It may be called
    /// before the node runs.
    ///
    /// To know the state as well, subscribe first, and read the [`status`](Self::status) afterwards.
    ///
    /// # Examples
    /// ```no_run
    /// # use raftify::{LogEntry, RaftNode, StateMachine};
    /// use raftify::events::Event;
    ///
    /// # async fn watch<E: LogEntry, S: StateMachine<LogEntry = E>>(node: &RaftNode<E, S>) {
    /// let mut events = node.events();
    /// while let Some(record) = events.next().await {
    ///     match record.event {
    ///         Event::LeaderChanged { leader, term } => println!("the leader of {term} is {leader:?}"),
    ///         Event::Missed(count) => println!("{count} events were missed"),
    ///         event => println!("{}: {event}", record.sequence),
    ///     }
    /// }
    /// println!("the node has stopped");
    /// # }
    /// ```
    pub fn events(&self) -> Events {
        self.shared.events.subscribe()
    }

    /// The full diagnostics of a node. Waits at most [`read_timeout`](crate::Config::read_timeout).
    ///
    /// # Errors
    /// Why this node does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn inspect(&self) -> Result<Inspection, StopReason> {
        let within = Inspect::DEADLINE(&self.shared.config);
        let inspection = self.shared.request(within, Inspect::of_this_node).await?;
        Ok(Inspection { disk: self.shared.metrics.disk_space(), ..inspection })
    }
}
