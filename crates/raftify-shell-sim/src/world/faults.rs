//! Faults: their effects on the world, and their ends.

use std::rc::Rc;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::{World, order, status};
use crate::disk::Health;
use crate::host::{Order, StartMode};
use crate::scenario::Fault;

/// A fault of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Cut,
    /// From the first to the second.
    CutThere,
    CutBack,
    Held,
}

impl World {
    /// Ends faults whose time is over.
    pub(super) fn end_faults(&mut self) {
        let now = self.sim.elapsed();
        let over: Vec<_> = self
            .links
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(link, (fault, _))| (*link, *fault))
            .collect();
        for (link, fault) in over {
            self.links.remove(&link);
            self.repair(link, fault);
        }
        let over: Vec<usize> =
            self.crashed.iter().filter(|(_, until)| **until <= now).map(|(number, _)| *number).collect();
        for number in over {
            self.crashed.remove(&number);
            self.note(format_args!("host {number} starts"));
            self.start(number);
        }
        let over: Vec<usize> = self
            .disks_sick_until
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            self.disks_sick_until.remove(&number);
            self.hosts[number].disk.set_health(Health::Slow(self.disk_slowness));
        }
    }

    pub(super) fn repair(&mut self, (a, b): (usize, usize), fault: Link) {
        self.note(format_args!("link {a}-{b} is no more {fault:?}"));
        let (a, b) = (self.addresses[a], self.addresses[b]);
        match fault {
            Link::Cut => self.sim.repair(a, b),
            Link::CutThere => self.sim.repair_oneway(a, b),
            Link::CutBack => self.sim.repair_oneway(b, a),
            Link::Held => self.sim.release(a, b),
        }
    }

    fn break_link(&mut self, a: usize, b: usize, fault: Link, until: Duration) {
        let (a, b) = (a.min(b), a.max(b));
        if a == b || self.links.contains_key(&(a, b)) {
            return;
        }
        self.note(format_args!("link {a}-{b} is {fault:?} until {until:?}"));
        self.links.insert((a, b), (fault, until));
        let (a, b) = (self.addresses[a], self.addresses[b]);
        match fault {
            Link::Cut => self.sim.partition(a, b),
            Link::CutThere => self.sim.partition_oneway(a, b),
            Link::CutBack => self.sim.partition_oneway(b, a),
            Link::Held => self.sim.hold(a, b),
        }
    }

    fn crash(&mut self, number: usize) {
        if self.crashed.contains_key(&number) || self.hosts[number].seen.is_gone.get() {
            return;
        }
        let until = self.soon(3000);
        let host = Rc::clone(&self.hosts[number]);
        if host.seen.orders.borrow().is_some() && host.seen.status.borrow().is_none() {
            self.record.count("ended while it expects");
        }
        if self.chance.random_bool(0.5) {
            self.lose_machine(number, until);
        } else {
            self.kill_process(number, until);
        }
        host.disk.crash(self.sim.elapsed());
        host.seen.status.take();
        host.seen.orders.take();
        self.crashed.insert(number, until);
    }

    /// The process ends, and its machine goes on: the other ends of its connections learn of it at once, and
    /// new connections are refused.
    fn kill_process(&mut self, number: usize, until: Duration) {
        self.note(format_args!("the process of host {number} is killed until {until:?}"));
        self.record.count("process killed");
        let address = self.addresses[number];
        self.sim.crash(address);
        // turmoil lets a host answer only while something runs there.
        self.hosts[number].seen.is_killed.set(true);
        self.sim.bounce(address);
    }

    /// The machine is gone: no host hears anything from it, and nothing reaches it, until it is back.
    fn lose_machine(&mut self, number: usize, until: Duration) {
        self.note(format_args!("the machine of host {number} is lost until {until:?}"));
        self.record.count("machine lost");
        // turmoil refuses new connections over a cut link at once. Over a held one it is silent, and delivers
        // later what was sent meanwhile, as a sender that sends again does.
        for other in (0..self.addresses.len()).filter(|other| *other != number) {
            let link = (number.min(other), number.max(other));
            match self.links.get(&link).copied() {
                // The other machine may be lost as well, and for longer.
                Some((Link::Held, end)) => drop(self.links.insert(link, (Link::Held, end.max(until)))),
                Some((fault, _)) => {
                    self.links.remove(&link);
                    self.repair(link, fault);
                    self.break_link(number, other, Link::Held, until);
                }
                None => self.break_link(number, other, Link::Held, until),
            }
        }
        // turmoil closes the connections of a host that ends: the links hold that back.
        self.sim.crash(self.addresses[number]);
    }

    /// The host starts again.
    pub(super) fn start(&mut self, number: usize) {
        self.hosts[number].seen.is_killed.set(false);
        self.sim.bounce(self.addresses[number]);
    }

    pub(super) fn crash_early(&mut self) {
        let now = self.sim.elapsed();
        for (_, number) in self.crash_early.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.crash(number);
        }
    }

    fn soon(&mut self, milliseconds: u64) -> Duration {
        self.sim.elapsed() + Duration::from_millis(self.chance.random_range(1..milliseconds))
    }

    pub(super) fn inject_fault(&mut self) {
        let Some(fault) = self.scenario.faults().choose(&mut self.chance).copied() else {
            return;
        };
        let number = self.chance.random_range(0..self.hosts.len());
        let other = self.chance.random_range(0..self.addresses.len());
        let until = self.soon(4000);
        let leader = self
            .hosts
            .iter()
            .position(|host| status(host).is_some_and(|status| status.is_leader()))
            .unwrap_or(number);
        // A node that expects others must find one of the first: none of these leaves before all are members.
        let mut expecting =
            self.hosts.iter().filter(|host| matches!(host.start_mode, StartMode::Expects(..)));
        let all_are_members = expecting
            .all(|host| host.seen.is_gone.get() || status(host).is_some_and(|status| status.is_member()));
        let there = match all_are_members {
            true => self.hosts.iter().filter(|host| !host.seen.is_gone.get()).count(),
            false => 0,
        };
        match fault {
            Fault::Crash => self.crash(number),
            Fault::CrashLeader => self.crash(leader),
            Fault::CrashAll => {
                if self.chance.random_bool(0.3) {
                    (0..self.hosts.len()).for_each(|number| self.crash(number));
                }
            }
            Fault::Cut => self.break_link(number, other, Link::Cut, until),
            Fault::CutOneWay => {
                let way = if self.chance.random_bool(0.5) { Link::CutThere } else { Link::CutBack };
                self.break_link(number, other, way, until);
                self.record.count("one-way cut");
            }
            Fault::Hold => {
                self.break_link(number, other, Link::Held, until);
                self.record.count("hold");
            }
            Fault::Isolate => {
                let some = if self.chance.random_bool(0.5) { leader } else { number };
                let fault = *[Link::Cut, Link::CutThere, Link::CutBack, Link::Held]
                    .choose(&mut self.chance)
                    .unwrap_or(&Link::Cut);
                for other in 0..self.addresses.len() {
                    self.break_link(some, other, fault, until);
                }
                self.record.count("isolation");
            }
            Fault::SlowDisk => {
                self.note(format_args!("host {number} has a slow disk until {until:?}"));
                let slowness = Duration::from_millis(self.chance.random_range(50..1500));
                self.hosts[number].disk.set_health(Health::Slow(slowness));
                self.disks_sick_until.insert(number, until);
                self.record.count("slow disk");
            }
            Fault::FailingDisk => {
                self.note(format_args!("host {number} has a failing disk until {until:?}"));
                self.hosts[number].disk.set_health(Health::Failing(0.2, self.disk_slowness));
                self.disks_sick_until.insert(number, until);
            }
            Fault::Quit => self.order(number, Order::Quit),
            Fault::QuitHalf => {
                let polls = self.chance.random_range(0..6);
                let milliseconds = *[0, 1, 20, 300, 3000].choose(&mut self.chance).unwrap_or(&0);
                let then = Duration::from_millis(self.chance.random_range(0..=milliseconds));
                let then = self.chance.random_bool(0.7).then_some(then);
                self.order(number, Order::QuitHalf(polls, then));
            }
            Fault::Drop => self.order(number, Order::Drop),
            Fault::Leave if there > 3 => self.order(number, Order::Leave),
            Fault::Remove if there > 3 => {
                let of = self.chance.random_range(0..self.hosts.len());
                if let Some(status) = status(&self.hosts[of]) {
                    self.order(number, Order::Remove(status.node_id));
                }
            }
            Fault::Leave | Fault::Remove => {}
            Fault::Transfer => {
                if let Some(status) = status(&self.hosts[number]) {
                    self.order(leader, Order::Transfer(status.node_id));
                }
            }
            Fault::Demote => self.order(leader, Order::Demote),
            Fault::Campaign => self.order(number, Order::Campaign),
            Fault::Snapshot => self.order(number, Order::Snapshot),
            Fault::Inspect => self.order(number, Order::Inspect),
        }
    }

    fn order(&self, number: usize, what: Order) {
        order(&self.hosts[number], what);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use tokio::io::AsyncReadExt;
    use tokio::time::{sleep, timeout};
    use turmoil::net::TcpStream;

    use super::*;
    use crate::record::Record;
    use crate::scenario::Scenario;

    const SILENCE: Duration = Duration::from_secs(2);

    /// What a peer notices: whether its connection ends, and the error of a new one. `None`: nothing, for
    /// long.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Noticed {
        ends: Option<()>,
        connects: Option<Result<(), io::ErrorKind>>,
    }

    async fn ended(stream: &mut TcpStream) {
        let mut bytes = [0; 64];
        while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
    }

    /// A peer that is connected to host 0 when `fault` happens.
    fn noticed(fault: impl FnOnce(&mut World, Duration)) -> Noticed {
        let mut world = World::draw(3, Scenario::Failover, Record::default());
        let (is_connected, is_over) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(None)));
        let has_happened = Rc::new(Cell::new(false));
        let (host, peer) = (world.addresses[0], std::net::IpAddr::from([192, 168, 9, 1]));
        let (connected, happened, over) =
            (Rc::clone(&is_connected), Rc::clone(&has_happened), Rc::clone(&is_over));
        world.sim.client(peer, async move {
            let mut stream = loop {
                match TcpStream::connect((host, 6000)).await {
                    Ok(stream) => break stream,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            };
            connected.set(true);
            while !happened.get() {
                sleep(Duration::from_millis(1)).await;
            }
            let ends = timeout(SILENCE, ended(&mut stream)).await.ok();
            let connects = timeout(SILENCE, TcpStream::connect((host, 6000))).await.ok();
            let connects = connects.map(|connects| connects.map(drop).map_err(|error| error.kind()));
            over.set(Some(Noticed { ends, connects }));
            Ok(())
        });
        world.addresses.push(peer);
        while !is_connected.get() {
            world.step().expect("nothing happens yet");
        }
        let until = world.sim.elapsed() + 10 * SILENCE;
        fault(&mut world, until);
        has_happened.set(true);
        loop {
            world.step().expect("the others go on");
            if let Some(noticed) = is_over.get() {
                return noticed;
            }
        }
    }

    #[test]
    fn a_killed_process_ends_its_connections_and_refuses_new_ones() {
        let noticed = noticed(|world, until| world.kill_process(0, until));
        let refused = Some(Err(io::ErrorKind::ConnectionRefused));
        assert_eq!(noticed, Noticed { ends: Some(()), connects: refused });
    }

    #[test]
    fn a_lost_machine_is_silent_whatever_was_wrong_with_its_links_before() {
        let noticed = noticed(|world, until| {
            let other = world.addresses.len() - 1;
            world.break_link(0, other, Link::CutBack, until);
            world.lose_machine(0, until);
        });
        assert_eq!(noticed, Noticed::default());
    }
}
