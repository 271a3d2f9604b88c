//! The messages of a backup. It is no [`Verb`](crate::verbs::verb::Verb): the answer is a stream.

use raftify_core::{ClusterId, SnapshotDigest};

use crate::channels::backups::{BackupHead, BackupPart, BackupReceived, BackupWanted};
use crate::verbs::verb::NotAnswered;
use crate::wire::proto::backup_reply::Part;
use crate::wire::{self, RequestRejected, WireError, proto};

pub(crate) fn request_to_wire(header: proto::Header, wanted: &BackupWanted) -> proto::BackupRequest {
    proto::BackupRequest {
        header: Some(header),
        newest: wanted.newest,
        bytes_per_second_max: wanted.bytes_per_second_max.unwrap_or(0),
        received: wanted.received.map(|BackupReceived { position, digest }| proto::BackupReceived {
            position: wire::position_to_wire(position),
            data_bytes: digest.data_bytes,
            data_crc32c: digest.crc32c,
        }),
    }
}

pub(crate) fn request_from_wire(request: &proto::BackupRequest) -> Result<BackupWanted, WireError> {
    let received = request.received.as_ref().map(|received| {
        let position = wire::position_from_wire("the position of a backup", received.position)?;
        let digest = SnapshotDigest { data_bytes: received.data_bytes, crc32c: received.data_crc32c };
        Ok::<_, WireError>(BackupReceived { position, digest })
    });
    Ok(BackupWanted {
        newest: request.newest,
        bytes_per_second_max: Some(request.bytes_per_second_max).filter(|bytes| *bytes > 0),
        received: received.transpose()?,
    })
}

pub(crate) fn reply_to_wire(header: Option<proto::Header>, part: BackupPart) -> proto::BackupReply {
    let part = match part {
        BackupPart::Waiting => Part::Waiting(proto::BackupWaiting {}),
        BackupPart::Head(BackupHead { meta, digest, begin_at }) => {
            let mut head = proto::BackupHead {
                position: wire::position_to_wire(meta.position),
                members: meta.members.encode(),
                data_bytes: digest.data_bytes,
                data_crc32c: digest.crc32c,
                begin_at,
                crc32c: 0,
            };
            head.crc32c = checksum(meta.cluster_id, &head);
            Part::Head(head)
        }
        BackupPart::Data { offset, data } => {
            let crc32c = crc32c::crc32c(&data);
            Part::Data(proto::SnapshotData { offset, crc32c, data: data.into() })
        }
        BackupPart::Refused(refused) => Part::Refusal(wire::refusal_to_wire(&refused)),
    };
    proto::BackupReply { header, part: Some(part) }
}

/// A part, as the caller reads it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadPart {
    Waiting,
    Head(BackupHead),
    Data(proto::SnapshotData),
}

/// Checks all of a reply but where its data belongs.
pub(crate) fn reply_from_wire(reply: proto::BackupReply) -> Result<ReadPart, NotAnswered> {
    match reply.part.ok_or("it is empty")? {
        Part::Refusal(refusal) => Err(NotAnswered::Refusal(refusal)),
        Part::Waiting(proto::BackupWaiting {}) => Ok(ReadPart::Waiting),
        Part::Head(head) => {
            let header = wire::check_header(reply.header.as_ref())?;
            let cluster_id = header.ok_or("its header names no cluster")?;
            if checksum(cluster_id, &head) != head.crc32c {
                return Err("its checksum does not match: it was altered on its way".into());
            }
            if head.begin_at > head.data_bytes {
                return Err("it begins after its end".into());
            }
            let meta = wire::snapshot_from_wire(cluster_id, head.position, &head.members)?;
            let digest = SnapshotDigest { data_bytes: head.data_bytes, crc32c: head.data_crc32c };
            Ok(ReadPart::Head(BackupHead { meta, digest, begin_at: head.begin_at }))
        }
        Part::Data(data) => match crc32c::crc32c(&data.data) == data.crc32c {
            true => Ok(ReadPart::Data(data)),
            false => {
                let offset = data.offset;
                let reason = format!("the data at offset {offset} was altered on its way: its checksum");
                Err(NotAnswered::Malformed(format!("{reason} does not match")))
            }
        },
    }
}

fn checksum(cluster_id: ClusterId, head: &proto::BackupHead) -> u32 {
    let proto::Position { term, index } = head.position.unwrap_or_default();
    let numbers = [cluster_id.0, term, index, head.data_bytes, head.begin_at];
    let checksum = numbers.iter().fold(0, |sum, number| crc32c::crc32c_append(sum, &number.to_be_bytes()));
    let checksum = crc32c::crc32c_append(checksum, &head.data_crc32c.to_be_bytes());
    crc32c::crc32c_append(checksum, &head.members)
}

/// The status that ends a call whose parts end without a last one.
pub(crate) fn ended_early(stopped: Option<RequestRejected>) -> tonic::Status {
    stopped.map_or_else(|| tonic::Status::aborted("the backup has ended early"), tonic::Status::from)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use raftify_core::{LogPosition, Member, Members, NodeId, SnapshotMeta};

    use super::*;

    fn head() -> BackupHead {
        let members = Members::initial([Member::voter(NodeId::FIRST, "a.example:1")]).unwrap();
        let meta = SnapshotMeta { cluster_id: ClusterId(7), position: LogPosition::new(2, 9), members };
        BackupHead { meta, digest: SnapshotDigest::default().followed_by(b"data"), begin_at: 3 }
    }

    #[test]
    fn any_altered_bit_of_a_head_or_of_data_is_noticed() {
        let header = || Some(wire::header(Some(ClusterId(7))));
        let parts = [BackupPart::Head(head()), BackupPart::Data { offset: 3, data: b"a".to_vec() }];
        for part in parts {
            let reply = reply_to_wire(header(), part).encode_to_vec();
            let decoded = proto::BackupReply::decode(&*reply).unwrap();
            let is_head = matches!(decoded.part, Some(Part::Head(_)));
            let read = reply_from_wire(decoded).ok().unwrap();
            assert!(!is_head || read == ReadPart::Head(head()));
            let mut survived = Vec::new();
            for bit in 0..reply.len() * 8 {
                let mut altered = reply.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                // The offset of data is compared with what was received before.
                if let Ok(altered) = proto::BackupReply::decode(&*altered)
                    && let Ok(other) = reply_from_wire(altered)
                    && matches!((&read, &other), (ReadPart::Head(_), other) if *other != read)
                {
                    survived.push((bit, other));
                }
            }
            assert!(survived.iter().all(|(_, part)| *part == ReadPart::Waiting), "{survived:?}");
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let received = BackupReceived { position: LogPosition::new(2, 9), digest: SnapshotDigest::default() };
        let wanted =
            BackupWanted { newest: true, bytes_per_second_max: Some(1 << 20), received: Some(received) };
        for wanted in [wanted, BackupWanted::default()] {
            let request = request_to_wire(wire::header(None), &wanted);
            assert_eq!(request_from_wire(&request).unwrap(), wanted);
        }
    }
}
