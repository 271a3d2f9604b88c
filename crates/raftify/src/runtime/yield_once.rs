//! A task that gathers what other tasks produce lets them run first.

use std::task::{Context, Poll};

/// Pending once before each time that it is ready.
///
/// A runtime runs a woken task next, before the tasks that were ready earlier: a task that sends messages would
/// send the first caller's request alone, although hundreds of callers are about to add theirs. After this, it
/// runs when they have run.
#[derive(Debug, Default)]
pub(crate) struct YieldOnce {
    has_yielded: bool,
}

impl YieldOnce {
    pub(crate) fn poll(&mut self, context: &Context<'_>) -> Poll<()> {
        self.has_yielded = !self.has_yielded;
        if self.has_yielded {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test]
    async fn tasks_that_are_ready_run_before_one_that_yields() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let (yields, adds) = (Rc::clone(&order), Rc::clone(&order));
        let local = LocalSet::new();
        local
            .run_until(async move {
                let first = spawn_local(async move {
                    let mut pause = YieldOnce::default();
                    poll_fn(|context| pause.poll(context)).await;
                    yields.borrow_mut().push("yields");
                });
                let second = spawn_local(async move { adds.borrow_mut().push("ready") });
                first.await.unwrap();
                second.await.unwrap();
            })
            .await;
        assert_eq!(*order.borrow(), ["ready", "yields"]);
    }
}
