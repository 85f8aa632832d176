//! File names as text. On Linux a name is bytes; in JSON it is a string.
//!
//! ```text
//!   bytes  "caf\xe9"  <-->  text "caf%E9"         bytes that are not UTF-8 are percent-encoded
//!   bytes  "caf%E9"   <-->  text "caf%25E9"       a name that looks encoded gets its % encoded
//!   bytes  "100%"     <-->  text "100%"           every other name stays as it is
//! ```
//!
//! The mapping is one-to-one for each component of a path.
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Most levels of encoding that are recognized. A name with more is used unchanged.
const NESTED: usize = 8;

pub fn shown(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    match std::str::from_utf8(bytes) {
        // The usual case: nothing to encode.
        Ok(text) if !text.contains('%') => text.to_owned(),
        _ => bytes.split(|byte| *byte == b'/').map(encoded).collect::<Vec<_>>().join("/"),
    }
}

/// The path that a text stands for.
pub fn bytes_of(text: &str) -> Vec<u8> {
    if !text.contains('%') {
        return text.as_bytes().to_vec();
    }
    text.split('/').map(decoded).collect::<Vec<_>>().join(&b'/')
}

/// Decodes `%XX`, as in a URL. Anything that is not a valid escape stays.
pub fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let digits = digits.filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match digits.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

fn encoded(name: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(name)
        && !looks_encoded(text)
    {
        return text.to_owned();
    }
    escaped(name)
}

fn decoded(text: &str) -> Vec<u8> {
    let bytes = unescaped(text.as_bytes());
    if bytes != text.as_bytes() && encoded(&bytes) == text { bytes } else { text.as_bytes().to_vec() }
}

/// Writes every `%` and every byte that is not UTF-8 as `%XX`.
fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len() + 16);
    for chunk in name.utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Whether [`escaped`] produces `name` from another name that needs encoding.
fn looks_encoded(name: &str) -> bool {
    let mut name = name.to_owned();
    for _ in 0..NESTED {
        let bytes = unescaped(name.as_bytes());
        if bytes == name.as_bytes() || escaped(&bytes) != name {
            return false;
        }
        match String::from_utf8(bytes) {
            Ok(inner) => name = inner,
            Err(_) => return true,
        }
    }
    false
}

pub fn shown_name(name: &OsStr) -> String {
    encoded(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bytes: &[u8]) -> &Path {
        Path::new(OsStr::from_bytes(bytes))
    }

    #[test]
    fn what_is_not_utf8_is_encoded_and_other_names_are_their_own_text() {
        for (bytes, text) in [
            (&b"caf\xe9"[..], "caf%E9"),
            (b"dir\xff/a", "dir%FF/a"),
            (b"dir\xff/100%", "dir%FF/100%"),
            (b"caf%E9", "caf%25E9"),
            (b"caf%25E9", "caf%2525E9"),
            (b"50%\xe9", "50%25%E9"),
            (b"caf%e9", "caf%e9"),
            (b"a%20b", "a%20b"),
            (b"100%", "100%"),
            (b"%25", "%25"),
            (b"%C3%BC", "%C3%BC"),
            ("grüß".as_bytes(), "grüß"),
        ] {
            assert_eq!(shown(path(bytes)), text);
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_name_is_found_again_by_its_text(parts in proptest::collection::vec(proptest::sample::select(vec!["%", "25", "E9", "%E9", "%25", "a", "\u{e9}", "C3", "/"]), 0..8), at in 0_usize..9) {
            let mut name: Vec<u8> = parts.concat().into_bytes();
            for raw in [None, Some(0xe9), Some(0xff)] {
                if let Some(byte) = raw {
                    name.insert(at.min(name.len()), byte);
                }
                proptest::prop_assert_eq!(bytes_of(&shown(path(&name))), name.clone());
            }
        }
    }
}
