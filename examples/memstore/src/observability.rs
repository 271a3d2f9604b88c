//! What a monitoring system asks a node for: its metrics, whether it is alive, and whether it is ready.

use std::sync::OnceLock;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use raftify::error::StopReason;
use raftify::membership::MemberRole;
use raftify::metrics::{SECONDS_BUCKETS, SIZE_BUCKETS};
use tokio::time::{interval, timeout};

use crate::Raft;
use crate::web::{Node, only};

/// A probe is answered within this time, also by a node that is busy.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the recorder merges its samples. Without that, they would use memory until the next scrape.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The type of the text format of Prometheus.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The recorder of this process.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Records the metrics of all nodes of this process from now on, for `GET /metrics`. Must be called on a
/// tokio runtime, which must run as long as the program, before a node is started: its metrics are not
/// recorded otherwise. Further calls have no effect.
///
/// # Errors
/// If the program has installed another recorder.
pub fn start_metrics() -> Result<(), BuildError> {
    if RECORDER.get().is_some() {
        return Ok(());
    }
    let mut builder = PrometheusBuilder::new();
    for (suffix, buckets) in
        [("_seconds", SECONDS_BUCKETS), ("_entries", SIZE_BUCKETS), ("_messages", SIZE_BUCKETS)]
    {
        builder = builder.set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), buckets)?;
    }
    let recorder = RECORDER.get_or_init({
        let recorder = builder.install_recorder()?;
        || recorder
    });
    tokio::spawn(async move {
        let mut intervals = interval(UPKEEP_INTERVAL);
        loop {
            intervals.tick().await;
            recorder.run_upkeep();
        }
    });
    Ok(())
}

/// Adds the paths of this module to an application whose data holds a [`Node`].
pub(crate) fn routes(service: &mut web::ServiceConfig) {
    service
        .service(only("/metrics", "GET", web::get().to(metrics)))
        .service(only("/healthz", "GET", web::get().to(healthz)))
        .service(only("/readyz", "GET", web::get().to(readyz)));
}

async fn metrics() -> HttpResponse {
    match RECORDER.get() {
        Some(recorder) => HttpResponse::Ok().content_type(TEXT_FORMAT).body(recorder.render()),
        None => line(StatusCode::NOT_FOUND, "this program records no metrics"),
    }
}

async fn healthz(node: web::Data<Node>) -> HttpResponse {
    match is_alive(&node.raft).await {
        Ok(state) => line(StatusCode::OK, state),
        Err(reason) => line(StatusCode::SERVICE_UNAVAILABLE, &reason.to_string()),
    }
}

async fn readyz(node: web::Data<Node>) -> HttpResponse {
    match is_ready(&node.raft).await {
        Ok(()) => line(StatusCode::OK, "ready"),
        Err(reason) => line(StatusCode::SERVICE_UNAVAILABLE, &reason),
    }
}

/// A line of text: a reason is one line, whatever it contains.
fn line(status: StatusCode, text: &str) -> HttpResponse {
    let text = text.replace(['\n', '\r'], " ");
    HttpResponse::build(status).content_type("text/plain; charset=utf-8").body(format!("{text}\n"))
}

/// Whether the node runs. A node that is too busy to answer is alive: a restart would not help it.
async fn is_alive(raft: &Raft) -> Result<&'static str, StopReason> {
    match timeout(PROBE_TIMEOUT, raft.inspect()).await {
        Ok(Ok(_)) => Ok("alive"),
        Ok(Err(StopReason::NoAnswer(_))) | Err(_) => Ok("alive, but too busy to answer at once"),
        Ok(Err(reason)) => Err(reason),
    }
}

/// Whether the node can serve: it is a member, knows a leader, and answers a linearizable read from its own
/// state machine, which has caught up for that.
async fn is_ready(raft: &Raft) -> Result<(), String> {
    let status = raft.status().borrow().clone();
    let Some(own) = status.members.get(raft.id()) else {
        return Err("this node is not a member of a cluster yet".to_owned());
    };
    if own.role == MemberRole::Joining {
        return Err("this node is joining: it has not caught up yet".to_owned());
    }
    match timeout(PROBE_TIMEOUT, raft.without_waiting().query(|_| ())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("a read was not answered within {PROBE_TIMEOUT:?}")),
    }
}
