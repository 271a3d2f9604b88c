//! One run: draws a world from its seed, lets faults happen in it, heals it, and requires that it recovers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use raftify::start::Expect;
use raftify::status::Status;
use raftify::{Config, Member, NodeId, RaftClient, simulation};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::client::Client;
use crate::disk::{Disk, Health};
use crate::host::{Beginning, Host, Order, Seen};
use crate::machine::Manner;
use crate::panics;
use crate::record::Record;

/// What a run is mostly about. All of them have clients all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nodes join by ticket, leave, are removed.
    Join,
    /// Leaders crash, and hand over.
    Failover,
    /// Snapshots are taken, and sent to nodes that lag or are new, over links that break.
    Snapshots,
    /// Links break, in one direction or both, and stall.
    Partitions,
    /// Nodes are stopped, in order and half way.
    Quit,
    /// All of it.
    Everything,
    /// Of four nodes, three expect each other, each of which is ended once while it waits; the fourth comes late. In no
    /// seed: others have nodes that expect each other, too, and everything that can happen to these.
    Expect,
}

impl Scenario {
    const DRAWN: [Scenario; 6] = [
        Scenario::Join,
        Scenario::Failover,
        Scenario::Snapshots,
        Scenario::Partitions,
        Scenario::Quit,
        Scenario::Everything,
    ];

    /// That of a seed, when none is asked for.
    pub fn of(seed: u64) -> Scenario {
        Self::DRAWN[(seed % Self::DRAWN.len() as u64) as usize]
    }
}

/// What happened in a run.
pub struct Report {
    /// As asked for.
    pub seed: u64,
    /// As asked for.
    pub scenario: Scenario,
    /// How long it took in there.
    pub simulated: Duration,
    /// What happened how often.
    pub happened: BTreeMap<&'static str, u64>,
    /// One line for each event.
    pub trace: String,
    /// What must not happen, and did.
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

/// How long faults happen, at most.
const UNREST_MAX: Duration = Duration::from_secs(15);

/// A healed cluster must work again within this: connections that hang are found out after 10 s, a peer that refused is
/// tried again after 5 s, a ticket is waited for 30 s.
const RECOVERY_MAX: Duration = Duration::from_secs(90);

struct World {
    sim: turmoil::Sim<'static>,
    scenario: Scenario,
    chance: ChaCha8Rng,
    record: Record,
    hosts: Vec<Rc<Host>>,
    /// Of the hosts, and then of the remote clients.
    addresses: Vec<IpAddr>,
    /// When which hosts crash although nothing else happens yet: they wait for each other then, or begin.
    crash_early: Vec<(Duration, usize)>,
    /// When which hosts start again.
    crashed: BTreeMap<usize, Duration>,
    /// Which links have which fault, and until when.
    links: BTreeMap<(usize, usize), (Link, Duration)>,
    disks_sick_until: BTreeMap<usize, Duration>,
    disk_slowness: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Cut,
    /// From the first to the second.
    CutThere,
    CutBack,
    Held,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Crash,
    CrashLeader,
    CrashAll,
    Cut,
    CutOneWay,
    Hold,
    Isolate,
    SlowDisk,
    FailingDisk,
    Quit,
    QuitHalf,
    Drop,
    Leave,
    Remove,
    Transfer,
    Demote,
    Campaign,
    Snapshot,
    Inspect,
}

impl Scenario {
    fn faults(self) -> &'static [Fault] {
        use Fault::*;
        match self {
            Scenario::Join => {
                &[Crash, CrashLeader, Leave, Remove, Transfer, Quit, QuitHalf, Drop, Cut, Inspect]
            }
            Scenario::Failover => &[
                Crash,
                CrashLeader,
                CrashLeader,
                CrashAll,
                SlowDisk,
                FailingDisk,
                Transfer,
                Demote,
                Campaign,
            ],
            Scenario::Snapshots => {
                &[Snapshot, Snapshot, Isolate, Isolate, Crash, Cut, Hold, Quit, FailingDisk, Drop]
            }
            Scenario::Partitions => &[Cut, Cut, CutOneWay, CutOneWay, Hold, Hold, Isolate, Isolate, Crash],
            Scenario::Quit => &[Quit, QuitHalf, QuitHalf, Drop, Drop, Snapshot, Isolate, Hold, SlowDisk],
            Scenario::Expect => &[],
            Scenario::Everything => &[
                Crash,
                CrashLeader,
                CrashAll,
                Cut,
                CutOneWay,
                Hold,
                Isolate,
                SlowDisk,
                FailingDisk,
                Quit,
                QuitHalf,
                Drop,
                Leave,
                Remove,
                Transfer,
                Demote,
                Campaign,
                Snapshot,
                Inspect,
            ],
        }
    }
}

/// A world whose first nodes find each other.
#[derive(Clone, Debug)]
struct Expecting {
    expect: Expect,
    /// When each of them is started.
    starts: Vec<Duration>,
    /// Which of them crash before long, and when.
    crashes: Vec<(Duration, usize)>,
}

impl Expecting {
    /// In a fifth of the worlds, from chance that nothing else of the world is drawn from.
    fn draw(seed: u64, scenario: Scenario, first: &[Member]) -> Option<Expecting> {
        if scenario == Scenario::Expect {
            let peers = first.iter().map(|member| member.address.clone()).collect();
            let expect = Expect { count: 3, peers, wait_for_peers: None };
            let starts = [0, 100, 2500, 9000].map(Duration::from_millis).to_vec();
            // The third is there for a moment only: too short to begin with those that have waited for it.
            let crashes = [(600, 0), (900, 1), (2510, 2)];
            let crashes = crashes.map(|(at, number)| (Duration::from_millis(at), number)).to_vec();
            return Some(Expecting { expect, starts, crashes });
        }
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        chance.set_stream(1);
        if !chance.random_bool(0.2) {
            return None;
        }
        let count = first.len();
        let peers = first.iter().map(|member| member.address.clone()).collect();
        let latest = *[10, 500, 4000].choose(&mut chance).unwrap_or(&500);
        let starts: Vec<Duration> =
            first.iter().map(|_| Duration::from_millis(chance.random_range(0..latest))).collect();
        let together = starts.iter().max().copied().unwrap_or_default();
        let mut crashes = Vec::new();
        for (number, start) in starts.iter().enumerate() {
            for _ in 0..chance.random_range(0..=2) {
                // While it waits, or when all are there and the cluster begins.
                let from = if chance.random_bool(0.5) { *start } else { together };
                crashes.push((from + Duration::from_millis(chance.random_range(0..400)), number));
            }
        }
        let expect = Expect { count, peers, wait_for_peers: None };
        Some(Expecting { expect, starts, crashes })
    }
}

/// A world whose links are slow, and some of whose entries take long to get over them.
#[derive(Clone, Copy, Debug)]
struct SlowLinks {
    bytes_per_second: u64,
    padding_bytes_max: usize,
}

impl SlowLinks {
    /// In an eighth of the worlds, from chance that nothing else of the world is drawn from.
    fn draw(seed: u64, scenario: Scenario) -> Option<SlowLinks> {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        chance.set_stream(2);
        if scenario == Scenario::Expect || !chance.random_bool(0.125) {
            return None;
        }
        let bytes_per_second = *[512 << 10, 1 << 20, 4 << 20].choose(&mut chance).unwrap_or(&(1 << 20));
        // An entry passes up to three links within its deadline of 2 s, most of the time.
        let padding_bytes_max = (bytes_per_second / *[2, 4, 16].choose(&mut chance).unwrap_or(&4)) as usize;
        Some(SlowLinks { bytes_per_second, padding_bytes_max })
    }
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
        let manner = Manner {
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
            let beginning = match (members.get(number), &expecting) {
                (Some(_), Some(expecting)) => {
                    Beginning::Expects(expecting.starts[number], expecting.expect.clone())
                }
                (Some(_), None) if begins_alone => Beginning::Alone,
                (Some(member), None) => Beginning::Together(member.id, members.clone()),
                (None, _) => {
                    let after = Duration::from_millis(chance.random_range(0..8000));
                    // Whoever was there at first may have left by then.
                    let others = (0..first + joining).filter(|other| *other != number);
                    Beginning::Joins(after, others.map(address).collect())
                }
            };
            let host = Rc::new(Host {
                name: format!("host {number}"),
                address: address(number),
                number: number as u64,
                seed: chance.random(),
                beginning,
                config: config.clone(),
                manner,
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
            sim.host(host_ip(number), move || Rc::clone(&living).live());
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
            format_args!("{scenario:?}, {first} nodes and {joining} that join, {clients} clients, {manner:?}, {config:?}"),
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
                self.fault();
                next += Duration::from_millis(self.chance.random_range(10..1500));
            }
            self.mend();
            self.crash_early();
        }
        self.heal();
        let patience = self.sim.elapsed() + RECOVERY_MAX / 2;
        self.until(RECOVERY_MAX, "the cluster does not recover", |world| {
            if world.sim.elapsed() > patience {
                world.stop_who_cannot_hear_of_its_removal();
            }
            world.has_recovered()
        })?;
        self.note("recovered");
        // Again and again: a connection that was damaged before may break only now, and a node that was told to stop
        // before may end only now, and begin another life.
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

    /// Tells each host this every second, until it is done there.
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

    /// Everybody is a member, follows the same leader, and has applied the same.
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

    /// A removed node stops when a majority of the voters that it knows has told it so. When that many of them are gone
    /// themselves, it waits until it is stopped.
    fn stop_who_cannot_hear_of_its_removal(&self) {
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
                self.note(format_args!("{} is stopped: it cannot hear of its removal", host.name));
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
            self.sim.bounce(self.addresses[number]);
        }
        for host in &self.hosts {
            host.disk.set_health(Health::Slow(self.disk_slowness));
        }
    }

    /// Ends faults whose time is over.
    fn mend(&mut self) {
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
            self.sim.bounce(self.addresses[number]);
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

    fn repair(&mut self, (a, b): (usize, usize), fault: Link) {
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
            // Without a word to those it was connected to.
            self.note(format_args!("host {number} loses its power until {until:?}"));
            self.record.count("power loss");
            for other in 0..self.addresses.len() {
                self.break_link(number, other, Link::Cut, until);
            }
        } else {
            self.note(format_args!("host {number} crashes until {until:?}"));
            self.record.count("crash");
        }
        self.sim.crash(self.addresses[number]);
        host.disk.crash(self.sim.elapsed());
        host.seen.status.take();
        host.seen.orders.take();
        self.crashed.insert(number, until);
    }

    fn crash_early(&mut self) {
        let now = self.sim.elapsed();
        for (_, number) in self.crash_early.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.crash(number);
        }
    }

    fn soon(&mut self, milliseconds: u64) -> Duration {
        self.sim.elapsed() + Duration::from_millis(self.chance.random_range(1..milliseconds))
    }

    fn fault(&mut self) {
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
        // A node that expects others must find one of the first: none of these goes before all are members.
        let mut expecting = self.hosts.iter().filter(|host| matches!(host.beginning, Beginning::Expects(..)));
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

fn order(host: &Host, order: Order) {
    if let Some(orders) = &*host.seen.orders.borrow() {
        // A node that has just ended takes none.
        let _ = orders.send(order);
    }
}

fn status(host: &Host) -> Option<Status> {
    host.seen.status.borrow().as_ref().map(|status| status.borrow().clone())
}

fn draw_config(scenario: Scenario, chance: &mut ChaCha8Rng) -> Config {
    let snapshots = scenario == Scenario::Snapshots || chance.random_bool(0.3);
    Config {
        propose_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_secs(2),
        membership_timeout: Duration::from_secs(5),
        disk_stall_timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_millis(500),
        reconnect_delay_max: Duration::from_secs(1),
        snapshot_entries: if snapshots { chance.random_range(10..100) } else { 10_000 },
        log_entries_kept: chance.random_range(0..20),
        snapshot_bytes_per_second_max: if snapshots { 65_536 << chance.random_range(0..6) } else { 0 },
        snapshot_chunk_timeout: Duration::from_secs(chance.random_range(1..=3)),
        messages_in_flight_max: chance.random_range(1..=16),
        message_bytes_max: 1024 << chance.random_range(0..6),
        pre_vote: chance.random_bool(0.9),
        stop_timeout: Duration::from_millis([0, 300, 2000][chance.random_range(0..3)]),
        ..Config::default()
    }
}
