//! The addresses at which a node looks for peers, and which node it accepts as a peer.

use std::collections::BTreeSet;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder,
};
use parking_lot::Mutex;
use raftify_core::members::MemberRecord;

use super::*;

fn recorded(members: &Members, node: u64, incarnation: u64) -> Arc<Members> {
    let record = MemberRecord::Incarnation { id: id(node), incarnation: Incarnation(incarnation) };
    Arc::new(members.recorded(LogIndex(members.as_of().0 + 1), &record))
}

fn moved(members: &Members, node: u64, address: &str) -> Arc<Members> {
    let incarnation = members.get(id(node)).unwrap().incarnation.unwrap();
    let record = MemberRecord::Address { id: id(node), incarnation, address: address.to_owned() };
    Arc::new(members.recorded(LogIndex(members.as_of().0 + 1), &record))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_reached_when_its_incarnation_answers_and_not_any_more_when_its_server_ends() {
    let (mut a, mut b, all) = pair();
    assert_eq!(a.next_reach().await, (b.id, Some(identity(2).incarnation)));
    // The member gets another incarnation: the answering node is no longer the member, and then it is again.
    a.knows(&recorded(&all, 2, 7));
    assert_eq!(a.next_reach().await, (b.id, None));
    a.knows(&recorded(&all, 2, 200));
    assert_eq!(a.next_reach().await, (b.id, Some(Incarnation(200))));
    b.stop = None;
    within("the end of the server", &mut b.serving).await.unwrap().unwrap();
    assert_eq!(a.next_reach().await, (b.id, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_gets_its_identity_later_is_reached_from_then_on() {
    let (mut a, joiner) = (TestNode::start(1), TestNode::with(2, config(), None));
    a.knows(&members([(1, &*a.address), (2, &*joiner.address)]));
    joiner.status.send_modify(|status| status.identity = Some(identity(2)));
    assert_eq!(a.next_reach().await, (id(2), Some(identity(2).incarnation)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_answers_at_the_address_of_another_gets_none_of_its_messages() {
    let (mut a, b, all) = pair();
    let other_cluster = Identity { cluster_id: ClusterId(9), ..identity(3) };
    let stranger = TestNode::with(3, config(), Some(other_cluster));
    let nodes = [(1, &*a.address), (2, &*b.address), (4, &*stranger.address)];
    b.knows(&all);
    a.knows(&members(nodes));
    assert!(matches!(a.next_event().await, PeerEvent::Unreachable(peer) if peer == id(4)));
    a.outbox.send(vec![heartbeat(4, 1)]);
    // Meanwhile it was tried again: only the right node is reached.
    while let Ok(event) = a.events.try_recv() {
        assert!(!matches!(event, PeerEvent::Reached { peer, .. } if peer == id(4)), "{event:?}");
    }
    assert!(stranger.requests.is_empty());
}

/// The node learns of the peer that introduces itself with `address`.
fn hear_of(node: &TestNode, peer: u64, address: &str) -> bool {
    let sender = Sender {
        id: id(peer),
        incarnation: identity(peer).incarnation,
        members_as_of: LogIndex(1),
        started: Started::default(),
    };
    node.outbox.hear_of(&sender, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_at_another_address_is_spoken_to_and_reached_once_the_membership_has_the_address() {
    let (mut a, mut b) = (TestNode::start(1), TestNode::start(2));
    let dead = dead_address();
    let all = members([(1, &*a.address), (2, &*dead)]);
    b.knows(&all);
    a.knows(&all);
    assert!(!hear_of(&a, 2, &b.address), "its incarnation is not known yet");
    let all = recorded(&all, 2, 200);
    a.knows(&all);
    assert!(hear_of(&a, 2, &b.address), "the leader is to record it");
    assert!(!hear_of(&a, 2, &b.address), "and is not told with each message");
    within("a message", async {
        while b.requests.is_empty() {
            a.outbox.send(vec![heartbeat(2, 1)]);
            tokio::task::yield_now().await;
        }
    })
    .await;
    b.next_messages().await;
    let (request, _answer) = proposal();
    a.outbox.forward(Forward { to: b.id, request });
    while !matches!(b.next_request().await, ServerRequestMsg::ForLeader { .. }) {}
    while let Ok(event) = a.events.try_recv() {
        assert!(!matches!(event, PeerEvent::Reached { .. }), "not at its advertised address: {event:?}");
    }

    a.knows(&moved(&all, 2, &b.address));
    assert_eq!(a.next_reach().await, (b.id, Some(identity(2).incarnation)));
    let still_up = |event: &PeerEvent| !matches!(event, PeerEvent::Unreachable(_));
    assert!(
        std::iter::from_fn(|| a.events.try_recv().ok()).all(|event| still_up(&event)),
        "it is the same stream"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_not_where_it_says_is_still_spoken_to_at_its_recorded_address() {
    let (a, mut b, all) = pair();
    let all = recorded(&all, 2, 200);
    a.knows(&all);
    let other = TestNode::start(3);
    for wrong in [dead_address(), other.address.clone()] {
        assert!(hear_of(&a, 2, &wrong));
        within("a message", async {
            while b.requests.is_empty() {
                a.outbox.send(vec![heartbeat(2, 1)]);
                tokio::task::yield_now().await;
            }
        })
        .await;
        b.next_messages().await;
    }
    assert!(other.requests.is_empty());
}

/// The peers of which a metric was registered.
#[derive(Default)]
struct Registered(Mutex<BTreeSet<String>>);

impl Registered {
    fn note(&self, key: &Key) {
        let peers = key.labels().filter(|label| label.key() == "peer");
        self.0.lock().extend(peers.map(|label| label.value().to_owned()));
    }
}

impl Recorder for Registered {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.note(key);
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.note(key);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.note(key);
        Histogram::noop()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_get_metrics_however_many_ids_other_senders_name() {
    let node = TestNode::start(1);
    node.knows(&members([(1, &*node.address)]));
    let registered = Registered::default();
    let address = "127.0.0.1:1";
    with_local_recorder(&registered, || {
        for number in 2..40 {
            let (id, incarnation) = (id(number), Incarnation(number));
            let (members_as_of, started) = (LogIndex(9), Started::default());
            node.outbox.hear_of(&Sender { id, incarnation, members_as_of, started }, address);
        }
    });
    assert!(registered.0.lock().is_empty(), "{:?}", registered.0.lock());
    with_local_recorder(&registered, || node.knows(&members([(1, &*node.address), (2, address)])));
    assert_eq!(*registered.0.lock(), BTreeSet::from(["2".to_owned()]));
}
