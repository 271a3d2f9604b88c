//! Linearizable reads: a read observes everything that was acknowledged before it began, in an applied state
//! (thesis, section 6.4). The clients' histories are checked as a whole at the end; this check reports a
//! violation at once.

use raftify_core::LogIndex;

use super::Checked;

#[derive(Default)]
pub(crate) struct Reads {
    acknowledged: LogIndex,
}

impl Reads {
    /// A client learned that the entry at `index` was applied, or read a state that has it.
    pub(crate) fn acknowledged(&mut self, index: LogIndex) {
        self.acknowledged = self.acknowledged.max(index);
    }

    /// The lowest index that a read which begins now must show.
    pub(crate) fn floor(&self) -> LogIndex {
        self.acknowledged
    }

    /// A read that had to show `floor` is answered with `index`, from a state that is at `applied`.
    pub(crate) fn answered(&self, floor: LogIndex, index: LogIndex, applied: LogIndex) -> Checked {
        if index < floor {
            return Err(format!(
                "reads: a read at {index} misses the entry at {floor}, which was acknowledged before it began"
            ));
        }
        if applied < index {
            return Err(format!("reads: a read at {index} is answered where only {applied} is applied"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_misses_an_acknowledged_write_is_rejected() {
        let mut reads = Reads::default();
        reads.acknowledged(LogIndex(7));
        reads.acknowledged(LogIndex(5));
        reads.answered(reads.floor(), LogIndex(7), LogIndex(8)).unwrap();
        reads.answered(reads.floor(), LogIndex(6), LogIndex(8)).unwrap_err();
        reads.answered(reads.floor(), LogIndex(8), LogIndex(7)).unwrap_err();
    }
}
