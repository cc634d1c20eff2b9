//! What is kept.

use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::rc::Rc;

/// Objects are kept in pieces of this; the last may be shorter.
const PIECE_BYTES: usize = 256 * 1024;

/// The largest object that is kept.
pub(super) const OBJECT_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];

/// Objects by path.
#[derive(Default)]
pub(super) struct Store {
    objects: RefCell<BTreeMap<String, Rc<Object>>>,
    /// Makes ETags differ.
    puts: Cell<u64>,
}

/// A body that can be given out.
#[derive(Debug)]
pub(super) struct Object {
    pieces: Pieces,
    length: u64,
    etag: String,
}

#[derive(Debug)]
enum Pieces {
    Kept(Vec<Bytes>),
    Zeros,
}

/// An object that is being received.
#[derive(Default)]
pub(super) struct Builder {
    pieces: Vec<Bytes>,
    last: Vec<u8>,
    length: u64,
}

impl Store {
    pub(super) fn object(&self, path: &str) -> Option<Rc<Object>> {
        self.objects.borrow().get(path).map(Rc::clone)
    }

    /// Keeps it; also tells whether the path was free.
    pub(super) fn put(&self, path: &str, builder: Builder) -> (Rc<Object>, bool) {
        let number = self.puts.get() + 1;
        self.puts.set(number);
        let object = Rc::new(builder.finish(number));
        let before = self.objects.borrow_mut().insert(path.to_owned(), Rc::clone(&object));
        (object, before.is_none())
    }

    /// Forgets it; tells whether it was there.
    pub(super) fn delete(&self, path: &str) -> bool {
        self.objects.borrow_mut().remove(path).is_some()
    }

    /// Names directly below `directory`, which ends with `/`: an object for a file, none for a directory.
    pub(super) fn below(&self, directory: &str) -> BTreeMap<String, Option<Rc<Object>>> {
        let objects = self.objects.borrow();
        let within =
            objects.range(directory.to_owned()..).take_while(|(path, _)| path.starts_with(directory));
        let names = within.map(|(path, object)| match path[directory.len()..].split_once('/') {
            Some((name, _)) => (name.to_owned(), None),
            None => (path[directory.len()..].to_owned(), Some(Rc::clone(object))),
        });
        names.collect()
    }
}

impl Object {
    /// So many zero bytes.
    pub(super) fn zeros(length: u64) -> Self {
        Self { pieces: Pieces::Zeros, length, etag: format!("\"zeros-{length}\"") }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn etag(&self) -> &str {
        &self.etag
    }

    /// Fills `slices` with the bytes from `from` up to `to`, as far as they go; tells how many it has filled.
    pub(super) fn slices<'a>(&'a self, mut from: u64, to: u64, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for slice in slices {
            let piece = self.piece(from, to);
            if piece.is_empty() {
                break;
            }
            *slice = IoSlice::new(piece);
            from += piece.len() as u64;
            filled += 1;
        }
        filled
    }

    /// The bytes from `from` up to `to` that lie together; empty at the end.
    pub(super) fn piece(&self, from: u64, to: u64) -> &[u8] {
        let number = usize::try_from(from / PIECE_BYTES as u64).unwrap_or(usize::MAX);
        let within = usize::try_from(from % PIECE_BYTES as u64).unwrap_or_default();
        let piece: &[u8] = match &self.pieces {
            Pieces::Kept(pieces) => pieces.get(number).map_or(&[], |piece| &piece[..]),
            Pieces::Zeros => &ZEROS,
        };
        let left = usize::try_from(to.min(self.length).saturating_sub(from)).unwrap_or(usize::MAX);
        let piece = piece.get(within..).unwrap_or_default();
        &piece[..piece.len().min(left)]
    }
}

impl Builder {
    /// Appends; `false` when there would be too much.
    pub(super) fn push(&mut self, mut data: &[u8]) -> bool {
        self.length += data.len() as u64;
        if self.length > OBJECT_BYTES_MAX {
            return false;
        }
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(PIECE_BYTES - self.last.len()));
            self.last.extend_from_slice(now);
            data = later;
            if self.last.len() == PIECE_BYTES {
                self.pieces.push(std::mem::replace(&mut self.last, Vec::with_capacity(PIECE_BYTES)).into());
            }
        }
        true
    }

    fn finish(mut self, number: u64) -> Object {
        if !self.last.is_empty() {
            self.last.shrink_to_fit();
            self.pieces.push(self.last.into());
        }
        let etag = format!("\"{number:x}-{:x}\"", self.length);
        Object { pieces: Pieces::Kept(self.pieces), length: self.length, etag }
    }
}
