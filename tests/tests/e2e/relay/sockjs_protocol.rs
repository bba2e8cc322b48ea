//! The SockJS protocol case by case, on a node alone and through the edge.
//!
//! There is a case for each test of the public suite (sockjs-protocol) but one: the handshake of the draft Hixie-76, which no
//! client of today speaks.

mod closing;
mod cookies;
mod encoding;
mod jsonp;
mod pages;
mod polling;
mod service;
mod streaming;
mod versions;
mod websockets;

use std::pin::Pin;

use anyhow::Result;
use causeway_tests::harness::{conformance::Conformance, scratch::Scratch};
use service::Server;

/// One thing that must hold of a server.
type Case = fn(Server) -> Verdict;
type Verdict = Pin<Box<dyn Future<Output = Result<()>>>>;

/// Cases by name.
macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        [$((
            concat!(stringify!($module), "::", stringify!($name)),
            (|server| -> Verdict { Box::pin($module::$name(server)) }) as Case,
        )),*]
    };
}

#[rustfmt::skip]
const CASES: [(&str, Case); 67] = cases![
    pages::greeting,
    pages::unknown_paths,
    pages::iframe,
    pages::iframe_of_a_version,
    pages::iframe_with_a_query,
    pages::iframe_under_a_wrong_name,
    pages::iframe_is_cached,
    pages::info,
    pages::info_has_entropy,
    pages::info_preflight,
    pages::info_preflight_of_no_origin,
    pages::info_without_websocket,
    polling::any_server_and_session,
    polling::malformed_session_paths,
    polling::the_server_id_means_nothing,
    polling::a_session,
    polling::preflight,
    polling::transport,
    polling::unknown_session,
    polling::bad_json,
    polling::content_types,
    polling::preflight_headers,
    polling::no_messages,
    closing::a_session_that_the_server_closes,
    closing::the_close_frame_is_for_every_receiver,
    closing::a_second_receiver,
    closing::an_aborted_stream,
    closing::an_aborted_poll,
    websockets::a_get_without_upgrade,
    websockets::an_upgrade_with_another_connection,
    websockets::a_post,
    websockets::transport,
    websockets::close,
    websockets::headers,
    websockets::empty_messages,
    websockets::a_session_id_used_twice,
    websockets::bad_json,
    websockets::raw,
    websockets::raw_close,
    streaming::preflight,
    streaming::xhr,
    streaming::xhr_limit,
    streaming::eventsource,
    streaming::eventsource_limit,
    streaming::htmlfile,
    streaming::htmlfile_without_callback,
    streaming::htmlfile_with_a_bad_callback,
    streaming::htmlfile_limit,
    jsonp::transport,
    jsonp::without_callback,
    jsonp::with_a_bad_callback,
    jsonp::bad_json,
    jsonp::content_types,
    jsonp::close,
    jsonp::no_messages,
    cookies::info,
    cookies::xhr,
    cookies::xhr_streaming,
    cookies::eventsource,
    cookies::htmlfile,
    cookies::jsonp,
    encoding::what_the_server_escapes,
    encoding::what_the_client_escapes,
    versions::http_1_0,
    versions::http_1_0_stream,
    versions::http_1_1,
    versions::http_1_1_stream,
];

#[tokio::test]
async fn every_case_holds_directly_and_through_the_edge() -> Result<()> {
    let scratch = Scratch::new("sockjs-protocol")?;
    let services = Conformance::start(scratch.path()).await?;
    let verdict = |result: &Result<()>| if result.is_ok() { "ok" } else { "FAILED" };
    let mut failures = String::new();
    println!("{:48}{:10}through the edge", "", "directly");
    for (name, case) in CASES {
        let (directly, by_edge) = tokio::join!(
            case(Server::at(services.node)),
            case(Server::at(services.edge.address))
        );
        println!("{name:48}{:10}{}", verdict(&directly), verdict(&by_edge));
        for (way, result) in [("directly", directly), ("through the edge", by_edge)] {
            if let Err(error) = result {
                failures.push_str(&format!("{name} {way}: {error:#}\n"));
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    Ok(())
}
