//! TCP through a pair of sidecars: all bytes, both ways, in between nothing but sealed records; what is cut off is never
//! taken for the end; a rotation changes the keys of connections that go on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keyway_envelope::stream::{CHALLENGE, Keying, RECORD_HEADER, SETUP};
use keyway_tests::{Fleet, Hsm, eventually, random};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Serves each connection with what `serve` does.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Says everything back, and ends when it was told everything.
async fn echo(stream: TcpStream) {
    let (mut from, mut to) = stream.into_split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// What a wire between the sidecars carries, and what is done to it.
#[derive(Clone, Default)]
struct Wire {
    there: Arc<Mutex<Vec<u8>>>,
    back: Arc<Mutex<Vec<u8>>>,
    /// After so many bytes of the way there one is changed, or the connection is closed.
    change_at: Option<usize>,
    cut_at: Option<usize>,
}

async fn tap(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seen: Arc<Mutex<Vec<u8>>>, wire: Option<Wire>) {
    let mut piece = vec![0; 65536];
    while let Ok(read) = from.read(&mut piece).await {
        if read == 0 {
            break;
        }
        let before = seen.lock().unwrap().len();
        let mut bytes = piece[..read].to_vec();
        seen.lock().unwrap().extend_from_slice(&bytes);
        if let Some(wire) = &wire {
            if let Some(at) = wire.change_at.filter(|at| (before..before + read).contains(at)) {
                bytes[at - before] ^= 1;
            }
            if let Some(at) = wire.cut_at.filter(|at| *at < before + read) {
                let _ = to.write_all(&bytes[..at - before]).await;
                let _ = to.shutdown().await;
                return;
            }
        }
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// A fleet with `client` → wire → `server` in front of `service`.
async fn pair(service: SocketAddr, wire: &Wire) -> Fleet {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let wire = wire.clone();
    let between = async |sealed| {
        server(move |stream| {
            let wire = wire.clone();
            async move {
                let (from, to) = stream.into_split();
                let (back_from, back_to) = TcpStream::connect(sealed).await.unwrap().into_split();
                let (there, back) = (Arc::clone(&wire.there), Arc::clone(&wire.back));
                tokio::join!(tap(from, back_to, there, Some(wire)), tap(back_from, to, back, None));
            }
        })
        .await
    };
    fleet.start_tcp_pair(service, between).await;
    fleet
}

async fn connect(fleet: &Fleet) -> TcpStream {
    TcpStream::connect(fleet.data_of("client")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bytes_come_and_go_and_between_the_sidecars_is_no_plaintext() {
    let wire = Wire::default();
    let fleet = pair(server(echo).await, &wire).await;
    let mut sent = random(5_000_000);
    sent.extend_from_slice(&[b'p'; 3_000_000]);
    let (mut from, mut to) = connect(&fleet).await.into_split();
    let upload = sent.clone();
    let writing = tokio::spawn(async move {
        to.write_all(&upload).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let mut came = Vec::new();
    from.read_to_end(&mut came).await.unwrap();
    writing.await.unwrap();
    assert!(came == sent, "{} bytes came back of {}", came.len(), sent.len());
    // Who was connected to speaks first.
    for (seen, before) in [(&wire.there, 0), (&wire.back, CHALLENGE)] {
        let seen = &seen.lock().unwrap()[before..];
        let setup: &[u8; SETUP] = seen.first_chunk().unwrap();
        assert_eq!(Keying::parse(setup).unwrap().key_block.kek().version.0, 1);
        assert!(!seen.windows(16).any(|bytes| bytes == [b'p'; 16]), "plaintext on the wire");
        // Nothing but whole records behind it, the last of them FIN.
        let mut rest = &seen[SETUP..];
        let mut last = 0;
        while let Some((header, behind)) = rest.split_first_chunk::<RECORD_HEADER>() {
            last = header[0];
            rest = &behind[usize::from(u16::from_be_bytes([header[1], header[2]]))..];
        }
        assert_eq!((last, rest.len()), (3, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_speaks_first_is_heard_and_each_side_ends_when_it_likes() {
    // Greets at once, hears everything, and only then answers.
    let service = server(|mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        stream.write_all(format!("heard {} bytes", heard.len()).as_bytes()).await.unwrap();
    });
    let fleet = pair(service.await, &Wire::default()).await;
    let mut stream = connect(&fleet).await;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(&random(70_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "heard 70000 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_changes_the_keys_of_open_connections_and_none_is_dropped() {
    let wire = Wire::default();
    let fleet = pair(server(echo).await, &wire).await;
    let mut busy = connect(&fleet).await;
    let mut idle = connect(&fleet).await;
    let ask = async |stream: &mut TcpStream, len: usize| {
        let sent = random(len);
        stream.write_all(&sent).await.unwrap();
        let mut came = vec![0; len];
        stream.read_exact(&mut came).await.unwrap();
        assert!(came == sent);
    };
    for stream in [&mut busy, &mut idle] {
        ask(stream, 1000).await;
    }
    let fleet = Arc::new(fleet);
    let rotating = Arc::clone(&fleet);
    let rotating = tokio::spawn(async move { rotating.rotate().await });
    while !rotating.is_finished() {
        ask(&mut busy, 30_000).await;
    }
    rotating.await.unwrap();
    // Two connections, one of them idle: both directions of each have other keys.
    for sidecar in ["client", "server"] {
        eventually("streams under the new version", async || {
            (fleet.metric(sidecar, "keyway_streams_rekeyed_total").await >= 2).then_some(())
        })
        .await;
    }
    for stream in [&mut busy, &mut idle] {
        ask(stream, 100_000).await;
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0, "a clean end");
    }
    for sidecar in ["client", "server"] {
        let sealed = fleet
            .metric(sidecar, "keyway_sealed_bytes_total{keyring=\"payments/default\",kek_version=\"2\"}");
        assert!(sealed.await >= 200_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_or_cut_off_on_the_way_never_ends_cleanly() {
    for (change_at, cut_at) in [
        (Some(SETUP - 1), None),
        (Some(SETUP + 1), None),
        (Some(SETUP + 5000), None),
        (None, Some(100)),
        (None, Some(SETUP + 100)),
        // Between two records: only the missing FIN tells.
        (None, Some(SETUP + 10_019)),
    ] {
        let wire = Wire { change_at, cut_at, ..Wire::default() };
        let heard = Arc::new(Mutex::new(None));
        let hearing = Arc::clone(&heard);
        let service = server(move |mut stream| {
            let hearing = Arc::clone(&hearing);
            async move {
                let mut came = Vec::new();
                let ended = stream.read_to_end(&mut came).await.map_err(|error| error.kind());
                *hearing.lock().unwrap() = Some((came.len(), ended.is_ok()));
            }
        });
        let fleet = pair(service.await, &wire).await;
        let mut stream = connect(&fleet).await;
        stream.write_all(&random(10_000)).await.unwrap();
        // The client hears of it, and not as an end: whichever call comes first after the reset fails, and only that.
        let calls = [
            stream.write_all(&random(10_000)).await,
            stream.shutdown().await,
            stream.read_to_end(&mut Vec::new()).await.map(drop),
        ];
        assert!(calls.iter().any(Result::is_err), "{change_at:?} {cut_at:?}");
        if cut_at.or(change_at).unwrap() > SETUP {
            let (bytes, clean) = eventually("the service", async || *heard.lock().unwrap()).await;
            assert!(!clean, "{bytes} bytes were taken for all: {change_at:?} {cut_at:?}");
        } else {
            assert_eq!(*heard.lock().unwrap(), None, "nobody makes it connect without the keys");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_is_not_taken_by_the_side_that_opens() {
    let fleet = pair(server(echo).await, &Wire::default()).await;
    let mut stream = TcpStream::connect(fleet.data_of("server")).await.unwrap();
    stream.write_all(&[b'x'; 500]).await.unwrap();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let refused = "keyway_plaintext_total{route=\"/**\",action=\"refused\"}";
    assert_eq!(fleet.metric("server", refused).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_conversation_cannot_be_played_again() {
    let wire = Wire::default();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = Arc::clone(&heard);
    let service = server(move |mut stream| {
        let hearing = Arc::clone(&hearing);
        async move {
            let mut came = Vec::new();
            let _ = stream.read_to_end(&mut came).await;
            hearing.lock().unwrap().push(came);
        }
    });
    let fleet = pair(service.await, &wire).await;
    let mut stream = connect(&fleet).await;
    stream.write_all(b"pay 100 to mallory").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(*heard.lock().unwrap(), [b"pay 100 to mallory"]);

    let recorded = wire.there.lock().unwrap().clone();
    let mut again = TcpStream::connect(fleet.data_of("server")).await.unwrap();
    let mut challenge = [0; CHALLENGE];
    again.read_exact(&mut challenge).await.unwrap();
    again.write_all(&recorded).await.unwrap();
    let error = again.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(heard.lock().unwrap().len(), 1, "the service heard it twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_connections_and_cuts_none_cleanly() {
    let mut fleet = pair(server(echo).await, &Wire::default()).await;
    let mut stream = connect(&fleet).await;
    stream.write_all(b"before").await.unwrap();
    let mut came = [0; 6];
    stream.read_exact(&mut came).await.unwrap();
    let process = fleet.take_proxy("client");
    process.signal(rustix::process::Signal::TERM);
    // It goes on while the sidecar drains, and ends by itself.
    eventually("the end of accepting", async || {
        TcpStream::connect(stream.peer_addr().unwrap()).await.err().map(drop)
    })
    .await;
    stream.write_all(b"during").await.unwrap();
    stream.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"during");
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    let ended = tokio::task::spawn_blocking(move || process.wait()).await.unwrap();
    assert!(ended.success());
}
