use super::*;
use crate::backend::ram::RamDevice;
use crate::nbd::ExportTable;
use crate::nbd::wire::{ExportFlags, OptionReplyHeader};
use crate::testing::arena;

const FLAGS: [u8; 4] = [0, 0, 0, 3];

/// A server with one export, "ram", and the client's half of a conversation with it.
struct Talk {
    handshake: Handshake,
    out: Vec<u8>,
}

impl Talk {
    fn new(policy: TlsPolicy) -> Self {
        let exports = ExportTable::new();
        let device = RamDevice::new("ram", 64 << 10, &arena(128)).unwrap();
        exports.add(Export::new(Arc::new(device))).unwrap();
        let mut talk = Self { handshake: Handshake::new(exports, policy), out: Vec::new() };
        assert!(matches!(talk.send(&FLAGS), Step::More));
        talk
    }

    fn try_send(&mut self, mut bytes: &[u8]) -> Result<Step> {
        loop {
            let (taken, step) = self.handshake.advance(bytes, &mut self.out)?;
            bytes = &bytes[taken..];
            if bytes.is_empty() || !matches!(step, Step::More) {
                return Ok(step);
            }
            assert!(taken > 0, "bytes are left");
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Step {
        self.try_send(bytes).unwrap()
    }

    /// Sends an option; the kinds of the answers with their data.
    fn ask(&mut self, option: u32, data: &[u8]) -> (Vec<(u32, Vec<u8>)>, Step) {
        let step = self.send(&OptionHeader::encode(option, data));
        (self.answers(option), step)
    }

    fn answers(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        let mut answers = Vec::new();
        while let Some(header) = rest.first_chunk() {
            let header = OptionReplyHeader::decode(header).unwrap();
            assert_eq!(header.option, option);
            let end = OptionReplyHeader::LEN + header.len as usize;
            answers.push((header.kind, rest[OptionReplyHeader::LEN..end].to_vec()));
            rest = &rest[end..];
        }
        answers
    }

    fn kinds(&mut self, option: u32, data: &[u8]) -> Vec<u32> {
        self.ask(option, data).0.into_iter().map(|(kind, _)| kind).collect()
    }
}

#[test]
fn exports_are_listed_told_of_and_taken() {
    let mut talk = Talk::new(TlsPolicy::Off);
    let (answers, _) = talk.ask(opt::LIST, b"");
    assert_eq!(answers[0], (rep::SERVER, wire::encode_server("ram", "")));
    assert_eq!(answers[1].0, rep::ACK);
    assert_eq!(talk.kinds(opt::INFO, &wire::encode_go("none", &[])), [rep::ERR_UNKNOWN]);
    assert_eq!(talk.kinds(opt::STRUCTURED_REPLY, b""), [rep::ACK]);
    let (answers, step) = talk.ask(opt::GO, &wire::encode_go("", &[info::NAME]));
    let infos: Vec<_> = answers.iter().map(|(_, data)| wire::decode_reply_info(data)).collect();
    let Some(Info::Export(size, flags)) = infos[0] else { panic!("{infos:?}") };
    assert_eq!(size, 64 << 10);
    let expected = ExportFlags::SEND_DF | ExportFlags::CAN_MULTI_CONN | ExportFlags::SEND_FAST_ZERO;
    assert!(flags.contains(expected) && !flags.contains(ExportFlags::READ_ONLY), "{flags:?}");
    assert_eq!(infos[1], Some(Info::BlockSize(512, 4096, 32 << 20)));
    assert_eq!(infos[2], Some(Info::Name("ram")));
    let Step::Done(agreed) = step else { panic!("{step:?}") };
    assert_eq!((agreed.mode, agreed.allocation), (Mode::Structured, false));
}

#[test]
fn a_handshake_in_single_bytes_is_one_as_well() {
    let mut talk = Talk::new(TlsPolicy::Off);
    let all = [
        OptionHeader::encode(99, b"whatever"),
        OptionHeader::encode(opt::EXTENDED_HEADERS, b""),
        OptionHeader::encode(opt::GO, &wire::encode_go("ram", &[])),
    ];
    let all = all.concat();
    let mut held = Vec::new();
    for (index, byte) in all.iter().enumerate() {
        held.push(*byte);
        loop {
            let (taken, step) = talk.handshake.advance(&held, &mut talk.out).unwrap();
            held.drain(..taken);
            match step {
                Step::Done(agreed) => {
                    assert_eq!(index, all.len() - 1);
                    assert_eq!(agreed.mode, Mode::Extended);
                    return;
                }
                Step::More if taken == 0 || held.is_empty() => break,
                Step::More => {}
                step => panic!("{step:?}"),
            }
        }
    }
    panic!("no end");
}

#[test]
fn options_with_bad_data_are_refused_and_the_next_one_is_not() {
    let mut talk = Talk::new(TlsPolicy::Off);
    assert_eq!(talk.kinds(4, b""), [rep::ERR_UNSUP]);
    assert_eq!(talk.kinds(77, b"of the future"), [rep::ERR_UNSUP]);
    assert_eq!(talk.kinds(opt::LIST, b"x"), [rep::ERR_INVALID]);
    assert_eq!(talk.kinds(opt::STRUCTURED_REPLY, b"x"), [rep::ERR_INVALID]);
    assert_eq!(talk.kinds(opt::STARTTLS, b""), [rep::ERR_POLICY]);
    assert_eq!(talk.kinds(opt::INFO, b"\0\0\0\xff"), [rep::ERR_INVALID]);
    assert_eq!(talk.kinds(opt::INFO, &wire::encode_go("ram\0", &[])), [rep::ERR_INVALID]);
    let long = [&wire::encode_go("ram", &[1, 2]), &b"!"[..]].concat();
    assert_eq!(talk.kinds(opt::GO, &long), [rep::ERR_INVALID]);
    assert_eq!(talk.kinds(opt::GO, &vec![0; limits::NBD_MAX_OPTION + 1]), [rep::ERR_TOO_BIG]);
    let name = "n".repeat(limits::NBD_MAX_STRING);
    let mut data = wire::encode_go(&name, &[]);
    assert_eq!(talk.kinds(opt::INFO, &data), [rep::ERR_UNKNOWN]);
    data[..4].copy_from_slice(&4097_u32.to_be_bytes());
    data.insert(4, b'n');
    assert_eq!(talk.kinds(opt::INFO, &data), [rep::ERR_INVALID]);
    let (answers, step) = talk.ask(opt::ABORT, b"");
    assert_eq!(answers[0].0, rep::ACK);
    assert!(matches!(step, Step::End));
}

#[test]
fn what_makes_no_sense_ends_the_connection() {
    let exports = ExportTable::new();
    let fresh = || Handshake::new(Arc::clone(&exports) as _, TlsPolicy::Off);
    let out = &mut Vec::new();
    assert!(fresh().advance(&[0, 0, 0, 0], out).is_err(), "no fixed newstyle");
    assert!(fresh().advance(&[0, 0, 0, 7], out).is_err(), "an unknown flag");
    let mut talk = Talk::new(TlsPolicy::Off);
    assert!(talk.try_send(b"GET / HTTP/1.1\r\n").is_err());
    let mut talk = Talk::new(TlsPolicy::Off);
    assert!(talk.try_send(&OptionHeader::encode(opt::EXPORT_NAME, b"none")).is_err());
    let mut talk = Talk::new(TlsPolicy::Off);
    let mut endless = OptionHeader::encode(99, b"");
    endless[12..].fill(0xff);
    assert!(talk.try_send(&endless).is_err());
    let mut talk = Talk::new(TlsPolicy::Off);
    for _ in 0..limits::NBD_MAX_OPTIONS {
        talk.send(&OptionHeader::encode(99, b""));
    }
    assert!(talk.try_send(&OptionHeader::encode(opt::LIST, b"")).is_err());
}

#[test]
fn old_clients_take_an_export_without_an_answer() {
    let mut talk = Talk::new(TlsPolicy::Off);
    let step = talk.send(&OptionHeader::encode(opt::EXPORT_NAME, b"ram"));
    assert!(matches!(step, Step::Done(agreed) if agreed.mode == Mode::Simple));
    assert_eq!(talk.out.len(), 10);
    let mut talk = Talk::new(TlsPolicy::Off);
    talk.handshake.state = State::Flags;
    talk.send(&[0, 0, 0, 1]);
    talk.send(&OptionHeader::encode(opt::EXPORT_NAME, b""));
    assert_eq!(talk.out.len(), 10 + wire::EXPORT_PADDING);
    assert_eq!(talk.out[..8], (64_u64 << 10).to_be_bytes());
}

#[test]
fn metadata_contexts_are_chosen_for_one_name() {
    let set = opt::SET_META_CONTEXT;
    let mut talk = Talk::new(TlsPolicy::Off);
    let query = wire::encode_meta("ram", &["base:", wire::BASE_ALLOCATION, "qemu:x"]);
    assert_eq!(talk.kinds(set, &query), [rep::ERR_INVALID], "simple replies have no contexts");
    talk.ask(opt::STRUCTURED_REPLY, b"");
    for (queries, count) in [(&[][..], 1), (&["base:"], 1), (&["qemu:"], 0)] {
        let query = wire::encode_meta("ram", queries);
        assert_eq!(talk.kinds(opt::LIST_META_CONTEXT, &query).len(), count + 1, "{queries:?}");
    }
    assert_eq!(talk.kinds(set, &wire::encode_meta("none", &[])), [rep::ERR_UNKNOWN]);
    assert_eq!(talk.kinds(set, &query), [rep::META_CONTEXT, rep::ACK]);
    // The default export has this name too, but the client asked for another.
    let (_, step) = talk.ask(opt::GO, &wire::encode_go("", &[]));
    assert!(matches!(step, Step::Done(agreed) if !agreed.allocation));
    let (_, step) = talk.ask(opt::GO, &wire::encode_go("ram", &[]));
    assert!(matches!(step, Step::Done(agreed) if agreed.allocation));
    assert_eq!(talk.kinds(set, &wire::encode_meta("ram", &["base:"])), [rep::ACK]);
    let (_, step) = talk.ask(opt::GO, &wire::encode_go("ram", &[]));
    assert!(matches!(step, Step::Done(agreed) if !agreed.allocation), "the last choice counts");
    // A count that the data cannot hold.
    let mut query = wire::encode_meta("ram", &[]);
    query[7..].fill(0xff);
    assert_eq!(talk.kinds(set, &query), [rep::ERR_INVALID]);
}

#[test]
fn without_tls_nothing_is_told_where_it_is_forced() {
    let mut talk = Talk::new(TlsPolicy::Forced);
    assert_eq!(talk.kinds(opt::LIST, b""), [rep::ERR_TLS_REQD]);
    assert_eq!(talk.kinds(opt::GO, &wire::encode_go("ram", &[])), [rep::ERR_TLS_REQD]);
    assert_eq!(talk.kinds(1234, b"abc"), [rep::ERR_TLS_REQD]);
    let (answers, step) = talk.ask(opt::STARTTLS, b"");
    assert_eq!(answers[0].0, rep::ACK);
    assert!(matches!(step, Step::StartTls));
    talk.handshake.secured();
    assert_eq!(talk.kinds(opt::STARTTLS, b""), [rep::ERR_INVALID]);
    assert_eq!(talk.kinds(opt::LIST, b""), [rep::SERVER, rep::ACK]);
    let mut talk = Talk::new(TlsPolicy::Forced);
    assert!(talk.try_send(&OptionHeader::encode(opt::EXPORT_NAME, b"ram")).is_err());
    let mut talk = Talk::new(TlsPolicy::Selective);
    talk.ask(opt::EXTENDED_HEADERS, b"");
    talk.ask(opt::STARTTLS, b"");
    talk.handshake.secured();
    let (_, step) = talk.ask(opt::GO, &wire::encode_go("ram", &[]));
    assert!(matches!(step, Step::Done(agreed) if agreed.mode == Mode::Simple), "agreed on before");
}

#[test]
fn a_server_about_to_end_says_so() {
    let mut talk = Talk::new(TlsPolicy::Off);
    talk.handshake.stop();
    assert_eq!(talk.kinds(opt::LIST, b""), [rep::ERR_SHUTDOWN]);
    assert_eq!(talk.kinds(opt::ABORT, b""), [rep::ACK]);
}
