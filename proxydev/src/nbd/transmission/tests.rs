use super::*;

const SIZE: u64 = 64 << 20;
const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

fn rules(mode: Mode, flags: ExportFlags) -> Rules {
    let geometry = Geometry { size: SIZE, block: 512, best: 4096, flags };
    Rules { geometry, mode, allocation: mode != Mode::Simple }
}

fn request(command: Command, flags: CommandFlags, offset: u64, len: u64) -> Request {
    Request { command, flags, cookie: 7, offset, len }
}

fn verdict(mode: Mode, flags: ExportFlags, request: Request) -> Verdict {
    rules(mode, flags).judge(&request).unwrap()
}

fn refused(verdict: Verdict) -> Option<Errno> {
    match verdict {
        Verdict::Refuse(errno, _) => Some(errno),
        Verdict::Do | Verdict::Nothing | Verdict::Disconnect => None,
    }
}

const NONE: CommandFlags = CommandFlags::empty();
const COMMANDS: [Command; 5] =
    [Command::Read, Command::Write, Command::Trim, Command::WriteZeroes, Command::Cache];

#[test]
fn bad_requests_are_answered_as_the_table_says() {
    for mode in MODES {
        let judge = |r| refused(verdict(mode, ExportFlags::HAS_FLAGS, r));
        for command in COMMANDS {
            let grows = matches!(command, Command::Write | Command::WriteZeroes);
            let beyond = if grows { Errno::NOSPC } else { Errno::INVAL };
            for (offset, len) in [(SIZE - 512, 1024), (SIZE, 512), (u64::MAX - 511, 512)] {
                assert_eq!(judge(request(command, NONE, offset, len)), Some(beyond), "{command:?}");
            }
            for (offset, len) in [(1, 512), (0, 511), (256, 256)] {
                let misaligned = request(command, NONE, offset, len);
                assert_eq!(judge(misaligned), Some(Errno::INVAL), "{command:?}");
            }
            let unknown = CommandFlags::from_bits_retain(1 << 9);
            assert_eq!(judge(request(command, unknown, 0, 512)), Some(Errno::INVAL));
            let empty = request(command, NONE, SIZE, 0);
            assert_eq!(verdict(mode, ExportFlags::HAS_FLAGS, empty), Verdict::Nothing);
            assert_eq!(judge(request(command, CommandFlags::FUA, 0, 512)), None, "{command:?}");
        }
        for command in [Command::Other(8), Command::Other(999)] {
            assert_eq!(judge(request(command, NONE, 0, 512)), Some(Errno::INVAL));
        }
        let long = request(Command::Read, NONE, 0, (32 << 20) + 512);
        assert_eq!(judge(long), Some(Errno::OVERFLOW));
        assert_eq!(judge(request(Command::Read, NONE, 0, 32 << 20)), None);
        assert_eq!(judge(request(Command::Flush, NONE, 0, 512)), Some(Errno::INVAL));
        assert_eq!(
            judge(request(Command::Read, CommandFlags::NO_HOLE, 0, 512)),
            Some(Errno::INVAL)
        );
        let df = judge(request(Command::Read, CommandFlags::DF, 0, 64 << 10));
        assert_eq!(df, (mode == Mode::Simple).then_some(Errno::INVAL));
        let status = judge(request(Command::BlockStatus, CommandFlags::REQ_ONE, 0, SIZE));
        assert_eq!(status, (mode == Mode::Simple).then_some(Errno::INVAL));
        assert_eq!(judge(request(Command::BlockStatus, NONE, 0, 0)), Some(Errno::INVAL));
        assert_eq!(judge(request(Command::Trim, NONE, 0, SIZE)), None, "of any length");
    }
}

#[test]
fn a_read_only_export_is_only_read() {
    for command in COMMANDS {
        let verdict = verdict(Mode::Simple, ExportFlags::READ_ONLY, request(command, NONE, 0, 512));
        let reads = matches!(command, Command::Read | Command::Cache);
        assert_eq!(refused(verdict), (!reads).then_some(Errno::PERM), "{command:?}");
    }
}

#[test]
fn payloads_are_passed_over_unless_they_are_too_long() {
    let flags = ExportFlags::HAS_FLAGS;
    let big = request(Command::Write, NONE, 0, (32 << 20) + 1);
    assert!(rules(Mode::Simple, flags).judge(&big).is_err());
    // With extended headers every command can have one.
    let payload = request(Command::Read, CommandFlags::PAYLOAD_LEN, 0, 4096);
    assert_eq!(payload.payload_len(Mode::Extended), 4096);
    assert_eq!(payload.payload_len(Mode::Structured), 0);
    assert_eq!(refused(verdict(Mode::Extended, flags, payload)), Some(Errno::INVAL));
    let write = request(Command::Write, CommandFlags::PAYLOAD_LEN, 0, 4096);
    assert_eq!(verdict(Mode::Extended, flags, write), Verdict::Do);
    assert_eq!(refused(verdict(Mode::Structured, flags, write)), Some(Errno::INVAL));
}

#[test]
fn replies_fit_their_mode() {
    let read = request(Command::Read, NONE, 512, 1024);
    let write = request(Command::Write, NONE, 512, 1024);
    for mode in MODES {
        let rules = rules(mode, ExportFlags::HAS_FLAGS);
        let header = |bytes: &[u8]| wire::Header::decode(mode, bytes).unwrap().unwrap();
        let (head, len) = header(&rules.data(&read));
        match head {
            wire::Header::Simple { cookie, error } => {
                assert_eq!((mode, cookie, error, len), (Mode::Simple, 7, 0, 16));
            }
            wire::Header::Chunk(chunk) => {
                assert_eq!((chunk.kind, chunk.len), (chunk::OFFSET_DATA, 1032));
                assert_eq!(rules.data(&read)[len..], 512_u64.to_be_bytes());
            }
        }
        let simple = matches!(header(&rules.done(&write)).0, wire::Header::Simple { .. });
        assert_eq!(simple, mode != Mode::Extended);
        let simple = matches!(header(&rules.done(&read)).0, wire::Header::Simple { .. });
        assert_eq!(simple, mode == Mode::Simple, "a read of nothing");
        let failed = rules.failed(&write, Errno::OPNOTSUPP, "no");
        match header(&failed) {
            (wire::Header::Simple { error, .. }, _) => assert_eq!(error, 22),
            (wire::Header::Chunk(_), len) => {
                assert_eq!(failed[len..len + 4], 22_u32.to_be_bytes(), "not of a fast zero");
            }
        }
    }
    let fast = request(Command::WriteZeroes, CommandFlags::FAST_ZERO, 0, 512);
    let rules = rules(Mode::Simple, ExportFlags::HAS_FLAGS);
    let failed = rules.failed(&fast, Errno::OPNOTSUPP, "slow");
    assert_eq!(failed[4..8], 95_u32.to_be_bytes());
}
