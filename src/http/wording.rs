//! Errors of a body in the client's terms. The parser's own texts name Rust types ("expected
//! struct", "i64"); this module translates them into terms of JSON.

use serde::de::DeserializeOwned;

/// Maximum bytes of an error text, which may repeat a string of the body.
const LONGEST: usize = 1000;
/// Byte order marks, and their names in errors.
const MARKS: [(&[u8], &str); 3] =
    [(b"\xef\xbb\xbf", "a byte order mark"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")];
/// Types that the parser expected, and their names in JSON.
const EXPECTED: [(&str, &str); 22] = [
    ("a map", "an object"),
    ("map", "an object"),
    ("a sequence", "an array"),
    ("a boolean", "true or false"),
    ("a formatted UUID string", "a UUID"),
    ("i8", "a whole number"),
    ("i16", "a whole number"),
    ("i32", "a whole number"),
    ("i64", "a whole number"),
    ("isize", "a whole number"),
    ("u8", "a whole number from 0 to 255"),
    ("u16", "a whole number from 0 to 65535"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number, 0 or more"),
    ("usize", "a whole number, 0 or more"),
    ("f32", "a number"),
    ("f64", "a number"),
    ("unit", "null"),
    ("a borrowed string", "a string"),
    ("option", "another type"),
    ("any valid JSON value", "a JSON value"),
    ("a character", "a string of one character"),
];
/// The parser's syntax errors, and their texts for clients.
const SYNTAX: [(&str, &str); 19] = [
    ("EOF while parsing a list", "it ends within an array"),
    ("EOF while parsing an object", "it ends within an object"),
    ("EOF while parsing a string", "it ends within a string"),
    ("EOF while parsing a value", "it ends where a value should be"),
    ("expected `:`", "a colon is missing"),
    ("expected `,` or `]`", "a comma or a ] is missing"),
    ("expected `,` or `}`", "a comma or a } is missing"),
    ("expected ident", "a word that is not true, false or null"),
    ("expected value", "a value is missing, or a string is not in double quotes"),
    ("key must be a string", "a name is not a string in double quotes"),
    ("trailing comma", "there is a comma before a closing bracket"),
    ("trailing characters", "there is text after its end"),
    ("invalid escape", "an escape that JSON does not have"),
    ("invalid number", "a number that is not written as JSON writes numbers"),
    (
        "control character (\\u0000-\\u001F) found while parsing a string",
        "a control character in a string is not escaped",
    ),
    ("lone leading surrogate in hex escape", "an escape in a string is half of a surrogate pair"),
    ("unexpected end of hex escape", "an escape in a string is half of a surrogate pair"),
    ("invalid unicode code point", "a string is not UTF-8"),
    ("recursion limit exceeded", "it is nested more than 127 levels deep"),
];

/// Reads an object.
///
/// # Errors
/// What is wrong with the body; names the member.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if let Some(what) = other_than_an_object(bytes) {
        return Err(format!("the request body must be a JSON object, not {what}"));
    }
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let (path, error) = match serde_path_to_error::deserialize(&mut parser) {
        Ok(value) => match parser.end() {
            Ok(()) => return Ok(value),
            Err(error) => (String::new(), error),
        },
        Err(error) => {
            let path = error.path().to_string();
            (if path == "." { String::new() } else { path }, error.into_inner())
        }
    };
    Err(shortened(explain(bytes, &path, &error)))
}

/// serde also reads a struct from an array; the API accepts only objects.
fn other_than_an_object(bytes: &[u8]) -> Option<&'static str> {
    let what = match bytes.iter().find(|b| !b.is_ascii_whitespace())? {
        b'[' => "an array",
        b'"' => "a string",
        b'0'..=b'9' | b'-' => "a number",
        b't' | b'f' => "true or false",
        b'n' => "null",
        _ => return None,
    };
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok().then_some(what)
}

fn explain(bytes: &[u8], path: &str, error: &serde_json::Error) -> String {
    if let Some(why) = encoding(bytes) {
        return format!("the request body is not valid JSON: {why}");
    }
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    if error.is_data() {
        return data(path, text);
    }
    let known = SYNTAX.iter().find(|(parser, _)| *parser == text).map(|(_, words)| *words);
    let what = known.unwrap_or("it cannot be read");
    format!("the request body is not valid JSON: {what}, at line {} column {}", error.line(), error.column())
}

/// Why the bytes are not UTF-8.
fn encoding(bytes: &[u8]) -> Option<String> {
    if let Some((_, mark)) = MARKS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        return Some(format!("it begins with {mark}; send UTF-8 without a byte order mark"));
    }
    // ASCII with two bytes per character.
    if matches!(bytes, [0, b'{' | b'[', ..] | [b'{' | b'[', 0, ..]) {
        return Some("it looks like UTF-16; send UTF-8".to_owned());
    }
    let why = std::str::from_utf8(bytes).err()?;
    Some(format!("byte {} is not UTF-8; send UTF-8", why.valid_up_to() + 1))
}

/// Errors in valid JSON: a value has the wrong type or form.
fn data(path: &str, text: &str) -> String {
    let named = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let subject = if path.is_empty() { "the request body" } else { path };
    if let Some(name) = quoted(text, "missing field ") {
        return format!("{} is required", named(name));
    }
    if let Some(name) = quoted(text, "duplicate field ") {
        return format!("{subject}: duplicate field \"{name}\"; each member is given once");
    }
    if let Some((found, expected)) =
        text.strip_prefix("unknown variant ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        let words = expected.trim_start_matches("one of ").replace('`', "").replace(" or ", ", ");
        return format!("{subject} must be one of {words}, not \"{}\"", found.trim_matches('`'));
    }
    if text.starts_with("data did not match any variant") {
        return format!("{subject} has none of the forms that /docs describes");
    }
    for kind in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some((found, expected)) = text.strip_prefix(kind).and_then(|rest| rest.rsplit_once(", expected ")) {
            return format!("{subject} must be {}, not {}", expectation(expected), value(found));
        }
    }
    // Texts of ashd's own types.
    if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") }
}

fn quoted<'a>(text: &'a str, kind: &str) -> Option<&'a str> {
    text.strip_prefix(kind)?.strip_prefix('`')?.strip_suffix('`')
}

fn expectation(expected: &str) -> &str {
    if let Some((_, words)) = EXPECTED.iter().find(|(parser, _)| *parser == expected) {
        return words;
    }
    let type_of_ours = ["struct ", "enum ", "variant ", "newtype ", "tuple ", "identifier"];
    match type_of_ours.iter().position(|kind| expected.starts_with(kind)) {
        Some(0) => "an object",
        Some(_) => "of the form that /docs describes",
        None => expected,
    }
}

/// What was found, such as ``integer `5` `` or `map`.
fn value(found: &str) -> String {
    let inner = |kind: &str| found.strip_prefix(kind).and_then(|rest| rest.strip_prefix('`')?.strip_suffix('`'));
    if let Some(number) = inner("integer ").or_else(|| inner("floating point ")) {
        return format!("the number {number}");
    }
    if let Some(truth) = inner("boolean ") {
        return truth.to_owned();
    }
    match found {
        "map" => "an object".to_owned(),
        "sequence" => "an array".to_owned(),
        "null" | "unit value" | "Option value" => "null".to_owned(),
        "number" => "a number of that size".to_owned(),
        _ if found.starts_with("string ") => format!("the {found}"),
        _ if found.bytes().all(|b| b.is_ascii_digit()) => format!("one of length {found}"),
        _ => "this".to_owned(),
    }
}

fn shortened(text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain("...".chars()).collect()
}

#[cfg(test)]
#[path = "wording_tests.rs"]
mod tests;
