use proptest::prelude::*;

use super::*;

/// The bytes that these digits stand for.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<_> = digits.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

#[test]
fn the_greeting_is_as_in_the_document() {
    assert_eq!(greeting().to_vec(), hex("4e42444d41474943 49484156454f5054 0003"));
    assert_eq!(decode_greeting(&greeting()).unwrap(), HandshakeFlags::all());
    let mut old = greeting();
    old[8..16].copy_from_slice(&hex("0000420281861253"));
    assert!(decode_greeting(&old).unwrap_err().to_string().contains("oldstyle"));
    old[0] = b'X';
    assert!(decode_greeting(&old).is_err());
}

#[test]
fn options_are_as_in_the_document() {
    let go = OptionHeader::encode(opt::GO, &encode_go("hda", &[info::BLOCK_SIZE]));
    let expected = hex("49484156454f5054 00000007 0000000b 00000003 686461 0001 0003");
    assert_eq!(go, expected);
    let header = OptionHeader::decode(go.first_chunk().unwrap()).unwrap();
    assert_eq!(header, OptionHeader { option: 7, len: 11 });
    assert_eq!(decode_go(&go[16..]), Some(("hda", vec![3])));

    let meta = encode_meta("hda", &[BASE_ALLOCATION, "x:"]);
    let found = decode_meta(&meta).unwrap();
    assert_eq!(found, MetaQuery { export: "hda", queries: vec![BASE_ALLOCATION, "x:"] });

    let reply = option_reply(opt::LIST, rep::SERVER, &encode_server("hda", "a disk"));
    assert_eq!(reply[..20], hex("0003e889045565a9 00000003 00000002 0000000d"));
    let header = OptionReplyHeader::decode(reply.first_chunk().unwrap()).unwrap();
    assert_eq!(header, OptionReplyHeader { option: 3, kind: 2, len: 13 });
    assert_eq!(decode_server(&reply[20..]), Some(("hda", "a disk")));
    let context = encode_reply_meta(7, BASE_ALLOCATION);
    assert_eq!(decode_reply_meta(&context), Some((7, BASE_ALLOCATION)));
}

#[test]
fn what_is_told_of_an_export_is_as_in_the_document() {
    let flags = ExportFlags::HAS_FLAGS | ExportFlags::SEND_FLUSH;
    let export = Info::Export(1 << 30, flags).encode(opt::GO);
    assert_eq!(export[20..], hex("0000 0000000040000000 0005"));
    for info in [
        Info::Export(u64::MAX, ExportFlags::all()),
        Info::Name("hda"),
        Info::Description("a disk"),
        Info::BlockSize(512, 4096, 32 << 20),
    ] {
        assert_eq!(decode_reply_info(&info.encode(opt::INFO)[20..]), Some(info));
    }
    assert_eq!(decode_reply_info(&[0, 9, 1, 2]), Some(Info::Other(9)));
    assert_eq!(decode_reply_info(&[0]), None);
}

#[test]
fn requests_are_as_in_the_document() {
    let request = Request {
        command: Command::Write,
        flags: CommandFlags::FUA,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1_0000_0000,
        len: 512,
    };
    let mut bytes = Vec::new();
    request.encode(Mode::Simple, &mut bytes);
    let expected = hex("25609513 0001 0001 0102030405060708 0000000100000000 00000200");
    assert_eq!(bytes, expected);
    assert_eq!(Request::decode(Mode::Structured, &bytes).unwrap(), request);
    assert!(Request::decode(Mode::Extended, &[&bytes[..], &[0; 4]].concat()).is_err());
    assert!(Request::decode(Mode::Simple, &bytes[..27]).is_err());
    let mut bytes = Vec::new();
    request.encode(Mode::Extended, &mut bytes);
    let expected = hex("21e41c71 0001 0001 0102030405060708 0000000100000000 0000000000000200");
    assert_eq!(bytes, expected);
    assert_eq!(Request::decode(Mode::Extended, &bytes).unwrap(), request);
}

#[test]
fn replies_are_as_in_the_document() {
    assert_eq!(simple_header(9, 5).to_vec(), hex("67446698 00000005 0000000000000009"));
    let chunk = Chunk { flags: ChunkFlags::DONE, kind: chunk::OFFSET_DATA, cookie: 9, len: 520 };
    let mut bytes = Vec::new();
    chunk_header(Mode::Structured, chunk, 4096, &mut bytes);
    assert_eq!(bytes, hex("668e33ef 0001 0001 0000000000000009 00000208"));
    assert_eq!(Header::decode(Mode::Structured, &bytes).unwrap(), Some((Header::Chunk(chunk), 20)));
    assert!(Header::decode(Mode::Simple, &bytes).is_err());
    assert_eq!(Header::decode(Mode::Structured, &bytes[..19]).unwrap(), None);
    let mut bytes = Vec::new();
    chunk_header(Mode::Extended, chunk, 4096, &mut bytes);
    let expected = hex("6e8a278c 0001 0001 0000000000000009 0000000000001000 0000000000000208");
    assert_eq!(bytes, expected);
    assert_eq!(Header::decode(Mode::Extended, &bytes).unwrap(), Some((Header::Chunk(chunk), 32)));

    let blocks =
        [BlockDescriptor { len: 4096, status: 3 }, BlockDescriptor { len: 512, status: 0 }];
    let mut narrow = Vec::new();
    block_status(Mode::Structured, 1, &blocks, &mut narrow);
    assert_eq!(narrow, hex("00000001 00001000 00000003 00000200 00000000"));
    let mut wide = Vec::new();
    block_status(Mode::Extended, 1, &blocks, &mut wide);
    let expected = "00000001 00000002 0000000000001000 0000000000000003 0000000000000200";
    assert_eq!(wide, [hex(expected), vec![0; 8]].concat());
    let status = Payload::Status { context: 1, blocks: blocks.to_vec() };
    assert_eq!(decode_payload(chunk::BLOCK_STATUS, &narrow).unwrap(), status);
    assert_eq!(decode_payload(chunk::BLOCK_STATUS_EXT, &wide).unwrap(), status);
    // More descriptors than there are, and one of no bytes.
    wide[7] = 3;
    assert!(decode_payload(chunk::BLOCK_STATUS_EXT, &wide).is_err());
    narrow[4..8].fill(0);
    assert!(decode_payload(chunk::BLOCK_STATUS, &narrow).is_err());

    let mut error = Vec::new();
    error_payload(error_value::INVAL, "no", &mut error);
    assert_eq!(error, hex("00000016 0002 6e6f"));
    let payload = |offset| Payload::Error { error: 22, message: "no".into(), offset };
    assert_eq!(decode_payload(chunk::ERROR, &error).unwrap(), payload(None));
    error.extend(4096_u64.to_be_bytes());
    assert_eq!(decode_payload(chunk::ERROR_OFFSET, &error).unwrap(), payload(Some(4096)));
    assert!(decode_payload(chunk::ERROR, &error[..7]).is_err());
    assert!(decode_payload(77, &[]).is_err());
}

#[test]
fn long_texts_of_errors_end_between_characters() {
    let mut out = Vec::new();
    error_payload(error_value::IO, &"ä".repeat(1000).replacen('ä', "x", 1), &mut out);
    let Payload::Error { message, .. } = decode_payload(chunk::ERROR, &out).unwrap() else {
        panic!("no error");
    };
    assert!(message.len() <= crate::limits::NBD_MAX_MESSAGE && message.ends_with('ä'));
}

#[test]
fn every_error_has_a_number_that_exists() {
    let known = [1, 5, 12, 22, 28, 75, 95, 108];
    for raw in 1..=133 {
        let errno = Errno::from_raw_os_error(raw);
        let value = error_to_wire(errno);
        assert!(known.contains(&value), "{errno}");
        assert_eq!(error_to_wire(error_from_wire(value)), value);
    }
    assert_eq!(error_to_wire(Errno::ROFS), 1);
    assert_eq!(error_from_wire(12345), Errno::INVAL);
}

proptest! {
    #[test]
    fn requests_come_back_as_they_were(
        numbers in (any::<u16>(), any::<u16>(), any::<u64>(), any::<u64>(), any::<u64>()),
        extended in any::<bool>(),
    ) {
        let (command, flags, cookie, offset, len) = numbers;
        let (mode, len) = match extended {
            true => (Mode::Extended, len),
            false => (Mode::Simple, len & 0xffff_ffff),
        };
        let flags = CommandFlags::from_bits_retain(flags);
        let request = Request { command: command.into(), flags, cookie, offset, len };
        let mut bytes = Vec::new();
        request.encode(mode, &mut bytes);
        prop_assert_eq!(bytes.len(), Request::header_len(mode));
        prop_assert_eq!(Request::decode(mode, &bytes).unwrap(), request);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind: u16,
    ) {
        let _ = (decode_go(&bytes), decode_meta(&bytes), decode_server(&bytes));
        let _ = (decode_reply_info(&bytes), decode_reply_meta(&bytes), decode_export(&bytes));
        let _ = decode_payload(kind, &bytes);
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let _ = (Header::decode(mode, &bytes), Request::decode(mode, &bytes));
        }
    }
}
