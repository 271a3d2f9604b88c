//! Where a node is between its bootstrap and its end: shared by all handles and by `run`.
//!
//! Owns the right to run, which is given out once, and the wish to stop, which anybody may utter.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use raftify_core::error::StopReason;
use tokio::sync::watch;

use crate::error::RunError;

/// Everything that a node consists of, ready to run. Dropping it closes storage and port.
pub(crate) type Runner = Box<dyn FnOnce(Lifecycle) -> BoxFuture<'static, Result<(), RunError>> + Send>;

/// Gives its content out once.
struct OneShotMutex<T>(Mutex<Option<T>>);

impl<T> OneShotMutex<T> {
    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, content: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(content);
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Bootstrapped, not run.
    Waiting,
    Running,
    /// No more requests are taken.
    Stopping(StopReason),
    /// Everything is closed.
    Ended(StopReason),
}

impl Phase {
    fn stop_reason(&self) -> Option<StopReason> {
        match self {
            Phase::Waiting | Phase::Running => None,
            Phase::Stopping(reason) | Phase::Ended(reason) => Some(reason.clone()),
        }
    }
}

/// A clone is another handle of the same node's lifecycle.
#[derive(Clone)]
pub(crate) struct Lifecycle(Arc<Inner>);

struct Inner {
    phase: watch::Sender<Phase>,
    quit: watch::Sender<bool>,
    /// How many calls take this node out of the cluster, or have done so.
    leaving: AtomicUsize,
    /// Nobody has been told yet: the next `run` will be.
    ended_before_it_ran: AtomicBool,
    runner: OneShotMutex<Runner>,
}

impl Lifecycle {
    pub(crate) fn new() -> Lifecycle {
        Lifecycle(Arc::new(Inner {
            phase: watch::Sender::new(Phase::Waiting),
            quit: watch::Sender::new(false),
            leaving: AtomicUsize::new(0),
            ended_before_it_ran: AtomicBool::new(false),
            runner: OneShotMutex(Mutex::new(None)),
        }))
    }

    /// Lays down what [`run`](Self::run) will take.
    pub(crate) fn set_runner(&self, runner: Runner) {
        self.0.runner.put(runner);
    }

    /// Runs the node to its end. The first caller does; all others get an error at once. A node that was told to quit
    /// before it ran has reached its end already.
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let Some(runner) = self.0.runner.take() else {
            let ended_before_it_ran = self.0.ended_before_it_ran.swap(false, Ordering::SeqCst);
            return if ended_before_it_ran { Ok(()) } else { Err(RunError::AlreadyRunning) };
        };
        let _end = EndOnDrop(self);
        self.0.phase.send_replace(Phase::Running);
        runner(self.clone()).await
    }

    /// Resolves once the node runs.
    pub(crate) async fn running(&self) -> Result<(), StopReason> {
        let mut phase = self.0.phase.subscribe();
        let phase = phase.wait_for(|phase| *phase != Phase::Waiting).await;
        let reason = phase.map_or(Some(StopReason::Stopped), |phase| phase.stop_reason());
        reason.map_or(Ok(()), Err)
    }

    /// Whether the node was not run yet.
    pub(crate) fn is_waiting(&self) -> bool {
        *self.0.phase.borrow() == Phase::Waiting
    }

    /// From now on, requests are answered with `reason`. The first reason stays.
    pub(crate) fn stop(&self, reason: &StopReason) {
        self.0.phase.send_if_modified(|phase| {
            let stops = phase.stop_reason().is_none();
            if stops {
                *phase = Phase::Stopping(reason.clone());
            }
            stops
        });
    }

    /// Resolves once the node stops, with the reason.
    pub(crate) async fn stopping(&self) -> StopReason {
        let mut phase = self.0.phase.subscribe();
        let phase = phase.wait_for(|phase| phase.stop_reason().is_some()).await;
        phase.ok().and_then(|phase| phase.stop_reason()).unwrap_or(StopReason::Stopped)
    }

    /// Why the node no longer serves.
    pub(crate) fn stop_reason(&self) -> StopReason {
        self.0.phase.borrow().stop_reason().unwrap_or(StopReason::Stopped)
    }

    /// Whether the node no longer serves.
    pub(crate) fn is_stopping(&self) -> bool {
        self.0.phase.borrow().stop_reason().is_some()
    }

    /// Asks the node to stop.
    pub(crate) fn ask_to_quit(&self) {
        self.0.quit.send_replace(true);
    }

    /// Asks the node to stop, and resolves when everything is closed.
    pub(crate) async fn quit(&self) {
        self.ask_to_quit();
        if let Some(runner) = self.0.runner.take() {
            self.0.ended_before_it_ran.store(true, Ordering::SeqCst);
            drop(runner);
            self.0.phase.send_replace(Phase::Ended(StopReason::Stopped));
        }
        let mut phase = self.0.phase.subscribe();
        // An error would mean that the sender is gone, which `self` holds.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
    }

    /// True once somebody has asked the node to stop.
    pub(crate) fn quit_wish(&self) -> watch::Receiver<bool> {
        self.0.quit.subscribe()
    }

    /// Resolves once somebody has asked the node to stop.
    pub(crate) async fn quit_asked(&self) {
        let mut quit = self.quit_wish();
        // An error would mean that the sender is gone, which `self` holds.
        let _ = quit.wait_for(|quit| *quit).await;
    }

    /// This node's own user takes it out of the cluster: until what is returned is dropped, or for good if it
    /// [succeeds](Leaving::succeeded).
    pub(crate) fn begin_to_leave(&self) -> Leaving<'_> {
        self.0.leaving.fetch_add(1, Ordering::SeqCst);
        Leaving(&self.0.leaving)
    }

    /// Whether the node's removal is no failure.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::SeqCst) > 0
    }
}

/// One call that takes this node out of the cluster. Dropped, it did not succeed, or nobody waits for it any more. Another
/// one may be under way.
pub(crate) struct Leaving<'a>(&'a AtomicUsize);

impl Leaving<'_> {
    /// The node was removed.
    pub(crate) fn succeeded(self) {
        std::mem::forget(self);
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Marks the end also when the future of `run` is dropped half way.
struct EndOnDrop<'a>(&'a Lifecycle);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let reason = self.0.stop_reason();
        self.0.0.phase.send_replace(Phase::Ended(reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gave_up_leaving_is_not_leaving_and_who_succeeded_has_left() {
        let lifecycle = Lifecycle::new();
        let (given_up, other) = (lifecycle.begin_to_leave(), lifecycle.begin_to_leave());
        drop(given_up);
        assert!(lifecycle.is_leaving(), "another call is under way");
        drop(other);
        assert!(!lifecycle.is_leaving(), "a removal by others would look as if it was asked for");
        lifecycle.begin_to_leave().succeeded();
        assert!(lifecycle.is_leaving());
    }
}
