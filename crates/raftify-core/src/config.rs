//! The settings of a node, and their validation.

mod or_none;

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All settings of a node. [`Config::default`] works unchanged on a LAN.
///
/// Times are [`Duration`]s (in TOML: `"500ms"`, `"10s"`) of at most one day. Sizes are in bytes, and their
/// names say so. Queue lengths are at most 1 048 576. In TOML, the value `"none"` stands for `None`. Every
/// field may differ between the nodes of a cluster, but `entry_bytes_max` and the election times should not.
///
/// ```
/// use std::time::Duration;
/// use raftify_core::Config;
///
/// let from_code = Config { election_timeout: Duration::from_secs(2), ..Config::default() };
/// let from_file = Config::from_toml(r#"election_timeout = "2s""#)?;
/// assert_eq!(from_code, from_file);
/// # Ok::<(), raftify_core::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The unit of the node's clock: the node counts heartbeats, elections and deadlines in ticks. Default
    /// 50 ms, range 1 ms to 10 s. `heartbeat_interval` and `election_timeout` are rounded up to whole
    /// ticks.
    #[serde(with = "humantime_serde")]
    pub tick_interval: Duration,
    /// How often a leader sends heartbeats. Default 100 ms; at least one `tick_interval`.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// How long a follower waits for a message of the leader before it starts an election: each time a
    /// random duration between this and twice this. Default 500 ms; at least three times
    /// `heartbeat_interval`, at most 1 h. It should be well above the round-trip time and the slowest
    /// regular fsync.
    #[serde(with = "humantime_serde")]
    pub election_timeout: Duration,

    /// A leader whose disk has not finished a write for this long steps down, so that a node that can write
    /// can lead. It does not stand for election until the disk has caught up. Default 5 s, at least
    /// `election_timeout`.
    #[serde(with = "humantime_serde")]
    pub disk_stall_timeout: Duration,
    /// A write to the log, including its fsync, is slow if it takes longer than this. The node logs a
    /// warning about slow writes, at most once a minute. Default 100 ms, range 1 ms to 24 h.
    #[serde(with = "humantime_serde")]
    pub slow_write_time: Duration,
    /// A leader transfers leadership to the most caught-up voter when, for this long, each of its writes was
    /// durable on a majority at least `slow_write_time` before it was durable on its own disk. It does
    /// so at most once in twelve times this duration, so that leadership does not move back and forth
    /// between slow disks. Default 5 s, range 1 ms to 24 h; `None`: never.
    #[serde(with = "or_none::duration")]
    pub slow_disk_patience: Option<Duration>,

    /// How long a proposal may wait for its reply before the node reports its outcome as unknown. Default 10
    /// s, at least `election_timeout`.
    #[serde(with = "humantime_serde")]
    pub propose_timeout: Duration,
    /// How long a linearizable read may wait. Default 5 s, at least `election_timeout`.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// How long a membership request (join, leave, change of members, ticket) may wait. Default 30 s, at
    /// least `election_timeout`.
    #[serde(with = "humantime_serde")]
    pub membership_timeout: Duration,

    /// How long a node that received a stop request may take to transfer leadership and to answer the
    /// requests that it has accepted. Requests whose outcome it does not learn until then are reported
    /// as unknown. Default 2 s; zero: the node stops at once, without the transfer.
    #[serde(with = "humantime_serde")]
    pub stop_timeout: Duration,

    /// A joining node is promoted to a voter when its log is at most this many entries behind the leader's,
    /// and at most `promotion_lag_max` behind. Default 10 000; zero: when it has every entry.
    pub promotion_entries_max: u64,
    /// How long the last entries may have taken to reach a joining node for it to be promoted. Default 1 s,
    /// at least `heartbeat_interval`, at most 24 h.
    #[serde(with = "humantime_serde")]
    pub promotion_lag_max: Duration,
    /// A joining node that is silent for this long is removed from the membership: it no longer costs the
    /// cluster anything, and may join again. Default 10 min, at least `election_timeout`.
    #[serde(with = "humantime_serde")]
    pub joiner_timeout: Duration,

    /// The maximum size of an encoded log entry. Default 8 MiB, range 1 byte to 64 MiB. On its way from a
    /// client to a node, to the leader, and to the followers, an entry passes up to three links:
    /// `propose_timeout` must be long enough for the slowest of them. Neither heartbeats nor votes wait
    /// behind it.
    pub entry_bytes_max: u64,
    /// How many proposals may wait for their reply on one node. Default 65 536, at least 1. At the limit,
    /// further proposals are answered with `Busy`.
    pub proposals_in_flight_max: usize,
    /// How many bytes of proposals wait for their reply on one node, and how many uncommitted ones a leader
    /// holds. Default 64 MiB, at least `entry_bytes_max` and `message_bytes_max`. A proposal that waits
    /// counts with its encoded entry and 1 KiB more, for what it takes beside it. At the limit,
    /// further proposals are answered with `Busy`.
    pub uncommitted_bytes_max: u64,
    /// How many linearizable reads may wait on one node. Default 65 536, at least 1. At the limit, further
    /// reads are answered with `Busy`.
    pub reads_in_flight_max: usize,
    /// How many requests may wait in front of the raft loop. Default 16 384, at least 1. At the limit,
    /// further requests are answered with `Busy`. There is one such queue for the user of this node and
    /// one for other nodes.
    pub request_queue_max: usize,
    /// How many bytes of entries may wait in each of these queues. Default 64 MiB, at least
    /// `entry_bytes_max` and `message_bytes_max`. At the limit, further requests are answered with
    /// `Busy`, and messages of other nodes wait.
    pub request_queue_bytes_max: u64,

    /// The node batches entries into one message up to this size; a larger entry is sent alone. Default 1
    /// MiB, range 1 KiB to 64 MiB.
    pub message_bytes_max: u64,
    /// How many messages with entries may be in flight to one follower. Default 256, at least 1.
    pub messages_in_flight_max: usize,
    /// How many messages may wait for the connection to one peer. Default 4096, at least 16. At the limit,
    /// further messages are dropped; consensus sends them again.
    pub peer_queue_max: usize,
    /// The limit on the total size of these messages in bytes. Default 64 MiB, at least `entry_bytes_max`
    /// and `message_bytes_max`. Most of these bytes are shared with the log in memory. In addition, each
    /// connection holds a copy of the data that it is sending: up to 4 MiB, or one larger entry.
    pub peer_queue_bytes_max: u64,
    /// How long connecting to a peer may take. Default 2 s, at least 1 ms.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// The upper bound of the delay between two attempts to connect, which doubles after each attempt.
    /// Default 1 s, at least 1 ms.
    #[serde(with = "humantime_serde")]
    pub reconnect_delay_max: Duration,

    /// The node takes a snapshot when it has applied this many entries since the last one. Default 100 000,
    /// at least 1; `None`: never for this reason.
    #[serde(with = "or_none::count")]
    pub snapshot_entries: Option<u64>,
    /// The node takes a snapshot when it has applied this many bytes of entries since the last one. Default
    /// 64 MiB, at least 1; `None`: never for this reason. A starting node holds the entries since the
    /// last snapshot in memory.
    #[serde(with = "or_none::count")]
    pub snapshot_log_bytes: Option<u64>,
    /// The node takes a snapshot when this much time has passed since the last one, or since the start of
    /// the node, and it has applied entries since. Default `None`: never for this reason; range 1 ms to
    /// 24 h.
    #[serde(with = "or_none::duration")]
    pub snapshot_age_max: Option<Duration>,
    /// How many bytes of snapshots a node sends per second at most, to all followers together. The same
    /// limit holds for the bytes per second that it writes to its own disk while it takes a snapshot, or
    /// eight times as many while a follower waits for the snapshot. Proposals wait longer if snapshots
    /// get a larger share of disk and network. Default 16 MiB, at least 64 KiB; `None`: no limit.
    #[serde(with = "or_none::count")]
    pub snapshot_bytes_per_second_max: Option<u64>,
    /// To how many followers a node sends snapshots at the same time; the others wait for their turn.
    /// Default 2, at least 1.
    pub snapshots_in_flight_max: usize,
    /// How many entries before the newest snapshot stay in the log, so that a follower that is slightly
    /// behind needs no snapshot. Default 10 000; zero: none.
    pub log_entries_kept: u64,
    /// The limit on the size of these entries in bytes, so that large entries do not fill the disk. Default
    /// 64 MiB; zero: none.
    pub log_bytes_kept: u64,
    /// How many bytes before the newest snapshot stay at most in the log of a leader for followers that are
    /// alive and need them, even if the two settings above allow fewer: slow followers, and followers
    /// that continue from a snapshot that the leader sent them. Counted in whole intervals between two
    /// snapshots. A follower that is further behind needs a snapshot, or the next one. The log of a
    /// cluster in which all followers keep up never grows to this size. Default 1 GiB; zero: none.
    pub log_bytes_kept_for_followers: u64,
    /// How many bytes of applied entries the node keeps in memory for followers. Default 32 MiB; zero: none,
    /// it reads them from the disk.
    pub log_cache_bytes: u64,
    /// How many bytes of committed entries may wait for a slow state machine. Default 64 MiB, at least
    /// `entry_bytes_max` and `message_bytes_max`. A follower over this limit accepts no further entries
    /// until it has caught up.
    pub unapplied_bytes_max: u64,
    /// The node takes no proposals while the file system of its directory has fewer free bytes than this.
    /// Entries that the leader has accepted, snapshots and compaction still use this space. Default 64 MiB;
    /// `None`: the node takes proposals until a write fails, which stops it. A storage without a directory,
    /// and a system that does not report free space, have no reserve.
    #[serde(with = "or_none::count")]
    pub storage_reserve_bytes: Option<u64>,
    /// How long a call of [`snapshot`] waits for its snapshot. Default 10 min, at least `election_timeout`.
    ///
    /// [`snapshot`]: https://docs.rs/raftify/latest/raftify/struct.RaftNode.html#method.snapshot
    #[serde(with = "humantime_serde")]
    pub snapshot_timeout: Duration,
    /// How long a peer may take to accept one chunk of a snapshot before the node cancels the transfer and
    /// tries again. Default 30 s, at least 1 ms.
    #[serde(with = "humantime_serde")]
    pub snapshot_chunk_timeout: Duration,

    /// Whether a node asks before a candidacy whether it could win the election, so that a node that was
    /// partitioned does not disturb the cluster when it is back (thesis, section 9.6). Default true.
    pub pre_vote: bool,
    /// A leader that does not hear from a majority within an election timeout steps down, and followers that
    /// hear a leader ignore candidates (thesis, section 6.2). Default true.
    pub check_quorum: bool,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// The limit of every queue: some queues allocate their memory at once, and none may be unbounded.
const WAITING_MAX: usize = 1 << 20;
/// The maximum of every time: a longer one would be no deadline, and adding a very large one to the present
/// time overflows.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Config {
    fn default() -> Config {
        Config {
            tick_interval: Duration::from_millis(50),
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(500),
            disk_stall_timeout: Duration::from_secs(5),
            slow_write_time: Duration::from_millis(100),
            slow_disk_patience: Some(Duration::from_secs(5)),
            propose_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(5),
            membership_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(2),
            promotion_entries_max: 10_000,
            promotion_lag_max: Duration::from_secs(1),
            joiner_timeout: Duration::from_secs(600),
            entry_bytes_max: 8 * MIB,
            proposals_in_flight_max: 65_536,
            uncommitted_bytes_max: 64 * MIB,
            reads_in_flight_max: 65_536,
            request_queue_max: 16_384,
            request_queue_bytes_max: 64 * MIB,
            message_bytes_max: MIB,
            messages_in_flight_max: 256,
            peer_queue_max: 4096,
            peer_queue_bytes_max: 64 * MIB,
            connect_timeout: Duration::from_secs(2),
            reconnect_delay_max: Duration::from_secs(1),
            snapshot_entries: Some(100_000),
            snapshot_log_bytes: Some(64 * MIB),
            snapshot_age_max: None,
            snapshot_bytes_per_second_max: Some(16 * MIB),
            snapshots_in_flight_max: 2,
            log_entries_kept: 10_000,
            log_bytes_kept: 64 * MIB,
            log_bytes_kept_for_followers: 1024 * MIB,
            log_cache_bytes: 32 * MIB,
            unapplied_bytes_max: 64 * MIB,
            storage_reserve_bytes: Some(64 * MIB),
            snapshot_timeout: Duration::from_secs(600),
            snapshot_chunk_timeout: Duration::from_secs(30),
            pre_vote: true,
            check_quorum: true,
        }
    }
}

impl Config {
    /// Reads settings from TOML; fields that the text does not name keep their defaults.
    ///
    /// # Errors
    /// The line and field that cannot be read. [`Config::check`] validates the values.
    pub fn from_toml(text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text)
            .map_err(|error| ConfigError { problems: vec![error.to_string().trim_end().to_owned()] })
    }

    /// Checks every value and the relations between them.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(self) -> Result<CheckedConfig, ConfigError> {
        let mut problems = Vec::new();
        let mut demand = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        let tick = self.tick_interval;
        demand(
            (Duration::from_millis(1)..=Duration::from_secs(10)).contains(&tick),
            format!("tick_interval is {tick:?}, it must lie between 1ms and 10s"),
        );
        demand(
            self.heartbeat_interval >= tick,
            format!(
                "heartbeat_interval ({:?}) must be at least tick_interval ({tick:?})",
                self.heartbeat_interval
            ),
        );
        demand(
            self.election_timeout >= self.heartbeat_interval.saturating_mul(3),
            format!(
                "election_timeout ({:?}) must be at least three times heartbeat_interval ({:?})",
                self.election_timeout, self.heartbeat_interval
            ),
        );
        demand(
            self.election_timeout <= Duration::from_secs(3600),
            format!("election_timeout is {:?}, it must be at most 1h", self.election_timeout),
        );
        for (name, timeout) in [
            ("disk_stall_timeout", self.disk_stall_timeout),
            ("propose_timeout", self.propose_timeout),
            ("read_timeout", self.read_timeout),
            ("membership_timeout", self.membership_timeout),
            ("joiner_timeout", self.joiner_timeout),
            ("snapshot_timeout", self.snapshot_timeout),
        ] {
            demand(
                timeout >= self.election_timeout,
                format!(
                    "{name} ({timeout:?}) must be at least election_timeout ({:?})",
                    self.election_timeout
                ),
            );
            demand(timeout <= TIME_MAX, format!("{name} ({timeout:?}) must be at most {TIME_MAX:?}"));
        }
        for (name, timeout) in [
            ("slow_write_time", self.slow_write_time),
            ("connect_timeout", self.connect_timeout),
            ("reconnect_delay_max", self.reconnect_delay_max),
            ("snapshot_chunk_timeout", self.snapshot_chunk_timeout),
            ("snapshot_age_max", self.snapshot_age_max.unwrap_or(TIME_MAX)),
            ("slow_disk_patience", self.slow_disk_patience.unwrap_or(TIME_MAX)),
        ] {
            demand(
                (Duration::from_millis(1)..=TIME_MAX).contains(&timeout),
                format!("{name} is {timeout:?}, it must lie between 1ms and {TIME_MAX:?}"),
            );
        }
        demand(
            (self.heartbeat_interval..=TIME_MAX).contains(&self.promotion_lag_max),
            format!(
                "promotion_lag_max is {:?}, it must lie between heartbeat_interval ({:?}) and {TIME_MAX:?}",
                self.promotion_lag_max, self.heartbeat_interval
            ),
        );
        demand(
            self.stop_timeout <= TIME_MAX,
            format!("stop_timeout is {:?}, it must be at most {TIME_MAX:?}", self.stop_timeout),
        );
        for (name, value, least) in [
            ("snapshot_entries", self.snapshot_entries, 1),
            ("snapshot_log_bytes", self.snapshot_log_bytes, 1),
            ("snapshot_bytes_per_second_max", self.snapshot_bytes_per_second_max, 64 * KIB),
        ] {
            let value = value.unwrap_or(u64::MAX);
            demand(value >= least, format!("{name} is {value}, it must be at least {least}, or none"));
        }
        demand(
            (1..=64 * MIB).contains(&self.entry_bytes_max),
            format!("entry_bytes_max is {}, it must lie between 1 and {}", self.entry_bytes_max, 64 * MIB),
        );
        demand(
            (KIB..=64 * MIB).contains(&self.message_bytes_max),
            format!(
                "message_bytes_max is {}, it must lie between {KIB} and {}",
                self.message_bytes_max,
                64 * MIB
            ),
        );
        for (name, bytes) in [
            ("uncommitted_bytes_max", self.uncommitted_bytes_max),
            ("unapplied_bytes_max", self.unapplied_bytes_max),
            ("request_queue_bytes_max", self.request_queue_bytes_max),
            ("peer_queue_bytes_max", self.peer_queue_bytes_max),
        ] {
            demand(
                bytes >= self.entry_bytes_max && bytes >= self.message_bytes_max,
                format!(
                    "{name} ({bytes}) must be at least entry_bytes_max ({}) and message_bytes_max ({})",
                    self.entry_bytes_max, self.message_bytes_max
                ),
            );
        }
        for (name, count, least) in [
            ("proposals_in_flight_max", self.proposals_in_flight_max, 1),
            ("reads_in_flight_max", self.reads_in_flight_max, 1),
            ("request_queue_max", self.request_queue_max, 1),
            ("messages_in_flight_max", self.messages_in_flight_max, 1),
            ("peer_queue_max", self.peer_queue_max, 16),
            ("snapshots_in_flight_max", self.snapshots_in_flight_max, 1),
        ] {
            demand(
                (least..=WAITING_MAX).contains(&count),
                format!("{name} is {count}, it must lie between {least} and {WAITING_MAX}"),
            );
        }
        if problems.is_empty() { Ok(CheckedConfig(self)) } else { Err(ConfigError { problems }) }
    }
}

/// A [`Config`] whose values are validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedConfig(Config);

impl CheckedConfig {
    /// How many ticks `span` is, rounded up.
    pub fn ticks(&self, span: Duration) -> u64 {
        let tick = self.0.tick_interval.as_nanos().max(1);
        u64::try_from(span.as_nanos().div_ceil(tick)).unwrap_or(u64::MAX)
    }
}

impl Deref for CheckedConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

/// All problems of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// One sentence each, naming the field.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is not usable: {}", self.problems.join("; "))
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(config: Config, expect: Expect) {
        let problems = config.check().err().map_or(Vec::new(), |error| error.problems);
        expect.assert_eq(&problems.join("\n"));
    }

    #[test]
    fn the_defaults_are_usable() {
        check(Config::default(), expect![""]);
    }

    #[test]
    fn all_problems_are_named_at_once_each_with_its_field_and_both_values() {
        let config = Config {
            tick_interval: Duration::ZERO,
            heartbeat_interval: Duration::from_millis(400),
            propose_timeout: Duration::from_millis(100),
            connect_timeout: Duration::ZERO,
            entry_bytes_max: 65 * MIB,
            message_bytes_max: 1,
            uncommitted_bytes_max: 1,
            peer_queue_max: 15,
            snapshot_bytes_per_second_max: Some(1),
            snapshot_entries: Some(0),
            snapshots_in_flight_max: 0,
            ..Config::default()
        };
        check(
            config,
            expect![[r#"
                tick_interval is 0ns, it must lie between 1ms and 10s
                election_timeout (500ms) must be at least three times heartbeat_interval (400ms)
                propose_timeout (100ms) must be at least election_timeout (500ms)
                connect_timeout is 0ns, it must lie between 1ms and 86400s
                snapshot_entries is 0, it must be at least 1, or none
                snapshot_bytes_per_second_max is 1, it must be at least 65536, or none
                entry_bytes_max is 68157440, it must lie between 1 and 67108864
                message_bytes_max is 1, it must lie between 1024 and 67108864
                uncommitted_bytes_max (1) must be at least entry_bytes_max (68157440) and message_bytes_max (1)
                unapplied_bytes_max (67108864) must be at least entry_bytes_max (68157440) and message_bytes_max (1)
                request_queue_bytes_max (67108864) must be at least entry_bytes_max (68157440) and message_bytes_max (1)
                peer_queue_bytes_max (67108864) must be at least entry_bytes_max (68157440) and message_bytes_max (1)
                peer_queue_max is 15, it must lie between 16 and 1048576
                snapshots_in_flight_max is 0, it must lie between 1 and 1048576"#]],
        );
    }

    #[test]
    fn limits_beyond_all_measure_are_refused_instead_of_overflowing_later() {
        let config = Config {
            election_timeout: Duration::MAX,
            propose_timeout: Duration::MAX,
            reconnect_delay_max: Duration::MAX,
            snapshot_age_max: Some(Duration::MAX),
            request_queue_max: usize::MAX,
            messages_in_flight_max: usize::MAX,
            ..Config::default()
        };
        check(
            config,
            expect![[r#"
                election_timeout is 18446744073709551615.999999999s, it must be at most 1h
                disk_stall_timeout (5s) must be at least election_timeout (18446744073709551615.999999999s)
                propose_timeout (18446744073709551615.999999999s) must be at most 86400s
                read_timeout (5s) must be at least election_timeout (18446744073709551615.999999999s)
                membership_timeout (30s) must be at least election_timeout (18446744073709551615.999999999s)
                joiner_timeout (600s) must be at least election_timeout (18446744073709551615.999999999s)
                snapshot_timeout (600s) must be at least election_timeout (18446744073709551615.999999999s)
                reconnect_delay_max is 18446744073709551615.999999999s, it must lie between 1ms and 86400s
                snapshot_age_max is 18446744073709551615.999999999s, it must lie between 1ms and 86400s
                request_queue_max is 18446744073709551615, it must lie between 1 and 1048576
                messages_in_flight_max is 18446744073709551615, it must lie between 1 and 1048576"#]],
        );
    }

    #[test]
    fn settings_survive_toml() {
        let config = Config {
            snapshot_entries: Some(7),
            snapshot_log_bytes: None,
            slow_disk_patience: None,
            snapshot_age_max: Some(Duration::from_secs(60)),
            pre_vote: false,
            ..Config::default()
        };
        let text = toml::to_string(&config).unwrap();
        assert_eq!(Config::from_toml(&text), Ok(config));
        assert_eq!(Config::from_toml(""), Ok(Config::default()));
    }

    #[test]
    fn toml_that_cannot_be_read_is_refused_with_line_and_field() {
        let check = |text: &str, expect: Expect| {
            expect.assert_eq(&Config::from_toml(text).unwrap_err().to_string());
        };
        check(
            "pre_vote = true\nelection_timeout = \"soon\"\n",
            expect![[r#"
            the configuration is not usable: TOML parse error at line 2, column 20
              |
            2 | election_timeout = "soon"
              |                    ^^^^^^
            invalid value: string "soon", expected a duration"#]],
        );
        check(
            "pre_vote = true\nentry_bytes_max = -1\n",
            expect![[r#"
            the configuration is not usable: TOML parse error at line 2, column 19
              |
            2 | entry_bytes_max = -1
              |                   ^^
            invalid value: integer `-1`, expected u64"#]],
        );
        check(
            "snapshot_entries = \"never\"\n",
            expect![[r#"
                the configuration is not usable: TOML parse error at line 1, column 20
                  |
                1 | snapshot_entries = "never"
                  |                    ^^^^^^^
                invalid value: string "never", expected u64 or "none""#]],
        );
        check(
            "slow_disk_patience = \"5\"\n",
            expect![[r#"
                the configuration is not usable: TOML parse error at line 1, column 22
                  |
                1 | slow_disk_patience = "5"
                  |                      ^^^
                invalid value: string "5", expected a duration or "none""#]],
        );
        check(
            "election_timeuot = \"1s\"\n",
            expect![[r#"
                the configuration is not usable: TOML parse error at line 1, column 1
                  |
                1 | election_timeuot = "1s"
                  | ^^^^^^^^^^^^^^^^
                unknown field `election_timeuot`, expected one of `tick_interval`, `heartbeat_interval`, `election_timeout`, `disk_stall_timeout`, `slow_write_time`, `slow_disk_patience`, `propose_timeout`, `read_timeout`, `membership_timeout`, `stop_timeout`, `promotion_entries_max`, `promotion_lag_max`, `joiner_timeout`, `entry_bytes_max`, `proposals_in_flight_max`, `uncommitted_bytes_max`, `reads_in_flight_max`, `request_queue_max`, `request_queue_bytes_max`, `message_bytes_max`, `messages_in_flight_max`, `peer_queue_max`, `peer_queue_bytes_max`, `connect_timeout`, `reconnect_delay_max`, `snapshot_entries`, `snapshot_log_bytes`, `snapshot_age_max`, `snapshot_bytes_per_second_max`, `snapshots_in_flight_max`, `log_entries_kept`, `log_bytes_kept`, `log_bytes_kept_for_followers`, `log_cache_bytes`, `unapplied_bytes_max`, `storage_reserve_bytes`, `snapshot_timeout`, `snapshot_chunk_timeout`, `pre_vote`, `check_quorum`"#]],
        );
        check(
            "tick_interval =\n",
            expect![[r#"
            the configuration is not usable: TOML parse error at line 1, column 16
              |
            1 | tick_interval =
              |                ^
            string values must be quoted, expected literal string"#]],
        );
    }
}
