//! The program on live clusters: what it shows, what it changes, and what it refuses with which exit code.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use expect_test::{Expect, expect};
use futures_util::future::join_all;
use raftify::membership::MemberRole;
use raftify::start::JoinOptions;
use raftify::storage::MemoryStorage;
use raftify::{
    BoxError, ClusterJoinTicket, Config, LogPosition, Member, NodeId, Raft, Snapshot, StateMachine,
    WalStorage,
};
use raftify_free_address::free_address;
use serde_json::Value;
use tokio::time::{Instant, sleep};

struct Sum(u64);

impl StateMachine for Sum {
    type LogEntry = u64;
    type Reply = u64;

    fn apply(&mut self, _: LogPosition, add: u64) -> Result<u64, BoxError> {
        self.0 += add;
        Ok(self.0)
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(self.0))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        self.0 = Snapshot::read_value(reader)?;
        Ok(())
    }
}

type Node = Raft<u64, Sum>;

fn id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

/// No condition takes this long on any working machine.
const DEADLINE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Nodes 1 to `count` of one cluster, which all know the leader, with their addresses.
async fn cluster(count: u64) -> (Vec<Node>, Vec<String>) {
    let addresses: Vec<String> = (0..count).map(|_| free_address()).collect();
    let members: Vec<Member> =
        (1..).zip(&addresses).map(|(number, address)| Member::voter(id(number), address)).collect();
    let starting = addresses.iter().map(|address| {
        Raft::begin_with(members.clone(), address, MemoryStorage::default(), Sum(0), Config::default())
    });
    let nodes: Vec<Node> = join_all(starting).await.into_iter().map(Result::unwrap).collect();
    until("a write is accepted and all follow", async || {
        nodes[0].propose(1).await.is_ok() && nodes.iter().all(|node| node.leader_id().is_some())
    })
    .await;
    (nodes, addresses)
}

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raftify-cli"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

/// Other tasks of this thread wait meanwhile, but those of the nodes do not.
fn cli(arguments: &str) -> Output {
    tokio::task::block_in_place(|| command(arguments).output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn done(arguments: &str) -> String {
    let output = cli(arguments);
    assert!(output.status.success(), "{arguments}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Fails with this exit code, and one line that has all of these parts.
#[track_caller]
fn refused(arguments: &str, exit: i32, parts: &[&str]) {
    let output = cli(arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{arguments}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// Tries until it is done: right after an election, the leader may not have heard from all voters yet.
async fn done_soon(arguments: &str) -> String {
    let mut shown = None;
    until(arguments, async || {
        let output = cli(arguments);
        shown = output.status.success().then(|| text(&output.stdout));
        shown.is_some()
    })
    .await;
    shown.unwrap()
}

fn json(arguments: &str) -> Value {
    serde_json::from_str(&done(arguments)).unwrap()
}

/// The value with each number, text and truth value replaced by its type, and each list by its first item.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "text".into(),
        Value::Array(items) => items.first().map(shape).into_iter().collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
    }
}

fn check_shape(value: &Value, expect: Expect) {
    expect.assert_eq(&format!("{:#}\n", shape(value)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_begins_with_whether_the_cluster_works_and_its_exit_code_says_so_too() {
    let (mut nodes, addresses) = cluster(3).await;
    let one = &addresses[0];
    until("the leader has heard from all", async || cli(&format!("cluster status {one}")).status.success())
        .await;
    let shown = done(&format!("cluster status {one}"));
    assert!(shown.starts_with("3 of 3 up, writes accepted\n"), "{shown}");
    for part in
        addresses.iter().map(String::as_str).chain(["leader", "follower", "last heard", "disk", "lag"])
    {
        assert!(shown.contains(part), "{part} is not in: {shown}");
    }

    let place = nodes.iter().position(|node| !node.is_leader()).unwrap();
    let down = nodes.remove(place);
    let down_at = addresses[place].clone();
    let down_id = down.id();
    down.quit().await;
    let asked =
        addresses.iter().filter(|address| **address != down_at).cloned().collect::<Vec<_>>().join(" ");
    until("the others go on", async || nodes[0].propose(1).await.is_ok()).await;
    let output = cli(&format!("cluster status {asked}"));
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{shown}");
    assert!(shown.starts_with("2 of 3 up, writes accepted\n"), "{shown}");
    assert!(
        shown.contains(&format!("node {down_id} at {down_at} did not answer: it cannot be connected to")),
        "{shown}"
    );
    // A dead address among the given ones does no harm.
    assert_eq!(cli(&format!("cluster status {down_at} {asked}")).status.code(), Some(5));

    nodes.remove(0).quit().await;
    let output = cli(&format!("cluster status {asked}"));
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(6), "{shown}");
    assert!(
        shown.starts_with("1 of 3 up, no writes accepted: 1 of 3 voters answer, and 2 are needed"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_json_of_the_commands_keeps_its_shape() {
    let (nodes, addresses) = cluster(1).await;
    nodes[0].make_snapshot().await.unwrap();
    let at = &addresses[0];
    until("the incarnation is recorded", async || {
        nodes[0].members().iter().all(|member| member.incarnation.is_some())
    })
    .await;
    check_shape(
        &json(&format!("cluster status --json {at}")),
        expect![[r#"
            {
              "as_of": "number",
              "cluster_id": "text",
              "joint": "bool",
              "leader": "number",
              "members": [
                {
                  "address": "text",
                  "applied": "number",
                  "commit": "number",
                  "disk": null,
                  "durable": "number",
                  "error": null,
                  "heard_millis": null,
                  "id": "number",
                  "lag": "number",
                  "last": "number",
                  "member_role": "text",
                  "role": "text",
                  "snapshot": {
                    "index": "number",
                    "term": "number"
                  },
                  "storage_full": "bool",
                  "term": "number",
                  "up": "bool"
                }
              ],
              "summary": "text",
              "term": "number",
              "up": "number",
              "writes_accepted": "bool"
            }
        "#]],
    );
    check_shape(
        &json(&format!("cluster members --json {at}")),
        expect![[r#"
            {
              "as_of": "number",
              "joint": "bool",
              "members": [
                {
                  "address": "text",
                  "id": "number",
                  "incarnation": "text",
                  "role": "text"
                }
              ]
            }
        "#]],
    );
    check_shape(
        &json(&format!("cluster snapshot 1 --json {at}")),
        expect![[r#"
            {
              "node": "number",
              "position": {
                "index": "number",
                "term": "number"
              }
            }
        "#]],
    );
    let mut follows = Following::begin(&format!("cluster events --json --count 2 {at}"));
    check_shape(
        &follows.line(),
        expect![[r#"
            {
              "event": null,
              "node": "number",
              "note": "text",
              "sequence": null,
              "unix_millis": "number"
            }
        "#]],
    );
    nodes[0].propose(1).await.unwrap();
    nodes[0].make_snapshot().await.unwrap();
    check_shape(
        &follows.line(),
        expect![[r#"
            {
              "event": {
                "snapshot_begun": {
                  "index": "number"
                }
              },
              "node": "number",
              "note": null,
              "sequence": "number",
              "unix_millis": "number"
            }
        "#]],
    );
    assert!(follows.line()["event"]["snapshot_taken"]["position"]["index"].is_u64());
    follows.ends();
}

/// A program whose output is read line by line.
struct Following(Child, BufReader<std::process::ChildStdout>);

impl Following {
    fn begin(arguments: &str) -> Following {
        let mut child = command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Following(child, output)
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        tokio::task::block_in_place(|| self.1.read_line(&mut line).unwrap());
        serde_json::from_str(&line).unwrap()
    }

    fn ends(mut self) {
        let status = tokio::task::block_in_place(|| self.0.wait().unwrap());
        assert!(status.success());
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_changed_through_any_address_and_the_program_says_what_it_did() {
    let (nodes, addresses) = cluster(3).await;
    let follower = nodes.iter().find(|node| !node.is_leader()).unwrap();
    let (at, other) = (&addresses[follower.id().get() as usize - 1], follower.id());
    let shown = done_soon(&format!("cluster demote {other} --yes {at}")).await;
    assert!(shown.starts_with(&format!("node {other} is a learner\n")), "{shown}");
    let shown = done_soon(&format!("cluster promote {other} {at}")).await;
    assert!(shown.starts_with(&format!("node {other} is a voter\n")), "{shown}");
    let shown = done_soon(&format!("cluster transfer --to {other} {at}")).await;
    assert_eq!(shown, format!("node {other} leads\n"));
    let shown = done_soon(&format!("cluster snapshot {other} {at}")).await;
    assert!(shown.starts_with(&format!("node {other} has taken a snapshot at ")), "{shown}");

    let next = nodes.iter().find(|node| node.id() != other).unwrap();
    let leaving = next.id();
    let shown = done_soon(&format!("cluster leave {leaving} --yes {at}")).await;
    assert_eq!(shown, format!("node {leaving} has left, and stops\n"));
    let last = nodes.iter().find(|node| node.id() != other && node.id() != leaving).unwrap().id();
    let shown = done_soon(&format!("cluster remove {last} --yes {at}")).await;
    assert!(shown.starts_with(&format!("node {last} is removed\n")), "{shown}");
    assert_eq!(json(&format!("cluster members --json {at}"))["members"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_added_with_a_ticket_and_replaces_another_one() {
    let (nodes, addresses) = cluster(2).await;
    let leader = nodes.iter().find(|node| node.is_leader()).unwrap();
    let (at, new) = (&addresses[leader.id().get() as usize - 1], free_address());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ticket.json");
    let shown = done(&format!("cluster add {new} --learner --ticket {} {at}", file.display()));
    assert!(shown.starts_with(&format!("node 3 is added at {new}: start it with the ticket\n")), "{shown}");
    refused(&format!("cluster add {new} {at}"), 1, &["node 3 is a member at this address already"]);
    refused(&format!("cluster add nowhere {at}"), 1, &["cannot add a node at nowhere"]);

    let ticket: ClusterJoinTicket = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let joining: Node =
        Raft::bootstrap(ticket.reserved_id, &new, MemoryStorage::default(), Sum(0), Config::default())
            .unwrap();
    let running = tokio::spawn(joining.clone().run());
    joining.join_cluster(vec![ticket]).await.unwrap();
    let old = nodes.iter().find(|node| node.id() != leader.id()).unwrap().id();
    let shown = done_soon(&format!("cluster replace {old} 3 --yes {at}")).await;
    assert!(shown.starts_with(&format!("node 3 has taken the place of node {old}\n")), "{shown}");
    until("it votes", async || {
        joining.members().get(id(3)).is_some_and(|member| member.role == MemberRole::Voter)
    })
    .await;
    joining.quit().await;
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_in_one_line_what_why_and_what_to_do() {
    let (mut nodes, addresses) = cluster(3).await;
    let (at, dead) = (addresses.join(" "), free_address());
    let unknown = ["node 9 is no member", "the members are 1, 2, 3", "cluster members"];
    for command in
        ["remove 9 --yes", "demote 9 --yes", "promote 9", "leave 9 --yes", "snapshot 9", "events --node 9"]
    {
        refused(&format!("cluster {command} {at}"), 1, &unknown);
    }
    refused(&format!("cluster replace 9 1 --yes {at}"), 1, &unknown);
    refused(&format!("cluster transfer --to 9 {at}"), 1, &unknown);
    for command in ["remove 1", "demote 1", "leave 1", "replace 1 2", "promote 1 --force"] {
        refused(&format!("cluster {command} {at}"), 4, &["--yes", "no terminal", "cluster"]);
    }
    assert_eq!(nodes[0].members().len(), 3, "a command that was not confirmed has changed the members");
    refused(
        &format!("cluster status {dead}"),
        1,
        &[&*dead, "cannot be connected to", "whether the nodes run"],
    );
    assert_eq!(cli("cluster status").status.code(), Some(2));
    assert_eq!(cli("cluster status nowhere").status.code(), Some(1));

    let (other, other_addresses) = cluster(1).await;
    let two = format!("{} {}", addresses[0], other_addresses[0]);
    for command in ["status", "members", "remove 1 --yes", "events"] {
        refused(
            &format!("cluster {command} {two}"),
            1,
            &["two clusters", &addresses[0], &other_addresses[0], "give the addresses of one"],
        );
    }
    let last = [&*other_addresses[0], "no voter would be left"];
    refused(&format!("cluster remove 1 --yes {}", last[0]), 1, &["cannot remove node 1", last[1]]);
    refused(&format!("cluster leave 1 --yes {}", last[0]), 1, &["node 1 cannot leave", last[1]]);
    drop(other);

    let waiting_at = free_address();
    let waiting: Node =
        Raft::bootstrap(id(4), &waiting_at, MemoryStorage::default(), Sum(0), Config::default()).unwrap();
    let running = tokio::spawn(waiting.clone().run());
    until("it listens", async || cli(&format!("describe node {waiting_at}")).status.success()).await;
    refused(
        &format!("cluster status {waiting_at}"),
        1,
        &["node 4", "no member of a cluster yet", "address of a member"],
    );
    waiting.quit().await;
    running.await.unwrap().unwrap();

    // Below a majority of live voters.
    let place = nodes.iter().position(|node| !node.is_leader()).unwrap();
    let down = nodes.remove(place);
    let down_id = down.id();
    down.quit().await;
    let up = nodes.iter().find(|node| !node.is_leader()).unwrap().id();
    let below = format!("cluster remove {up} --yes {at}");
    until("the leader misses it", async || text(&cli(&below).stderr).contains("is missing")).await;
    refused(&below, 1, &[&*format!("node {down_id} is missing"), "--force"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_follow_a_member_that_joins_later() {
    let (nodes, addresses) = cluster(1).await;
    let mut follows = Following::begin(&format!("cluster events --json {}", addresses[0]));
    assert_eq!(follows.line()["note"], "its events follow");
    let options = JoinOptions::new([addresses[0].clone()]);
    let joined: Node =
        Raft::join(options, free_address(), MemoryStorage::default(), Sum(0), Config::default())
            .await
            .unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &Value| line["node"] == 2) {
        seen.push(follows.line());
    }
    assert!(seen.iter().any(|line| line["event"]["member_added"]["member"]["id"] == 2), "{seen:?}");
    joined.quit().await;
    drop(nodes);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_shows_the_free_space_of_the_data_directory() {
    let (directory, address) = (tempfile::tempdir().unwrap(), free_address());
    let storage = WalStorage::open(directory.path()).unwrap();
    let node: Node = Raft::begin(&address, storage, Sum(0), Config::default()).await.unwrap();
    // It is measured on another thread.
    until("it is measured", async || {
        let output = cli(&format!("cluster status --json {address}"));
        let status: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        status.is_some_and(|status| status["members"][0]["disk"]["size_bytes"].is_u64())
    })
    .await;
    let shown = done(&format!("cluster status {address}"));
    assert!(shown.contains(" free ("), "{shown}");
    node.quit().await;
}

#[test]
fn completions_and_manual_pages_name_the_commands() {
    let run = |arguments: &str| {
        let output = command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(&format!("completions {shell}"));
        assert!(script.contains("transfer") && script.contains("raftify-cli"), "{shell}: {script}");
    }
    let page = run("man");
    assert!(page.starts_with(".ie") && page.contains("raftify"), "{page}");
    let directory = tempfile::tempdir().unwrap();
    run(&format!("man --dir {}", directory.path().display()));
    assert!(directory.path().join("raftify-cli-cluster-status.1").exists());
}
