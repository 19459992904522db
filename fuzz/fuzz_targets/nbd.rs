//! Both sides of NBD. The first byte says which: the server's handshake in pieces, requests that
//! are judged and answered, or what a client takes in.
#![no_main]

use std::sync::Arc;

use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use proxydev::nbd::handshake::{Handshake, Step, TlsPolicy};
use proxydev::nbd::transmission::{Rules, Verdict};
use proxydev::nbd::wire::{self, ExportFlags, Header, Mode, Payload, Request, chunk};
use proxydev::nbd::{Export, Exports, export::Geometry};
use proxydev::{BlockDevice, DeviceInfo, limits};

const SIZE: u64 = 1 << 30;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.byte() % 3 {
        0 => handshake(input),
        1 => requests(input),
        _ => replies(input),
    }
});

/// The same bytes in any pieces have one meaning, and answers are of bounded size.
fn handshake(mut input: Input<'_>) {
    let head = input.byte();
    let policy = [TlsPolicy::Off, TlsPolicy::Selective, TlsPolicy::Forced][usize::from(head % 3)];
    let mut handshake = Handshake::new(Arc::new(Disk), policy);
    let (mut held, mut out) = (Vec::new(), Vec::new());
    let mut pieces = Input(&data_of(head));
    while !input.is_empty() {
        held.extend(input.bytes(usize::from(pieces.byte() % 32) + 1));
        loop {
            match handshake.advance(&held, &mut out) {
                Err(_) | Ok((_, Step::End)) => return,
                Ok((taken, Step::Done(agreed))) => {
                    assert!(taken <= held.len());
                    assert!(!agreed.allocation || agreed.mode != Mode::Simple);
                    return;
                }
                Ok((taken, Step::StartTls)) => {
                    assert!(policy != TlsPolicy::Off);
                    held.drain(..taken);
                    handshake.secured();
                }
                Ok((0, Step::More)) => break,
                Ok((taken, Step::More)) => drop(held.drain(..taken)),
            }
        }
        assert!(held.len() <= limits::NBD_MAX_OPTION + 64 && out.len() < 1 << 20);
    }
}

fn data_of(seed: u8) -> [u8; 64] {
    std::array::from_fn(|i| seed.wrapping_mul(31).wrapping_add((i as u8).wrapping_mul(7)))
}

/// What is carried out lies within the export, and a client can read every answer.
fn requests(mut input: Input<'_>) {
    let head = input.byte();
    let mode = mode(head);
    let flags = ExportFlags::from_bits_truncate(input.half());
    let geometry = Geometry { size: SIZE, block: 512 << (head >> 4), best: 4096, flags };
    let rules = Rules { geometry, mode, allocation: head & 8 != 0 };
    while let Ok(request) = Request::decode(mode, input.bytes(Request::header_len(mode))) {
        let Ok(verdict) = rules.judge(&request) else { return };
        let reply = match verdict {
            Verdict::Disconnect => return,
            Verdict::Do => {
                assert!(request.offset + request.len <= SIZE);
                rules.data(&request)
            }
            Verdict::Nothing => rules.done(&request),
            Verdict::Refuse(errno, message) => rules.failed(&request, errno, message),
        };
        let (header, len) = Header::decode(mode, &reply).unwrap().unwrap();
        if let Header::Chunk(chunk) = header
            && chunk.kind != chunk::OFFSET_DATA
        {
            wire::decode_payload(chunk.kind, &reply[len..]).unwrap();
        }
        input.bytes(request.payload_len(mode) as usize);
    }
}

fn replies(mut input: Input<'_>) {
    let mode = mode(input.byte());
    while let Ok(Some((header, len))) = Header::decode(mode, input.0) {
        input.bytes(len);
        let Header::Chunk(chunk) = header else { continue };
        let payload = input.bytes(chunk.len.min(limits::NBD_MAX_CHUNK as u64) as usize);
        if let Ok(Payload::Status { blocks, .. }) = wire::decode_payload(chunk.kind, payload) {
            assert!(!blocks.is_empty() && blocks.len() <= limits::NBD_MAX_EXTENTS * 2 + 4);
        }
    }
    let data = input.0;
    let _ = (wire::decode_reply_info(data), wire::decode_reply_meta(data));
    let _ = wire::decode_server(data);
}

fn mode(byte: u8) -> Mode {
    [Mode::Simple, Mode::Structured, Mode::Extended][usize::from(byte % 3)]
}

/// A disk of which only the size is asked.
struct Disk;

impl Exports for Disk {
    fn list(&self) -> Vec<(String, String)> {
        vec![("disk".into(), "nothing".into())]
    }

    fn open(&self, name: &str) -> Option<Export> {
        let device: Arc<dyn BlockDevice> = Arc::new(Disk);
        let known = matches!(name, "" | "disk");
        known.then(|| Export { read_only: name.is_empty(), ..Export::new(device) })
    }
}

impl BlockDevice for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: SIZE,
            block_size: 512,
            optimal_size: 4096,
            memory_alignment: 1,
            max_transfer: limits::MAX_TRANSFER,
            read_only: false,
            discard: true,
        }
    }

    fn submit(&self, _: proxydev::Request) {}
}
