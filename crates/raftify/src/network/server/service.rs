//! The path of a valid request to the raft loop, and of its answer back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftify_core::error::{ProposeError, StopReason, UnknownOutcome};
use raftify_core::members::MembershipRefusal;
use raftify_core::{
    Forwarding, LeaderRequest, MembershipRequest, ProposalReply, Responder, ServerRequestMsg, SnapshotStore,
};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::channels::in_flight::InFlight;
use crate::channels::reply::dropped;
use crate::channels::request_queue::Refused;
use crate::network::probe::check_added_addresses;
use crate::network::server::context::ServerContext;
use crate::network::server::snapshot_receiver::SnapshotReceiver;
use crate::wire::{self, RequestRejected, VerbError};

/// After its deadline the core answers by itself; after this additional time the server answers instead.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

pub(super) struct Service<R, S: SnapshotStore> {
    pub(super) context: Arc<ServerContext<R, S>>,
    pub(super) closing: watch::Receiver<bool>,
    pub(super) snapshots: Arc<SnapshotReceiver<S>>,
    /// Proposals that came over the network.
    pub(super) proposals: Arc<InFlight>,
}

impl<R, S: SnapshotStore> Clone for Service<R, S> {
    fn clone(&self) -> Self {
        Service {
            context: Arc::clone(&self.context),
            closing: self.closing.clone(),
            snapshots: Arc::clone(&self.snapshots),
            proposals: Arc::clone(&self.proposals),
        }
    }
}

impl<R: ProposalReply, S: SnapshotStore> Service<R, S> {
    /// Puts a request into the loop's queue and waits for its answer.
    pub(super) async fn ask<T, E, A>(
        &self,
        deadline: Duration,
        request: impl FnOnce(Responder<T, E>) -> ServerRequestMsg<R>,
    ) -> Result<Result<T, A>, RequestRejected>
    where
        T: Send + 'static,
        E: From<StopReason> + Into<A> + Send + 'static,
        A: VerbError,
    {
        let (answered, answer) = oneshot::channel();
        self.enqueue_and_wait(request(responder(answered)), deadline, async {
            answer.await.unwrap_or_else(|_| Err(StopReason::Stopped.into())).map_err(Into::into)
        })
        .await
    }

    /// A closed queue accepts no request: the request is rejected by the context, and the caller may try another node.
    /// From a node that has accepted the request, the same reason would mean an unknown outcome.
    pub(super) async fn enqueue_and_wait<T, A: VerbError>(
        &self,
        request: ServerRequestMsg<R>,
        deadline: Duration,
        answer: impl Future<Output = Result<T, A>>,
    ) -> Result<Result<T, A>, RequestRejected> {
        match self.context.requests.try_send(request) {
            Ok(()) => {
                let answer = timeout(deadline + ANSWER_GRACE, answer).await;
                Ok(answer.unwrap_or_else(|_| Err(A::timed_out(deadline))))
            }
            Err(Refused::Full { waiting, .. }) => Ok(Err(A::busy(waiting))),
            Err(Refused::Closed) => Err(RequestRejected::Stopped(StopReason::Stopped)),
        }
    }

    pub(super) async fn propose_here(
        &self,
        payload: Bytes,
        forwarding: Forwarding,
    ) -> Result<Result<Bytes, ProposeError>, RequestRejected> {
        let place = self.proposals.enter().and_then(|mut place| {
            place.holds(payload.len() as u64)?;
            Ok(place)
        });
        let _place = match place {
            Ok(place) => place,
            Err(waiting) => return Ok(Err(ProposeError::Busy { waiting })),
        };
        if let Err(reason) = (self.context.check_entry)(&payload) {
            return Ok(Err(ProposeError::Undecodable(reason)));
        }
        let payload = wire::owned(payload);
        let (answered, answer) = oneshot::channel();
        let request = LeaderRequest::Propose { payload, reply: (self.context.remote_reply)(answered) };
        let request = ServerRequestMsg::ForLeader { request, forwarding };
        let answer = async { answer.await.unwrap_or_else(|_| Err(dropped())) };
        Ok(self
            .enqueue_and_wait(request, self.context.config.propose_timeout, answer)
            .await?
            .and_then(small_enough))
    }

    /// Whether another member answers at the address of a node that is to be added.
    pub(super) async fn check_added_addresses(
        &self,
        request: &MembershipRequest,
    ) -> Result<Result<(), MembershipRefusal>, Status> {
        let status = self.context.status.borrow().clone();
        let cluster = status.identity.map(|identity| identity.cluster_id);
        tokio::select! {
            biased;
            () = self.closed() => Err(RequestRejected::Stopped(StopReason::Stopped).into()),
            checked = check_added_addresses(&self.context.dialer, &request.command, &status.members, cluster) => Ok(checked),
        }
    }

    /// The next message of a stream, or the reason for its end.
    pub(super) async fn next<M>(&self, stream: &mut Streaming<M>) -> Result<Option<M>, Status> {
        tokio::select! {
            // First: a stream that never pauses must not keep the server open.
            biased;
            () = self.closed() => Err(RequestRejected::Stopped(StopReason::Stopped).into()),
            message = stream.message() => message,
        }
    }

    pub(super) async fn closed(&self) {
        // An error means that the server has ended.
        let _ = self.closing.clone().wait_for(|closing| *closing).await;
    }
}

pub(super) fn responder<T: Send + 'static, E: From<StopReason> + Send + 'static>(
    answered: oneshot::Sender<Result<T, E>>,
) -> Responder<T, E> {
    Responder::new(move |answer| {
        // The caller may be gone; then the answer is not needed.
        let _ = answered.send(answer);
    })
}

/// A reply that fits into a message.
fn small_enough(reply: Bytes) -> Result<Bytes, ProposeError> {
    let limit = wire::RECEIVE_BYTES_LIMIT - 1024;
    if reply.len() > limit {
        let reason = format!("it has {} bytes, over the network it may have {limit}", reply.len());
        return Err(ProposeError::Unknown(UnknownOutcome::BadReply(reason)));
    }
    Ok(reply)
}
