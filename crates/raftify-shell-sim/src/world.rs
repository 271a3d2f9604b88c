//! One run: draws a world from its seed, injects faults, heals it, and requires that it recovers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use raftify::status::Status;
use raftify::{Config, Member, NodeId, RaftClient, simulation};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::client::Client;
use crate::disk::{Disk, Health};
use crate::host::{Host, Order, Seen, StartMode};
use crate::machine::Profile;
use crate::panics;
use crate::record::Record;
use crate::scenario::{Expecting, Scenario, SlowLinks, draw_config};

mod faults;

use faults::Link;

/// The result of a run.
pub struct Report {
    /// The requested seed.
    pub seed: u64,
    /// The requested scenario, or that of the seed.
    pub scenario: Scenario,
    /// Its simulated duration.
    pub simulated: Duration,
    /// The number of each event.
    pub happened: BTreeMap<&'static str, u64>,
    /// One line for each event.
    pub trace: String,
    /// The first violation, if any.
    pub violation: Option<String>,
}

/// Runs the world of `seed`.
pub fn run(seed: u64, scenario: Scenario) -> Report {
    let record = Record::default();
    panics::forget();
    simulation::begin(seed, Duration::ZERO);
    let mut simulated = Duration::ZERO;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::draw(seed, scenario, record.clone());
        let ended = world.play();
        simulated = world.sim.elapsed();
        ended
    }));
    let violation = match ended {
        Ok(ended) => ended.err(),
        Err(_) => panics::first().or_else(|| Some("a panic".to_owned())),
    };
    Report { seed, scenario, simulated, happened: record.happened(), trace: record.trace(), violation }
}

/// The maximum duration of the phase with faults.
const UNREST_MAX: Duration = Duration::from_secs(15);

/// A healed cluster must work again within this time: connections that hang are detected after 10 s, a peer
/// that refused is tried again after 5 s, a ticket is waited for 30 s.
const RECOVERY_MAX: Duration = Duration::from_secs(90);

struct World {
    sim: turmoil::Sim<'static>,
    scenario: Scenario,
    chance: ChaCha8Rng,
    record: Record,
    hosts: Vec<Rc<Host>>,
    /// Of the hosts, and then of the remote clients.
    addresses: Vec<IpAddr>,
    /// Hosts that crash before the other faults begin, with times: they wait for each other then, or begin.
    crash_early: Vec<(Duration, usize)>,
    /// Hosts that start again, with times.
    crashed: BTreeMap<usize, Duration>,
    /// Links with a fault, and its end.
    links: BTreeMap<(usize, usize), (Link, Duration)>,
    disks_sick_until: BTreeMap<usize, Duration>,
    disk_slowness: Duration,
}

fn host_ip(number: usize) -> IpAddr {
    IpAddr::from([192, 168, 7, number as u8 + 1])
}

impl World {
    fn draw(seed: u64, scenario: Scenario, record: Record) -> World {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        simulation::begin(seed, Duration::from_millis(*[0, 0, 5, 50].choose(&mut chance).unwrap_or(&0)));
        let first = *[1, 3, 3, 3, 5].choose(&mut chance).unwrap_or(&3);
        let (first, joining) = match scenario {
            Scenario::Join => (first.min(3), chance.random_range(1..=3)),
            Scenario::Snapshots => (3, chance.random_range(0..=2)),
            Scenario::Failover | Scenario::Partitions => (first.max(3), 0),
            Scenario::Quit => (first.min(3), chance.random_range(0..=1)),
            Scenario::Everything => (first.min(3), chance.random_range(0..=2)),
            Scenario::Expect => (4, 0),
        };
        let clients = chance.random_range(1..=2);
        let disk_slowness = Duration::from_millis(*[0, 2, 20].choose(&mut chance).unwrap_or(&0));
        let mut config = draw_config(scenario, &mut chance);
        let profile = Profile {
            quick: chance.random_bool(0.3),
            slowness: Duration::from_millis(*[0, 0, 3].choose(&mut chance).unwrap_or(&0)),
            padding_bytes: match scenario {
                Scenario::Snapshots => chance.random_range(0..300_000),
                _ => chance.random_range(0..20_000),
            },
        };
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(Duration::from_millis(*[2, 5, 10].choose(&mut chance).unwrap_or(&5)))
            .tcp_capacity(1024)
            .build();
        let address = |number| format!("{}:6000", host_ip(number));
        let members: Vec<Member> = (0..first)
            .map(|number| {
                Member::voter(NodeId::new(number as u64 + 1).unwrap_or(NodeId::FIRST), address(number))
            })
            .collect();
        let begins_alone = first == 1 && chance.random_bool(0.7);
        let pause_max = Duration::from_millis(*[20, 100, 500].choose(&mut chance).unwrap_or(&100));
        let expecting = Expecting::draw(seed, scenario, &members);
        let slow_links = SlowLinks::draw(seed, scenario);
        if let Some(SlowLinks { bytes_per_second, .. }) = slow_links {
            simulation::slow_links(bytes_per_second);
            config.snapshot_chunk_timeout = Config::default().snapshot_chunk_timeout;
        }
        let padding_bytes_max = slow_links.map_or(0, |slow| slow.padding_bytes_max);
        let mut hosts = Vec::new();
        for number in 0..first + joining {
            let start_mode = match (members.get(number), &expecting) {
                (Some(_), Some(expecting)) => {
                    StartMode::Expects(expecting.starts[number], expecting.expect.clone())
                }
                (Some(_), None) if begins_alone => StartMode::Alone,
                (Some(member), None) => StartMode::Together(member.id, members.clone()),
                (None, _) => {
                    let after = Duration::from_millis(chance.random_range(0..8000));
                    // The first nodes may have left by then.
                    let others = (0..first + joining).filter(|other| *other != number);
                    StartMode::Joins(after, others.map(address).collect())
                }
            };
            let host = Rc::new(Host {
                name: format!("host {number}"),
                address: address(number),
                number: number as u64,
                seed: chance.random(),
                start_mode,
                config: config.clone(),
                profile,
                disk: Disk::new(ChaCha8Rng::from_rng(&mut chance)),
                record: record.clone(),
                seen: Seen::default(),
                users: chance.random_range(0..=2),
                pause_max,
                padding_bytes_max,
                down_max: Duration::from_secs(2),
            });
            host.disk.set_health(Health::Slow(disk_slowness));
            let living = Rc::clone(&host);
            sim.host(host_ip(number), move || Rc::clone(&living).process());
            hosts.push(host);
        }
        let mut addresses: Vec<IpAddr> = (0..hosts.len()).map(host_ip).collect();
        for number in 0..clients {
            let own_chance = ChaCha8Rng::from_rng(&mut chance);
            let name = format!("client {number}");
            let client = Client::new(name, 10_000 + number as u64, own_chance, record.clone(), pause_max)
                .with_padding(padding_bytes_max);
            let known: Vec<String> = (0..first).map(address).collect();
            let ip = IpAddr::from([192, 168, 8, number as u8 + 1]);
            sim.client(ip, async move {
                let deadline = Duration::from_secs(4);
                let cluster = RaftClient::new(known)?.with_deadline(deadline);
                client.use_cluster(cluster, deadline + Duration::from_secs(1)).await;
                Ok(())
            });
            addresses.push(ip);
        }
        for (a, first) in addresses.iter().enumerate() {
            for second in &addresses[a + 1..] {
                let latency = *[1, 1, 2, 5, 30].choose(&mut chance).unwrap_or(&1);
                sim.set_link_latency(*first, *second, Duration::from_millis(latency));
            }
        }
        record.event_at(
            Duration::ZERO,
            "world",
            format_args!("{scenario:?}, {first} nodes and {joining} that join, {clients} clients, {profile:?}, {config:?}"),
        );
        if let Some(slow_links) = &slow_links {
            record.event_at(Duration::ZERO, "world", format_args!("{slow_links:?}"));
        }
        if let Some(expecting) = &expecting {
            record.event_at(Duration::ZERO, "world", format_args!("{expecting:?}"));
        }
        World {
            sim,
            scenario,
            chance,
            record,
            hosts,
            addresses,
            crash_early: expecting.map_or_else(Vec::new, |expecting| expecting.crashes),
            crashed: BTreeMap::new(),
            links: BTreeMap::new(),
            disks_sick_until: BTreeMap::new(),
            disk_slowness,
        }
    }

    fn play(&mut self) -> Result<(), String> {
        let unrest = self.chance.random_range(Duration::from_secs(6)..=UNREST_MAX);
        let mut next = Duration::from_secs(1);
        while self.sim.elapsed() < unrest {
            self.step()?;
            if self.sim.elapsed() >= next {
                self.inject_fault();
                next += Duration::from_millis(self.chance.random_range(10..1500));
            }
            self.end_faults();
            self.crash_early();
        }
        self.heal();
        let patience = self.sim.elapsed() + RECOVERY_MAX / 2;
        self.until(RECOVERY_MAX, "the cluster does not recover", |world| {
            if world.sim.elapsed() > patience {
                world.stop_nodes_that_cannot_learn_of_their_removal();
            }
            world.has_recovered()
        })?;
        self.note("recovered");
        // Repeated: a connection that was damaged before may break only now, and a stopping node may end only
        // now, and begin another run.
        self.until_told(
            Duration::from_secs(30),
            "the healed cluster does not serve",
            Order::Probe,
            |host| host.seen.is_gone.get() || host.seen.probed.get(),
        )?;
        for host in &self.hosts {
            host.seen.rests.set(true);
        }
        self.until_told(Duration::from_secs(20), "the nodes do not end", Order::Quit, |host| {
            host.disk.is_closed() && host.seen.status.borrow().is_none()
        })?;
        self.record.check_answers();
        self.record.check_history();
        self.violated()
    }

    fn violated(&self) -> Result<(), String> {
        panics::first().or_else(|| self.record.first_violation()).map_or(Ok(()), Err)
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| error.to_string())?;
        self.violated()
    }

    fn until(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&mut World) -> bool,
    ) -> Result<(), String> {
        let end = self.sim.elapsed() + limit;
        while !done(self) {
            self.step()?;
            if self.sim.elapsed() > end {
                let hosts: Vec<String> = self
                    .hosts
                    .iter()
                    .map(|host| {
                        format!("{}: gone {}, {:?}", host.name, host.seen.is_gone.get(), status(host))
                    })
                    .collect();
                return Err(format!("{what} within {limit:?}: {}", hosts.join("; ")));
            }
        }
        Ok(())
    }

    /// Sends each host this order every second, until it is done there.
    fn until_told(
        &mut self,
        limit: Duration,
        what: &str,
        told: Order,
        is_done: impl Fn(&Host) -> bool,
    ) -> Result<(), String> {
        let mut next = self.sim.elapsed();
        self.until(limit, what, |world| {
            let mut waits_for = world.hosts.iter().filter(|host| !is_done(host)).peekable();
            let all_are_done = waits_for.peek().is_none();
            if world.sim.elapsed() >= next {
                next += Duration::from_secs(1);
                waits_for.for_each(|host| order(host, told.clone()));
            }
            all_are_done
        })
    }

    fn note(&self, what: impl std::fmt::Display) {
        self.record.event_at(self.sim.elapsed(), "world", what);
    }

    /// Whether every node is a member, follows the same leader, and has applied the same.
    fn has_recovered(&mut self) -> bool {
        let statuses: Option<Vec<Status>> =
            self.hosts.iter().filter(|host| !host.seen.is_gone.get()).map(|host| status(host)).collect();
        let Some(statuses) = statuses else {
            return false;
        };
        let Some(first) = statuses.first() else {
            return true;
        };
        first.leader_id.is_some()
            && statuses.iter().all(|status| {
                status.is_member()
                    && (status.leader_id, status.term, &status.members)
                        == (first.leader_id, first.term, &first.members)
            })
            && statuses.iter().map(|status| status.node_id).collect::<BTreeSet<_>>().len() == statuses.len()
            && first.members.len() == statuses.len()
    }

    /// A removed node stops when a majority of the voters that it knows has reported its removal. When that
    /// many of them are gone themselves, it waits until it is stopped.
    fn stop_nodes_that_cannot_learn_of_their_removal(&self) {
        let there: Vec<(&Rc<Host>, Status)> = self
            .hosts
            .iter()
            .filter(|host| !host.seen.is_gone.get())
            .filter_map(|host| Some((host, status(host)?)))
            .collect();
        let Some((_, leader)) =
            there.iter().filter(|(_, status)| status.is_leader()).max_by_key(|(_, status)| status.term)
        else {
            return;
        };
        for (host, status) in &there {
            let known: Vec<NodeId> = status
                .members
                .iter()
                .map(|member| member.id)
                .filter(|id| *id != status.node_id && status.members.is_voter(*id))
                .collect();
            let left = known.iter().filter(|id| leader.members.get(**id).is_some()).count();
            let was_removed = leader.members.get(status.node_id).is_none()
                && leader.members.as_of() > status.members.as_of();
            if was_removed && !known.is_empty() && 2 * left <= known.len() {
                self.note(format_args!("{} is stopped: it cannot learn of its removal", host.name));
                order(host, Order::Quit);
                host.seen.is_gone.set(true);
            }
        }
    }

    fn heal(&mut self) {
        self.note("healed");
        for link in std::mem::take(&mut self.links) {
            self.repair(link.0, link.1.0);
        }
        for number in std::mem::take(&mut self.crashed).into_keys() {
            self.start(number);
        }
        for host in &self.hosts {
            host.disk.set_health(Health::Slow(self.disk_slowness));
        }
    }
}

fn order(host: &Host, order: Order) {
    if let Some(orders) = &*host.seen.orders.borrow() {
        // A node that has just ended accepts none.
        let _ = orders.send(order);
    }
}

fn status(host: &Host) -> Option<Status> {
    host.seen.status.borrow().as_ref().map(|status| status.borrow().clone())
}
