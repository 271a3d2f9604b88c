//! Random choices.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::schedule::Time;

/// Repeated random choices.
pub(crate) trait Draw {
    /// True with this percentage.
    fn percent(&mut self, percent: u32) -> bool;
    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T;
    /// A time in this range.
    fn within(&mut self, range: (Time, Time)) -> Time;
    /// A time with this mean, mostly shorter, and at most eight times as long.
    fn about(&mut self, mean: Time) -> Time;
}

impl Draw for ChaCha8Rng {
    fn percent(&mut self, percent: u32) -> bool {
        percent > 0 && self.random_range(0..100) < percent
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random_range(0..choices.len())]
    }

    fn within(&mut self, (least, most): (Time, Time)) -> Time {
        self.random_range(least..=most)
    }

    fn about(&mut self, mean: Time) -> Time {
        // The number of leading zeros of a random word is 1 on average, and its probability halves with each
        // more.
        let halvings = u64::from(self.random::<u8>().leading_zeros().min(4));
        self.random_range(0..=(mean * (halvings + 1)).max(1))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn drawn_times_have_about_the_given_mean() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let sum: Time = (0..10_000).map(|_| rng.about(1000)).sum();
        assert!((8_000_000..12_000_000).contains(&sum), "{sum}");
    }
}
