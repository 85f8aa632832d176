//! Request fields with bounded memory use, for `#[serde(deserialize_with = "...")]`.
//!
//! A limit on the body is not enough: three bytes `"",` of a body become 24 bytes of a list, and an
//! error that repeats a string of 50 MiB is larger than the string.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::raw::{RawJson, RawObject, kind};

/// Most elements of a list, and members of a map, in a request.
pub const ELEMENTS: usize = 4096;
/// The same for lists of which a request may have thousands. One more than the largest limit of such a
/// list, whose own check then names the field.
pub const FEW: usize = 101;
const SHORT: usize = 4096;

/// A short value of any type: a number, a flag.
pub fn short<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    read(&raw, SHORT).map_err(D::Error::custom)
}

/// Reads a value whose text has at most `most` bytes. The error is meant for clients and is never
/// longer than the value.
pub fn read<T: DeserializeOwned>(raw: &RawValue, most: usize) -> Result<T, String> {
    let text = raw.get();
    if text.len() > most {
        return Err(format!("{} of {} bytes is too long: at most {most} bytes are allowed", kind(text), text.len()));
    }
    serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        // The position is relative to the value, so it is removed.
        text.split(" at line ").next().unwrap_or(&text).to_owned()
    })
}

/// A list of at most [`ELEMENTS`], or null.
pub fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    deserializer.deserialize_option(List::<T, ELEMENTS>(PhantomData))
}

/// A list of at most [`FEW`], or null.
pub fn few<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    deserializer.deserialize_option(List::<T, FEW>(PhantomData))
}

struct List<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
    type Value = Option<Vec<T>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }
    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Err(not(&self, text))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() == MOST {
                return Err(A::Error::custom(format!("a list has at most {MOST} elements")));
            }
            list.push(element);
        }
        Ok(Some(list))
    }
}

/// A map of at most [`ELEMENTS`]. Null becomes an empty map.
pub fn map<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error> {
    deserializer.deserialize_any(Members(PhantomData))
}

/// The same, with the members in their original order.
pub fn raw_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RawObject, D::Error> {
    deserializer.deserialize_any(RawMembers)
}

struct RawMembers;

impl<'de> Visitor<'de> for RawMembers {
    type Value = RawObject;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Err(not(&self, text))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut object = RawObject::default();
        while let Some((name, value)) = members.next_entry::<String, RawJson>()? {
            object.set(&name, value);
            if object.len() > RawObject::MEMBERS {
                return Err(A::Error::custom(format!("a map has at most {} members", RawObject::MEMBERS)));
            }
        }
        Ok(object)
    }
}

/// The same, but an absent map differs from an empty one.
pub fn some_map<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, T>>, D::Error> {
    deserializer.deserialize_option(SomeMap(PhantomData))
}

struct SomeMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for SomeMap<T> {
    type Value = Option<BTreeMap<String, T>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }
    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(Members(PhantomData)).map(Some)
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = BTreeMap<String, T>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Err(not(&self, text))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, value)) = members.next_entry()? {
            if map.len() == ELEMENTS && !map.contains_key(&name) {
                return Err(A::Error::custom(format!("a map has at most {ELEMENTS} members")));
            }
            map.insert(name, value);
        }
        Ok(map)
    }
}

/// "invalid type", without the text if it is long.
fn not<E: Error>(expected: &dyn serde::de::Expected, text: &str) -> E {
    if text.len() > SHORT {
        return E::custom(format!("a string of {} bytes is not {expected}", text.len()));
    }
    E::invalid_type(serde::de::Unexpected::Str(text), expected)
}

/// The first `MOST` elements of a list of objects, and the total count. An error can name the true
/// count without memory for all elements.
#[derive(Clone, Debug)]
pub struct Counted<T, const MOST: usize> {
    pub first: Vec<T>,
    pub count: usize,
}

impl<T, const MOST: usize> Default for Counted<T, MOST> {
    fn default() -> Self {
        Self { first: Vec::new(), count: 0 }
    }
}

/// For the default in schemas: the kept elements.
impl<T: Serialize, const MOST: usize> Serialize for Counted<T, MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.first.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Counted<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Count(PhantomData))
    }
}

struct Count<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Count<T, MOST> {
    type Value = Counted<T, MOST>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Err(not(&self, text))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        let mut count = 0;
        loop {
            let more = if count < MOST {
                let element = elements.next_element::<Object<T>>()?;
                element.map(|Object(element)| first.push(element)).is_some()
            } else {
                elements.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                return Ok(Counted { first, count });
            }
            count += 1;
        }
    }
}

/// An element that must be an object. For any other value the error names only its kind.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Only<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Only<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
                Err(not(&self, text))
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(members))
            }
        }
        deserializer.deserialize_any(Only(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "short")]
        flag: bool,
        #[serde(default, deserialize_with = "list")]
        list: Option<Vec<String>>,
        #[serde(default, deserialize_with = "map")]
        map: BTreeMap<String, String>,
        #[serde(default, deserialize_with = "some_map")]
        some: Option<BTreeMap<String, String>>,
        #[serde(default)]
        files: Counted<Element, 3>,
    }

    #[derive(Debug, Deserialize)]
    struct Element {
        path: String,
    }

    #[test]
    fn what_is_within_the_bounds_is_read() {
        let body: Body = serde_json::from_str(
            r#"{"flag":true,"list":["a"],"map":{"a":"b"},"some":{},"files":[{"path":"1"},{"path":"2"},{"path":"3"},0,"x"]}"#,
        )
        .expect("within");
        assert!(body.flag && body.list == Some(vec!["a".to_owned()]) && body.map["a"] == "b" && body.some.is_some());
        assert_eq!((body.files.first[2].path.as_str(), body.files.first.len(), body.files.count), ("3", 3, 5));
        let body: Body = serde_json::from_str(r#"{"list":null,"some":null}"#).expect("within");
        assert!(!body.flag && body.list.is_none() && body.some.is_none() && body.map.is_empty());
    }

    #[test]
    fn what_is_not_is_refused_in_few_words() {
        let long = "\u{7f}".repeat(1 << 20);
        let many = vec!["\"\""; ELEMENTS + 1].join(",");
        let keys: String = (0..=ELEMENTS).map(|n| format!("\"{n}\":\"\",")).collect();
        for (body, text) in [
            (format!(r#"{{"flag":"{long}"}}"#), "a string of 1048578 bytes is too long"),
            (r#"{"flag":"x"}"#.to_owned(), "invalid type: string \"x\", expected a boolean"),
            (format!(r#"{{"list":"{long}"}}"#), "a string of 1048576 bytes is not a sequence"),
            (r#"{"list":"x"}"#.to_owned(), "invalid type: string \"x\", expected a sequence"),
            (format!(r#"{{"list":[{many}]}}"#), "a list has at most 4096 elements"),
            (format!(r#"{{"map":{{{}}}}}"#, keys.trim_end_matches(',')), "a map has at most 4096 members"),
            (format!(r#"{{"map":"{long}"}}"#), "a string of 1048576 bytes is not a map"),
            (format!(r#"{{"some":"{long}"}}"#), "a string of 1048576 bytes is not a map"),
            (format!(r#"{{"files":"{long}"}}"#), "a string of 1048576 bytes is not a sequence"),
            (format!(r#"{{"files":["{long}"]}}"#), "a string of 1048576 bytes is not an object"),
            (r#"{"files":[{"path":1}]}"#.to_owned(), "invalid type: integer `1`, expected a string"),
            (r#"{"files":[{}]}"#.to_owned(), "missing field `path`"),
        ] {
            let error = serde_json::from_str::<Body>(&body).expect_err(text).to_string();
            assert!(error.starts_with(text) && error.len() < 200, "{error}");
        }
    }
}
