//! Entries of nearly the largest size, over links on which each of them takes a minute.

use std::cell::RefCell;
use std::io::Read;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use raftify::start::{BootstrapOptions, Start};
use raftify::status::Term;
use raftify::storage::MemoryStorage;
use raftify::{
    BoxError, Config, LogPosition, Member, NodeId, Raft, RaftClient, Snapshot, StateMachine, simulation,
};
use tokio::time::sleep;

const ENTRY_BYTES: usize = 60 << 20;
const LINK_BYTES_PER_SECOND: u64 = 1 << 20;

/// The deadline for an operation on one entry: it passes three links.
const PATIENCE: Duration = Duration::from_secs(600);

/// The length of the last applied entry.
struct Length(usize);

impl StateMachine for Length {
    type LogEntry = String;
    type Reply = usize;

    fn apply(&mut self, _: LogPosition, entry: String) -> Result<usize, BoxError> {
        self.0 = entry.len();
        Ok(self.0)
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(self.0))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        self.0 = Snapshot::read_value(reader)?;
        Ok(())
    }
}

type Node = Raft<String, Length>;

fn ip(number: u64) -> IpAddr {
    IpAddr::from([192, 168, 7, number as u8])
}

fn terms(nodes: &[Node]) -> Vec<Term> {
    nodes.iter().map(|node| node.status().borrow().term).collect()
}

/// Waits until all nodes have applied the same entry.
async fn until_all_have_applied(nodes: &[Node], length: usize) {
    for node in nodes {
        while node.query(|state| state.0).await.ok() != Some(length) {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[test]
fn an_entry_of_60_mib_replicates_over_a_slow_link_and_no_new_term_begins() {
    simulation::begin(1, Duration::ZERO);
    simulation::slow_links(LINK_BYTES_PER_SECOND);
    let mut sim = turmoil::Builder::new()
        .rng_seed(1)
        .simulation_duration(4 * PATIENCE)
        .tick_duration(Duration::from_millis(20))
        .tcp_capacity(1024)
        .build();
    let address = |number: u64| format!("{}:6000", ip(number));
    let members: Vec<Member> = [1, 2, 3]
        .into_iter()
        .filter_map(|number| Some(Member::voter(NodeId::new(number)?, address(number))))
        .collect();
    // The settings allow such an entry, and give it time. All others are the defaults.
    let config = Config { entry_bytes_max: 64 << 20, propose_timeout: PATIENCE, ..Config::default() };
    let started: Rc<RefCell<Vec<Node>>> = Rc::default();
    for number in 1..=3 {
        let (members, config, started) = (members.clone(), config.clone(), Rc::clone(&started));
        sim.host(ip(number), move || {
            let (members, config, started) = (members.clone(), config.clone(), Rc::clone(&started));
            async move {
                let (begin, options) = (Start::BeginWith(members), BootstrapOptions::default());
                let storage = MemoryStorage::default();
                let node = Raft::start(begin, address(number), storage, Length(0), config, options).await?;
                started.borrow_mut().push(node);
                std::future::pending().await
            }
        });
    }
    sim.client(IpAddr::from([192, 168, 8, 1]), async move {
        let nodes = loop {
            let nodes = started.borrow().clone();
            if nodes.len() == 3 && nodes.iter().all(|node| node.status().borrow().leader_id.is_some()) {
                break nodes;
            }
            sleep(Duration::from_millis(100)).await;
        };
        let before = terms(&nodes);
        let follower = nodes.iter().find(|node| !node.status().borrow().is_leader()).expect("two follow");
        // From the client to the follower, from there to the leader, and from there to both.
        let known = address(follower.id().get());
        let client = RaftClient::<String, Length>::new([known])?.with_deadline(PATIENCE);
        let replied = client.propose(&"a".repeat(ENTRY_BYTES)).await?;
        assert_eq!(replied, ENTRY_BYTES);
        until_all_have_applied(&nodes, ENTRY_BYTES).await;
        let replied = follower.propose("b".repeat(ENTRY_BYTES - 1)).await?;
        assert_eq!(replied, ENTRY_BYTES - 1);
        until_all_have_applied(&nodes, ENTRY_BYTES - 1).await;
        assert_eq!(terms(&nodes), before, "there was another election");
        Ok(())
    });
    sim.run().unwrap_or_else(|error| panic!("{error}"));
    let took = sim.elapsed();
    assert!(took > Duration::from_secs(4 * 60), "the links were not slow: it took {took:?}");
}
