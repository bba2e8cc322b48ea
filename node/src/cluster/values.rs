//! Session values: what an application keeps for a user or for a client, under a name and for a time.
//!
//! Everything has a limit: names, values, values of one owner, lifetimes. [`memory`] keeps the values of a
//! single node, [`redis`] those of all nodes; both behave the same.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::config;
use crate::config::VALUE_NAME_BYTES_MAX;
use crate::protocol::instance::ClientId;
use crate::redis::CommandError;
use crate::redis::Server;

mod memory;
mod redis;

/// The most values of one owner.
pub(crate) const VALUES_MAX: usize = 64;

/// The longest lifetime of a value: a month.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// The owner of values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// A user, connected or not.
    User(String),
    /// One client: its values are unreachable once it has disconnected.
    Client(ClientId),
}

/// The values of all owners.
pub(crate) struct Values {
    value_bytes_max: usize,
    backing: Backing,
}

enum Backing {
    Memory(memory::Memory),
    Redis(Box<redis::Store>),
}

/// A value to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Put {
    /// 1 to [`VALUE_NAME_BYTES_MAX`] bytes.
    pub(crate) name: String,
    /// Limited by the configuration.
    pub(crate) value: Bytes,
    /// More than nothing and at most [`TTL_MAX`].
    pub(crate) ttl: Duration,
}

/// Why a value was not stored or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ValueError {
    /// It never can be.
    #[error("expected a name of 1 to {VALUE_NAME_BYTES_MAX} bytes, found one of {0}")]
    Name(usize),
    /// It never can be.
    #[error("expected a value of at most {max} bytes, found one of {found}")]
    TooLarge {
        /// In bytes.
        max: usize,
        /// In bytes.
        found: usize,
    },
    /// It never can be.
    #[error("expected a lifetime of 1 second to {} days", TTL_MAX.as_secs() / 86_400)]
    Ttl,
    /// Retry once another one has expired or is deleted.
    #[error("this owner has {VALUES_MAX} values already")]
    TooMany,
    /// Retry once others have expired or are deleted.
    #[error("the memory for values on this node is full")]
    Full,
    /// Retry later. A value that was put may be stored.
    #[error("the values are unavailable")]
    Unavailable(#[from] CommandError),
}

impl Values {
    /// Stores values on `servers`, or in memory if there are none.
    pub(crate) fn new(servers: &[Server], config: &config::Values) -> Self {
        let backing = if servers.is_empty() {
            Backing::Memory(memory::Memory::new(config.memory_bytes_max))
        } else {
            Backing::Redis(Box::new(redis::Store::new(servers)))
        };
        Self {
            value_bytes_max: config.value_bytes_max,
            backing,
        }
    }

    /// Stores a value, and replaces one with the same name.
    ///
    /// # Errors
    ///
    /// [`ValueError`]: the previous value is unchanged, except for [`ValueError::Unavailable`].
    pub(crate) async fn put(&self, owner: &Owner, put: Put) -> Result<(), ValueError> {
        check_name(&put.name)?;
        if self.value_bytes_max < put.value.len() {
            return Err(ValueError::TooLarge {
                max: self.value_bytes_max,
                found: put.value.len(),
            });
        }
        if put.ttl.is_zero() || TTL_MAX < put.ttl {
            return Err(ValueError::Ttl);
        }
        match &self.backing {
            Backing::Memory(memory) => memory.put(owner, put),
            Backing::Redis(store) => store.put(owner, put).await,
        }
    }

    /// The value with this name.
    ///
    /// # Errors
    ///
    /// [`ValueError::Name`] or [`ValueError::Unavailable`].
    pub(crate) async fn get(&self, owner: &Owner, name: &str) -> Result<Option<Bytes>, ValueError> {
        check_name(name)?;
        match &self.backing {
            Backing::Memory(memory) => Ok(memory.get(owner, name)),
            Backing::Redis(store) => store.get(owner, name).await,
        }
    }

    /// All values of an owner, by their names.
    ///
    /// # Errors
    ///
    /// [`ValueError::Unavailable`].
    pub(crate) async fn all(&self, owner: &Owner) -> Result<Vec<(String, Bytes)>, ValueError> {
        let mut all = match &self.backing {
            Backing::Memory(memory) => memory.all(owner),
            Backing::Redis(store) => store.all(owner).await?,
        };
        all.sort_unstable();
        Ok(all)
    }

    /// Deletes a value; whether there was one.
    ///
    /// # Errors
    ///
    /// [`ValueError::Name`] or [`ValueError::Unavailable`].
    pub(crate) async fn delete(&self, owner: &Owner, name: &str) -> Result<bool, ValueError> {
        check_name(name)?;
        match &self.backing {
            Backing::Memory(memory) => Ok(memory.delete(owner, name)),
            Backing::Redis(store) => store.delete(owner, name).await,
        }
    }
}

fn check_name(name: &str) -> Result<(), ValueError> {
    match name.len() {
        1..=VALUE_NAME_BYTES_MAX => Ok(()),
        length => Err(ValueError::Name(length)),
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "u:{user}"),
            Self::Client(client) => write!(f, "c:{client}"),
        }
    }
}

#[cfg(test)]
mod tests;
