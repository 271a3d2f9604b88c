//! The network of the namespaces: every node, and the clients, have a TUN device, and the switch receives
//! each packet that is sent, and loses, delays, limits or forwards it as the links say. TCP above it is that
//! of the kernel, with its retransmissions and its growing timeouts: a lost packet is a lost packet. It needs
//! neither `netem` nor a firewall.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tun_rs::AsyncDevice;

use crate::links::{Party, Watched};

/// The first three bytes of all addresses. The fourth is the party plus one.
const NETWORK: [u8; 3] = [10, 231, 77];

/// The MTU. Larger than that of Ethernet: less work for the same bytes.
pub(crate) const PACKET_BYTES_MAX: u16 = 9000;

/// The queue of a slow link before it drops packets, as a router with a full queue does.
const QUEUE_TIME_MAX: Duration = Duration::from_millis(500);

/// The number of packets that may be delayed at once; more are lost.
const DELAYED_MAX: usize = 20_000;

/// The address of a party.
pub(crate) fn address(party: Party) -> String {
    let [a, b, c] = NETWORK;
    format!("{a}.{b}.{c}.{}", party + 1)
}

/// What happens to a packet.
enum Fate {
    Lost,
    PassedOn,
    Delayed(Instant),
}

/// Forwards packets between the devices, one for each party in their order, until it is dropped.
pub(crate) struct Switch {
    _tasks: JoinSet<()>,
}

impl Switch {
    pub(crate) fn start(devices: Vec<AsyncDevice>, links: &Watched) -> Switch {
        let shared = Arc::new(Shared {
            busy_until: Mutex::new(vec![Instant::now(); devices.len() * devices.len()]),
            devices,
            links: links.clone(),
        });
        let (delayed, waiting) = mpsc::channel(DELAYED_MAX);
        let mut tasks = JoinSet::new();
        for party in 0..shared.devices.len() {
            tasks.spawn(Arc::clone(&shared).carry(party, delayed.clone()));
        }
        tasks.spawn(Arc::clone(&shared).deliver_later(waiting));
        Switch { _tasks: tasks }
    }
}

struct Shared {
    devices: Vec<AsyncDevice>,
    links: Watched,
    /// For each link with a rate, the time when its queue is empty.
    busy_until: Mutex<Vec<Instant>>,
}

struct Delayed {
    due: Instant,
    number: u64,
    to: Party,
    packet: Vec<u8>,
}

impl Shared {
    /// Receives the packets of one party.
    async fn carry(self: Arc<Self>, from: Party, delayed: mpsc::Sender<(Instant, Party, Vec<u8>)>) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = match self.devices[from].recv(&mut buffer).await {
                Ok(length) => length,
                // The device is down while its namespace is set up or removed.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let packet = &buffer[..length];
            let Some(to) = receiver(packet).filter(|to| *to < self.devices.len()) else { continue };
            match self.fate(from, to, length) {
                Fate::Lost => {}
                Fate::PassedOn => self.deliver(to, packet),
                // A full queue loses the packet, as in every network.
                Fate::Delayed(due) => drop(delayed.try_send((due, to, packet.to_vec()))),
            }
        }
    }

    fn fate(&self, from: Party, to: Party, length: usize) -> Fate {
        let link = self.links.borrow().get(from, to);
        if link == crate::links::Link::default() {
            return Fate::PassedOn;
        }
        let mut random = rand::rng();
        if link.blocked || random.random_range(0..100) < link.loss_percent {
            return Fate::Lost;
        }
        let now = Instant::now();
        let mut due = now + link.delay + link.jitter.mul_f64(random.random());
        if let Some(rate) = link.bytes_per_second {
            let mut busy_until = self.busy_until.lock();
            let busy_until = &mut busy_until[from * self.devices.len() + to];
            let begin = (*busy_until).max(now);
            if begin > now + QUEUE_TIME_MAX {
                return Fate::Lost;
            }
            *busy_until = begin + Duration::from_secs_f64(length as f64 / rate as f64);
            due += *busy_until - now;
        }
        if due > now { Fate::Delayed(due) } else { Fate::PassedOn }
    }

    fn deliver(&self, to: Party, packet: &[u8]) {
        // A device that does not accept a packet loses it: the node is gone, or its queue is full.
        let _lost: io::Result<usize> = self.devices[to].try_send(packet);
    }

    async fn deliver_later(self: Arc<Self>, mut waiting: mpsc::Receiver<(Instant, Party, Vec<u8>)>) {
        let mut queue: BinaryHeap<Reverse<Delayed>> = BinaryHeap::new();
        let mut number = 0;
        loop {
            let due = queue.peek().map(|Reverse(first)| first.due);
            tokio::select! {
                came = waiting.recv() => {
                    let Some((due, to, packet)) = came else { return };
                    number += 1;
                    queue.push(Reverse(Delayed { due, number, to, packet }));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(Reverse(first)) = queue.pop() {
                        // Packets that were already delayed arrive even if the link is now cut: they were in flight.
                        self.deliver(first.to, &first.packet);
                    }
                }
            }
        }
    }
}

/// The receiver of a packet, if it is IPv4 and within the network.
fn receiver(packet: &[u8]) -> Option<Party> {
    let destination = packet.get(16..20)?;
    let is_ours = packet[0] >> 4 == 4 && destination.starts_with(&NETWORK);
    usize::from(*destination.last()?).checked_sub(1).filter(|_| is_ours)
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Delayed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiver_of_a_packet_is_the_last_byte_of_its_destination() {
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[16..].copy_from_slice(&[10, 231, 77, 4]);
        assert_eq!(receiver(&packet), Some(3));
        assert_eq!(address(3), "10.231.77.4");
        packet[16] = 11;
        assert_eq!(receiver(&packet), None, "another network");
        packet[16] = 10;
        packet[0] = 0x60;
        assert_eq!(receiver(&packet), None, "IPv6");
        assert_eq!(receiver(&packet[..10]), None, "cut off");
    }
}
