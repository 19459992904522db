use proptest::prelude::*;

use super::*;

fn node(depth: u16, entries: &[[u8; 12]]) -> Vec<u8> {
    let header = RawHeader {
        magic: MAGIC.into(),
        entries: (entries.len() as u16).into(),
        max: 4.into(),
        depth: depth.into(),
        generation: 0.into(),
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(entries.iter().flatten());
    bytes.resize(60, 0);
    bytes
}

fn extent(logical: u32, len: u16, start: u32) -> [u8; 12] {
    let raw = RawExtent {
        block: logical.into(),
        len: len.into(),
        start_hi: 0.into(),
        start_lo: start.into(),
    };
    raw.as_bytes().try_into().unwrap()
}

fn parse<'a>(bytes: &'a [u8], place: &Place) -> Result<Node<'a>, String> {
    Node::parse(bytes, place, |start, len| start.0 > 0 && start.0 + len <= 1000)
}

#[test]
fn a_leaf_is_read() {
    let bytes = node(0, &[extent(3, 5, 100), extent(10, 32768 + 2, 200)]);
    let node = parse(&bytes, &Place::ROOT).unwrap();
    assert_eq!([2, 3, 9, 10, 99].map(|logical| node.find(logical)), {
        [None, Some(0), Some(0), Some(1), Some(1)]
    });
    assert_eq!(node.extent(1), Extent { logical: 10, len: 2, start: Block(200), unwritten: true });
}

#[test]
fn what_overlaps_or_leaves_its_place_is_refused() {
    let below = Place { depth: Some(0), logical: 3..12 };
    let cases: [(&[[u8; 12]], &Place); 6] = [
        (&[extent(3, 5, 100), extent(7, 1, 200)], &Place::ROOT),
        (&[extent(3, 0, 100)], &Place::ROOT),
        (&[extent(3, 5, 998)], &Place::ROOT),
        (&[extent(u32::MAX, 2, 100)], &Place::ROOT),
        (&[extent(4, 5, 100)], &below),
        (&[extent(3, 10, 100)], &below),
    ];
    for (entries, place) in cases {
        assert!(parse(&node(0, entries), place).is_err(), "{entries:?}");
    }
    assert!(parse(&node(0, &[extent(3, 9, 100)]), &below).is_ok());
    assert!(parse(&node(1, &[extent(3, 9, 100)]), &below).is_err(), "wrong depth");
    assert!(parse(&node(6, &[extent(3, 9, 100)]), &Place::ROOT).is_err(), "too deep");
    assert!(parse(&node(1, &[]), &Place::ROOT).is_err(), "an empty index");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        depth in 0u16..7,
        sound: bool,
    ) {
        if sound && bytes.len() >= 12 {
            bytes[..8].copy_from_slice(&node(depth, &[])[..8]);
            bytes[2] = 4;
        }
        if let Ok(node) = Node::parse(&bytes, &Place::ROOT, |_, _| true) {
            prop_assert!(!node.is_empty() || node.depth == 0);
            for i in 0..node.len() {
                prop_assert_eq!(node.find(node.key(i)), Some(i));
            }
        }
        checksum(&bytes, 0);
    }
}
