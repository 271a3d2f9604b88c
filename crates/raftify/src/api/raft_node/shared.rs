//! The state that all handles of a node share, and the path of a request to its answer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raftify_core::error::StopReason;
use raftify_core::{CheckedConfig, LocalRequestMsg, NodeId, Responder, Status, VerbError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::application::state_machine::StateMachine;
use crate::apply::applier::Query;
use crate::channels::in_flight::InFlight;
use crate::channels::lifecycle::{Lifecycle, RunTask};
use crate::channels::metrics::NodeMetrics;
use crate::channels::node_events::NodeEvents;
use crate::channels::reply::{Reply, channel};
use crate::channels::request_queue::{Refused, RequestSender};
use crate::security::dialer::Dialer;
use crate::verbs::verb::LeaderVerb;

/// The core answers by its own deadlines; after this additional time, a call fails without the core's answer.
const BACKSTOP: Duration = Duration::from_secs(1);

pub(super) struct Shared<FSM: StateMachine> {
    pub(super) node_id: NodeId,
    pub(super) config: CheckedConfig,
    /// Makes connections to nodes that are to be added.
    pub(super) dialer: Dialer,
    pub(super) requests: RequestSender<LocalRequestMsg<Reply<FSM::Reply>>>,
    pub(super) queries: mpsc::Sender<Query<FSM>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) lifecycle: Lifecycle,
    /// Set on a node that `start` runs: the node stops when the last handle is dropped.
    pub(super) task: Mutex<Option<RunTask>>,
    /// The proposals of this node's user.
    pub(super) proposals: Arc<InFlight>,
    pub(super) metrics: Arc<NodeMetrics>,
    pub(super) events: Arc<NodeEvents>,
}

impl<FSM: StateMachine> Shared<FSM> {
    /// Asks the leader, with a reply channel for each attempt. Tries again as long as the answer is that
    /// another node leads than the contacted one, or that no leader is known: nothing was done then, and this
    /// node is about to learn of a leader.
    pub(super) async fn ask_leader<V: LeaderVerb, T, Answer: Future<Output = Result<T, V::Error>>>(
        &self,
        waits: bool,
        verb: V,
        channel: impl Fn() -> (V::Channel<Reply<FSM::Reply>>, Answer),
    ) -> Result<T, V::Error> {
        let within = V::DEADLINE(&self.config);
        let attempt = |within| {
            let (reply, answer) = channel();
            let request = verb.clone().request(reply);
            self.ask(LocalRequestMsg::ForLeaderWithin { request, within, waits }, answer, within)
        };
        let until = Instant::now() + within;
        let leadership = |status: &Status| (status.leader_id, status.term);
        let mut seen = leadership(&self.status.borrow());
        // Fast path: the setup below runs only when it is needed.
        let mut answer = attempt(within).await;
        while waits && answer.as_ref().is_err_and(V::Error::leadership_moved) && Instant::now() < until {
            // Without news of the leader, wait for one tick.
            let mut status = self.status.clone();
            let _ = timeout(self.config.tick_interval, status.wait_for(|status| leadership(status) != seen))
                .await;
            seen = leadership(&self.status.borrow());
            answer = attempt(until.saturating_duration_since(Instant::now())).await;
        }
        answer
    }

    /// Sends the request that `request` builds from a reply channel, and waits for the answer.
    pub(super) async fn request<T: Send + 'static, E: VerbError>(
        &self,
        within: Duration,
        request: impl FnOnce(Responder<T, E>) -> LocalRequestMsg<Reply<FSM::Reply>>,
    ) -> Result<T, E> {
        let (reply, answer) = channel();
        self.ask(request(reply), answer, within).await
    }

    pub(super) async fn ask<T, E: VerbError>(
        &self,
        request: LocalRequestMsg<Reply<FSM::Reply>>,
        answer: impl Future<Output = Result<T, E>>,
        within: Duration,
    ) -> Result<T, E> {
        if self.lifecycle.is_waiting() {
            match timeout(within.min(self.config.membership_timeout), self.lifecycle.running()).await {
                Ok(running) => running?,
                Err(_) => return Err(StopReason::NotRunning.into()),
            }
        }
        match self.requests.try_send(request) {
            Ok(()) => {}
            Err(Refused::Closed) => return Err(self.lifecycle.stop_reason().into()),
            Err(Refused::Full { request, waiting }) => match E::busy(waiting) {
                Some(busy) => return Err(busy),
                None => match timeout(within, self.requests.send(request)).await {
                    Ok(sent) => sent.map_err(|_| self.lifecycle.stop_reason())?,
                    Err(_) => return Err(E::late(within)),
                },
            },
        }
        let answer = timeout(within + BACKSTOP, answer).await.unwrap_or_else(|_| Err(E::late(within)));
        answer.map_err(|error| error.explained(|| self.lifecycle.stop_reason()))
    }
}
