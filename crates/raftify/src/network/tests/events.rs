//! Events over the network.

use super::*;
use crate::channels::node_events::{Event, EventRecord};

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_reader_that_is_too_slow_is_told_exactly_how_many_events_it_missed() {
    const ALL: u64 = 20_000;
    let mut node = TestNode::start(1);
    let cluster = ClusterConnection::new([node.address.clone()], Duration::from_secs(20)).unwrap();
    let mut events = cluster.events().await.unwrap();
    // Faster than any connection takes them.
    (1..=ALL).for_each(|term| node.node_events.publish(Event::TermChanged { term: Term(term) }));
    let (mut last, mut missed_in_all) = (0, 0);
    while last < ALL {
        let EventRecord { sequence, event } = within("an event", events.next()).await.unwrap().unwrap();
        match event {
            Event::Missed(missed) => {
                assert_eq!(sequence, last + missed);
                missed_in_all += missed;
            }
            event => {
                assert_eq!(sequence, last + 1);
                assert_eq!(event, Event::TermChanged { term: Term(sequence) });
            }
        }
        last = sequence;
    }
    assert!(missed_in_all < ALL, "the newest events are never missed");
    // The server does not wait for a reader when it ends.
    node.stop = None;
    within("the end of the server", &mut node.serving).await.unwrap().unwrap();
    assert_eq!(within("the end of the events", events.next()).await, Ok(None));
}
