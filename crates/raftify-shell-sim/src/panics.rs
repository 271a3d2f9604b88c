//! Panics of tasks, which a runtime catches: they must not go unnoticed.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on, this thread's panics are remembered.
pub(crate) fn forget() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            FIRST.with_borrow_mut(|first| first.get_or_insert_with(|| panic.to_string()).truncate(4000));
            before(panic);
        }));
    });
    FIRST.take();
}

/// The first one.
pub(crate) fn first() -> Option<String> {
    FIRST.with_borrow(Clone::clone)
}
