//! Metrics and probes over real sockets; and that documents, alert rules and dashboard name the metrics that
//! exist.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use memstore::web::{Node, routes};
use memstore::{Bodies, HashStore, LogEntry, Raft, start_metrics};
use raftify::storage::WalSettings;
use raftify::{Config, Member, NodeId, WalStorage};
use raftify_free_address::free_address;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A node with its web server on a real socket.
struct TestNode {
    raft: Raft,
    running: JoinHandle<Result<(), raftify::error::RunError>>,
    web: SocketAddr,
    server: ServerHandle,
    _directory: TempDir,
}

impl TestNode {
    /// The node at `place` of a cluster of these nodes. Each test has its own ids: all tests of this process
    /// share one recorder.
    async fn start(place: usize, cluster: &[(u64, String)]) -> TestNode {
        start_metrics().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let storage =
            WalStorage::open_with(directory.path(), WalSettings { segment_bytes: 1 << 20 }).unwrap();
        let members: Vec<Member> = cluster
            .iter()
            .map(|(id, address)| Member::voter(NodeId::new(*id).unwrap(), address.clone()))
            .collect();
        let Member { id, address, .. } = members[place].clone();
        let raft = Raft::bootstrap(id, address, storage, HashStore::default(), Config::default()).unwrap();
        raft.add_peers(members).await.unwrap();
        let running = tokio::spawn(raft.clone().run());
        let data = web::Data::new(Node {
            raft: raft.clone(),
            entry_bytes_max: Config::default().entry_bytes_max,
            bodies: Bodies::default(),
        });
        let server = HttpServer::new(move || App::new().app_data(data.clone()).configure(routes))
            .disable_signals()
            .workers(1)
            .bind("127.0.0.1:0")
            .unwrap();
        let web = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        TestNode { raft, running, web, server: handle, _directory: directory }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = async {
            let mut stream = TcpStream::connect(self.web).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = timeout(Duration::from_secs(30), answer).await.expect("each probe is answered soon");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Asks until the answer is as expected; returns it.
    async fn wait_for(&self, path: &str, is_expected: impl Fn(u16, &str) -> bool) -> String {
        let mut last = (0, String::new());
        let expected = async {
            loop {
                last = self.get(path).await;
                if is_expected(last.0, &last.1) {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let came = timeout(Duration::from_secs(60), expected).await;
        assert!(came.is_ok(), "{path} still answers {last:?}");
        last.1
    }

    async fn stop(self) {
        self.raft.quit().await;
        self.running.await.unwrap().unwrap();
        self.server.stop(true).await;
    }
}

/// What a scrape holds: the type of each metric, and the labels of each of its series.
#[derive(Default)]
struct Scrape {
    types: BTreeMap<String, String>,
    series: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads the text format of Prometheus, and accepts no line that it does not know.
fn parse(text: &str) -> Scrape {
    let mut scrape = Scrape::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(help.split_once(' ').is_some_and(|(_, text)| !text.is_empty()), "{line}");
            continue;
        }
        if let Some(of_type) = line.strip_prefix("# TYPE ") {
            let (name, of_type) = of_type.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&of_type), "{line}");
            let known = scrape.types.insert(name.to_owned(), of_type.to_owned());
            assert!(known.is_none(), "a second type: {line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
        let label = |label: &str| {
            let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            (name.to_owned(), value.strip_suffix('"').unwrap().to_owned())
        };
        let labels = labels.split(',').filter(|label| !label.is_empty()).map(label).collect();
        scrape.series.push((name.to_owned(), labels, value));
    }
    scrape
}

impl Scrape {
    fn value(&self, name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
        let has = |labels: &BTreeMap<String, String>| {
            wanted.iter().all(|(name, value)| labels.get(*name).is_some_and(|has| has == value))
        };
        self.series.iter().find(|(found, labels, _)| found == name && has(labels)).map(|(.., value)| *value)
    }
}

fn repository_file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of the table in `docs/metrics.md`, with type and labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = repository_file("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `raftify_"));
    let table: BTreeMap<_, _> = rows
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 6, "{line}");
            let labels = cells[3].split(", ").filter(|label| !label.is_empty());
            let labels = labels.map(|label| label.trim_matches('`').to_owned());
            let labels = labels.chain(["node".to_owned()]).collect();
            (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels))
        })
        .collect();
    assert!(table.len() > 30, "the table was not found");
    table
}

/// The metrics that a query names: parts of a histogram are its name.
fn named_in<'a>(text: &'a str, table: &BTreeMap<String, (String, BTreeSet<String>)>) -> BTreeSet<&'a str> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    let metric = |word: &'a str| {
        let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| word.strip_suffix(part));
        std::iter::once(word).chain(parts).find(|name| table.contains_key(*name)).unwrap_or(word)
    };
    words.filter(|word| word.starts_with("raftify_")).map(metric).collect()
}

#[actix_web::test]
async fn the_exported_metrics_are_those_of_the_table() {
    let cluster = [(1, free_address()), (2, free_address())];
    let nodes = [TestNode::start(0, &cluster).await, TestNode::start(1, &cluster).await];
    for node in &nodes {
        node.raft.wait_for_leader().await.unwrap();
        let entry = LogEntry::Insert { key: "a".to_owned(), value: "1".to_owned() };
        node.raft.propose(entry).await.unwrap();
        node.raft.query(|store| store.len()).await.unwrap();
        node.raft.make_snapshot().await.unwrap();
    }

    // Some are recorded a little later: at the next tick, or with the next batch.
    let table = documented();
    let is_complete = |_, text: &str| {
        let scrape = parse(text);
        table.keys().all(|name| scrape.types.contains_key(name))
            && ["1", "2"].iter().all(|node| {
                let positive = |name| scrape.value(name, &[("node", node)]).is_some_and(|value| value > 0.0);
                positive("raftify_leader_id")
                    && positive("raftify_snapshot_index")
                    && positive("raftify_disk_free_bytes")
                    && positive("raftify_peer_received_bytes_total")
            })
    };
    let text = nodes[0].wait_for("/metrics", is_complete).await;
    let scrape = parse(&text);
    for (name, of_type) in scrape.types.iter().filter(|(name, _)| name.starts_with("raftify_")) {
        let Some((documented, _)) = table.get(name) else { panic!("{name} is not in docs/metrics.md") };
        assert_eq!(of_type, documented, "the type of {name} in docs/metrics.md");
    }
    for (series, labels, _) in scrape.series.iter().filter(|(name, ..)| name.starts_with("raftify_")) {
        let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| series.strip_suffix(part));
        let mut names = std::iter::once(&**series).chain(parts);
        let name = names.find(|name| scrape.types.contains_key(*name)).unwrap_or_else(|| panic!("{series}"));
        let found: BTreeSet<String> = labels.keys().filter(|label| *label != "le").cloned().collect();
        assert_eq!(found, table[name].1, "the labels of {series} in docs/metrics.md");
    }

    for node in ["1", "2"] {
        let of_node = [("node", node)];
        let value = |name| scrape.value(name, &of_node).unwrap();
        let with = |name, label| scrape.value(name, &[("node", node), label]).unwrap();
        assert_eq!(value("raftify_running"), 1.0);
        assert_eq!(with("raftify_members", ("role", "voter")), 2.0);
        assert_eq!(with("raftify_proposals_total", ("result", "applied")), 1.0);
        assert!(with("raftify_reads_total", ("result", "confirmed")) >= 1.0);
        assert_eq!(value("raftify_propose_seconds_count"), 1.0);
        assert_eq!(value("raftify_query_seconds_count"), 1.0);
        assert!(value("raftify_fsync_seconds_count") >= 1.0 && value("raftify_apply_seconds_count") >= 1.0);
        assert!(with("raftify_fsync_seconds_bucket", ("le", "+Inf")) >= 1.0);
        assert!(value("raftify_commit_index") >= 2.0 && value("raftify_applied_index") >= 2.0);
        let taken = [("node", node), ("operation", "taken"), ("result", "succeeded")];
        assert_eq!(scrape.value("raftify_snapshots_total", &taken), Some(1.0));
        assert!(value("raftify_disk_size_bytes") >= value("raftify_disk_free_bytes"));
    }
    let leads = |node| scrape.value("raftify_role", &[("node", node), ("role", "leader")]).unwrap();
    assert_eq!(leads("1") + leads("2"), 1.0);

    let [first, second] = nodes;
    second.stop().await;
    first
        .wait_for("/metrics", |_, text| parse(text).value("raftify_running", &[("node", "2")]) == Some(0.0))
        .await;
    first.stop().await;
}

#[actix_web::test]
async fn a_node_is_ready_only_while_it_can_answer_a_linearizable_read() {
    let cluster = [(11, free_address()), (12, free_address())];
    let alone = TestNode::start(0, &cluster).await;
    let (status, reason) = alone.get("/readyz").await;
    assert_eq!((status, reason.lines().count()), (503, 1), "{reason}");
    let no_leader = |status, reason: &str| status == 503 && reason.contains("no leader is known");
    assert_eq!(alone.get("/healthz").await, (200, "alive\n".to_owned()));

    let other = TestNode::start(1, &cluster).await;
    for node in [&alone, &other] {
        let answer = node.wait_for("/readyz", |status, _| status == 200).await;
        assert_eq!(answer, "ready\n");
    }
    other.stop().await;
    alone.wait_for("/readyz", no_leader).await;
    assert_eq!(alone.get("/healthz").await, (200, "alive\n".to_owned()));

    alone.raft.quit().await;
    assert_eq!(alone.get("/healthz").await, (503, "the node has stopped\n".to_owned()));
    assert_eq!(alone.get("/readyz").await.0, 503);
    alone.stop().await;
}

#[test]
fn alert_rules_and_dashboard_name_only_metrics_of_the_table() {
    let table = documented();
    for path in ["ops/prometheus/alerts.yml", "ops/prometheus/alerts_test.yml", "ops/grafana/raftify.json"] {
        let text = repository_file(path);
        let named = named_in(&text, &table);
        assert!(named.len() > 5, "{path} names only {named:?}");
        for name in named {
            assert!(table.contains_key(name), "{path} names {name}, which is not in docs/metrics.md");
        }
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&repository_file("ops/grafana/raftify.json")).unwrap();
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 10));
}
