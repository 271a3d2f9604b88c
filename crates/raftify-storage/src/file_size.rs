//! The limit that a system sets to the size of files (`ulimit -f`).
//!
//! Who writes beyond it gets a signal that ends the process without a word, unless the process ignores it: then the write
//! fails, and is told like that of a full disk. It is ignored by whoever takes a directory, so that this holds for each
//! program that writes one, before its first write.

/// Lets writes beyond the limit fail. A program that handles the signal by itself keeps its way.
#[cfg(unix)]
#[allow(unsafe_code, reason = "the standard library has no way to ignore a signal")]
pub(crate) fn let_writes_fail() {
    use std::sync::Once;
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let mut current = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the pointer to the new action may be null, the one to the current action is valid. All fields of that
        // are numbers, for which zeros are values.
        let current = unsafe {
            libc::sigaction(libc::SIGXFSZ, std::ptr::null(), current.as_mut_ptr());
            current.assume_init()
        };
        if current.sa_sigaction == libc::SIG_DFL {
            // SAFETY: no function is called by the signal from here on.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        }
    });
}

/// There is no such signal elsewhere.
#[cfg(not(unix))]
pub(crate) fn let_writes_fail() {}
