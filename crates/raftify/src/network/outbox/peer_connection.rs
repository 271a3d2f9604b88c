//! Maintains the streams to one peer, and checks whether the answering node is the peer.
//!
//! After each connect, the node there has to identify itself before it gets a message. The raft loop learns
//! whether the peer is reached at its advertised address, the one in the membership. A peer may also be
//! connected at another address, which the peer itself reported, or at which it was found: that keeps the
//! cluster working, and does not count as reached.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raftify_core::{CheckedConfig, ClusterId, Identity, Incarnation, NodeId};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

use crate::channels::events::{PeerEvent, PeerEvents, send_event};
use crate::channels::metrics::{NodeMetrics, PeerMetrics};
use crate::network::outbox::peer_queue::{Batches, Introduction, PeerQueue};
use crate::runtime::calls::CallPermits;
use crate::runtime::endpoint;
use crate::security::dialer::Dialer;
use crate::verbs::asked_cluster::AskedCluster;
use crate::verbs::remote_node::RemoteNode;
use crate::wire::identification::Identification;
use crate::wire::{self, RequestRejected, proto};

/// The pause before the second attempt to connect; it doubles with each further one.
const FIRST_RECONNECT_DELAY: Duration = Duration::from_millis(20);

/// The pause after a peer has rejected this node: a retry helps only after a change on one of the two.
const REFUSED_DELAY: Duration = Duration::from_secs(5);

/// How often a connected peer must identify itself again, until it is known. A joining node gets its identity
/// after others have connected to it.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The connection to a peer for everything except signals.
pub(crate) struct PeerLink {
    pub(crate) channel: Channel,
    /// For requests that are forwarded to the peer: those that are under way over an earlier connection
    /// continue there.
    pub(crate) node: RemoteNode,
    calls: CallPermits,
}

impl PeerLink {
    pub(crate) fn new(channel: Channel, calls: CallPermits, cluster_id: ClusterId) -> PeerLink {
        let cluster = Arc::new(AskedCluster::of(cluster_id));
        let node = RemoteNode::new(channel.clone(), calls.clone(), cluster);
        PeerLink { channel, node, calls }
    }

    fn reconnect(&mut self, channel: Channel, cluster_id: ClusterId) {
        *self = PeerLink::new(channel, self.calls.clone(), cluster_id);
    }
}

/// The addresses of a peer, and the node that must answer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) cluster_id: ClusterId,
    /// The address in the membership; for a node that is not a member, the one with which it introduced
    /// itself.
    pub(crate) recorded: String,
    /// Another address, which is tried first.
    pub(crate) other: Option<String>,
    pub(crate) is_member: bool,
    /// As the membership has it.
    pub(crate) incarnation: Option<Incarnation>,
}

/// Reports to the raft loop whether the peer is reached at its advertised address; reports only changes.
pub(crate) struct Reach {
    peer: NodeId,
    events: PeerEvents,
    metrics: PeerMetrics,
    state: Mutex<ReachState>,
}

#[derive(Default)]
struct ReachState {
    reached: Option<(Incarnation, String)>,
    /// Whether the peer itself answers, at any address.
    answers: bool,
    /// The peer is gone or has moved: later reports of its task are outdated.
    ended: bool,
}

impl Reach {
    pub(crate) fn new(peer: NodeId, events: PeerEvents, metrics: PeerMetrics) -> Reach {
        Reach { peer, events, metrics, state: Mutex::default() }
    }

    /// The peer is a member: from now on, its metrics are recorded.
    pub(crate) fn is_members(&self, metrics: &NodeMetrics) {
        let state = self.state.lock();
        if metrics.register(&self.metrics, self.peer) {
            self.metrics.connected(state.answers);
        }
    }

    /// Whether the peer is connected, and has identified itself.
    pub(crate) fn answers(&self) -> bool {
        self.state.lock().answers
    }

    fn set(&self, answers: bool, reached: Option<(Incarnation, &str)>) {
        self.change(&mut self.state.lock(), answers, reached);
    }

    fn change(&self, state: &mut ReachState, answers: bool, reached: Option<(Incarnation, &str)>) {
        if state.ended {
            return;
        }
        if state.answers != answers {
            self.metrics.connected(answers);
        }
        state.answers = answers;
        let reached = reached.map(|(incarnation, address)| (incarnation, address.to_owned()));
        if state.reached == reached {
            return;
        }
        state.reached.clone_from(&reached);
        let peer = self.peer;
        send_event(
            &self.events,
            match reached {
                Some((incarnation, address)) => PeerEvent::Reached { peer, incarnation, address },
                None => PeerEvent::Unreached(peer),
            },
        );
    }

    /// No report follows this.
    pub(crate) fn end(&self) {
        // In one step: in between, the task could report the peer as reached once more.
        let mut state = self.state.lock();
        self.change(&mut state, false, None);
        self.metrics.gone();
        state.ended = true;
    }
}

/// The answering node, compared with the intended peer.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The peer.
    Peer(Incarnation),
    /// A node with the right id that belongs to no cluster yet: it may be about to join.
    Unidentified,
    /// A program that cannot identify itself as a node.
    Unable,
    /// A node with the right id, but of another cluster or with another data directory. It rejects the
    /// messages, and learns from them that the cluster knows another directory.
    Replaced(String),
    /// Another node, for which the messages are not intended.
    Other(String),
}

/// The relevant part of a node's identification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Node {
        id: NodeId,
        identity: Option<Identity>,
        /// It has no objection to this node.
        agrees: bool,
    },
    Unable,
}

fn judge(answer: Answer, peer: NodeId, target: &Target) -> Verdict {
    let (id, identity) = match answer {
        Answer::Unable => return Verdict::Unable,
        Answer::Node { id, identity, .. } => (id, identity),
    };
    let found = || match identity {
        Some(Identity { cluster_id, incarnation, .. }) => {
            format!("node {id} of cluster {cluster_id} with incarnation {incarnation} answers there")
        }
        None => format!("node {id}, which belongs to no cluster, answers there"),
    };
    let cluster_id = target.cluster_id;
    if id != peer {
        return Verdict::Other(format!("{}, and not node {peer} of cluster {cluster_id}", found()));
    }
    match identity {
        None => Verdict::Unidentified,
        Some(identity) if identity.cluster_id != cluster_id => {
            Verdict::Replaced(format!("{}, and not the one of cluster {cluster_id}", found()))
        }
        Some(identity) => match target.incarnation {
            Some(known) if known != identity.incarnation => {
                Verdict::Replaced(format!("{}, and not the one with incarnation {known}", found()))
            }
            _ => Verdict::Peer(identity.incarnation),
        },
    }
}

/// See the module.
pub(crate) struct PeerConnection {
    pub(crate) id: NodeId,
    pub(crate) target: watch::Receiver<Target>,
    /// The peer has just sent a message: it may be up again.
    pub(crate) is_up: Arc<Notify>,
    pub(crate) queue: Arc<PeerQueue>,
    /// For everything except signals: follows them to the address where the peer answers.
    pub(crate) link: Arc<Mutex<PeerLink>>,
    /// For this peer alone.
    pub(crate) dialer: Dialer,
    pub(crate) reach: Arc<Reach>,
    pub(crate) events: PeerEvents,
    pub(crate) config: CheckedConfig,
}

/// How an attempt to contact the peer ended.
struct Ended {
    reason: String,
    refusal: Option<RequestRejected>,
    /// How long there was a stream.
    up_for: Option<Duration>,
}

impl Ended {
    fn because(status: &Status) -> Ended {
        let (reason, refusal) = (endpoint::describe(status), RequestRejected::from_status(status));
        Ended { reason, refusal, up_for: None }
    }

    fn of_another(reason: String) -> Ended {
        Ended { reason, refusal: None, up_for: None }
    }
}

impl PeerConnection {
    pub(crate) async fn keep(mut self) {
        let delay_max = self.config.reconnect_delay_max;
        let delay_min = FIRST_RECONNECT_DELAY.min(delay_max);
        let mut delay = delay_min;
        // Reported when the connection breaks, or when the first attempt fails, not again with every further
        // attempt.
        let mut reported = false;
        let mut last_reason = String::new();
        let (mut other, mut tries_other) = (None, false);
        loop {
            let target = self.target.borrow_and_update().clone();
            if target.other != other {
                other = target.other;
                tries_other = true;
            }
            let address = other.clone().filter(|_| tries_other).unwrap_or(target.recorded);
            let ended = self.attempt(&address).await;
            self.reach.set(false, None);
            self.queue.close();
            // Before it is reported as unreachable: a node that is refused must not count that peer as
            // silent.
            let pause = self.pause(ended.refusal);
            match ended.up_for {
                Some(up_for) => {
                    reported = false;
                    if up_for > delay_max {
                        delay = delay_min;
                        last_reason.clear();
                    }
                }
                None => tries_other = !tries_other,
            }
            if ended.reason != last_reason {
                warn!(peer = %self.id, address, reason = ended.reason, "no connection to the peer");
                last_reason = ended.reason;
            }
            if !reported {
                reported = true;
                send_event(&self.events, PeerEvent::Unreachable(self.id));
            }
            let pause = pause.max(delay);
            delay = (delay * 2).min(delay_max);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.has_news(&other) => delay = delay_min,
            }
        }
    }

    /// Resolves when there is a reason to connect at once: the peer is up, or has another address.
    async fn has_news(&mut self, other: &Option<String>) {
        tokio::select! {
            () = self.is_up.notified() => {}
            () = is_elsewhere(&mut self.target, other) => {}
        }
    }

    /// Connects, identifies the node there, and sends it messages for as long as it is the right one.
    async fn attempt(&mut self, address: &str) -> Ended {
        let batches = self.queue.open();
        let endpoint = match endpoint::endpoint(address, self.config.connect_timeout) {
            Ok(endpoint) => endpoint,
            Err(error) => return Ended::of_another(format!("the address cannot be used: {error}")),
        };
        let channel = match self.dialer.connect(&endpoint).await {
            Ok(channel) => channel,
            Err(error) => return Ended::because(&Status::from_error(Box::new(error))),
        };
        debug!(peer = %self.id, address, "connected");
        let answer = match self.probe(&channel).await {
            Ok(answer) => answer,
            Err(ended) => return ended,
        };
        let verdict = judge(answer, self.id, &self.target.borrow());
        let agrees = matches!(answer, Answer::Node { agrees: true, .. });
        match verdict {
            Verdict::Other(reason) => return Ended::of_another(reason),
            Verdict::Peer(_) if agrees => send_event(&self.events, PeerEvent::Agrees(self.id)),
            // The peer is too busy to answer the check: the next connection repeats it.
            Verdict::Peer(_) => {}
            // A node without a record of this node has no objection to it.
            Verdict::Unidentified | Verdict::Unable | Verdict::Replaced(_) => {
                send_event(&self.events, PeerEvent::Silent(self.id));
            }
        }
        // A new connection: that of an earlier attempt may hang.
        let cluster_id = self.target.borrow().cluster_id;
        self.link.lock().reconnect(self.dialer.connect_lazily(&endpoint), cluster_id);
        let since = Instant::now();
        let ended = self.converse(address, channel, batches, answer).await;
        Ended { up_for: Some(since.elapsed()), ..ended }
    }

    async fn converse(
        &mut self,
        address: &str,
        channel: Channel,
        (signals, entries): (Batches, Batches),
        answer: Answer,
    ) -> Ended {
        let mut for_signals = wire::service(channel.clone());
        let mut for_entries = wire::service(self.link.lock().channel.clone());
        tokio::select! {
            biased;
            ended = for_signals.stream_messages(signals) => ended_by_peer(ended),
            ended = for_entries.stream_messages(entries) => ended_by_peer(ended),
            reason = self.watch(address, channel, answer) => Ended::of_another(reason),
        }
    }

    /// Reports whether the peer is reached, and repeats the identification until it is, and whenever there is
    /// news of it. Resolves when the connection is no longer usable.
    async fn watch(&mut self, address: &str, channel: Channel, mut answer: Answer) -> String {
        let mut told = String::new();
        loop {
            let target = self.target.borrow_and_update().clone();
            let is_advertised = target.is_member && target.recorded == address;
            if target.recorded != address && target.other.is_none() {
                return format!("the peer is at {} now", target.recorded);
            }
            let verdict = judge(answer, self.id, &target);
            let (answers, reached) = match &verdict {
                Verdict::Peer(incarnation) => (true, is_advertised.then_some((*incarnation, address))),
                _ => (false, None),
            };
            self.reach.set(answers, reached);
            match verdict {
                Verdict::Other(reason) => return reason,
                Verdict::Replaced(reason) if reason != told => {
                    warn!(peer = %self.id, address, "{reason}");
                    told = reason;
                }
                Verdict::Unable if told.is_empty() => {
                    told = "its program is older, and cannot say which node it is".to_owned();
                    info!(peer = %self.id, address, "{told}");
                }
                _ => {}
            }
            let is_settled = answers || answer == Answer::Unable;
            let is_news = tokio::select! {
                // An error means that this task is about to end.
                changed = self.target.changed() => if changed.is_ok() { true } else { pending().await },
                () = sleep(PROBE_INTERVAL), if !is_settled => false,
            };
            match self.probe(&channel).await {
                Ok(next) => answer = next,
                Err(Ended { reason, refusal: Some(refusal), .. }) => {
                    self.refused(refusal);
                    return reason;
                }
                // The peer may have moved without closing this connection.
                Err(Ended { reason, .. })
                    if is_news
                        && self.target.borrow().other.as_deref().is_some_and(|other| other != address) =>
                {
                    return reason;
                }
                Err(Ended { reason, .. }) => {
                    debug!(peer = %self.id, address, reason, "the peer does not say which node it is")
                }
            }
        }
    }

    /// Identifies the node at the other end.
    async fn probe(&self, channel: &Channel) -> Result<Answer, Ended> {
        let Introduction { header, sender, receiver } = self.queue.introduction();
        let request =
            proto::IdentifyRequest { header: Some(header), sender: Some(sender), receiver: Some(receiver) };
        let mut service = wire::service(channel.clone());
        match timeout(self.config.connect_timeout, service.identify(request)).await {
            Ok(Ok(reply)) => match wire::identification_from_wire(reply.into_inner()) {
                Ok(Identification { node_id: id, identity, agrees, .. }) => {
                    Ok(Answer::Node { id, identity, agrees })
                }
                Err(error) => Err(Ended::of_another(format!("what answers there makes no sense: {error}"))),
            },
            Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(Answer::Unable),
            Ok(Err(status)) => Err(Ended::because(&status)),
            Err(_) => Err(Ended::of_another(format!("no answer within {:?}", self.config.connect_timeout))),
        }
    }

    /// The additional pause after a peer's rejection.
    fn pause(&self, refusal: Option<RequestRejected>) -> Duration {
        match refusal {
            None | Some(RequestRejected::NoCluster { .. } | RequestRejected::Stopped(_)) => Duration::ZERO,
            Some(refusal) => {
                self.refused(refusal);
                REFUSED_DELAY
            }
        }
    }

    fn refused(&self, refusal: RequestRejected) {
        if let RequestRejected::Sender(refusal) = refusal {
            send_event(&self.events, PeerEvent::RefusedBy { by: self.id, refusal });
        }
    }
}

fn ended_by_peer(ended: Result<Response<proto::StreamMessagesReply>, Status>) -> Ended {
    Ended::because(&ended.err().unwrap_or_else(|| Status::unavailable("the peer ended the stream")))
}

/// Resolves once there is a report of the peer at another address than the last reported one.
async fn is_elsewhere(target: &mut watch::Receiver<Target>, last: &Option<String>) {
    if target.wait_for(|target| target.other.is_some() && target.other != *last).await.is_err() {
        pending::<()>().await; // This task is about to end.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_that_is_meant_is_taken_for_the_peer_and_what_else_answers_is_named() {
        let (id, cluster_id) = (NodeId::FIRST, ClusterId(0xc1));
        let target = Target {
            cluster_id,
            recorded: "127.0.0.1:1".to_owned(),
            other: None,
            is_member: true,
            incarnation: Some(Incarnation(7)),
        };
        let identity = Identity { cluster_id, node_id: id, incarnation: Incarnation(7) };
        let says = |identity: Option<Identity>| Answer::Node { id, identity, agrees: true };
        assert_eq!(judge(says(Some(identity)), id, &target), Verdict::Peer(Incarnation(7)));
        let unknown = Target { incarnation: None, ..target.clone() };
        assert_eq!(judge(says(Some(identity)), id, &unknown), Verdict::Peer(Incarnation(7)));
        assert_eq!(judge(says(None), id, &target), Verdict::Unidentified);
        assert_eq!(judge(Answer::Unable, id, &target), Verdict::Unable);

        let elsewhere = Identity { cluster_id: ClusterId(0xdead), ..identity };
        let replaced = Identity { incarnation: Incarnation(8), ..identity };
        for (other, named) in [(elsewhere, "000000000000dead"), (replaced, "incarnation 0000000000000008")] {
            let Verdict::Replaced(reason) = judge(says(Some(other)), id, &target) else {
                panic!("{other:?} was taken for the peer");
            };
            assert!(reason.contains(named), "{reason}");
        }
        let other = NodeId::new(3).expect("not zero");
        for identity in [None, Some(Identity { node_id: other, ..identity })] {
            let Verdict::Other(reason) =
                judge(Answer::Node { id: other, identity, agrees: true }, id, &target)
            else {
                panic!("another node was taken for the peer");
            };
            assert!(reason.contains("node 3") && reason.contains("not node 1"), "{reason}");
        }
    }
}
