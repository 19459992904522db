//! What other processes send: control messages, and the bodies of requests to a volume's owner.
#![no_main]

use std::sync::OnceLock;

use cfs::wire::{ArchivedListing, ArchivedPages, ArchivedRecord, ArchivedStatFsBody};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use oslet::id::PageRef;
use oslet::{rpc, wire};
use rkyv::util::AlignedVec;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    // A message with some bytes changed, or the input as it is.
    let changed = match input.byte() {
        0 => None,
        sample => samples().get(usize::from(sample) % samples().len()),
    };
    let mut bytes = changed.cloned().unwrap_or_else(|| input.0.to_vec());
    while changed.is_some() && !input.is_empty() {
        let len = bytes.len();
        bytes[usize::from(input.half()) % len] = input.byte();
    }
    decode(&bytes);
});

fn decode(data: &[u8]) {
    if let Ok(message) = wire::Message::decode(data, "fuzz") {
        let again = message.encode().expect("it was a message");
        assert_eq!(wire::Message::decode(&again, "fuzz").expect("our own"), message);
    }
    let mut body = AlignedVec::<16>::with_capacity(data.len());
    body.extend_from_slice(data);
    if let Ok(pages) = rpc::access::<ArchivedPages>(&body, "fuzz") {
        for word in pages.refs.iter() {
            let _ = PageRef::from_word(word.to_native());
        }
    }
    if let Ok(listing) = rpc::access::<ArchivedListing>(&body, "fuzz") {
        for entry in listing.entries.iter() {
            assert!(entry.name.len() <= data.len());
        }
    }
    if let Ok(record) = rpc::access::<ArchivedRecord>(&body, "fuzz") {
        cfs::cache::InodeRecord::from_words(&record.words.map(|word| word.to_native()));
    }
    let _ = rpc::access::<ArchivedStatFsBody>(&body, "fuzz");
}

/// Messages and bodies as honest processes send them.
fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let status = wire::Status {
            who: wire::Who { index: 16, epoch: 3 },
            process: wire::Process { pid: 1, start_time: 2 },
            frames: [3, 2, 1],
            clients: 0,
            volumes: 1,
            devices: 2,
            members: vec![(1, 2); 8],
            details: vec![wire::Detail { name: "volume root".into(), value: "clean".into() }],
        };
        let entry = cfs::wire::Entry { ino: 12, kind: 8, next: 24, name: b"a name".to_vec() };
        let bodies = [
            wire::Message::Status(status).encode(),
            wire::Message::Stop { cluster: true }.encode(),
            wire::Message::Refused { why: "no room for another".into() }.encode(),
            rpc::encode(&cfs::wire::Pages { refs: vec![1 << 40, 7, u64::MAX] }),
            rpc::encode(&cfs::wire::Listing { entries: vec![entry], end: true }),
            rpc::encode(&cfs::wire::Record { words: [1; cfs::cache::RECORD_VALUES] }),
        ];
        bodies.into_iter().map(|body| body.expect("a small message").to_vec()).collect()
    })
}
