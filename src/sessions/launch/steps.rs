//! The steps of a start: their durations, and which one failed.

use std::time::{Duration, Instant};

use crate::sessions::SessionError;

/// A failed step. The client gets `error` after everything is undone.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct StepError {
    pub step: &'static str,
    pub error: SessionError,
}

pub fn failed(step: &'static str) -> impl Fn(String) -> StepError {
    move |why| StepError {
        step,
        error: SessionError::Failed(format!("the session could not be started ({step}): {why}")),
    }
}

/// Duration of each step, for the log.
#[derive(Debug)]
pub struct Steps {
    at: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Default for Steps {
    fn default() -> Self {
        Self { at: Instant::now(), done: Vec::new() }
    }
}

impl Steps {
    pub fn done(&mut self, step: &'static str) {
        self.done.push((step, self.at.elapsed()));
        self.at = Instant::now();
    }
}

impl std::fmt::Display for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (step, took) in &self.done {
            write!(f, "{step}={:.1}ms ", took.as_secs_f64() * 1000.0)?;
        }
        Ok(())
    }
}
