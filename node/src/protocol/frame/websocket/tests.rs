//! Frames, boundaries and gaps.

use proptest::prelude::*;

use super::testing::masked;
use super::*;

#[test]
fn a_header_has_the_shortest_length_that_fits() {
    for (payload, header) in [
        (0, vec![0x81, 0]),
        (125, vec![0x81, 125]),
        (126, vec![0x81, 126, 0, 126]),
        (65535, vec![0x81, 126, 0xff, 0xff]),
        (65536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut out = BytesMut::new();
        append_message(&mut out, MessageKind::Text, &vec![b'x'; payload]);
        assert_eq!(out[..header.len()], header);
        assert_eq!(out.len(), header.len() + payload);
        assert_eq!(frame_len(&out), out.len());
    }
}

#[test]
fn a_sockjs_client_is_told_twice_that_it_ends() {
    let mut out = BytesMut::new();
    append_close(&mut out, SocketFormat::Sockjs, 1012, "so");
    assert_eq!(&out[..], b"\x81\x0cc[1012,\"so\"]\x88\x04\x03\xf4so");
    out.clear();
    append_close(&mut out, SocketFormat::Raw, 1012, "so");
    assert_eq!(&out[..], b"\x88\x04\x03\xf4so");
}

#[test]
fn a_close_reason_is_cut_at_a_character_so_that_it_fits() {
    let mut out = BytesMut::new();
    append_close(&mut out, SocketFormat::Raw, 1000, &"ä".repeat(100));
    assert_eq!(out.len(), 2 + 2 + 122);
    assert!(is_close(&out));
}

#[test]
fn a_boundary_is_where_the_frame_in_hand_ends() {
    let mut out = BytesMut::new();
    append_message(&mut out, MessageKind::Text, b"one");
    append_message(&mut out, MessageKind::Binary, &[0; 300]);
    append_message(&mut out, MessageKind::Text, &[b'x'; 70_000]);
    let ends = [5, 5 + 304, 5 + 304 + 70_010];
    for at in [0, 1, 4, 5, 6, 308, 309, 310, 70_318, 70_319] {
        let expected = ends
            .into_iter()
            .find(|&end| at <= end)
            .filter(|_| at != 0)
            .unwrap_or(0);
        assert_eq!(boundary(&out, at), expected, "at {at}");
    }
}

proptest! {
    #[test]
    fn a_scan_knows_the_gaps_between_messages_however_the_bytes_are_split(
        messages in prop::collection::vec((1usize..4, prop::sample::select(vec![0usize, 1, 125, 126, 300, 65536]), any::<bool>()), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (mut stream, mut gaps) = (Vec::new(), vec![0]);
        for (fragments, payload, ping_between) in messages {
            for fragment in 0..fragments {
                let opcode = if fragment == 0 { 1 } else { 0 };
                let fin = if fragment + 1 == fragments { 0x80 } else { 0 };
                stream.extend(masked(fin | opcode, &vec![0xff; payload]));
                if ping_between {
                    if fin != 0 {
                        gaps.push(stream.len());
                    }
                    stream.extend(masked(0x89, b"abc"));
                }
            }
            gaps.push(stream.len());
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.push(stream.len());
        cuts.extend(&gaps);
        cuts.sort_unstable();
        let (mut scan, mut at) = (Scan::default(), 0);
        for cut in cuts {
            scan.advance(&stream[at..cut]);
            at = cut;
            prop_assert_eq!(scan.is_between_messages(), gaps.contains(&at), "at {}", at);
        }
    }

    #[test]
    fn a_scan_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        Scan::default().advance(&bytes);
    }
}
