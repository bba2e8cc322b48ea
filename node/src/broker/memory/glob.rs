//! Patterns as Redis has them: `*`, `?`, `[a-c]`, `[^x]`, and `\` before what is meant as it stands.

/// Whether `text` matches `pattern`. Takes time in proportion to the product of their lengths at most.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut in_text) = (0, 0);
    // Where to go on if what follows the last star does not match: the star takes one byte more.
    let mut retry = None;
    while in_text < text.len() {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            retry = Some((at, in_text + 1));
        } else if let Some(length) = one(&pattern[at..], text[in_text]) {
            at += length;
            in_text += 1;
        } else if let Some((after_star, next)) = retry {
            (at, in_text) = (after_star, next);
            retry = Some((after_star, next + 1));
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// The length of the pattern's first element if `byte` matches it.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (length, is_member) = class_of(class, byte);
            is_member.then_some(1 + length)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// The length of a class, from behind its `[` to behind its `]`, and whether `byte` is in it. One without
/// an end goes to the end of the pattern.
fn class_of(class: &[u8], byte: u8) -> (usize, bool) {
    let is_negated = class.first() == Some(&b'^');
    let mut at = usize::from(is_negated);
    let mut is_member = false;
    loop {
        match &class[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                is_member |= *escaped == byte;
                at += 2;
            }
            [start, b'-', end, ..] => {
                is_member |= (*start.min(end)..=*start.max(end)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                is_member |= *literal == byte;
                at += 1;
            }
        }
    }
    (at, is_member != is_negated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, matching, other) in [
            ("", &[""][..], &["a"][..]),
            ("chat:1", &["chat:1"], &["chat:2", "chat:11", "xchat:1"]),
            ("*", &["", "a", "anything"], &[]),
            ("chat:*", &["chat:", "chat:a"], &["chat", "news:chat:"]),
            ("*:a*b", &[":ab", "x:axb", "x:a:abb"], &["ab", ":abc"]),
            ("h?llo", &["hello", "hallo"], &["hllo", "heello"]),
            ("h[ae]llo", &["hello", "hallo"], &["hillo"]),
            ("h[^e]llo", &["hallo"], &["hello"]),
            ("h[a-c]llo", &["hallo", "hbllo"], &["hello"]),
            ("h[c-a]llo", &["hallo"], &["hello"]),
            ("h\\*", &["h*"], &["hello"]),
            ("[\\]]", &["]"], &["\\"]),
            ("[ab", &["a"], &["c", "["]),
            ("**a**", &["a", "xax"], &["x"]),
        ] {
            for text in matching {
                assert!(
                    matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
            for text in other {
                assert!(
                    !matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_longer() {
        let pattern = "*a".repeat(500);
        assert!(!matches(pattern.as_bytes(), "a".repeat(499).as_bytes()));
        assert!(matches(pattern.as_bytes(), "a".repeat(10_000).as_bytes()));
    }
}
