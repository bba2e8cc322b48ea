//! Where a body ends: lengths, transfer codings, chunks (RFC 9112, 6 and 7).

use crate::edge::smuggling::corpus::{Case, Fate, SMUGGLED, broken, post, refused, served};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = lengths();
    cases.extend(codings());
    cases.extend(chunks());
    cases.extend(pipelines());
    cases
}

fn lengths() -> Vec<Case> {
    let hidden = format!("xxxxx{SMUGGLED}");
    vec![
        served("a length", post("Content-Length: 5\r\n", "hello")),
        served(
            "a length with zeros before it",
            post("Content-Length: 0005\r\n", "hello"),
        ),
        served("a length of 0", post("Content-Length: 0\r\n", "")),
        served(
            "a GET with a body",
            "GET /case HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        ),
        served(
            "spaces around a length",
            post("Content-Length: \t 5 \t\r\n", "hello"),
        ),
        refused(
            "two lengths, alike",
            &[400],
            post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ),
        refused(
            "two lengths, the first one longer",
            &[400],
            post("Content-Length: 43\r\nContent-Length: 5\r\n", &hidden),
        ),
        refused(
            "two lengths, the last one longer",
            &[400],
            post("Content-Length: 5\r\nContent-Length: 43\r\n", &hidden),
        ),
        refused(
            "a list of lengths, alike",
            &[400],
            post("Content-Length: 5,5\r\n", "hello"),
        ),
        refused(
            "a list of lengths",
            &[400],
            post("Content-Length: 5, 43\r\n", &hidden),
        ),
        refused(
            "a length with a plus",
            &[400],
            post("Content-Length: +5\r\n", &hidden),
        ),
        refused(
            "a length with a minus",
            &[400],
            post("Content-Length: -5\r\n", &hidden),
        ),
        refused(
            "a length of minus 0",
            &[400],
            post("Content-Length: -0\r\n", SMUGGLED),
        ),
        refused(
            "a length in base 16",
            &[400],
            post("Content-Length: 0x5\r\n", &hidden),
        ),
        refused(
            "a length in words",
            &[400],
            post("Content-Length: five\r\n", &hidden),
        ),
        refused(
            "a length with a fraction",
            &[400],
            post("Content-Length: 5.0\r\n", &hidden),
        ),
        refused(
            "a length with an exponent",
            &[400],
            post("Content-Length: 5e0\r\n", &hidden),
        ),
        refused(
            "a length with a space in it",
            &[400],
            post("Content-Length: 4 3\r\n", &hidden),
        ),
        refused(
            "a length with an underscore",
            &[400],
            post("Content-Length: 4_3\r\n", &hidden),
        ),
        refused(
            "a length with a semicolon",
            &[400],
            post("Content-Length: 5;43\r\n", &hidden),
        ),
        refused(
            "a length in quotes",
            &[400],
            post("Content-Length: \"5\"\r\n", &hidden),
        ),
        refused(
            "a length with a vertical tab",
            &[400],
            post("Content-Length: \x0b5\r\n", &hidden),
        ),
        refused(
            "a length with a form feed",
            &[400],
            post("Content-Length: 5\x0c\r\n", &hidden),
        ),
        refused(
            "a length with a NUL",
            &[400],
            post("Content-Length: 5\0\r\n", &hidden),
        ),
        refused(
            "a length that is empty",
            &[400],
            post("Content-Length:\r\n", SMUGGLED),
        ),
        refused(
            "a length of 2^63",
            &[400, 413],
            post("Content-Length: 9223372036854775808\r\n", SMUGGLED),
        ),
        refused(
            "a length of 2^64",
            &[400, 413],
            post("Content-Length: 18446744073709551616\r\n", SMUGGLED),
        ),
        refused(
            "a length of 2^64 + 5",
            &[400, 413],
            post("Content-Length: 18446744073709551621\r\n", &hidden),
        ),
        refused(
            "a length of 40 digits",
            &[400, 413],
            post(
                "Content-Length: 9999999999999999999999999999999999999999\r\n",
                SMUGGLED,
            ),
        ),
        refused(
            "a length in digits that are not ASCII",
            &[400],
            post("Content-Length: \u{0665}\r\n", &hidden),
        ),
        // CL.0: a backend that takes no body from this path would see the body as the next request.
        served(
            "a request as a body",
            post(&format!("Content-Length: {}\r\n", SMUGGLED.len()), SMUGGLED),
        ),
        Case {
            absent: &["content_length"],
            ..served(
                "a length with an underscore in its name",
                post("Content_Length: 5\r\n", ""),
            )
        },
        Case {
            fate: Fate::Closed,
            statuses: &[408, 400, 0],
            ..served(
                "a body that does not come",
                post("Content-Length: 50\r\n", "hello"),
            )
        },
    ]
}

fn codings() -> Vec<Case> {
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let te = |value: &str| post(&format!("Transfer-Encoding: {value}\r\n"), &chunked);
    let both = |value: &str| {
        post(
            &format!("Content-Length: 5\r\nTransfer-Encoding: {value}\r\n"),
            &chunked,
        )
    };
    vec![
        served(
            "chunked",
            post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ),
        served(
            "Chunked",
            post("Transfer-Encoding: Chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ),
        served(
            "chunked with spaces around it",
            post(
                "Transfer-Encoding: \t chunked \t\r\n",
                "5\r\nhello\r\n0\r\n\r\n",
            ),
        ),
        refused(
            "CL.TE",
            &[400],
            post(
                "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\nG",
            ),
        ),
        refused("CL.TE with a request", &[400], both("chunked")),
        refused(
            "TE.CL",
            &[400],
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
                &format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len()),
            ),
        ),
        refused(
            "TE.CL with a length of 0",
            &[400],
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
                SMUGGLED,
            ),
        ),
        refused("TE.TE: xchunked", &[400, 501], both("xchunked")),
        refused("TE.TE: identity", &[400, 501], both("identity")),
        refused(
            "TE.TE: a second header that is unknown",
            &[400, 501],
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
                &chunked,
            ),
        ),
        refused(
            "TE.TE: a first header that is unknown",
            &[400, 501],
            post(
                "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
                &chunked,
            ),
        ),
        refused(
            "TE.TE: twice the same",
            &[400],
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                &chunked,
            ),
        ),
        refused(
            "TE.TE: identity in a header of its own",
            &[400, 501],
            post(
                "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
                &chunked,
            ),
        ),
        refused("TE: chunked, identity", &[400], te("chunked, identity")),
        refused(
            "TE: identity, chunked",
            &[400, 501],
            te("identity, chunked"),
        ),
        refused("TE: chunked, chunked", &[400], te("chunked, chunked")),
        refused("TE: gzip, chunked", &[501], te("gzip, chunked")),
        refused("TE: gzip", &[400, 501], te("gzip")),
        refused("TE: chunked,", &[400], te("chunked,")),
        refused("TE: , chunked", &[400, 501], te(", chunked")),
        refused("TE: nothing", &[400], te("")),
        refused("TE: \"chunked\"", &[400, 501], te("\"chunked\"")),
        refused("TE: chunked;q=1", &[400, 501], te("chunked;q=1")),
        refused("TE: chunk ed", &[400, 501], te("chunk ed")),
        refused(
            "TE: a vertical tab before chunked",
            &[400],
            te("\x0bchunked"),
        ),
        refused("TE: a form feed behind chunked", &[400], te("chunked\x0c")),
        refused("TE: a NUL behind chunked", &[400], te("chunked\0")),
        refused(
            "TE: a carriage return before chunked",
            &[400],
            te("\rchunked"),
        ),
        refused("TE: a line feed before chunked", &[400], te("\n chunked")),
        refused(
            "TE: a folded line before chunked",
            &[400],
            te("\r\n chunked"),
        ),
        refused(
            "TE: a space before the colon",
            &[400],
            post("Transfer-Encoding : chunked\r\n", &chunked),
        ),
        refused(
            "TE: a tab before the colon",
            &[400],
            post(
                "Content-Length: 5\r\nTransfer-Encoding\t: chunked\r\n",
                &chunked,
            ),
        ),
        refused(
            "TE: a space before the name",
            &[400],
            "POST /case HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        refused(
            "TE: a NUL in the name",
            &[400],
            post("Transfer-Enc\0oding: chunked\r\n", &chunked),
        ),
        refused(
            "TE: behind a carriage return in another header",
            &[400],
            post("X: y\rTransfer-Encoding: chunked\r\n", &chunked),
        ),
        refused(
            "TE: behind a line feed in another header",
            &[400],
            post(
                "Content-Length: 5\r\nX: y\nTransfer-Encoding: chunked\r\n",
                &chunked,
            ),
        ),
        refused(
            "TE in HTTP/1.0",
            &[400],
            format!(
                "POST /case HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
            ),
        ),
        refused(
            "TE and a length in HTTP/1.0",
            &[400],
            format!(
                "POST /case HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
            ),
        ),
        // The rest is a request of its own, in front already.
        Case {
            front: 2,
            absent: &["transfer_encoding"],
            fate: Fate::Either,
            statuses: &[200],
            ..served(
                "TE with an underscore in its name",
                post(
                    "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n",
                    "0\r\n\r\n",
                ),
            )
        },
    ]
}

fn chunks() -> Vec<Case> {
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let wrong = |name, body: &str| broken(name, chunked(body));
    let last = format!("0\r\n\r\n{SMUGGLED}");
    let trailer = |trailer: &str| chunked(&format!("5\r\nhello\r\n0\r\n{trailer}\r\n\r\n"));
    vec![
        served(
            "chunks with an extension",
            chunked("5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n"),
        ),
        served(
            "chunks with zeros before their size",
            chunked("0005\r\nhello\r\n0000\r\n\r\n"),
        ),
        served("a chunk of size A", chunked("A\r\nhellohello\r\n0\r\n\r\n")),
        served("a chunk of size a", chunked("a\r\nhellohello\r\n0\r\n\r\n")),
        wrong("a chunk of size -1", &format!("-1\r\n{last}")),
        wrong("a chunk of size +5", &format!("+5\r\nhello\r\n{last}")),
        wrong("a chunk of size 0x5", &format!("0x5\r\nhello\r\n{last}")),
        wrong("a chunk of size zz", &format!("zz\r\nhello\r\n{last}")),
        wrong("a chunk of no size", &format!("\r\nhello\r\n{last}")),
        wrong(
            "a chunk of size 5 behind a space",
            &format!(" 5\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk with a space in its size",
            &format!("5 0\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk with an underscore in its size",
            &format!("0_5\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk with a NUL in its size",
            &format!("5\0\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk of size 2^64",
            &format!("10000000000000000\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk of size 2^64 + 5",
            &format!("10000000000000005\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk of size 2^64 - 1",
            &format!("ffffffffffffffff\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk of 40 digits",
            &format!("{}5\r\nhello\r\n{last}", "0".repeat(40)),
        ),
        wrong(
            "a chunk longer than its size",
            &format!("3\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk shorter than its size",
            &format!("7\r\nhello\r\n{last}"),
        ),
        wrong(
            "a chunk without CR LF behind it",
            &format!("5\r\nhello{last}"),
        ),
        wrong(
            "a chunk with a line feed behind it",
            &format!("5\r\nhello\n{last}"),
        ),
        wrong(
            "a chunk with a carriage return behind it",
            &format!("5\r\nhello\r{last}"),
        ),
        wrong(
            "a line feed behind the size",
            &format!("5\nhello\r\n{last}"),
        ),
        wrong(
            "a carriage return behind the size",
            &format!("5\rhello\r\n{last}"),
        ),
        wrong(
            "two carriage returns behind the size",
            &format!("5\r\r\nhello\r\n{last}"),
        ),
        wrong(
            "a line feed in an extension",
            &format!("5;a\nhello\r\n{last}"),
        ),
        wrong(
            "a carriage return in an extension",
            &format!("5;a\rb\r\nhello\r\n{last}"),
        ),
        wrong(
            "a NUL in an extension",
            &format!("5;a\0b\r\nhello\r\n{last}"),
        ),
        wrong(
            "a line feed behind the last size",
            &format!("5\r\nhello\r\n0\n\r\n{SMUGGLED}"),
        ),
        wrong(
            "line feeds for the end",
            &format!("5\r\nhello\r\n0\n\n{SMUGGLED}"),
        ),
        wrong(
            "a line feed for the end",
            &format!("5\r\nhello\r\n0\r\n\n{SMUGGLED}"),
        ),
        wrong(
            "a carriage return and a byte for the end",
            &format!("5\r\nhello\r\n0\r\n\rX{SMUGGLED}"),
        ),
        wrong(
            "an extension of 100 KB",
            &format!("5;{}\r\nhello\r\n{last}", "a".repeat(100_000)),
        ),
        served("a trailer", trailer("X-Sum: 1")),
        Case {
            absent: &["content-length", "x-sum"],
            fate: Fate::Either,
            statuses: &[200, 400],
            ..served("a length for a trailer", trailer("Content-Length: 43"))
        },
        Case {
            fate: Fate::Either,
            statuses: &[200, 400],
            ..served(
                "a coding for a trailer",
                trailer("Transfer-Encoding: chunked"),
            )
        },
        Case {
            fate: Fate::Either,
            statuses: &[200, 400],
            present: &[("host", "a")],
            ..served("a host for a trailer", trailer("Host: evil"))
        },
        Case {
            fate: Fate::Either,
            statuses: &[200, 400],
            ..served(
                "who the client is for a trailer",
                trailer("X-Forwarded-For: 6.6.6.6"),
            )
        },
        wrong(
            "a trailer of 100 KB",
            &format!("0\r\nX: {}\r\n\r\n{SMUGGLED}", "a".repeat(100_000)),
        ),
        wrong(
            "a trailer with a line feed",
            &format!("0\r\nX: y\n\r\n{SMUGGLED}"),
        ),
        wrong(
            "a trailer without a name",
            &format!("0\r\n: y\r\n\r\n{SMUGGLED}"),
        ),
        Case {
            fate: Fate::Closed,
            statuses: &[408, 400, 0],
            ..served("chunks without an end", chunked("5\r\nhello\r\n"))
        },
    ]
}

fn pipelines() -> Vec<Case> {
    let one = "GET /one HTTP/1.1\r\nHost: a\r\n\r\n";
    let body = "POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let chunked = "POST /three HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    vec![
        Case {
            front: 2,
            ..served("two at once", format!("{one}{body}"))
        },
        Case {
            front: 4,
            fate: Fate::Either,
            ..served("four at once", format!("{one}{body}{one}{chunked}"))
        },
        Case {
            front: 2,
            ..served("empty lines between two", format!("{one}\r\n\r\n{one}"))
        },
        Case {
            front: 1,
            fate: Fate::Closed,
            ..served(
                "one behind a last one",
                format!("GET /case HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{SMUGGLED}"),
            )
        },
        Case {
            front: 1,
            fate: Fate::Closed,
            ..served(
                "a wrong one behind a right one",
                format!("{one}GET /smuggled HTTP/1.1\r\nHost : a\r\n\r\n"),
            )
        },
        Case {
            front: 1,
            fate: Fate::Closed,
            ..served(
                "one behind a HTTP/1.0",
                format!("GET /case HTTP/1.0\r\nHost: a\r\n\r\n{SMUGGLED}"),
            )
        },
    ]
}
