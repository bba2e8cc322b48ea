//! Tests of the SockJS frames: escapes, hostile bodies, and what comes back.

use proptest::prelude::*;

use super::*;

fn quoted(text: &str) -> String {
    let mut out = BytesMut::new();
    append_quoted(&mut out, text);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn controls_have_short_or_lower_case_escapes() {
    assert_eq!(quoted("\u{8}\t\n\u{c}\r\"\\/"), r#""\b\t\n\f\r\"\\/""#);
    assert_eq!(
        quoted("\0\u{b}\u{1f}\u{7f}"),
        "\"\\u0000\\u000b\\u001f\u{7f}\""
    );
}

#[test]
fn code_points_that_old_parsers_drop_are_escaped() {
    for (first, last) in [
        (0x200c_u32, 0x200f_u32),
        (0x2028, 0x202f),
        (0x2060, 0x206f),
        (0xfff0, 0xffff),
    ] {
        for code in first..=last {
            let text = char::from_u32(code).unwrap().to_string();
            assert_eq!(quoted(&text), format!("\"\\u{code:04x}\""));
        }
        for code in [first - 1, last + 1] {
            let text = char::from_u32(code).unwrap().to_string();
            if code < 0x10000 {
                assert_eq!(quoted(&text), format!("\"{text}\""));
            }
        }
    }
}

#[test]
fn astral_characters_become_two_escapes() {
    assert_eq!(quoted("a😀b"), r#""a\ud83d\ude00b""#);
}

#[test]
fn an_array_frame_holds_its_messages_in_order() {
    let mut out = BytesMut::new();
    append_array(&mut out, [b"\"a\"".as_slice(), b"\"b\""]);
    assert_eq!(&out[..], br#"a["a","b"]"#);
}

#[test]
fn a_close_frame_quotes_its_reason() {
    let mut out = BytesMut::new();
    append_close(&mut out, 3000, "Go \"away\"!");
    assert_eq!(&out[..], br#"c[3000,"Go \"away\"!"]"#);
}

#[test]
fn a_literal_reads_back_as_the_frame_and_ends_no_script() {
    for frame in [
        "o",
        "a[\"\\\"\\\\\\u2028</script><!--ä\"]",
        "c[3000,\"Go away!\"]",
    ] {
        let mut out = BytesMut::new();
        append_literal(&mut out, frame.as_bytes());
        let literal = std::str::from_utf8(&out).unwrap();
        assert!(!literal.contains('<'), "{literal}");
        assert_eq!(serde_json::from_str::<String>(literal).unwrap(), frame);
    }
}

#[test]
fn lone_surrogates_become_replacement_characters() {
    for (body, message) in [
        (r#"["\ud800"]"#, "\u{fffd}"),
        (r#"["a\udc00b"]"#, "a\u{fffd}b"),
        (r#"["\ud800\ud800"]"#, "\u{fffd}\u{fffd}"),
        (r#"["\ud800x\udc00"]"#, "\u{fffd}x\u{fffd}"),
        (r#"["\ud83d\ude00\ud83d"]"#, "😀\u{fffd}"),
        ("[\"\u{d7ff}\\ud800\"]", "\u{d7ff}\u{fffd}"),
    ] {
        assert_eq!(
            decode_array(body.as_bytes()),
            Ok(vec![message.to_owned()]),
            "{body}"
        );
    }
}

#[test]
fn a_body_that_holds_no_messages_says_what_is_wrong() {
    for (body, error) in [
        (b"".as_slice(), BadFrame::NoPayload),
        (b" \n", BadFrame::NoPayload),
        (b"{}", BadFrame::NoPayload),
        (b"\"x\"", BadFrame::NoPayload),
        (b"[1]", BadFrame::NoPayload),
        (b"[[\"x\"]]", BadFrame::NoPayload),
        (b"null", BadFrame::NoPayload),
        (b"[\"x", BadFrame::BrokenJson),
        (b"[\"x\"", BadFrame::BrokenJson),
        (b"[\"x\"]]", BadFrame::BrokenJson),
        (b"[\"\\ud8\"]", BadFrame::BrokenJson),
        (b"[\"\xff\"]", BadFrame::BrokenJson),
        (b"[\"\xed\xa0\x80\"]", BadFrame::BrokenJson),
        (b"x", BadFrame::BrokenJson),
    ] {
        assert_eq!(
            decode_array(body),
            Err(error),
            "{}",
            String::from_utf8_lossy(body)
        );
    }
}

#[test]
fn a_websocket_message_may_be_an_array_a_bare_string_or_empty() {
    for (text, messages) in [
        ("", &[][..]),
        ("[]", &[]),
        (r#"["a","b"]"#, &["a", "b"]),
        (r#""a""#, &["a"]),
        (" [\"a\"] ", &["a"]),
    ] {
        assert_eq!(decode_messages(text.as_bytes()).unwrap(), messages);
    }
    assert_eq!(decode_messages(b"[\"x"), Err(BadFrame::BrokenJson));
}

proptest! {
    #[test]
    fn what_is_quoted_reads_back_the_same(texts in proptest::collection::vec(any::<String>(), 0..5)) {
        let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
        let mut frame = BytesMut::new();
        append_array(&mut frame, quoted.iter().map(String::as_bytes));
        prop_assert_eq!(decode_array(&frame[1..]).unwrap(), texts);
    }

    #[test]
    fn no_body_makes_the_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _: Result<_, _> = decode_array(&body);
        let _: Result<_, _> = decode_messages(&body);
    }
}
