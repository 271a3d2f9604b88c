//! The situation of each page, and its way out.

use std::fs;

use crate::cluster::Cluster;
use crate::eventually;
use crate::page::Page;

/// What a node logs for each change of its certificates.
const CHANGED: &str = "the certificates have changed: new connections use the new ones";

#[test]
fn a_node_that_is_down_is_started_again() {
    let (mut cluster, mut page) = (Cluster::start(), Page::open("node-down.md"));
    cluster.kill("node-3");
    cluster.write();
    let status = page.cli(&cluster, "cluster status", 5);
    assert!(status.starts_with("2 of 3 up, writes accepted"), "{status}");
    page.cli(&cluster, "describe node", 0);
    page.start(&mut cluster);
    let status = page.cli(&cluster, "cluster status", 0);
    assert!(status.starts_with("3 of 3 up, writes accepted"), "{status}");
    page.finish();
    cluster.check();
}

#[test]
fn a_cluster_without_a_majority_continues_when_one_more_node_is_up() {
    let (mut cluster, mut page) = (Cluster::start(), Page::open("no-leader.md"));
    cluster.write();
    cluster.kill("node-2");
    cluster.kill("node-3");
    let status = page.cli(&cluster, "cluster status", 6);
    assert!(status.contains(&cluster.names["HOST-2:PORT"]), "{status}");
    page.start(&mut cluster);
    cluster.write();
    page.cli(&cluster, "cluster transfer", 0);
    cluster.write();
    let status = page.cli(&cluster, "cluster status", 5);
    assert!(status.starts_with("2 of 3 up, writes accepted"), "{status}");
    page.finish();
    cluster.check();
}

#[test]
fn a_dead_node_and_a_live_one_are_replaced() {
    let (mut cluster, mut page) = (Cluster::start(), Page::open("replace-node.md"));
    cluster.write();
    cluster.kill("node-3");
    page.cli(&cluster, "cluster remove", 0);
    page.start(&mut cluster);
    eventually("the new node is a voter", || (cluster.members("voter").len() == 3).then_some(()));
    cluster.write();
    page.start(&mut cluster);
    let (old, new) = (cluster.id_of("HOST-2:PORT"), cluster.id_of("HOST-5:PORT"));
    let members = page.cli(&cluster, "cluster members", 0);
    assert!(members.contains("learner"), "{members}");
    cluster.names.insert("OLD".to_owned(), old.clone());
    cluster.names.insert("NEW".to_owned(), new.clone());
    page.cli(&cluster, "cluster replace", 0);
    cluster.until_ended("node-2");
    page.cli(&cluster, "cluster status", 0);
    let voters: Vec<String> = cluster.members("voter").into_values().collect();
    assert!(voters.len() == 3 && voters.contains(&new) && !voters.contains(&old), "{voters:?}");
    page.finish();
    cluster.write();
    cluster.check();
}

/// The space itself is taken away by `raftify-chaos`, which has small disks.
#[test]
fn after_a_full_disk_a_snapshot_is_taken_and_a_stopped_node_is_started() {
    let (mut cluster, mut page) = (Cluster::start(), Page::open("full-disk.md"));
    cluster.write();
    cluster.kill("node-3");
    let status = page.cli(&cluster, "cluster status", 5);
    assert!(status.contains("disk"), "{status}");
    let node = page.cli(&cluster, "describe node", 0);
    assert!(node.contains("full disks"), "{node}");
    page.cli(&cluster, "cluster snapshot", 0);
    page.start(&mut cluster);
    page.cli(&cluster, "cluster status", 0);
    page.finish();
    cluster.check();
}

#[test]
fn the_vote_of_a_slow_node_is_taken_and_given_back() {
    let (mut cluster, mut page) = (Cluster::start(), Page::open("slow-disk.md"));
    cluster.write();
    let status = page.cli(&cluster, "cluster status", 0);
    assert!(status.contains("lag"), "{status}");
    page.cli(&cluster, "cluster transfer", 0);
    page.cli(&cluster, "cluster demote", 0);
    assert_eq!(cluster.members("learner").len(), 1);
    cluster.write();
    page.cli(&cluster, "cluster promote", 0);
    page.cli(&cluster, "cluster members", 0);
    page.cli(&cluster, "cluster status", 0);
    assert_eq!(cluster.members("voter").len(), 3);
    page.finish();
    cluster.check();
}

#[test]
fn all_nodes_restart_one_after_the_other_and_keep_their_ids() {
    let (mut cluster, mut page) = (Cluster::start(), Page::open("rolling-upgrade.md"));
    let before = cluster.members("voter");
    page.cli(&cluster, "cluster status", 0);
    let (stop, start) = (page.next("kill -TERM "), page.next("memstore-dynamic-members "));
    for number in [3, 2, 1] {
        let (name, host) = (format!("node-{number}"), format!("HOST-{number}:PORT"));
        // The page shows the commands for the third node.
        let [stop, start] = [&stop, &start].map(|command| {
            command
                .replace("PID-3", &format!("PID-{number}"))
                .replace("--raft-addr HOST-3:PORT", &format!("--raft-addr {host}"))
                .replace("node-3", &name)
        });
        cluster.write();
        cluster.shell(&stop);
        cluster.until_ended(&name);
        cluster.write();
        cluster.start_with(&start);
        eventually("all are up", || {
            (cluster.cli("raftify-cli cluster status HOST-2:PORT HOST-3:PORT").exit == Some(0)).then_some(())
        });
    }
    page.cli(&cluster, "cluster status", 0);
    page.cli(&cluster, "cluster status", 0);
    page.cli(&cluster, "cluster members", 0);
    assert_eq!(cluster.members("voter"), before);
    page.finish();
    cluster.check();
}

#[test]
fn certificates_and_their_authority_are_replaced_while_the_nodes_run() {
    let (mut cluster, mut page) = (Cluster::start_with_tls(), Page::open("rotate-certificates.md"));
    cluster.write();
    let until_changed = |cluster: &Cluster, times: usize| {
        for number in 1..=3 {
            let name = format!("node-{number}");
            eventually("the certificates change", || (cluster.logged(&name, CHANGED) >= times).then_some(()));
        }
    };
    page.cli(&cluster, "ca issue --node", 0);
    page.cli(&cluster, "ca issue --client", 0);
    until_changed(&cluster, 1);
    cluster.write();

    page.cli(&cluster, "ca init", 0);
    page.cli(&cluster, "ca issue --node", 0);
    page.cli(&cluster, "ca issue --client", 0);
    let read = |directory: &str| fs::read(cluster.path(directory).join("ca.pem")).unwrap();
    let (old, new) = (read("certificates"), read("new-certificates"));
    let in_use = cluster.path("certificates");
    fs::write(in_use.join("ca.pem"), [old, new.clone()].concat()).unwrap();
    until_changed(&cluster, 2);
    cluster.write();
    for name in ["127.0.0.1-key.pem", "127.0.0.1.pem", "operator-key.pem", "operator.pem"] {
        fs::copy(cluster.path("new-certificates").join(name), in_use.join(name)).unwrap();
    }
    until_changed(&cluster, 3);
    cluster.write();
    fs::write(in_use.join("ca.pem"), new).unwrap();
    until_changed(&cluster, 4);
    cluster.write();
    page.cli(&cluster, "cluster status", 0);
    page.finish();
    cluster.check();
}

#[test]
fn a_voter_and_a_learner_are_added() {
    let (mut cluster, mut page) = (Cluster::start(), Page::open("add-node.md"));
    cluster.write();
    page.start(&mut cluster);
    page.start(&mut cluster);
    let learner = cluster.id_of("HOST-5:PORT");
    cluster.names.insert("LEARNER".to_owned(), learner);
    page.cli(&cluster, "cluster promote", 0);
    page.cli(&cluster, "cluster members", 0);
    page.cli(&cluster, "cluster status", 0);
    eventually("all are voters", || (cluster.members("voter").len() == 5).then_some(()));
    page.finish();
    cluster.write();
    cluster.check();
}
