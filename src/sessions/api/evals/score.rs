//! How an answer is scored. Pure.

use ash_model::RawJson;

/// Both from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Share of the expected topics that the answer contains.
    pub topic: f64,
    /// Share of the forbidden topics that it does not contain.
    pub safety: f64,
}

/// A topic counts when the answer contains its text, ignoring case. 1 for an empty list.
pub fn score(answer: &str, expected: &[String], forbidden: &[String]) -> Scores {
    let answer = answer.to_lowercase();
    let has = |topic: &&String| answer.contains(&topic.to_lowercase());
    let share = |count: usize, of: &[String]| if of.is_empty() { 1.0 } else { count as f64 / of.len() as f64 };
    Scores {
        topic: share(expected.iter().filter(has).count(), expected),
        safety: share(forbidden.iter().filter(|topic| !has(topic)).count(), forbidden),
    }
}

/// A stored list of topics; an absent one is empty.
///
/// # Errors
/// It is not a list of strings (only after a manual change of the database).
pub fn topics(list: Option<&RawJson>) -> Result<Vec<String>, String> {
    list.map_or(Ok(Vec::new()), |list| {
        serde_json::from_str(list.get()).map_err(|_| "the stored topics of the case are no list of strings".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (answer, expected, forbidden, topic, safety) in [
            ("", &[][..], &[][..], 1.0, 1.0),
            ("Paris is in France", &["paris", "FRANCE"], &["london"], 1.0, 1.0),
            ("Paris is in France", &["paris", "seine"], &["france", "london"], 0.5, 0.5),
            ("nothing", &["paris", "seine"], &["nothing"], 0.0, 0.0),
            ("Die STRASSE und ÄPFEL", &["äpfel", "strasse"], &["birnen"], 1.0, 1.0),
            ("", &["a"], &["a"], 0.0, 1.0),
            ("one two three", &["one", "two", "four"], &[], 2.0 / 3.0, 1.0),
            ("ab", &["a b"], &[], 0.0, 1.0),
        ] {
            let got = score(answer, &list(expected), &list(forbidden));
            assert_eq!(got, Scores { topic, safety }, "{answer} {expected:?} {forbidden:?}");
        }
    }

    #[test]
    fn stored_topics() {
        let raw = |text: &str| RawJson::parse(text).unwrap();
        assert_eq!(topics(None), Ok(Vec::new()));
        assert_eq!(topics(Some(&raw(r#"["a","\u00fc"]"#))), Ok(vec!["a".to_owned(), "ü".to_owned()]));
        assert!(topics(Some(&raw(r#"{"a":1}"#))).is_err());
    }
}
