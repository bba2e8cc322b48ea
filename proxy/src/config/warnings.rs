//! What a file says that keeps the edge from nothing, and is likely not meant so.

use std::time::SystemTime;

use super::routes::covers;
use super::{Config, ListenerConfig, PoolConfig, PoolId, SameSite, Secure};

impl Config {
    /// One line for each, with the key that it is about.
    pub(crate) fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = Vec::new();
        self.insecure_cookies(&mut warnings);
        let until = self.affinity.accept_unsigned_until;
        if until.is_some_and(|until| until <= now) {
            warnings.push(
                "affinity.accept_unsigned_until: it is over, unsigned cookies count as none"
                    .to_owned(),
            );
        }
        for (index, pool) in self.pools.iter().enumerate() {
            warnings.extend(self.unsent_cookie(PoolId(index), pool));
        }
        warnings
    }

    /// Cookies of `same_site: none` that browsers drop, because they are not `Secure`.
    fn insecure_cookies(&self, warnings: &mut Vec<String>) {
        let affinity = &self.affinity;
        let has_cookies = self.pools.iter().any(|pool| pool.cookie.is_some());
        let may_be_dropped = has_cookies
            && affinity.same_site == SameSite::None
            && affinity.secure == Secure::Auto
            // One of them may say that the client came over https.
            && self.trusted_proxies.is_empty();
        if !may_be_dropped {
            return;
        }
        let is_plain = |listener: &&ListenerConfig| {
            listener.tls.is_none() && listener.redirect_to_https.is_none()
        };
        for listener in self.listeners.iter().filter(is_plain) {
            let address = listener.address;
            warnings.push(format!(
                "affinity.same_site: browsers drop a cookie with \"none\" that is not secure, and none is on the plain listener \
                 {address}; expected \"tls\" there, the proxy that ends TLS in \"trusted_proxies\", or \"affinity.secure: always\""
            ));
        }
    }

    /// A pool whose cookie is sent back to none of its routes.
    fn unsent_cookie(&self, id: PoolId, pool: &PoolConfig) -> Option<String> {
        let cookie = pool.cookie.as_ref()?;
        let path = cookie.path.strip_suffix('/').unwrap_or(&cookie.path);
        let mut routes = self.routes.iter().filter(|route| route.pool == id);
        let is_seen =
            |path: &str, route: &str| path.is_empty() || covers(path, route) || covers(route, path);
        let unseen = routes.all(|route| !is_seen(path, route.path()));
        let has_routes = self.routes.iter().any(|route| route.pool == id);
        (has_routes && unseen).then(|| {
            let (name, path) = (&pool.name, &cookie.path);
            format!(
                "pools[{}].cookie_path: browsers send the cookie to {path} alone, where no route of pool \"{name}\" is",
                id.0
            )
        })
    }
}
