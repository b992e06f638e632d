//! How a call's messages are taken in: with bounds for those that are not whole yet.
//!
//! A message is held in memory from its first byte until its last one is here, and a peer may leave it
//! at that. So a message that is longer than [`SHORT_BYTES`] takes room for its whole length before
//! more of it is read: of its connection, which has [`CONNECTION_BYTES_MAX`], and of the process, which
//! has [`PROCESS_BYTES_MAX`]. A connection has no room: the call ends, for a driver never comes near
//! that. The process has none: the call waits. A message that is not whole after
//! [`UNFINISHED_WAIT_MAX`] ends its call, if another one waits by then; alone it may take its time.
//!
//! Room is taken when the rest of a message is asked for, not when its head is here: a call that reads
//! nothing for a while, because its host is ahead of its allowance, holds none.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use proto::limits::MESSAGE_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::codegen::{Bytes, StdError};

use crate::call::arrival::{Unread, UnreadBytes};

/// Bytes of unfinished messages in the process.
const PROCESS_BYTES_MAX: usize = 64 << 20;

/// Bytes of unfinished messages of one connection: of its two calls, the longest that there are.
const CONNECTION_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;

/// Bytes of a message that takes no room. It never waits, however many long ones are under way, and
/// all calls of a connection together can't hold more of them than they hold of long ones.
const SHORT_BYTES: usize = 16 << 10;

const _: () = assert!(
    PROCESS_BYTES_MAX >= CONNECTION_BYTES_MAX,
    "there is room for the longest message"
);

/// Time within which a message must be whole if others wait for its room.
const UNFINISHED_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often it is looked again whether others wait.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Bytes before each message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// What messages a call has, and the bytes that one may have on the wire.
#[derive(Debug, Clone, Copy)]
pub enum Messages {
    /// One. The call's body is over with it, whether its peer says so or not: the message would be
    /// held until then.
    One(usize),
    /// Any number.
    Many(usize),
}

/// The room of the process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Room {
    bytes: Arc<Semaphore>,
    waiting_count: Arc<AtomicUsize>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(PROCESS_BYTES_MAX)),
            waiting_count: Arc::default(),
        }
    }
}

impl Room {
    /// Takes room for a message of `bytes`, once there is some.
    async fn take(self, bytes: usize, of_connection: UnreadBytes) -> Held {
        let _waiting = Waiting::new(&self.waiting_count);
        // No message is longer than the room of the process.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let of_process = self.bytes.acquire_many_owned(bytes).await;
        Held {
            _of_connection: of_connection,
            _of_process: of_process.expect("the room is never closed"),
            due: Box::pin(sleep_until(Instant::now() + UNFINISHED_WAIT_MAX)),
        }
    }
}

/// One that waits for room.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The room of one message.
struct Held {
    _of_connection: UnreadBytes,
    _of_process: OwnedSemaphorePermit,
    due: Pin<Box<Sleep>>,
}

type Taking = Pin<Box<dyn Future<Output = Held> + Send>>;

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// So much of its head is here.
    Head {
        count: usize,
        bytes: [u8; HEAD_BYTES],
    },
    /// So much of its content is missing.
    Content { length: usize, missing: usize },
}

impl Progress {
    const NOTHING: Self = Self::Head {
        count: 0,
        bytes: [0; HEAD_BYTES],
    };

    /// Goes on by what has come. Returns the length of the longest message that began in it, and whether
    /// one is whole.
    fn go_on(&mut self, mut come: &[u8]) -> (usize, bool) {
        let (mut longest, mut has_whole) = (0, false);
        loop {
            match self {
                Self::Head { count, bytes } => {
                    let (taken, rest) = come.split_at(come.len().min(HEAD_BYTES - *count));
                    bytes[*count..][..taken.len()].copy_from_slice(taken);
                    *count += taken.len();
                    come = rest;
                    if *count < HEAD_BYTES {
                        return (longest, has_whole);
                    }
                    let [_, length @ ..] = *bytes;
                    let length = u32::from_be_bytes(length) as usize;
                    longest = longest.max(length);
                    let missing = length;
                    *self = Self::Content { length, missing };
                }
                Self::Content { missing, .. } => {
                    let taken = come.len().min(*missing);
                    *missing -= taken;
                    come = come.split_at(taken).1;
                    if *missing > 0 {
                        return (longest, has_whole);
                    }
                    has_whole = true;
                    *self = Self::NOTHING;
                }
            }
        }
    }
}

/// A call's body.
pub struct Intake<B> {
    body: B,
    messages: Messages,
    progress: Progress,
    is_over: bool,
    held: Option<Held>,
    /// The room of the next one, while there is none.
    taking: Option<Taking>,
    unread: Unread,
    room: Room,
}

impl<B> std::fmt::Debug for Intake<B> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Intake");
        shown
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl<B> Intake<B> {
    /// Takes in the messages of a body. `unread` is what its connection has of unfinished ones.
    pub fn new(body: B, messages: Messages, unread: Unread, room: Room) -> Self {
        Self {
            body,
            messages,
            progress: Progress::NOTHING,
            is_over: false,
            held: None,
            taking: None,
            unread,
            room,
        }
    }

    /// Takes room for the message that is under way, if it is to have some and has none.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let Progress::Content { length, .. } = self.progress else {
            return Poll::Ready(Ok(()));
        };
        if length <= SHORT_BYTES || self.held.is_some() {
            return Poll::Ready(Ok(()));
        }
        let taking = match &mut self.taking {
            Some(taking) => taking,
            None => {
                let of_connection = self.unread.take(length, CONNECTION_BYTES_MAX);
                let of_connection = of_connection.ok_or_else(|| {
                    Status::resource_exhausted(format!(
                        "a connection may have {CONNECTION_BYTES_MAX} bytes of unfinished messages"
                    ))
                })?;
                let taking = self.room.clone().take(length, of_connection);
                self.taking.insert(Box::pin(taking))
            }
        };
        self.held = Some(ready!(taking.as_mut().poll(context)));
        self.taking = None;
        Poll::Ready(Ok(()))
    }

    /// Ends a message that is late, if others wait for its room.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let Some(held) = &mut self.held else {
            return Poll::Pending;
        };
        loop {
            ready!(held.due.as_mut().poll(context));
            if self.room.waiting_count.load(Ordering::Relaxed) > 0 {
                return Poll::Ready(Status::resource_exhausted(
                    "a message was not whole in time, and others wait for its room",
                ));
            }
            held.due.as_mut().reset(Instant::now() + LOOK_PERIOD);
        }
    }

    /// Goes on by what has come.
    fn go_on(&mut self, come: &[u8]) -> Result<(), Status> {
        let (longest, has_whole) = self.progress.go_on(come);
        let (Messages::One(bytes_max) | Messages::Many(bytes_max)) = self.messages;
        if longest > bytes_max {
            return Err(Status::out_of_range(format!(
                "a message of {longest} bytes is longer than {bytes_max} bytes, the limit"
            )));
        }
        if has_whole {
            self.held = None;
            self.is_over = matches!(self.messages, Messages::One(_));
        }
        Ok(())
    }
}

impl<B> Body for Intake<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        let came = match ready!(this.poll_room(context)) {
            Err(status) => Some(Err(status.into())),
            Ok(()) => match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Pending => Some(Err(ready!(this.poll_late(context)).into())),
                Poll::Ready(Some(Ok(frame))) => match frame.data_ref().map(|come| this.go_on(come))
                {
                    Some(Err(status)) => Some(Err(status.into())),
                    Some(Ok(())) | None => Some(Ok(frame)),
                },
                Poll::Ready(Some(Err(error))) => Some(Err(error.into())),
                Poll::Ready(None) => None,
            },
        };
        if !matches!(came, Some(Ok(_))) {
            this.is_over = true;
            this.held = None;
        }
        Poll::Ready(came)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A body of pieces, which does not end after them.
    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = StdError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
            match self.0.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None => Poll::Pending,
            }
        }
    }

    fn message(bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[0][..], &length, &vec![b'x'; bytes]].concat()
    }

    fn intake(sent: &[u8], messages: Messages, unread: &Unread, room: &Room) -> Intake<Pieces> {
        let pieces = sent.chunks(64 << 10).map(Bytes::copy_from_slice).collect();
        Intake::new(Pieces(pieces), messages, unread.clone(), room.clone())
    }

    /// Returns a body that has all of a message but its end.
    fn unfinished(bytes: usize, unread: &Unread, room: &Room) -> Intake<Pieces> {
        let sent = message(bytes);
        let messages = Messages::Many(MESSAGE_BYTES_MAX);
        intake(&sent[..sent.len() - 1], messages, unread, room)
    }

    /// Reads a body for a while; returns how many bytes it gave, and with what it ended.
    async fn read(intake: &mut Intake<Pieces>, time: Duration) -> (usize, Option<String>) {
        let mut bytes = 0;
        let reading = async {
            loop {
                let frame =
                    std::future::poll_fn(|context| Pin::new(&mut *intake).poll_frame(context));
                match frame.await {
                    Some(Ok(frame)) => bytes += frame.into_data().unwrap().len(),
                    Some(Err(error)) => return error.to_string(),
                    None => return "the end".to_owned(),
                }
            }
        };
        let end = tokio::time::timeout(time, reading).await.ok();
        (bytes, end)
    }

    const SOON: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_room_for_its_two_calls_and_its_next_one_ends() {
        let (unread, room) = (Unread::default(), Room::default());
        let mut first = unfinished(MESSAGE_BYTES_MAX, &unread, &room);
        let mut second = unfinished(MESSAGE_BYTES_MAX, &unread, &room);
        for intake in [&mut first, &mut second] {
            assert_eq!(read(intake, SOON).await, (MESSAGE_BYTES_MAX + 4, None));
        }
        let mut third = unfinished(SHORT_BYTES + 1, &unread, &room);
        let (_, end) = read(&mut third, SOON).await;
        assert!(end.unwrap().contains("bytes of unfinished messages"));
        // A short one goes on, and another connection has its own room.
        let mut short = unfinished(SHORT_BYTES, &unread, &room);
        assert_eq!(read(&mut short, SOON).await.1, None);
        let mut other = unfinished(MESSAGE_BYTES_MAX, &Unread::default(), &room);
        assert_eq!(read(&mut other, SOON).await, (MESSAGE_BYTES_MAX + 4, None));
        drop(first);
        let mut third = unfinished(MESSAGE_BYTES_MAX, &unread, &room);
        assert_eq!(read(&mut third, SOON).await, (MESSAGE_BYTES_MAX + 4, None));
    }

    /// Peers that hold all the room have it for as long as nobody else wants it, and no longer than for
    /// a while then.
    #[tokio::test(start_paused = true)]
    async fn the_process_has_so_much_room_and_who_waits_for_it_gets_it() {
        let room = Room::default();
        let connections = PROCESS_BYTES_MAX / MESSAGE_BYTES_MAX;
        let mut silent: Vec<_> = (0..connections)
            .map(|_| unfinished(MESSAGE_BYTES_MAX, &Unread::default(), &room))
            .collect();
        for intake in &mut silent {
            assert_eq!(read(intake, SOON).await, (MESSAGE_BYTES_MAX + 4, None));
        }
        let alone = read(&mut silent[0], 10 * UNFINISHED_WAIT_MAX).await;
        assert_eq!(alone, (0, None), "nobody waits");
        let sent = message(1 << 20);
        let messages = Messages::Many(MESSAGE_BYTES_MAX);
        let mut good = intake(&sent, messages, &Unread::default(), &room);
        let (waits, ended) = tokio::join!(
            read(&mut good, 2 * LOOK_PERIOD),
            read(&mut silent[0], 2 * LOOK_PERIOD)
        );
        assert!(ended.1.unwrap().contains("others wait for its room"));
        assert_eq!(waits, (sent.len(), None));
        // A short message never waits.
        let mut short = intake(&message(100), messages, &Unread::default(), &room);
        assert_eq!(read(&mut short, SOON).await, (105, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_of_one_message_is_over_with_it() {
        let (unread, room) = (Unread::default(), Room::default());
        let one = Messages::One(1 << 20);
        let intake_of = |bytes: usize| intake(&message(bytes), one, &unread, &room);
        let (bytes, end) = read(&mut intake_of(1 << 20), SOON).await;
        assert_eq!((bytes, end.as_deref()), ((1 << 20) + 5, Some("the end")));
        let (bytes, end) = read(&mut intake_of((1 << 20) + 1), SOON).await;
        assert_eq!(bytes, 0, "its head says that it is too long");
        assert!(end.unwrap().contains("longer than 1048576 bytes"));
    }

    proptest! {
        /// However the bytes come, each message is seen from its head to its end.
        #[test]
        fn progress_is_that_of_the_messages(
            lengths in proptest::collection::vec(0_usize..40, 1..6),
            cuts in proptest::collection::vec(1_usize..30, 1..40),
        ) {
            let sent: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let (mut progress, mut rest) = (Progress::NOTHING, sent.as_slice());
            let mut cuts = cuts.iter().cycle();
            let mut longest = 0;
            while !rest.is_empty() {
                let (come, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                longest = longest.max(progress.go_on(come).0);
                rest = left;
            }
            prop_assert_eq!(progress, Progress::NOTHING);
            prop_assert_eq!(longest, *lengths.iter().max().unwrap());
        }
    }
}
