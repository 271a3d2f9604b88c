//! The installation of a snapshot that a leader sends.

use raftify_core::error::{InstallError, StopReason};
use raftify_core::{ProposalReply, ServerRequestMsg, SnapshotDigest, SnapshotMeta, SnapshotStore, Term};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};
use tracing::info;

use crate::channels::metrics::SnapshotOperation;
use crate::channels::reply::channel;
use crate::network::server::connections::ConnectionId;
use crate::network::server::context::Admitted;
use crate::network::server::service::Service;
use crate::network::server::snapshot_receiver::{Incoming, NotReceived};
use crate::verbs::verb::ServingNode;
use crate::wire::{self, RequestRejected, proto};

impl<R: ProposalReply, S: SnapshotStore> Service<R, S> {
    /// Reads the head of a snapshot, and begins to receive it.
    pub(super) async fn begin_snapshot(
        &self,
        connection: Option<&ConnectionId>,
        stream: &mut Streaming<proto::SnapshotChunk>,
    ) -> Result<IncomingSnapshot<S>, Status> {
        use proto::snapshot_chunk::Part;
        let head = match self.next_chunk(stream).await? {
            Some(Part::Head(head)) => head,
            _ => return Err(malformed("a snapshot must begin with its head")),
        };
        let admitted = self.context.admit(connection, head.header.as_ref(), head.sender, head.receiver)?;
        let term = wire::nonzero_term("the leader's term", head.term).map_err(RequestRejected::from)?;
        let snapshot = wire::snapshot_from_wire(admitted.cluster_id, head.position, &head.members)
            .map_err(RequestRejected::from)?;
        let digest = SnapshotDigest { data_bytes: head.data_bytes, crc32c: head.data_crc32c };
        let position = snapshot.position;
        if self.context.status.borrow().commit >= position.index {
            // Its content is present here, and known to be committed: an earlier call may have been
            // interrupted after its end.
            return Ok(IncomingSnapshot::Answered(Ok(())));
        }
        let begun = tokio::select! {
            biased;
            begun = self.snapshots.begin(term, snapshot, digest) => begun,
            () = self.closed() => return Err(RequestRejected::Stopped(StopReason::Stopped).into()),
        };
        let incoming = match begun {
            Ok(incoming) => incoming,
            Err(NotReceived::Status(status)) => return Err(status),
            Err(NotReceived::Refused(error)) => return Ok(IncomingSnapshot::Answered(Err(error))),
        };
        let (peer, begin_at) = (admitted.sender.id, incoming.begin_at());
        info!(%peer, %position, begin_at, bytes = digest.data_bytes, "receiving a snapshot");
        Ok(IncomingSnapshot::Begun { incoming, admitted, term })
    }

    /// Receives the data of a snapshot, and has it installed.
    pub(super) async fn complete_snapshot(
        &self,
        incoming: Incoming<S>,
        admitted: Admitted,
        term: Term,
        stream: Streaming<proto::SnapshotChunk>,
    ) -> Result<Result<(), InstallError>, Status> {
        let begin = Instant::now();
        let outcome = self.receive_and_install(incoming, admitted, term, stream).await;
        let succeeded = matches!(outcome, Ok(Ok(())));
        self.context.metrics.snapshot_ended(SnapshotOperation::Installed, succeeded, begin.elapsed());
        outcome
    }

    async fn receive_and_install(
        &self,
        incoming: Incoming<S>,
        Admitted { sender, receiver, .. }: Admitted,
        term: Term,
        mut stream: Streaming<proto::SnapshotChunk>,
    ) -> Result<Result<(), InstallError>, Status> {
        let snapshot = match self.receive_data(incoming, &mut stream).await {
            Ok(snapshot) => snapshot,
            Err(NotReceived::Status(status)) => return Err(status),
            Err(NotReceived::Refused(error)) => return Ok(Err(error)),
        };
        let (reply, answer) = channel();
        let install = ServerRequestMsg::InstallSnapshot { sender, receiver, term, snapshot, reply };
        tokio::select! {
            biased;
            queued = self.context.requests.send(install) => {
                queued.map_err(|_| RequestRejected::Stopped(StopReason::Stopped))?;
            }
            () = self.closed() => return Err(RequestRejected::Stopped(StopReason::Stopped).into()),
        }
        Ok(answer.await)
    }

    async fn receive_data(
        &self,
        mut incoming: Incoming<S>,
        stream: &mut Streaming<proto::SnapshotChunk>,
    ) -> Result<SnapshotMeta, NotReceived> {
        use proto::snapshot_chunk::Part;
        loop {
            let part = tokio::select! {
                biased;
                ended = incoming.ended() => return Err(ended),
                part = self.next_chunk(stream) => part?,
            };
            match part {
                Some(Part::Data(data)) => {
                    let bytes = data.data.len() as u64;
                    incoming.write(data).await?;
                    self.context.metrics.snapshot_bytes(SnapshotOperation::Installed, bytes);
                }
                Some(Part::Head(_)) => {
                    return Err(malformed("a second head in the middle of a snapshot").into());
                }
                None => return incoming.finish().await,
            }
        }
    }

    pub(super) fn snapshot_reply(
        &self,
        answer: proto::install_snapshot_reply::Answer,
    ) -> proto::InstallSnapshotReply {
        proto::InstallSnapshotReply { header: self.context.header(), answer: Some(answer) }
    }

    /// The next part, if it arrives in time: a sender that hangs must not block other senders.
    async fn next_chunk(
        &self,
        stream: &mut Streaming<proto::SnapshotChunk>,
    ) -> Result<Option<proto::snapshot_chunk::Part>, Status> {
        let patience = self.context.config.snapshot_chunk_timeout;
        match timeout(patience, self.next(stream)).await {
            Ok(chunk) => match chunk? {
                Some(proto::SnapshotChunk { part: Some(part) }) => Ok(Some(part)),
                Some(proto::SnapshotChunk { part: None }) => Err(malformed("an empty chunk")),
                None => Ok(None),
            },
            Err(_) => {
                Err(Status::deadline_exceeded(format!("no chunk of the snapshot came within {patience:?}")))
            }
        }
    }
}

pub(super) enum IncomingSnapshot<S: SnapshotStore> {
    Begun {
        incoming: Incoming<S>,
        admitted: Admitted,
        term: Term,
    },
    /// The data is not received: the snapshot is present already, or rejected.
    Answered(Result<(), InstallError>),
}

pub(super) fn installed(outcome: Result<(), InstallError>) -> proto::install_snapshot_reply::Answer {
    use proto::install_snapshot_reply::Answer;
    match outcome {
        Ok(()) => Answer::Installed(proto::SnapshotInstalled {}),
        Err(error) => Answer::Refusal(wire::refusal_to_wire(&error)),
    }
}

fn malformed(reason: impl Into<String>) -> Status {
    RequestRejected::Malformed(reason.into()).into()
}
