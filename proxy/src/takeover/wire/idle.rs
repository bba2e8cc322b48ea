//! An idle connection as bytes.

use crate::downstream::{IdleState, ParkedIdle};
use crate::takeover::wire::tunnel::{read_tls, tls_size, write_tls};
use crate::takeover::wire::{Reader, Writer};

/// What everything but buffers takes at most.
const FIXED_MAX: usize = 1024;

/// The longest address.
const ADDRESS_MAX: usize = 100;

/// An idle connection that was read.
pub(in crate::takeover) struct WireIdle {
    pub(in crate::takeover) state: IdleState,
    /// What stands for the address that is counted for it.
    pub(in crate::takeover) permit_source: Option<u64>,
}

/// The most bytes that [`write_idle`] writes.
pub(in crate::takeover) fn idle_size(parked: &ParkedIdle) -> usize {
    let state = &parked.connection().state;
    FIXED_MAX + state.ahead.len() + state.tls.as_deref().map_or(0, tls_size)
}

/// Appends an idle connection to a batch.
pub(in crate::takeover) fn write_idle(writer: &mut Writer, parked: &ParkedIdle) {
    let state = &parked.connection().state;
    writer.text(&state.client.to_string());
    writer.text(&state.local.to_string());
    writer.bytes(&state.ahead);
    writer.option(state.tls.as_deref(), write_tls);
    writer.option(parked.permit_source(), Writer::u64);
}

pub(super) fn read_idle(reader: &mut Reader<'_>) -> Option<WireIdle> {
    Some(WireIdle {
        state: IdleState {
            client: reader.text(ADDRESS_MAX)?.parse().ok()?,
            local: reader.text(ADDRESS_MAX)?.parse().ok()?,
            ahead: reader.bytes()?,
            tls: reader.option(read_tls)?,
        },
        permit_source: reader.option(Reader::u64)?,
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::downstream::Connection;
    use crate::net::accepted::Accepted;
    use crate::takeover::wire::{HEADER, Kind, batch, read_idle_connections};

    #[tokio::test]
    async fn an_idle_connection_is_read_as_it_was_written_and_no_part_of_one_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let _client = TcpStream::connect(local).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        // As in a PROXY header.
        let client = "192.0.2.1:4711".parse().unwrap();
        let mut connection = Connection::new(Box::new(Accepted::new(socket, client, local)));
        connection.ahead.extend_from_slice(b"GET /");
        let idle = connection
            .into_idle()
            .unwrap_or_else(|_| panic!("a bare socket"));
        let (parked, mut stays) = ParkedIdle::new(idle, None);

        let size = idle_size(&parked);
        let mut writer = batch(Kind::Idle, 1, size);
        write_idle(&mut writer, &parked);
        let bytes = writer.finish();
        assert!(
            bytes.len() <= HEADER + 4 + size,
            "a buffer that grows leaves keys behind"
        );
        let payload = &bytes[HEADER..];
        let read = read_idle_connections(payload, 1).unwrap().remove(0);
        assert_eq!((read.state.client, read.state.local), (client, local));
        assert_eq!(read.state.ahead, b"GET /");
        assert_eq!(read.permit_source, None);
        assert!(read_idle_connections(payload, 0).is_none());
        for length in 0..payload.len() {
            assert!(
                read_idle_connections(&payload[..length], 1).is_none(),
                "{length}"
            );
        }

        // Not released: it goes on here.
        drop(parked);
        let (idle, _) = stays.try_recv().unwrap();
        let connection = Connection::from_idle(idle).unwrap();
        assert_eq!(&connection.ahead[..], b"GET /");
    }
}
