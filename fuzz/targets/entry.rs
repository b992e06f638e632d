//! Docker's framing and the view of an entry: any bytes are taken or refused, never misread.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::frame::{Decoded, EntryView, decode, encode, resync};
use proto::relay::LogEntry;

fuzz_target!(|bytes: &[u8]| {
    walk(bytes);
    compare(bytes);
});

/// Walks a buffer as the journal's reader does: frame by frame, over damage to the next boundary.
fn walk(mut rest: &[u8]) {
    loop {
        match decode(rest) {
            Decoded::Frame { entry, frame_bytes } => {
                assert_eq!(&rest[frame_bytes - entry.len()..frame_bytes], entry);
                EntryView::parse(entry).ok();
                rest = &rest[frame_bytes..];
            }
            Decoded::Incomplete => return,
            Decoded::Malformed(_) => match resync(rest) {
                None => return,
                Some(skipped) => {
                    assert!(0 < skipped && skipped < rest.len());
                    rest = &rest[skipped..];
                    assert!(!matches!(decode(rest), Decoded::Malformed(_)));
                }
            },
        }
    }
}

/// What prost understands, written as the engine writes it, the view understands as well.
fn compare(bytes: &[u8]) {
    let Ok(entry) = LogEntry::decode(bytes) else {
        return;
    };
    let mut frame = Vec::new();
    encode(&entry, &mut frame);
    let view = EntryView::parse(&frame[4..]).unwrap();
    assert_eq!((view.line, view.time_nano), (&*entry.line, entry.time_nano));
    assert_eq!(view.source.as_str() == "stderr", entry.source == "stderr");
    assert_eq!(view.partial.is_some(), entry.partial);
    if let Some(partial) = view.partial {
        let metadata = entry.partial_log_metadata.unwrap_or_default();
        let found = (partial.id, partial.ordinal, partial.last);
        assert_eq!(
            found,
            (metadata.id.as_bytes(), metadata.ordinal, metadata.last)
        );
    }
}
