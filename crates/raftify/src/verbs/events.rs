//! The messages of the stream of events. It is no [`Verb`](crate::verbs::verb::Verb): the answer has no end.

use raftify_core::error::ReadError;

use crate::channels::node_events::{Event, EventRecord, REMOTE_READERS_MAX};
use crate::verbs::verb::NotAnswered;
use crate::wire::{self, proto};

pub(crate) fn to_wire(header: Option<proto::Header>, record: EventRecord) -> proto::EventsReply {
    use proto::events_reply::Outcome;
    let EventRecord { sequence, event } = record;
    let event = proto::Event { sequence, text: event.to_string(), detail: wire::encode_detail(&event) };
    proto::EventsReply { header, outcome: Some(Outcome::Event(event)) }
}

/// The only message of a node that serves no further reader.
pub(crate) fn busy(header: Option<proto::Header>) -> proto::EventsReply {
    let busy = ReadError::Busy { waiting: REMOTE_READERS_MAX as u64 };
    let outcome = proto::events_reply::Outcome::Refusal(wire::refusal_to_wire(&busy));
    proto::EventsReply { header, outcome: Some(outcome) }
}

/// An event of a newer version becomes its text.
pub(crate) fn from_wire(reply: proto::EventsReply) -> Result<EventRecord, NotAnswered> {
    use proto::events_reply::Outcome;
    match reply.outcome.ok_or("it is empty")? {
        Outcome::Event(proto::Event { sequence, text, detail }) => {
            let event = wire::decode_detail(&detail).unwrap_or(Event::Other(text));
            Ok(EventRecord { sequence, event })
        }
        Outcome::Refusal(refusal) => Err(NotAnswered::Refusal(refusal)),
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::Term;

    use super::*;

    #[test]
    fn an_event_of_a_newer_version_is_read_as_its_text() {
        let record = EventRecord { sequence: 7, event: Event::TermChanged { term: Term(3) } };
        let mut reply = to_wire(None, record.clone());
        assert_eq!(from_wire(reply.clone()).ok(), Some(record));
        if let Some(proto::events_reply::Outcome::Event(event)) = &mut reply.outcome {
            event.detail = vec![event.detail[0], 200, 1].into();
        }
        let other = EventRecord { sequence: 7, event: Event::Other("term 3".to_owned()) };
        assert_eq!(from_wire(reply).ok(), Some(other));
        assert!(from_wire(busy(None)).is_err());
    }
}
