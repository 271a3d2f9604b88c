//! The events of a node, read over the network.

use std::fmt;

use raftify_core::VerbError;
use raftify_core::error::ReadError;
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use crate::channels::node_events::EventRecord;
use crate::client::cluster_connection::{CONNECT_TIMEOUT, ClusterConnection};
use crate::client::error::{ClientError, UnreachableNode};
use crate::runtime::endpoint::{describe, endpoint, with_sources};
use crate::verbs::events::from_wire;
use crate::verbs::verb::NotAnswered;
use crate::wire::{self, RequestRejected, proto};

/// The events of one node: see [`RaftClient::events`](crate::RaftClient::events).
pub struct RemoteEvents {
    address: String,
    stream: Streaming<proto::EventsReply>,
}

impl RemoteEvents {
    /// The address of the node, as given to the client.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next event; `None` once the node has stopped in order.
    ///
    /// # Errors
    /// The connection broke, or the node serves as many streams as it may
    /// ([`ReadError::Busy`]). Subscribe again; the events in between are not read, and their number is
    /// not known if the node was restarted.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Option<EventRecord>, ClientError<ReadError>> {
        let reply =
            self.stream.message().await.map_err(|status| match RequestRejected::from_status(&status) {
                Some(rejection) => ClientError::Rejected(rejection),
                None => ClientError::Answer(ReadError::ConnectionLost(describe(&status))),
            })?;
        let Some(reply) = reply else { return Ok(None) };
        from_wire(reply).map(Some).map_err(|error| {
            ClientError::Answer(match error {
                NotAnswered::Refusal(refusal) => wire::refusal_from_wire::<ReadError>(&refusal)
                    .map_or(ReadError::ConnectionLost(refusal.message), ReadError::of_another),
                NotAnswered::Malformed(reason) => ReadError::ConnectionLost(reason),
            })
        })
    }
}

impl fmt::Debug for RemoteEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteEvents").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ClusterConnection {
    /// The events of the first of the given nodes that answers.
    pub(crate) async fn events(&self) -> Result<RemoteEvents, ClientError<ReadError>> {
        let until = Instant::now() + self.deadline;
        let mut unreachable = Vec::new();
        let mut rejected = None;
        for address in self.given.iter() {
            let left = CONNECT_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
            let outcome = timeout(left, self.subscribe(address)).await;
            let reason = match outcome {
                Ok(Ok(stream)) => return Ok(RemoteEvents { address: address.to_string(), stream }),
                Ok(Err(NotSubscribed::Rejected(rejection))) => {
                    rejected = Some(rejection);
                    continue;
                }
                Ok(Err(NotSubscribed::Unreachable(reason))) => reason,
                Err(_) => format!("no answer within {} ms", left.as_millis()),
            };
            unreachable.push(UnreachableNode::NotConnected { address: address.to_string(), reason });
        }
        Err(rejected.map_or(ClientError::Unreachable(unreachable), ClientError::Rejected))
    }

    /// Over a separate connection: dropping the stream closes it, and disturbs no other request.
    async fn subscribe(&self, address: &str) -> Result<Streaming<proto::EventsReply>, NotSubscribed> {
        let unreachable = |error: tonic::transport::Error| NotSubscribed::Unreachable(with_sources(&error));
        let endpoint = endpoint(address, CONNECT_TIMEOUT).map_err(unreachable)?;
        let channel = self.dialer.connect(&endpoint).await.map_err(unreachable)?;
        let request = proto::EventsRequest { header: Some(wire::header(self.cluster.id())) };
        let stream = wire::service(channel).events(request).await;
        stream.map(tonic::Response::into_inner).map_err(|status| {
            match RequestRejected::from_status(&status) {
                Some(rejection) => NotSubscribed::Rejected(rejection),
                None => NotSubscribed::Unreachable(describe(&status)),
            }
        })
    }
}

enum NotSubscribed {
    Rejected(RequestRejected),
    Unreachable(String),
}
