//! What both sides saw, beside what they must see.
//!
//! Held for every row, whatever it says:
//!
//! - The backend sees requests that no two parsers read differently, framed as the client framed them, and nothing behind them;
//!   never a header of the client's connection, the affinity cookie, or more than one `X-Forwarded-For`.
//! - The client sees responses that no two parsers read differently, and nothing behind them; never a header of the backend's
//!   connection, one of the edge's own with a backend (`Causeway-`), a second `Date`, or in HTTP/1.0 what came later.
//! - A response belongs to its request, also the next one over the same connection.

use crate::{
    backend::excerpt,
    case::{Body, BodyEnd, Case, Connection},
    exchange::{End, Exchange, Seen, values},
    got::{After, Ended, Got, Head},
    path::Path,
};

/// What never reaches a backend: it belongs to the client's connection.
const NEVER_BEHIND: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];

/// What never reaches a client: it belongs to the backend's connection.
const NEVER_IN_FRONT: [&str; 3] = ["keep-alive", "proxy-connection", "te"];

/// What is not as it must be, one sentence each.
pub(crate) fn faults(
    path: Path,
    case: &Case,
    exchange: &Exchange,
    next: &Exchange,
    got: &Got,
) -> Vec<String> {
    let mut faults = got.faults.clone();
    faults.extend(exchange.faults());
    let seen = exchange.seen();
    match case.backend.requests {
        Some(requests) if requests != seen.len() => faults.push(format!(
            "the backend saw {} requests and not {requests}",
            seen.len()
        )),
        _ => {}
    }
    for seen in &seen {
        behind(path, case, seen, &mut faults);
    }
    if let (Some(upgrade), Some(last)) = (&case.request.upgrade, seen.last())
        && case.client.statuses == [101]
    {
        let sent = [&upgrade.early[..], &upgrade.then].concat();
        if last.tunnel != sent {
            faults.push(format!(
                "the backend: {} through the tunnel and not {}",
                excerpt(&last.tunnel),
                excerpt(&sent)
            ));
        }
    }
    in_front(path, case, got, &mut faults);
    for fault in next.faults() {
        faults.push(format!("the next request: {fault}"));
    }
    let served = next.seen().len();
    if 1 < served || (got.after == After::Kept && served != 1) {
        faults.push(format!("the backend saw the next request {served} times"));
    }
    faults.dedup();
    faults
}

fn behind(path: Path, case: &Case, seen: &Seen, faults: &mut Vec<String>) {
    let (must, request) = (&case.backend, &case.request);
    let mut fault = |text: String| faults.push(format!("the backend: {text}"));
    let wanted = (request.method, request.target);
    if (&*seen.method, &*seen.target) != wanted {
        fault(format!(
            "{} {} and not {wanted:?}",
            seen.method, seen.target
        ));
    }
    let sent = request.body.pieces().concat();
    let same = match must.body {
        BodyEnd::Whole => seen.end == End::Whole && seen.body == sent,
        BodyEnd::Cut => seen.end == End::Cut && sent.starts_with(&seen.body),
        BodyEnd::Either => seen.end != End::Open && sent.starts_with(&seen.body),
    };
    if !same {
        fault(format!(
            "{:?} with {} bytes of body {}, and {} were sent ({:?} wanted)",
            seen.end,
            seen.body.len(),
            excerpt(&seen.body),
            sent.len(),
            must.body
        ));
    }
    let framing = (
        seen.values("content-length"),
        seen.values("transfer-encoding"),
    );
    let framed = match &request.body {
        Body::None => framing.0.is_empty() && framing.1.is_empty(),
        Body::Length(length, _) => framing.0 == [length.to_string()] && framing.1.is_empty(),
        Body::Unknown { .. } => framing.0.is_empty() && framing.1 == ["chunked"],
    };
    if !framed {
        fault(format!("the framing {framing:?} of another body"));
    }
    for (name, values) in &must.headers {
        let values: Vec<String> = values.iter().map(|value| filled(value, path)).collect();
        if seen.values(name) != values {
            fault(format!(
                "`{name}` is {:?} and not {values:?}",
                seen.values(name)
            ));
        }
    }
    let trailers: Vec<(&str, &str)> = seen
        .trailers
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let wanted: Vec<(&str, &str)> = must
        .trailers
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    if seen.end == End::Whole && trailers != wanted {
        fault(format!("the trailers {trailers:?} and not {wanted:?}"));
    }
    for name in NEVER_BEHIND {
        if !seen.values(name).is_empty() {
            fault(format!("`{name}: {}`", seen.values(name).join(", ")));
        }
    }
    if seen.values("host").len() != 1 {
        fault(format!("the hosts {:?}", seen.values("host")));
    }
    if seen.values("x-forwarded-for").len() != 1 {
        fault(format!(
            "`x-forwarded-for` {:?}",
            seen.values("x-forwarded-for")
        ));
    }
    if seen
        .values("cookie")
        .iter()
        .any(|cookie| cookie.contains("causeway"))
    {
        fault("the affinity cookie".to_owned());
    }
    let connection = seen.values("connection").join(",").to_ascii_lowercase();
    let upgrade = seen.values("upgrade").join(",").to_ascii_lowercase();
    let right = if request.upgrade.is_some() {
        (&*connection, &*upgrade) == ("upgrade", "websocket")
    } else {
        ["", "keep-alive", "close"].contains(&&*connection) && upgrade.is_empty()
    };
    if !right {
        fault(format!(
            "`connection: {connection}` and `upgrade: {upgrade}`"
        ));
    }
}

fn in_front(path: Path, case: &Case, got: &Got, faults: &mut Vec<String>) {
    let must = &case.client;
    if got.end == Ended::Left {
        return;
    }
    let mut fault = |text: String| faults.push(format!("the client: {text}"));
    let statuses: Vec<u16> = must
        .statuses
        .iter()
        .map(|status| over(path, *status))
        .collect();
    let status = got.head.as_ref().map_or(0, |head| head.status);
    if !statuses.contains(&status) {
        fault(format!("status {status} and not {statuses:?}"));
    }
    let interim: Vec<u16> = got.interim.iter().map(|head| head.status).collect();
    if must
        .interim
        .as_ref()
        .is_some_and(|wanted| *wanted != interim)
    {
        let wanted = must.interim.clone().unwrap_or_default();
        fault(format!(
            "the interim responses {interim:?} and not {wanted:?}"
        ));
    }
    for head in got.head.iter().chain(&got.interim) {
        for text in head_faults(path, head) {
            fault(text);
        }
    }
    let Some(head) = &got.head else {
        return;
    };
    let own = 400 <= status && must.body.is_none();
    match (&got.end, must.end) {
        (Ended::Whole, BodyEnd::Whole | BodyEnd::Either)
        | (Ended::Cut(_), BodyEnd::Cut | BodyEnd::Either) => {}
        // Refused before anything was sent.
        (Ended::Whole, BodyEnd::Cut) if own => {}
        (end, wanted) => fault(format!("a response that is {end:?} and not {wanted:?}")),
    }
    if let Some(body) = &must.body {
        let same = match got.end {
            Ended::Cut(_) => body.starts_with(&got.body),
            _ => *body == got.body,
        };
        if !same {
            fault(format!(
                "the body {} and not {}",
                excerpt(&got.body),
                excerpt(body)
            ));
        }
    }
    for (name, wanted) in &must.headers {
        let wanted: Vec<String> = wanted.iter().map(|value| filled(value, path)).collect();
        let found = values(&head.headers, name);
        if !alike(&found, &wanted) {
            fault(format!("`{name}` is {found:?} and not {wanted:?}"));
        }
    }
    if let Some(wanted) = &must.trailers {
        let found: Vec<(&str, &str)> = got
            .trailers
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let wanted: Vec<(&str, &str)> = wanted
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        if found != wanted {
            fault(format!("the trailers {found:?} and not {wanted:?}"));
        }
    }
    if got.tunnel != must.tunnel {
        fault(format!(
            "{} out of the tunnel and not {}",
            excerpt(&got.tunnel),
            excerpt(&must.tunnel)
        ));
    }
    let right = match must.connection {
        Connection::Kept => got.after == After::Kept,
        Connection::Closed => got.after == After::Closed,
        Connection::Either => true,
    };
    if !right {
        fault(format!(
            "the connection is {:?} and not {:?}",
            got.after, must.connection
        ));
    }
}

/// What is wrong with a head by itself.
fn head_faults(path: Path, head: &Head) -> Vec<String> {
    let mut faults = Vec::new();
    let of = |name: &str| values(&head.headers, name);
    for name in NEVER_IN_FRONT {
        if !of(name).is_empty() {
            faults.push(format!("`{name}: {}`", of(name).join(", ")));
        }
    }
    if 1 < of("date").len() {
        faults.push(format!("the dates {:?}", of("date")));
    }
    let switches = head.status == 101;
    if !switches && !of("upgrade").is_empty() {
        faults.push(format!("`upgrade: {}`", of("upgrade").join(", ")));
    }
    let connection = of("connection").join(",").to_ascii_lowercase();
    let right = if switches {
        connection == "upgrade"
    } else {
        ["", "close", "keep-alive"].contains(&&*connection)
    };
    if !right || (path.is_h2() && !connection.is_empty()) {
        faults.push(format!("`connection: {connection}`"));
    }
    if (path.is_h2() || path.is_http10()) && !of("transfer-encoding").is_empty() {
        faults.push(format!(
            "`transfer-encoding: {}`",
            of("transfer-encoding").join(", ")
        ));
    }
    if path.is_h2() && [101, 204].contains(&head.status) && !of("content-length").is_empty() {
        faults.push(format!("a {} with a length", head.status));
    }
    let private = |name: &str| name.starts_with("causeway-") && name != "causeway-node";
    if let Some((name, _)) = head.headers.iter().find(|(name, _)| private(name)) {
        faults.push(format!("`{name}`, which is for the edge"));
    }
    faults
}

/// An opened tunnel is 200 over HTTP/2 (RFC 8441, 4).
fn over(path: Path, status: u16) -> u16 {
    if path.is_h2() && status == 101 {
        200
    } else {
        status
    }
}

/// Whether values are as wanted: a `*` at the end stands for anything.
fn alike(found: &[&str], wanted: &[String]) -> bool {
    let is = |(found, wanted): (&&str, &String)| match wanted.strip_suffix('*') {
        Some(start) => found.starts_with(start),
        None => found == wanted,
    };
    found.len() == wanted.len() && found.iter().zip(wanted).all(is)
}

fn filled(value: &str, path: Path) -> String {
    value
        .replace("{scheme}", path.scheme())
        .replace("{port}", path.port())
}
