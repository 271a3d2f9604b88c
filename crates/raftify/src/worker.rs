//! The seam to threads: the log writer and the applier block, so each has a thread of its own.
//!
//! Both are futures that wait for nothing but channels, so that they run as well as tasks on a simulated runtime;
//! [`Worker::start`] is the only place that decides.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use raftify_core::error::StopReason;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A thread that is owned, and joined with [`ended`](Self::ended).
pub(crate) struct Worker(oneshot::Receiver<()>);

impl Worker {
    /// Runs `work` on a thread of its own. It must end when the channels that feed it are closed.
    pub(crate) fn start(
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Worker, StopReason> {
        let runtime = Handle::current();
        let (alive, ended) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(work);
            drop(alive);
        });
        match thread {
            Ok(_) => Ok(Worker(ended)),
            Err(error) => {
                Err(StopReason::Internal(format!("the thread {name} could not be started: {error}")))
            }
        }
    }

    /// Resolves when the work is done and everything that it owned is dropped.
    pub(crate) async fn ended(self) {
        // Never sent, only dropped with the thread, also when it panics.
        let _ = self.0.await;
    }
}

/// Runs code that may panic; the text of the panic is the error.
///
/// What the code was working on must not be used any more after a panic.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("panicked: {}", text.unwrap_or_else(|| "without a message".to_owned()))
    })
}
