//! Counts the proposals under way at one node, and their bytes.
//!
//! A slot is reserved before any work for a proposal, so that a proposal that is rejected because the node is
//! busy costs nearly nothing: it is neither encoded nor checked. The size of a proposal is known only when it
//! is encoded; as long as there is no room for the last one that did not fit, no other is encoded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use raftify_core::CheckedConfig;

/// The memory that a proposal takes beyond its encoded entry until it is answered, in bytes: its reply
/// channel, its place in the tables of the core, and the future of its caller. That of a request over the
/// network was not measured.
pub(crate) const OVERHEAD_BYTES: u64 = 1024;

/// The limits of a leader: [`proposals_in_flight_max`](raftify_core::Config::proposals_in_flight_max), and
/// [`uncommitted_bytes_max`](raftify_core::Config::uncommitted_bytes_max). A single proposal may have more
/// bytes.
#[derive(Debug)]
pub(crate) struct InFlight {
    count: AtomicUsize,
    count_max: usize,
    bytes: AtomicU64,
    bytes_max: u64,
    /// The bytes of the last proposal that did not fit; zero once another one has fitted.
    turned_away: AtomicU64,
}

impl InFlight {
    pub(crate) fn new(config: &CheckedConfig) -> Arc<InFlight> {
        Arc::new(InFlight {
            count: AtomicUsize::new(0),
            count_max: config.proposals_in_flight_max,
            bytes: AtomicU64::new(0),
            bytes_max: config.uncommitted_bytes_max,
            turned_away: AtomicU64::new(0),
        })
    }

    /// Whether no proposal is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Reserves a slot for one more proposal.
    ///
    /// # Errors
    /// The number of proposals under way, which is the maximum.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Permit, u64> {
        if !self.has_room(self.turned_away.load(Ordering::Relaxed)) {
            return Err(self.waiting());
        }
        self.take_slot()
    }

    fn take_slot(self: &Arc<Self>) -> Result<Permit, u64> {
        let after = |count: usize| (count < self.count_max).then_some(count + 1);
        match self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, after) {
            Ok(_) => Ok(Permit { of: Arc::clone(self), bytes: 0 }),
            Err(count) => Err(count as u64),
        }
    }

    fn waiting(&self) -> u64 {
        self.count.load(Ordering::Relaxed) as u64
    }

    /// Whether this many bytes fit beside those that are held.
    fn has_room(&self, bytes: u64) -> bool {
        let held = self.bytes.load(Ordering::Relaxed);
        held == 0 || held.saturating_add(bytes) <= self.bytes_max
    }

    /// Reserves a slot for a proposal with this many bytes.
    ///
    /// # Errors
    /// The number of proposals under way: this one does not fit beside them.
    pub(crate) fn enter_with(self: &Arc<Self>, bytes: u64) -> Result<Permit, u64> {
        if !self.has_room(bytes.saturating_add(OVERHEAD_BYTES)) {
            return Err(self.waiting());
        }
        let mut permit = self.take_slot()?;
        permit.holds(bytes)?;
        Ok(permit)
    }
}

/// One of the proposals under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    of: Arc<InFlight>,
    bytes: u64,
}

impl Permit {
    /// Counts the bytes of the encoded entry, once they are known, and those of the proposal beside it.
    ///
    /// # Errors
    /// The number of proposals under way: the bytes of this one do not fit beside theirs.
    pub(crate) fn holds(&mut self, bytes: u64) -> Result<(), u64> {
        let (bytes, bytes_max) = (bytes.saturating_add(OVERHEAD_BYTES), self.of.bytes_max);
        let after = |held: u64| {
            let after = held.saturating_add(bytes);
            (held == 0 || after <= bytes_max).then_some(after)
        };
        match self.of.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, after) {
            Ok(_) => {
                self.bytes += bytes;
                if self.of.turned_away.load(Ordering::Relaxed) > 0 {
                    self.of.turned_away.store(0, Ordering::Relaxed);
                }
                Ok(())
            }
            Err(_) => {
                self.of.turned_away.store(bytes, Ordering::Relaxed);
                Err(self.of.waiting())
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !raftify_core::mutated!(AnsweredBytesStayCounted) {
            self.of.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        self.of.count.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::Config;

    use super::*;

    fn in_flight(proposals_in_flight_max: usize) -> Arc<InFlight> {
        InFlight::new(&Config { proposals_in_flight_max, ..Config::default() }.check().unwrap())
    }

    #[test]
    fn places_are_bounded_by_number_and_by_bytes_and_are_given_back() {
        let limit = Config::default().uncommitted_bytes_max;
        let in_flight = in_flight(3);
        let (mut first, mut second) = (in_flight.enter().unwrap(), in_flight.enter().unwrap());
        // A single proposal may have more.
        first.holds(limit + 1).unwrap();
        assert_eq!(in_flight.enter().unwrap_err(), 2);
        assert_eq!(second.holds(1), Err(2));
        drop(first);
        second.holds(limit - 1 - 2 * OVERHEAD_BYTES).unwrap();
        let mut third = in_flight.enter().unwrap();
        third.holds(1).unwrap();
        drop(third);
        let (third, fourth) = (in_flight.enter().unwrap(), in_flight.enter().unwrap());
        assert_eq!(in_flight.enter().unwrap_err(), 3);
        drop((second, third, fourth));
        assert_eq!(
            (in_flight.count.load(Ordering::Acquire), in_flight.bytes.load(Ordering::Acquire)),
            (0, 0)
        );
    }

    #[test]
    fn the_limit_counts_what_small_proposals_hold_beside_their_entries() {
        let in_flight = in_flight(1 << 20);
        let held: Vec<Permit> = std::iter::from_fn(|| in_flight.enter_with(1).ok()).collect();
        let limit = Config::default().uncommitted_bytes_max;
        assert_eq!(held.len() as u64, limit / (OVERHEAD_BYTES + 1));
    }

    #[test]
    fn a_proposal_is_rejected_before_it_is_encoded_while_there_is_no_room_for_one_like_the_last() {
        let in_flight = in_flight(1 << 20);
        let limit = Config::default().uncommitted_bytes_max;
        let (large, half) = (limit / 4, in_flight.enter_with(limit / 2).unwrap());
        let third = in_flight.enter_with(large).unwrap();
        // There is room for a small one; the size is not known before it is encoded.
        let mut turned_away = in_flight.enter().unwrap();
        assert_eq!(turned_away.holds(large), Err(3));
        drop(turned_away);
        assert_eq!(in_flight.enter().unwrap_err(), 2, "it was to be encoded for nothing");
        // As soon as there is room again, the limit is as it was.
        drop(third);
        let mut fits = in_flight.enter().unwrap();
        fits.holds(large).unwrap();
        in_flight.enter().unwrap().holds(1).unwrap();
        drop((half, fits));
        assert_eq!(in_flight.bytes.load(Ordering::Acquire), 0);
    }
}
