//! The abstraction over threads: blocking work is done here, outside the async tasks.
//!
//! The log writer and the applier have a thread each ([`Worker`]); occasional work goes to a pool
//! ([`Blocking`]). In a [simulation](crate::runtime::simulation) all of it runs as tasks on the single
//! thread; only this module knows the difference.

#[cfg(test)]
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use futures_util::TryFutureExt;
use raftify_core::error::StopReason;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

#[cfg(feature = "simulation")]
use crate::runtime::simulation;

/// An owned thread, joined with [`ended`](Self::ended).
pub(crate) struct Worker(oneshot::Receiver<()>);

impl Worker {
    /// Runs `work` on a separate thread. The work waits only for channels, runs blocking code in
    /// [`may_block`], and must end when the channels that feed it are closed.
    pub(crate) fn start(
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Worker, StopReason> {
        let (alive, ended) = oneshot::channel();
        let work = async move {
            work.await;
            drop(alive);
        };
        #[cfg(feature = "simulation")]
        if simulation::is_on() {
            tokio::spawn(work);
            return Ok(Worker(ended));
        }
        let runtime = Handle::current();
        match spawn(name, move || runtime.block_on(work)) {
            Ok(()) => Ok(Worker(ended)),
            Err(error) => {
                Err(StopReason::Internal(format!("the thread {name} could not be started: {error}")))
            }
        }
    }

    /// Resolves when the work is done and all values that it owned are dropped.
    pub(crate) async fn ended(self) {
        // Never sent, only dropped with the thread, also when it panics.
        let _ = self.0.await;
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(test)]
    if NOT_STARTED.get() == Some(name) {
        return Err(io::ErrorKind::WouldBlock.into()); // The system's error for too many threads.
    }
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

#[cfg(test)]
thread_local! {
    /// The thread with this name cannot be started from the current thread.
    pub(crate) static NOT_STARTED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Code that may block, in a [`Worker`].
pub(crate) async fn may_block<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return simulation::on_a_thread(work).await;
    }
    work()
}

/// Blocks a thread for this duration.
pub(crate) fn block_for(duration: Duration) {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return simulation::block_for(duration);
    }
    thread::sleep(duration);
}

/// The time on a thread that may have been blocked.
pub(crate) fn now() -> Instant {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return Instant::now() + simulation::blocked_so_far();
    }
    Instant::now()
}

/// Runs a node's blocking work that has no dedicated thread: on threads that may wait for the disk. The work
/// is tracked, because dropping the future that waits for it does not end it, and it holds parts of the
/// storage.
#[derive(Clone)]
pub(crate) struct Blocking(TaskTracker);

impl Blocking {
    pub(crate) fn new() -> Blocking {
        let tracker = TaskTracker::new();
        // A closed tracker still tracks; `wait` then resolves whenever no work is under way.
        tracker.close();
        Blocking(tracker)
    }

    /// Starts `work`; the returned future resolves to its outcome, and may be dropped, which does not end the
    /// work. Must be called on a tokio runtime.
    pub(crate) fn start<T: Send + 'static, Work: FnOnce() -> T + Send + 'static>(
        &self,
        work: Work,
    ) -> impl Future<Output = Result<T, JoinError>> + Send + use<T, Work> {
        // Tracked until its outcome, too, is taken or dropped.
        let token = self.0.token();
        let work = move || (work(), token);
        #[cfg(feature = "simulation")]
        let started = match simulation::is_on() {
            true => tokio::spawn(simulation::on_a_thread(work)),
            false => tokio::task::spawn_blocking(work),
        };
        #[cfg(not(feature = "simulation"))]
        let started = tokio::task::spawn_blocking(work);
        started.map_ok(|(outcome, _token)| outcome)
    }

    /// Resolves when no work is under way.
    pub(crate) async fn ended(&self) {
        self.0.wait().await;
    }
}

/// Runs code that may panic; the text of the panic is the error.
///
/// After a panic, the data on which the code worked must not be used any more.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        // The payload may have any type, and its drop may panic as well: the payload of that second panic is
        // not dropped.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(another);
        }
        format!("panicked: {}", text.unwrap_or_else(|| "without a message".to_owned()))
    })
}

/// A user-defined error that no code outside of [`caught`] can handle.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct PanicsWhenShown;

#[cfg(test)]
impl std::fmt::Display for PanicsWhenShown {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("told to")
    }
}

#[cfg(test)]
impl std::error::Error for PanicsWhenShown {}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    struct PanicsWhenDropped(u8);

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            if self.0 > 0 {
                panic_any(PanicsWhenDropped(self.0 - 1));
            }
        }
    }

    #[test]
    fn a_panic_with_something_that_panics_when_it_is_dropped_is_caught() {
        assert_eq!(
            caught(|| panic_any(PanicsWhenDropped(2))),
            Err::<(), _>("panicked: without a message".to_owned())
        );
    }
}
