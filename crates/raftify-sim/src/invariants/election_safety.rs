//! Election safety: at most one leader in a term (Ongaro's thesis, figure 3.2 and section 3.4).

use std::collections::BTreeMap;

use raftify_core::{NodeId, Term};

use super::Checked;

#[derive(Default)]
pub(crate) struct ElectionSafety {
    leaders: BTreeMap<Term, NodeId>,
}

impl ElectionSafety {
    /// `node` leads in `term`.
    pub(crate) fn leads(&mut self, node: NodeId, term: Term) -> Checked {
        let first = *self.leaders.entry(term).or_insert(node);
        if first == node {
            return Ok(());
        }
        Err(format!("election safety: nodes {first} and {node} both lead in term {term}"))
    }

    /// The number of terms with a leader.
    pub(crate) fn elections(&self) -> usize {
        self.leaders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_in_a_term_are_rejected() {
        let [one, two] = [1, 2].map(|id| NodeId::new(id).unwrap());
        let mut elections = ElectionSafety::default();
        elections.leads(one, Term(2)).unwrap();
        elections.leads(one, Term(2)).unwrap();
        elections.leads(two, Term(3)).unwrap();
        elections.leads(two, Term(2)).unwrap_err();
    }
}
