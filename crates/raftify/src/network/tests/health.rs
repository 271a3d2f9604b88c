//! The health service of gRPC.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;

/// The whole server, and the service of the nodes.
const SERVICES: [&str; 2] = ["", "raftify.v1.RaftService"];

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_in_service_until_it_gets_a_stop_request() {
    let mut node = TestNode::start(1);
    let channel = connect_lazily(&endpoint(&node.address, Duration::from_secs(5)).unwrap());
    let mut client = HealthClient::new(channel);
    for service in SERVICES {
        let request = || HealthCheckRequest { service: service.to_owned() };
        let mut statuses = client.watch(request()).await.unwrap().into_inner();
        while within("a status", statuses.next()).await.unwrap().unwrap().status() != ServingStatus::Serving {
        }
        assert_eq!(client.check(request()).await.unwrap().into_inner().status(), ServingStatus::Serving);
    }
    let unknown = HealthCheckRequest { service: "raftify.v1.Other".to_owned() };
    assert_eq!(client.check(unknown).await.unwrap_err().code(), Code::NotFound);

    let mut watched = Vec::new();
    for service in SERVICES {
        let request = HealthCheckRequest { service: service.to_owned() };
        watched.push(client.watch(request).await.unwrap().into_inner());
    }
    node.stops.send_replace(true);
    for statuses in &mut watched {
        while within("a status", statuses.next()).await.unwrap().unwrap().status()
            != ServingStatus::NotServing
        {}
    }
    // The server still runs, for the requests of a node that is about to stop.
    let request = HealthCheckRequest { service: SERVICES[1].to_owned() };
    let status = client.check(request).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::NotServing);

    drop(node.stop.take());
    for statuses in &mut watched {
        while let Some(Ok(_)) = within("a status", statuses.next()).await {}
    }
    within("the end", &mut node.serving).await.unwrap().unwrap();
}
