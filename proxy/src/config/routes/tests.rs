//! Which route matches a request.

use super::*;

fn routes(entries: &[(Option<&str>, &str)]) -> Routes {
    let route = |(index, (host, path)): (usize, &(Option<&str>, &str))| {
        let closed = ["/live", "/ready", "/metrics", "/slowest", "/api/*"];
        Route::new(*host, path, PoolId(index), vec!["websocket".to_owned()])
            .with_closed_paths(&closed.map(str::to_owned))
    };
    Routes::new(entries.iter().enumerate().map(route).collect())
}

fn pool(routes: &Routes, host: Option<&str>, path: &str) -> Option<usize> {
    routes.find(host, path).map(|route| route.pool.0)
}

#[test]
fn the_most_specific_host_wins_then_the_longest_path() {
    let routes = routes(&[
        (None, "/"),
        (None, "/app"),
        (Some("*.example.com"), "/"),
        (Some("*.eu.example.com"), "/"),
        (Some("Example.com"), "/"),
        (Some("example.com"), "/app/"),
    ]);
    let cases = [
        (None, "/", Some(0)),
        (Some("other"), "/app", Some(1)),
        (Some("other"), "/app?x=/y", Some(1)),
        (Some("other"), "/app/x", Some(1)),
        (Some("other"), "/apple", Some(0)),
        (Some("a.example.com:8080"), "/app", Some(2)),
        (Some("a.EU.example.com."), "/", Some(3)),
        (Some("EXAMPLE.com:443"), "/app", Some(4)),
        (Some("example.com"), "/app/", Some(5)),
        (Some("example.com"), "/app/x", Some(5)),
        (Some("notexample.com"), "/", Some(0)),
        (Some(".example.com"), "/", Some(0)),
    ];
    for (host, path, expected) in cases {
        assert_eq!(pool(&routes, host, path), expected, "{host:?} {path}");
    }
}

#[test]
fn an_ipv6_host_keeps_its_brackets() {
    let routes = routes(&[(Some("[::1]"), "/")]);
    assert_eq!(pool(&routes, Some("[::1]:8080"), "/"), Some(0));
    assert_eq!(pool(&routes, Some("[::1]"), "/"), Some(0));
    assert_eq!(pool(&routes, Some("[::2]"), "/"), None);
}

#[test]
fn without_a_match_there_is_no_route() {
    let routes = routes(&[(Some("example.com"), "/app")]);
    assert_eq!(pool(&routes, Some("example.com"), "/"), None);
    assert_eq!(pool(&routes, None, "/app"), None);
    assert_eq!(pool(&routes, Some("example.com"), "*"), None);
}

#[test]
fn closed_paths_have_no_route_in_any_spelling() {
    let routes = routes(&[(None, "/")]);
    for path in [
        "/live",
        "/ready",
        "/slowest",
        "/metrics",
        "/metrics/",
        "/metrics?x",
        "//metrics",
        "/./metrics",
        "/a/../metrics",
        "/%6Detrics",
        "/metrics%3Fx",
        "/%2e%2e/metrics",
        "/metrics;x=1",
        "\\metrics",
        "/metrics/.",
        "/x;y/../metrics",
        "/%252e%252e/metrics",
        "//host/metrics",
        "/Metrics",
        "/api",
        "/api/publish",
        "/x/../api/publish",
    ] {
        assert_eq!(pool(&routes, None, path), None, "{path}");
    }
    for path in [
        "/",
        "/alive",
        "/a/live",
        "/lives",
        "/live/x",
        "/ready.html",
        "/apis",
        "/%zz",
    ] {
        assert_eq!(pool(&routes, None, path), Some(0), "{path}");
    }
}

#[test]
fn a_route_with_a_closed_path_opens_it() {
    let routes = routes(&[(None, "/"), (None, "/ready")]);
    assert_eq!(pool(&routes, None, "/ready"), Some(1));
    assert_eq!(pool(&routes, None, "/live"), None);
}

#[test]
fn an_opened_path_opens_no_other() {
    let routes = routes(&[(None, "/"), (None, "/ready"), (None, "/api/info")]);
    for (path, expected) in [
        ("/ready", Some(1)),
        ("/ready/", Some(1)),
        ("/ready/x", Some(1)),
        ("/ready/%78", Some(1)),
        ("/api/info", Some(2)),
        ("/api/info/a%20b", Some(2)),
        ("/api/publish", None),
        ("/ready/../metrics", None),
        ("/ready/../api/publish", None),
        ("/ready/..%2fmetrics", None),
        ("/api/info/../publish", None),
        ("/api/info/..%252fpublish", None),
        ("/x/../ready", None),
        ("/READY", None),
    ] {
        assert_eq!(pool(&routes, None, path), expected, "{path}");
    }
}

#[test]
fn a_stripped_prefix_does_not_open_closed_paths() {
    let closed = ["/metrics", "/api/*"].map(str::to_owned);
    let route = |path: &str, prefix: &str, pool| {
        let rules = RouteRules {
            strip_prefix: Some(prefix.to_owned()),
            ..RouteRules::default()
        };
        Route::new(None, path, PoolId(pool), Vec::new())
            .with_rules(rules)
            .with_closed_paths(&closed)
    };
    let routes = Routes::new(vec![
        route("/app", "/app", 0),
        route("/ops/metrics", "/ops", 1),
    ]);
    for (path, expected) in [
        ("/app", Some(0)),
        ("/app/x", Some(0)),
        ("/app/x/metrics", Some(0)),
        ("/app/metrics", None),
        ("/app//metrics", None),
        ("/app/%6detrics", None),
        ("/app/x/../metrics", None),
        ("/app/../metrics", None),
        ("/app/api/publish", None),
        ("/ops/metrics", Some(1)),
        ("/ops/metrics/../api/publish", None),
    ] {
        assert_eq!(pool(&routes, None, path), expected, "{path}");
    }
}

#[test]
fn upgrades_are_compared_without_case() {
    let routes = routes(&[(None, "/")]);
    let route = routes.find(None, "/").unwrap();
    assert!(route.allows_upgrade("WebSocket"));
    assert!(!route.allows_upgrade("h2c"));
}
