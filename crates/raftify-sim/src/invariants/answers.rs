//! Answers: every request gets exactly one, and success only for an entry that is durable on a quorum
//! (thesis, section 3.6.2; the quorum itself is checked when the entry is committed). No acknowledged write
//! is missing at the end.

use std::collections::BTreeMap;

use raftify_core::LogPosition;

use super::Checked;
use super::committed_entries::CommittedEntries;

#[derive(Default)]
pub(crate) struct Answers {
    asked: u64,
    open: BTreeMap<u64, String>,
    acknowledged: Vec<LogPosition>,
}

impl Answers {
    /// A new request. Returns its number.
    pub(crate) fn asked(&mut self, what: String) -> u64 {
        self.asked += 1;
        self.open.insert(self.asked, what);
        self.asked
    }

    /// Request `number` is answered.
    pub(crate) fn answered(&mut self, number: u64) -> Checked {
        match self.open.remove(&number) {
            Some(_) => Ok(()),
            None => Err(format!("answers: request {number} is answered twice")),
        }
    }

    /// A proposal is acknowledged.
    pub(crate) fn acknowledged(&mut self, position: LogPosition, committed: &CommittedEntries) -> Checked {
        self.acknowledged.push(position);
        if committed.is_committed(position) {
            return Ok(());
        }
        Err(format!("answers: the entry at {position} is acknowledged, and no quorum holds it durably"))
    }

    /// The open requests.
    pub(crate) fn open(&self) -> impl Iterator<Item = &str> {
        self.open.values().map(String::as_str)
    }

    pub(crate) fn is_open(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    /// At the end: no acknowledged entry is missing, and every request was answered.
    pub(crate) fn end(&self, committed: &CommittedEntries) -> Checked {
        if let Some(waiting) = self.open().next() {
            let count = self.open.len();
            return Err(format!("answers: {count} requests were never answered, such as: {waiting}"));
        }
        match self.acknowledged.iter().find(|position| !committed.is_committed(**position)) {
            Some(lost) => Err(format!("answers: the acknowledged entry at {lost} is missing at the end")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_or_none_are_rejected() {
        let mut answers = Answers::default();
        let number = answers.asked("a write".to_owned());
        answers.end(&CommittedEntries::default()).unwrap_err();
        answers.answered(number).unwrap();
        answers.end(&CommittedEntries::default()).unwrap();
        answers.answered(number).unwrap_err();
    }

    #[test]
    fn an_answer_before_the_entry_is_durable_on_a_quorum_is_rejected() {
        let mut answers = Answers::default();
        let position = LogPosition::new(2, 2);
        answers.acknowledged(position, &CommittedEntries::default()).unwrap_err();
        answers.end(&CommittedEntries::default()).unwrap_err();
    }
}
