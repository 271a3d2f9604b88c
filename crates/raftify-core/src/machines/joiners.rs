//! The state that a leader keeps about non-voting nodes: how far each is behind, and which voters have
//! reached it. With it, the leader decides when a joining node may vote (thesis, section 4.2.1). Dropped when
//! leadership is lost.

use std::collections::BTreeMap;

use crate::config::CheckedConfig;
use crate::types::{Incarnation, LogIndex, NodeId};

/// For how many election timeouts the report of a voter that it has reached a node is valid. Each voter
/// repeats it once in an election timeout.
const REACHED_TIMEOUTS: u32 = 3;

/// See the module.
#[derive(Default)]
pub(crate) struct Joiners {
    progress: BTreeMap<NodeId, CatchUp>,
    /// For each node, the voters that have reached it, the incarnation that they have reached, and the time
    /// of the report.
    reached: BTreeMap<NodeId, BTreeMap<NodeId, (Incarnation, u64)>>,
}

/// A node catches up in rounds: in each, it receives the entries that the leader had when the round began.
struct CatchUp {
    first_seen_ticks: u64,
    matched: LogIndex,
    target: LogIndex,
    began_ticks: u64,
    /// How long the last complete round took.
    took_ticks: Option<u64>,
}

/// How far a node has caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lag {
    /// Up to here its log agrees with that of the leader.
    pub(crate) matched: LogIndex,
    /// Whether it is close enough in entries and in time.
    pub(crate) is_close: bool,
}

impl Joiners {
    /// The log of `id` agrees up to `matched`; the log of the leader ends at `last`.
    pub(crate) fn observe(&mut self, id: NodeId, matched: LogIndex, last: LogIndex, now_ticks: u64) {
        let catch_up = self.progress.entry(id).or_insert(CatchUp {
            first_seen_ticks: now_ticks,
            matched,
            target: last,
            began_ticks: now_ticks,
            took_ticks: None,
        });
        catch_up.matched = matched;
        if matched >= catch_up.target && matched > LogIndex::ZERO {
            catch_up.took_ticks = Some(now_ticks - catch_up.began_ticks);
            catch_up.target = last;
            catch_up.began_ticks = now_ticks;
        }
    }

    /// Drops every other node.
    pub(crate) fn retain(&mut self, is_observed: impl Fn(NodeId) -> bool) {
        self.progress.retain(|id, _| is_observed(*id));
        self.reached.retain(|id, _| is_observed(*id));
    }

    /// Drops the reports about this node: they concern another address.
    pub(crate) fn forget_reached(&mut self, id: NodeId) {
        self.reached.remove(&id);
    }

    pub(crate) fn lag(&self, id: NodeId, last: LogIndex, now_ticks: u64, config: &CheckedConfig) -> Lag {
        let Some(catch_up) = self.progress.get(&id) else {
            return Lag { matched: LogIndex::ZERO, is_close: mutated!(PromotesBeforeCaughtUp) };
        };
        let lag_ticks_max = config.ticks(config.promotion_lag_max);
        let is_on_time =
            |took: u64| took <= lag_ticks_max && now_ticks - catch_up.began_ticks <= lag_ticks_max;
        let behind = last.0.saturating_sub(catch_up.matched.0);
        let is_close = behind <= config.promotion_entries_max && catch_up.took_ticks.is_some_and(is_on_time);
        Lag { matched: catch_up.matched, is_close: is_close || mutated!(PromotesBeforeCaughtUp) }
    }

    /// The tick at which this leader first observed the node.
    pub(crate) fn first_seen_ticks(&self, id: NodeId) -> Option<u64> {
        self.progress.get(&id).map(|catch_up| catch_up.first_seen_ticks)
    }

    /// `voter` reports that it has reached the node at its advertised address.
    pub(crate) fn was_reached(
        &mut self,
        id: NodeId,
        incarnation: Incarnation,
        voter: NodeId,
        now_ticks: u64,
    ) {
        self.reached.entry(id).or_default().insert(voter, (incarnation, now_ticks));
    }

    /// The voters that have recently reached this incarnation of the node.
    pub(crate) fn reached_by(
        &self,
        id: NodeId,
        incarnation: Incarnation,
        now_ticks: u64,
        config: &CheckedConfig,
    ) -> Vec<NodeId> {
        let counts_ticks = config.ticks(config.election_timeout * REACHED_TIMEOUTS);
        let is_recent = |(known, ticks): &(Incarnation, u64)| {
            *known == incarnation && now_ticks.saturating_sub(*ticks) <= counts_ticks
        };
        let by = self.reached.get(&id).into_iter().flatten();
        by.filter(|(_, said)| is_recent(said)).map(|(voter, _)| *voter).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;

    fn config() -> CheckedConfig {
        let config = Config {
            tick_interval: Duration::from_millis(10),
            heartbeat_interval: Duration::from_millis(20),
            election_timeout: Duration::from_millis(100),
            promotion_entries_max: 50,
            promotion_lag_max: Duration::from_millis(100),
            ..Config::default()
        };
        config.check().expect("valid settings")
    }

    #[test]
    fn a_joiner_is_close_only_when_a_round_was_short_and_few_entries_are_missing() {
        let (mut joiners, id, config) = (Joiners::default(), NodeId::FIRST, config());
        let last = LogIndex(1000);
        assert!(!joiners.lag(id, last, 0, &config).is_close);
        joiners.observe(id, LogIndex::ZERO, last, 0);
        assert!(!joiners.lag(id, last, 0, &config).is_close, "it has nothing");
        joiners.observe(id, LogIndex(1000), LogIndex(1040), 50);
        assert!(!joiners.lag(id, LogIndex(1040), 50, &config).is_close, "the round took 50 ticks");
        joiners.observe(id, LogIndex(1040), LogIndex(1045), 52);
        assert!(joiners.lag(id, LogIndex(1045), 52, &config).is_close);
        assert!(!joiners.lag(id, LogIndex(1200), 52, &config).is_close, "160 entries are missing");
        assert!(!joiners.lag(id, LogIndex(1045), 70, &config).is_close, "it has stopped");
    }

    #[test]
    fn a_joiner_that_received_nothing_but_a_snapshot_is_close() {
        let (mut joiners, id, config) = (Joiners::default(), NodeId::FIRST, config());
        joiners.observe(id, LogIndex::ZERO, LogIndex(7), 0);
        for now in 90..=91 {
            joiners.observe(id, LogIndex(7), LogIndex(7), now);
        }
        assert!(joiners.lag(id, LogIndex(7), 91, &config).is_close);
    }

    #[test]
    fn the_word_of_a_voter_counts_for_one_incarnation_and_for_a_time() {
        let (mut joiners, id, config) = (Joiners::default(), NodeId::FIRST, config());
        let voter = NodeId::new(2).expect("not zero");
        joiners.was_reached(id, Incarnation(1), voter, 10);
        assert_eq!(joiners.reached_by(id, Incarnation(1), 40, &config), [voter]);
        assert_eq!(joiners.reached_by(id, Incarnation(2), 40, &config), []);
        assert_eq!(joiners.reached_by(id, Incarnation(1), 41, &config), []);
    }
}
