//! Checks of cases, runs and judgements. Parsed once into the types of the store; errors name the
//! field.

use super::super::error::ApiError;
use super::wire::{CaseIn, ImportIn, JudgementIn, MessageIn, RunIn};
use crate::sessions::claude::earlier_transcript::{Said, Speaker};
use crate::store::{CaseFields, NewRun};
use ash_model::RawJson;
use ash_model::bounded::Counted;

pub const MAX_CASES: usize = 1000;
/// Messages before the question.
pub const MAX_MESSAGES: usize = 100;
/// Bytes of a question, and of a reference answer.
const TEXT: usize = 64 << 10;
/// Topics of one list, and bytes of each.
const TOPICS: (usize, usize) = (100, 1000);
/// Tags of a case, and bytes of each; also the number of categories and of tags that a run may
/// name.
const TAGS: (usize, usize) = (50, 200);
const CATEGORY: usize = 200;
const HISTORY: usize = 256 << 10;
const NOTES: usize = 16 << 10;

fn refused<T>(text: String) -> Result<T, ApiError> {
    Err(ApiError::bad_request(text))
}

/// Checks a new case. `at` precedes the field names in errors.
pub fn new_case(body: CaseIn, at: &str) -> Result<CaseFields, ApiError> {
    if body.question.as_ref().is_none_or(Option::is_none) {
        return refused(format!("{at}question is required: 1 to {TEXT} bytes"));
    }
    let fields = CaseIn { is_active: Some(Some(body.is_active.flatten().unwrap_or(true))), ..body };
    case(fields, at)
}

pub fn patch(body: CaseIn) -> Result<CaseFields, ApiError> {
    if body.question == Some(None) {
        return refused(format!("question cannot be cleared: a text of 1 to {TEXT} bytes"));
    }
    if body.is_active == Some(None) {
        return refused("isActive must be true or false, not null".to_owned());
    }
    case(body, "")
}

fn case(body: CaseIn, at: &str) -> Result<CaseFields, ApiError> {
    let question = body.question.flatten();
    if question.as_ref().is_some_and(|text| text.trim().is_empty() || text.len() > TEXT) {
        return refused(format!("{at}question must have 1 to {TEXT} bytes"));
    }
    if let Some(Some(text)) = &body.reference_answer
        && text.len() > TEXT
    {
        return refused(format!("{at}referenceAnswer has {} bytes; the limit is {TEXT}", text.len()));
    }
    if let Some(Some(text)) = &body.category
        && (text.trim().is_empty() || text.len() > CATEGORY)
    {
        return refused(format!("{at}category must have 1 to {CATEGORY} bytes"));
    }
    Ok(CaseFields {
        question,
        expected_topics: words(body.expected_topics, &format!("{at}expectedTopics"), TOPICS)?,
        expected_not_topics: words(body.expected_not_topics, &format!("{at}expectedNotTopics"), TOPICS)?,
        reference_answer: body.reference_answer,
        category: body.category,
        tags: words(body.tags, &format!("{at}tags"), TAGS)?,
        chat_history: history(body.chat_history, &format!("{at}chatHistory"))?,
        active: body.is_active.flatten(),
    })
}

type Given<T> = Option<Option<T>>;

fn words(list: Given<Vec<String>>, name: &str, bounds: (usize, usize)) -> Result<Given<RawJson>, ApiError> {
    let Some(Some(list)) = list else { return Ok(list.map(|_| None)) };
    check_words(&list, name, bounds)?;
    Ok(Some(Some(RawJson::of(&list))))
}

fn check_words(list: &[String], name: &str, (most, bytes): (usize, usize)) -> Result<(), ApiError> {
    if list.len() > most {
        return refused(format!("{name} has {} elements; the limit is {most}", list.len()));
    }
    match list.iter().position(|word| word.trim().is_empty() || word.len() > bytes) {
        Some(at) => refused(format!("{name}[{at}] must have 1 to {bytes} bytes")),
        None => Ok(()),
    }
}

fn history(list: Given<Counted<MessageIn, MAX_MESSAGES>>, name: &str) -> Result<Given<RawJson>, ApiError> {
    let Some(Some(list)) = list else { return Ok(list.map(|_| None)) };
    if list.count > MAX_MESSAGES {
        return refused(format!("{name} has {} messages; the limit is {MAX_MESSAGES}", list.count));
    }
    let (mut said, mut bytes) = (Vec::with_capacity(list.first.len()), 0);
    for (at, message) in list.first.into_iter().enumerate() {
        let role = match message.role.as_str() {
            "user" => Speaker::User,
            "assistant" => Speaker::Assistant,
            _ => return refused(format!("{name}[{at}].role must be user or assistant")),
        };
        if at == 0 && role == Speaker::Assistant {
            return refused(format!("{name}[0].role must be user: a conversation starts with the user"));
        }
        if message.content.trim().is_empty() {
            return refused(format!("{name}[{at}].content is required: a text"));
        }
        bytes += message.content.len();
        said.push(Said { role, content: message.content });
    }
    if bytes > HISTORY {
        return refused(format!("{name} has {bytes} bytes of content; the limit is {HISTORY}"));
    }
    Ok(Some(Some(RawJson::of(&said))))
}

/// Checks the cases of an import: all or none.
pub fn import(body: ImportIn) -> Result<Vec<CaseFields>, ApiError> {
    if body.cases.count == 0 {
        return refused(format!("cases is required: a list of 1 to {MAX_CASES} cases"));
    }
    if body.cases.count > MAX_CASES {
        return refused(format!("cases has {} elements; the limit is {MAX_CASES}", body.cases.count));
    }
    let cases = body.cases.first.into_iter().enumerate();
    cases.map(|(n, case)| new_case(case, &format!("cases[{n}]."))).collect()
}

pub fn run(body: RunIn) -> Result<NewRun, ApiError> {
    if let Some(number) = body.version_number.filter(|number| *number < 1) {
        return refused(format!("versionNumber must be 1 or more, not {number}"));
    }
    let (categories, tags) = (body.categories.unwrap_or_default(), body.tags.unwrap_or_default());
    check_words(&categories, "categories", (TAGS.0, CATEGORY))?;
    check_words(&tags, "tags", TAGS)?;
    Ok(NewRun { version: body.version_number, categories, tags })
}

pub fn judgement(body: JudgementIn) -> Result<(Given<i64>, Given<String>), ApiError> {
    if let Some(Some(score)) = body.human_score
        && !(1..=5).contains(&score)
    {
        return refused(format!("humanScore must be an integer, from 1 to 5, not {score}"));
    }
    if let Some(Some(notes)) = &body.human_notes
        && notes.len() > NOTES
    {
        return refused(format!("humanNotes has {} bytes; the limit is {NOTES}", notes.len()));
    }
    Ok((body.human_score, body.human_notes))
}

#[cfg(test)]
mod tests {
    use super::super::super::body::parse;
    use super::*;

    #[test]
    fn errors_name_the_field() {
        let long = |n: usize| "x".repeat(n);
        let many = |n: usize, one: &str| vec![one; n].join(",");
        for (body, text) in [
            ("{}".to_owned(), "question is required: 1 to 65536 bytes"),
            (r#"{"question":null}"#.to_owned(), "question is required: 1 to 65536 bytes"),
            (r#"{"question":" "}"#.to_owned(), "question must have 1 to 65536 bytes"),
            (format!(r#"{{"question":"{}"}}"#, long(65_537)), "question must have 1 to 65536 bytes"),
            (
                format!(r#"{{"question":"q","expectedTopics":[{}]}}"#, many(101, "\"t\"")),
                "expectedTopics has 101 elements; the limit is 100",
            ),
            (
                r#"{"question":"q","expectedNotTopics":["a",""]}"#.to_owned(),
                "expectedNotTopics[1] must have 1 to 1000 bytes",
            ),
            (format!(r#"{{"question":"q","tags":["{}"]}}"#, long(201)), "tags[0] must have 1 to 200 bytes"),
            (r#"{"question":"q","category":""}"#.to_owned(), "category must have 1 to 200 bytes"),
            (
                format!(r#"{{"question":"q","referenceAnswer":"{}"}}"#, long(65_537)),
                "referenceAnswer has 65537 bytes; the limit is 65536",
            ),
            (
                r#"{"question":"q","chatHistory":[{"role":"system","content":"x"}]}"#.to_owned(),
                "chatHistory[0].role must be user or assistant",
            ),
            (
                r#"{"question":"q","chatHistory":[{"role":"assistant","content":"x"}]}"#.to_owned(),
                "chatHistory[0].role must be user: a conversation starts with the user",
            ),
            (
                r#"{"question":"q","chatHistory":[{"role":"user"}]}"#.to_owned(),
                "chatHistory[0].content is required: a text",
            ),
            (
                format!(r#"{{"question":"q","chatHistory":[{{"role":"user","content":"{}"}}]}}"#, long(262_145)),
                "chatHistory has 262145 bytes of content; the limit is 262144",
            ),
            (
                format!(r#"{{"question":"q","chatHistory":[{}]}}"#, many(101, r#"{"role":"user","content":"x"}"#)),
                "chatHistory has 101 messages; the limit is 100",
            ),
        ] {
            let error = new_case(parse(body.as_bytes()).unwrap(), "").unwrap_err();
            assert_eq!(error.text(), text, "{body:.100}");
            let import_body = format!(r#"{{"cases":[{{"question":"q"}},{body}]}}"#);
            let error = import(parse(import_body.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.text(), format!("cases[1].{text}"), "{body:.100}");
        }
        let cases = format!(r#"{{"cases":[{}]}}"#, many(1001, r#"{"question":"q"}"#));
        assert_eq!(
            import(parse(cases.as_bytes()).unwrap()).unwrap_err().text(),
            "cases has 1001 elements; the limit is 1000"
        );
        for body in ["{}", r#"{"cases":[]}"#] {
            let error = import(parse(body.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.text(), "cases is required: a list of 1 to 1000 cases", "{body}");
        }
        let error = parse::<ImportIn>(br#"{"cases":[{"question":"q"},{"question":7}]}"#).unwrap_err();
        assert!(error.text().contains("question"), "{}", error.text());
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let of = |body: &str| patch(parse(body.as_bytes()).unwrap());
        for (body, text) in [
            (r#"{"question":null}"#, "question cannot be cleared: a text of 1 to 65536 bytes"),
            (r#"{"isActive":null}"#, "isActive must be true or false, not null"),
            (r#"{"question":""}"#, "question must have 1 to 65536 bytes"),
        ] {
            assert_eq!(of(body).unwrap_err().text(), text, "{body}");
        }
        let fields = of(r#"{"category":null,"tags":null,"chatHistory":null,"expectedTopics":[]}"#).unwrap();
        assert_eq!((fields.question, fields.active, fields.category), (None, None, Some(None)));
        assert!(fields.tags == Some(None) && fields.chat_history == Some(None) && fields.expected_not_topics.is_none());
        assert_eq!(fields.expected_topics, Some(Some(RawJson::parse("[]").unwrap())));
    }

    #[test]
    fn runs_and_judgements() {
        let error = run(parse(br#"{"versionNumber":0}"#).unwrap()).unwrap_err();
        assert_eq!(error.text(), "versionNumber must be 1 or more, not 0");
        let error = run(parse(br#"{"tags":["a",""]}"#).unwrap()).unwrap_err();
        assert_eq!(error.text(), "tags[1] must have 1 to 200 bytes");
        let new = run(parse(br#"{"versionNumber":null,"categories":["a"]}"#).unwrap()).unwrap();
        assert_eq!((new.version, new.categories, new.tags.len()), (None, vec!["a".to_owned()], 0));
        for score in ["0", "6", "-1"] {
            let body = format!(r#"{{"humanScore":{score}}}"#);
            let error = judgement(parse(body.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.text(), format!("humanScore must be an integer, from 1 to 5, not {score}"));
        }
        assert!(parse::<JudgementIn>(br#"{"humanScore":1.5}"#).is_err());
        let given = judgement(parse(br#"{"humanScore":null,"humanNotes":"n"}"#).unwrap()).unwrap();
        assert_eq!(given, (Some(None), Some(Some("n".to_owned()))));
    }
}
