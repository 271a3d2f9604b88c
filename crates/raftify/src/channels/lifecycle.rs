//! The phase of a node between its bootstrap and its end: shared by all handles and by `run`.
//!
//! Owns the permission to run, which is given once, and the stop request, which any handle may make.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use raftify_core::error::StopReason;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::RunError;
use crate::runtime::backstop::Backstop;

/// All parts of a node, ready to run. Dropping it closes storage and port.
pub(crate) type Runner = Box<dyn FnOnce(Lifecycle) -> BoxFuture<'static, Result<(), RunError>> + Send>;

/// Returns its content once.
struct OneShotMutex<T>(Mutex<Option<T>>);

impl<T> OneShotMutex<T> {
    /// A caller that finds the content taken also finds `at_once` done.
    fn take(&self, at_once: impl FnOnce()) -> Option<T> {
        let mut content = self.0.lock();
        content.take().inspect(|_| at_once())
    }

    fn put(&self, content: T) {
        *self.0.lock() = Some(content);
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Bootstrapped, not run.
    Waiting,
    Running,
    /// No more requests are accepted.
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
    /// Whether the phase is no longer `Waiting`: each request asks for it.
    has_begun: AtomicBool,
    quit: watch::Sender<bool>,
    /// Whether the node no longer waits for anything, including pending replies.
    at_once: watch::Sender<bool>,
    /// The number of calls that remove this node from the cluster, or have done so.
    leaving: AtomicUsize,
    /// No caller has learned of the end yet: the next `run` returns it.
    ended_before_it_ran: AtomicBool,
    /// `run` was called; its future may not have been polled yet.
    called: AtomicBool,
    snapshot_bytes_received: Arc<AtomicU64>,
    /// Runs from the begin of the node.
    backstop: Arc<Backstop>,
    runner: OneShotMutex<Runner>,
}

impl Lifecycle {
    pub(crate) fn new() -> Lifecycle {
        Lifecycle(Arc::new(Inner {
            phase: watch::Sender::new(Phase::Waiting),
            has_begun: AtomicBool::new(false),
            quit: watch::Sender::new(false),
            at_once: watch::Sender::new(false),
            leaving: AtomicUsize::new(0),
            ended_before_it_ran: AtomicBool::new(false),
            called: AtomicBool::new(false),
            snapshot_bytes_received: Arc::default(),
            backstop: Arc::default(),
            runner: OneShotMutex(Mutex::new(None)),
        }))
    }

    /// Stores the runner that [`run`](Self::run) will take.
    pub(crate) fn set_runner(&self, runner: Runner) {
        self.0.runner.put(runner);
    }

    /// Runs the node to its end. The first caller runs it; all others get an error at once. A node with a
    /// stop request before its run has ended already.
    pub(crate) async fn run(&self) -> Result<(), RunError> {
        let Some(runner) = self.0.runner.take(|| {}) else {
            if !self.0.ended_before_it_ran.swap(false, Ordering::SeqCst) {
                return Err(RunError::AlreadyRunning);
            }
            // The caller that ended it may still be closing its parts.
            self.ended().await;
            return Ok(());
        };
        let _end = EndOnDrop(self);
        self.0.backstop.start();
        self.0.phase.send_replace(Phase::Running);
        self.0.has_begun.store(true, Ordering::Release);
        runner(self.clone()).await
    }

    /// `run` was called: from now on the node counts as running, although its future may not have been polled
    /// yet.
    pub(crate) fn run_called(&self) {
        self.0.called.store(true, Ordering::SeqCst);
    }

    /// Whether `run` was called.
    pub(crate) fn was_run_called(&self) -> bool {
        self.0.called.load(Ordering::SeqCst)
    }

    /// Resolves once the node runs.
    pub(crate) async fn running(&self) -> Result<(), StopReason> {
        let mut phase = self.0.phase.subscribe();
        let phase = phase.wait_for(|phase| *phase != Phase::Waiting).await;
        let reason = phase.map_or(Some(StopReason::Stopped), |phase| phase.stop_reason());
        reason.map_or(Ok(()), Err)
    }

    /// The moment between the two steps of [`run`](Self::run): the phase is published, the flag is not set.
    #[cfg(test)]
    pub(crate) fn half_begun(&self) {
        self.0.phase.send_replace(Phase::Running);
    }

    /// The last deadline of the calls of a node that runs or has run.
    pub(crate) fn backstop(&self) -> &Backstop {
        &self.0.backstop
    }

    /// Whether the node was not run yet.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.0.has_begun.load(Ordering::Acquire)
    }

    /// From now on, requests fail with `reason`. The first reason stays.
    pub(crate) fn stop(&self, reason: &StopReason) {
        self.0.phase.send_if_modified(|phase| {
            let stops = phase.stop_reason().is_none();
            if stops {
                *phase = Phase::Stopping(reason.clone());
            }
            stops
        });
        self.0.has_begun.store(true, Ordering::Release);
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

    /// Requests a stop of the node.
    pub(crate) fn ask_to_quit(&self) {
        self.0.quit.send_replace(true);
    }

    /// Makes a node that already has a stop request stop without any further wait.
    pub(crate) fn ask_to_quit_at_once(&self) {
        self.ask_to_quit();
        self.0.at_once.send_replace(true);
    }

    /// True once the node must not wait for anything.
    pub(crate) fn quit_at_once_wish(&self) -> watch::Receiver<bool> {
        self.0.at_once.subscribe()
    }

    /// Requests a stop of the node, and resolves when everything is closed.
    pub(crate) async fn quit(&self) {
        self.ask_to_quit();
        let runner = self.0.runner.take(|| self.0.ended_before_it_ran.store(true, Ordering::SeqCst));
        if let Some(runner) = runner {
            // Also if the user's own state machine panics when it is dropped.
            let _end = EndOnDrop(self);
            drop(runner);
        }
        self.ended().await;
    }

    /// Resolves when everything is closed.
    async fn ended(&self) {
        let mut phase = self.0.phase.subscribe();
        // An error would mean that the sender is gone, but `self` holds it.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
    }

    /// How many bytes have arrived of the most recently begun snapshot of another node; written by the
    /// server.
    pub(crate) fn snapshot_bytes_received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.snapshot_bytes_received)
    }

    /// True once there is a stop request.
    pub(crate) fn quit_wish(&self) -> watch::Receiver<bool> {
        self.0.quit.subscribe()
    }

    /// Resolves once there is a stop request.
    pub(crate) async fn quit_asked(&self) {
        let mut quit = self.quit_wish();
        // An error would mean that the sender is gone, but `self` holds it.
        let _ = quit.wait_for(|quit| *quit).await;
    }

    /// This node's own user removes it from the cluster: until the returned value is dropped, or permanently
    /// if it [succeeds](Leaving::succeeded).
    pub(crate) fn begin_to_leave(&self) -> Leaving<'_> {
        self.0.leaving.fetch_add(1, Ordering::SeqCst);
        Leaving(&self.0.leaving)
    }

    /// Whether the node's removal is not a failure.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::SeqCst) > 0
    }
}

/// The task that runs a node. Dropping it stops the node like a crash.
pub(crate) struct RunTask(JoinHandle<Result<(), RunError>>);

impl RunTask {
    /// Runs the node on the current runtime.
    pub(crate) fn spawn(lifecycle: &Lifecycle) -> RunTask {
        lifecycle.run_called();
        let lifecycle = lifecycle.clone();
        RunTask(tokio::spawn(async move { lifecycle.run().await }))
    }

    /// Waits for the end of the node, and returns the outcome of its `run`.
    pub(crate) async fn ended(mut self) -> Result<(), RunError> {
        match (&mut self.0).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_cancelled() => Err(StopReason::Stopped.into()),
            Err(error) => Err(StopReason::Internal(error.to_string()).into()),
        }
    }
}

impl Drop for RunTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One call that removes this node from the cluster. When dropped, it did not succeed, or its caller no
/// longer waits for it. Another call may be under way.
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

/// Marks the end, also when the future of `run` is dropped midway.
struct EndOnDrop<'a>(&'a Lifecycle);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let reason = self.0.stop_reason();
        self.0.0.phase.send_replace(Phase::Ended(reason));
        self.0.0.has_begun.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::thread;

    use futures_util::FutureExt;

    use super::*;

    /// Reports that it is being dropped, and continues when permitted.
    struct SlowToClose(mpsc::Sender<()>, mpsc::Receiver<()>);

    impl Drop for SlowToClose {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
        }
    }

    #[test]
    fn run_that_comes_after_quit_returns_when_what_quit_closes_is_closed() {
        let lifecycle = Lifecycle::new();
        let (closing, closes) = mpsc::channel();
        let (close, closed) = mpsc::channel();
        let open = SlowToClose(closing, closed);
        lifecycle.set_runner(Box::new(move |_| {
            drop(open);
            Box::pin(async { Ok(()) })
        }));
        let quitting = thread::spawn({
            let lifecycle = lifecycle.clone();
            move || lifecycle.quit().now_or_never()
        });
        closes.recv().unwrap();
        let mut run = pin!(lifecycle.run());
        assert!(run.as_mut().now_or_never().is_none(), "it has returned while something is open");
        close.send(()).unwrap();
        assert!(quitting.join().unwrap().is_some());
        assert!(matches!(run.now_or_never(), Some(Ok(()))));
        assert!(matches!(lifecycle.run().now_or_never(), Some(Err(RunError::AlreadyRunning))));
    }

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("told to");
        }
    }

    #[test]
    fn a_state_machine_that_panics_when_it_is_dropped_blocks_no_caller_that_waits_for_the_end() {
        let lifecycle = Lifecycle::new();
        let state_machine = PanicsWhenDropped;
        lifecycle.set_runner(Box::new(move |_| {
            drop(state_machine);
            Box::pin(async { Ok(()) })
        }));
        let quitting = thread::spawn({
            let lifecycle = lifecycle.clone();
            move || lifecycle.quit().now_or_never()
        });
        assert!(quitting.join().is_err());
        assert!(lifecycle.quit().now_or_never().is_some(), "it waits for ever");
        assert!(matches!(lifecycle.run().now_or_never(), Some(Ok(()))));
    }

    #[test]
    fn a_cancelled_leave_is_not_leaving_and_a_successful_one_has_left() {
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
