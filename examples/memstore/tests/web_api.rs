//! The web API on a real node: every answer, by its status code and its JSON.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::http::header::{ALLOW, RETRY_AFTER};
use actix_web::http::{Method, StatusCode};
use actix_web::{App, HttpServer, test, web};
use memstore::web::{Node, routes};
use memstore::{Bodies, BodyLimits, HashStore, LogEntry, Raft, Reply};
use raftify::storage::WalSettings;
use raftify::{Config, Member, NodeId, WalStorage};
use raftify_free_address::free_address;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const ENTRY_BYTES_MAX: u64 = 64 * 1024;

/// An answer of the API.
struct Answer {
    status: StatusCode,
    retry_after: Option<String>,
    allow: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().expect("every failure has an `error`").to_owned()
    }
}

type Asking = Pin<Box<dyn Future<Output = Answer>>>;
type Ask = Box<dyn Fn(Method, &str, &[u8]) -> Asking>;

/// A node with its API; `ask` needs no socket.
struct TestNode {
    raft: Raft,
    running: JoinHandle<Result<(), raftify::error::RunError>>,
    ask: Ask,
    _directory: TempDir,
}

impl TestNode {
    /// A cluster of one.
    async fn alone() -> TestNode {
        let node = TestNode::start(0).await;
        node.raft.wait_for_leader().await.unwrap();
        node
    }

    /// A voter of a cluster whose `absent` other voters do not exist.
    async fn start(absent: u64) -> TestNode {
        TestNode::with(absent, Config::default()).await
    }

    async fn with(absent: u64, config: Config) -> TestNode {
        let directory = tempfile::tempdir().unwrap();
        // Small files, because they are created quickly, and not too many for a small disk.
        let storage =
            WalStorage::open_with(directory.path(), WalSettings { segment_bytes: 1 << 20 }).unwrap();
        let config = Config { entry_bytes_max: ENTRY_BYTES_MAX, ..config };
        let addresses: Vec<String> = (0..=absent).map(|_| free_address()).collect();
        let raft =
            Raft::bootstrap(NodeId::FIRST, &addresses[0], storage, HashStore::default(), config).unwrap();
        let members =
            (1..).zip(addresses).map(|(id, address)| Member::voter(NodeId::new(id).unwrap(), address));
        raft.add_peers(members.collect::<Vec<_>>()).await.unwrap();
        let running = tokio::spawn(raft.clone().run());

        let node = web::Data::new(Node {
            raft: raft.clone(),
            entry_bytes_max: ENTRY_BYTES_MAX,
            bodies: Bodies::default(),
        });
        let service = std::rc::Rc::new(test::init_service(App::new().app_data(node).configure(routes)).await);
        let ask: Ask = Box::new(move |method, path, body| {
            let request = test::TestRequest::with_uri(path).method(method).set_payload(body.to_vec());
            let service = std::rc::Rc::clone(&service);
            Box::pin(async move {
                let response = test::call_service(&*service, request.to_request()).await;
                let header =
                    |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
                Answer {
                    status: response.status(),
                    retry_after: header(RETRY_AFTER),
                    allow: header(ALLOW),
                    body: test::read_body(response).await.to_vec(),
                }
            })
        });
        TestNode { raft, running, ask, _directory: directory }
    }

    async fn get(&self, path: &str) -> Answer {
        (self.ask)(Method::GET, path, b"").await
    }

    async fn put(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        (self.ask)(Method::PUT, path, body.as_ref()).await
    }

    async fn post(&self, path: &str) -> Answer {
        (self.ask)(Method::POST, path, b"").await
    }

    async fn stop(self) {
        self.raft.quit().await;
        self.running.await.unwrap().unwrap();
    }
}

#[actix_web::test]
async fn values_are_put_by_path_and_by_body_and_read() {
    let node = TestNode::alone().await;
    let put = node.put("/store/a/1", "").await;
    assert_eq!(put.status, StatusCode::OK);
    assert_eq!(put.json()["replaced"], json!(false));
    assert_eq!(node.get("/store/a").await.json(), json!({ "key": "a", "value": "1" }));

    assert_eq!(node.put("/store/a", "two\nlines").await.json()["replaced"], json!(true));
    assert_eq!(node.get("/store/a").await.json(), json!({ "key": "a", "value": "two\nlines" }));

    let listed = node.get("/store").await;
    assert_eq!(listed.json(), json!({ "count": 1, "keys": ["a"] }));
    node.stop().await;
}

#[actix_web::test]
async fn a_write_with_a_condition_happens_only_if_the_key_has_the_expected_value() {
    let node = TestNode::alone().await;
    let refused = node.put("/store/a/1?expected=0", "").await;
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    let error = "key \"a\" has no value, and was not changed";
    assert_eq!(refused.json(), json!({ "error": error, "value": null }));
    assert_eq!(node.get("/store/a").await.status, StatusCode::NOT_FOUND);

    assert_eq!(node.put("/store/a/x%20%26%3D?absent", "").await.status, StatusCode::OK);
    let refused = node.put("/store/a?absent", "2").await;
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    let error = "key \"a\" has another value, \"x &=\", and was not changed";
    assert_eq!(refused.json(), json!({ "error": error, "value": "x &=" }));

    let swapped = node.put("/store/a?expected=x%20%26%3D", "").await;
    assert_eq!(swapped.status, StatusCode::OK);
    assert!(swapped.json()["index"].as_u64() > Some(0));
    // The empty text is a valid value.
    assert_eq!(node.put("/store/a/2?absent", "").await.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(node.put("/store/a/2?expected=", "").await.status, StatusCode::OK);
    assert_eq!(node.get("/store/a").await.json()["value"], json!("2"));
    node.stop().await;
}

#[actix_web::test]
async fn an_invalid_condition_is_400_and_writes_nothing() {
    let node = TestNode::alone().await;
    for query in ["expcted=1", "absent=1", "expected", "expected=1&absent", "expected=%FF"] {
        let answer = node.put(&format!("/store/a/1?{query}"), "").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(answer.error().contains(if query.contains("%FF") { "not UTF-8" } else { query }));
    }
    assert_eq!(node.get("/store/a").await.status, StatusCode::NOT_FOUND);
    node.stop().await;
}

#[actix_web::test]
async fn a_remote_client_writes_compares_and_reads_over_grpc() {
    let node = TestNode::alone().await;
    let address = node.get("/leader").await.json()["address"].as_str().unwrap().to_owned();
    let client = raftify::RaftClient::<LogEntry, HashStore>::new([address]).unwrap();
    let key = || "a".to_owned();
    let read = || async { client.propose(&LogEntry::Read { key: key() }).await.unwrap() };
    let swap = |expected: Option<&str>, value: &str| {
        let (expected, value) = (expected.map(str::to_owned), value.to_owned());
        let entry = LogEntry::CompareAndSet { key: key(), expected, value };
        let client = &client;
        async move { client.propose(&entry).await.unwrap() }
    };
    let swap = &swap;
    assert_eq!(read().await, Reply::Value(None));
    assert_eq!(swap(Some("0"), "1").await, Reply::Differs { actual: None });
    assert!(matches!(swap(None, "1").await, Reply::Swapped { .. }));
    assert_eq!(swap(None, "2").await, Reply::Differs { actual: Some("1".into()) });
    assert_eq!(read().await, Reply::Value(Some("1".into())));
    assert_eq!(node.get("/store/a").await.json()["value"], json!("1"));
    node.stop().await;
}

#[actix_web::test]
async fn keys_and_values_are_percent_encoded_text() {
    let node = TestNode::alone().await;
    for (path, key, value) in [
        ("/store/%C3%A4%20%2F%25/%E2%82%AC", "ä /%", "€"),
        ("/store/plus+plus/a%2Fb/c", "plus+plus", "a/b/c"),
        ("/store/no%0Aline/", "no\nline", ""),
        ("/store/%00/%00", "\0", "\0"),
    ] {
        assert_eq!(node.put(path, "").await.status, StatusCode::OK, "{path}");
        let key_path: String = path.split('/').take(3).collect::<Vec<_>>().join("/");
        assert_eq!(node.get(&key_path).await.json(), json!({ "key": key, "value": value }));
    }
    for (path, body) in [("/store/%FF/1", ""), ("/store/a/%C3", ""), ("/store/%FF", "1")] {
        let answer = node.put(path, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(answer.error().contains("not UTF-8"), "{}", answer.error());
    }
    assert_eq!(node.put("/store/a", b"\xff\xfe").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(node.get("/store/%FF").await.status, StatusCode::BAD_REQUEST);
    node.stop().await;
}

#[actix_web::test]
async fn an_unknown_path_is_404_and_a_wrong_method_405() {
    let node = TestNode::alone().await;
    let missing = node.get("/store/nothing").await;
    assert_eq!(
        (missing.status, missing.error().as_str()),
        (StatusCode::NOT_FOUND, "key \"nothing\" has no value")
    );
    for path in ["/nowhere", "/store/", "/store//value", "/demote/1", "/transfer_leader"] {
        let answer = node.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        let error = answer.error();
        assert!(error.contains(path) && error.contains("/store/KEY/VALUE"), "{error}");
    }
    let without_key = node.put("/store//x", "").await;
    assert_eq!(without_key.status, StatusCode::NOT_FOUND);
    assert!(without_key.error().starts_with("there is nothing at /store//x, "), "{}", without_key.error());
    for (path, allow) in
        [("/leave", "POST"), ("/snapshot", "POST"), ("/store/a/1", "PUT"), ("/campaign", "POST")]
    {
        let answer = node.get(path).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(answer.allow.as_deref(), Some(allow));
        assert_eq!(answer.error(), format!("GET is not possible here, use {allow}"));
    }
    assert_eq!(node.post("/store/a").await.allow.as_deref(), Some("GET, PUT"));
    node.stop().await;
}

#[actix_web::test]
async fn a_value_up_to_the_limit_is_stored_and_one_over_it_is_413() {
    let node = TestNode::alone().await;
    let limit = ENTRY_BYTES_MAX as usize;
    let fitting = "x".repeat(limit - 64);
    assert_eq!(node.put("/store/big", &fitting).await.status, StatusCode::OK);
    assert_eq!(node.get("/store/big").await.json()["value"], json!(fitting));

    // The first fits as a body, but not with its key as an entry; the second is rejected before it is read
    // completely.
    for bytes in [limit, 10 * limit] {
        let answer = node.put("/store/big", "y".repeat(bytes)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(answer.error().contains(&limit.to_string()), "{}", answer.error());
    }
    assert_eq!(node.get("/store/big").await.json()["value"], json!(fitting));
    node.stop().await;
}

#[actix_web::test]
async fn a_body_beside_a_value_in_the_path_is_400_and_writes_nothing() {
    let node = TestNode::alone().await;
    let answer = node.put("/store/a/1", "2").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().contains("in the path and one in the body"), "{}", answer.error());
    assert_eq!(node.get("/store/a").await.status, StatusCode::NOT_FOUND);
    node.stop().await;
}

/// All these requests are answered, with bounded memory, and other requests are served afterwards.
#[actix_web::test]
async fn bodies_that_never_end_time_out_and_use_bounded_memory() {
    const HELD_BYTES_MAX: u64 = 4 * ENTRY_BYTES_MAX;
    let node = TestNode::alone().await;
    let limits =
        BodyLimits { timeout: Duration::from_millis(500), count_max: 50, held_bytes_max: HELD_BYTES_MAX };
    let data = web::Data::new(Node {
        raft: node.raft.clone(),
        entry_bytes_max: ENTRY_BYTES_MAX,
        bodies: Bodies::new(limits),
    });
    let served = data.clone();
    let server = HttpServer::new(move || App::new().app_data(served.clone()).configure(routes))
        .workers(1)
        .disable_signals()
        .shutdown_timeout(0)
        .bind("127.0.0.1:0")
        .unwrap();
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    let serving = tokio::spawn(server);

    let unending = |number: usize| {
        let data = data.clone();
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Half of them have a value in the path.
            let path = ["/store/a", "/store/a/1"][number % 2];
            let head =
                format!("PUT {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", ENTRY_BYTES_MAX - 1);
            stream.write_all(head.as_bytes()).await.unwrap();
            if number.is_multiple_of(2) {
                // The server may have answered and closed already.
                let _ = stream.write_all(&[b'x'; ENTRY_BYTES_MAX as usize / 2]).await;
            }
            assert!(data.bodies.held().1 <= HELD_BYTES_MAX);
            let mut answer = vec![0; 12];
            stream.read_exact(&mut answer).await.map(|_| String::from_utf8(answer).unwrap())
        }
    };
    let answers: Vec<_> = (0..100).map(|number| tokio::spawn(unending(number))).collect();
    let (mut late, mut busy) = (0, 0);
    for answer in answers {
        match answer.await.unwrap().as_deref() {
            Ok("HTTP/1.1 408") => late += 1,
            Ok("HTTP/1.1 503") => busy += 1,
            // Further data of the client made the system drop the answer.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(late > 0 && busy > 0, "{late} were late, {busy} were refused");
    assert_eq!(data.bodies.held(), (0, 0));

    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "PUT /store/a HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nconnection: close\r\n\r\nyes";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(node.get("/store/a").await.json()["value"], json!("yes"));

    handle.stop(false).await;
    serving.await.unwrap().unwrap();
    node.stop().await;
}

#[actix_web::test]
async fn an_unparsable_request_is_400() {
    let node = TestNode::alone().await;
    for path in [
        "/transfer_leader/two",
        "/transfer_leader/0",
        "/transfer_leader/-1",
        "/transfer_leader/99999999999999999999",
        "/demote/x/0",
        "/demote/1/x",
    ] {
        let answer = node.post(path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}: {}", answer.error());
    }
    node.stop().await;
}

#[actix_web::test]
async fn the_node_reports_its_leader_its_peers_and_its_state() {
    let node = TestNode::alone().await;
    let leader = node.get("/leader").await.json();
    assert_eq!(leader["id"], json!(1));
    let address = leader["address"].clone();
    assert_eq!(node.get("/peers").await.json(), json!([{ "id": 1, "address": address, "role": "voter" }]));
    let debug = node.get("/debug").await.json();
    assert_eq!(debug["status"]["role"], json!("leader"));
    assert_eq!(debug["status"]["members"]["members"]["1"]["address"], address);
    assert!(String::from_utf8(node.get("/").await.body).unwrap().contains("<title>memstore</title>"));
    node.stop().await;
}

#[actix_web::test]
async fn a_snapshot_is_taken_on_request() {
    let node = TestNode::alone().await;
    let put = node.put("/store/a/1", "").await.json();
    let taken = node.post("/snapshot").await;
    assert_eq!(taken.status, StatusCode::OK);
    assert!(taken.json()["index"].as_u64() >= put["index"].as_u64());
    assert!(!node.get("/debug").await.json()["status"]["snapshot"].is_null());
    node.stop().await;
}

#[actix_web::test]
async fn a_request_in_the_wrong_state_of_the_cluster_is_409() {
    let node = TestNode::alone().await;
    let term = node.get("/leader").await.json()["term"].as_u64().unwrap();
    for path in [
        "/campaign".to_owned(),          // it leads already
        "/leave_joint".to_owned(),       // nothing to leave
        "/leave".to_owned(),             // the last voter
        "/transfer_leader/7".to_owned(), // no such voter
        format!("/demote/{}/0", term + 1),
    ] {
        let answer = node.post(&path).await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{path}: {}", answer.error());
    }
    node.stop().await;
}

#[actix_web::test]
async fn without_a_leader_every_request_is_503_with_reason_and_retry_after() {
    // The time for which each request waits for a leader: the shortest that is allowed, an election timeout.
    let short = Duration::from_millis(500);
    let config = Config {
        propose_timeout: short,
        read_timeout: short,
        membership_timeout: short,
        ..Config::default()
    };
    let node = TestNode::with(2, config).await;
    for answer in [
        node.put("/store/a/1", "").await,
        node.put("/store/a", "1").await,
        node.get("/store/a").await,
        node.get("/store").await,
        node.get("/leader").await,
        node.post("/transfer_leader/2").await,
        node.post("/leave").await,
    ] {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.error());
        assert_eq!(answer.retry_after.as_deref(), Some("1"));
        assert!(answer.error().contains("no leader is known"), "{}", answer.error());
    }
    // The node answers from its local knowledge even then.
    assert_eq!(node.get("/peers").await.json().as_array().unwrap().len(), 0, "the cluster has not begun");
    assert_eq!(node.get("/debug").await.json()["status"]["leader_id"], Value::Null);
    node.stop().await;
}

#[actix_web::test]
async fn a_stopped_node_answers_503() {
    let node = TestNode::alone().await;
    node.raft.quit().await;
    assert_eq!(node.get("/store/a").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(node.get("/debug").await.status, StatusCode::SERVICE_UNAVAILABLE);
    node.running.await.unwrap().unwrap();
}
