//! `cluster events`: the events of all members, as they come.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftify::events::{Event, EventRecord};
use raftify::{BoxError, LogEntry, NodeId, RaftClient, StateMachine};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::arguments::Addresses;
use crate::cluster::survey::{Survey, client, reason};

/// The pause before a node is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// How many events wait to be printed; the nodes count what a slow reader misses.
const WAITING_MAX: usize = 256;

/// What was learned of one node.
pub(crate) enum News {
    Event(EventRecord),
    /// The stream begins, ends or breaks.
    Note(String),
}

/// The readers of all members, and their news.
pub(crate) struct Followed<'a> {
    at: &'a Addresses,
    /// Of these members alone, unless it is empty.
    only: &'a [NodeId],
    news: mpsc::Sender<(NodeId, News)>,
    readers: BTreeMap<NodeId, Reader>,
}

struct Reader {
    address: String,
    /// No longer a member: its stream is not opened again.
    is_gone: Arc<AtomicBool>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }
}

impl<'a> Followed<'a> {
    pub(crate) fn new(
        at: &'a Addresses,
        only: &'a [NodeId],
    ) -> (Followed<'a>, mpsc::Receiver<(NodeId, News)>) {
        let (news, received) = mpsc::channel(WAITING_MAX);
        (Followed { at, only, news, readers: BTreeMap::new() }, received)
    }

    /// Reads the events of a member at this address from now on.
    pub(crate) fn follow<E, S>(&mut self, id: NodeId, address: &str) -> Result<(), BoxError>
    where
        E: LogEntry,
        S: StateMachine<LogEntry = E>,
    {
        let is_meant = self.only.is_empty() || self.only.contains(&id);
        if !is_meant || self.readers.get(&id).is_some_and(|reader| reader.address == address) {
            return Ok(());
        }
        let client = client::<E, S>(self.at, [address.to_owned()])?;
        let is_gone = Arc::new(AtomicBool::new(false));
        tokio::spawn(read(client, id, self.news.clone(), Arc::clone(&is_gone)));
        self.readers.insert(id, Reader { address: address.to_owned(), is_gone });
        Ok(())
    }

    /// Follows the members that an event names.
    pub(crate) fn learn<E, S>(&mut self, event: &Event) -> Result<(), BoxError>
    where
        E: LogEntry,
        S: StateMachine<LogEntry = E>,
    {
        match event {
            Event::MemberAdded { member, .. } => self.follow::<E, S>(member.id, &member.address),
            Event::MemberMoved { id, to, .. } => self.follow::<E, S>(*id, to),
            Event::MemberRemoved { id, .. } => {
                self.readers.remove(id);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Reads the events of one node, again and again. A note is sent only when it differs from the last one.
async fn read<E, S>(
    client: RaftClient<E, S>,
    id: NodeId,
    news: mpsc::Sender<(NodeId, News)>,
    is_gone: Arc<AtomicBool>,
) where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let mut noted = String::new();
    while !is_gone.load(Ordering::Relaxed) && !news.is_closed() {
        let ended = match client.events().await {
            Err(error) => reason(error),
            Ok(mut events) => {
                noted.clear();
                if news.send((id, News::Note("its events follow".to_owned()))).await.is_err() {
                    return;
                }
                loop {
                    match events.next().await {
                        Ok(Some(record)) => {
                            if news.send((id, News::Event(record))).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break "its events end: it has stopped".to_owned(),
                        Err(error) => break reason(error),
                    }
                }
            }
        };
        if ended != noted {
            noted.clone_from(&ended);
            if news.send((id, News::Note(ended))).await.is_err() {
                return;
            }
        }
        sleep(PAUSE).await;
    }
}

pub(crate) async fn run<E, S>(
    at: &Addresses,
    only: &[NodeId],
    count: Option<u64>,
    output: &mut dyn Write,
) -> Result<(), BoxError>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let survey = Survey::of_given::<E, S>(at).await?;
    for id in only {
        survey.member("cannot follow the events", *id)?;
    }
    let (mut followed, mut news) = Followed::new(at, only);
    for member in survey.members.iter() {
        followed.follow::<E, S>(member.id, &member.address)?;
    }
    let mut left = count;
    while left != Some(0)
        && let Some((id, news)) = news.recv().await
    {
        if let News::Event(record) = &news {
            followed.learn::<E, S>(&record.event)?;
            left = left.map(|left| left - 1);
        }
        print(at.json, id, &news, output)?;
        output.flush()?;
    }
    Ok(())
}

fn print(as_json: bool, id: NodeId, news: &News, output: &mut dyn Write) -> Result<(), BoxError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if as_json {
        let (sequence, event, note) = match news {
            News::Event(record) => (Some(record.sequence), Some(&record.event), None),
            News::Note(note) => (None, None, Some(note)),
        };
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let line =
            json!({ "unix_millis": millis, "node": id, "sequence": sequence, "event": event, "note": note });
        return Ok(writeln!(output, "{line}")?);
    }
    let time = time_of_day(now.as_secs());
    match news {
        News::Event(EventRecord { sequence, event, .. }) => {
            writeln!(output, "{time}  node {id}  {sequence:>5}  {event}")?
        }
        News::Note(note) => writeln!(output, "{time}  node {id}      -  {note}")?,
    }
    Ok(())
}

/// In UTC.
pub(crate) fn time_of_day(unix_seconds: u64) -> String {
    let of_day = unix_seconds % 86_400;
    format!("{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_that_of_utc() {
        assert_eq!(time_of_day(0), "00:00:00Z");
        assert_eq!(time_of_day(86_400 + 13 * 3600 + 7 * 60 + 9), "13:07:09Z");
    }
}
