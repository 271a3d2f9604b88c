//! The seam to randomness: what nodes are told apart by, and what decides how long they wait for an election.

use rand::distr::{Distribution, StandardUniform};

/// A number that nobody else draws; in a [simulation](crate::runtime::simulation), the next one of its seed.
pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    #[cfg(feature = "simulation")]
    if crate::runtime::simulation::is_on() {
        return crate::runtime::simulation::random();
    }
    rand::random()
}
