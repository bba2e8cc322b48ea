//! Connection settings for redis-rs.

use deadpool_redis::redis::Client;
use deadpool_redis::redis::ConnectionAddr;
use deadpool_redis::redis::ConnectionInfo;
use deadpool_redis::redis::IntoConnectionInfo;
use deadpool_redis::redis::RedisConnectionInfo;
use deadpool_redis::redis::TlsCertificates;

use crate::config::RedisAddress;
use crate::config::RedisServer;

/// The address and login of `server`.
pub(crate) fn connection_info(server: &RedisServer) -> ConnectionInfo {
    let address = match (&server.address, &server.tls) {
        (RedisAddress::Tcp { host, port }, Some(_)) => ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure: false,
            tls_params: None,
        },
        (RedisAddress::Tcp { host, port }, None) => ConnectionAddr::Tcp(host.clone(), *port),
        (RedisAddress::Unix(path), _) => ConnectionAddr::Unix(path.clone()),
    };
    let mut login = RedisConnectionInfo::default().set_db(server.database);
    if let Some(username) = &server.username {
        login = login.set_username(username);
    }
    if let Some(password) = &server.password {
        login = login.set_password(password.expose());
    }
    let info = address
        .into_connection_info()
        .expect("an address needs no parsing")
        .set_redis_settings(login);
    let Some(ca) = server.tls.as_ref().and_then(|tls| tls.ca.as_ref()) else {
        return info;
    };
    let trusted = TlsCertificates {
        client_tls: None,
        root_cert: Some(ca.to_vec()),
    };
    let client = Client::build_with_tls(info, trusted);
    let client = client.expect("the configuration has read the certificates");
    client.get_connection_info().clone()
}
