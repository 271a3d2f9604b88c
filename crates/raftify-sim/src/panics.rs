//! Panics in a simulated world are violations with their location, and are not printed on the terminal.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// While a world runs on this thread: the message of the last panic.
    static WATCHED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The result of `work`, or the message of its panic.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let is_watched = WATCHED.with_borrow_mut(|said| {
                let is_watched = said.is_some();
                if is_watched {
                    *said = Some(panic.to_string());
                }
                is_watched
            });
            if !is_watched {
                others(panic);
            }
        }));
    });
    WATCHED.set(Some(String::new()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    let said = WATCHED.take().unwrap_or_default();
    outcome.map_err(|_| said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_reported_with_its_location() {
        assert_eq!(caught(|| 5), Ok(5));
        let said = caught(|| panic!("too {}", "bad")).unwrap_err();
        assert!(said.contains("too bad") && said.contains("panics.rs"), "{said}");
    }
}
