//! Every bound that driver and shipper share, with how they relate.
//!
//! A bound says what happens at it. Relations that must hold are asserted at compile time, so a
//! changed number that breaks another one does not build.

/// Bytes of one encoded `LogEntry`. Docker writes at most 16,478 (a line piece of 16 KiB and its
/// metadata, moby `daemon/logger/copier.go`); eight times that leaves room for attributes. A
/// longer entry is not believed: the frame is malformed, and is skipped and counted.
pub const ENTRY_BYTES_MAX: usize = 128 << 10;

/// Bytes of a frame's header: `u32` big-endian length of the entry.
pub const FRAME_HEADER_BYTES: usize = 4;

/// Bytes of one frame.
pub const FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + ENTRY_BYTES_MAX;

/// Bytes of frames in one `Chunk`. The driver ends a chunk at the last whole frame below it.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Bytes of frames in one `ShipRequest`, all its chunks together.
pub const REQUEST_FRAMES_BYTES_MAX: usize = 1 << 20;

/// Events in one `ShipRequest`. Opens are large, and there may be thousands after a reconnect.
pub const REQUEST_EVENTS_MAX: usize = 1024;

/// Bytes of one message of the relay, on the wire. Larger ones end the call.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes that a message to a shipper may take once it is decoded (see [`crate::codec`]). A larger one
/// ends its call. What a driver may send takes less, whatever a container says of itself; a call's
/// messages are decoded and used up one after the other, so a thread of the shipper has one at a time.
pub const MESSAGE_DECODED_BYTES_MAX: usize = 64 << 20;

/// Bytes that the options and details of a container may take for a `Check`, once they are decoded; it
/// is refused beyond. A driver does without the check.
pub const CHECK_DECODED_BYTES_MAX: usize = 4 << 20;

/// Bytes of one answer of the shipper, on the wire. It says what it has in several messages, and cuts
/// its reasons, so that none is larger; a larger one ends the call.
pub const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// Bytes that an answer of the shipper may take once it is decoded. A larger one ends the call.
pub const RESPONSE_DECODED_BYTES_MAX: usize = 2 << 20;

/// Bytes of a reason or fault in an answer of the shipper; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 1 << 10;

/// Bytes of all log options and container details in one `Open`. A container that exceeds it is
/// refused at start.
pub const OPEN_BYTES_MAX: usize = 1 << 20;

/// Bytes of a `Check` on the wire: what an `Open` may have, and the names of the host and of fields.
pub const CHECK_BYTES_MAX: usize = OPEN_BYTES_MAX + (64 << 10);

/// Bytes of opens at which the driver ends a `ShipRequest`; the last one may lead beyond it.
pub const REQUEST_OPENS_BYTES_MAX: usize = OPEN_BYTES_MAX / 4;

/// Streams of one call. The driver keeps further streams in their journals until one ends.
pub const STREAMS_PER_CALL_MAX: usize = 16_384;

/// Bytes of a line joined from pieces. Beyond it the record is cut, marked and counted; CLS takes
/// values up to 1 MiB (CLS API document 614/87660).
pub const RECORD_LINE_BYTES_MAX: usize = 1 << 20;

/// Bytes of one value, CLS's own bound.
pub const CLS_VALUE_BYTES_MAX: usize = 1 << 20;

/// Bytes of all values of one request, CLS's own bound.
pub const CLS_VALUES_BYTES_MAX: usize = 5 << 20;

/// Bytes of one request's body before compression, CLS's own bound.
pub const CLS_BODY_BYTES_MAX: usize = 6 << 20;

/// Log groups in one request, CLS's own bound.
pub const CLS_GROUPS_MAX: usize = 10;

/// Logs in one log group, CLS's own bound; also used as the bound of logs in one request, because
/// the documents give it "per pb" in one place.
pub const CLS_LOGS_MAX: usize = 10_000;

const _: () = assert!(
    FRAME_BYTES_MAX <= CHUNK_BYTES_MAX,
    "a chunk must hold any one frame"
);
const _: () = assert!(
    CHUNK_BYTES_MAX <= REQUEST_FRAMES_BYTES_MAX,
    "a request must hold any chunk"
);
const _: () = assert!(
    REQUEST_FRAMES_BYTES_MAX + REQUEST_OPENS_BYTES_MAX + OPEN_BYTES_MAX < MESSAGE_BYTES_MAX,
    "a request must fit a message together with its opens"
);
const _: () = assert!(
    RECORD_LINE_BYTES_MAX <= CLS_VALUE_BYTES_MAX,
    "a joined line must be a value"
);
const _: () = assert!(
    CLS_VALUES_BYTES_MAX < CLS_BODY_BYTES_MAX,
    "values are part of the body"
);
