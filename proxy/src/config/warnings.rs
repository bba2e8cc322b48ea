//! Warnings: settings with old names, and settings that are valid, but probably mistakes.

use std::time::SystemTime;

use super::routes::covers;
use super::{Config, ListenerConfig, PoolConfig, PoolId, SameSite, Secure};

impl Config {
    /// One line for each, starting with its key, or with its place and key.
    pub(crate) fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings: Vec<String> = self.renamed.iter().map(ToString::to_string).collect();
        self.insecure_cookies(&mut warnings);
        let until = self.affinity.accept_unsigned_until;
        if until.is_some_and(|until| until <= now) {
            warnings.push(
                "affinity.accept_unsigned_until: the time is over, unsigned cookies are ignored"
                    .to_owned(),
            );
        }
        for (index, pool) in self.pools.iter().enumerate() {
            warnings.extend(self.unsent_cookie(PoolId(index), pool));
        }
        warnings
    }

    /// Cookies with `same_site: none` that browsers reject, because they are not `Secure`.
    fn insecure_cookies(&self, warnings: &mut Vec<String>) {
        let affinity = &self.affinity;
        let has_cookies = self.pools.iter().any(|pool| pool.cookie.is_some());
        let may_be_dropped = has_cookies
            && affinity.same_site == SameSite::None
            && affinity.secure == Secure::Auto
            // A trusted proxy may report that the client uses https.
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
                "affinity.same_site: browsers reject a cookie with \"none\" that is not secure, as on the plain listener {address}; \
                 expected \"tls\" there, the proxy that terminates TLS in \"trusted_proxies\", or \"affinity.secure: always\""
            ));
        }
    }

    /// A cookie path that no route of its pool matches.
    fn unsent_cookie(&self, id: PoolId, pool: &PoolConfig) -> Option<String> {
        let cookie = pool.cookie.as_ref()?;
        let path = cookie.path.strip_suffix('/').unwrap_or(&cookie.path);
        let mut routes = self.routes.iter().filter(|route| route.pool == id);
        let is_sent =
            |path: &str, route: &str| path.is_empty() || covers(path, route) || covers(route, path);
        let is_unsent = routes.all(|route| !is_sent(path, route.path()));
        let has_routes = self.routes.iter().any(|route| route.pool == id);
        (has_routes && is_unsent).then(|| {
            let (name, path) = (&pool.name, &cookie.path);
            format!(
                "pools[{}].cookie_path: browsers send the cookie only to {path}, which no route of pool \"{name}\" matches",
                id.0
            )
        })
    }
}
