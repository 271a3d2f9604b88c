//! The limit that a system sets to the size of files (`ulimit -f`).
//!
//! A write beyond it raises a signal that ends the process without a message, unless the process ignores the signal: then the
//! write fails, and is reported like that of a full disk. Locking a directory ignores the signal, so each program that writes
//! one does so before its first write.

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
