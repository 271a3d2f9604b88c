//! Batches of requests and of replies, as `StreamRequests` carries them.
//!
//! Written by hand instead of generated, for one reason: two bytes of a message decode to an empty request,
//! which takes some fifty bytes of memory. A message within the size limit could so take gigabytes. A batch
//! keeps [`BATCH_REQUESTS_MAX`] items, skips the rest without storing it, and reports that there was more.

use std::fmt::Debug;

use bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// How many requests or replies one message may have.
pub(crate) const BATCH_REQUESTS_MAX: usize = 4096;

/// One message of a stream, with the generated types of its header and its items.
#[allow(unreachable_pub, reason = "the generated code is public within its private module")]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch<H, T> {
    pub(crate) header: Option<H>,
    pub(crate) items: Vec<T>,
    /// Of replies: see `raft_service.proto`.
    pub(crate) closes: bool,
    /// Items beyond the limit were left out. Never encoded.
    pub(crate) is_too_long: bool,
}

const HEADER: u32 = 1;
const ITEMS: u32 = 2;
const CLOSES: u32 = 3;

impl<H: Message + Default, T: Message + Default> Message for Batch<H, T> {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        if let Some(header) = &self.header {
            encoding::message::encode(HEADER, header, buffer);
        }
        encoding::message::encode_repeated(ITEMS, &self.items, buffer);
        if self.closes {
            encoding::bool::encode(CLOSES, &self.closes, buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            HEADER => {
                let header = self.header.get_or_insert_default();
                encoding::message::merge(wire_type, header, buffer, context)
            }
            ITEMS if self.items.len() < BATCH_REQUESTS_MAX => {
                encoding::message::merge_repeated(wire_type, &mut self.items, buffer, context)
            }
            CLOSES => encoding::bool::merge(wire_type, &mut self.closes, buffer, context),
            _ => {
                self.is_too_long |= tag == ITEMS;
                encoding::skip_field(wire_type, tag, buffer, context)
            }
        }
    }

    fn encoded_len(&self) -> usize {
        let header = self.header.as_ref().map_or(0, |header| encoding::message::encoded_len(HEADER, header));
        let closes = if self.closes { encoding::bool::encoded_len(CLOSES, &self.closes) } else { 0 };
        header + encoding::message::encoded_len_repeated(ITEMS, &self.items) + closes
    }

    fn clear(&mut self) {
        *self = Batch { header: None, items: Vec::new(), closes: false, is_too_long: false };
    }
}
