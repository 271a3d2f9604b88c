//! The generated messages of `raft_service.proto`.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

tonic::include_proto!("raftify.v1");

pub type RequestBatch = super::batches::Batch<Header, StreamedRequest>;
pub type ReplyBatch = super::batches::Batch<Header, StreamedReply>;
