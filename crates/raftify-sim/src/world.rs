//! The world of a seed: the number of nodes, the settings, the speed of disks and networks, the load of the
//! clients, and the kinds of faults. Each world leaves most faults out (swarm testing: Groce et al., ISSTA
//! 2012): a bug that many faults together would hide shows where few of them meet.

use std::time::Duration;

use raftify_core::{CheckedConfig, Config, NodeId, StateKept};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::draw::Draw;
use crate::fault::Fault;
use crate::schedule::{MILLISECOND, SECOND, Time};

/// A world.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) voters: u64,
    pub(crate) learners: u64,
    pub(crate) config: CheckedConfig,
    /// The shortest and longest duration of a write to a healthy disk.
    pub(crate) write_delay: (Time, Time),
    /// The percentage of writes that are reported late.
    pub(crate) late_percent: u32,
    /// The shortest and longest delay of a message.
    pub(crate) message_delay: (Time, Time),
    pub(crate) loss_percent: u32,
    pub(crate) duplicates_percent: u32,
    /// The percentage of messages that may be overtaken.
    pub(crate) disorder_percent: u32,
    /// The shortest and longest duration of a batch of the state machine.
    pub(crate) apply_delay: (Time, Time),
    /// The difference of the clock rates, in percent.
    pub(crate) clocks_percent: u64,
    /// The duration of the phase with faults.
    pub(crate) trouble: Time,
    pub(crate) clients: u64,
    pub(crate) keys: u64,
    /// The mean pause of a client between two operations.
    pub(crate) think: Time,
    /// The maximum number of additional bytes of an entry.
    pub(crate) padding_bytes_max: usize,
    /// The kinds of faults, and the mean time between two faults.
    pub(crate) faults: Vec<Fault>,
    pub(crate) fault_interval: Time,
    pub(crate) quirks: Quirks,
    pub(crate) joins: Joins,
    pub(crate) state_machines: StateMachines,
}

/// Where state machines store their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StateMachines {
    #[default]
    OnDisk,
    InMemory,
    /// Nodes with an odd number in memory, the others on disk.
    Both,
}

impl StateMachines {
    /// Where `node` stores it.
    pub(crate) fn of(self, node: NodeId) -> StateKept {
        match self {
            StateMachines::OnDisk => StateKept::OnDisk,
            StateMachines::InMemory => StateKept::InMemory,
            StateMachines::Both if node.get() % 2 == 1 => StateKept::InMemory,
            StateMachines::Both => StateKept::OnDisk,
        }
    }
}

/// Quirks of some worlds. They are drawn separately, so that a world without quirks is the same as before
/// quirks were introduced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quirks {
    /// The percentage of turns with a write that end in a crash after their messages, or some of them, were
    /// sent, and before the write has begun.
    pub(crate) crashes_percent: u32,
    /// The same for turns in which a leader appends to its log: as in figure 8 of the paper.
    pub(crate) leader_crashes_percent: u32,
    /// The percentage of messages that arrive once more, up to some elections later. Unless zero, snapshots
    /// take long.
    pub(crate) lingering_percent: u32,
    /// At times, a leader receives many proposals at once, mostly shortly before it is cut off.
    pub(crate) bursts: bool,
    /// The operator requests more membership changes, including invalid ones, and the removal of the leader.
    pub(crate) many_changes: bool,
    /// Entries are read from the disk at the request, and delivered to the core much later.
    pub(crate) late_reads: bool,
    /// Nodes have the real segment log.
    pub(crate) segments: bool,
}

/// How nodes join, move and differ, in some worlds. Drawn separately as well.
#[derive(Clone, Debug)]
pub(crate) struct Joins {
    /// Some joining nodes are not at their reported addresses.
    pub(crate) hidden: bool,
    /// The operator forces some changes.
    pub(crate) forced: bool,
    /// The operator requires for some changes that the membership is still the known one.
    pub(crate) conditional: bool,
    /// The factor by which a snapshot takes longer if no follower waits for it.
    pub(crate) leisure: u64,
    /// First members that are started with the other list.
    pub(crate) strays: Vec<u64>,
    pub(crate) other_list: OtherList,
}

impl Default for Joins {
    fn default() -> Joins {
        Joins {
            hidden: false,
            forced: false,
            conditional: false,
            leisure: 1,
            strays: Vec::new(),
            other_list: OtherList::default(),
        }
    }
}

/// How the other list differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OtherList {
    /// In it, all but one of the nodes that have it are learners.
    #[default]
    OnlyStrayVotes,
    /// In it, one of the voters is a learner.
    OneVotesLess,
}

/// Chosen so that the seeds of `seeds.txt` from before quirks still draw the same worlds.
const QUIRKS_STREAM: u64 = 3;
/// Worlds with joining and moving nodes came later.
const JOINS_STREAM: u64 = 4;
/// And so did those in which entries are applied before they are durable on their node.
const STATE_MACHINES_STREAM: u64 = 7;
/// Worlds in which disks are almost full came last.
const STORAGE_STREAM: u64 = 8;

impl World {
    pub(crate) fn election_timeout(&self) -> Time {
        u64::try_from(self.config.election_timeout.as_micros()).unwrap_or(Time::MAX)
    }

    /// The world of `seed`, and the random numbers of all its events.
    pub(crate) fn of(seed: u64) -> (World, ChaCha8Rng) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::draw(&mut rng);
        let mut apart = ChaCha8Rng::seed_from_u64(seed);
        apart.set_stream(QUIRKS_STREAM);
        world.draw_quirks(&mut apart);
        let mut apart = ChaCha8Rng::seed_from_u64(seed);
        apart.set_stream(JOINS_STREAM);
        world.let_nodes_join(&mut apart);
        let mut apart = ChaCha8Rng::seed_from_u64(seed);
        apart.set_stream(STATE_MACHINES_STREAM);
        world.keep_state_in_memory(&mut apart);
        let mut apart = ChaCha8Rng::seed_from_u64(seed);
        apart.set_stream(STORAGE_STREAM);
        // In a quarter of all worlds.
        if apart.percent(25) {
            world.faults.extend([Fault::DiskAlmostFull; 2]);
        }
        (world, rng)
    }

    /// A world in which nothing happens by itself, for scripts.
    pub(crate) fn calm(voters: u64, config: CheckedConfig) -> World {
        World {
            voters,
            learners: 0,
            config,
            write_delay: (0, 0),
            late_percent: 0,
            message_delay: (0, 0),
            loss_percent: 0,
            duplicates_percent: 0,
            disorder_percent: 0,
            apply_delay: (0, 0),
            clocks_percent: 0,
            trouble: 0,
            clients: 0,
            keys: 0,
            think: 0,
            padding_bytes_max: 0,
            faults: Vec::new(),
            fault_interval: 0,
            quirks: Quirks::default(),
            joins: Joins::default(),
            state_machines: StateMachines::default(),
        }
    }

    /// In two thirds of all worlds, some state machines are in memory, and so ahead of the disks of their
    /// nodes; in some of these, the disk of a leader becomes slow for long.
    fn keep_state_in_memory(&mut self, rng: &mut ChaCha8Rng) {
        self.state_machines =
            rng.one_of(&[StateMachines::OnDisk, StateMachines::InMemory, StateMachines::Both]);
        if rng.percent(60) {
            return;
        }
        self.faults.extend([Fault::SlowDiskOfLeader; 2]);
        self.think = self.think.min(300 * MILLISECOND);
        let config = Config {
            slow_write_time: self.config.tick_interval * rng.one_of(&[1, 2]),
            slow_disk_patience: Some(self.config.election_timeout * rng.one_of(&[1, 1, 2])),
            ..Config::clone(&self.config)
        };
        self.config = config.check().expect("every value of these settings is allowed");
    }

    /// Half of all worlds stay unchanged.
    fn draw_quirks(&mut self, rng: &mut ChaCha8Rng) {
        if rng.percent(50) {
            return;
        }
        self.quirks = Quirks {
            crashes_percent: rng.one_of(&[0, 0, 1, 3]),
            leader_crashes_percent: rng.one_of(&[0, 0, 0, 20]),
            lingering_percent: rng.one_of(&[0, 0, 2, 10]),
            bursts: rng.percent(40),
            many_changes: rng.percent(40),
            late_reads: rng.percent(40),
            segments: rng.percent(40),
        };
        if self.quirks.many_changes {
            self.faults.extend([Fault::ChangeMembers; 3]);
        }
        match rng.random_range(0..10) {
            // A single voter leads without the consent of others, and its learners believe it.
            0 => {
                (self.voters, self.learners) = (1, 2);
                self.think = 100 * MILLISECOND;
                self.write_delay = (10 * MILLISECOND, 150 * MILLISECOND);
                self.quirks.crashes_percent = 3;
            }
            1 => (self.voters, self.learners) = (5, 0),
            _ => {}
        }
        let log_bytes_kept_for_followers = rng.one_of(&[0, 5000, 1 << 30]);
        let config = Config { log_bytes_kept_for_followers, ..Config::clone(&self.config) };
        self.config = config.check().expect("every value of this setting is allowed");
    }

    /// In half of all worlds, nodes join through the operator of a cluster, with the faults of that.
    fn let_nodes_join(&mut self, rng: &mut ChaCha8Rng) {
        if rng.percent(50) {
            return;
        }
        self.faults.extend([Fault::AdmitNodes; 2]);
        for (fault, percent) in
            [(Fault::JoinerDies, 50), (Fault::NodeMoves, 40), (Fault::ChangeAmidFailure, 50)]
        {
            if rng.percent(percent) {
                self.faults.extend([fault; 2]);
            }
        }
        self.joins = Joins {
            hidden: rng.percent(40),
            forced: rng.percent(30),
            conditional: rng.percent(40),
            ..Joins::default()
        };
        if rng.percent(15) && self.voters >= 3 {
            // A majority of the voters has the correct list.
            let count = rng.random_range(1..=(self.voters - 1) / 2);
            let first = rng.one_of(&[1, self.voters - count + 1]);
            self.joins.strays = (first..first + count).collect();
            self.joins.other_list = rng.one_of(&[OtherList::OnlyStrayVotes, OtherList::OneVotesLess]);
        }
        let election = self.config.election_timeout;
        let config = Config {
            promotion_entries_max: rng.one_of(&[0, 3, 20, 10_000]),
            promotion_lag_max: election * rng.one_of(&[1, 4, 3600]),
            joiner_timeout: election * rng.one_of(&[2, 2, 3, 600]),
            ..Config::clone(&self.config)
        };
        self.config = config.check().expect("every value of these settings is allowed");
        self.joins.leisure = rng.one_of(&[1, 1, 20, 400]);
    }

    fn draw(rng: &mut ChaCha8Rng) -> World {
        let voters = rng.one_of(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 7]);
        let learners = rng.one_of(&[0, 0, 0, 1, 2]).min(7 - voters);
        let faults: Vec<Fault> = {
            let share = rng.one_of(&[10, 25, 50]);
            Fault::ALL.into_iter().filter(|_| rng.percent(share)).collect()
        };
        let quiet = faults.is_empty();
        let delay = rng.one_of(&[MILLISECOND / 5, MILLISECOND, 10 * MILLISECOND]);
        let write = rng.one_of(&[MILLISECOND / 10, MILLISECOND, 8 * MILLISECOND]);
        let apply = rng.one_of(&[0, MILLISECOND / 10, MILLISECOND, 10 * MILLISECOND]);
        World {
            voters,
            learners,
            config: draw_config(rng),
            write_delay: (write / 2, write * rng.one_of(&[1, 2, 10])),
            late_percent: rng.one_of(&[0, 0, 10]),
            message_delay: (delay / 2, delay * rng.one_of(&[1, 2, 10])),
            loss_percent: rng.one_of(&[0, 0, 0, 1, 5, 20]),
            duplicates_percent: rng.one_of(&[0, 0, 1, 10]),
            disorder_percent: rng.one_of(&[0, 0, 1, 10]),
            apply_delay: (0, apply),
            clocks_percent: rng.one_of(&[0, 2, 10, 40]),
            trouble: rng.within((10 * SECOND, 40 * SECOND)),
            clients: rng.random_range(1..=6),
            keys: rng.random_range(1..=4),
            think: rng.one_of(&[300, 600, 1200]) * MILLISECOND,
            padding_bytes_max: rng.one_of(&[0, 0, 50, 400]),
            faults,
            fault_interval: if quiet { SECOND } else { rng.one_of(&[300, 1000, 3000]) * MILLISECOND },
            quirks: Quirks::default(),
            joins: Joins::default(),
            state_machines: StateMachines::default(),
        }
    }
}

fn draw_config(rng: &mut ChaCha8Rng) -> CheckedConfig {
    let tick_interval = Duration::from_millis(rng.random_range(50..=100));
    let heartbeat_interval = tick_interval * rng.random_range(2..=4);
    let election_timeout = (heartbeat_interval * rng.random_range(3..=6)).max(Duration::from_secs(1));
    let timeout = |rng: &mut ChaCha8Rng| election_timeout * rng.random_range(1..=4);
    let message_bytes_max = rng.one_of(&[1024, 1 << 20]);
    let config = Config {
        tick_interval,
        heartbeat_interval,
        election_timeout,
        disk_stall_timeout: timeout(rng),
        slow_disk_patience: None,
        propose_timeout: timeout(rng),
        read_timeout: timeout(rng),
        membership_timeout: election_timeout * rng.random_range(3..=5),
        entry_bytes_max: 1024,
        proposals_in_flight_max: rng.one_of(&[2, 65_536, 65_536]),
        uncommitted_bytes_max: rng.one_of(&[message_bytes_max, 64 << 20]),
        reads_in_flight_max: rng.one_of(&[2, 65_536, 65_536]),
        message_bytes_max,
        messages_in_flight_max: rng.one_of(&[1, 2, 256]),
        snapshot_entries: rng.one_of(&[None, Some(3), Some(10), Some(40)]),
        snapshot_log_bytes: rng.one_of(&[None, Some(2000), Some(64 << 20)]),
        snapshot_age_max: rng.one_of(&[None, None, Some(election_timeout * 3)]),
        log_entries_kept: rng.one_of(&[0, 0, 3, 20]),
        log_bytes_kept: rng.one_of(&[1000, 64 << 20]),
        log_bytes_kept_for_followers: 0,
        log_cache_bytes: rng.one_of(&[0, 400, 32 << 20]),
        unapplied_bytes_max: rng.one_of(&[message_bytes_max, 64 << 20]),
        pre_vote: !rng.percent(15),
        check_quorum: !rng.percent(10),
        ..Config::default()
    };
    config.check().expect("the ranges above are valid in every combination")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_draws_a_different_world_and_always_the_same() {
        let world = |seed| format!("{:?}", World::of(seed).0);
        let worlds: std::collections::BTreeSet<String> = (0..500).map(world).collect();
        assert_eq!(worlds.len(), 500);
        assert_eq!(world(7), world(7));
    }
}
