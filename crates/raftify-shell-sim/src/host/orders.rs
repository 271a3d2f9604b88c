//! The orders of a node's user, each carried out in time.

use std::rc::Rc;
use std::time::Duration;

use raftify::NodeId;
use raftify::membership::{LeaveJoint, MemberChange, MembershipChange};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{GRACE, Host, QUIT_MAX};
use crate::client::{Node, in_time};

/// An order of a node's user.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Stops it cleanly.
    Quit,
    /// Begins to stop it, drops `quit` after this many polls and `run` after this time.
    QuitHalf(usize, Option<Duration>),
    /// Drops `run`.
    Drop,
    /// Removes it from the cluster.
    Leave,
    /// Removes another node.
    Remove(NodeId),
    /// Transfers leadership.
    Transfer(NodeId),
    /// Steps down.
    Demote,
    /// Campaigns.
    Campaign,
    /// Takes a snapshot.
    Snapshot,
    /// Inspects it.
    Inspect,
    /// Makes some calls, which must succeed.
    Probe,
}

/// The number of calls of a probe.
const PROBES: u64 = 4;

impl Host {
    /// Carries an order out, in time.
    pub(super) fn order(
        &self,
        order: Order,
        node: &Node,
        drop_run: &watch::Sender<bool>,
        chance: &mut ChaCha8Rng,
    ) -> impl Future<Output = ()> + 'static {
        let (record, name, node, drop_run) =
            (self.record.clone(), self.name.clone(), node.clone(), drop_run.clone());
        let (config, disk) = (self.config.clone(), self.disk.clone());
        let mut client = self.client(90, chance);
        let probed = Rc::clone(&self.seen.probed);
        async move {
            let membership = config.membership_timeout + GRACE;
            record.event(&name, format_args!("order: {order:?}"));
            let told = match order {
                Order::Quit => {
                    record.count("quit");
                    in_time(&record, &name, disk.busy_for() + QUIT_MAX, "quit", node.quit()).await;
                    // If `run` was dropped meanwhile, the disk is closed a little later; this is checked
                    // then.
                    if !disk.is_closed() && !*drop_run.borrow() {
                        record.violation(&name, "quit has returned and the disk is still in use");
                    }
                    "done".to_owned()
                }
                Order::QuitHalf(polls, then) => {
                    record.count("quit dropped");
                    drop_after(polls, node.quit()).await;
                    if let Some(then) = then {
                        tokio::task::spawn_local(async move {
                            sleep(then).await;
                            drop_run.send_replace(true);
                        });
                    }
                    "done".to_owned()
                }
                Order::Drop => {
                    drop_run.send_replace(true);
                    "done".to_owned()
                }
                Order::Leave => {
                    record.count("leave");
                    // It waits for the change, and then until a majority of the others knows it.
                    let limit = membership + config.membership_timeout + QUIT_MAX;
                    told(in_time(&record, &name, limit, "leave", node.leave()).await)
                }
                Order::Remove(id) => {
                    record.count("remove");
                    let change = MembershipChange::Steps {
                        steps: vec![MemberChange::Remove(id)],
                        leave: LeaveJoint::Automatically,
                    };
                    told(
                        in_time(&record, &name, membership, "change_config", node.change_config(change))
                            .await,
                    )
                }
                Order::Transfer(id) => {
                    record.count("transfer");
                    told(
                        in_time(&record, &name, membership, "transfer_leader", node.transfer_leader(id))
                            .await,
                    )
                }
                Order::Demote => {
                    let term = node.status().borrow().term;
                    told(in_time(&record, &name, membership, "demote", node.demote(term, None)).await)
                }
                Order::Campaign => {
                    let limit = config.propose_timeout + GRACE;
                    told(in_time(&record, &name, limit, "campaign", node.campaign()).await)
                }
                Order::Snapshot => {
                    record.count("snapshot requested");
                    let limit = Duration::from_secs(60);
                    told(in_time(&record, &name, limit, "make_snapshot", node.make_snapshot()).await)
                }
                Order::Inspect => {
                    let limit = config.read_timeout + GRACE;
                    let outcome = in_time(&record, &name, limit, "inspect", node.inspect()).await;
                    format!("{:?}", outcome.map(|inspected| inspected.is_ok()))
                }
                Order::Probe => {
                    let (propose, read) = (config.propose_timeout + GRACE, 2 * (config.read_timeout + GRACE));
                    for _ in 0..PROBES {
                        client.call_node(&node, propose, read).await;
                    }
                    probed.set(probed.get() || client.successes == PROBES);
                    format!("{} of {PROBES}", client.successes)
                }
            };
            record.event(&name, told);
        }
    }
}

fn told<T, E: std::fmt::Display>(outcome: Option<Result<T, E>>) -> String {
    match outcome {
        Some(Ok(_)) => "done".to_owned(),
        Some(Err(error)) => format!("not done: {error}"),
        None => "no answer".to_owned(),
    }
}

/// Polls `future` this many times, and drops it.
async fn drop_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut polled = 0;
    std::future::poll_fn(move |context| {
        if polled == polls {
            return std::task::Poll::Ready(None);
        }
        polled += 1;
        let polled_now = future.as_mut().poll(context).map(Some);
        if polled == polls && polled_now.is_pending() {
            return std::task::Poll::Ready(None);
        }
        polled_now
    })
    .await
}
