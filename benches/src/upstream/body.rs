//! Bodies of requests: where they end, and where they go.

use super::request::Framing;
use super::store::Builder;
use crate::load::chunked::Chunked;

/// Where the body of a request is kept.
pub(super) enum Sink {
    /// Nowhere.
    Nothing,
    /// For the store.
    Object(Builder),
}

/// A body that is being received.
pub(super) struct Incoming {
    at: At,
    sink: Sink,
}

enum At {
    Length(u64),
    Chunked(Chunked),
}

impl Incoming {
    pub(super) fn new(framing: Framing, sink: Sink) -> Self {
        let at = match framing {
            Framing::Length(length) => At::Length(length),
            Framing::Chunked => At::Chunked(Chunked::default()),
        };
        Self { at, sink }
    }

    pub(super) fn is_done(&self) -> bool {
        match &self.at {
            At::Length(left) => *left == 0,
            At::Chunked(chunked) => chunked.is_done(),
        }
    }

    pub(super) fn into_sink(self) -> Sink {
        self.sink
    }

    /// Takes what one read brought, up to the body's end; the rest belongs to the next request.
    pub(super) fn feed<'a>(&mut self, mut input: &'a [u8]) -> anyhow::Result<&'a [u8]> {
        while !input.is_empty() && !self.is_done() {
            let data = match &mut self.at {
                At::Length(left) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    let (data, rest) = input.split_at(length);
                    input = rest;
                    *left -= length as u64;
                    data
                }
                At::Chunked(chunked) => chunked.next(&mut input)?,
            };
            if let Sink::Object(builder) = &mut self.sink {
                anyhow::ensure!(builder.push(data), "an object that is too large");
            }
        }
        Ok(input)
    }
}
