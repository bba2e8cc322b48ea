//! A pool of one connection for commands, for a publish queue.
//!
//! The connection that is taken from it is kept for as long as it works: a checkout costs a round trip, since a connection
//! that was returned is checked before it is given out again.

use deadpool::managed::Manager;
use deadpool::managed::Object;
use deadpool::managed::Pool;
use deadpool::managed::RecycleError;
use deadpool::managed::RecycleResult;
use deadpool_redis::Metrics;
use deadpool_redis::PoolConfig;
use deadpool_redis::Runtime;
use deadpool_redis::Timeouts;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::Value;

use super::Connector;
use super::Link;
use super::chain;
use super::commands::NoLink;

/// Opens connections for `role`.
pub(crate) struct Links {
    connector: Connector,
    role: String,
}

/// A pool of one connection.
pub(crate) struct LinkPool(Pool<Links>);

/// The connection; it is returned when this is dropped.
pub(crate) struct PooledLink(Object<Links>);

impl LinkPool {
    /// Nothing is connected yet.
    pub(crate) fn new(connector: Connector, role: String) -> Self {
        let mut config = PoolConfig::new(1);
        let timeout = Some(connector.connect_timeout());
        config.timeouts = Timeouts {
            wait: timeout,
            create: timeout,
            recycle: timeout,
        };
        let links = Links { connector, role };
        let pool = Pool::builder(links)
            .config(config)
            .runtime(Runtime::Tokio1)
            .build();
        Self(pool.expect("a runtime is named, as timeouts need"))
    }

    /// Takes the connection: the returned one, if a check shows that it works, or a new one.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(crate) async fn take(&self) -> Result<PooledLink, String> {
        match self.0.get().await {
            Ok(link) => Ok(PooledLink(link)),
            Err(error) => Err(chain(&error)),
        }
    }
}

impl PooledLink {
    pub(crate) fn link(&mut self) -> &mut Link {
        &mut self.0
    }

    /// Closes the connection instead of returning it.
    pub(crate) fn close(self) {
        drop(Object::take(self.0));
    }
}

impl Manager for Links {
    type Type = Link;
    type Error = NoLink;

    async fn create(&self) -> Result<Link, NoLink> {
        Ok(Link::open(&self.connector, &self.role).await?)
    }

    async fn recycle(&self, link: &mut Link, _: &Metrics) -> RecycleResult<NoLink> {
        if link.tenure().is_over() {
            return Err(RecycleError::message("another redis is the primary now"));
        }
        let mut ping = Pipeline::new();
        ping.cmd("PING");
        match link.exchange(&ping).await {
            Ok(replies) if matches!(replies[..], [Value::SimpleString(_)]) => Ok(()),
            Ok(_) => Err(RecycleError::message("unexpected reply to PING")),
            Err(error) => Err(RecycleError::Backend(error.into())),
        }
    }
}
