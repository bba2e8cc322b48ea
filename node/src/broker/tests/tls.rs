//! A real Redis behind TLS, and who is believed to be it.

use std::fs;
use std::net;
use std::path::Path;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::IsCa;
use rcgen::KeyPair;

use super::*;

/// A Redis that speaks TLS on a port of the loopback, with a certificate for `name`.
struct OverTls {
    server: RedisServer,
    port: u16,
    ca: String,
}

async fn over_tls(name: &str) -> OverTls {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();

    let mut server = RedisServer::absent();
    let folder = server.socket().parent().map(Path::to_owned).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = file("ca.pem", authority.pem());
    let certificate = file("server.pem", certificate.pem());
    let key = file("server.key", key.serialize_pem());
    let port = free_port();
    let port_text = port.to_string();
    let arguments = [
        "--tls-port",
        &port_text,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ];
    server.launch(&arguments).await;
    OverTls { server, port, ca }
}

fn free_port() -> u16 {
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn trusting(ca: &str, port: u16) -> config::Broker {
    let text = format!(
        "broker: {{kind: redis, url: \"rediss://:pw@127.0.0.1:{port}\", tls: {{ca: \"{ca}\"}}}}"
    );
    Config::parse("test", &text).unwrap().broker
}

#[tokio::test]
async fn every_way_to_redis_goes_through_tls() {
    let redis = over_tls("127.0.0.1").await;
    redis.server.cli(&["CONFIG", "SET", "requirepass", "pw"]);
    let setup = set_up(&trusting(&redis.ca, redis.port));
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    setup.publish("a", "over tls").await.unwrap();
    assert_eq!(setup.recorder.wait_for("a", 1).await, ["over tls"]);
    let page = setup.broker.history(ask("a")).await.unwrap();
    assert_eq!(page.position.offset, 0);
    setup.stop().await;
}

#[tokio::test]
async fn a_server_whose_certificate_proves_nothing_is_not_used() {
    let redis = over_tls("127.0.0.1").await;
    let other = over_tls("cache.example").await;
    for (broker, expected) in [
        (trusting(&other.ca, redis.port), "invalid peer certificate"),
        (trusting(&other.ca, other.port), "not valid for name"),
    ] {
        let setup = set_up(&broker);
        let reason = || {
            setup
                .broker
                .readiness()
                .err()
                .map(|reason| reason.to_string())
        };
        setup
            .until(|| reason().is_some_and(|reason| reason.contains(expected)))
            .await;
        assert!(!reason().unwrap().contains(":pw"));
        setup.stop().await;
    }
}
