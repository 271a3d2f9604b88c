//! The state that all handles of a node share, and the path of a request to its answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use raftify_core::error::StopReason;
use raftify_core::{CheckedConfig, LocalRequestMsg, NodeId, Responder, Status, Term, VerbError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::application::state_machine::StateMachine;
use crate::apply::applier::Query;
use crate::channels::backups::BackupCall;
use crate::channels::in_flight::InFlight;
use crate::channels::lifecycle::{Lifecycle, RunTask};
use crate::channels::metrics::NodeMetrics;
use crate::channels::node_events::NodeEvents;
use crate::channels::reply::{Reply, channel};
use crate::channels::request_queue::{Refused, RequestSender};
use crate::security::dialer::Dialer;
use crate::verbs::verb::LeaderVerb;

/// The core answers by its own deadlines; after this additional time, a call fails without the core's answer.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Shared<FSM: StateMachine> {
    pub(super) node_id: NodeId,
    pub(super) config: CheckedConfig,
    /// Makes connections to nodes that are to be added.
    pub(super) dialer: Dialer,
    pub(super) requests: RequestSender<LocalRequestMsg<Reply<FSM::Reply>>>,
    pub(super) queries: mpsc::Sender<Query<FSM>>,
    pub(super) backups: mpsc::Sender<BackupCall>,
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
        let begin = Instant::now();
        let seen = leadership(&self.status.borrow());
        let answer = attempt(within).await;
        if !waits || !answer.as_ref().is_err_and(V::Error::leadership_moved) {
            return answer;
        }
        Box::pin(self.try_again(begin + within, seen, answer, attempt)).await
    }

    async fn try_again<T, E: VerbError, Attempt: Future<Output = Result<T, E>>>(
        &self,
        until: Instant,
        mut seen: (Option<NodeId>, Term),
        mut answer: Result<T, E>,
        attempt: impl Fn(Duration) -> Attempt,
    ) -> Result<T, E> {
        while answer.as_ref().is_err_and(E::leadership_moved) && Instant::now() < until {
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

    /// Queues a request, and returns the future of its answer. The future holds no part of the request,
    /// unless there is something to wait for before: as many callers as may wait hold such a future.
    pub(super) fn ask<T, E: VerbError>(
        &self,
        request: LocalRequestMsg<Reply<FSM::Reply>>,
        answer: impl Future<Output = Result<T, E>>,
        within: Duration,
    ) -> impl Future<Output = Result<T, E>> {
        let queued = self.queue::<E>(request, within);
        async move {
            match queued {
                Ok(None) => {}
                Ok(Some(queued)) => queued.await?,
                Err(error) => return Err(error),
            }
            let until = Instant::now() + within + ANSWER_GRACE;
            let answer = self.lifecycle.backstop().until(until, pin!(answer)).await;
            let answer = answer.unwrap_or_else(|| Err(E::late(within)));
            answer.map_err(|error| error.explained(|| self.lifecycle.stop_reason()))
        }
    }

    /// `Some`: the request is queued when that has resolved. `None`: it is queued.
    fn queue<E: VerbError>(
        &self,
        request: LocalRequestMsg<Reply<FSM::Reply>>,
        within: Duration,
    ) -> Result<Option<BoxFuture<'_, Result<(), E>>>, E> {
        if self.lifecycle.is_waiting() {
            return Ok(Some(Box::pin(self.queue_once_running(request, within))));
        }
        self.queue_now(request, within)
    }

    /// As [`queue`](Self::queue), for a node that runs or has run.
    fn queue_now<E: VerbError>(
        &self,
        request: LocalRequestMsg<Reply<FSM::Reply>>,
        within: Duration,
    ) -> Result<Option<BoxFuture<'_, Result<(), E>>>, E> {
        match self.requests.try_send(request) {
            Ok(()) => Ok(None),
            Err(Refused::Closed) => Err(self.lifecycle.stop_reason().into()),
            Err(Refused::Full { request, waiting }) => match E::busy(waiting) {
                Some(busy) => Err(busy),
                None => Ok(Some(Box::pin(async move {
                    match timeout(within, self.requests.send(request)).await {
                        Ok(sent) => Ok(sent.map_err(|_| self.lifecycle.stop_reason())?),
                        Err(_) => Err(E::late(within)),
                    }
                }))),
            },
        }
    }

    async fn queue_once_running<E: VerbError>(
        &self,
        request: LocalRequestMsg<Reply<FSM::Reply>>,
        within: Duration,
    ) -> Result<(), E> {
        let running = timeout(within.min(self.config.membership_timeout), self.lifecycle.running());
        running.await.unwrap_or(Err(StopReason::NotRunning))?;
        // Without another look at whether it waits: that may be seen later than that it runs.
        match self.queue_now::<E>(request, within)? {
            Some(queued) => queued.await,
            None => Ok(()),
        }
    }
}

/// What changes when another node leads.
fn leadership(status: &Status) -> (Option<NodeId>, Term) {
    (status.leader_id, status.term)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use raftify_core::{Config, Inspection, LogPosition};

    use super::*;
    use crate::application::snapshot::Snapshot;
    use crate::channels::request_queue::request_queue;
    use crate::error::BoxError;

    struct Nothing;

    impl StateMachine for Nothing {
        type LogEntry = u8;
        type Reply = ();

        fn apply(&mut self, _: LogPosition, _: u8) -> Result<(), BoxError> {
            Ok(())
        }

        fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
            Ok(Snapshot::from_value(()))
        }

        fn restore(&mut self, _: &mut dyn Read) -> Result<(), BoxError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_request_to_a_node_that_has_just_begun_to_run_is_queued_once() {
        let config = Config::default().check().unwrap();
        let (requests, queued) = request_queue(8, 1 << 20);
        let status = Status::initial(NodeId::FIRST);
        let shared = Shared::<Nothing> {
            node_id: NodeId::FIRST,
            proposals: InFlight::new(&config),
            config,
            dialer: Dialer::default(),
            requests,
            queries: mpsc::channel(1).0,
            backups: mpsc::channel(1).0,
            status: watch::channel(status).1,
            lifecycle: Lifecycle::new(),
            task: Mutex::new(None),
            metrics: Arc::new(NodeMetrics::new(NodeId::FIRST)),
            events: NodeEvents::new(),
        };
        shared.lifecycle.half_begun();
        let (reply, _answer) = channel::<Inspection, StopReason>();
        let waits = shared.queue::<StopReason>(LocalRequestMsg::Inspect { reply }, Duration::from_secs(1));
        waits.unwrap().expect("the node is not seen to run yet").await.unwrap();
        assert_eq!(queued.len(), 1);
    }
}
