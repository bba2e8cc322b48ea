//! How many clients the descriptors suffice for that the process may have.

/// Descriptors that are not clients: the listener, the runtime, connections to Redis.
const RESERVED: u64 = 128;

/// How many clients fit into `files`: each takes one descriptor.
pub(crate) fn clients_in(files: u64) -> usize {
    usize::try_from(files.saturating_sub(RESERVED))
        .unwrap_or(usize::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_takes_one_descriptor() {
        assert_eq!(clients_in(RESERVED + 1000), 1000);
        assert_eq!(clients_in(10), 1);
    }
}
