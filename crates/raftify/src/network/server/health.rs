//! The standard health service of gRPC (`grpc.health.v1.Health`) for this server.

use tokio::sync::watch;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

/// The method that needs no certificate: probes of load balancers and of container runtimes have none. It says
/// whether the node is in service, which a refused connection says as well, and ends at once. `Watch` holds a
/// stream, and so needs a role.
pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The status of the server as a whole.
const WHOLE: &str = "";

/// Reports the health of the service `S`, and of the whole server.
pub(super) struct HealthReport {
    reporter: HealthReporter,
    name: &'static str,
}

impl HealthReport {
    /// The report for the service `S`, and the service that answers questions about it. Nothing is in service
    /// at first.
    pub(super) async fn new<S: NamedService>() -> (HealthReport, HealthServer<impl Health>) {
        let (reporter, service) = health_reporter();
        let report = HealthReport { reporter, name: S::NAME };
        report.set(ServingStatus::NotServing).await;
        (report, service)
    }

    async fn set(&self, status: ServingStatus) {
        for name in [WHOLE, self.name] {
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// Reports the server as in service until `stops` has a stop request. Never resolves.
    pub(super) async fn follow(&self, mut stops: watch::Receiver<bool>) -> std::convert::Infallible {
        if !*stops.borrow_and_update() {
            self.set(ServingStatus::Serving).await;
            // If the sender is gone, the server is about to end.
            let _ = stops.wait_for(|stops| *stops).await;
            self.set(ServingStatus::NotServing).await;
        }
        std::future::pending().await
    }

    /// Ends the streams of callers that watch the status: the server waits for open streams when it stops.
    pub(super) async fn end(mut self) {
        for name in [WHOLE, self.name] {
            self.reporter.clear_service_status(name).await;
        }
    }
}
