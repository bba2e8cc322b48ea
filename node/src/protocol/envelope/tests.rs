use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn at(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
}

fn publication(data: &[u8]) -> Publication {
    Publication {
        data: Bytes::copy_from_slice(data),
        time: 1234,
        ..Publication::default()
    }
}

fn info() -> ClientInfo {
    ClientInfo {
        user: "ann".to_owned(),
        client: "c1".to_owned(),
        ..ClientInfo::default()
    }
}

#[test]
fn an_event_that_is_not_stored_comes_back_as_it_was() {
    for event in [
        ChannelEvent::Publication(publication(b"{\"a\":1}")),
        ChannelEvent::Join(info()),
        ChannelEvent::Leave(info()),
    ] {
        let envelope = decode(unstored(&event, at(1234))).unwrap();
        assert_eq!(envelope.position, None);
        assert_eq!(envelope.published_at, 1234);
        assert_eq!(envelope.event, event);
    }
}

#[test]
fn that_a_stream_has_restarted_comes_without_a_time_as_the_script_sends_it() {
    let bytes = unstored(&ChannelEvent::Restarted, at(1234));
    assert_eq!(&bytes[..], b"r0::");
    let envelope = decode(bytes).unwrap();
    assert_eq!((envelope.position, envelope.published_at), (None, 0));
    assert_eq!(envelope.event, ChannelEvent::Restarted);
}

#[test]
fn a_stored_publication_has_its_position_and_its_offset() {
    let position = Position {
        epoch: "abc".into(),
        offset: u64::MAX,
    };
    let body = body(&publication(b"x"), at(7));
    let envelope = decode(stored(&position, &body)).unwrap();
    assert_eq!(envelope.position, Some(position));
    let ChannelEvent::Publication(publication) = envelope.event else {
        panic!("it was a publication");
    };
    assert_eq!(
        (publication.offset, &publication.data[..]),
        (u64::MAX, &b"x"[..])
    );
    let kept = decode_body(9, body).unwrap();
    assert_eq!((kept.offset, &kept.data[..]), (9, &b"x"[..]));
}

#[test]
fn data_is_a_slice_of_what_was_read() {
    let event = ChannelEvent::Publication(publication(&[b'x'; 100]));
    let bytes = unstored(&event, at(0));
    let range = bytes.as_ptr_range();
    let ChannelEvent::Publication(publication) = decode(bytes).unwrap().event else {
        panic!("it was a publication");
    };
    assert!(range.contains(&publication.data.as_ptr()), "it was copied");
}

#[test]
fn what_no_node_sends_is_refused_and_named() {
    for (bytes, expected) in [
        ("", "a head without an end"),
        ("hello", "a head without an end"),
        ("p0:", "a head without an end"),
        ("x0::1:", "unknown kind"),
        ("r0::1:", "unknown kind"),
        ("r3:abc:", "unknown kind"),
        ("j3:abc:1:", "unknown kind"),
        ("p3::1:", "half a position"),
        ("p0:abc:1:", "half a position"),
        ("p-1:abc:1:", "no number where one must be"),
        ("p+1:abc:1:", "no number where one must be"),
        ("p:abc:1:", "no number where one must be"),
        (
            "p18446744073709551616:abc:1:",
            "no number where one must be",
        ),
        ("p1:abc::", "no number where one must be"),
        ("p1:abc:1", "a head without an end"),
        ("p1:abc:1:\u{1}", "no message where one must be"),
        (
            "p1:123456789012345678901234567890123:1:",
            "a head without an end",
        ),
    ] {
        let refused = decode(bytes.to_owned().into());
        assert_eq!(refused, Err(BadEnvelope(expected)), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = decode(bytes.clone().into());
        let _ = decode_body(1, bytes.into());
    }

    #[test]
    fn any_bytes_behind_a_good_head_are_read_or_refused(
        kind in "[pjl]",
        bytes in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut envelope = format!("{kind}0::1:").into_bytes();
        envelope.extend(bytes);
        let _ = decode(envelope.into());
    }

    #[test]
    fn a_publication_keeps_all_it_has(
        data in prop::collection::vec(any::<u8>(), 0..200),
        tags in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
        user in ".{0,10}",
        offset in 1_u64..,
        epoch in "[a-z0-9]{1,32}",
    ) {
        let publication = Publication {
            data: data.into(),
            info: Some(ClientInfo { user, ..ClientInfo::default() }),
            tags,
            ..Publication::default()
        };
        let position = Position { epoch: epoch.as_str().into(), offset };
        let envelope = decode(stored(&position, &body(&publication, at(1)))).unwrap();
        let expected = Publication { offset, time: 1, ..publication };
        prop_assert_eq!(envelope.position, Some(position));
        prop_assert_eq!(envelope.event, ChannelEvent::Publication(expected));
    }
}

#[test]
fn marks_are_no_events_and_events_are_no_marks() {
    let marked = mark(b"token");
    assert_eq!(in_mark(&marked), Some(Bytes::from_static(b"token")));
    assert!(decode(marked).is_err());
    let event = unstored_body(&body(&Publication::default(), SystemTime::UNIX_EPOCH));
    assert_eq!(in_mark(&event), None);
    assert_eq!(in_mark(&Bytes::new()), None);
}
