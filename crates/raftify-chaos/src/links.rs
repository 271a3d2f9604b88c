//! The state of the network between any two parties, in each direction. The nemesis writes it; the switch and
//! the proxy read it for each packet. Nothing here touches a socket.

use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use tokio::sync::watch;

/// A party: 0 for the clients, the slot for a node, from 1. The last slots are those of the spare nodes.
pub(crate) type Party = usize;

/// The number of spare nodes: they join and leave. Partitions do not affect them.
pub(crate) const SPARES: usize = 2;

/// The party of all clients.
pub(crate) const CLIENTS: Party = 0;

/// The link from one party to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Link {
    /// Blocks all packets.
    pub blocked: bool,
    /// The percentage of lost packets.
    pub loss_percent: u32,
    /// The delay of each packet.
    pub delay: Duration,
    /// The largest additional delay, drawn for each packet.
    pub jitter: Duration,
    /// The rate in bytes per second; `None` without a limit.
    pub bytes_per_second: Option<u64>,
}

/// All links.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Links {
    nodes: usize,
    parties: usize,
    table: Vec<Link>,
}

/// The shape of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Shape {
    /// Two groups, one of them a majority.
    Halves,
    /// One node alone.
    Isolated,
    /// One node sends and does not receive, or receives and does not send.
    OneWay,
    /// Two groups that share only one node.
    Bridge,
    /// Each node has two neighbours, and reaches no other node.
    Ring,
}

impl Links {
    /// All links are open.
    pub(crate) fn open(nodes: usize) -> Links {
        let parties = nodes + SPARES + 1;
        Links { nodes, parties, table: vec![Link::default(); parties * parties] }
    }

    /// The link between two parties; an unknown party has an open link.
    pub(crate) fn get(&self, from: Party, to: Party) -> Link {
        if from >= self.parties || to >= self.parties {
            return Link::default();
        }
        self.table[from * self.parties + to]
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = Party> + use<> {
        1..self.nodes + 1
    }

    fn get_mut(&mut self, from: Party, to: Party) -> &mut Link {
        &mut self.table[from * self.parties + to]
    }

    /// Changes every link between two nodes, except the spare ones.
    pub(crate) fn between_nodes(&mut self, mut change: impl FnMut(Party, Party, &mut Link)) {
        for from in self.nodes() {
            for to in self.nodes().filter(|to| *to != from) {
                change(from, to, self.get_mut(from, to));
            }
        }
    }

    /// Whether packets are lost. TCP repeats them after times that, together, exceed any election timeout.
    pub(crate) fn lose_packets(&self) -> bool {
        self.table.iter().any(|link| link.loss_percent > 0)
    }

    /// Limits the rate of all links to one node.
    pub(crate) fn slow_down(&mut self, to: Party, bytes_per_second: u64) {
        for from in 1..self.parties {
            self.get_mut(from, to).bytes_per_second = Some(bytes_per_second);
        }
    }

    /// Opens all links but those that the shape cuts. `first` is the isolated node, the node with one
    /// direction, the bridge, or a member of the smaller half. The clients reach all nodes: a node that
    /// is cut off may be asked, and its answers must be correct.
    pub(crate) fn partitioned(nodes: usize, shape: Shape, first: Party, random: &mut impl Rng) -> Links {
        let mut links = Links::open(nodes);
        let mut others: Vec<Party> = links.nodes().filter(|node| *node != first).collect();
        others.shuffle(random);
        // The order of all nodes, with `first` at the front.
        let order: Vec<Party> = std::iter::once(first).chain(others).collect();
        let place = |party: Party| order.iter().position(|other| *other == party).unwrap_or_default();
        let hears = random.random_bool(0.5);
        links.between_nodes(|from, to, link| {
            let (from, to) = (place(from), place(to));
            let minority = nodes.div_ceil(2) - 1;
            link.blocked = match shape {
                Shape::Halves => (from < minority) != (to < minority),
                Shape::Isolated => from == 0 || to == 0,
                Shape::OneWay => 0 == if hears { from } else { to },
                Shape::Bridge => from != 0 && to != 0 && (from <= nodes / 2) != (to <= nodes / 2),
                Shape::Ring => (from + nodes - to) % nodes != 1 && (to + nodes - from) % nodes != 1,
            };
        });
        links
    }

    /// Whether one of the nodes `up` can lead: it reaches a majority of all nodes, and that majority reaches
    /// it.
    pub(crate) fn some_majority_is_connected(&self, up: &[Party]) -> bool {
        up.iter().any(|leader| up.iter().filter(|node| self.talk(*leader, **node)).count() > self.nodes / 2)
    }

    /// Whether a majority of all nodes is among the nodes `up` and all its members reach each other.
    pub(crate) fn some_majority_is_complete(&self, up: &[Party]) -> bool {
        // There are few nodes, hence few groups.
        (0..1_u32 << up.len()).any(|group| {
            let group: Vec<Party> =
                (0..).zip(up).filter(|(bit, _)| group >> bit & 1 == 1).map(|(_, node)| *node).collect();
            group.len() > self.nodes / 2 && group.iter().all(|a| group.iter().all(|b| self.talk(*a, *b)))
        })
    }

    fn talk(&self, a: Party, b: Party) -> bool {
        a == b || !(self.get(a, b).blocked || self.get(b, a).blocked)
    }
}

/// The current links, for the switch or the proxy.
pub(crate) type Watched = watch::Receiver<Links>;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn partitioned(shape: Shape, seed: u64) -> Links {
        Links::partitioned(5, shape, 2, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    /// The nodes that each node reaches in both directions.
    fn partners(links: &Links) -> Vec<usize> {
        let talk = |a, b| a != b && !links.get(a, b).blocked && !links.get(b, a).blocked;
        links.nodes().map(|a| links.nodes().filter(|b| talk(a, *b)).count()).collect()
    }

    #[test]
    fn each_shape_cuts_its_links_and_no_link_of_the_clients() {
        for seed in 0..50 {
            for (shape, mut expected) in [
                (Shape::Halves, vec![1, 1, 2, 2, 2]),
                (Shape::Isolated, vec![0, 3, 3, 3, 3]),
                (Shape::OneWay, vec![0, 3, 3, 3, 3]),
                (Shape::Bridge, vec![2, 2, 2, 2, 4]),
                (Shape::Ring, vec![2, 2, 2, 2, 2]),
            ] {
                let links = partitioned(shape, seed);
                let mut found = partners(&links);
                found.sort_unstable();
                expected.sort_unstable();
                assert_eq!(found, expected, "{shape:?}, seed {seed}");
                assert!(links.nodes().all(|node| !links.get(CLIENTS, node).blocked));
                assert!(links.some_majority_is_connected(&[1, 2, 3, 4, 5]), "{shape:?}, seed {seed}");
            }
        }
    }

    #[test]
    fn spare_nodes_are_always_reachable_and_can_be_slowed_down() {
        let mut links = partitioned(Shape::Isolated, 1);
        assert!([6, 7].iter().all(|spare| links.nodes().all(|node| links.talk(node, *spare))));
        links.slow_down(6, 1000);
        assert_eq!(links.get(1, 6).bytes_per_second, Some(1000));
        assert_eq!(links.get(6, 1).bytes_per_second.or(links.get(1, 7).bytes_per_second), None);
    }

    #[test]
    fn a_one_way_partition_lets_one_direction_pass() {
        let links = partitioned(Shape::OneWay, 1);
        let open = |from, to| usize::from(!links.get(from, to).blocked);
        for other in [1, 3, 4, 5] {
            assert_eq!(open(2, other) + open(other, 2), 1);
        }
    }

    #[test]
    fn a_majority_needs_more_than_half_of_all_nodes_and_links_between_them() {
        let links = Links::open(5);
        assert!(links.some_majority_is_connected(&[1, 4, 5]));
        assert!(!links.some_majority_is_connected(&[4, 5]));
        assert!(!partitioned(Shape::Isolated, 1).some_majority_is_connected(&[1, 2, 3]));
    }

    #[test]
    fn a_complete_majority_is_distinguished_from_one_around_a_single_node() {
        let all = [1, 2, 3, 4, 5];
        for shape in [Shape::Halves, Shape::Isolated, Shape::OneWay, Shape::Bridge] {
            assert!(partitioned(shape, 1).some_majority_is_complete(&all), "{shape:?}");
        }
        assert!(!partitioned(Shape::Ring, 1).some_majority_is_complete(&all));
        assert!(partitioned(Shape::Isolated, 1).some_majority_is_complete(&[2, 3, 4, 5]));
        assert!(!partitioned(Shape::Isolated, 1).some_majority_is_complete(&[1, 2, 5]));
        assert!(!Links::open(5).some_majority_is_complete(&[4, 5]));
    }
}
