//! The stream of a backup of this node to a remote caller.

use futures_util::stream::{BoxStream, StreamExt, once, unfold};
use raftify_core::error::StopReason;
use raftify_core::{ProposalReply, SnapshotStore};
use tonic::{Request, Status};

use crate::channels::backups::{self, BackupPart, NotRequested};
use crate::network::server::service::Service;
use crate::verbs::backup::{ended_early, reply_to_wire, request_from_wire};
use crate::verbs::verb::ServingNode;
use crate::wire::{RequestRejected, proto};

pub(super) type Replies = BoxStream<'static, Result<proto::BackupReply, Status>>;

impl<R: ProposalReply, S: SnapshotStore> Service<R, S> {
    /// The parts of a backup. The connection takes the next one when it has room for it; the node waits for
    /// that for a limited time.
    pub(super) fn backup_stream(&self, request: &Request<proto::BackupRequest>) -> Result<Replies, Status> {
        let request = request.get_ref();
        self.context.admit_request(request.header.as_ref())?;
        let wanted = request_from_wire(request).map_err(RequestRejected::from)?;
        let parts = match backups::request(&self.context.backups, wanted) {
            Ok(parts) => parts,
            Err(NotRequested::Refused(refused)) => {
                let only = reply_to_wire(self.context.header(), BackupPart::Refused(refused));
                return Ok(once(async move { Ok(only) }).boxed());
            }
            Err(NotRequested::Stopped) => {
                return Err(RequestRejected::Stopped(StopReason::Stopped).into());
            }
        };
        // The bytes that are still to come; `None` once the last part was sent.
        let state = (parts, self.clone(), Some(u64::MAX));
        let replies = unfold(state, async |(mut parts, service, left)| {
            let mut left = left?;
            let part = tokio::select! {
                biased;
                part = parts.recv() => part,
                () = service.closed() => None,
            };
            let Some(part) = part else {
                if left == 0 {
                    return None;
                }
                let stopped = service.context.lifecycle.is_stopping() || *service.closing.borrow();
                let stopped = stopped.then_some(RequestRejected::Stopped(StopReason::Stopped));
                return Some((Err(ended_early(stopped)), (parts, service, None)));
            };
            let is_last = matches!(part, BackupPart::Refused(_));
            match &part {
                BackupPart::Head(head) => left = head.digest.data_bytes.saturating_sub(head.begin_at),
                BackupPart::Data { data, .. } => left = left.saturating_sub(data.len() as u64),
                BackupPart::Waiting | BackupPart::Refused(_) => {}
            }
            let reply = reply_to_wire(service.context.header(), part);
            Some((Ok(reply), (parts, service, (!is_last).then_some(left))))
        });
        Ok(replies.boxed())
    }
}
