//! The web API, the same on every node: it translates between HTTP and [`Raft`], and decides nothing.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page for the browser |
//! | `GET /store/{key}` | `{"key","value"}`: a linearizable read on any node; 404 without a value |
//! | `PUT /store/{key}/{value}`, `PUT /store/{key}` with the value as body | `{"index","term","replaced"}` once a majority has fsynced it |
//! | `PUT …?expected={value}`, `PUT …?absent` | `{"index","term"}`, but only if the key has that value, or none; otherwise 412 with `{"error","value"}`, the value that it has |
//! | `GET /store` | `{"count","keys"}`, the first 100 keys |
//! | `GET /leader`, `/peers`, `/debug` | the leader, the members, full diagnostics of this node |
//! | `POST /snapshot` | takes a snapshot here |
//! | `POST /transfer_leader/{id}` | transfers leadership to that node |
//! | `POST /campaign` | starts an election here |
//! | `POST /demote/{term}/{leader_id}` | makes this leader of that term step down for `leader_id`; 0 leaves the choice to an election |
//! | `POST /leave` | removes this node from the cluster; it then stops. `?force`: even if the rest is no live majority |
//! | `GET /metrics` | the metrics of this process, as text for Prometheus |
//! | `GET /healthz` | one line of text: 200 while the node runs, 503 with the reason once it has stopped |
//! | `GET /readyz` | one line of text: 200 if this node has caught up and answers a linearizable read, otherwise 503 with the reason |
//! | `POST /leave_joint` | leaves a joint configuration that waits for it |
//!
//! Keys and values are UTF-8 text, percent-encoded in the path. The answer to a failed request is
//! `{"error": "the reason"}`: 400 if the request is malformed, or has a body beside a value in the path, 403
//! if the address or the certificate of the client does not permit it ([`WebAccess`](crate::WebAccess)), 404
//! for an unknown path or a key without a value, 405 for a wrong method, 408 if a body was not complete in
//! time, 409 if the state of the cluster does not allow it, 412 if the key has another value than expected,
//! 413 for a value over the limit, 500 if a snapshot failed, or a node cannot decode an entry, 503 if the
//! request had no effect and may succeed in a moment (with `Retry-After`), 504 if the outcome is unknown.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, Resource, ResponseError, web};
use percent_encoding::percent_decode_str;
use raftify::error::{
    CampaignError, DemoteError, MembershipError, ProposeError, ReadError, SnapshotError, StopReason,
    TransferError,
};
use raftify::status::Term;
use raftify::{LogPosition, NodeId};
use serde_json::{Value, json};

use crate::{Bodies, BodyError, LogEntry, Raft, Reply, observability};

const KEYS_LISTED_MAX: usize = 100;

/// For requests to unknown paths.
const PATHS: &str = "/, /store, /store/KEY, /store/KEY/VALUE, /leader, /peers, /debug, /snapshot, /transfer_leader/ID, \
                     /campaign, /demote/TERM/LEADER_ID, /leave, /leave_joint, /metrics, /healthz, /readyz";

/// The data of the handlers.
pub struct Node {
    /// This node.
    pub raft: Raft,
    /// [`Config::entry_bytes_max`](raftify::Config::entry_bytes_max): longer bodies are rejected before they
    /// are read.
    pub entry_bytes_max: u64,
    /// The bodies that are being read.
    pub bodies: Bodies,
}

/// Adds the whole API to an application whose data holds a [`Node`].
pub fn routes(service: &mut web::ServiceConfig) {
    service
        .service(only("/", "GET", web::get().to(page)))
        .service(only("/store", "GET", web::get().to(list)))
        .service(only("/store/{key}", "GET, PUT", web::get().to(get)).route(web::put().to(put_body)))
        .service(only("/store/{key}/{value:.*}", "PUT", web::put().to(put_path)))
        .service(only("/leader", "GET", web::get().to(leader)))
        .service(only("/peers", "GET", web::get().to(peers)))
        .service(only("/debug", "GET", web::get().to(debug)))
        .service(only("/snapshot", "POST", web::post().to(snapshot)))
        .service(only("/leave", "POST", web::post().to(leave)))
        .service(only("/leave_joint", "POST", web::post().to(leave_joint)))
        .service(only("/transfer_leader/{id}", "POST", web::post().to(transfer_leader)))
        .service(only("/campaign", "POST", web::post().to(campaign)))
        .service(only("/demote/{term}/{leader_id}", "POST", web::post().to(demote)))
        .configure(observability::routes)
        .default_service(web::to(|request: HttpRequest| async move {
            let message = format!("there is nothing at {}, there is {PATHS}", request.uri().path());
            ApiError::new(StatusCode::NOT_FOUND, message)
        }));
}

/// A resource that answers other methods than `allowed` with 405.
pub(crate) fn only(path: &'static str, allowed: &'static str, route: actix_web::Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(move |request: HttpRequest| async move {
        let message = format!("{} is not possible here, use {allowed}", request.method());
        let mut response = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).error_response();
        response.headers_mut().insert(ALLOW, actix_web::http::header::HeaderValue::from_static(allowed));
        response
    }))
}

type Answer = Result<HttpResponse, ApiError>;

fn answer(value: Value) -> Answer {
    Ok(HttpResponse::Ok().json(value))
}

async fn page() -> HttpResponse {
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(include_str!("page.html"))
}

async fn list(node: web::Data<Node>) -> Answer {
    let (count, keys) = node.raft.query(|store| (store.len(), store.first_keys(KEYS_LISTED_MAX))).await?;
    answer(json!({ "count": count, "keys": keys }))
}

async fn get(node: web::Data<Node>, request: HttpRequest) -> Answer {
    let key = key(&request)?;
    let wanted = key.clone();
    match node.raft.query(move |store| store.get(&wanted)).await? {
        Some(value) => answer(json!({ "key": key, "value": &*value })),
        None => Err(ApiError::new(StatusCode::NOT_FOUND, format!("key {key:?} has no value"))),
    }
}

async fn put_path(node: web::Data<Node>, request: HttpRequest, body: web::Payload) -> Answer {
    let value = request.uri().path().splitn(4, '/').nth(3).unwrap_or_default();
    node.bodies.read(body, 0).await.map_err(|error| match error {
        BodyError::TooLarge(_) => {
            ApiError::bad_request("there is a value in the path and one in the body: send one of them")
        }
        error => error.into(),
    })?;
    put(&node, &request, text("value", value)?).await
}

async fn put_body(node: web::Data<Node>, request: HttpRequest, body: web::Payload) -> Answer {
    let limit = usize::try_from(node.entry_bytes_max).unwrap_or(usize::MAX);
    let body = node.bodies.read(body, limit).await.map_err(|error| match error {
        BodyError::TooLarge(limit) => {
            let message = format!("the value has more than {limit} bytes, which is the limit of an entry");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        }
        error => error.into(),
    })?;
    let value = String::from_utf8(body).map_err(|_| ApiError::bad_request("the value is not UTF-8 text"))?;
    put(&node, &request, value).await
}

async fn put(node: &Node, request: &HttpRequest, value: String) -> Answer {
    let key = key(request)?;
    let shown = format!("{key:?}");
    let entry = match condition(request.query_string())? {
        Condition::None => LogEntry::Insert { key, value },
        Condition::Absent => LogEntry::CompareAndSet { key, expected: None, value },
        Condition::Value(expected) => LogEntry::CompareAndSet { key, expected: Some(expected), value },
    };
    match node.raft.propose(entry).await? {
        Reply::Inserted { position: LogPosition { term, index }, replaced } => {
            answer(json!({ "index": index, "term": term, "replaced": replaced }))
        }
        Reply::Swapped { position: LogPosition { term, index } } => {
            answer(json!({ "index": index, "term": term }))
        }
        Reply::Differs { actual: value } | Reply::Value(value) => {
            let has =
                value.as_ref().map_or("no value".to_owned(), |value| format!("another value, {value:?}"));
            let error = format!("key {shown} has {has}, and was not changed");
            Ok(HttpResponse::PreconditionFailed().json(json!({ "error": error, "value": value })))
        }
    }
}

/// The condition of a write.
enum Condition {
    None,
    Absent,
    Value(String),
}

/// An invalid condition is rejected: a write without it could destroy data that it was to protect.
fn condition(query: &str) -> Result<Condition, ApiError> {
    match query.split_once('=') {
        None if query.is_empty() => Ok(Condition::None),
        None if query == "absent" => Ok(Condition::Absent),
        Some(("expected", value)) if !value.contains('&') => {
            Ok(Condition::Value(text("expected value", value)?))
        }
        _ => Err(ApiError::bad_request(format!(
            "?{query} is no condition for a write: use ?expected=VALUE, ?absent, or nothing"
        ))),
    }
}

async fn leader(node: web::Data<Node>) -> Answer {
    let status = node.raft.status().borrow().clone();
    let leader = status.leader_hint().ok_or(ReadError::NoLeader)?;
    answer(json!({ "id": leader.id, "address": leader.address, "term": status.term }))
}

async fn peers(node: web::Data<Node>) -> Answer {
    let status = node.raft.status().borrow().clone();
    let members = status.members.iter();
    answer(
        members
            .map(|member| json!({ "id": member.id, "address": member.address, "role": member.role }))
            .collect(),
    )
}

async fn debug(node: web::Data<Node>) -> Answer {
    answer(json!(node.raft.inspect().await?))
}

async fn snapshot(node: web::Data<Node>) -> Answer {
    let LogPosition { term, index } = node.raft.make_snapshot().await?;
    answer(json!({ "index": index, "term": term }))
}

async fn leave(node: web::Data<Node>, request: HttpRequest) -> Answer {
    match request.query_string() {
        "" => node.raft.leave().await?,
        "force" => node.raft.leave_forced().await?,
        other => {
            let message = format!("?{other} is not possible here: use ?force, or nothing");
            return Err(ApiError::bad_request(message));
        }
    }
    answer(json!({ "left": node.raft.id() }))
}

async fn leave_joint(node: web::Data<Node>) -> Answer {
    node.raft.leave_joint().await?;
    peers(node).await
}

async fn transfer_leader(node: web::Data<Node>, request: HttpRequest) -> Answer {
    let to: NodeId = number("node id", segment(&request, 2))?;
    answer(json!({ "leader_id": node.raft.transfer_leader(to).await? }))
}

async fn campaign(node: web::Data<Node>) -> Answer {
    node.raft.campaign().await?;
    Ok(HttpResponse::Accepted().json(json!({ "campaigning": node.raft.id() })))
}

async fn demote(node: web::Data<Node>, request: HttpRequest) -> Answer {
    let term = Term(number("term", segment(&request, 2))?);
    let successor = NodeId::new(number("leader id", segment(&request, 3))?);
    node.raft.demote(term, successor).await?;
    answer(json!({ "demoted": node.raft.id() }))
}

/// A part of the path as it was sent. The decoded path of actix-web has lost bytes that are not UTF-8.
fn segment(request: &HttpRequest, number: usize) -> &str {
    request.uri().path().split('/').nth(number).unwrap_or_default()
}

fn key(request: &HttpRequest) -> Result<String, ApiError> {
    text("key", segment(request, 2))
}

fn text(what: &str, encoded: &str) -> Result<String, ApiError> {
    let decoded = percent_decode_str(encoded).decode_utf8();
    decoded.map(Into::into).map_err(|_| ApiError::bad_request(format!("the {what} is not UTF-8 text")))
}

fn number<T: std::str::FromStr<Err: fmt::Display>>(what: &str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("{text:?} is not a {what}: {error}")))
}

/// An error in terms of HTTP.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl fmt::Display) -> ApiError {
        ApiError { status, message: message.to_string() }
    }

    fn bad_request(message: impl fmt::Display) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl actix_web::Responder for ApiError {
    type Body = actix_web::body::BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        self.error_response()
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.insert_header((RETRY_AFTER, "1"));
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            response.force_close(); // The rest of the body may arrive at any time.
        }
        response.json(json!({ "error": self.message }))
    }
}

// Maps an error to an answer of the module's table. 503 promises that the request had no effect.

fn of_stopped(reason: &StopReason) -> StatusCode {
    match reason.nothing_happened() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        // The other nodes may still commit requests that a stopping node had accepted.
        false => StatusCode::GATEWAY_TIMEOUT,
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> ApiError {
        let status = match error {
            BodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::Late(_) => StatusCode::REQUEST_TIMEOUT,
            BodyError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            BodyError::Broken(_) => StatusCode::BAD_REQUEST,
        };
        ApiError::new(status, error)
    }
}

impl From<StopReason> for ApiError {
    fn from(error: StopReason) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> ApiError {
        let status = match &error {
            ProposeError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ProposeError::Encode(_) | ProposeError::Undecodable(_) => StatusCode::INTERNAL_SERVER_ERROR,
            error if error.nothing_happened() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::GATEWAY_TIMEOUT,
        };
        ApiError::new(status, error)
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

impl From<MembershipError> for ApiError {
    fn from(error: MembershipError) -> ApiError {
        let status = match &error {
            MembershipError::ChangePending
            | MembershipError::Refused(_)
            | MembershipError::MembershipMoved { .. }
            | MembershipError::WouldLoseMajority { .. }
            | MembershipError::NotCaughtUp { .. }
            | MembershipError::NotReached { .. }
            | MembershipError::TransferFailed(_) => StatusCode::CONFLICT,
            MembershipError::Stopped(reason) => of_stopped(reason),
            MembershipError::Unknown(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        ApiError::new(status, error)
    }
}

impl From<TransferError> for ApiError {
    fn from(error: TransferError) -> ApiError {
        let status = match &error {
            TransferError::NoLeader | TransferError::NotLeader(_) => StatusCode::SERVICE_UNAVAILABLE,
            TransferError::Stopped(reason) => of_stopped(reason),
            TransferError::TimedOut { .. } | TransferError::ConnectionLost(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::CONFLICT,
        };
        ApiError::new(status, error)
    }
}

impl From<CampaignError> for ApiError {
    fn from(error: CampaignError) -> ApiError {
        let status = match error {
            CampaignError::AlreadyLeader | CampaignError::NotAVoter => StatusCode::CONFLICT,
            CampaignError::Stopped(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        ApiError::new(status, error)
    }
}

impl From<DemoteError> for ApiError {
    fn from(error: DemoteError) -> ApiError {
        match error {
            DemoteError::Transfer(error) => error.into(),
            DemoteError::NotLeaderInTerm { .. } => ApiError::new(StatusCode::CONFLICT, error),
            _ => ApiError::new(StatusCode::GATEWAY_TIMEOUT, error),
        }
    }
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> ApiError {
        let status = match error {
            SnapshotError::NothingApplied => StatusCode::CONFLICT,
            SnapshotError::Stopped(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raftify::error::UnknownOutcome;

    use super::*;

    /// The node may execute the request a moment later.
    #[test]
    fn an_unanswered_request_is_not_reported_as_without_effect() {
        let unanswered = || StopReason::NoAnswer(Duration::from_secs(1));
        let answers: [ApiError; 6] = [
            ProposeError::from(unanswered()).into(),
            MembershipError::from(unanswered()).into(),
            TransferError::from(unanswered()).into(),
            CampaignError::from(unanswered()).into(),
            DemoteError::from(unanswered()).into(),
            SnapshotError::from(unanswered()).into(),
        ];
        assert_eq!(answers.map(|answer| answer.status), [StatusCode::GATEWAY_TIMEOUT; 6]);
    }

    #[test]
    fn a_stopping_node_answers_503_to_refused_requests_and_504_to_accepted_ones() {
        let not_taken: [ApiError; 4] = [
            ProposeError::from(StopReason::Stopping).into(),
            ProposeError::from(StopReason::Stopped).into(),
            MembershipError::from(StopReason::Stopping).into(),
            TransferError::from(StopReason::Stopping).into(),
        ];
        assert_eq!(not_taken.map(|answer| answer.status), [StatusCode::SERVICE_UNAVAILABLE; 4]);
        let taken = ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped));
        assert_eq!(ApiError::from(taken).status, StatusCode::GATEWAY_TIMEOUT);
    }
}
