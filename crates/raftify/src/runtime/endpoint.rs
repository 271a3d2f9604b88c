//! How connections to nodes are configured, and their errors as text.

use std::error::Error;
use std::time::Duration;

use tonic::Status;
use tonic::transport::Endpoint;

/// How many bytes may be under way on one stream, and on one connection, before the receiver has read them.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// A connection without a sign of life for this long gets a ping.
pub(crate) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The answer may wait behind a large message on a slow link: the deciding criterion is progress of any kind.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Streams that end early, such as those of snapshots, are remembered, so that frames that arrive on them
/// later are ignored: a frame on a forgotten stream is an error, and a connection with too many of these is
/// closed.
const RESET_STREAMS_REMEMBERED: usize = 1024;

/// The address and the options of a connection.
pub(crate) fn endpoint(
    address: &str,
    connect_timeout: Duration,
) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(connect_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_concurrent_reset_streams(RESET_STREAMS_REMEMBERED))
}

/// All reasons of an error, outermost first: tonic's own text for a refused connection is "transport error".
pub(crate) fn with_sources(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text
}

/// The reason of a status as text.
pub(crate) fn describe(status: &Status) -> String {
    match status.source() {
        Some(source) => with_sources(source),
        None => format!("{}: {}", status.code(), status.message()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raftify_core::members::check_address;

    use super::*;

    /// A membership change with any other address would be made, and never take effect.
    fn is_refused_or_connected_to(address: &str) {
        if check_address(address).is_err() {
            return;
        }
        let endpoint = endpoint(address, Duration::from_secs(1));
        let endpoint = endpoint.unwrap_or_else(|error| panic!("{address:?} is no address for HTTP: {error}"));
        let (host, port) = address.rsplit_once(':').unwrap();
        assert_eq!(endpoint.uri().host(), Some(host), "{address:?} means another host to HTTP");
        assert_eq!(endpoint.uri().port_u16(), port.parse().ok(), "{address:?} means another port to HTTP");
    }

    #[test]
    fn only_addresses_that_can_be_connected_to_are_taken_for_addresses() {
        for address in ["localhost:1", "node-1.example.:65535", "a_b:80", "127.0.0.1:1", "[::1]:1"] {
            assert_eq!(check_address(address), Ok(()));
            is_refused_or_connected_to(address);
        }
        for address in [
            "127.0.0.1:+1",
            "me@host:1",
            "a#b:1",
            "a?b:1",
            "a\"b:1",
            "a%62:1",
            "ä:1",
            "[fe80::1%eth0]:1",
            "[]:1",
        ] {
            is_refused_or_connected_to(address);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_as_an_address_or_can_be_connected_to(host in "[!-~]{0,12}", port in "[+0-9]{0,6}") {
            is_refused_or_connected_to(&format!("{host}:{port}"));
        }
    }
}
