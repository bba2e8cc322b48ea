//! The metrics page that Prometheus scrapes.

use std::time::Duration;

use expect_test::expect;
use http::StatusCode;

use super::*;

#[test]
fn the_page_has_every_family_and_ends_with_eof() {
    let metrics = Metrics::new();
    metrics.connections_open.set(3);
    metrics.affinity_hit.inc();
    metrics.limited("requests").inc();
    metrics.refused("requests", StatusCode::SERVICE_UNAVAILABLE);
    metrics.close_seen("client", Some(1000));
    metrics.close_seen("client", Some(4711));
    metrics.close_seen("backend", Some(65_535));
    metrics.close_seen("backend", None);
    let route = metrics.route("*.example.com/app");
    route.ended(200, Duration::from_millis(30), 5, 7);
    route.ended(999, Duration::from_secs(100), 0, 0);
    let backend = metrics.backend("n1");
    backend.responded(StatusCode::OK);
    backend.responded(StatusCode::from_u16(999).unwrap());
    backend.request_started();
    backend.waited("returned");
    backend.state("up", &["up", "down"], 1_700_000_000);
    backend.state_changed("up");
    backend.tunnel_opened();
    backend.tunnel_opened();
    backend.tunnel_gone();
    backend.tunnel_closed("client", Duration::from_secs(30), 10, 20);
    let page = metrics.encode();
    assert!(page.ends_with("# EOF\n"));
    let is_value = |line: &&str| !line.starts_with('#');
    let mut values: Vec<&str> = page.lines().filter(is_value).collect();
    values.sort_unstable(); // Families keep their members in no order.
    expect![[r#"
        causeway_proxy_access_lines_dropped_total 0
        causeway_proxy_affinity_forged_total 0
        causeway_proxy_affinity_total{outcome="bound_anew"} 0
        causeway_proxy_affinity_total{outcome="hit"} 1
        causeway_proxy_affinity_total{outcome="miss"} 0
        causeway_proxy_close_codes_total{from="backend",code="other"} 1
        causeway_proxy_close_codes_total{from="client",code="1000"} 1
        causeway_proxy_close_codes_total{from="client",code="4xxx"} 1
        causeway_proxy_configuration_ok 1
        causeway_proxy_connections_open 3
        causeway_proxy_drain_tunnels_left{backend="n1"} 0
        causeway_proxy_handoffs_total{outcome="moved"} 0
        causeway_proxy_handoffs_total{outcome="stayed"} 0
        causeway_proxy_limited_total{limit="requests"} 1
        causeway_proxy_log_lines_dropped_total 0
        causeway_proxy_refusals_total{reason="requests",status="503"} 1
        causeway_proxy_request_seconds_bucket{le="+Inf",route="*.example.com/app"} 2
        causeway_proxy_request_seconds_bucket{le="0.001",route="*.example.com/app"} 0
        causeway_proxy_request_seconds_bucket{le="0.005",route="*.example.com/app"} 0
        causeway_proxy_request_seconds_bucket{le="0.01",route="*.example.com/app"} 0
        causeway_proxy_request_seconds_bucket{le="0.025",route="*.example.com/app"} 0
        causeway_proxy_request_seconds_bucket{le="0.1",route="*.example.com/app"} 1
        causeway_proxy_request_seconds_bucket{le="0.25",route="*.example.com/app"} 1
        causeway_proxy_request_seconds_bucket{le="1.0",route="*.example.com/app"} 1
        causeway_proxy_request_seconds_bucket{le="10.0",route="*.example.com/app"} 1
        causeway_proxy_request_seconds_bucket{le="2.5",route="*.example.com/app"} 1
        causeway_proxy_request_seconds_bucket{le="30.0",route="*.example.com/app"} 1
        causeway_proxy_request_seconds_bucket{le="60.0",route="*.example.com/app"} 1
        causeway_proxy_request_seconds_count{route="*.example.com/app"} 2
        causeway_proxy_request_seconds_sum{route="*.example.com/app"} 100.03
        causeway_proxy_requests_in_flight{backend="n1"} 1
        causeway_proxy_requests_total{backend="n1",class="1xx"} 0
        causeway_proxy_requests_total{backend="n1",class="2xx"} 1
        causeway_proxy_requests_total{backend="n1",class="3xx"} 0
        causeway_proxy_requests_total{backend="n1",class="4xx"} 0
        causeway_proxy_requests_total{backend="n1",class="5xx"} 0
        causeway_proxy_requests_waiting{backend="n1"} 0
        causeway_proxy_retries_total 0
        causeway_proxy_route_body_bytes_total{route="*.example.com/app",direction="down"} 7
        causeway_proxy_route_body_bytes_total{route="*.example.com/app",direction="up"} 5
        causeway_proxy_route_requests_total{route="*.example.com/app",class="1xx"} 0
        causeway_proxy_route_requests_total{route="*.example.com/app",class="2xx"} 1
        causeway_proxy_route_requests_total{route="*.example.com/app",class="3xx"} 0
        causeway_proxy_route_requests_total{route="*.example.com/app",class="4xx"} 0
        causeway_proxy_route_requests_total{route="*.example.com/app",class="5xx"} 0
        causeway_proxy_state_since_seconds{backend="n1"} 1700000000
        causeway_proxy_state{backend="n1",state="down"} 0
        causeway_proxy_state{backend="n1",state="up"} 1
        causeway_proxy_transitions_total{backend="n1",to="up"} 1
        causeway_proxy_tunnel_bytes_total{backend="n1",direction="down"} 20
        causeway_proxy_tunnel_bytes_total{backend="n1",direction="up"} 10
        causeway_proxy_tunnel_seconds_bucket{le="+Inf",backend="n1"} 1
        causeway_proxy_tunnel_seconds_bucket{le="0.1",backend="n1"} 0
        causeway_proxy_tunnel_seconds_bucket{le="1.0",backend="n1"} 0
        causeway_proxy_tunnel_seconds_bucket{le="10.0",backend="n1"} 0
        causeway_proxy_tunnel_seconds_bucket{le="14400.0",backend="n1"} 1
        causeway_proxy_tunnel_seconds_bucket{le="3600.0",backend="n1"} 1
        causeway_proxy_tunnel_seconds_bucket{le="60.0",backend="n1"} 1
        causeway_proxy_tunnel_seconds_bucket{le="600.0",backend="n1"} 1
        causeway_proxy_tunnel_seconds_bucket{le="86400.0",backend="n1"} 1
        causeway_proxy_tunnel_seconds_count{backend="n1"} 1
        causeway_proxy_tunnel_seconds_sum{backend="n1"} 30.0
        causeway_proxy_tunnels_closed_total{backend="n1",reason="client"} 1
        causeway_proxy_tunnels_opened_total{backend="n1"} 2
        causeway_proxy_tunnels_open{backend="n1"} 1
        causeway_proxy_tunnels_taken_over_total 0
        causeway_proxy_waits_total{backend="n1",outcome="returned"} 1"#]]
    .assert_eq(&values.join("\n"));
}
