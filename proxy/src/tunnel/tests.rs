mod handoff;
mod parking;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::*;

const LIMITS: TunnelLimits = TunnelLimits {
    idle: Duration::from_secs(3600),
    lifetime: None,
};

/// A text frame of a server, and one of a client with a mask of zero.
const FROM_BACKEND: &[u8] = b"\x81\x05hello";
const FROM_CLIENT: &[u8] = b"\x81\x85\0\0\0\0hello";

impl ReadReadiness for DuplexStream {
    fn may_be_readable(&self) -> bool {
        true
    }
}

struct Scene {
    client: DuplexStream,
    backend: DuplexStream,
    tunnels: Arc<Tunnels>,
    task: JoinHandle<TunnelEnd>,
}

impl Scene {
    fn open() -> Self {
        Self::with(Tunnels::new(LIMITS), Protocol::WebSocket, &[], &[])
    }

    fn with(
        tunnels: Arc<Tunnels>,
        protocol: Protocol,
        client_early: &[u8],
        backend_early: &[u8],
    ) -> Self {
        let (client, client_inner) = duplex(1024);
        let (backend, backend_inner) = duplex(1024);
        let tunnel = Tunnel::<_, _, ()>::new(TunnelParts {
            client: client_inner,
            backend: backend_inner,
            client_early: client_early.to_vec(),
            backend_early: backend_early.to_vec(),
            protocol,
            entry: tunnels.register(TunnelInfo::any(), std::time::Instant::now()),
        });
        let task = tunnels.tasks().spawn(run(tunnel));
        Self {
            client,
            backend,
            tunnels,
            task,
        }
    }

    async fn end(self) -> TunnelEnd {
        self.task.await.unwrap()
    }
}

/// Runs a tunnel that is never handed off.
async fn run<C, B>(mut tunnel: Tunnel<C, B, ()>) -> TunnelEnd
where
    C: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
    B: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
{
    loop {
        if let Event::Ended(end) = poll_fn(|cx| tunnel.poll_event(cx)).await {
            return end;
        }
    }
}

async fn read(stream: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    stream.read_exact(&mut data).await.unwrap();
    data
}

async fn read_all(stream: &mut DuplexStream) -> Vec<u8> {
    let mut data = Vec::new();
    stream.read_to_end(&mut data).await.unwrap();
    data
}

#[tokio::test]
async fn early_bytes_of_both_ends_are_forwarded_first() {
    let mut scene = Scene::with(
        Tunnels::new(LIMITS),
        Protocol::WebSocket,
        FROM_CLIENT,
        FROM_BACKEND,
    );
    scene.client.write_all(FROM_CLIENT).await.unwrap();
    assert_eq!(
        read(&mut scene.backend, 22).await,
        [FROM_CLIENT, FROM_CLIENT].concat()
    );
    assert_eq!(read(&mut scene.client, 7).await, FROM_BACKEND);
}

#[tokio::test]
async fn the_end_of_one_direction_is_forwarded_and_the_other_stays_open() {
    let mut scene = Scene::open();
    scene.client.write_all(b"last").await.unwrap();
    scene.client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut scene.backend).await, b"last");
    scene.backend.write_all(FROM_BACKEND).await.unwrap();
    assert_eq!(read(&mut scene.client, 7).await, FROM_BACKEND);
    scene.backend.shutdown().await.unwrap();
    assert_eq!(read_all(&mut scene.client).await, b"");
    let end = scene.end().await;
    assert_eq!(
        (end.reason, end.bytes_from_client, end.bytes_from_backend),
        (EndReason::ClientClosed, 4, 7)
    );
}

/// Sends data while `receiver` reads nothing, and checks that it then receives all of it.
async fn check_backpressure(mut sender: DuplexStream, mut receiver: DuplexStream) {
    let data: Vec<u8> = (0..1_000_000_u32)
        .map(|index| index.to_le_bytes()[0])
        .collect();
    let expected = data.clone();
    let mut sent = 0;
    // Without a reader, only as much is accepted as fits in the two pipes and one scratch buffer.
    while let Ok(Ok(count)) =
        tokio::time::timeout(Duration::from_secs(1), sender.write(&data[sent..])).await
    {
        sent += count;
    }
    assert!(sent <= 64 * 1024 + 2 * 1024, "{sent} bytes were accepted");
    let writer = async move {
        sender.write_all(&data[sent..]).await.unwrap();
        drop(sender);
    };
    let reader = async {
        let received = read_all(&mut receiver).await;
        assert!(received == expected);
        drop(receiver);
    };
    tokio::join!(writer, reader);
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_stops_the_sender_and_no_bytes_are_lost() {
    let scene = Scene::open();
    check_backpressure(scene.backend, scene.client).await;
    scene.task.await.unwrap();
    let scene = Scene::open();
    check_backpressure(scene.client, scene.backend).await;
    scene.task.await.unwrap();
}

#[tokio::test]
async fn a_drain_inserts_the_close_frame_after_the_current_frame() {
    let mut scene = Scene::open();
    scene.backend.write_all(&FROM_BACKEND[..4]).await.unwrap();
    assert_eq!(read(&mut scene.client, 4).await, &FROM_BACKEND[..4]);
    scene.tunnels.drain();
    scene
        .backend
        .write_all(&[&FROM_BACKEND[4..], FROM_BACKEND].concat())
        .await
        .unwrap();
    assert_eq!(
        read(&mut scene.client, 3 + 4).await,
        [&FROM_BACKEND[4..], &[0x88, 2, 0x03, 0xf4]].concat()
    );
    // The client's Close frame reaches the backend, which closes the connection.
    scene
        .client
        .write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4])
        .await
        .unwrap();
    assert_eq!(
        read(&mut scene.backend, 8).await,
        [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]
    );
    drop(scene.backend);
    assert_eq!(read_all(&mut scene.client).await, b"");
    drop(scene.client);
    let end = scene.task.await.unwrap();
    assert_eq!(
        (end.reason, end.close_code),
        (EndReason::Drained, Some(1012))
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ignores_a_drain_is_disconnected_and_its_backend_gets_a_close_frame() {
    let mut scene = Scene::open();
    scene.tunnels.drain();
    assert_eq!(read(&mut scene.client, 4).await, [0x88, 2, 0x03, 0xf4]);
    let frame = read_all(&mut scene.backend).await;
    assert_eq!(frame.len(), 8);
    assert_eq!(
        [frame[6] ^ frame[2], frame[7] ^ frame[3]],
        1012_u16.to_be_bytes()
    );
    assert_eq!(scene.end().await.reason, EndReason::Drained);
}

#[tokio::test]
async fn a_drain_inserts_nothing_after_a_close_frame_of_the_backend() {
    let mut scene = Scene::open();
    scene
        .backend
        .write_all(&[0x88, 2, 0x03, 0xe8])
        .await
        .unwrap();
    assert_eq!(read(&mut scene.client, 4).await, [0x88, 2, 0x03, 0xe8]);
    scene.tunnels.drain();
    drop(scene.backend);
    assert_eq!(read_all(&mut scene.client).await, b"");
    drop(scene.client);
    let end = scene.task.await.unwrap();
    assert_eq!(
        (end.reason, end.close_code),
        (EndReason::BackendClosed, Some(1000))
    );
}

#[tokio::test]
async fn a_drain_ends_a_tunnel_of_an_unknown_protocol_without_a_frame() {
    let mut scene = Scene::with(Tunnels::new(LIMITS), Protocol::Opaque, &[], &[]);
    scene.tunnels.drain();
    assert_eq!(read_all(&mut scene.client).await, b"");
    assert_eq!(scene.end().await.reason, EndReason::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_silent_tunnel_ends_after_the_idle_timeout_and_a_busy_one_does_not() {
    let tunnels = Tunnels::new(TunnelLimits {
        idle: Duration::from_secs(20),
        lifetime: None,
    });
    let stop = CancellationToken::new();
    let sweeper = tunnels
        .tasks()
        .spawn(Arc::clone(&tunnels).sweep(stop.clone()));
    let mut silent = Scene::with(Arc::clone(&tunnels), Protocol::WebSocket, &[], &[]);
    let mut busy = Scene::with(Arc::clone(&tunnels), Protocol::WebSocket, &[], &[]);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        busy.client.write_all(FROM_CLIENT).await.unwrap();
        read(&mut busy.backend, FROM_CLIENT.len()).await;
    }
    assert_eq!(read(&mut silent.client, 4).await, [0x88, 2, 0x03, 0xe9]);
    drop(silent.client);
    drop(silent.backend);
    assert_eq!(silent.task.await.unwrap().reason, EndReason::Idle);
    assert!(!busy.task.is_finished());
    stop.cancel();
    sweeper.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_busy_tunnel_is_closed_after_its_maximum_lifetime() {
    let tunnels = Tunnels::new(TunnelLimits {
        idle: Duration::from_secs(3600),
        lifetime: Some(Duration::from_secs(100)),
    });
    let stop = CancellationToken::new();
    let sweeper = tunnels
        .tasks()
        .spawn(Arc::clone(&tunnels).sweep(stop.clone()));
    let mut scene = Scene::with(Arc::clone(&tunnels), Protocol::WebSocket, &[], &[]);
    for _ in 0..99 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.client.write_all(FROM_CLIENT).await.unwrap();
        read(&mut scene.backend, FROM_CLIENT.len()).await;
    }
    let close = read(&mut scene.client, 4);
    let close = tokio::time::timeout(Duration::from_secs(12), close).await;
    assert_eq!(close.unwrap(), [0x88, 2, 0x03, 0xe9]);
    drop((scene.client, scene.backend));
    assert_eq!(scene.task.await.unwrap().reason, EndReason::Lifetime);
    stop.cancel();
    sweeper.await.unwrap();
}

#[tokio::test]
async fn the_close_codes_of_both_ends_are_recorded_and_the_first_one_is_the_end_reason() {
    let mut scene = Scene::open();
    let (going, normal) = ([0x88, 2, 0x03, 0xe9], [0x88, 0x82, 0, 0, 0, 0, 0x0f, 0xa0]);
    scene.backend.write_all(&going).await.unwrap();
    assert_eq!(read(&mut scene.client, 4).await, going);
    scene.client.write_all(&normal).await.unwrap();
    assert_eq!(read(&mut scene.backend, 8).await, normal);
    drop((scene.client, scene.backend));
    let end = scene.task.await.unwrap();
    assert_eq!(
        (
            end.reason,
            end.close_code,
            end.client_code,
            end.backend_code
        ),
        (EndReason::BackendClosed, Some(1001), Some(4000), Some(1001))
    );
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_tunnel_has_a_shorter_idle_timeout() {
    let tunnels = Tunnels::new(LIMITS);
    let stop = CancellationToken::new();
    let sweeper = tunnels
        .tasks()
        .spawn(Arc::clone(&tunnels).sweep(stop.clone()));
    let mut scene = Scene::with(Arc::clone(&tunnels), Protocol::WebSocket, &[], &[]);
    scene.client.shutdown().await.unwrap();
    tokio::time::timeout(Duration::from_secs(100), scene.task)
        .await
        .unwrap()
        .unwrap();
    stop.cancel();
    sweeper.await.unwrap();
}

#[tokio::test]
async fn a_tunnel_is_removed_from_the_registry_when_it_ends() {
    let tunnels = Tunnels::new(LIMITS);
    let scenes: Vec<Scene> = (0..40)
        .map(|_| Scene::with(Arc::clone(&tunnels), Protocol::WebSocket, &[], &[]))
        .collect();
    assert_eq!(tunnels.open(), 40);
    for scene in scenes {
        drop((scene.client, scene.backend));
        scene.task.await.unwrap();
    }
    assert_eq!(tunnels.open(), 0);
}

/// More than the task budget of the runtime, so that the tunnel is interrupted between any two steps.
#[tokio::test]
async fn simultaneous_floods_of_both_ends_arrive_completely() {
    const BYTES: usize = 64 << 20;
    const DEADLINE: Duration = Duration::from_secs(60);
    let (client_inner, client) = Socket::pair().await;
    let (backend_inner, backend) = Socket::pair().await;
    let tunnels = Tunnels::new(LIMITS);
    let tunnel = Tunnel::<_, _, ()>::new(TunnelParts {
        client: client_inner,
        backend: backend_inner,
        client_early: Vec::new(),
        backend_early: Vec::new(),
        protocol: Protocol::Opaque,
        entry: tunnels.register(TunnelInfo::any(), std::time::Instant::now()),
    });
    let task = tunnels.tasks().spawn(run(tunnel));
    let mut floods = JoinSet::new();
    for end in [client, backend] {
        let (mut reader, mut writer) = end.into_split();
        floods.spawn(async move {
            for _ in 0..BYTES / 4096 {
                writer.write_all(&[7; 4096]).await.unwrap();
            }
            writer.shutdown().await.unwrap();
            BYTES
        });
        floods.spawn(async move {
            let (mut piece, mut bytes) = (vec![0; 512], 0);
            while let count @ 1.. = reader.read(&mut piece).await.unwrap() {
                bytes += count;
            }
            bytes
        });
    }
    let bytes = tokio::time::timeout(DEADLINE, floods.join_all()).await;
    assert_eq!(bytes.unwrap(), [BYTES; 4]);
    let end = tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap();
    assert_eq!(end.bytes_from_client, BYTES as u64);
    assert_eq!(end.bytes_from_backend, BYTES as u64);
}

#[test]
fn an_idle_tunnel_of_two_sockets_is_small() {
    assert!(
        size_of::<Tunnel<Socket, Socket, ()>>() <= 400,
        "{}",
        size_of::<Tunnel<Socket, Socket, ()>>()
    );
}
