//! The abstraction over randomness: the source of unique ids and of election timeouts.

use rand::distr::{Distribution, StandardUniform};

/// A random number that is unique in practice; in a [simulation](crate::runtime::simulation), the next one of
/// its seed.
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
