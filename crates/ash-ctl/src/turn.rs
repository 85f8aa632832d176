//! Streams in the terminal: one turn, a conversation, or a session's stream.

use std::io::{BufRead, IsTerminal, Write};

use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};

use super::CtlError;
use super::client::Client;
use super::output::Output;
use super::render::{Renderer, printable};
use super::sse::{Frame, Parser};

/// Sends a message and shows the turn.
///
/// # Errors
/// [`CtlError::Turn`] when the turn failed or the stream ended before `done`.
pub async fn send(client: &Client, out: &Output, session: &str, text: &str) -> Result<(), CtlError> {
    let body = json!({ "content": text, "includePartialMessages": true });
    show(client, out, Method::POST, &format!("{session}/messages"), Some(&body), true).await
}

/// Follows the session's stream until it ends or the program does.
pub async fn tail(client: &Client, out: &Output, session: &str, after: Option<&str>) -> Result<(), CtlError> {
    let mut path = format!("{session}/stream?includePartialMessages=true");
    if let Some(id) = after {
        path.push_str(&format!("&after={}", super::client::encode(id, false)));
    }
    show(client, out, Method::GET, &path, None, false).await
}

/// Sends each line of standard input as a message. Reports a failed turn and continues.
pub async fn chat(client: &Client, out: &Output, session: &str) -> Result<(), CtlError> {
    let prompt = std::io::stdin().is_terminal();
    loop {
        if prompt {
            eprint!("you> ");
            std::io::stderr().flush().map_err(CtlError::Stdout)?;
        }
        let read = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map(|n| (n, line))
        });
        let (n, line) = read
            .await
            .map_err(|e| CtlError::Usage(format!("standard input: {e}")))?
            .map_err(|e| CtlError::File { path: "standard input".to_owned(), source: e })?;
        if n == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        match send(client, out, session, line.trim_end()).await {
            Err(error @ CtlError::Turn(_)) => eprintln!("ashctl: {}", printable(&error.to_string())),
            other => other?,
        }
    }
}

async fn show(
    client: &Client,
    out: &Output,
    method: Method,
    path: &str,
    body: Option<&Value>,
    one_turn: bool,
) -> Result<(), CtlError> {
    let mut stream = client.open(method, path, body).await?.into_body();
    let mut parser = Parser::default();
    let mut view = View { out, renderer: Renderer::default(), failure: None, done: false };
    view.renderer.colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    while let Some(piece) = stream.frame().await {
        let piece = piece.map_err(|e| CtlError::Turn(format!("the connection was lost during the stream: {e}")))?;
        let Ok(bytes) = piece.into_data() else { continue };
        for frame in parser.push(&bytes).map_err(CtlError::Answer)? {
            view.frame(&frame)?;
        }
    }
    view.finish(one_turn)
}

struct View<'a> {
    out: &'a Output,
    renderer: Renderer,
    failure: Option<String>,
    done: bool,
}

impl View<'_> {
    fn frame(&mut self, frame: &Frame) -> Result<(), CtlError> {
        let data: Value = serde_json::from_str(&frame.data)
            .map_err(|e| CtlError::Answer(format!("the data of \"{}\" is not JSON: {e}", frame.event)))?;
        match frame.event.as_str() {
            "error" => self.failure = Some(super::output::cell(&data["error"])),
            "done" => self.done = true,
            // A turn can end regularly and still have failed (claude's errors: no credit, too long,
            // refused).
            "message" if data["type"] == "result" && data["is_error"] == true => {
                self.failure = Some(reason(&data));
            }
            _ => {}
        }
        if self.out.json() {
            let line = json!({ "id": frame.id, "event": frame.event, "data": data });
            return self.out.line(&line.to_string());
        }
        let text = self.renderer.frame(&frame.event, &data);
        if text.is_empty() { Ok(()) } else { self.out.raw(text.as_bytes()) }
    }

    fn finish(mut self, one_turn: bool) -> Result<(), CtlError> {
        let rest = self.renderer.end_line();
        if !self.out.json() && !rest.is_empty() {
            self.out.raw(rest.as_bytes())?;
        }
        match self.failure {
            Some(error) if one_turn => Err(CtlError::Turn(error)),
            None if one_turn && !self.done => Err(CtlError::Turn("the stream ended before the turn did".to_owned())),
            _ => Ok(()),
        }
    }
}

/// Why a result is an error, in claude's words.
fn reason(result: &Value) -> String {
    let text = result["result"].as_str().or_else(|| result["errors"][0].as_str());
    super::render::printable(text.or_else(|| result["subtype"].as_str()).unwrap_or("no reason given"))
}
