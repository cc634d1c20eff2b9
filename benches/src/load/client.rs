//! One request after the other.

use super::http1::Http1;
use super::http2::{Connection, Stream};
use super::tally::Meter;
use super::target::Target;
use super::{Http, Plan};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use std::rc::Rc;

/// How many connections are being opened at a time: fewer than any server's backlog.
const OPENING_AT_ONCE: usize = 64;

/// A connection, or a stream's place on one.
pub(super) enum Client {
    /// A connection with HTTP/1.1.
    One(Http1),
    /// One of the requests that are under way on a connection with HTTP/2.
    Two(Stream),
}

impl Client {
    /// Opens all that the plan says, in order.
    pub(super) async fn open_all(plan: &Plan) -> anyhow::Result<Vec<Self>> {
        super::thread::raise_open_files(plan.connections)?;
        let target = Rc::new(Target::of(plan)?);
        let opening =
            (0..plan.connections).map(|number| Self::open(Rc::clone(&target), number, plan.streams));
        let opened: Vec<Vec<Self>> = stream::iter(opening).buffered(OPENING_AT_ONCE).try_collect().await?;
        Ok(opened.into_iter().flatten().collect())
    }

    async fn open(target: Rc<Target>, number: usize, streams: usize) -> anyhow::Result<Vec<Self>> {
        match target.http() {
            Http::One => {
                let mut client = Self::One(Http1::new(target, number));
                client.ready().await?;
                Ok(vec![client])
            }
            Http::Two => {
                let connection = Connection::new(target, number)?;
                let mut clients: Vec<_> =
                    (0..streams).map(|_| Self::Two(Stream::new(Rc::clone(&connection)))).collect();
                for client in &mut clients {
                    client.ready().await?;
                }
                Ok(clients)
            }
        }
    }

    /// Waits until a request can be sent; opens the connection again if it is gone.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        match self {
            Self::One(client) => client.ready().await,
            Self::Two(client) => client.ready().await,
        }
    }

    /// Sends the request and takes the response; an error for every response but the one that was expected.
    pub(super) async fn exchange(&mut self, meter: &mut Meter) -> anyhow::Result<()> {
        match self {
            Self::One(client) => client.exchange(meter).await,
            Self::Two(client) => client.exchange(meter).await,
        }
    }

    /// Ends when the other side closes the connection, between two requests.
    pub(super) async fn closed(&mut self) {
        match self {
            Self::One(client) => client.closed().await,
            Self::Two(client) => client.closed().await,
        }
    }
}
