//! The queue in front of the raft loop, bounded by number and by bytes.
//!
//! When the queue is full, requests of this node's user and single requests of others are rejected; streams
//! of messages wait, which slows their senders down. When the loop ends, it takes the content of the queue
//! for the last time, including requests that are being queued at that moment: the channel itself would keep
//! them for as long as there is a sender. If the loop does not get that far, the requests are dropped, which
//! answers them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::thread;

use raftify_core::{LocalRequestMsg, ServerRequestMsg};
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{Notify, mpsc};

use crate::wire;

/// The memory of a queued request beyond its own size.
pub(crate) trait Weight {
    /// In bytes.
    fn weight(&self) -> u64;
}

impl<R> Weight for LocalRequestMsg<R> {
    fn weight(&self) -> u64 {
        match self {
            LocalRequestMsg::ForLeader(request) | LocalRequestMsg::ForLeaderWithin { request, .. } => {
                request.payload_bytes()
            }
            _ => 0,
        }
    }
}

impl<R> Weight for ServerRequestMsg<R> {
    fn weight(&self) -> u64 {
        match self {
            ServerRequestMsg::ForLeader { request, .. } => request.payload_bytes(),
            ServerRequestMsg::RaftMessages { messages, .. } => {
                messages.iter().map(wire::message_bytes_max).sum()
            }
            _ => 0,
        }
    }
}

/// Why a request was not accepted.
#[derive(Debug)]
pub(crate) enum Refused<T> {
    /// The queue is full; the request is returned.
    Full {
        request: T,
        /// How many requests are in the queue.
        waiting: u64,
    },
    /// The loop has ended.
    Closed,
}

/// A queue for at most `count` requests that weigh at most `bytes` together. A single request may weigh more,
/// if it is alone.
pub(crate) fn request_queue<T: Weight>(count: usize, bytes: u64) -> (RequestSender<T>, RequestReceiver<T>) {
    let (sender, receiver) = mpsc::channel(count);
    let room = Room {
        bytes: AtomicU64::new(0),
        bytes_max: bytes,
        freed: Notify::new(),
        putting_in: AtomicUsize::new(0),
    };
    let room = Arc::new(room);
    (RequestSender { sender, room: Arc::clone(&room) }, RequestReceiver { receiver, room })
}

/// The used part of the bytes, and the senders that are about to use more.
struct Room {
    bytes: AtomicU64,
    bytes_max: u64,
    freed: Notify,
    /// The number of senders that have found the queue open, or are about to check, and do not wait for
    /// anything until their request is queued.
    putting_in: AtomicUsize,
}

/// One of the senders that are queueing a request, until it is dropped.
struct PuttingIn<'a>(&'a AtomicUsize);

impl Drop for PuttingIn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Room {
    fn take(&self, bytes: u64) -> bool {
        let after = |taken: u64| {
            let after = taken.saturating_add(bytes);
            (taken == 0 || after <= self.bytes_max).then_some(after)
        };
        bytes == 0 || self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, after).is_ok()
    }

    /// A sender that finds the queue open after this registration is waited for.
    fn put_in(&self) -> PuttingIn<'_> {
        self.putting_in.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        PuttingIn(&self.putting_in)
    }

    /// For the side that has closed the queue.
    fn is_being_filled(&self) -> bool {
        fence(Ordering::SeqCst);
        self.putting_in.load(Ordering::Acquire) > 0
    }

    fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }
}

pub(crate) struct RequestSender<T> {
    sender: mpsc::Sender<T>,
    room: Arc<Room>,
}

impl<T> Clone for RequestSender<T> {
    fn clone(&self) -> Self {
        RequestSender { sender: self.sender.clone(), room: Arc::clone(&self.room) }
    }
}

impl<T: Weight> RequestSender<T> {
    /// Puts a request into the queue, if there is room at once.
    pub(crate) fn try_send(&self, request: T) -> Result<(), Refused<T>> {
        let bytes = request.weight();
        if !self.room.take(bytes) {
            return Err(Refused::Full { request, waiting: self.waiting() });
        }
        let _putting_in = self.room.put_in();
        self.sender.try_send(request).map_err(|error| {
            self.room.give_back(bytes);
            match error {
                TrySendError::Full(request) => Refused::Full { request, waiting: self.waiting() },
                TrySendError::Closed(_) => Refused::Closed,
            }
        })
    }

    /// Puts a request into the queue as soon as there is room.
    ///
    /// # Errors
    /// The loop has ended.
    ///
    /// # Cancel safety
    /// If the future is dropped, the request was not queued.
    pub(crate) async fn send(&self, request: T) -> Result<(), Refused<T>> {
        let place = self.sender.reserve().await.map_err(|_| Refused::Closed)?;
        let bytes = request.weight();
        loop {
            let mut freed = std::pin::pin!(self.room.freed.notified());
            // Registered before the check, so that no freed space in between is missed.
            freed.as_mut().enable();
            {
                let _putting_in = self.room.put_in();
                if self.sender.is_closed() {
                    return Err(Refused::Closed);
                }
                if self.room.take(bytes) {
                    place.send(request);
                    return Ok(());
                }
            }
            tokio::select! {
                biased;
                () = self.sender.closed() => return Err(Refused::Closed),
                () = freed => {}
            }
        }
    }

    fn waiting(&self) -> u64 {
        (self.sender.max_capacity() - self.sender.capacity()) as u64
    }
}

pub(crate) struct RequestReceiver<T> {
    receiver: mpsc::Receiver<T>,
    room: Arc<Room>,
}

impl<T> Drop for RequestReceiver<T> {
    fn drop(&mut self) {
        self.close(drop);
    }
}

impl<T> RequestReceiver<T> {
    /// Closes the queue: no further request is accepted. The queued requests go to `last`.
    pub(crate) fn close(&mut self, mut last: impl FnMut(T)) {
        self.receiver.close();
        loop {
            let may_be_filled = self.room.is_being_filled();
            match self.receiver.try_recv() {
                Ok(request) => last(request),
                // A sender with a slot that waits for bytes finds the queue closed.
                Err(_) if !may_be_filled => break,
                Err(_) => thread::yield_now(),
            }
        }
    }
}

impl<T: Weight> RequestReceiver<T> {
    /// The next request; `None` when all senders are gone.
    ///
    /// # Cancel safety
    /// No request is lost if the future is dropped.
    pub(crate) async fn recv(&mut self) -> Option<T> {
        let request = self.receiver.recv().await?;
        self.room.give_back(request.weight());
        Some(request)
    }

    pub(crate) fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let request = self.receiver.try_recv()?;
        self.room.give_back(request.weight());
        Ok(request)
    }

    pub(crate) fn len(&self) -> usize {
        self.receiver.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    async fn is_pending<F: Future>(future: &mut std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }

    #[derive(Debug, PartialEq)]
    struct Heavy(u64);

    impl Weight for Heavy {
        fn weight(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn a_full_queue_gives_the_request_back_and_says_how_many_wait() {
        let (sender, mut receiver) = request_queue(3, 100);
        sender.try_send(Heavy(60)).unwrap();
        let Err(Refused::Full { request: Heavy(41), waiting: 1 }) = sender.try_send(Heavy(41)) else {
            panic!("it is full by bytes");
        };
        sender.try_send(Heavy(40)).unwrap();
        sender.try_send(Heavy(0)).unwrap();
        let Err(Refused::Full { request: Heavy(0), waiting: 3 }) = sender.try_send(Heavy(0)) else {
            panic!("it is full by number");
        };
        assert_eq!(receiver.try_recv().unwrap(), Heavy(60));
        sender.try_send(Heavy(60)).unwrap();
        drop(receiver);
        assert!(matches!(sender.try_send(Heavy(0)), Err(Refused::Closed)));
    }

    #[test]
    fn what_is_heavier_than_the_whole_queue_goes_alone() {
        let (sender, mut receiver) = request_queue(3, 100);
        sender.try_send(Heavy(1000)).unwrap();
        assert!(matches!(sender.try_send(Heavy(1)), Err(Refused::Full { .. })));
        receiver.try_recv().unwrap();
        sender.try_send(Heavy(1)).unwrap();
        assert!(matches!(sender.try_send(Heavy(1000)), Err(Refused::Full { .. })));
    }

    #[tokio::test]
    async fn a_sender_that_waits_for_room_gets_it_when_an_item_is_taken() {
        let (sender, mut receiver) = request_queue(10, 100);
        sender.try_send(Heavy(100)).unwrap();
        let mut waits = std::pin::pin!(sender.send(Heavy(50)));
        assert!(is_pending(&mut waits).await);
        assert_eq!(receiver.recv().await, Some(Heavy(100)));
        waits.await.unwrap();
        assert_eq!(receiver.recv().await, Some(Heavy(50)));

        sender.try_send(Heavy(100)).unwrap();
        let mut waits = std::pin::pin!(sender.send(Heavy(50)));
        assert!(is_pending(&mut waits).await);
        drop(receiver);
        assert!(matches!(waits.await, Err(Refused::Closed)));
    }

    /// Records that it was dropped, as a responder does.
    struct Owed(Arc<AtomicU64>);

    impl Weight for Owed {
        fn weight(&self) -> u64 {
            0
        }
    }

    impl Drop for Owed {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn requests_that_are_just_being_put_in_when_the_loop_ends_are_answered() {
        for _ in 0..2000 {
            let answered = Arc::new(AtomicU64::new(0));
            let (sender, receiver) = request_queue(1000, 100);
            let puts_in = {
                let answered = Arc::clone(&answered);
                thread::spawn(move || {
                    let mut sent = 1;
                    while sender.try_send(Owed(Arc::clone(&answered))).is_ok() {
                        sent += 1;
                    }
                    (sent, sender)
                })
            };
            while receiver.is_empty() {
                thread::yield_now();
            }
            drop(receiver);
            // As long as there is a sender, the remaining requests stay in the queue.
            let (sent, _sender) = puts_in.join().unwrap();
            assert_eq!(answered.load(Ordering::SeqCst), sent, "somebody waits for an answer");
        }
    }
}
