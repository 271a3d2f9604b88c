//! The properties of a seed: its main subject, its faults, how its nodes begin, and their settings.

use std::time::Duration;

use raftify::start::Expect;
use raftify::{Config, Member};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The main subject of a run. All have clients all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nodes join by ticket, leave, are removed.
    Join,
    /// Leaders crash, and transfer leadership.
    Failover,
    /// Snapshots are taken, and sent to lagging or new nodes, over links that break.
    Snapshots,
    /// Links break, in one direction or both, and stall.
    Partitions,
    /// Nodes are stopped, cleanly and half way.
    Quit,
    /// All of it.
    Everything,
    /// Of four nodes, three expect each other, each of which is ended once while it waits; the fourth comes
    /// late. Not drawn by seeds: other scenarios have nodes that expect each other, too, with all their
    /// faults.
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

    /// The scenario of a seed, if none was requested.
    pub fn of(seed: u64) -> Scenario {
        Self::DRAWN[(seed % Self::DRAWN.len() as u64) as usize]
    }
}

/// A kind of fault, drawn repeatedly.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
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
    /// The faults of the scenario.
    pub(crate) fn faults(self) -> &'static [Fault] {
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
pub(crate) struct Expecting {
    pub(crate) expect: Expect,
    /// The start time of each of them.
    pub(crate) starts: Vec<Duration>,
    /// Which of them crash soon, and when.
    pub(crate) crashes: Vec<(Duration, usize)>,
}

impl Expecting {
    /// In a fifth of the worlds, from separate random numbers.
    pub(crate) fn draw(seed: u64, scenario: Scenario, first: &[Member]) -> Option<Expecting> {
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

/// A world with slow links, over which some entries take long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlowLinks {
    pub(crate) bytes_per_second: u64,
    pub(crate) padding_bytes_max: usize,
}

impl SlowLinks {
    /// In an eighth of the worlds, from separate random numbers.
    pub(crate) fn draw(seed: u64, scenario: Scenario) -> Option<SlowLinks> {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        chance.set_stream(2);
        if scenario == Scenario::Expect || !chance.random_bool(0.125) {
            return None;
        }
        let bytes_per_second = *[512 << 10, 1 << 20, 4 << 20].choose(&mut chance).unwrap_or(&(1 << 20));
        // In most cases, an entry passes up to three links within its deadline of 2 s.
        let padding_bytes_max = (bytes_per_second / *[2, 4, 16].choose(&mut chance).unwrap_or(&4)) as usize;
        Some(SlowLinks { bytes_per_second, padding_bytes_max })
    }
}

/// The settings of all nodes.
pub(crate) fn draw_config(scenario: Scenario, chance: &mut ChaCha8Rng) -> Config {
    let snapshots = scenario == Scenario::Snapshots || chance.random_bool(0.3);
    Config {
        propose_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_secs(2),
        membership_timeout: Duration::from_secs(5),
        disk_stall_timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_millis(500),
        reconnect_delay_max: Duration::from_secs(1),
        snapshot_entries: Some(if snapshots { chance.random_range(10..100) } else { 10_000 }),
        log_entries_kept: chance.random_range(0..20),
        snapshot_bytes_per_second_max: snapshots.then(|| 65_536 << chance.random_range(0..6)),
        snapshot_chunk_timeout: Duration::from_secs(chance.random_range(1..=3)),
        messages_in_flight_max: chance.random_range(1..=16),
        message_bytes_max: 1024 << chance.random_range(0..6),
        pre_vote: chance.random_bool(0.9),
        stop_timeout: Duration::from_millis([0, 300, 2000][chance.random_range(0..3)]),
        ..Config::default()
    }
}
