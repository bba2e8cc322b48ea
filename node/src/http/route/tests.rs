//! Tests of the routing table: every path of SockJS, and those that look like one.

use std::time::Duration;

use super::*;
use crate::config::AllowedOrigins;
use crate::config::Mode;
use crate::config::Ping;
use crate::config::Sockjs;

fn endpoint(path: &str, protocol: Protocol) -> Endpoint {
    let second = Duration::from_secs(1);
    Endpoint {
        path: path.to_owned(),
        protocol,
        mode: Mode::Echo,
        read_only: false,
        message_bytes_max: 1024,
        publish_rate: None,
        outbox_bytes_max: 1024,
        allowed_origins: AllowedOrigins::Any,
        ping: Ping {
            interval: second,
            timeout: second,
        },
    }
}

fn sockjs(transports: &[SockjsTransport]) -> Protocol {
    Protocol::Sockjs(Sockjs {
        transports: transports.to_vec(),
        heartbeat: Duration::from_secs(25),
        disconnect_delay: Duration::from_secs(5),
        response_bytes_max: 4096,
        jsessionid: false,
    })
}

const ALL: [SockjsTransport; 3] = [
    SockjsTransport::Websocket,
    SockjsTransport::XhrStreaming,
    SockjsTransport::Xhr,
];

fn find_in<'a>(path: &'a str, endpoints: &[Endpoint]) -> Option<Route<'a>> {
    find(path, endpoints, true)
}

fn place_in(path: &str) -> Option<Place<'_>> {
    match find_in(path, &[endpoint("/echo", sockjs(&ALL))])? {
        Route::Endpoint(0, place) => Some(place),
        route => panic!("{route:?}"),
    }
}

#[test]
fn every_path_of_sockjs_is_found() {
    for (path, place) in [
        ("/echo", Place::Greeting),
        ("/echo/", Place::Greeting),
        ("/echo/info", Place::Info),
        ("/echo/info/", Place::Info),
        ("/echo/websocket", Place::RawWebsocket),
        ("/echo/0/x/websocket", Place::SessionWebsocket),
        (
            "/echo/000/abc/xhr",
            Place::Session {
                id: "abc",
                wire: Wire::Xhr,
            },
        ),
        (
            "/echo/000/abc/xhr/",
            Place::Session {
                id: "abc",
                wire: Wire::Xhr,
            },
        ),
        (
            "/echo/9/a_b-%20/xhr_streaming",
            Place::Session {
                id: "a_b-%20",
                wire: Wire::XhrStreaming,
            },
        ),
        (
            "/echo/000/abc/xhr_send",
            Place::Session {
                id: "abc",
                wire: Wire::XhrSend,
            },
        ),
    ] {
        assert_eq!(place_in(path), Some(place), "{path}");
    }
}

#[test]
fn what_only_looks_like_a_path_of_sockjs_is_not_found() {
    let long = format!("/echo/000/{}/xhr", "x".repeat(SESSION_ID_BYTES_MAX + 1));
    for path in [
        "/echo//",
        "/echo///",
        "/echo//a",
        "/echo/a",
        "/echo/Info",
        "/echo/info//",
        "/echo/websocket/x",
        "/echo/000/abc",
        "/echo/000/abc/",
        "/echo/000/abc/xhr//",
        "/echo/000/abc/xhr/x",
        "/echo/000//xhr",
        "/echo//abc/xhr",
        "/echo/0.0/abc/xhr",
        "/echo/000/a.c/xhr",
        "/echo/000/abc/XHR",
        "/echo/000/abc/jsonpx",
        "/echos",
        "/ech",
        "/other",
        "echo",
        "*",
        "",
        &long,
    ] {
        assert_eq!(place_in(path), None, "{path}");
    }
}

#[test]
fn a_transport_that_is_switched_off_is_not_found() {
    let only = |transport| [endpoint("/echo", sockjs(&[transport]))];
    let websocket = only(SockjsTransport::Websocket);
    assert!(find_in("/echo/websocket", &websocket).is_some());
    assert!(find_in("/echo/0/a/websocket", &websocket).is_some());
    for wire in ["xhr", "xhr_streaming", "xhr_send"] {
        assert_eq!(find_in(&format!("/echo/0/a/{wire}"), &websocket), None);
    }
    let xhr = only(SockjsTransport::Xhr);
    assert_eq!(find_in("/echo/websocket", &xhr), None);
    assert_eq!(find_in("/echo/0/a/websocket", &xhr), None);
    assert_eq!(find_in("/echo/0/a/xhr_streaming", &xhr), None);
    assert!(find_in("/echo/0/a/xhr_send", &xhr).is_some());
}

#[test]
fn a_websocket_endpoint_is_one_path() {
    let endpoints = [endpoint("/ws", Protocol::Websocket)];
    for path in ["/ws", "/ws/"] {
        assert_eq!(
            find_in(path, &endpoints),
            Some(Route::Endpoint(0, Place::Websocket))
        );
    }
    for path in ["/ws//", "/ws/info", "/wss"] {
        assert_eq!(find_in(path, &endpoints), None);
    }
}

#[test]
fn the_deepest_endpoint_wins() {
    let endpoints = [
        endpoint("/a", sockjs(&ALL)),
        endpoint("/a/b", Protocol::Websocket),
    ];
    assert_eq!(
        find_in("/a/b", &endpoints),
        Some(Route::Endpoint(1, Place::Websocket))
    );
    assert_eq!(
        find_in("/a/info", &endpoints),
        Some(Route::Endpoint(0, Place::Info))
    );
}

#[test]
fn the_page_can_be_switched_off() {
    for (path, route) in [
        ("/", Route::Page(Asset::Index)),
        ("/page.js", Route::Page(Asset::Script)),
        ("/page.css", Route::Page(Asset::Style)),
        ("/move", Route::Move),
    ] {
        assert_eq!(find(path, [], true), Some(route));
        assert_eq!(find(path, [], false), None);
    }
    assert_eq!(find("/index.html", [], true), None);
}

#[test]
fn methods_are_those_of_the_protocol() {
    let session = Place::Session {
        id: "a",
        wire: Wire::Xhr,
    };
    for (route, allowed, refused) in [
        (
            Route::Page(Asset::Index),
            ["GET", "HEAD"].as_slice(),
            ["POST", "OPTIONS"].as_slice(),
        ),
        (
            Route::Endpoint(0, Place::Greeting),
            &["GET"],
            &["POST", "HEAD", "OPTIONS"],
        ),
        (
            Route::Endpoint(0, Place::Info),
            &["GET", "OPTIONS"],
            &["POST", "HEAD"],
        ),
        (
            Route::Endpoint(0, Place::RawWebsocket),
            &["GET"],
            &["POST", "HEAD"],
        ),
        (
            Route::Endpoint(0, session),
            &["POST", "OPTIONS"],
            &["GET", "HEAD", "PUT"],
        ),
    ] {
        for (methods, expected) in [(allowed, true), (refused, false)] {
            for method in methods {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                assert_eq!(route.allows(&method), expected, "{route:?} {method}");
            }
        }
    }
}
