//! `--print-config` and `genconfig`.

use std::fs;

use causeway_conf::parse as parse_file;

use super::*;

/// Every setting, with secrets in the file `SECRET`, a URL in the file `URL`, and certificates in the file `CA`.
const WHOLE: &str = "
listeners:
  - address: 127.0.0.1:8443
    proxy_protocol: [ 10.0.0.0/8 ]
    tls:
      certificates: [ { certificate: /a.crt, key: /a.key } ]
      min_version: \"1.3\"
      http2: false
      handshake: 5s
      ticket_keys: /tickets
      client_ca: /ca
  - address: 127.0.0.1:8444
    tls: { folder: /certificates }
  - { address: 127.0.0.1:8080, redirect_to_https: 8443 }
admin: { address: 127.0.0.1:8082 }
websockets_over_http2: true
abort_on_client_close: true
zone: a
pools:
  - name: one
    pick: round_robin
    cookie: own
    cookie_path: /one
    closed_paths: [ /metrics, /x/* ]
    tls: { ca: /ca, server_name: app.example, certificate: /c.crt, key: /c.key }
    health:
      kind: http
      method: GET
      path: /health
      headers: { Host: app.example, X-Key: { file: SECRET } }
      expect: [ 200, 300-399 ]
      port: 81
      interval: 3s
    backends:
      - { id: a1, address: 10.0.0.1:80, weight: 2, zone: a, backup: true, maintenance: true }
      - { id: a2, address: \"app.example:80\" }
  - name: two
    tls: { verify: false, server_name: 10.0.0.9 }
    health: { kind: websocket, path: /ws, host: ws.example }
    backends: [ { id: b1, address: \"unix:/run/app.sock\" } ]
  - name: three
    health: { kind: tcp }
    discover: { redis: { file: URL }, tls: { ca: CA }, every: 3s, allow: [ 10.0.0.0/8 ] }
  - name: four
    discover: { redis_urls: [ { file: URL } ] }
routes:
  - { path: /, pool: one }
  - path: /app/x
    host: \"*.example.com\"
    pool: two
    upgrades: [ websocket, foo/1.0 ]
    strip_prefix: /app
    request_headers: { remove: [ X-A ], set: { Host: app }, add: { X-B: { file: SECRET } } }
    response_headers: { remove: [ X-A ], set: { X-C: { file: SECRET } } }
  - { host: Example.com, path: /, pool: three }
  - { host: \"[::1]\", path: /four, pool: four }
no_route: { status: 421, body: \"no: \\\"route\\\"\\n\" }
affinity:
  cookie: app
  path: /app
  domain: example.com
  same_site: none
  partitioned: true
  secure: always
  http_only: false
  max_age: 1h
  keys: [ { file: SECRET } ]
  sockjs_path: false
  query_parameter: sid
  sockjs_sessions: 2048
  hold: 3s
  hold_timeout: 4s
health:
  interval: 4s
  fast_interval: 600ms
  down_interval: 2s
  timeout: 2s
  rise: 3
  fall: 4
  slow_start: 5s
  ignore_below: 6
timeouts:
  head: 3s
  keepalive: 4s
  downstream_read: 5s
  request_body_rate: { per_second: 1KiB, window: 10s }
  downstream_write: 6s
  connect: 7s
  upstream_read: 8s
  upstream_write: 9s
  upstream_keepalive: 10s
  upgrade: 11s
  tunnel_idle: 12s
  tunnel_lifetime: 13s
  tcp_keepalive: 14s
  tcp_user_timeout: 15s
limits:
  connections: 1000
  connections_per_address: 2
  connection_rate_per_address: { per_second: 3, burst: 4 }
  head_size: 8KiB
  response_head_size: 32KiB
  headers: 100
  http2_streams: 50
  http2_send_buffer: 32KiB
  retries: 1
  retry_budget: 10
  waiting: 5
  handshakes_per_address: 6
  handshake_rate_per_address: { per_second: 7, burst: 8 }
  body_size: 9MiB
  requests: 10
  requests_per_address: 11
  tunnels: 12
  tunnels_per_address: 13
  tunnels_per_backend: 14
  requests_per_backend: 15
  queue_per_backend: 16
  queue_time: 17s
drain: { late: 2s, spread: 3s, timeout: 4s }
trusted_proxies: [ 10.0.0.0/8, \"::1\" ]
log: { level: debug, format: text, access: /var/log/access.log }
threads: 3
";

/// The configuration, and what is printed of it.
fn print(text: &str) -> (Config, String) {
    let document = parse_file("proxy.yaml", text).unwrap_or_else(|errors| panic!("{errors}"));
    let read = read::config(document);
    let (config, positions) = read.unwrap_or_else(|errors| panic!("{errors}"));
    let printed = config.effective(&positions).to_yaml("", &positions);
    (config, printed)
}

/// `WHOLE` with its files.
fn whole(name: &str) -> (String, Vec<PathBuf>) {
    let folder = std::env::temp_dir();
    let [secret, url, ca] = ["secret", "url", "ca"].map(|kind| {
        folder.join(format!(
            "causeway-proxy-effective-{}-{name}-{kind}",
            std::process::id()
        ))
    });
    fs::write(&secret, "0123456789abcdef").unwrap();
    fs::write(&url, "rediss://:hunter2@127.0.0.1:1").unwrap();
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&ca, certificate.cert.pem()).unwrap();
    let text = WHOLE
        .replace("SECRET", &secret.display().to_string())
        .replace("URL", &url.display().to_string())
        .replace("CA }", &format!("{} }}", ca.display()));
    (text, vec![secret, url, ca])
}

fn remove(files: &[PathBuf]) {
    for file in files {
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn what_is_printed_reads_back_as_the_same_configuration() {
    let (text, files) = whole("same");
    let bare = format!(
        "{MINIMAL}admin: none\ntimeouts: {{ request_body_rate: off }}\naffinity: {{ cookie: none }}\n"
    );
    for text in [MINIMAL, COMMENTED, &text, &bare] {
        let (config, printed) = print(text);
        let again = Config::parse("printed.yaml", &printed);
        let again = again.unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
        assert_eq!(format!("{again:#?}"), format!("{config:#?}"), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    remove(&files);
}

#[test]
fn every_setting_is_printed() {
    let (text, files) = whole("every");
    let printed = print(&text).1;
    let has = |key: &str| {
        let key = format!("{key}:");
        printed
            .lines()
            .any(|line| line.trim_start_matches([' ', '-']).starts_with(&key))
    };
    for line in COMMENTED.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        for key in words.filter_map(|word| word.strip_suffix(':')) {
            let is_setting = key.starts_with(|c: char| c.is_ascii_lowercase());
            // Written for the kind of probe that the pool has, and per pool.
            assert!(
                !is_setting || has(key),
                "{key} of {line:?} is not in\n{printed}"
            );
        }
    }
    remove(&files);
}

#[test]
fn the_source_of_each_value_is_behind_it() {
    let text = format!(
        "{MINIMAL}affinity: {{ cookie: app, keys: [hunter2hunter2hunter2] }}\nhealth: {{ rise: 7 }}\ntimeouts:\n  head: 3s\n"
    );
    let (_, printed) = print(&text);
    for line in [
        "  - address: \"127.0.0.1:8080\"  # default",
        "  - name: nodes  # proxy.yaml:1",
        "    cookie: app  # proxy.yaml:2",
        "    cookie_path: /  # default",
        "      rise: 7  # proxy.yaml:3",
        "      fall: 3  # default",
        "      - id: n1  # proxy.yaml:1",
        "        weight: 1  # default",
        "  keys: [\"***\"]  # proxy.yaml:2",
        "  head: 3s  # proxy.yaml:5",
        "  http2_preface: 3s  # proxy.yaml:5",
    ] {
        assert!(
            printed.lines().any(|other| other == line),
            "{line}\n{printed}"
        );
    }
}

#[test]
fn a_generated_configuration_is_valid_and_has_a_key_of_its_own() {
    let [one, other] = [(); 2].map(|()| Config::generate().unwrap());
    let config = Config::parse("generated.yaml", &one).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.warnings(SystemTime::now()), [""; 0]);
    assert_ne!(one, other);
    assert_eq!(config.affinity.keys[0].expose().len(), 64);
}
