//! Fields of JSON documents: what the selectors of a route choose is sealed, everything else passes byte for byte.

mod document;
pub(crate) mod lines;
mod media;

pub(crate) use media::Media;

use crate::body::BodyError;
use crate::config::FieldConfig;
use crate::context::RequestContext;
use crate::keys::Keys;
use crate::route::{Protection, Route};
use crate::telemetry::PlaintextAction;
use bytes::Bytes;
use document::{Document, Step};
use keyway_envelope::compact::{self, Compact};
use keyway_envelope::{Implementation, field};
use keyway_keycache::KeyError;
use serde_json_path::{JsonPath, PathElement};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What a sealed value of some 30 bytes takes more, in bytes, if its DEK is by reference.
const SEALED_MORE: usize = 160;
/// After so many values the others have their turn.
const TURN: usize = 64;
/// Longer documents are looked at on another thread, in bytes.
const HERE_MAX: usize = 128 * 1024;
/// So many of them at a time: a document that is looked at takes twenty times its length, at worst.
static ELSEWHERE: Semaphore = Semaphore::const_new(4);

/// The selectors of a route.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    /// With whether the wrapped DEK is written into the values.
    paths: Vec<(JsonPath, bool)>,
    /// Whether one of them looks at values, and not only at names and places.
    filters: bool,
}

/// A value that was selected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selected {
    span: Range<usize>,
    /// RFC 6901, with `*` for every index of an array: the place's name, which the envelope is bound to.
    path: String,
    /// The same with its indices, where selectors look at values.
    place: String,
    /// Whether its DEK's wrap is written into it.
    inline: bool,
}

/// Which way a document goes, and what may be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Selected values are sealed.
    Seal,
    /// They are opened, and none may be plaintext.
    Open,
    /// They are opened where they are sealed: an error or a receipt of a service, which is no stored data.
    OpenSealed,
}

/// What is needed for the documents of one message.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    pub(crate) route: Arc<Route>,
    pub(crate) keys: Keys,
    pub(crate) context: RequestContext,
    pub(crate) way: Way,
    pub(crate) from_upstream: bool,
    /// The longest document, sealed or not, in bytes.
    pub(crate) max: usize,
    /// Whether a document stands on one line.
    pub(crate) on_a_line: bool,
}

impl Fields {
    /// Reads the selectors, JSONPath by RFC 9535.
    pub(crate) fn parse(fields: &[FieldConfig]) -> Result<Self, String> {
        let paths = fields.iter().map(|field| match JsonPath::parse(&field.select) {
            Ok(path) => Ok((path, field.inline)),
            Err(error) => Err(format!("{:?} is no JSONPath (RFC 9535): {error}", field.select)),
        });
        // They would be compiled for each value that is looked at.
        for function in ["match(", "search("] {
            if let Some(field) = fields.iter().find(|field| field.select.contains(function)) {
                return Err(format!("{:?}: regular expressions are not available", field.select));
            }
        }
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        // A question mark in a name counts too, and costs a second look.
        let filters = fields.iter().any(|field| field.select.contains('?'));
        Ok(Self { paths, filters })
    }

    /// What the selectors choose, in order, the outermost only: what is inside a sealed value is sealed with it.
    fn select(&self, document: &Document) -> Vec<Selected> {
        let mut all = Vec::new();
        for (path, inline) in &self.paths {
            for node in path.query_located(&document.value).iter() {
                let steps = || {
                    node.location().iter().map(|element| match element {
                        PathElement::Name(name) => Step::Name(name),
                        PathElement::Index(index) => Step::Index(*index),
                    })
                };
                if let Some(span) = document.span(steps()) {
                    let place = if self.filters { pointer(steps(), true) } else { String::new() };
                    all.push(Selected { span, path: pointer(steps(), false), place, inline: *inline });
                }
            }
        }
        // Stable: of two selectors for the same value the first decides.
        all.sort_by_key(|selected| (selected.span.start, std::cmp::Reverse(selected.span.end)));
        let mut end = 0;
        all.retain(|selected| {
            let outermost = selected.span.start >= end;
            end = end.max(selected.span.end);
            outermost
        });
        all
    }
}

/// RFC 6901, section 3; without indices `*` stands for each, and a name's own is `~2`.
fn pointer<'a>(steps: impl Iterator<Item = Step<'a>>, indices: bool) -> String {
    let mut text = String::new();
    for step in steps {
        // Writing to a String does not fail.
        let _ = match step {
            Step::Index(index) if indices => write!(text, "/{index}"),
            Step::Index(_) => text.write_str("/*"),
            Step::Name(name) => {
                write!(text, "/{}", name.replace('~', "~0").replace('/', "~1").replace('*', "~2"))
            }
        };
    }
    text
}

/// The text of a string that needs no unescaping; sealed values are such strings, whoever wrote them down.
fn plain_string(token: &[u8]) -> Option<&str> {
    let inner = token.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    std::str::from_utf8(inner).ok().filter(|text| !text.contains('\\'))
}

impl Documents {
    /// One document, sealed or opened.
    ///
    /// # Errors
    /// [`BodyError`], with nothing of the document's values in it.
    pub(crate) async fn carry(&self, text: Bytes) -> Result<Bytes, BodyError> {
        let Some((protection, fields)) = self.route.mode.json() else { return Ok(text) };
        let selected = self.look(text.clone()).await?;
        if selected.is_empty() {
            return Ok(text);
        }
        if self.way != Way::Seal {
            return self.open(protection, &text, &selected).await;
        }
        let sealed = self.seal(protection, &text, &selected).await?;
        if fields.filters {
            self.check_filters(&selected, sealed.clone()).await?;
        }
        Ok(sealed)
    }

    /// What is selected in a document. A long one is looked at on another thread: the worker has others to serve.
    async fn look(&self, text: Bytes) -> Result<Vec<Selected>, BodyError> {
        if text.len() <= HERE_MAX {
            return look(&self.route, &text, self.from_upstream);
        }
        let permit = ELSEWHERE.acquire().await;
        let (route, from_upstream) = (Arc::clone(&self.route), self.from_upstream);
        let looking = tokio::task::spawn_blocking(move || {
            let selected = look(&route, &text, from_upstream);
            // Held to the end, also if nobody waits for it any more.
            drop(permit);
            selected
        });
        match looking.await {
            Ok(selected) => selected,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going away.
                Err(_) => Err(BodyError::Overloaded),
            },
        }
    }

    async fn seal(
        &self,
        protection: &Protection,
        text: &[u8],
        selected: &[Selected],
    ) -> Result<Bytes, BodyError> {
        let dek = self.keys.seal(protection, &self.context).await.map_err(BodyError::Key)?;
        // Fresh from the kernel, for the same reason as the salts of bodies.
        let mut salts = vec![[0; 24]; selected.len()];
        getrandom::fill(salts.as_flattened_mut()).map_err(|_| BodyError::Key(KeyError::Unavailable))?;
        let reference = self.keys.reference(&dek);
        let mut out = Output::new(text, selected.len());
        for (n, (one, salt)) in selected.iter().zip(salts).enumerate() {
            if n % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let token = &text[one.span.clone()];
            if plain_string(token).is_some_and(field::is_sealed) {
                return Err(BodyError::AlreadySealed { from_upstream: self.from_upstream });
            }
            dek.begin_seal().map_err(BodyError::Key)?;
            dek.count_sealed(token.len() as u64).map_err(BodyError::Key)?;
            let context = protection.context.field(&self.context, &one.path);
            let implementation = Implementation::selected();
            let block = if one.inline { dek.key_block() } else { &reference };
            let sealed = compact::seal(dek.dek(), block, salt, &context, implementation, token)
                .map_err(|_| BodyError::TooLarge)?;
            out.replace(&one.span, |out| {
                out.push(b'"');
                out.extend_from_slice(field::encode(&sealed).as_bytes());
                out.push(b'"');
            });
            // What is longer could not be read back.
            if out.made.len() > self.max {
                return Err(BodyError::TooLarge);
            }
        }
        let made = out.finish();
        if made.len() > self.max { Err(BodyError::TooLarge) } else { Ok(made) }
    }

    async fn open(
        &self,
        protection: &Protection,
        text: &[u8],
        selected: &[Selected],
    ) -> Result<Bytes, BodyError> {
        let mut out = Output::new(text, 0);
        let mut plaintext = false;
        for (n, one) in selected.iter().enumerate() {
            if n % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            match plain_string(&text[one.span.clone()]).filter(|text| field::is_sealed(text)) {
                Some(sealed) => {
                    let mut token = self.open_one(protection, sealed, &one.path).await?;
                    if self.on_a_line {
                        // Between the parts of a value, where they mean nothing: in strings they are escaped.
                        token
                            .iter_mut()
                            .filter(|byte| matches!(byte, b'\n' | b'\r'))
                            .for_each(|byte| *byte = b' ');
                    }
                    out.replace(&one.span, |out| out.extend_from_slice(&token));
                }
                None => plaintext = true,
            }
        }
        if plaintext {
            let action = protection.plaintext(self.way == Way::OpenSealed);
            self.route.metrics.plaintext(action);
            if let PlaintextAction::Refused = action {
                return Err(BodyError::Plaintext { from_upstream: self.from_upstream });
            }
        }
        Ok(out.finish())
    }

    async fn open_one(
        &self,
        protection: &Protection,
        sealed: &str,
        path: &str,
    ) -> Result<Vec<u8>, BodyError> {
        let refused = |reason| BodyError::Field { reason, from_upstream: self.from_upstream };
        let bytes = field::decode(sealed).map_err(|_| refused("format"))?;
        let envelope = Compact::parse(&bytes).map_err(|_| refused("format"))?;
        let dek = match self.keys.open(protection, &self.context, &envelope.key_block).await {
            Ok(dek) => dek,
            // As for bodies: to a peer, a block that was refused and a value that does not open are the same.
            Err(KeyError::Refused) => return Err(refused("key_block")),
            Err(error) => return Err(BodyError::Key(error)),
        };
        dek.begin_open();
        let context = protection.context.field(&self.context, path);
        match envelope.open(dek.dek(), &context, Implementation::selected()) {
            // Whoever may seal could have sealed anything; what is put into a document is a value.
            Ok(token) if Document::parse(&token).is_ok() => {
                dek.count_opened(token.len() as u64);
                Ok(token)
            }
            Ok(_) => Err(refused("format")),
            Err(error) => {
                dek.count_open_failure();
                tracing::warn!(reason = error.reason(), dek = %dek.dek().id(), "a sealed field could not be opened");
                Err(refused(error.reason()))
            }
        }
    }

    /// A filter may look at a value that is sealed in what is stored; then it would not find on the way back what it
    /// found on the way there.
    async fn check_filters(&self, selected: &[Selected], sealed: Bytes) -> Result<(), BodyError> {
        let again = self.look(sealed).await?;
        let same = again.len() == selected.len()
            && again.iter().zip(selected).all(|(one, other)| one.place == other.place);
        if same {
            return Ok(());
        }
        Err(BodyError::Json {
            flaw: "a selector of this route depends on a value that it seals; let it look at other values"
                .to_owned(),
            from_upstream: self.from_upstream,
        })
    }
}

fn look(route: &Route, text: &[u8], from_upstream: bool) -> Result<Vec<Selected>, BodyError> {
    let Some((_, fields)) = route.mode.json() else { return Ok(Vec::new()) };
    let document =
        Document::parse(text).map_err(|flaw| BodyError::Json { flaw: flaw.to_string(), from_upstream })?;
    Ok(fields.select(&document))
}

/// A text in which some values are replaced, from front to back.
struct Output<'a> {
    text: &'a [u8],
    made: Vec<u8>,
    done: usize,
}

impl<'a> Output<'a> {
    fn new(text: &'a [u8], sealed: usize) -> Self {
        let made = Vec::with_capacity(text.len() + sealed * SEALED_MORE);
        Self { text, made, done: 0 }
    }

    fn replace(&mut self, span: &Range<usize>, write: impl FnOnce(&mut Vec<u8>)) {
        self.made.extend_from_slice(&self.text[self.done..span.start]);
        write(&mut self.made);
        self.done = span.end;
    }

    fn finish(mut self) -> Bytes {
        self.made.extend_from_slice(&self.text[self.done..]);
        self.made.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(selectors: &[&str]) -> Result<Fields, String> {
        let config = |select: &&str| FieldConfig {
            select: (*select).to_owned(),
            inline: false,
            searchable: false,
            deterministic: false,
        };
        Fields::parse(&selectors.iter().map(config).collect::<Vec<_>>())
    }

    fn select(selectors: &[&str], text: &str) -> Vec<(String, String)> {
        let fields = fields(selectors).unwrap();
        let document = Document::parse(text.as_bytes()).unwrap();
        let selected = fields.select(&document);
        selected.into_iter().map(|one| (one.path, text[one.span].to_owned())).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(path, token)| ((*path).to_owned(), (*token).to_owned())).collect()
    }

    #[test]
    fn selectors_find_tokens_and_name_their_places() {
        let text = r#"{"card":{"number": 41.10, "a/b~":{}}, "items":[{"n":1},{"n":"2","k":"x"},{}]}"#;
        assert_eq!(select(&["$.card.number"], text), pairs(&[("/card/number", "41.10")]));
        assert_eq!(select(&["$.card['a/b~']"], text), pairs(&[("/card/a~1b~0", "{}")]));
        assert_eq!(
            select(&["$.items[*].n", "$.missing"], text),
            pairs(&[("/items/*/n", "1"), ("/items/*/n", "\"2\"")])
        );
        assert_eq!(
            select(&["$.items[?@.k=='x'].n", "$..k"], text),
            pairs(&[("/items/*/n", "\"2\""), ("/items/*/k", "\"x\"")])
        );
        assert_eq!(select(&["$"], "7"), pairs(&[("", "7")]));
    }

    #[test]
    fn what_is_inside_a_selected_value_or_selected_twice_counts_once() {
        let text = r#"{"a":{"b":{"c":1}},"d":2}"#;
        assert_eq!(
            select(&["$.a.b.c", "$.a", "$.a", "$..c", "$.d"], text),
            pairs(&[("/a", r#"{"b":{"c":1}}"#), ("/d", "2")])
        );
    }

    #[test]
    fn selectors_that_are_none_are_told() {
        let error = fields(&["card.number"]).unwrap_err();
        assert!(error.contains("card.number") && error.contains("RFC 9535"), "{error}");
    }
}
