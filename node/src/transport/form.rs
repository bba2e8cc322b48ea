//! `application/x-www-form-urlencoded`, as queries and the form of `jsonp_send` are written.

use percent_encoding::percent_decode;

/// The first value of `name` in `form`, decoded; a name without `=` has an empty one.
pub(crate) fn field(form: &[u8], name: &str) -> Option<Vec<u8>> {
    form.split(|&byte| byte == b'&').find_map(|pair| {
        let mut parts = pair.splitn(2, |&byte| byte == b'=');
        let found = parts.next().unwrap_or_default();
        (decode(found) == name.as_bytes()).then(|| decode(parts.next().unwrap_or_default()))
    })
}

fn decode(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text
        .iter()
        .map(|&byte| if byte == b'+' { b' ' } else { byte })
        .collect();
    percent_decode(&spaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_decoded_and_others_are_ignored() {
        for (form, value) in [
            ("d=%5B%22x%22%5D", Some("[\"x\"]")),
            ("i=1&d=x&d=y", Some("x")),
            ("%64=x", Some("x")),
            ("d=a=b", Some("a=b")),
            ("d=a+b%2Bc", Some("a b+c")),
            ("d", Some("")),
            ("d=%", Some("%")),
            ("d=%zz%4", Some("%zz%4")),
            ("dd=x", None),
            ("", None),
        ] {
            let value = value.map(|value| value.as_bytes().to_vec());
            assert_eq!(field(form.as_bytes(), "d"), value, "{form}");
        }
        assert_eq!(field(b"d=%ff", "d"), Some(vec![0xff]));
    }
}
