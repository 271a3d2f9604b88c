//! Single calls over a shared connection: the limit on concurrent calls, the handling of abandoned calls, and
//! whether any part of a call was sent.
//!
//! An abandoned call, whose caller is gone or whose deadline has passed, still runs to its end: dropping it
//! would reset its stream, and HTTP/2 closes a connection with too many resets, which would break all other
//! calls. So a caller that abandons every call uses a bounded number of slots, and no more.

use std::error::Error as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Error};
use tonic::{ConnectError, Request, Response, Status};

/// How many calls of a client may be under way to one node; further calls wait.
const CLIENT_CALLS_MAX: usize = 4096;

/// How much payload these calls may have together. A single call may have more.
const CLIENT_BYTES_MAX: u64 = 64 << 20;

/// The unit in which payload is counted; a call with less is counted by number only.
const UNIT_BYTES: u64 = 1024;

/// The limits on the number of concurrent calls and on their payload.
#[derive(Clone, Debug)]
pub(crate) struct CallPermits {
    count_max: usize,
    count: Arc<Semaphore>,
    units: Arc<Semaphore>,
    units_max: u32,
}

/// The permit of one call, until it is dropped.
pub(crate) type Permit = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl CallPermits {
    pub(crate) fn new(count: usize, bytes: u64) -> CallPermits {
        let units_max = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        let count_max = count.min(Semaphore::MAX_PERMITS);
        CallPermits {
            count_max,
            count: Arc::new(Semaphore::new(count_max)),
            units: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
        }
    }

    /// The permits for the calls of a client to one node.
    pub(crate) fn of_client() -> CallPermits {
        CallPermits::new(CLIENT_CALLS_MAX, CLIENT_BYTES_MAX)
    }

    /// The number of permits.
    pub(crate) fn count_max(&self) -> u64 {
        self.count_max as u64
    }

    /// Waiting calls get their permits in order of arrival. `None`: no permit was available in time.
    pub(crate) async fn enter(&self, payload_bytes: u64, until: Instant) -> Option<Permit> {
        let units = u32::try_from(payload_bytes / UNIT_BYTES).unwrap_or(u32::MAX).min(self.units_max);
        let enter = async {
            let count = Arc::clone(&self.count).acquire_owned().await.ok()?;
            let units = match units {
                0 => None,
                units => Some(Arc::clone(&self.units).acquire_many_owned(units).await.ok()?),
            };
            Some((count, units))
        };
        timeout_at(until, enter).await.ok().flatten()
    }

    #[cfg(test)]
    fn free(&self) -> usize {
        self.count.available_permits()
    }
}

/// The outcome of a call without a response.
#[derive(Debug)]
pub(crate) enum NoResponse {
    /// The maximum number of calls is under way, and none of them ended in time. Nothing was sent.
    NoPermit,
    /// It ended before its request was sent. Nothing was sent, and nothing will be.
    NotSent(Option<Status>),
    /// The request was sent, at least in part.
    Failed(Status),
    /// The request was sent, at least in part, and the deadline has passed.
    TimedOut,
}

/// The time of a deadline. The longest ones exceed the range of a clock.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 60 * 60))
}

/// Whether the request of a failed call was certainly not read: there was no connection, or the node has
/// declared that it did not, and will not, process it, by refusing its stream, or by a GOAWAY frame that names
/// an earlier stream as the last processed one (RFC 9113, sections 6.8 and 8.7).
pub(crate) fn is_unread(status: &Status) -> bool {
    let is_refused = |error: &h2::Error| {
        error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
    };
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() || error.downcast_ref().is_some_and(is_refused) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Makes one call, with its own permit. If the future is dropped, a call that has begun continues.
pub(crate) async fn call<T, Call>(
    places: &CallPermits,
    payload_bytes: u64,
    timeout: Duration,
    call: impl FnOnce(Mark) -> Call,
) -> Result<T, NoResponse>
where
    T: Send + 'static,
    Call: Future<Output = Result<Response<T>, Status>> + Send + 'static,
{
    let until = deadline(timeout);
    let place = places.enter(payload_bytes, until).await.ok_or(NoResponse::NoPermit)?;
    let mark = Mark::default();
    let call = call(mark.clone());
    let mut kept = Kept::new(Box::pin(async move {
        let response = call.await;
        drop(place);
        response
    }));
    match timeout_at(until, kept.response()).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if mark.withdraw() => Err(NoResponse::NotSent(Some(status))),
        Ok(Err(status)) => Err(NoResponse::Failed(status)),
        Err(_) if mark.withdraw() => Err(NoResponse::NotSent(None)),
        Err(_) => Err(NoResponse::TimedOut),
    }
}

type Answered<T> = Result<Response<T>, Status>;

/// A call that runs to its end, also if this is dropped.
struct Kept<T: Send + 'static> {
    call: Option<BoxFuture<'static, Answered<T>>>,
    runtime: Handle,
}

impl<T: Send + 'static> Kept<T> {
    fn new(call: BoxFuture<'static, Answered<T>>) -> Kept<T> {
        Kept { call: Some(call), runtime: Handle::current() }
    }

    async fn response(&mut self) -> Answered<T> {
        poll_fn(|context| match &mut self.call {
            Some(call) => {
                let response = call.as_mut().poll(context);
                if response.is_ready() {
                    self.call = None;
                }
                response
            }
            // Not reached: the result is awaited once.
            None => Poll::Ready(Err(Status::cancelled("the call has ended"))),
        })
        .await
    }
}

impl<T: Send + 'static> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take()
            && !raftify_core::mutated!(GivenUpCallsAreReset)
        {
            // On a runtime that has ended, the call is dropped, and so is its connection.
            drop(self.runtime.spawn(async move { drop(call.await) }));
        }
    }
}

const NOT_SENT: u8 = 0;
const SENT: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Whether any part of a request's body was passed to a connection. Before that, a node cannot have read the
/// request, and the request can be withdrawn safely.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mark(Arc<AtomicU8>);

impl Mark {
    /// The request of the call with this mark.
    pub(crate) fn on<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(self.clone());
        request
    }

    /// Whether nothing was sent, and nothing will be.
    fn withdraw(&self) -> bool {
        self.becomes(WITHDRAWN)
    }

    /// The body is about to be sent, unless it was withdrawn.
    fn send(&self) -> bool {
        self.becomes(SENT)
    }

    fn becomes(&self, state: u8) -> bool {
        match self.0.compare_exchange(NOT_SENT, state, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => found == state,
        }
    }
}

/// A channel that observes the marks of requests.
#[derive(Clone, Debug)]
pub(crate) struct MarkedChannel(pub(crate) Channel);

impl Service<http::Request<Body>> for MarkedChannel {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mark = request.extensions().get::<Mark>().cloned();
        self.0.call(match mark {
            Some(mark) => request.map(|body| Body::new(MarkedBody { body, mark, is_withdrawn: false })),
            None => request,
        })
    }
}

/// The body of a marked request. When withdrawn, it is empty: the node finds no request in it.
struct MarkedBody {
    body: Body,
    mark: Mark,
    is_withdrawn: bool,
}

impl http_body::Body for MarkedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.is_withdrawn |= !self.mark.send();
        if self.is_withdrawn {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.is_withdrawn || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body::Body as _;
    use tokio::sync::oneshot;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_call_that_is_given_up_runs_to_its_end_in_its_place_and_further_ones_wait() {
        let places = CallPermits::new(1, UNIT_BYTES);
        let (answer, answered) = oneshot::channel::<()>();
        let (ended, end) = oneshot::channel::<()>();
        let given_up = call(&places, 0, HOUR, |_| async move {
            drop(answered.await);
            drop(ended);
            Ok(Response::new(()))
        });
        assert!(given_up.now_or_never().is_none(), "it is not answered yet");
        assert_eq!(places.free(), 0, "it is under way");

        let late = call(&places, 0, Duration::ZERO, |_| async { Ok(Response::new(())) }).await;
        assert!(matches!(late, Err(NoResponse::NoPermit)), "{late:?}");
        let next = tokio::spawn({
            let places = places.clone();
            async move { call(&places, 0, HOUR, |_| async { Ok(Response::new(7)) }).await }
        });
        drop(answer);
        assert!(end.await.is_err(), "it has run to its end");
        assert_eq!(next.await.unwrap().unwrap(), 7);
        assert_eq!(places.free(), 1);
    }

    #[tokio::test]
    async fn places_are_bounded_by_payload_as_well_and_one_call_may_have_more() {
        let places = CallPermits::new(10, 4 * UNIT_BYTES);
        let large = call(&places, 100 * UNIT_BYTES, HOUR, |_| std::future::pending::<Answered<()>>());
        assert!(large.now_or_never().is_none());
        let second = call(&places, UNIT_BYTES, Duration::ZERO, |_| async { Ok(Response::new(())) }).await;
        assert!(matches!(second, Err(NoResponse::NoPermit)), "{second:?}");
        call(&places, 0, HOUR, |_| async { Ok(Response::new(())) }).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_that_was_withdrawn_is_never_sent_and_one_that_was_sent_cannot_be_withdrawn() {
        let body = || Body::new(http_body_of(b"request"));
        let mark = Mark::default();
        let mut sent = Box::pin(MarkedBody { body: body(), mark: mark.clone(), is_withdrawn: false });
        assert!(poll_fn(|context| sent.as_mut().poll_frame(context)).await.is_some());
        assert!(!mark.withdraw());

        let mark = Mark::default();
        let mut withdrawn = Box::pin(MarkedBody { body: body(), mark: mark.clone(), is_withdrawn: false });
        assert!(mark.withdraw());
        assert!(poll_fn(|context| withdrawn.as_mut().poll_frame(context)).await.is_none());
    }

    fn http_body_of(bytes: &'static [u8]) -> impl http_body::Body<Data = Bytes, Error = Status> {
        struct Once(Option<Bytes>);
        impl http_body::Body for Once {
            type Data = Bytes;
            type Error = Status;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
            }
        }
        Once(Some(Bytes::from_static(bytes)))
    }
}
