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
        cookie_needed: false,
        client_script: Some("/sockjs.js".to_owned()),
    })
}

const ALL: [SockjsTransport; 6] = [
    SockjsTransport::Websocket,
    SockjsTransport::XhrStreaming,
    SockjsTransport::Eventsource,
    SockjsTransport::Htmlfile,
    SockjsTransport::Xhr,
    SockjsTransport::Jsonp,
];

const WIRES: [(&str, Wire); 7] = [
    ("xhr", Wire::Xhr),
    ("xhr_streaming", Wire::XhrStreaming),
    ("xhr_send", Wire::XhrSend),
    ("eventsource", Wire::Eventsource),
    ("htmlfile", Wire::Htmlfile),
    ("jsonp", Wire::Jsonp),
    ("jsonp_send", Wire::JsonpSend),
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
        ("/echo/iframe.html", Place::Iframe),
        ("/echo/iframe-.html/", Place::Iframe),
        ("/echo/iframe-0.1.2abc-dirty.2144.html", Place::Iframe),
    ] {
        assert_eq!(place_in(path), Some(place), "{path}");
    }
    for (name, wire) in WIRES {
        for (path, id) in [
            (format!("/echo/000/abc/{name}"), "abc"),
            (format!("/echo/9/a_b-%20/{name}/"), "a_b-%20"),
        ] {
            assert_eq!(place_in(&path), Some(Place::Session { id, wire }), "{path}");
        }
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
        "/echo/iframe",
        "/echo/iframe.htm",
        "/echo/IFRAME.HTML",
        "/echo/iframe.HTML",
        "/echo/iframe-A.html",
        "/echo/iframe-/.html",
        "/echo/iframe.html/x",
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
fn what_no_transport_needs_is_not_found() {
    for transport in ALL {
        let endpoints = [endpoint("/echo", sockjs(&[transport]))];
        let is_found = |path: &str| find_in(path, &endpoints).is_some();
        let is_websocket = transport == SockjsTransport::Websocket;
        assert_eq!(is_found("/echo/websocket"), is_websocket);
        assert_eq!(is_found("/echo/0/a/websocket"), is_websocket);
        let served: &[&str] = match transport {
            SockjsTransport::Websocket => &[],
            SockjsTransport::XhrStreaming => &["xhr_streaming", "xhr_send"],
            SockjsTransport::Eventsource => &["eventsource", "xhr_send"],
            SockjsTransport::Htmlfile => &["htmlfile", "xhr_send"],
            SockjsTransport::Xhr => &["xhr", "xhr_send"],
            SockjsTransport::Jsonp => &["jsonp", "jsonp_send"],
        };
        for (wire, _) in WIRES {
            let path = format!("/echo/0/a/{wire}");
            assert_eq!(
                is_found(&path),
                served.contains(&wire),
                "{transport:?} {wire}"
            );
        }
    }
}

#[test]
fn without_a_script_there_is_no_page_for_frames() {
    let Protocol::Sockjs(settings) = sockjs(&ALL) else {
        panic!("it is one");
    };
    let settings = Sockjs {
        client_script: None,
        ..settings
    };
    let endpoints = [endpoint("/echo", Protocol::Sockjs(settings))];
    assert_eq!(find_in("/echo/iframe.html", &endpoints), None);
    assert!(find_in("/echo/info", &endpoints).is_some());
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
    let session = |wire| Route::Endpoint(0, Place::Session { id: "a", wire });
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
            session(Wire::Xhr),
            &["POST", "OPTIONS"],
            &["GET", "HEAD", "PUT"],
        ),
        (
            session(Wire::Eventsource),
            &["GET"],
            &["POST", "HEAD", "OPTIONS"],
        ),
        (session(Wire::Jsonp), &["GET"], &["POST", "HEAD", "OPTIONS"]),
        (
            session(Wire::JsonpSend),
            &["POST"],
            &["GET", "HEAD", "OPTIONS"],
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

#[test]
fn an_endpoint_for_channels_has_its_transports_below_it_and_nothing_else() {
    let channels = |transports: &[ChannelTransport]| {
        let transports = transports.to_vec();
        endpoint(
            "/connection",
            Protocol::Channels(ChannelsEndpoint {
                transports,
                commands_bytes_max: 1024,
                command_rate: None,
            }),
        )
    };
    let place = |path| find_in(path, &[channels(&[ChannelTransport::Websocket])]);
    let websocket = Some(Route::Endpoint(0, Place::ChannelsWebsocket));
    assert_eq!(place("/connection/websocket"), websocket);
    assert_eq!(place("/connection/websocket/"), websocket);
    for path in [
        "/connection",
        "/connection/",
        "/connection/websocket/x",
        "/connection//websocket",
        "/connection/nothing",
    ] {
        assert_eq!(place(path), None, "{path}");
    }
    let without = [channels(&[ChannelTransport::UniSse])];
    assert_eq!(find_in("/connection/websocket", &without), None);
}
