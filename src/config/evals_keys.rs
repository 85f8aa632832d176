//! The keys of `[evals]`.

use super::keys::{Key, key};
use super::units;

pub(super) static EVALS: [Key; 2] = [
    key("evals.cases_at_once", None, "a whole number from 1 to 64", |d, g| {
        d.config.evals.cases_at_once = g.integer().filter(|n| (1..=64).contains(n))?;
        Some(())
    }),
    key("evals.case_ms", None, "a time from 1s to 24h, such as \"10m\"", |d, g| {
        d.config.evals.case_ms = g.number(units::millis).filter(|ms| (1_000..=86_400_000).contains(ms))?;
        Some(())
    }),
];
