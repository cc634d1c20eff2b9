//! TCP between pairs of sidecars, sealed record by record ([`keyway_envelope::stream`]).
//!
//! ```text
//! client ── plain ──► sidecar (role client) ══ sealed ══► sidecar (role server) ── plain ──► server
//! ```
//! Each direction is a stream of its own, half-close included: the end of what one side says is the record FIN. Whatever
//! ends otherwise ends with a reset on all sides, so that no part is taken for the whole. When the keyring changes, each
//! stream changes its keys within a second, idle or not, and the connection goes on.

use crate::config::{self, Limits, Role};
use crate::context::RequestContext;
use crate::keys::Keys;
use crate::route::{Protection, Route, RouteMode, RouteTable};
use crate::telemetry::{PlaintextAction, Telemetry};
use crate::worker::{self, Buffer, Stream};
use http::HeaderMap;
use keyway_envelope::stream::{
    CHALLENGE, Keying, RECORD_HEADER, RECORD_MAX, RECORD_MORE, Record, SETUP, StreamOpener, StreamSealer,
    Way, challenge, parse_challenge,
};
use keyway_envelope::{FormatError, Implementation, KeyBlock, OpenError, SealError};
use keyway_keycache::{CachedDek, KeyCache, KeyError};
use metrics::Counter;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

/// After so long without a byte the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// `tcp://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpAddress {
    host: String,
    port: u16,
}

impl TcpAddress {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} must be tcp://host:port");
        let (host, port) =
            text.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(bad)?;
        let host = host.trim_matches(['[', ']']);
        let port = port.parse().map_err(|_| bad())?;
        if host.is_empty() || port == 0 || host.contains(['/', '@', '?']) {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// What a TCP listener does with its connections.
#[derive(Debug)]
pub(crate) struct TcpService {
    role: Role,
    route: Arc<Route>,
    context: RequestContext,
    keys: Keys,
    upstream: TcpAddress,
    connect_timeout: Duration,
    setup_timeout: Duration,
    rekeyed: Counter,
}

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("no set-up came in time")]
    Late,
    #[error("the peer's stream is not sealed")]
    Plaintext,
    #[error("the peer's stream could not be opened")]
    Open(&'static str),
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("{0}")]
    Seal(#[from] SealError),
}

impl From<OpenError> for End {
    fn from(error: OpenError) -> Self {
        Self::Open(error.reason())
    }
}

/// A sealer, and the DEK that it seals under.
struct Sealing {
    sealer: StreamSealer,
    dek: Arc<CachedDek>,
}

/// An opener, the DEK that it opens with, and the block that led to it.
struct Opening {
    opener: StreamOpener,
    dek: Arc<CachedDek>,
    block: KeyBlock,
}

impl TcpService {
    /// The configuration has been checked.
    pub(crate) fn build(
        listener: &config::Listener,
        limits: &Limits,
        cache: &Arc<KeyCache>,
        telemetry: &Telemetry,
    ) -> Result<Self, String> {
        let route = RouteTable::build(listener, cache, telemetry)?.only().ok_or("it needs one route")?;
        let RouteMode::Body(protection) = &route.mode else { return Err("its route needs mode body".into()) };
        let context = protection.context.of(&HeaderMap::new()).map_err(|error| error.to_string())?;
        Ok(Self {
            role: listener.role,
            context,
            keys: Keys::new(Arc::clone(cache), limits.key_timeout.0),
            upstream: TcpAddress::parse(&listener.upstream)?,
            connect_timeout: limits.connect_timeout.0,
            // A client's sidecar waits for the server to be connected to; a stranger need not be waited for as long.
            setup_timeout: match listener.role {
                Role::Client => limits.upstream_timeout.0,
                Role::Server => limits.header_timeout.0,
            },
            rekeyed: telemetry.counter("keyway_streams_rekeyed_total", &[("listener", &listener.name)]),
            route,
        })
    }

    /// Carries one connection to its end.
    pub(crate) async fn serve(&self, listener: &str, mut client: TcpStream) {
        careful(&client);
        let carried = match self.role {
            Role::Client => self.client(&mut client).await,
            Role::Server => self.server(&mut client).await,
        };
        match carried {
            // Both ends have been said and heard: nothing that a reset could cut off.
            Ok(()) => tracing::debug!(listener, "connection ended"),
            Err(end) => {
                if let End::Open(reason) = &end {
                    self.route.metrics.open_failure(reason);
                }
                tracing::warn!(listener, error = %end, "connection given up");
            }
        }
    }

    async fn client(&self, client: &mut TcpStream) -> Result<(), End> {
        let mut upstream = self.connect().await?;
        let (plain_in, plain_out) = client.split();
        let (mut sealed_in, mut sealed_out) = upstream.split();
        let nonce = self.challenged(&mut sealed_in).await?;
        let (sealing, salt) = self.begin_sealing(&mut sealed_out, Way::There(nonce)).await?;
        let back = async {
            let (opening, _) = self.begin_opening(&mut sealed_in, Way::Back(salt)).await?;
            self.open(sealed_in, plain_out, opening).await
        };
        tokio::try_join!(self.seal(plain_in, sealed_out, sealing), back)?;
        graceful(client);
        graceful(&upstream);
        Ok(())
    }

    async fn server(&self, client: &mut TcpStream) -> Result<(), End> {
        let (mut sealed_in, mut sealed_out) = client.split();
        let nonce = salt()?;
        sealed_out.write_all(&challenge(&nonce)).await?;
        // Nobody makes us connect who does not have the keys, or has recorded somebody who had.
        let (opening, salt) = self.begin_opening(&mut sealed_in, Way::There(nonce)).await?;
        let mut upstream = self.connect().await?;
        let (plain_in, plain_out) = upstream.split();
        // At once: a server that speaks first must not wait for its client.
        let (sealing, _) = self.begin_sealing(&mut sealed_out, Way::Back(salt)).await?;
        tokio::try_join!(self.open(sealed_in, plain_out, opening), self.seal(plain_in, sealed_out, sealing))?;
        graceful(client);
        graceful(&upstream);
        Ok(())
    }

    async fn connect(&self) -> Result<TcpStream, End> {
        let connecting = TcpStream::connect((self.upstream.host.as_str(), self.upstream.port));
        let late = || End::Unreachable(io::ErrorKind::TimedOut.into());
        let stream =
            timeout(self.connect_timeout, connecting).await.map_err(|_| late())?.map_err(End::Unreachable)?;
        careful(&stream);
        Ok(stream)
    }

    fn protection(&self) -> Result<&Protection, End> {
        match &self.route.mode {
            RouteMode::Body(protection) => Ok(protection),
            _ => Err(End::Key(KeyError::NoKeyring)),
        }
    }

    async fn challenged(&self, from: &mut ReadHalf<'_>) -> Result<[u8; 24], End> {
        let mut said = [0; CHALLENGE];
        timeout(self.setup_timeout, from.read_exact(&mut said)).await.map_err(|_| End::Late)??;
        match parse_challenge(&said) {
            Ok(nonce) => Ok(nonce),
            Err(FormatError::Magic) => {
                self.route.metrics.plaintext(PlaintextAction::Refused);
                Err(End::Plaintext)
            }
            Err(_) => Err(End::Open("format")),
        }
    }

    async fn begin_sealing(&self, to: &mut WriteHalf<'_>, way: Way) -> Result<(Sealing, [u8; 24]), End> {
        let protection = self.protection()?;
        let dek = self.keys.seal(protection, &self.context).await?;
        dek.begin_seal()?;
        let salt = salt()?;
        let context = protection.context.stream(&self.context, way);
        let (sealer, setup) =
            StreamSealer::begin(dek.dek(), dek.key_block(), salt, context, Implementation::selected());
        to.write_all(&setup).await?;
        Ok((Sealing { sealer, dek }, salt))
    }

    /// Waits for the peer's set-up; gives its salt, too.
    async fn begin_opening(&self, from: &mut ReadHalf<'_>, way: Way) -> Result<(Opening, [u8; 24]), End> {
        let mut setup = [0; SETUP];
        timeout(self.setup_timeout, from.read_exact(&mut setup)).await.map_err(|_| End::Late)??;
        let keying = match Keying::parse(&setup) {
            Ok(keying) => keying,
            Err(FormatError::Magic) => {
                self.route.metrics.plaintext(PlaintextAction::Refused);
                return Err(End::Plaintext);
            }
            Err(_) => return Err(End::Open("format")),
        };
        let dek = self.open_key(&keying).await?;
        let context = self.protection()?.context.stream(&self.context, way);
        let opener = StreamOpener::begin(&keying, dek.dek(), context, Implementation::selected())
            .inspect_err(|_| dek.count_open_failure())?;
        Ok((Opening { opener, dek, block: keying.key_block }, keying.salt))
    }

    async fn open_key(&self, keying: &Keying) -> Result<Arc<CachedDek>, End> {
        match self.keys.open(self.protection()?, &self.context, &keying.key_block).await {
            Ok(dek) => {
                dek.begin_open();
                Ok(dek)
            }
            Err(KeyError::Refused) => Err(End::Open("key_block")),
            Err(error) => Err(error.into()),
        }
    }

    /// Seals what comes, until it ends.
    async fn seal(&self, from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut sealing: Sealing) -> Result<(), End> {
        let mut changes = worker::changes();
        // The keyring may be another one since this stream began.
        changes.mark_changed();
        loop {
            tokio::select! {
                ready = from.readable() => ready?,
                _ = changes.changed() => {
                    self.follow_keyring(&mut sealing, &mut to).await?;
                    continue;
                }
            }
            // Only now: an idle connection holds no buffer.
            let _stream = Stream::begin();
            let (mut plain, mut sealed) = (Buffer::take(), Buffer::take());
            let records = sealed.room().len() / (RECORD_MAX + RECORD_MORE);
            let max = plain.room().len().min(records * RECORD_MAX);
            let read = match from.try_read(&mut plain.room()[..max]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            if read == 0 {
                to.write_all(&sealing.sealer.finish()?).await?;
                return Ok(to.shutdown().await?);
            }
            plain.advance(read);
            self.follow_keyring(&mut sealing, &mut to).await?;
            sealing.dek.count_sealed(read as u64)?;
            for piece in plain.as_ref().chunks(RECORD_MAX) {
                let written = sealing.sealer.data(piece, sealed.room())?;
                sealed.advance(written);
            }
            drop(plain);
            to.write_all(sealed.as_ref()).await?;
            drop(sealed);
            if read == max {
                // There is more where this came from; the others have their turn first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Changes to the DEK that is to be sealed with now, if that is another one.
    async fn follow_keyring(&self, sealing: &mut Sealing, to: &mut WriteHalf<'_>) -> Result<(), End> {
        let dek = self.keys.seal(self.protection()?, &self.context).await?;
        if dek.dek().id() == sealing.dek.dek().id() && !sealing.sealer.wants_rekey() {
            return Ok(());
        }
        dek.begin_seal()?;
        let record = sealing.sealer.rekey(dek.dek(), dek.key_block(), salt()?)?;
        to.write_all(&record).await?;
        sealing.dek = dek;
        self.rekeyed.increment(1);
        Ok(())
    }

    /// Opens what comes, until FIN.
    async fn open(&self, from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut opening: Opening) -> Result<(), End> {
        // Of a record that is not whole.
        let mut rest: Vec<u8> = Vec::new();
        let mut changes = worker::changes();
        loop {
            tokio::select! {
                ready = from.readable() => ready?,
                _ = changes.changed() => {}
            }
            // Leases and rights end for those, too, who have the key already.
            self.keys.may_open(self.protection()?, &opening.block)?;
            let _stream = Stream::begin();
            let mut sealed = Buffer::take();
            sealed.room()[..rest.len()].copy_from_slice(&rest);
            sealed.advance(rest.len());
            match from.try_read(sealed.room()) {
                Ok(0) => return Err(OpenError::Truncated.into()),
                Ok(read) => sealed.advance(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            let mut bytes = sealed.as_ref();
            let mut plain = Buffer::take();
            while let Some((header, record)) = whole_record(bytes)? {
                bytes = &bytes[RECORD_HEADER + record.len()..];
                if plain.room().len() < RECORD_MAX {
                    to.write_all(plain.as_ref()).await?;
                    plain = Buffer::take();
                }
                let opened = opening.opener.open(header, record, plain.room());
                match opened.inspect_err(|_| opening.dek.count_open_failure())? {
                    Record::Data(len) => {
                        plain.advance(len);
                        opening.dek.count_opened(len as u64);
                    }
                    Record::Rekey(keying) => {
                        let dek = self.open_key(&keying).await?;
                        opening.opener.rekey(&keying, dek.dek())?;
                        opening.dek = dek;
                        opening.block = keying.key_block;
                    }
                    Record::Fin => {
                        to.write_all(plain.as_ref()).await?;
                        return if bytes.is_empty() {
                            Ok(to.shutdown().await?)
                        } else {
                            Err(OpenError::Order.into())
                        };
                    }
                }
            }
            rest = bytes.to_vec();
            let was_full = sealed.room().is_empty();
            drop(sealed);
            to.write_all(plain.as_ref()).await?;
            if was_full {
                // As above.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Header and sealed bytes.
type Raw<'a> = ([u8; RECORD_HEADER], &'a [u8]);

/// The first record of `bytes`, if all of it is there.
fn whole_record(bytes: &[u8]) -> Result<Option<Raw<'_>>, OpenError> {
    let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else { return Ok(None) };
    let len = StreamOpener::sealed_len(*header)?;
    Ok(rest.get(..len).map(|record| (*header, record)))
}

fn salt() -> Result<[u8; 24], End> {
    let mut salt = [0; 24];
    // Fresh from the kernel, for the same reason as the salts of bodies.
    getrandom::fill(&mut salt).map_err(|_| End::Key(KeyError::Unavailable))?;
    Ok(salt)
}

/// Whatever happens to it, this socket closes with a reset until [`graceful`] is said: a task that is dropped, an error,
/// a drain that takes too long. Its peer must not take what it got for all there was.
fn careful(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE));
}

fn graceful(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address = |host: &str, port| Ok(TcpAddress { host: host.to_owned(), port });
        assert_eq!(TcpAddress::parse("tcp://db:5432"), address("db", 5432));
        assert_eq!(TcpAddress::parse("tcp://[::1]:6379"), address("::1", 6379));
        for bad in
            ["db:5432", "tcp://db", "tcp://:1", "tcp://db:0", "tcp://db:x", "http://db:1", "tcp://u@db:1/x"]
        {
            assert!(TcpAddress::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn records_come_in_pieces() {
        let record = [1, 0, 17, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        for len in 0..record.len() {
            assert_eq!(whole_record(&record[..len]), Ok(None));
        }
        let two = [&record[..], &record[..5]].concat();
        assert_eq!(whole_record(&two), Ok(Some(([1, 0, 17], &record[3..]))));
        assert_eq!(whole_record(&[1, 0, 3]), Err(OpenError::Truncated));
    }
}
