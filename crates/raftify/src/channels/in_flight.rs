//! Counts the proposals under way at one node, and their bytes.
//!
//! A slot is reserved before any work for a proposal, so that a proposal that is rejected because the node is
//! busy costs nothing: it is neither encoded nor checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use raftify_core::CheckedConfig;

/// The limits of a leader: [`proposals_in_flight_max`](raftify_core::Config::proposals_in_flight_max), and
/// [`uncommitted_bytes_max`](raftify_core::Config::uncommitted_bytes_max). A single proposal may have more
/// bytes.
#[derive(Debug)]
pub(crate) struct InFlight {
    count: AtomicUsize,
    count_max: usize,
    bytes: AtomicU64,
    bytes_max: u64,
}

impl InFlight {
    pub(crate) fn new(config: &CheckedConfig) -> Arc<InFlight> {
        Arc::new(InFlight {
            count: AtomicUsize::new(0),
            count_max: config.proposals_in_flight_max,
            bytes: AtomicU64::new(0),
            bytes_max: config.uncommitted_bytes_max,
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
        let after = |count: usize| (count < self.count_max).then_some(count + 1);
        match self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, after) {
            Ok(_) => Ok(Permit { of: Arc::clone(self), bytes: 0 }),
            Err(count) => Err(count as u64),
        }
    }

    /// Reserves a slot for a proposal with this many bytes.
    ///
    /// # Errors
    /// The number of proposals under way: this one does not fit beside them.
    pub(crate) fn enter_with(self: &Arc<Self>, bytes: u64) -> Result<Permit, u64> {
        let mut permit = self.enter()?;
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
    /// Counts the bytes of the proposal, once they are known.
    ///
    /// # Errors
    /// The number of proposals under way: the bytes of this one do not fit beside theirs.
    pub(crate) fn holds(&mut self, bytes: u64) -> Result<(), u64> {
        let bytes_max = self.of.bytes_max;
        let after = |held: u64| {
            let after = held.saturating_add(bytes);
            (held == 0 || after <= bytes_max).then_some(after)
        };
        match self.of.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, after) {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(_) => Err(self.of.count.load(Ordering::Acquire) as u64),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.of.count.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::Config;

    use super::*;

    #[test]
    fn places_are_bounded_by_number_and_by_bytes_and_are_given_back() {
        let limit = Config::default().uncommitted_bytes_max;
        let config = Config { proposals_in_flight_max: 3, ..Config::default() }.check().unwrap();
        let in_flight = InFlight::new(&config);
        let mut first = in_flight.enter().unwrap();
        // A single proposal may have more.
        first.holds(limit + 1).unwrap();
        let mut second = in_flight.enter().unwrap();
        assert_eq!(second.holds(1), Err(2));
        drop(first);
        second.holds(limit - 1).unwrap();
        let mut third = in_flight.enter().unwrap();
        third.holds(1).unwrap();
        let fourth = in_flight.enter().unwrap();
        assert_eq!(in_flight.enter().unwrap_err(), 3);
        drop((second, third, fourth));
        assert_eq!(
            (in_flight.count.load(Ordering::Acquire), in_flight.bytes.load(Ordering::Acquire)),
            (0, 0)
        );
    }
}
