//! The lease that shows that a node is alive.

use std::fmt;

use crate::protocol::instance::Instance;

/// One lease of one instance. Entries in Redis are valid while the lease that they name is renewed.
///
/// A lease that has lapsed is never renewed again: the instance takes the next one and writes all entries
/// again. So a sweeper may remove entries under a lapsed lease whatever the instance does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lease {
    pub(crate) instance: Instance,
    /// Counts the instance's leases.
    pub(crate) number: u32,
}

impl Lease {
    /// The instance's first.
    pub(super) fn first(instance: Instance) -> Self {
        let number = 1;
        Self { instance, number }
    }

    /// The one to take when this has lapsed.
    pub(super) fn next(self) -> Self {
        let number = self.number.wrapping_add(1);
        Self { number, ..self }
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (instance, number) = text.split_once('.')?;
        let lease = Self {
            instance: Instance::parse(instance).ok()?,
            number: number.parse().ok()?,
        };
        // One lease has one text: it is compared as such in Redis.
        (lease.to_string() == text).then_some(lease)
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.instance, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_round_trips_and_has_one_text() {
        let lease = Lease::first(Instance::random()).next();
        assert_eq!(Lease::parse(&lease.to_string()), Some(lease));
        let instance = lease.instance;
        for wrong in [
            "",
            ".",
            "1",
            &format!("{instance}"),
            &format!("{instance}."),
        ] {
            assert_eq!(Lease::parse(wrong), None, "{wrong}");
        }
        for wrong in ["01", "+1", "-1", "4294967296", "1 "] {
            assert_eq!(
                Lease::parse(&format!("{instance}.{wrong}")),
                None,
                "{wrong}"
            );
        }
    }
}
