//! Linearizable reads. The raft loop confirms the index of a read; a query then goes straight on to the state
//! machine, which answers its caller.

use std::time::Duration;

use raftify_core::error::{ReadError, StopReason};
use raftify_core::{LogIndex, Responder};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::api::raft_node::RaftNode;
use crate::application::log_entry::LogEntry;
use crate::application::state_machine::StateMachine;
use crate::apply::applier::Query;
use crate::runtime::worker::caught;
use crate::verbs::read_index::ReadIndex;
use crate::verbs::verb::Verb;

/// The result of a query.
struct Queried<T> {
    result: T,
    /// From the call until its index was confirmed and applied.
    confirmed_after: Duration,
}

impl<Entry, FSM> RaftNode<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// Runs `query` on the state machine and returns its result: a linearizable read.
    ///
    /// The closure sees every write that any node acknowledged before this call. It runs on the thread that
    /// owns the state machine, between two batches of entries: it should be quick, since nothing is
    /// applied meanwhile. A panic in it stops the node, as in `apply`. May be called on any node: the
    /// index comes from the leader, the state from this node's state machine. Waits at most
    /// [`read_timeout`](crate::Config::read_timeout) for the index; if the state machine is busy then, the
    /// whole call takes at most one second more.
    ///
    /// # Errors
    /// The errors of [`read_index`](Self::read_index). A read changes nothing: a retry is always safe.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless; the closure may still run.
    ///
    /// # Examples
    /// See the [quick start](crate#quick-start).
    pub async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&FSM) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let begin = Instant::now();
        let outcome = match self.fail_without_leader() {
            Ok(()) => self.run_query(query, begin).await,
            Err(error) => Err(error),
        };
        let metrics = &self.shared.metrics;
        match outcome {
            Ok(Queried { result, confirmed_after }) => {
                metrics.read(&Ok(()), confirmed_after);
                metrics.queried(begin.elapsed());
                Ok(result)
            }
            Err(error) => {
                let outcome = Err(error);
                metrics.read(&outcome, Duration::ZERO);
                outcome
            }
        }
    }

    /// Sends the query on its way, and returns the future of its answer.
    fn run_query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&FSM) -> T + Send + 'static,
        begin: Instant,
    ) -> impl Future<Output = Result<Queried<T>, ReadError>> {
        let (answered, answer) = oneshot::channel();
        let (queries, limit) = (self.shared.queries.clone(), self.shared.config.reads_in_flight_max as u64);
        // Called in the raft loop: it must not block.
        let reply = Responder::new(move |confirmed: Result<LogIndex, ReadError>| {
            let confirmed_after = begin.elapsed();
            let query: Query<FSM> = Box::new(move |state_machine: Result<&FSM, ReadError>| {
                let answer = match state_machine {
                    Ok(state_machine) => Ok(Queried { result: query(state_machine), confirmed_after }),
                    // Before the closure of the user is dropped, which may panic.
                    Err(error) => return drop(answered.send(Err(error))),
                };
                // The caller may have dropped its receiver, which is allowed.
                drop(answered.send(answer));
            });
            let (query, error) = match confirmed {
                Ok(_) => match queries.try_send(query) {
                    Ok(()) => return,
                    Err(TrySendError::Full(query)) => (query, ReadError::Busy { waiting: limit }),
                    Err(TrySendError::Closed(query)) => (query, StopReason::Stopped.into()),
                },
                Err(error) => (query, error),
            };
            if raftify_core::mutated!(RefusedQueryIsSilent) {
                return std::mem::forget(query);
            }
            // This drops the closure, which is user code and may panic.
            let _ = caught(|| query(Err(error)));
        });
        // Dropped without an answer: the state machine has failed, or the node has stopped.
        let answer = async move { answer.await.unwrap_or_else(|_| Err(StopReason::Stopped.into())) };
        let within = ReadIndex::DEADLINE(&self.shared.config);
        self.shared.ask(ReadIndex::of_this_node(reply), answer, within)
    }

    /// An index such that a state machine that has applied it reflects every write that any node acknowledged
    /// before this call. Resolves once this node has applied it, so that later reads of this node's state
    /// machine are not stale.
    ///
    /// The leader confirms by a round of heartbeats that it still leads; reads that wait at the same time
    /// share a round (ReadIndex, Raft thesis, section 6.4). May be called on any node. Waits at most
    /// [`read_timeout`](crate::Config::read_timeout).
    ///
    /// # Errors
    /// - [`NoLeader`](ReadError::NoLeader), [`Busy`](ReadError::Busy), [`TimedOut`](ReadError::TimedOut),
    ///   [`ConnectionLost`](ReadError::ConnectionLost): try again, a read changes nothing.
    /// - [`Stopped`](ReadError::Stopped): this node has stopped; ask another one.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn read_index(&self) -> Result<LogIndex, ReadError> {
        let begin = Instant::now();
        let outcome = match self.fail_without_leader() {
            Err(error) => Err(error),
            Ok(()) => {
                let within = ReadIndex::DEADLINE(&self.shared.config);
                self.shared.request(within, ReadIndex::of_this_node).await
            }
        };
        self.shared.metrics.read(&outcome, begin.elapsed());
        outcome
    }

    fn fail_without_leader(&self) -> Result<(), ReadError> {
        if !self.waits_for_leader && self.leader_id().is_none() { Err(ReadError::NoLeader) } else { Ok(()) }
    }
}
