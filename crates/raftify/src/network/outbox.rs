//! The connections to the other nodes: all outgoing messages pass through this module.
//!
//! Each peer has one bounded queue and one task, so that a dead or slow peer does not affect the others, and
//! two streams: one for entries, which keep their order, and one for the other messages. Entries, snapshots
//! and requests for the leader use a second connection, so that no heartbeat and no vote waits behind them,
//! however large they are. The raft loop and the log writer queue messages and never wait; the loop learns of
//! connection changes as [`PeerEvent`]s. `peer_queue.rs` has the queues, `peer_connection.rs` the tasks,
//! `forwarding.rs` the requests for the leader, `snapshot_sender.rs` the snapshots.
//!
//! It stores no message for later: messages that are queued when a connection breaks are dropped, and
//! consensus sends again.

mod forwarding;
mod peer_connection;
pub(crate) mod peer_queue;
mod snapshot_sender;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raftify_core::error::ReadError;
use raftify_core::members::MEMBERS_MAX;
use raftify_core::{
    CheckedConfig, Forward, Forwarding, Identity, LogIndex, Members, NodeId, RaftMessage, ReadRound, Sender,
    SnapshotStore, SnapshotToSend, Started, VerbError,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};

use crate::channels::events::{PeerEvent, PeerEvents, send_event};
use crate::channels::in_flight::InFlight;
use crate::channels::metrics::{NodeMetrics, PeerMetrics};
use crate::channels::reply::RemoteReply;
use crate::network::outbox::forwarding::{Leader, Unsent};
use crate::network::outbox::peer_connection::{PeerConnection, PeerLink, Reach, Target};
use crate::network::outbox::peer_queue::{Introduction, PeerQueue};
use crate::network::outbox::snapshot_sender::{Failures, SnapshotReport, SnapshotSender, SnapshotTransfer};
use crate::runtime::calls::CallPermits;
use crate::runtime::endpoint;
use crate::runtime::log_throttle::LogThrottle;
use crate::runtime::worker::Blocking;
use crate::security::dialer::Dialer;
use crate::verbs::read_index::ReadIndex;
use crate::verbs::remote_node::{CallError, RemoteNode};
use crate::verbs::verb::Verb;
use crate::wire;

/// How often the raft loop gets the same new address of the same member: only a leader can use it, and this
/// node may become one.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// The handle to all connections to peers. A clone is a second handle to the same connections.
#[derive(Clone)]
pub(crate) struct Outbox {
    shared: Arc<Shared>,
}

struct Shared {
    own_address: String,
    dialer: Dialer,
    config: CheckedConfig,
    snapshots: Arc<SnapshotSender>,
    events: PeerEvents,
    metrics: Arc<NodeMetrics>,
    runtime: Handle,
    /// Requests that are being forwarded to the leader: at most as many as this node would accept as leader.
    forwarded: Arc<InFlight>,
    /// Locked only briefly and never across an `.await`: two threads call `send` for every turn, and a task
    /// in between would cost each message a thread switch.
    state: Mutex<State>,
}

struct State {
    /// `None` until this node knows its cluster: it contacts no node before.
    own: Option<(Identity, Arc<Members>, Started)>,
    contacts: BTreeMap<NodeId, Contact>,
    /// The addresses of members that are also, or only, reachable at another address than the membership
    /// has.
    moved: BTreeMap<NodeId, Moved>,
    /// The warning that the maximum number of contacts is reached: each message of a further one is a cause.
    too_many_contacts: LogThrottle,
    peers: BTreeMap<NodeId, Peer>,
    tasks: JoinSet<()>,
    closed: bool,
}

/// A node that introduced itself and that this node does not know as a member: it may have been added by a
/// change that has not arrived here, and may even be the leader that will send it. This node needs an address
/// for its answers.
#[derive(PartialEq)]
struct Contact {
    address: String,
    members_as_of: LogIndex,
}

/// A member with another address than the membership has, until the membership has a new one.
struct Moved {
    address: String,
    recorded: String,
    /// When the raft loop last got the address from the member itself.
    announced: Option<Instant>,
}

struct Peer {
    target: watch::Sender<Target>,
    is_up: Arc<Notify>,
    queue: Arc<PeerQueue>,
    reach: Arc<Reach>,
    /// For everything except signals. Connects by itself on use.
    link: Arc<Mutex<PeerLink>>,
    stream_task: AbortHandle,
    /// The last snapshot to send.
    snapshot_task: Option<AbortHandle>,
    snapshot_failures: Failures,
}

impl Peer {
    /// Also reports the snapshot under way as not sent: its task drops the [`SnapshotReport`].
    fn end(self) {
        self.reach.end();
        self.queue.close();
        self.stream_task.abort();
        if let Some(task) = self.snapshot_task {
            task.abort();
        }
    }

    /// Whether this node looks for the peer at this address.
    fn is_at(&self, address: &str) -> bool {
        let target = self.target.borrow();
        target.recorded == address || target.other.as_deref() == Some(address)
    }

    fn channel(&self) -> Channel {
        self.link.lock().channel.clone()
    }
}

impl Outbox {
    /// Starts without peers. Must be called on a tokio runtime, on which all of its tasks run. `own_address`
    /// is the address for the answers of peers that do not know this node yet.
    pub(crate) fn start<S: SnapshotStore>(
        own_address: String,
        dialer: Dialer,
        config: CheckedConfig,
        snapshots: S,
        blocking: Blocking,
        events: PeerEvents,
        metrics: Arc<NodeMetrics>,
    ) -> Outbox {
        let shared = Shared {
            own_address,
            dialer,
            snapshots: Arc::new(SnapshotSender::new(
                &config,
                snapshots,
                blocking,
                events.clone(),
                Arc::clone(&metrics),
            )),
            events,
            runtime: Handle::current(),
            forwarded: InFlight::new(&config),
            config,
            metrics,
            state: Mutex::new(State {
                own: None,
                contacts: BTreeMap::new(),
                moved: BTreeMap::new(),
                too_many_contacts: LogThrottle::default(),
                peers: BTreeMap::new(),
                tasks: JoinSet::new(),
                closed: false,
            }),
        };
        Outbox { shared: Arc::new(shared) }
    }

    /// Connects to new members, ends the connections to members that are gone or have moved, and introduces
    /// this node from now on with this membership.
    pub(crate) fn set_members(&self, identity: Identity, members: &Arc<Members>, started: Started) {
        let mut state = self.shared.state.lock();
        state.contacts.retain(|id, contact| {
            members.get(*id).is_none() && (members.is_empty() || contact.members_as_of > members.as_of())
        });
        state
            .moved
            .retain(|id, moved| members.get(*id).is_some_and(|member| member.address == moved.recorded));
        state.own = Some((identity, Arc::clone(members), started));
        self.shared.refresh(&mut state);
    }

    /// A node introduced itself, and was accepted. A node that is not a member, as far as this node knows, is
    /// answered at this address until the membership has another one. If the membership has another
    /// address for a member, this one is tried first. Returns whether the raft loop must learn that a
    /// member has moved.
    pub(crate) fn hear_of(&self, sender: &Sender, address: &str) -> bool {
        let mut state = self.shared.state.lock();
        let Some((identity, members, _)) = &state.own else {
            return false;
        };
        if sender.id == identity.node_id {
            return false;
        }
        if let Some(member) = members.get(sender.id) {
            let has_moved = member.incarnation == Some(sender.incarnation) && member.address != address;
            return has_moved && self.has_moved(&mut state, sender.id, address, true);
        }
        if state.contacts.len() >= MEMBERS_MAX && !state.contacts.contains_key(&sender.id) {
            if state.too_many_contacts.is_due() {
                warn!(peer = %sender.id, address, "too many unknown nodes send messages to this node: this one gets no answer");
            }
            return false;
        }
        let contact = Contact { address: address.to_owned(), members_as_of: sender.members_as_of };
        if state.contacts.get(&sender.id) != Some(&contact) {
            state.contacts.insert(sender.id, contact);
            self.shared.refresh(&mut state);
        }
        false
    }

    /// The peer has connected to this node, and was accepted. If it was not reached so far, it is tried again
    /// at once.
    pub(crate) fn is_up(&self, id: NodeId) {
        let state = self.shared.state.lock();
        if let Some(peer) = state.peers.get(&id).filter(|peer| !peer.reach.answers()) {
            peer.is_up.notify_one();
        }
    }

    /// A member, in the incarnation that the membership has, was found at an address. If it does not answer
    /// at another one, this address is tried first.
    pub(crate) fn found_at(&self, id: NodeId, address: &str) {
        let mut state = self.shared.state.lock();
        let answers = state.peers.get(&id).is_some_and(|peer| peer.reach.answers());
        if !answers {
            self.has_moved(&mut state, id, address, false);
        }
    }

    /// Returns whether the raft loop must learn of it, if the member itself has reported the address.
    fn has_moved(&self, state: &mut State, id: NodeId, address: &str, says_so_itself: bool) -> bool {
        let Some(recorded) = state.own.as_ref().and_then(|(_, members, _)| members.get(id)) else {
            return false;
        };
        if recorded.address == address {
            return false;
        }
        let recorded = recorded.address.clone();
        let is_known = state.moved.get(&id).is_some_and(|moved| moved.address == address);
        if !is_known {
            info!(peer = %id, recorded, address, "also connects to the peer at an address other than the recorded one");
            state.moved.insert(id, Moved { address: address.to_owned(), recorded, announced: None });
            self.shared.refresh(state);
        }
        let Some(moved) = state.moved.get_mut(&id).filter(|_| says_so_itself) else {
            return false;
        };
        let is_due = moved.announced.is_none_or(|last| last.elapsed() >= ANNOUNCE_INTERVAL);
        if is_due {
            moved.announced = Some(Instant::now());
        }
        is_due
    }

    /// Queues messages for the connections, each peer's in order. Never blocks, on any thread. Messages to
    /// nodes that are not peers, or whose queue is full, are dropped.
    pub(crate) fn send(&self, mut messages: Vec<RaftMessage>) {
        if messages.is_empty() {
            return;
        }
        // The sort is stable: each peer's messages keep their order, and go into its queue in one step, so
        // that they also leave in one batch.
        messages.sort_by_key(|message| message.to);
        let state = self.shared.state.lock();
        let mut messages = messages.into_iter().peekable();
        while let Some(to) = messages.peek().map(|message| message.to) {
            let of_this_peer = std::iter::from_fn(|| messages.next_if(|message| message.to == to));
            match state.peers.get(&to) {
                Some(peer) => peer.queue.push(of_this_peer),
                None => {
                    // Counted outside of the macro, which evaluates nothing while its level is off: messages
                    // that remain in the iterator would be returned again forever.
                    let dropped = of_this_peer.count();
                    debug!(peer = %to, dropped, "no such peer, its messages are dropped");
                }
            }
        }
    }

    /// Sends a snapshot, in place of one that is still under way to the same peer. Exactly one
    /// [`PeerEvent::SnapshotSent`] follows for each, in every case.
    pub(crate) fn send_snapshot(&self, snapshot: SnapshotToSend) {
        let report = SnapshotReport::new(snapshot, self.shared.events.clone());
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        if state.closed {
            return report.failed("this node is stopping".to_owned());
        }
        let Some(peer) = state.peers.get_mut(&snapshot.to) else {
            return report.failed(format!("node {} is not known here", snapshot.to));
        };
        if let Some(earlier) = peer.snapshot_task.take() {
            earlier.abort();
        }
        let transfer = SnapshotTransfer {
            snapshot,
            sender: Arc::clone(&self.shared.snapshots),
            queue: Arc::clone(&peer.queue),
            channel: peer.channel(),
            failures: Arc::clone(&peer.snapshot_failures),
        };
        peer.snapshot_task = Some(self.shared.spawn(&mut state.tasks, transfer.run(report)));
    }

    /// Forwards a request to the leader, and the answer back. At most once: it is never sent again.
    pub(crate) fn forward<R: RemoteReply>(&self, Forward { to: id, request }: Forward<R>) {
        let node = self.node(id);
        let place = self.shared.forwarded.enter_with(request.payload_bytes()).map(Some);
        let place = if raftify_core::mutated!(ForwardsWithoutLimit) { Ok(None) } else { place };
        let (node, place) = match (node, place) {
            (Some(node), Ok(place)) => (node, place),
            (None, _) => return request.refuse(Unsent::UnknownPeer(id)),
            (_, Err(waiting)) => return request.refuse(Unsent::Busy(waiting)),
        };
        let leader = Leader { id, node, config: self.shared.config.clone() };
        let mut state = self.shared.state.lock();
        if state.closed {
            return; // The dropped request answers that the node has stopped.
        }
        self.shared.spawn(&mut state.tasks, async move {
            leader.serve(request).await;
            drop(place);
        });
    }

    /// Whether forwarded requests are not answered yet.
    pub(crate) fn is_forwarding(&self) -> bool {
        !self.shared.forwarded.is_empty()
    }

    /// Asks the leader for its confirmed commit index. Exactly one [`PeerEvent::ReadRoundAnswered`] follows,
    /// unless the outbox is shut down.
    pub(crate) fn read_round(&self, ReadRound { leader, round }: ReadRound) {
        let events = self.shared.events.clone();
        let answer = move |answer| send_event(&events, PeerEvent::ReadRoundAnswered { round, answer });
        let Some(node) = self.node(leader) else {
            return answer(Err(ReadError::not_sent(format!("node {leader} is not known here"))));
        };
        let timeout = ReadIndex::DEADLINE(&self.shared.config);
        let mut state = self.shared.state.lock();
        if state.closed {
            return;
        }
        self.shared.spawn(&mut state.tasks, async move {
            let answered = node.call(ReadIndex, Forwarding::Never, timeout).await;
            answer(answered.map(|answered| answered.answer).map_err(CallError::into_verb_error));
        });
    }

    /// Ends all connections and waits for their tasks. Later calls of the other methods only report the
    /// shutdown.
    pub(crate) async fn shutdown(&self) {
        let mut tasks = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            for peer in std::mem::take(&mut state.peers).into_values() {
                peer.end();
            }
            std::mem::take(&mut state.tasks)
        };
        tasks.shutdown().await;
    }

    fn node(&self, id: NodeId) -> Option<RemoteNode> {
        let state = self.shared.state.lock();
        let peer = state.peers.get(&id)?;
        let link = peer.link.lock();
        Some(link.node.clone())
    }
}

impl Shared {
    fn spawn(&self, tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                error!(%error, "a task of a connection panicked");
            }
        }
        tasks.spawn_on(task, &self.runtime)
    }

    /// Updates the connections from the membership and the contacts.
    fn refresh(&self, state: &mut State) {
        let Some((identity, members, started)) = &state.own else {
            return;
        };
        if state.closed {
            return;
        }
        let target = |address: &str| Target {
            cluster_id: identity.cluster_id,
            recorded: address.to_owned(),
            other: None,
            is_member: false,
            incarnation: None,
        };
        let mut wanted: BTreeMap<NodeId, Target> =
            state.contacts.iter().map(|(id, contact)| (*id, target(&contact.address))).collect();
        wanted.extend(members.iter().map(|member| {
            let other = state.moved.get(&member.id).map(|moved| moved.address.clone());
            let (is_member, incarnation) = (true, member.incarnation);
            (member.id, Target { other, is_member, incarnation, ..target(&member.address) })
        }));
        wanted.remove(&identity.node_id);

        let ended: Vec<NodeId> = state
            .peers
            .iter()
            .filter(|(id, peer)| wanted.get(id).is_none_or(|wanted| !peer.is_at(&wanted.recorded)))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            info!(peer = %id, "the peer was removed or has moved: its connection is closed");
            if let Some(peer) = state.peers.remove(&id) {
                peer.end();
            }
        }
        for (id, target) in wanted {
            let introduction = Introduction {
                header: wire::header(Some(identity.cluster_id)),
                sender: wire::sender_to_wire(
                    &Sender {
                        id: identity.node_id,
                        incarnation: identity.incarnation,
                        members_as_of: members.as_of(),
                        started: *started,
                    },
                    &self.own_address,
                ),
                receiver: wire::receiver_to_wire(id, target.incarnation),
            };
            if let Some(peer) = state.peers.get(&id) {
                if target.is_member {
                    peer.reach.is_members(&self.metrics);
                }
                peer.queue.introduce(introduction);
                peer.target.send_if_modified(|known| {
                    let is_news = *known != target;
                    *known = target;
                    is_news
                });
                continue;
            }
            let address = &target.recorded;
            let endpoint = match endpoint::endpoint(address, self.config.connect_timeout) {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    warn!(peer = %id, address, %error, "the peer's address cannot be used");
                    continue;
                }
            };
            let dialer = self.dialer.to(id, identity.cluster_id);
            let calls =
                CallPermits::new(self.config.proposals_in_flight_max, self.config.uncommitted_bytes_max);
            let channel = {
                let _on_runtime = self.runtime.enter(); // The channel starts a task.
                dialer.connect_lazily(&endpoint)
            };
            let link = Arc::new(Mutex::new(PeerLink::new(channel, calls, identity.cluster_id)));
            let metrics = PeerMetrics::default();
            let queue = Arc::new(PeerQueue::new(id, introduction, &self.config, metrics.clone()));
            let reach = Arc::new(Reach::new(id, self.events.clone(), metrics));
            if target.is_member {
                reach.is_members(&self.metrics);
            }
            let target = watch::Sender::new(target);
            let is_up = Arc::new(Notify::new());
            let connection = PeerConnection {
                id,
                target: target.subscribe(),
                is_up: Arc::clone(&is_up),
                queue: Arc::clone(&queue),
                link: Arc::clone(&link),
                dialer,
                reach: Arc::clone(&reach),
                events: self.events.clone(),
                config: self.config.clone(),
            };
            let peer = Peer {
                target,
                is_up,
                queue,
                reach,
                link,
                stream_task: self.spawn(&mut state.tasks, connection.keep()),
                snapshot_task: None,
                snapshot_failures: Failures::default(),
            };
            state.peers.insert(id, peer);
        }
    }
}
