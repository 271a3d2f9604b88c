//! The time until a write is acknowledged again, and its statistics.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Table;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::faults::Fault;
use crate::http::{Connection, Web};

/// A node that is cut off or stopped is asked again after this time, on a new connection.
const DEADLINE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// The key of these writes. It is in no history.
const KEY: &str = "first-write";

/// The time until some node acknowledges a write; `None` if none does within `patience`.
pub(crate) async fn first_write(webs: &[Web], patience: Duration) -> Option<Duration> {
    let begin = Instant::now();
    let mut tries = JoinSet::new();
    for web in webs {
        let web = web.clone();
        tries.spawn(async move {
            loop {
                let mut connection = Connection::new(web.clone());
                let answer = connection.ask("PUT", &format!("/store/{KEY}/1"), b"", DEADLINE).await;
                if answer.is_ok_and(|answer| answer.status == 200) {
                    return;
                }
                drop(connection);
                sleep(PAUSE).await;
            }
        });
    }
    timeout(patience, tries.join_next()).await.ok().map(|_| begin.elapsed())
}

/// The measurements of one kind of fault.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// The number of faults.
    pub count: usize,
    /// The times after the fault, if the remaining nodes can continue.
    pub after_fault: Vec<Duration>,
    /// The times after its end.
    pub after_healing: Vec<Duration>,
}

/// The effect of a flipped bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Flip {
    /// The node reported it and did not start.
    Refused,
    /// The node started, and reported it later.
    NoticedLater,
    /// The node started, was healthy, and has not reported it so far.
    Undetected,
}

/// All measurements of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub faults: BTreeMap<Fault, Measured>,
    /// The times after a second fault that was added to the first.
    pub second: Measured,
    pub flips: BTreeMap<Flip, usize>,
    /// The times from the start of a joining node until it was a voter.
    pub joined: Vec<Duration>,
}

impl Figures {
    pub(crate) fn of(&mut self, fault: Fault) -> &mut Measured {
        self.faults.entry(fault).or_default()
    }

    /// The faults of `required` that did not happen.
    pub(crate) fn missing(&self, required: &[Fault]) -> Vec<Fault> {
        let happened = |fault: &Fault| self.faults.get(fault).is_some_and(|measured| measured.count > 0);
        required.iter().copied().filter(|fault| !happened(fault)).collect()
    }

    /// After how many faults, and after how many ends of faults, service returned in time.
    pub(crate) fn recovery(&self) -> String {
        let bound = 3 * raftify::Config::default().election_timeout;
        let in_time = |times: Vec<&Duration>| {
            format!("{} of {}", times.iter().filter(|time| ***time <= bound).count(), times.len())
        };
        let all = || self.faults.values();
        format!(
            "a write within three election timeouts ({} ms): after {} faults that left a majority, {} second faults \
             during another one, {} ends",
            bound.as_millis(),
            in_time(all().flat_map(|measured| &measured.after_fault).collect()),
            in_time(self.second.after_fault.iter().collect()),
            in_time(all().flat_map(|measured| &measured.after_healing).collect()),
        )
    }

    /// A node has detected a flipped bit that was counted as without effect.
    pub(crate) fn detected_later(&mut self) {
        if let Some(unnoticed) = self.flips.get_mut(&Flip::Undetected) {
            *unnoticed = unnoticed.saturating_sub(1);
        }
        *self.flips.entry(Flip::NoticedLater).or_default() += 1;
    }

    /// The effects of the flipped bits, if there were any.
    pub(crate) fn flips(&self) -> Option<String> {
        let count = |flip| self.flips.get(&flip).copied().unwrap_or_default();
        (!self.flips.is_empty()).then(|| {
            format!(
                "flipped bits: {} nodes refused to start, {} detected it later, {} had no effect",
                count(Flip::Refused),
                count(Flip::NoticedLater),
                count(Flip::Undetected)
            )
        })
    }

    /// The number of joins and their times, if there were any.
    pub(crate) fn joins(&self) -> Option<String> {
        let (median, longest) = (median(&self.joined)?, self.joined.iter().max()?);
        Some(format!(
            "{} times a node became a voter while the clients wrote: after {} ms (median), {} ms (longest)",
            self.joined.len(),
            median.as_millis(),
            longest.as_millis()
        ))
    }

    /// The table of the summary: times in milliseconds, median and longest.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header([
            "fault",
            "count",
            "after the fault: median",
            "longest ms",
            "after its end: median",
            "longest ms",
        ]);
        let (mut after_fault, mut after_healing) = (Vec::new(), Vec::new());
        for (fault, measured) in &self.faults {
            table.add_row(row(&fault.name(), measured.count, &measured.after_fault, &measured.after_healing));
            after_fault.extend(&measured.after_fault);
            after_healing.extend(&measured.after_healing);
        }
        if self.second.count > 0 {
            let Measured { count, after_fault: second, .. } = &self.second;
            table.add_row(row("with a second fault", *count, second, &[]));
            after_fault.extend(second);
        }
        let count = self.faults.values().map(|measured| measured.count).sum();
        table.add_row(row("all", count, &after_fault, &after_healing));
        table
    }
}

fn row(name: &str, count: usize, after_fault: &[Duration], after_healing: &[Duration]) -> Vec<String> {
    let shown = |time: Option<Duration>| time.map_or("-".to_owned(), |time| time.as_millis().to_string());
    vec![
        name.to_owned(),
        count.to_string(),
        shown(median(after_fault)),
        shown(after_fault.iter().max().copied()),
        shown(median(after_healing)),
        shown(after_healing.iter().max().copied()),
    ]
}

/// The median; the longer of the two middle values if the number is even.
fn median(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn web(listener: &TcpListener) -> Web {
        Web { address: listener.local_addr().unwrap().to_string(), certificates: None }
    }

    #[test]
    fn figures_show_the_median_the_longest_time_and_missing_faults() {
        let mut figures = Figures::default();
        let measured = figures.of(Fault::KillOne);
        measured.count = 3;
        measured.after_fault = [900, 100, 1200].map(Duration::from_millis).to_vec();
        figures.of(Fault::KillAll).after_healing = vec![Duration::from_millis(7)];
        let lines = figures.table().to_string();
        let words = |line: usize| lines.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["kill-one", "3", "900", "1200", "-", "-"]);
        assert_eq!(words(2), ["kill-all", "0", "-", "-", "7", "7"]);
        assert_eq!(words(3), ["all", "3", "900", "1200", "7", "7"]);
        assert_eq!(
            figures.missing(&[Fault::KillOne, Fault::KillAll, Fault::Ring]),
            [Fault::KillAll, Fault::Ring]
        );
    }

    #[test]
    fn recoveries_within_three_election_timeouts_are_counted() {
        let mut figures = Figures::default();
        let millis = |times: &[u64]| times.iter().copied().map(Duration::from_millis).collect();
        figures.of(Fault::KillOne).after_fault = millis(&[900, 1500, 1501]);
        figures.of(Fault::KillAll).after_healing = millis(&[7, 2000]);
        figures.second.after_fault = millis(&[3000]);
        assert_eq!(
            figures.recovery(),
            "a write within three election timeouts (1500 ms): after 2 of 3 faults that left a majority, 0 of 1 second \
             faults during another one, 1 of 2 ends"
        );
    }

    #[test]
    fn a_bit_that_is_detected_late_is_not_counted_twice() {
        let mut figures = Figures::default();
        assert_eq!(figures.flips(), None);
        figures.flips = [(Flip::Refused, 3), (Flip::Undetected, 2)].into();
        figures.detected_later();
        assert_eq!(
            figures.flips().unwrap(),
            "flipped bits: 3 nodes refused to start, 1 detected it later, 1 had no effect"
        );
    }

    #[test]
    fn joins_are_reported_with_the_median_and_the_longest_time() {
        let mut figures = Figures::default();
        assert_eq!(figures.joins(), None);
        figures.joined = [3, 9, 5].map(Duration::from_millis).to_vec();
        assert_eq!(
            figures.joins().unwrap(),
            "3 times a node became a voter while the clients wrote: after 5 ms (median), 9 ms (longest)"
        );
    }

    #[tokio::test]
    async fn the_first_write_counts_when_it_is_acknowledged_and_not_when_it_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = web(&listener);
        let node = tokio::spawn(async move {
            for status in ["503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_u8().await.unwrap();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                // The client must not see the connection break before the answer.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        assert!(first_write(&[web], Duration::from_secs(60)).await.is_some());
        node.await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_acknowledgement_is_reported_after_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = web(&listener);
        drop(listener);
        assert_eq!(first_write(&[web], Duration::from_millis(50)).await, None);
    }
}
