//! The codec of the relay: prost's, behind a look at what a message would become.
//!
//! Two bytes on the wire can be a list's element, which takes hundreds once it is decoded; so the
//! bound on a message's bytes does not bound the memory that it takes. [`check`] reads the message
//! before prost does. It decodes nothing, allocates nothing, skips what grows by nothing, above all the
//! frames of chunks, and adds up:
//!
//! - the message's own bytes, which hold all of its text;
//! - for each element of a list or map, and each message in a message, what its type takes: its size,
//!   one smallest allocation for each of its strings, and its places in a map. The room that a list has
//!   to grow is not counted: nothing writes to it.
//!
//! A message whose sum is beyond [`Bounded::DECODED_BYTES_MAX`] is refused as one is that has too many
//! bytes on the wire: `OUT_OF_RANGE`, and the call ends. What is not well-formed is refused here, too,
//! rather than left to prost: prost notices that a nested message leads out of its parent only after it
//! has followed it, to where nothing was counted.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::limits::{
    CHECK_DECODED_BYTES_MAX, MESSAGE_DECODED_BYTES_MAX, RESPONSE_DECODED_BYTES_MAX,
};
use crate::relay::{
    Ack, CheckRequest, CheckResponse, Container, Event, Finish, HostReport, Open, Opened, Refused,
    ReportAck, ShipRequest, ShipResponse, StreamReport, Window,
};

/// A message of which is known what it may take.
pub trait Bounded: Message + Default + 'static {
    /// Bytes that it may take once it is decoded.
    const DECODED_BYTES_MAX: usize;
    /// What it is made of.
    const SHAPE: Shape;
}

/// What in a message takes memory beyond its bytes on the wire.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What one of it takes, whatever is in it.
    bytes: usize,
    /// Lists, maps and messages in it, by field number. Fields that are not named take no more than
    /// their bytes on the wire, or are counted in `bytes`.
    fields: &'static [(u64, Shape)],
}

/// The smallest piece that an allocator hands out, with its header (glibc's; musl's is half of it).
const ALLOCATION_BYTES: usize = 32;

/// Places that an entry of a map may have: the smallest table has four, and one that grows has up to
/// 16 for seven entries, beside the 8 of the old one.
const MAP_PLACES: usize = 4;

impl Shape {
    /// The shape of a message with so many strings of its own and these lists, maps and messages.
    const fn of<M>(string_count: usize, fields: &'static [(u64, Self)]) -> Self {
        let strings_bytes = string_count.saturating_mul(ALLOCATION_BYTES);
        let bytes = size_of::<M>().saturating_add(strings_bytes);
        Self { bytes, fields }
    }

    /// The shape of an entry of a map. A place has a byte in the table's index.
    const fn entry<K, V>(string_count: usize) -> Self {
        let place_bytes = size_of::<(K, V)>().saturating_add(1);
        let allocations = string_count.saturating_add(1);
        let bytes = place_bytes.saturating_mul(MAP_PLACES);
        Self {
            bytes: bytes.saturating_add(allocations.saturating_mul(ALLOCATION_BYTES)),
            fields: &[],
        }
    }
}

const STRING: Shape = Shape::of::<String>(1, &[]);
const STRING_TO_STRING: Shape = Shape::entry::<String, String>(2);
const STRING_TO_NUMBER: Shape = Shape::entry::<String, u64>(1);

const CONTAINER: Shape =
    Shape::of::<Container>(8, &[(6, STRING), (7, STRING_TO_STRING), (9, STRING)]);
/// It is in a box of its own: one allocation more than it has strings.
const OPEN: Shape = Shape::of::<Open>(3, &[(3, CONTAINER), (4, STRING_TO_STRING)]);
/// Its string is a hole's reason.
const EVENT: Shape = Shape::of::<Event>(1, &[(1, OPEN), (4, FINISH)]);
/// Its counters are in a box of their own.
const FINISH: Shape = Shape::of::<Finish>(1, &[(3, STREAM_REPORT)]);
const STREAM_REPORT: Shape = Shape::of::<StreamReport>(3, &[(8, STRING_TO_NUMBER)]);

impl Bounded for ShipRequest {
    const DECODED_BYTES_MAX: usize = MESSAGE_DECODED_BYTES_MAX;
    const SHAPE: Shape = Shape::of::<Self>(0, &[(1, EVENT)]);
}

impl Bounded for HostReport {
    const DECODED_BYTES_MAX: usize = MESSAGE_DECODED_BYTES_MAX;
    const SHAPE: Shape = Shape::of::<Self>(2, &[(3, STREAM_REPORT)]);
}

impl Bounded for CheckRequest {
    const DECODED_BYTES_MAX: usize = CHECK_DECODED_BYTES_MAX;
    const SHAPE: Shape = Shape::of::<Self>(1, &[(1, CONTAINER), (2, STRING_TO_STRING)]);
}

impl Bounded for ShipResponse {
    const DECODED_BYTES_MAX: usize = RESPONSE_DECODED_BYTES_MAX;
    const SHAPE: Shape = Shape::of::<Self>(
        0,
        &[
            (1, Shape::of::<Opened>(0, &[])),
            (2, Shape::of::<Ack>(0, &[])),
            (3, Shape::of::<Window>(0, &[])),
            (4, Shape::of::<Refused>(1, &[])),
        ],
    );
}

impl Bounded for CheckResponse {
    const DECODED_BYTES_MAX: usize = RESPONSE_DECODED_BYTES_MAX;
    const SHAPE: Shape = Shape::of::<Self>(1, &[(1, STRING)]);
}

impl Bounded for ReportAck {
    const DECODED_BYTES_MAX: usize = RESPONSE_DECODED_BYTES_MAX;
    const SHAPE: Shape = Shape::of::<Self>(0, &[]);
}

/// A message is refused before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It would take too much memory.
    #[error(
        "a message of {wire_bytes} bytes takes more than {limit_bytes} bytes once it is decoded, the \
         limit"
    )]
    TooLarge {
        /// Its bytes on the wire.
        wire_bytes: usize,
        /// What it may take.
        limit_bytes: usize,
    },
    /// It is no protobuf, or holds a group, which `proto3` has not.
    #[error("a message of {wire_bytes} bytes is not well-formed")]
    Malformed {
        /// Its bytes on the wire.
        wire_bytes: usize,
    },
}

impl From<Refusal> for Status {
    /// Returns what tonic says to a message that has too many bytes on the wire, or that prost does not
    /// understand.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooLarge { .. } => Self::out_of_range(refusal.to_string()),
            Refusal::Malformed { .. } => Self::internal(refusal.to_string()),
        }
    }
}

/// Checks what an encoded message takes once it is decoded.
///
/// # Errors
/// It is too much, or can't be known.
pub fn check<M: Bounded>(message: &[u8]) -> Result<(), Refusal> {
    let (wire_bytes, limit_bytes) = (message.len(), M::DECODED_BYTES_MAX);
    let own_bytes = wire_bytes.saturating_add(M::SHAPE.bytes);
    let left_bytes = limit_bytes.checked_sub(own_bytes);
    let left_bytes = left_bytes.ok_or(Fault::TooLarge);
    match left_bytes.and_then(|left_bytes| walk(message, &M::SHAPE, left_bytes)) {
        Ok(_) => Ok(()),
        Err(Fault::TooLarge) => Err(Refusal::TooLarge {
            wire_bytes,
            limit_bytes,
        }),
        Err(Fault::Malformed) => Err(Refusal::Malformed { wire_bytes }),
    }
}

enum Fault {
    TooLarge,
    Malformed,
}

/// Returns what is left of `left_bytes` after the fields of a message. Goes as deep as shapes do.
fn walk(mut message: &[u8], shape: &Shape, mut left_bytes: usize) -> Result<usize, Fault> {
    while !message.is_empty() {
        let (number, content) = take_field(&mut message).ok_or(Fault::Malformed)?;
        let mut fields = shape.fields.iter();
        let Some((_, child)) = fields.find(|(named, _)| *named == number) else {
            continue;
        };
        let left = left_bytes.checked_sub(child.bytes);
        left_bytes = left.ok_or(Fault::TooLarge)?;
        // A string holds no fields, and of others nothing is to be counted.
        if !child.fields.is_empty() {
            left_bytes = walk(content, child, left_bytes)?;
        }
    }
    Ok(left_bytes)
}

/// Takes a field off a message. Returns its number and, if it is one with a length, its content. `None`
/// for what prost does not take either, and for groups.
fn take_field<'m>(message: &mut &'m [u8]) -> Option<(u64, &'m [u8])> {
    let key = take_varint(message)?;
    let content = match key & 7 {
        0 => take_varint(message).map(|_| &[][..])?,
        1 => take(message, 8).map(|_| &[][..])?,
        2 => {
            let bytes = take_varint(message)?;
            take(message, usize::try_from(bytes).ok()?)?
        }
        5 => take(message, 4).map(|_| &[][..])?,
        _ => return None,
    };
    Some((key >> 3, content))
}

fn take<'m>(message: &mut &'m [u8], bytes: usize) -> Option<&'m [u8]> {
    let (taken, rest) = message.split_at_checked(bytes)?;
    *message = rest;
    Some(taken)
}

/// Takes a number off a message. Bits beyond 64 are lost: prost refuses them.
fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in [0, 7, 14, 21, 28, 35, 42, 49, 56, 63] {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The codec of all calls of the relay.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Bounded> Codec for BoundedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder::default()
    }
}

/// Decodes messages that take no more than they may.
#[derive(Debug)]
pub struct BoundedDecoder<M>(ProstDecoder<M>);

impl<M> Default for BoundedDecoder<M> {
    fn default() -> Self {
        Self(ProstDecoder::default())
    }
}

impl<M: Bounded> Decoder for BoundedDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let whole = message.chunk();
        if whole.len() != message.remaining() {
            return Err(Status::internal("a message is not in one piece"));
        }
        check::<M>(whole)?;
        self.0.decode(message)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic fails a test"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{
        MESSAGE_BYTES_MAX, OPEN_BYTES_MAX, REASON_BYTES_MAX, REQUEST_EVENTS_MAX,
        REQUEST_FRAMES_BYTES_MAX, REQUEST_OPENS_BYTES_MAX, RESPONSE_BYTES_MAX,
        STREAMS_PER_CALL_MAX,
    };
    use crate::relay::Chunk;
    use crate::relay::event::Kind;

    /// Returns a message that holds `content` as often as its bytes on the wire allow, in fields of these
    /// numbers, the outermost first; every field but the last one is there once.
    fn grown(path: &[u8], content: &[u8], wire_bytes: usize) -> Vec<u8> {
        let (last, outer) = path.split_last().expect("a field");
        let element = field(*last, content);
        // Each of the outer fields takes a key and a length.
        let count = (wire_bytes - 8 * outer.len()) / element.len();
        let list = element.repeat(count);
        outer
            .iter()
            .rev()
            .fold(list, |inner, number| field(*number, &inner))
    }

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        prost::encode_length_delimiter(content.len(), &mut field).unwrap();
        field.extend(content);
        field
    }

    /// Returns different names, the shortest there are.
    fn names() -> impl Iterator<Item = String> {
        let letters = || (0..=127_u8).map(char::from);
        let pairs = move || letters().flat_map(move |a| letters().map(move |b| (a, b)));
        let longer = pairs().flat_map(move |(a, b)| letters().map(move |c| [a, b, c]));
        let shorter = letters().map(String::from);
        shorter.chain(longer.map(String::from_iter))
    }

    /// Puts something of a number into a container.
    type Fill<'f> = &'f dyn Fn(&mut Container, usize);

    #[track_caller]
    fn check_grown<M: Bounded>(message: &[u8]) {
        let refusal = Refusal::TooLarge {
            wire_bytes: message.len(),
            limit_bytes: M::DECODED_BYTES_MAX,
        };
        assert_eq!(check::<M>(message), Err(refusal));
    }

    /// Whatever grows is refused, by each way that there is into a list or map.
    #[test]
    fn a_message_that_grows_is_refused() {
        let wire_bytes = MESSAGE_BYTES_MAX;
        check_grown::<ShipRequest>(&grown(&[1], &[], wire_bytes));
        check_grown::<ShipRequest>(&grown(&[1], &field(1, &[]), wire_bytes));
        check_grown::<ShipRequest>(&grown(&[1, 1, 4], &field(1, b"a"), wire_bytes));
        check_grown::<ShipRequest>(&grown(&[1, 1, 3, 6], &[], wire_bytes));
        check_grown::<ShipRequest>(&grown(&[1, 1, 3, 7], &field(1, b"abc"), wire_bytes));
        check_grown::<ShipRequest>(&grown(&[1, 1, 3, 9], b"x", wire_bytes));
        check_grown::<HostReport>(&grown(&[3], &[], wire_bytes));
        check_grown::<HostReport>(&grown(&[3], &field(8, &[]), wire_bytes));
        check_grown::<HostReport>(&grown(&[3, 8], &field(1, b"abc"), wire_bytes));
        check_grown::<CheckRequest>(&grown(&[2], &field(1, b"abc"), wire_bytes));
        check_grown::<CheckRequest>(&grown(&[1, 6], &[], wire_bytes));
        for list in 1..=4 {
            check_grown::<ShipResponse>(&grown(&[list], &[], RESPONSE_BYTES_MAX));
        }
        check_grown::<CheckResponse>(&grown(&[1], &[], RESPONSE_BYTES_MAX));
    }

    /// Prost follows the inner message to its end, and only then sees that its parent has been over.
    #[test]
    fn a_message_that_leads_out_of_its_parent_is_refused() {
        let labels = grown(&[3, 7], &field(1, b"abc"), MESSAGE_BYTES_MAX - 16);
        let open = field(1, &labels);
        let head = open.len() - labels.len();
        let mut message = vec![1 << 3 | 2, u8::try_from(head).unwrap()];
        message.extend(&open);
        let wire_bytes = message.len();
        let refusal = Refusal::Malformed { wire_bytes };
        assert_eq!(check::<ShipRequest>(&message), Err(refusal));
        assert!(ShipRequest::decode(message.as_slice()).is_err());
    }

    #[track_caller]
    fn check_good<M: Bounded>(message: &M, wire_bytes_max: usize) {
        let encoded = message.encode_to_vec();
        assert!(encoded.len() <= wire_bytes_max, "{} bytes", encoded.len());
        assert_eq!(check::<M>(&encoded), Ok(()));
    }

    fn request(kind: impl Fn(u32) -> Kind, count: usize) -> ShipRequest {
        let numbers = 0..u32::try_from(count).unwrap();
        let event = |number| Event {
            kind: Some(kind(number)),
        };
        ShipRequest {
            events: numbers.map(event).collect(),
            ..ShipRequest::default()
        }
    }

    /// Returns an open that holds as many of something as it may.
    fn full_open(bytes_max: usize, more: Fill<'_>) -> Kind {
        let mut container = Container::default();
        let mut count = 0;
        while container.encoded_len() + 64 * 1024 < bytes_max {
            (count..count + 8_000).for_each(|number| more(&mut container, number));
            count += 8_000;
        }
        Kind::Open(Box::new(Open {
            container: Some(container),
            ..Open::default()
        }))
    }

    #[test]
    fn whatever_containers_say_of_themselves_a_request_passes() {
        let names: Vec<String> = names().take(400_000).collect();
        let fill: [Fill<'_>; 3] = [
            &|container, _| container.args.push(String::new()),
            &|container, _| container.env.push("A".to_owned()),
            &|container, number| {
                container
                    .labels
                    .insert(names[number].clone(), String::new());
            },
        ];
        for more in fill {
            let mut request = request(|_| full_open(REQUEST_OPENS_BYTES_MAX, more), 1);
            let kind = Some(full_open(OPEN_BYTES_MAX, more));
            request.events.push(Event { kind });
            let frames = vec![0; REQUEST_FRAMES_BYTES_MAX].into();
            let chunk = Chunk {
                frames,
                ..Chunk::default()
            };
            let kind = Some(Kind::Chunk(chunk));
            request.events.push(Event { kind });
            check_good(&request, MESSAGE_BYTES_MAX);
        }
    }

    #[test]
    fn the_largest_good_messages_pass() {
        let frames = vec![0; REQUEST_FRAMES_BYTES_MAX / REQUEST_EVENTS_MAX / 4];
        let chunk = |stream| {
            Kind::Chunk(Chunk {
                stream,
                first_offset: u64::MAX,
                frames: frames.clone().into(),
                has_more: false,
            })
        };
        check_good(&request(chunk, 4 * REQUEST_EVENTS_MAX), MESSAGE_BYTES_MAX);
        let labels = names().take(40).map(|name| (name, "value".to_owned()));
        let container = Container {
            id: "c".repeat(64),
            labels: labels.collect(),
            ..Container::default()
        };
        let open = |stream| {
            Kind::Open(Box::new(Open {
                stream,
                container: Some(container.clone()),
                ..Open::default()
            }))
        };
        check_good(&request(open, 4 * REQUEST_EVENTS_MAX), MESSAGE_BYTES_MAX);
        let labels = names().take(8_000).map(|name| (name, "v".repeat(100)));
        let check = CheckRequest {
            container: Some(Container {
                labels: labels.collect(),
                ..Container::default()
            }),
            ..CheckRequest::default()
        };
        check_good(&check, OPEN_BYTES_MAX);
    }

    #[test]
    fn the_largest_good_report_and_answers_pass() {
        let reasons = names().take(8).map(|reason| (reason, u64::MAX));
        let stream = StreamReport {
            journal_id: "j".repeat(32),
            container_id: "c".repeat(64),
            container_name: "/web".into(),
            dropped_entries: reasons.collect(),
            ..StreamReport::default()
        };
        let report = HostReport {
            streams: vec![stream; STREAMS_PER_CALL_MAX + 1_024],
            ..HostReport::default()
        };
        check_good(&report, MESSAGE_BYTES_MAX);
        let refused = Refused {
            stream: u32::MAX,
            reason: "r".repeat(REASON_BYTES_MAX),
        };
        let response = ShipResponse {
            opened: vec![Opened::default(); 4_096],
            acks: vec![Ack::default(); 4_096],
            windows: vec![Window::default(); 4_096],
            refused: vec![refused; 256],
        };
        check_good(&response, RESPONSE_BYTES_MAX);
        let faults = vec!["f".repeat(REASON_BYTES_MAX); 64];
        let identity = "host".to_owned();
        check_good(&CheckResponse { faults, identity }, RESPONSE_BYTES_MAX);
        check_good(&ReportAck {}, RESPONSE_BYTES_MAX);
    }

    #[test]
    fn a_message_may_take_just_as_much_as_the_limit() {
        let limit = CheckRequest::DECODED_BYTES_MAX;
        let head = CheckRequest::SHAPE.bytes;
        let text = |bytes: usize| field(3, &vec![b'x'; bytes - 5]);
        let largest = text(limit - head);
        assert_eq!(check::<CheckRequest>(&largest), Ok(()));
        check_grown::<CheckRequest>(&text(limit - head + 1));
        let mut one_option = text(limit - head - STRING_TO_STRING.bytes - 2);
        one_option.extend(field(2, &[]));
        assert_eq!(check::<CheckRequest>(&one_option), Ok(()));
        one_option.extend([8 << 3, 0]);
        check_grown::<CheckRequest>(&one_option);
    }

    /// Shapes name each list and map that is in a call's messages, and each message that holds one.
    #[test]
    fn shapes_are_those_of_the_contract() {
        let files = protox::compile(["relay.proto"], ["."]).unwrap();
        let messages = &files.file[0].message_type;
        let fields = |name: &str| {
            let mut messages = messages.iter();
            let message = messages.find(|message| message.name() == name);
            message.map_or(&[][..], |message| &message.field)
        };
        let agrees = |name: &str, shape: &Shape| {
            assert!(name == "ReportAck" || !fields(name).is_empty(), "{name}");
            for field in fields(name) {
                let is_list = |number: i32| number == 3;
                let inner = fields(field.type_name().trim_start_matches(".relay.v1."));
                let mut labels = inner
                    .iter()
                    .chain([field])
                    .map(|field| field.label() as i32);
                let number = u64::try_from(field.number()).unwrap();
                let is_named = shape.fields.iter().any(|(named, _)| *named == number);
                assert!(is_named || !labels.any(is_list), "{name}.{}", field.name());
            }
        };
        agrees("ShipRequest", &ShipRequest::SHAPE);
        agrees("Event", &EVENT);
        agrees("Open", &OPEN);
        agrees("Container", &CONTAINER);
        agrees("Finish", &FINISH);
        for leaf in ["Chunk", "Hole", "Opened", "Ack", "Window", "Refused"] {
            agrees(leaf, &STRING);
        }
        agrees("HostReport", &HostReport::SHAPE);
        agrees("StreamReport", &STREAM_REPORT);
        agrees("CheckRequest", &CheckRequest::SHAPE);
        agrees("ShipResponse", &ShipResponse::SHAPE);
        agrees("CheckResponse", &CheckResponse::SHAPE);
        agrees("ReportAck", &ReportAck::SHAPE);
    }

    /// What prost decodes passes, and what is refused it does not decode: none of these is so large
    /// that it may not.
    fn agrees_with_prost<M: Bounded>(message: &[u8]) {
        if let Err(refusal) = check::<M>(message) {
            assert!(M::decode(message).is_err(), "{refusal}: {message:?}");
        }
    }

    fn agree_with_prost(message: &[u8]) {
        agrees_with_prost::<ShipRequest>(message);
        agrees_with_prost::<HostReport>(message);
        agrees_with_prost::<CheckRequest>(message);
        agrees_with_prost::<ShipResponse>(message);
        agrees_with_prost::<CheckResponse>(message);
    }

    /// Fields of all kinds but groups, in each other, most of them with numbers of the contract.
    fn fields() -> impl Strategy<Value = Vec<u8>> {
        let text = prop::collection::vec(b'a'..=b'b', 0..3).prop_map(|text| field(1, &text));
        text.prop_recursive(5, 64, 6, |inner| {
            let many = prop::collection::vec(inner, 0..6).prop_map(|fields| fields.concat());
            let number = 1..=11_u8;
            prop_oneof![
                6 => (number.clone(), many).prop_map(|(number, fields)| field(number, &fields)),
                1 => (number.clone(), any::<u8>())
                    .prop_map(|(number, value)| vec![number << 3, value | 0x80, 1]),
                1 => number.clone().prop_map(|number| [&[number << 3 | 5][..], &[7; 4]].concat()),
                1 => number.prop_map(|number| [&[number << 3 | 1][..], &[7; 8]].concat()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_prost_decodes_passes(
            message in prop::collection::vec(fields(), 0..6),
            cut in 0..40_usize,
        ) {
            let mut message = message.concat();
            agree_with_prost(&message);
            message.truncate(cut);
            agree_with_prost(&message);
        }

        #[test]
        fn no_bytes_do_any_harm(
            mut message in prop::collection::vec(any::<u8>(), 0..64),
            good in fields(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let check_all = |message: &[u8]| {
                let ship = check::<ShipRequest>(message).is_ok();
                ship | check::<HostReport>(message).is_ok() | check::<CheckRequest>(message).is_ok()
            };
            check_all(&message);
            message.splice(..0, good);
            let at = at.index(message.len());
            message[at] = byte;
            check_all(&message);
        }
    }
}
