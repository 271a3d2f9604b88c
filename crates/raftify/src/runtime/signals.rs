//! The signals that ask a process to end.

use tracing::warn;

/// Resolves when the process gets Ctrl+C or SIGTERM.
pub(crate) async fn termination() {
    #[cfg(feature = "simulation")]
    if super::simulation::is_on() {
        return std::future::pending().await; // No signals exist there.
    }
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            warn!("Ctrl+C cannot be listened for: {error}");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                warn!("SIGTERM cannot be listened for: {error}");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
