//! `--print-config` and `genconfig`.

use std::fs;

use super::*;

/// Every setting, secrets in the file `SECRET` and the URL in the file `URL`.
const WHOLE: &str = "
node: { id: n1, advertise: \"10.0.0.1:9000\", zone: a }
listen: 127.0.0.1:9017
admin: { address: \"127.0.0.1:9018\" }
threads: 2
broker:
  kind: redis
  urls: [ { file: URL } ]
  publish_queues: 3
  publish_queue_size: 2MiB
  publish_queue_wait: 1500ms
  connect_timeout: 2s
  response_timeout: 3s
  backoff_max: 4s
  probe_interval: 5s
  probe_timeout: 2s
  message_size: 2MiB
  unready_when_full: true
auth:
  keys:
    - { id: \"007\", algorithm: HS256, key: { file: SECRET } }
    - { algorithm: HS256, key: { file: SECRET } }
  audience: [ a, \"null\" ]
  issuer: \"yes\"
  leeway: 7s
  anonymous: true
hooks:
  connect: \"https://app.example/connect\"
  refresh: { address: \"https://app.example/refresh\", timeout: 5s }
  subscribe: { address: \"https://app.example/subscribe\", open: 3 }
  timeout: 2s
  open: 16
  response_size: 32KiB
  forward_headers: [ cookie ]
  emulated_headers: [ X-Token ]
  values: [ cart ]
  headers: { X-Key: { file: SECRET } }
registry: { renew: 1s, lease: 9s, verify: 60s }
lifecycle: { connections: true, coalesce: 1s, keep: 1000 }
api: { path: /v1/api, keys: [ { file: SECRET } ], ack: fast, history_page: 7 }
values: { size: 1KiB, memory: 2MiB }
endpoints:
  - path: /connection
    mode: channels
    transports: [ sse, websocket ]
    publish_rate: { per_second: 7 }
    allowed_origins: [ \"https://a.example\" ]
    ping: { interval: 20s, timeout: 5s }
  - path: /commands
    mode: channels
    commands_size: 256KiB
    command_rate: { per_second: 7, burst: 70 }
  - path: /sockjs
    protocol: sockjs
    channel: c
    message_size: 1KiB
    outbox: 1MiB
    transports: [ xhr, jsonp ]
    heartbeat: 20s
    disconnect_delay: 6s
    response_limit: 1KiB
    cookie_needed: true
    client_script: /sockjs.js
  - { path: /ws, protocol: websocket, read_only: true, allowed_origins: [ \"*\" ] }
  - { path: /echo, protocol: websocket, mode: echo }
channels:
  namespaces:
    - name: b
      subscribe: authenticated
      user_limited: true
      publish: subscribers
      read_presence: nobody
      read_history: anyone
      history: { size: 5, lifetime: 1m }
      recovery: true
      presence: true
      join_leave: true
      force_push_join_leave: true
      lifecycle: true
    - { name: a, data: binary, slow: latest, ack: stored }
    - { name: \"\" }
  linger: 3s
  limits:
    connect_timeout: 3s
    channels_per_client: 9
    commands_per_client: 3
    connections_per_user: 2
    connections_per_user_policy: drop_oldest
    history_page: 8
    history_bytes: 128KiB
    recovery: 9
page: false
trusted_proxies: [ 10.0.0.0/8, \"::1\" ]
limits:
  connections: 1000
  memory: 1GiB
  sessions: 8
  sessions_per_address: 9
  head_size: 8KiB
  head_timeout: 3s
  keepalive: 3s
  body_size: 1MiB
  body_timeout: 3s
  send_timeout: 3s
tcp: { keepalive: 3s, user_timeout: 3s, send_buffer: 64KiB }
fanout: { window: 1ms, factor: 3, batch: 64KiB }
drain: { lead: 3s, spread: 2s, timeout: 4s }
log: { level: \"info,causeway_node::broker=debug\", format: text }
";

/// As it is compared: warnings name other places, and a default that depends on a limit is shown as what it is.
fn comparable(config: Config) -> Config {
    let channels_max = config.channels.limits.channels_per_client;
    let endpoints = config.endpoints.iter().map(|endpoint| {
        let mut endpoint = Endpoint::clone(endpoint);
        if let Protocol::Channels(channels) = &mut endpoint.protocol {
            channels.command_rate = Some(channels.command_rate(channels_max));
        }
        Arc::new(endpoint)
    });
    Config {
        endpoints: endpoints.collect(),
        warnings: Vec::new(),
        ..config
    }
}

/// The configuration, and what is printed of it.
fn print(text: &str) -> (Config, String) {
    let document = causeway_conf::parse::<raw::Config>("node.yaml", text).unwrap();
    let config = check::check(document.value, &document.positions)
        .unwrap_or_else(|errors| panic!("{errors}"));
    let effective = config.effective(&document.positions);
    (config, effective.to_yaml("", &document.positions))
}

/// `WHOLE` with its files.
fn whole(name: &str) -> (String, Vec<PathBuf>) {
    let folder = std::env::temp_dir();
    let [secret, url] = ["secret", "url"].map(|kind| {
        folder.join(format!(
            "causeway-effective-{}-{name}-{kind}",
            std::process::id()
        ))
    });
    fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    fs::write(&url, "redis://:hunter2@127.0.0.1:1").unwrap();
    let text = WHOLE
        .replace("SECRET", &secret.display().to_string())
        .replace("URL", &url.display().to_string());
    (text, vec![secret, url])
}

#[test]
fn what_is_printed_reads_back_as_the_same_configuration() {
    let (text, files) = whole("same");
    let other_lead = "drain: { lead_max: 3s }\nadmin: none\n";
    let with_url = format!(
        "broker: {{ kind: redis, url: {{ file: {} }} }}\n",
        files[1].display()
    );
    for text in ["", COMMENTED, &text, other_lead, &with_url] {
        let (config, printed) = print(text);
        let again = Config::parse("printed.yaml", &printed);
        let again = again.unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
        assert_eq!(comparable(again), comparable(config), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    for file in files {
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn every_setting_is_printed() {
    let (text, files) = whole("every");
    let printed = [print(&text).1, print("drain: { lead_max: 3s }").1].concat();
    let has = |key: &str| {
        let key = format!("{key}:");
        printed
            .lines()
            .any(|line| line.trim_start_matches([' ', '-']).starts_with(&key))
    };
    for line in COMMENTED.lines().filter_map(|line| line.split('#').next()) {
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        for key in words
            .filter_map(|word| word.strip_suffix(':'))
            .filter(|key| !key.is_empty())
        {
            // Addresses have colons too.
            let is_setting = key.starts_with(|c: char| c.is_ascii_lowercase());
            assert!(
                !is_setting || has(key),
                "{key} of {line:?} is not in\n{printed}"
            );
        }
    }
    for file in files {
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn the_source_of_each_value_is_behind_it() {
    let text = "listen: 127.0.0.1:1\nhooks: { timeout: 2s, connect: \"http://a.example/\" }\nlimits:\n  sessions: 7\napi: { keys: [hunter2hunter2hunter2] }\n";
    let (_, printed) = print(text);
    for line in [
        "listen: \"127.0.0.1:1\"  # node.yaml:1",
        "    address: \"http://a.example/\"  # node.yaml:2",
        "    timeout: 2s  # node.yaml:2",
        "    open: 64  # default",
        "  sessions: 7  # node.yaml:4",
        "  keepalive: 1m 15s  # default",
        "  keys: [\"***\"]  # node.yaml:5",
        "  level: info  # default",
    ] {
        assert!(
            printed.lines().any(|other| other == line),
            "{line}\n{printed}"
        );
    }
}

#[test]
fn a_generated_configuration_is_valid_and_has_keys_of_its_own() {
    let [one, other] = [(); 2].map(|()| Config::generate().unwrap());
    let config = Config::parse("generated.yaml", &one).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.warnings(), []);
    assert_ne!(one, other);
    let api = config.api.unwrap();
    assert_eq!((config.auth.keys.len(), api.keys.len()), (1, 1));
    assert_eq!(api.keys[0].expose().len(), 64);
}
