//! The limit of the system for the size of files (`ulimit -f`).
//!
//! A write beyond it raises a signal that ends the process without a message, unless the process ignores the
//! signal: then the write fails, and is reported like that of a full disk. Locking a directory ignores the
//! signal, so that each program that writes to a directory ignores it before its first write.

/// Makes writes beyond the limit fail. If the program has its own handler for the signal, the handler stays.
#[cfg(unix)]
#[allow(unsafe_code, reason = "the standard library has no way to ignore a signal")]
pub(crate) fn let_writes_fail() {
    use std::sync::Once;
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let mut current = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the pointer to the new action may be null, the one to the current action is valid. All its
        // fields are numbers, for which zeros are valid values.
        let current = unsafe {
            libc::sigaction(libc::SIGXFSZ, std::ptr::null(), current.as_mut_ptr());
            current.assume_init()
        };
        if current.sa_sigaction == libc::SIG_DFL {
            // SAFETY: the signal calls no function from here on.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        }
    });
}

/// Other systems have no such signal.
#[cfg(not(unix))]
pub(crate) fn let_writes_fail() {}
