use super::*;

/// What `debugfs -R "dx_hash -h ALGORITHM -s SEED NAME"` prints.
#[test]
fn the_answers_of_debugfs() {
    const SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x6745_2301, 0xefcd_ab89];
    let long = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEF";
    let high = b"\xe4\xf6\xfc-unsigned";
    let cases: [(u8, [u32; 4], [u32; 4]); 4] = [
        (0, [0; 4], [0xe74b_53e2, 0x5e2a_ba24, 0x7097_6438, 0x7a54_b94e]),
        (1, [0; 4], [0xd5fa_7d7a, 0x591d_e422, 0x9ffc_fcde, 0xbb2c_d392]),
        (1, SEED, [0x35dc_0cc4, 0x663b_dc72, 0x7d1c_b3be, 0x4228_3dde]),
        (2, [0; 4], [0x6d0e_a4c0, 0x2dbf_9e80, 0xfdf7_0586, 0x45bd_8a4a]),
    ];
    for (number, seed, hashes) in cases {
        let version = HashVersion::new(number, &HashSeed { seed, unsigned: false }).unwrap();
        let names: [&[u8]; 4] = [b"a", b"lost+found", long, high];
        for (name, hash) in names.into_iter().zip(hashes) {
            assert_eq!(version.hash(name), hash, "{number} {name:?} {:#x}", version.hash(name));
        }
    }
}

#[test]
fn signedness_matters_to_high_bytes_alone() {
    for number in 0..3 {
        let hash = |unsigned, name: &[u8]| {
            HashVersion::new(number, &HashSeed { seed: [0; 4], unsigned }).unwrap().hash(name)
        };
        assert_eq!(hash(true, b"plain"), hash(false, b"plain"));
        assert_ne!(hash(true, b"\xe4\xf6\xfc"), hash(false, b"\xe4\xf6\xfc"));
    }
}

#[test]
fn unknown_numbers_are_refused() {
    let seed = HashSeed::new([0; 4], FLAG_SIGNED_HASH);
    for number in 3..=255 {
        assert!(HashVersion::new(number, &seed).is_none());
    }
}
