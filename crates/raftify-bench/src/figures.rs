//! The results of one or several runs, and queries for them: the median of all runs that match. Disturbed
//! runs count only if there are no others.

use crate::line::Line;

/// All results.
pub(crate) struct Figures {
    pub(crate) lines: Vec<Line>,
}

/// A query for results.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pick {
    bench: String,
    storage: Option<String>,
    clients: Option<u64>,
    entry_bytes: Option<u64>,
    /// Fields of the layer, as text.
    more: Vec<(&'static str, serde_json::Value)>,
}

impl Pick {
    pub(crate) fn of(bench: &str) -> Pick {
        Pick { bench: bench.to_owned(), ..Pick::default() }
    }

    /// The whole system in one process, with closed loops.
    pub(crate) fn cluster(storage: &str) -> Pick {
        Pick::of("cluster").storage(storage).with("loop", "closed").with("processes", 1)
    }

    pub(crate) fn storage(self, storage: &str) -> Pick {
        Pick { storage: Some(storage.to_owned()), ..self }
    }

    pub(crate) fn clients(self, clients: u64) -> Pick {
        Pick { clients: Some(clients), ..self }
    }

    pub(crate) fn entry_bytes(self, bytes: u64) -> Pick {
        Pick { entry_bytes: Some(bytes), ..self }
    }

    pub(crate) fn part(self, part: &str) -> Pick {
        self.with("part", part)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<serde_json::Value>) -> Pick {
        self.more.push((name, value.into()));
        self
    }

    fn fits(&self, line: &Line) -> bool {
        line.bench == self.bench
            && !line.more.contains_key("error")
            && (self.storage.is_none() || line.storage == self.storage)
            && (self.clients.is_none() || line.clients == self.clients)
            && (self.entry_bytes.is_none() || line.entry_bytes == self.entry_bytes)
            && self.more.iter().all(|(name, value)| line.more.get(*name) == Some(value))
    }
}

impl Figures {
    /// All results that match.
    pub(crate) fn all(&self, pick: &Pick) -> Vec<&Line> {
        let fitting: Vec<&Line> = self.lines.iter().filter(|line| pick.fits(line)).collect();
        let quiet: Vec<&Line> =
            fitting.iter().filter(|line| line.more.get("quiet") != Some(&false.into())).copied().collect();
        if quiet.is_empty() { fitting } else { quiet }
    }

    /// The median of a figure of all results that match.
    pub(crate) fn median(&self, pick: &Pick, figure: impl Fn(&Line) -> Option<f64>) -> Option<f64> {
        let mut found: Vec<f64> = self.all(pick).into_iter().filter_map(figure).collect();
        found.sort_by(f64::total_cmp);
        match found.len() {
            0 => None,
            count if count % 2 == 1 => found.get(count / 2).copied(),
            count => Some((found[count / 2 - 1] + found[count / 2]) / 2.0),
        }
    }
}
