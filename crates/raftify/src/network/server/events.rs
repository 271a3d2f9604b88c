//! The stream of this node's events to a remote client.

use futures_util::stream::{BoxStream, StreamExt, once, unfold};
use raftify_core::{ProposalReply, SnapshotStore};
use tonic::Status;

use crate::network::server::service::Service;
use crate::verbs::events::{busy, to_wire};
use crate::verbs::verb::ServingNode;
use crate::wire::proto;

impl<R: ProposalReply, S: SnapshotStore> Service<R, S> {
    /// The events from now on. The connection takes the next one when it has room for it: for a client that
    /// does not read, the node keeps as many events as for any reader, and none besides.
    pub(super) fn event_stream(&self) -> BoxStream<'static, Result<proto::EventsReply, Status>> {
        let Some((events, place)) = self.context.events.subscribe_remotely() else {
            let busy = busy(self.context.header());
            return once(async move { Ok(busy) }).boxed();
        };
        let service = self.clone();
        unfold((events, service, place), async |(mut events, service, place)| {
            let record = tokio::select! {
                // The events first: the last one says why the node stops.
                biased;
                record = events.next() => record?,
                () = service.closed() => return None,
            };
            Some((Ok(to_wire(service.context.header(), record)), (events, service, place)))
        })
        .boxed()
    }
}
