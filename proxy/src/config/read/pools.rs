//! Pools and their backends, and names that must be unique within the file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use causeway_conf::{PEM_BYTES_MAX, Secret, Span, read_file};
use redis::ConnectionAddr;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::affinity::{cookie_name, host_cookie};
use super::backend_tls::backend_tls;
use crate::config::backend::{Address, is_plain_name};
use crate::config::check::Check;
use crate::config::health::{self, RawHealth};
use crate::config::raw;
use crate::config::routes::SEGMENTS_MAX;
use crate::config::{
    AffinityConfig, AllowedAddresses, BACKENDS_MAX, BackendConfig, ClusterConfig, DiscoverConfig,
    HealthConfig, Pick, PoolConfig, PoolCookie, ProbeKind, SentinelConfig,
};

/// As many as a node may be configured with.
const SERVERS_MAX: usize = 64;

/// Servers of a cluster with the registry, and addresses that are replaced, as for a node.
const CLUSTER_SERVERS_MAX: usize = 64;
const CLUSTER_ANNOUNCE_MAX: usize = 1024;

/// Sentinels of one registry, and the highest number of a database, as for a node.
const SENTINELS_MAX: usize = 16;
const DATABASE_MAX: u64 = 1_000_000;

/// Each is compared with the path of every request.
const CLOSED_PATHS_MAX: usize = 64;

pub(super) fn pools(
    check: &mut Check,
    pools: Vec<raw::Pool>,
    affinity: &raw::Affinity,
    common: &RawHealth,
) -> Vec<PoolConfig> {
    check.require(!pools.is_empty(), "pools", "expected at least one pool");
    let cookie = affinity.cookie.as_deref().unwrap_or(AffinityConfig::COOKIE);
    cookie_name(check, "affinity.cookie", cookie);
    // Checked with the rest of the section.
    let cookie_path = affinity.path.clone();
    let cookie_path = cookie_path.map_or(Cow::Borrowed(AffinityConfig::PATH), Cow::Owned);
    let common = health::read(check, "health", common, &HealthConfig::DEFAULT);
    let mut seen = Seen::default();
    pools
        .into_iter()
        .enumerate()
        .map(|(index, pool)| {
            let key = format!("pools[{index}]");
            seen.name(check, &format!("{key}.name"), &pool.name);
            let cookie_is_own = pool.cookie.is_some();
            let cookie = match pool.cookie {
                Some(name) => {
                    cookie_name(check, &format!("{key}.cookie"), &name);
                    name
                }
                None if index == 0 || cookie == AffinityConfig::NO_COOKIE => cookie.to_owned(),
                None => format!("{cookie}-{}", pool.name),
            };
            let has_cookie = cookie != AffinityConfig::NO_COOKIE;
            let cookie_key = format!("{key}.cookie");
            let own_path = pool.cookie_path.map(|path| {
                let key = format!("{key}.cookie_path");
                check.path(&key, &path);
                check.require(has_cookie, &key, "expected none: this pool has no cookie");
                Cow::Owned(path)
            });
            let is_own = own_path.is_some() || cookie_is_own;
            let path = own_path.unwrap_or_else(|| cookie_path.clone());
            if has_cookie {
                seen.cookie(check, &cookie_key, &cookie);
            }
            if has_cookie && is_own {
                host_cookie(
                    check,
                    &cookie_key,
                    &cookie,
                    affinity.domain.as_deref(),
                    &path,
                );
            }
            let cookie = has_cookie.then_some(PoolCookie { name: cookie, path });
            let health = health::read(check, &format!("{key}.health"), &pool.health, &common);
            let closed_paths = match pool.closed_paths {
                Some(paths) => closed_paths(check, &format!("{key}.closed_paths"), paths),
                None => {
                    let is_of_nodes = health.kind == ProbeKind::Node || pool.discover.is_some();
                    let api = is_of_nodes.then_some(PoolConfig::CLOSED_PATH_OF_NODES);
                    let all = PoolConfig::CLOSED_PATHS.into_iter().chain(api);
                    all.map(str::to_owned).collect()
                }
            };
            let discover = pool
                .discover
                .map(|raw| discover(check, &format!("{key}.discover"), raw));
            check.require(
                discover.is_some() || !pool.backends.is_empty(),
                &format!("{key}.backends"),
                "expected at least one backend, or \"discover\"",
            );
            let backends = backends(check, &key, pool.backends, &mut seen, health.port);
            let tls = pool.tls.map(|tls| backend_tls(check, &key, tls, &backends));
            PoolConfig {
                pick: pool.pick.unwrap_or(Pick::DEFAULT),
                cookie,
                backends,
                discover,
                tls,
                health,
                closed_paths,
                name: pool.name,
            }
        })
        .collect()
}

fn closed_paths(check: &mut Check, key: &str, paths: Vec<String>) -> Vec<String> {
    check.require(
        paths.len() <= CLOSED_PATHS_MAX,
        key,
        "expected at most 64 paths",
    );
    for (index, path) in paths.iter().enumerate() {
        let key = format!("{key}[{index}]");
        let bare = path.strip_suffix("/*").unwrap_or(path);
        let segments = bare.split('/').skip(1);
        let is_name = |segment: &str| {
            let plain = |byte: u8| byte.is_ascii_graphic() && !b"%;\\?#*".contains(&byte);
            !segment.is_empty() && !segment.ends_with('.') && segment.bytes().all(plain)
        };
        let right = bare.starts_with('/')
            && segments.clone().all(is_name)
            && (1..=SEGMENTS_MAX).contains(&segments.count());
        check.require(
            right,
            &key,
            "expected a path such as \"/metrics\", or \"/api/*\" for all below it too, without escapes and empty or dotted segments",
        );
    }
    paths
}

/// Where to discover backends. Errors never contain the URL, which may have a password.
fn discover(check: &mut Check, key: &str, raw: raw::Discover) -> DiscoverConfig {
    let sentinel = raw
        .sentinel
        .map(|raw| sentinel(check, &format!("{key}.sentinel"), raw));
    let (sentinel, sentinel_ca) = sentinel.unzip();
    let cluster = raw
        .cluster
        .map(|raw| cluster(check, &format!("{key}.cluster"), raw));
    let (cluster, cluster_ca) = cluster.unzip();
    let servers: Vec<(String, Secret)> = match (raw.redis, raw.redis_urls, &sentinel, &cluster) {
        (Some(url), None, None, None) => vec![(format!("{key}.redis"), url)],
        (None, None, Some(_), None) | (None, None, None, Some(_)) => Vec::new(),
        (None, Some(urls), None, None) => {
            check.require(
                (1..=SERVERS_MAX).contains(&urls.len()),
                &format!("{key}.redis_urls"),
                &format!("expected 1 to {SERVERS_MAX} URLs, found {}", urls.len()),
            );
            let urls = urls.into_iter().enumerate();
            let key = |index| format!("{key}.redis_urls[{index}]");
            urls.map(|(index, url)| (key(index), url)).collect()
        }
        _ => {
            check.error(
                key,
                "expected one of \"redis\", \"redis_urls\", \"sentinel\" and \"cluster\"",
            );
            Vec::new()
        }
    };
    for (key, url) in &servers {
        let url = url.expose();
        let is_known = ["redis://", "rediss://", "unix://"]
            .iter()
            .any(|scheme| url.starts_with(scheme));
        check.require(
            is_known && redis::IntoConnectionInfo::into_connection_info(url).is_ok(),
            key,
            "expected redis://[[user]:password@]host[:port][/database], rediss:// for TLS, or unix:///path/to/socket",
        );
        check.require(
            !url.ends_with("#insecure"),
            key,
            "expected no `#insecure`: the certificate of the server has to be verified; its CA goes into `tls.ca`",
        );
    }
    let over_tls = |(_, url): &(String, Secret)| url.expose().starts_with("rediss://");
    check.require(
        raw.tls.is_none() || servers.iter().any(over_tls),
        &format!("{key}.tls"),
        "expected none: it is only for URLs that begin with rediss://",
    );
    let allow = match raw.allow {
        Some(ranges) => {
            check.require(
                !ranges.is_empty(),
                &format!("{key}.allow"),
                "expected at least one range, such as \"10.0.0.0/8\"",
            );
            AllowedAddresses::Ranges(ranges)
        }
        None => AllowedAddresses::Routable {
            loopback: servers.iter().all(|(_, url)| is_on_this_machine(url)) && {
                sentinel.iter().flat_map(|sentinel| &sentinel.servers)
            }
            .chain(cluster.iter().flat_map(|cluster| &cluster.servers))
            .all(|(host, _)| is_loopback(host)),
        },
    };
    let prefix = raw.prefix.unwrap_or(DiscoverConfig::PREFIX.to_owned());
    plain_name(check, &format!("{key}.prefix"), &prefix);
    DiscoverConfig {
        allow: Arc::new(allow),
        prefix,
        ca: ca(check, &format!("{key}.tls.ca"), raw.tls)
            .or(sentinel_ca.flatten())
            .or(cluster_ca.flatten()),
        sentinel: sentinel.map(Arc::new),
        cluster: cluster.map(Arc::new),
        every: check.span(
            &format!("{key}.every"),
            raw.every,
            DiscoverConfig::EVERY,
            Span(Duration::from_millis(100))..=Span(Duration::from_secs(60)),
        ),
        servers: servers.into_iter().map(|(_, url)| url).collect(),
    }
}

/// Sentinels, and the CA certificates for TLS to them and to the servers that they name.
fn sentinel(
    check: &mut Check,
    key: &str,
    raw: raw::DiscoverSentinel,
) -> (SentinelConfig, Option<Arc<[u8]>>) {
    plain_name(check, &format!("{key}.master"), &raw.master);
    check.require(
        (1..=SENTINELS_MAX).contains(&raw.servers.len()),
        &format!("{key}.servers"),
        &format!(
            "expected 1 to {SENTINELS_MAX} Sentinels, each as host:port, found {}",
            raw.servers.len()
        ),
    );
    let servers = addresses(check, key, &raw.servers, "this Sentinel is there already");
    for (name, user, password) in [
        ("user", &raw.user, &raw.password),
        ("sentinel_user", &raw.sentinel_user, &raw.sentinel_password),
    ] {
        check.require(
            user.is_none() || password.is_some(),
            &format!("{key}.{name}"),
            "a user needs a password",
        );
    }
    let database = raw.database.unwrap_or_default();
    check.require(
        database <= DATABASE_MAX,
        &format!("{key}.database"),
        &format!("expected 0 to {DATABASE_MAX}"),
    );
    let config = SentinelConfig {
        master: raw.master,
        servers,
        user: raw.user,
        password: raw.password,
        database: i64::try_from(database).unwrap_or_default(),
        sentinel_user: raw.sentinel_user,
        sentinel_password: raw.sentinel_password,
        is_tls: raw.tls.is_some(),
    };
    (config, ca(check, &format!("{key}.tls.ca"), raw.tls))
}

/// A Redis Cluster, and the CA certificates for TLS to it.
fn cluster(
    check: &mut Check,
    key: &str,
    raw: raw::DiscoverCluster,
) -> (ClusterConfig, Option<Arc<[u8]>>) {
    check.require(
        (1..=CLUSTER_SERVERS_MAX).contains(&raw.servers.len()),
        &format!("{key}.servers"),
        &format!(
            "expected 1 to {CLUSTER_SERVERS_MAX} servers, each as host:port, found {}",
            raw.servers.len()
        ),
    );
    check.require(
        raw.user.is_none() || raw.password.is_some(),
        &format!("{key}.user"),
        "a user needs a password",
    );
    let announced = raw.announce.unwrap_or_default();
    let at = format!("{key}.announce");
    check.require(
        announced.len() <= CLUSTER_ANNOUNCE_MAX,
        &at,
        &format!(
            "expected at most {CLUSTER_ANNOUNCE_MAX} addresses, found {}",
            announced.len()
        ),
    );
    let mut announce = Vec::new();
    for (named, reached) in &announced {
        match (host_and_port(named), host_and_port(reached)) {
            (Some(named), Some(reached)) => announce.push((named, reached)),
            _ => check.error(
                &at,
                "expected host:port for each host:port that the cluster names, such as \"10.0.0.1:6379\": \"127.0.0.1:7001\"",
            ),
        }
    }
    let config = ClusterConfig {
        servers: addresses(check, key, &raw.servers, "this server is there already"),
        announce,
        user: raw.user,
        password: raw.password,
        is_tls: raw.tls.is_some(),
    };
    (config, ca(check, &format!("{key}.tls.ca"), raw.tls))
}

/// The hosts and ports of `servers`.
fn addresses(
    check: &mut Check,
    key: &str,
    servers: &[String],
    repeated: &str,
) -> Vec<(String, u16)> {
    let mut addresses = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let key = format!("{key}.servers[{index}]");
        let Some(address) = host_and_port(server) else {
            check.error(&key, "expected host:port, such as \"10.0.0.1:26379\"");
            continue;
        };
        check.require(!addresses.contains(&address), &key, repeated);
        addresses.push(address);
    }
    addresses
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    match text.parse::<Address>() {
        Ok(Address::Ip(address)) => Some((address.ip().to_string(), address.port())),
        Ok(Address::Name { host, port }) => Some((host, port)),
        Ok(Address::Unix(_)) | Err(_) => None,
    }
}

/// Whether the Redis at `url` is reached over loopback or a unix socket.
fn is_on_this_machine(url: &Secret) -> bool {
    let Ok(info) = redis::IntoConnectionInfo::into_connection_info(url.expose()) else {
        return false;
    };
    let host = match info.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        ConnectionAddr::Unix(_) => return true,
        _ => return false,
    };
    is_loopback(host)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|it| it.to_canonical().is_loopback())
}

/// The PEM text of the certificates in the file `tls.ca`.
fn ca(check: &mut Check, key: &str, tls: Option<raw::DiscoverTls>) -> Option<Arc<[u8]>> {
    let path = tls?.ca?;
    let reason = match read_file(&path, PEM_BYTES_MAX) {
        Ok(pem) => match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
            Ok(certificates) if !certificates.is_empty() => return Some(pem.into()),
            Ok(_) => "the file has none".to_owned(),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let path = path.display();
    check.error(
        key,
        format!("expected certificates in PEM in {path}: {reason}"),
    );
    None
}

/// The name of a zone, if there is one.
pub(super) fn zone(check: &mut Check, key: &str, zone: Option<String>) -> Option<Box<str>> {
    let zone = zone?;
    plain_name(check, key, &zone);
    Some(zone.into())
}

fn plain_name(check: &mut Check, key: &str, name: &str) {
    check.require(
        is_plain_name(name),
        key,
        "expected 1 to 64 ASCII letters, digits, \".\", \"_\" or \"-\"",
    );
}

/// Names that must be unique within the file, with their keys.
#[derive(Default)]
struct Seen {
    names: HashMap<String, String>,
    cookies: HashMap<String, String>,
    ids: HashMap<String, String>,
}

impl Seen {
    fn name(&mut self, check: &mut Check, key: &str, name: &str) {
        plain_name(check, key, name);
        if let Some(other) = self.names.insert(name.to_owned(), key.to_owned()) {
            check.error(
                key,
                format!("duplicate name \"{name}\", already used by {other}"),
            );
        }
    }

    fn cookie(&mut self, check: &mut Check, key: &str, cookie: &str) {
        if let Some(other) = self.cookies.insert(cookie.to_owned(), key.to_owned()) {
            check.error(
                key,
                format!("duplicate cookie \"{cookie}\", already used by {other}: each pool needs its own cookie"),
            );
        }
    }

    fn id(&mut self, check: &mut Check, key: &str, id: &str) {
        if let Some(other) = self.ids.insert(id.to_owned(), key.to_owned()) {
            check.error(
                key,
                format!("duplicate id \"{id}\", already used by {other}: ids must be unique across all pools"),
            );
        }
    }
}

fn backends(
    check: &mut Check,
    pool: &str,
    backends: Vec<raw::Backend>,
    seen: &mut Seen,
    probe_port: Option<u16>,
) -> Vec<BackendConfig> {
    check.require(
        backends.len() <= BACKENDS_MAX,
        &format!("{pool}.backends"),
        "expected at most 10000 backends in one pool",
    );
    let is_primary = |backend: &raw::Backend| !backend.backup.unwrap_or(false);
    check.require(
        backends.is_empty() || backends.iter().any(is_primary),
        &format!("{pool}.backends"),
        "expected at least one backend that is not a backup",
    );
    let mut configs = Vec::with_capacity(backends.len());
    for (index, backend) in backends.into_iter().enumerate() {
        let key = format!("{pool}.backends[{index}]");
        let id = check.parsed(&format!("{key}.id"), &backend.id);
        seen.id(check, &format!("{key}.id"), &backend.id);
        let address = check.parsed(&format!("{key}.address"), &backend.address);
        check.require(
            probe_port.is_none() || !matches!(address, Some(Address::Unix(_))),
            &format!("{key}.address"),
            "expected no unix socket: its pool is probed on another port (health.port)",
        );
        let weight = check.number(
            &format!("{key}.weight"),
            backend.weight,
            BackendConfig::WEIGHT,
            1..=BackendConfig::WEIGHT_MAX,
        );
        let zone = zone(check, &format!("{key}.zone"), backend.zone);
        let generation = backend.generation.map(|generation| {
            let range = 1..=BackendConfig::GENERATION_MAX;
            check.number(&format!("{key}.generation"), Some(generation), 1, range)
        });
        if let Some((id, address)) = id.zip(address) {
            configs.push(BackendConfig {
                id,
                address,
                weight,
                zone,
                generation,
                allowed: None,
                backup: backend.backup.unwrap_or(false),
                maintenance: backend.maintenance.unwrap_or(false),
            });
        }
    }
    configs
}
