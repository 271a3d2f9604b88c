//! One reusable connection to a web API, with little work for each request, and with errors that say whether
//! the request can have taken effect.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::certificates::Certificates;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Nothing was sent.
    NotSent(String),
    /// The request was sent, and may have taken effect.
    Lost(String),
}

/// An answer of a web API.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// The web API of one node.
#[derive(Clone)]
pub(crate) struct Web {
    pub address: String,
    /// `None`: without TLS.
    pub certificates: Option<Certificates>,
}

impl Web {
    /// Opens a connection.
    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let Web { address, certificates } = self;
        let connected = timeout(CONNECT_TIMEOUT, async {
            let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            match certificates {
                None => Ok(Box::new(stream) as Box<dyn Stream>),
                Some(certificates) => Ok(Box::new(certificates.secure(address, stream).await?) as _),
            }
        });
        connected.await.map_err(|_| "connecting takes too long".to_owned())?
    }
}

/// Either kind of connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One connection, opened at its first use and reopened after a failure.
pub(crate) struct Connection {
    web: Web,
    stream: Option<Box<dyn Stream>>,
    received: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(web: Web) -> Connection {
        Connection { web, stream: None, received: Vec::with_capacity(1024) }
    }

    /// Sends a request and waits for the answer, until the deadline.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
        deadline: Duration,
    ) -> Result<Answer, NoAnswer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.web.connect().await.map_err(NoAnswer::NotSent)?,
        };
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: chaos\r\nContent-Length: {}\r\n\r\n", body.len())
                .into_bytes();
        request.extend_from_slice(body);
        self.received.clear();
        let exchange = async {
            stream.write_all(&request).await.map_err(|error| error.to_string())?;
            read_answer(&mut stream, &mut self.received).await
        };
        match timeout(deadline, exchange).await {
            Ok(Ok(answer)) => {
                self.stream = Some(stream);
                Ok(answer)
            }
            Ok(Err(reason)) => Err(NoAnswer::Lost(reason)),
            Err(_) => Err(NoAnswer::Lost(format!("no answer within {deadline:?}"))),
        }
    }
}

async fn read_answer(stream: &mut impl Stream, received: &mut Vec<u8>) -> Result<Answer, String> {
    loop {
        if let Some((status, head_bytes, body_bytes)) = parse_head(received)?
            && received.len() >= head_bytes + body_bytes
        {
            let body = received[head_bytes..head_bytes + body_bytes].to_vec();
            return Ok(Answer { status, body });
        }
        if stream.read_buf(received).await.map_err(|error| error.to_string())? == 0 {
            return Err("the connection was closed".to_owned());
        }
    }
}

/// Status, length of the head, length of the body; `None` while the head is incomplete.
fn parse_head(received: &[u8]) -> Result<Option<(u16, usize, usize)>, String> {
    let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
    let senseless = || format!("invalid answer: {head}");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(senseless)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok()).ok_or_else(senseless)?;
    Ok(Some((status, end + 4, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(address: String) -> Connection {
        Connection::new(Web { address, certificates: None })
    }

    #[test]
    fn a_complete_head_is_parsed_and_a_malformed_one_is_rejected() {
        let head = b"HTTP/1.1 404 Not Found\r\ncontent-type: x\r\nContent-Length: 12\r\n\r\n";
        assert_eq!(parse_head(head), Ok(Some((404, head.len(), 12))));
        assert_eq!(parse_head(&head[..head.len() - 1]), Ok(None));
        assert!(parse_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse_head(b"hello\r\n\r\n").is_err());
    }

    #[tokio::test]
    async fn a_refused_connection_means_that_nothing_was_sent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let outcome = plain(address).ask("GET", "/", b"", Duration::from_secs(9)).await;
        assert!(matches!(outcome, Err(NoAnswer::NotSent(_))), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_request_without_an_answer_may_have_taken_effect() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let close = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
        });
        let outcome = plain(address).ask("PUT", "/", b"x", Duration::from_secs(9)).await;
        assert!(matches!(outcome, Err(NoAnswer::Lost(_))), "{outcome:?}");
        close.await.unwrap();
    }
}
