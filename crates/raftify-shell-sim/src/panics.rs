//! Panics of tasks, which a runtime catches: they must be reported.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

/// A panic message may be as long as the data that it shows.
const SHOWN_CHARS_MAX: usize = 4000;

thread_local! {
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on, this thread's panics are recorded.
pub(crate) fn forget() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let said = || panic.to_string().chars().take(SHOWN_CHARS_MAX).collect();
            FIRST.with_borrow_mut(|first| *first = first.take().or_else(|| Some(said())));
            before(panic);
        }));
    });
    FIRST.take();
}

/// The first one.
pub(crate) fn first() -> Option<String> {
    FIRST.with_borrow(Clone::clone)
}
