//! JSON that is passed on unchanged, kept as its original text.
//!
//! A parsed tree needs up to a hundred times the bytes of its text, loses the order of members, and
//! refuses what other JSON readers accept (a lone surrogate in a string, a huge number, deep
//! nesting). Raw text avoids this. Needed members are read one by one, without copies larger than
//! the text.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// One JSON value as its text. Cheap to clone. Equal when the texts are equal.
#[derive(Clone)]
pub struct RawJson(Arc<Box<RawValue>>);

impl RawJson {
    /// # Errors
    /// The text is not exactly one JSON value.
    pub fn parse(text: impl Into<String>) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text.into()).map(|raw| Self(Arc::new(raw)))
    }

    /// The JSON of a value whose `Serialize` cannot fail.
    pub fn of(value: &(impl Serialize + ?Sized)) -> Self {
        serde_json::value::to_raw_value(value).map_or_else(|_| Self::default(), |raw| Self(Arc::new(raw)))
    }

    pub fn get(&self) -> &str {
        self.0.get()
    }

    pub fn raw(&self) -> &RawValue {
        &self.0
    }

    pub fn is_null(&self) -> bool {
        self.get() == "null"
    }

    pub fn is_object(&self) -> bool {
        self.get().starts_with('{')
    }

    pub fn is_array(&self) -> bool {
        self.get().starts_with('[')
    }

    pub fn is_string(&self) -> bool {
        self.get().starts_with('"')
    }

    pub fn kind(&self) -> &'static str {
        kind(self.get())
    }

    /// The member with this name. If there are several, the last.
    pub fn member(&self, name: &str) -> Option<&RawValue> {
        let mut found = None;
        members(self.get(), |key, value| {
            if key == name {
                found = Some(value);
            }
        });
        found
    }

    /// The text on one line. JSON allows line ends only between tokens, where a space is
    /// equivalent.
    pub fn on_one_line(&self) -> Cow<'_, str> {
        on_one_line(self.get())
    }
}

impl Default for RawJson {
    fn default() -> Self {
        Self(Arc::new(RawValue::NULL.to_owned()))
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

/// Only the length: the value can be large, and a secret.
impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawJson({} bytes)", self.get().len())
    }
}

impl fmt::Display for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(Arc::new(raw)))
    }
}

impl From<serde_json::Value> for RawJson {
    fn from(value: serde_json::Value) -> Self {
        Self::of(&value)
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for RawJson {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        serde_json::Value::schema()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for RawJson {
    fn name() -> std::borrow::Cow<'static, str> {
        std::borrow::Cow::Borrowed("Json")
    }
}

/// The members of an object in order, each as its text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawObject(Vec<(String, RawJson)>);

impl RawObject {
    pub const MEMBERS: usize = 1000;

    /// `None` if the value is no object or has more than [`RawObject::MEMBERS`].
    pub fn read(json: &RawJson) -> Option<Self> {
        let mut count = 0;
        let is_object = members(json.get(), |_, _| count += 1);
        if !is_object || count > Self::MEMBERS {
            return None;
        }
        let mut object = Self::default();
        members(json.get(), |name, value| object.set(name, RawJson(Arc::new(value.to_owned()))));
        Some(object)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, name: &str) -> Option<&RawJson> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Replaces the member with this name, or appends it.
    pub fn set(&mut self, name: &str, value: RawJson) {
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawJson)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl<const N: usize> From<[(String, RawJson); N]> for RawObject {
    fn from(members: [(String, RawJson); N]) -> Self {
        let mut object = Self::default();
        members.into_iter().for_each(|(name, value)| object.set(&name, value));
        object
    }
}

impl Serialize for RawObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// "an object", "a string", ... for a JSON text.
pub fn kind(text: &str) -> &'static str {
    match text.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        _ => "a number",
    }
}

/// `json`, which must be valid, with spaces in place of line ends.
pub fn on_one_line(json: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_none() {
        return Cow::Borrowed(json);
    }
    Cow::Owned(json.replace(['\n', '\r'], " "))
}

/// The characters of a JSON string; `None` for any other value. An unpaired surrogate becomes
/// U+FFFD.
pub fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    if !raw.get().starts_with('"') {
        return None;
    }
    match serde_json::Deserializer::from_str(raw.get()).deserialize_bytes(Characters) {
        Ok(Cow::Borrowed(bytes)) => Some(String::from_utf8_lossy(bytes)),
        Ok(Cow::Owned(bytes)) => Some(Cow::Owned(repair(bytes))),
        Err(_) => None,
    }
}

/// A surrogate is three bytes ED A0..BF 80..BF, which are not UTF-8.
fn repair(mut bytes: Vec<u8>) -> String {
    loop {
        match String::from_utf8(bytes) {
            Ok(text) => return text,
            Err(wrong) => {
                let at = wrong.utf8_error().valid_up_to();
                bytes = wrong.into_bytes();
                match bytes.get_mut(at..at + 3) {
                    Some(place @ [0xED, 0xA0..=0xBF, _]) => place.copy_from_slice("\u{FFFD}".as_bytes()),
                    _ => return String::from_utf8_lossy(&bytes).into_owned(),
                }
            }
        }
    }
}

/// Calls `each` with the members of a JSON object in order, including duplicate names. Returns
/// `false` if the text is not one object; `each` may have been called before that.
pub fn members<'a>(text: &'a str, mut each: impl FnMut(&str, &'a RawValue)) -> bool {
    struct Members<'f, F> {
        each: F,
        control: &'f mut bool,
    }
    impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Members<'_, F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(name) = map.next_key_seed(Characters)? {
                let value = map.next_value()?;
                *self.control |= name.iter().any(|byte| *byte < b' ');
                (self.each)(&String::from_utf8_lossy(&name), value);
            }
            Ok(())
        }
    }
    let mut control = false;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = deserializer.deserialize_map(Members { each: &mut each, control: &mut control });
    let whole = read.is_ok() && deserializer.end().is_ok();
    // Names are read as bytes, which also accepts unescaped control characters.
    whole && (!control || serde_json::from_str::<&RawValue>(text).is_ok())
}

/// Calls `each` with the elements of a JSON array until it returns `false`. Returns `false` if the
/// text, as far as it was read, is not one array.
pub fn elements<'a>(text: &'a str, mut each: impl FnMut(&'a RawValue) -> bool) -> bool {
    struct Elements<'f, F> {
        each: F,
        stopped: &'f mut bool,
    }
    impl<'de, F: FnMut(&'de RawValue) -> bool> Visitor<'de> for Elements<'_, F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(element) = list.next_element()? {
                if !(self.each)(element) {
                    *self.stopped = true;
                    return Err(A::Error::custom("stopped"));
                }
            }
            Ok(())
        }
    }
    let mut stopped = false;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let whole = deserializer.deserialize_seq(Elements { each: &mut each, stopped: &mut stopped }).is_ok();
    stopped || (whole && deserializer.end().is_ok())
}

/// The bytes of a string: UTF-8, except for unpaired surrogates.
struct Characters;

impl<'de> DeserializeSeed<'de> for Characters {
    type Value = Cow<'de, [u8]>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for Characters {
    type Value = Cow<'de, [u8]>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(bytes))
    }
    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(bytes.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> RawJson {
        RawJson::parse(text).expect(text)
    }

    #[test]
    fn strings_of_any_content_are_read() {
        for (json, expected) in [
            (r#""a""#, Some("a")),
            (r#""a\n\"\u00e4""#, Some("a\n\"\u{e4}")),
            (r#""x\ud99cy""#, Some("x\u{FFFD}y")),
            (r#""\udc00\ud83d""#, Some("\u{FFFD}\u{FFFD}")),
            (r#""\ud83d\ude00""#, Some("\u{1F600}")),
            ("1", None),
            ("null", None),
            (r#"["a"]"#, None),
        ] {
            assert_eq!(text(raw(json).raw()).as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn members_and_elements_keep_their_order_and_their_text() {
        let mut seen = Vec::new();
        let json = r#"{"zebra": 1e999 ,"a":{"b" :[]},"zebra":"\ud99c","\ud800":0}"#;
        assert!(members(json, |name, value| seen.push(format!("{name}={}", value.get()))));
        assert_eq!(seen[..3], ["zebra=1e999", r#"a={"b" :[]}"#, r#"zebra="\ud99c""#]);
        assert_eq!(seen.len(), 4);
        assert_eq!(raw(json).member("zebra").map(RawValue::get), Some(r#""\ud99c""#), "of several the last");
        let mut seen = Vec::new();
        assert!(elements("[1, {}, \"x\"]", |value| {
            seen.push(value.get());
            seen.len() < 2
        }));
        assert_eq!(seen, ["1", "{}"]);
        for wrong in ["", "[]", "1", "{} x", r#"{"a"}"#] {
            assert!(!members(wrong, |_, _| {}), "{wrong}");
        }
        assert!(!elements("{}", |_| true));
    }

    #[test]
    fn an_object_is_changed_in_place() {
        let mut object = RawObject::read(&raw(r#"{"z":1,"a":{"y":2,"b":3},"z":"\ud99c"}"#)).expect("an object");
        object.set("a", raw("[1]"));
        object.set("new", raw("null"));
        assert_eq!(RawJson::of(&object).get(), r#"{"z":"\ud99c","a":[1],"new":null}"#);
        object.remove("z");
        assert_eq!((object.len(), object.get("z")), (2, None));
        let many: String = (0..=RawObject::MEMBERS).map(|n| format!("\"{n}\":0,")).collect();
        assert_eq!(RawObject::read(&raw(&format!("{{{}}}", many.trim_end_matches(',')))), None);
        assert_eq!(RawObject::read(&raw("[]")), None);
    }

    #[test]
    fn nesting_has_no_bound_and_needs_no_stack() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        let json = raw(&deep);
        assert_eq!(json.member("a").map(|a| a.get().len()), Some(2_000_000));
        assert_eq!(serde_json::to_string(&json).expect("JSON"), deep);
    }

    #[test]
    fn line_ends_between_tokens_become_spaces() {
        assert_eq!(raw("{\n\"a\\n\":\r\n1}").on_one_line(), "{ \"a\\n\":  1}");
    }
}
