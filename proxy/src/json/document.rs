//! A JSON document with the place of every value in it (RFC 8259).
//!
//! serde_json judges the grammar. It does not tell where a value stands, and to pass on untouched what nobody
//! selected one has to know; so what it has found good is walked once more. On the way: names that are there twice are
//! refused (readers differ in which one counts), and a [`Value`] is built for the selectors.

use serde::de::IgnoredAny;
use serde_json::{Map, Number, Value};
use std::ops::Range;

/// Arrays and objects inside each other.
const DEPTH_MAX: usize = 128;
/// Values of one document, and their depths summed up: while a document is looked at, each takes some hundred bytes, and
/// each that is selected some 30 bytes for every level above it.
const VALUES_MAX: usize = 500_000;
const DEPTHS_MAX: usize = 4_000_000;

/// Why a text is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("it is no JSON (RFC 8259)")]
    Grammar,
    #[error("a name is there twice in one object")]
    DuplicateName,
    #[error("it nests more than 128 levels")]
    Depth,
    #[error("it has more than 500,000 values, or nests too many of them too deep")]
    Values,
    #[error("a string in it is no Unicode text")]
    Text,
}

/// A parsed document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    root: Node,
}

#[derive(Debug)]
struct Node {
    span: Range<usize>,
    children: Children,
}

#[derive(Debug)]
enum Children {
    None,
    Array(Vec<Node>),
    /// Sorted by name.
    Object(Vec<(String, Node)>),
}

/// One step from a value to a value in it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

impl Document {
    /// # Errors
    /// [`Flaw`].
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Flaw> {
        serde_json::from_slice::<IgnoredAny>(text).map_err(|_| Flaw::Grammar)?;
        let mut walk = Walk { text, at: 0, values: 0, depths: 0 };
        let (root, value) = walk.value(0)?;
        Ok(Self { value, root })
    }

    /// Where the value at `path` stands.
    pub(crate) fn span<'a>(&self, path: impl IntoIterator<Item = Step<'a>>) -> Option<Range<usize>> {
        let mut node = &self.root;
        for step in path {
            node = match (step, &node.children) {
                (Step::Index(index), Children::Array(items)) => items.get(index)?,
                (Step::Name(name), Children::Object(members)) => {
                    let at = members.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
                    &members[at].1
                }
                _ => return None,
            };
        }
        Some(node.span.clone())
    }
}

/// Goes over a text whose grammar is known to be right.
struct Walk<'a> {
    text: &'a [u8],
    at: usize,
    values: usize,
    depths: usize,
}

impl Walk<'_> {
    fn peek(&self) -> Result<u8, Flaw> {
        self.text.get(self.at).copied().ok_or(Flaw::Grammar)
    }

    /// Over whitespace, to the next byte that is none.
    fn next(&mut self) -> Result<u8, Flaw> {
        while matches!(self.peek()?, b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
        self.peek()
    }

    fn value(&mut self, depth: usize) -> Result<(Node, Value), Flaw> {
        self.values += 1;
        self.depths += depth;
        if self.values > VALUES_MAX || self.depths > DEPTHS_MAX {
            return Err(Flaw::Values);
        }
        let first = self.next()?;
        let start = self.at;
        let (children, value) = match first {
            b'{' => self.object(depth)?,
            b'[' => self.array(depth)?,
            b'"' => (Children::None, Value::String(self.string()?)),
            _ => (Children::None, self.word()?),
        };
        Ok((Node { span: start..self.at, children }, value))
    }

    fn object(&mut self, depth: usize) -> Result<(Children, Value), Flaw> {
        let mut members = Vec::new();
        let mut map = Map::new();
        self.open(depth)?;
        while self.next()? != b'}' {
            if self.peek()? == b',' {
                self.at += 1;
                self.next()?;
            }
            let name = self.string()?;
            self.next()?;
            // The colon.
            self.at += 1;
            let (node, value) = self.value(depth + 1)?;
            if map.insert(name.clone(), value).is_some() {
                return Err(Flaw::DuplicateName);
            }
            members.push((name, node));
        }
        self.at += 1;
        members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok((Children::Object(members), Value::Object(map)))
    }

    fn array(&mut self, depth: usize) -> Result<(Children, Value), Flaw> {
        let (mut nodes, mut values) = (Vec::new(), Vec::new());
        self.open(depth)?;
        while self.next()? != b']' {
            if self.peek()? == b',' {
                self.at += 1;
            }
            let (node, value) = self.value(depth + 1)?;
            nodes.push(node);
            values.push(value);
        }
        self.at += 1;
        Ok((Children::Array(nodes), Value::Array(values)))
    }

    /// Over a bracket.
    fn open(&mut self, depth: usize) -> Result<(), Flaw> {
        self.at += 1;
        if depth < DEPTH_MAX { Ok(()) } else { Err(Flaw::Depth) }
    }

    fn string(&mut self) -> Result<String, Flaw> {
        let start = self.at;
        self.at += 1;
        while self.peek()? != b'"' {
            // What follows a backslash is never the end.
            self.at += if self.peek()? == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        serde_json::from_slice(&self.text[start..self.at]).map_err(|_| Flaw::Text)
    }

    /// A number, or true, false, null.
    fn word(&mut self) -> Result<Value, Flaw> {
        let start = self.at;
        while self
            .text
            .get(self.at)
            .is_some_and(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}'))
        {
            self.at += 1;
        }
        let word = std::str::from_utf8(&self.text[start..self.at]).map_err(|_| Flaw::Grammar)?;
        Ok(match word {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            // For comparisons in selectors only: the document keeps the digits. What no double can hold equals nothing.
            number => number
                .parse::<i64>()
                .map(Number::from)
                .ok()
                .or_else(|| number.parse::<u64>().map(Number::from).ok())
                .or_else(|| Number::from_f64(number.parse().ok()?))
                .map_or(Value::Null, Value::Number),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token<'a>(text: &'a str, path: &[Step<'_>]) -> &'a str {
        let document = Document::parse(text.as_bytes()).unwrap();
        &text[document.span(path.iter().copied()).unwrap()]
    }

    #[test]
    fn every_value_has_its_place() {
        let text = " { \"a\" : [ 1.50 , -0 , {\"\\u0062\": \"x\\\"]}\" } ] ,\n\"c\":\t1e999, \"\": null } ";
        assert_eq!(token(text, &[]), text.trim());
        assert_eq!(token(text, &[Step::Name("a"), Step::Index(0)]), "1.50");
        assert_eq!(token(text, &[Step::Name("a"), Step::Index(1)]), "-0");
        assert_eq!(token(text, &[Step::Name("a"), Step::Index(2), Step::Name("b")]), "\"x\\\"]}\"");
        assert_eq!(token(text, &[Step::Name("c")]), "1e999");
        assert_eq!(token(text, &[Step::Name("")]), "null");
        let document = Document::parse(text.as_bytes()).unwrap();
        for missing in [&[Step::Name("b")][..], &[Step::Index(0)], &[Step::Name("a"), Step::Index(3)]] {
            assert_eq!(document.span(missing.iter().copied()), None);
        }
        assert_eq!(token("7", &[]), "7");
    }

    #[test]
    fn what_readers_could_read_differently_is_refused() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (text, flaw) in [
            ("", Flaw::Grammar),
            ("{\"a\":1,}", Flaw::Grammar),
            ("[1,,2]", Flaw::Grammar),
            ("01", Flaw::Grammar),
            ("{} {}", Flaw::Grammar),
            ("{'a':1}", Flaw::Grammar),
            ("[1] // two", Flaw::Grammar),
            ("\u{feff}{}", Flaw::Grammar),
            ("NaN", Flaw::Grammar),
            ("{\"a\":1,\"a\":2}", Flaw::DuplicateName),
            ("{\"a\":1,\"\\u0061\":2}", Flaw::DuplicateName),
            ("[{\"a\":{\"b\":1,\"b\":1}}]", Flaw::DuplicateName),
            ("\"\\ud800\"", Flaw::Text),
            (&nested(129), Flaw::Depth),
            (&nested(100_000), Flaw::Depth),
            (&format!("[{}0]", "0,".repeat(500_000)), Flaw::Values),
            (&format!("{}{}0{}", "[".repeat(100), "0,".repeat(45_000), "]".repeat(100)), Flaw::Values),
        ] {
            let short: String = text.chars().take(40).collect();
            assert_eq!(Document::parse(text.as_bytes()).unwrap_err(), flaw, "{short}");
        }
        assert!(Document::parse(b"\"\xff\"").is_err());
        assert!(Document::parse(nested(128).as_bytes()).is_ok());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|number| Value::Number(number.into())),
            any::<f64>().prop_map(|number| Number::from_f64(number).map_or(Value::Null, Value::Number)),
            ".{0,12}".prop_map(Value::String),
        ];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::btree_map(".{0,6}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn paths(value: &Value, path: &mut Vec<String>, all: &mut Vec<(Vec<String>, Value)>) {
        all.push((path.clone(), value.clone()));
        let children: Vec<(String, &Value)> = match value {
            Value::Array(items) => items.iter().enumerate().map(|(n, item)| (n.to_string(), item)).collect(),
            Value::Object(map) => map.iter().map(|(name, item)| (name.clone(), item)).collect(),
            _ => Vec::new(),
        };
        for (name, child) in children {
            path.push(name);
            paths(child, path, all);
            path.pop();
        }
    }

    proptest! {
        #[test]
        fn spans_are_the_tokens_of_their_values(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            // As it is read: not every double comes back the same.
            let value: Value = serde_json::from_str(&text).unwrap();
            let document = Document::parse(text.as_bytes()).unwrap();
            let mut all = Vec::new();
            paths(&value, &mut Vec::new(), &mut all);
            for (path, expected) in all {
                let mut here = &value;
                let mut steps = Vec::new();
                for name in &path {
                    match here {
                        Value::Array(items) => {
                            let index = name.parse().unwrap();
                            here = &items[index];
                            steps.push(Step::Index(index));
                        }
                        _ => {
                            here = &here[name];
                            steps.push(Step::Name(name));
                        }
                    }
                }
                let token = &text[document.span(steps).unwrap()];
                prop_assert_eq!(serde_json::from_str::<Value>(token).unwrap(), expected);
            }
        }

        #[test]
        fn any_bytes_are_taken_or_refused(text in prop::collection::vec(prop::sample::select(
            b"{}[]\",:\\ 0123456789.eE+-truefalsn\n".to_vec()), 0..40))
        {
            let taken = Document::parse(&text);
            if serde_json::from_slice::<IgnoredAny>(&text).is_err() {
                prop_assert_eq!(taken.unwrap_err(), Flaw::Grammar);
            } else if let Ok(document) = taken {
                let span = document.span([]).unwrap();
                prop_assert_eq!(std::str::from_utf8(&text[span]).unwrap(), std::str::from_utf8(&text).unwrap().trim());
            }
        }
    }
}
