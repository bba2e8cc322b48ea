//! Tunnels that are parked and continued.

use tokio::net::TcpStream;

use super::*;

/// Both ends of a tunnel with real sockets, and the tunnel.
async fn open(tunnels: &Arc<Tunnels>) -> (TcpStream, TcpStream, Tunnel<Socket, Socket, ()>) {
    let ((near, client), (to, backend)) = (Socket::pair().await, Socket::pair().await);
    let tunnel = Tunnel::new(TunnelParts {
        client: near,
        backend: to,
        client_early: Vec::new(),
        backend_early: Vec::new(),
        protocol: Protocol::WebSocket,
        entry: tunnels.register(TunnelInfo::any(), std::time::Instant::now()),
    });
    (client, backend, tunnel)
}

/// Runs until it ends or is requested to be parked.
async fn run_once(tunnel: &mut Tunnel<Socket, Socket, ()>) -> Option<TunnelEnd> {
    loop {
        match poll_fn(|cx| tunnel.poll_event(cx)).await {
            Event::Ended(end) => return Some(end),
            Event::ParkRequested => return None,
            _ => {}
        }
    }
}

fn parked(tunnel: Tunnel<Socket, Socket, ()>) -> ParkedTunnel {
    tunnel.park().ok().expect("it can be parked")
}

/// Parked again and again while both ends send, with more under way than the sockets take.
#[tokio::test]
async fn a_tunnel_that_is_parked_and_continued_loses_no_byte() {
    let tunnels = Tunnels::new(LIMITS);
    let (client, backend, mut tunnel) = open(&tunnels).await;
    let frame = [&[0x82, 127, 0, 0, 0, 0, 0, 4, 0, 0][..], &[7; 0x40000]].concat();
    let sent: Vec<u8> = std::iter::repeat_n(frame, 8).flatten().collect();
    let handle = tunnels.all().remove(0);
    let mut tasks = JoinSet::new();
    for end in [client, backend] {
        let sent = sent.clone();
        tasks.spawn(async move {
            let (mut from, mut to) = end.into_split();
            let mut got = vec![0; sent.len()];
            let sending = to.write_all(&sent);
            let (written, read) = tokio::join!(sending, from.read_exact(&mut got));
            written.unwrap();
            read.unwrap();
            assert!(got == sent);
        });
    }
    let moves = async {
        for turn in 0.. {
            tokio::select! {
                ended = run_once(&mut tunnel) => assert!(ended.is_none() || turn > 0),
                () = async {
                    tokio::time::sleep(Duration::from_micros(300)).await;
                    handle.request_park();
                    std::future::pending::<()>().await;
                } => {}
            }
            if tunnel.up.is_done() && tunnel.down.is_done() {
                return turn;
            }
            let state = parked(tunnel);
            assert_eq!(tunnels.all().len(), 1, "it is still registered");
            tunnel = Tunnel::unpark(state).unwrap();
        }
        0
    };
    let (moved, ()) = tokio::join!(moves, async { while tasks.join_next().await.is_some() {} });
    assert!(0 < moved);
}

#[tokio::test]
async fn what_was_read_and_not_written_is_in_the_state_with_the_place_in_the_frame() {
    let tunnels = Tunnels::new(LIMITS);
    let (mut client, mut backend, mut tunnel) = open(&tunnels).await;
    client.write_all(&FROM_CLIENT[..8]).await.unwrap();
    // The bytes have arrived when the backend has them.
    let mut got = [0; 8];
    tokio::select! {
        _ = run_once(&mut tunnel) => panic!("it has not ended"),
        read = backend.read_exact(&mut got) => drop(read.unwrap()),
    }
    tunnels.all()[0].request_park();
    assert!(run_once(&mut tunnel).await.is_none());
    let state = parked(tunnel);
    assert_eq!((state.state.up.bytes, state.state.down.bytes), (8, 0));
    assert!(state.state.up.pending.is_empty());
    let mut tunnel = Tunnel::<_, _, ()>::unpark(state).unwrap();
    assert!(!tunnel.up.rests_at_message(), "it is within a frame");
    client.write_all(&FROM_CLIENT[8..]).await.unwrap();
    let mut rest = vec![0; FROM_CLIENT.len() - 8];
    tokio::select! {
        _ = run_once(&mut tunnel) => panic!("it has not ended"),
        read = backend.read_exact(&mut rest) => drop(read.unwrap()),
    }
    assert!(tunnel.up.rests_at_message());
}

#[tokio::test]
async fn a_tunnel_that_is_being_closed_is_not_parked() {
    let tunnels = Tunnels::new(LIMITS);
    let (mut client, _backend, mut tunnel) = open(&tunnels).await;
    let handle = tunnels.all().remove(0);
    handle.request_close(CloseRequest::OperatorRestart);
    let mut close = [0; 4];
    tokio::select! {
        _ = run_once(&mut tunnel) => panic!("it has not ended"),
        read = client.read_exact(&mut close) => drop(read.unwrap()),
    }
    handle.request_park();
    assert!(run_once(&mut tunnel).await.is_none());
    assert!(!tunnel.can_be_parked());
    assert!(tunnel.park().is_err());
}

#[test]
fn a_tunnel_of_another_process_keeps_its_age() {
    let tunnels = Tunnels::new(TunnelLimits {
        idle: Duration::from_secs(600),
        lifetime: None,
    });
    let age = TunnelAge {
        open: Duration::from_secs(3600),
        idle: Duration::from_secs(60),
        half_closed: true,
        bytes_from_client: 5,
        bytes_from_backend: 7,
    };
    let now = std::time::Instant::now();
    let entry = tunnels.register_with(TunnelInfo::any(), now, &age);
    assert_eq!(entry.age(), age);
}
