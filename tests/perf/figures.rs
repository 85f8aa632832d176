//! Measured values: display, and comparison with their bounds.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

/// Factor on bounds of wall-clock time in the short form, which runs beside other work.
pub const SLACK: f64 = 4.0;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Short,
    Long,
}

impl Form {
    pub fn rounds(self, short: usize, long: usize) -> usize {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn loosened(self, by: f64) -> Self {
        match self {
            Self::AtMost(limit) => Self::AtMost(limit * by),
            Self::AtLeast(limit) => Self::AtLeast(limit / by),
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::AtMost(limit) => format!("at most {}", number(limit)),
            Self::AtLeast(limit) => format!("at least {}", number(limit)),
        }
    }
}

/// One row: a median with its 99th percentile, or a single value.
pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
    pub value: f64,
    pub p99: Option<f64>,
    pub samples: usize,
    bound: Option<Bound>,
    p99_bound: Option<f64>,
    /// Wall-clock time: loosened in the short form.
    noisy: bool,
}

impl Figure {
    /// A size or a ratio, which other work on the machine does not change.
    pub fn single(name: &'static str, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value, p99: None, samples: 1, bound: None, p99_bound: None, noisy: false }
    }

    pub fn times(name: &'static str, samples: &Samples) -> Self {
        let (value, p99) = (samples.at(0.5), Some(samples.at(0.99)));
        Self { value, p99, samples: samples.0.len(), noisy: true, ..Self::single(name, "ms", value) }
    }

    pub fn of(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    pub fn at_most(mut self, limit: f64) -> Self {
        self.bound = Some(Bound::AtMost(limit));
        self
    }

    pub fn at_least(mut self, limit: f64) -> Self {
        self.bound = Some(Bound::AtLeast(limit));
        self
    }

    pub fn p99_at_most(mut self, limit: f64) -> Self {
        self.p99_bound = Some(limit);
        self
    }

    pub fn noisy(mut self) -> Self {
        self.noisy = true;
        self
    }

    fn bounds(&self, form: Form) -> (Option<Bound>, Option<Bound>) {
        let by = if self.noisy && form == Form::Short { SLACK } else { 1.0 };
        (self.bound.map(|b| b.loosened(by)), self.p99_bound.map(|limit| Bound::AtMost(limit).loosened(by)))
    }

    pub fn holds(&self, form: Form) -> bool {
        let (bound, p99_bound) = self.bounds(form);
        bound.is_none_or(|b| b.holds(self.value))
            && p99_bound.zip(self.p99).is_none_or(|(bound, value)| bound.holds(value))
    }
}

/// Times in milliseconds, ascending.
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        Self::of_ms(times.into_iter().map(|time| time.as_secs_f64() * 1e3))
    }

    pub fn of_ms(times: impl IntoIterator<Item = f64>) -> Self {
        let mut times: Vec<f64> = times.into_iter().collect();
        assert!(!times.is_empty(), "nothing was measured");
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// The nearest-rank quantile.
    pub fn at(&self, quantile: f64) -> f64 {
        let rank = (quantile * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }
}

pub fn table(all: &[Figure], form: Form) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["figure", "unit", "value or p50", "p99", "n", "bound", "bound of p99", "holds"]);
    for figure in all {
        let (bound, p99_bound) = figure.bounds(form);
        let holds = match (bound, p99_bound) {
            (None, None) => "",
            _ if figure.holds(form) => "yes",
            _ => "NO",
        };
        table.add_row([
            figure.name.to_owned(),
            figure.unit.to_owned(),
            number(figure.value),
            figure.p99.map(number).unwrap_or_default(),
            figure.samples.to_string(),
            bound.map(Bound::shown).unwrap_or_default(),
            p99_bound.map(Bound::shown).unwrap_or_default(),
            holds.to_owned(),
        ]);
    }
    table.to_string()
}

pub fn json(all: &[Figure], form: Form) -> Value {
    let limit = |bound: Option<Bound>| match bound {
        None => Value::Null,
        Some(Bound::AtMost(limit)) => json!({ "atMost": limit }),
        Some(Bound::AtLeast(limit)) => json!({ "atLeast": limit }),
    };
    let row = |figure: &Figure| {
        let (bound, p99_bound) = figure.bounds(form);
        json!({
            "name": figure.name, "unit": figure.unit, "value": figure.value, "p99": figure.p99, "n": figure.samples,
            "bound": limit(bound), "p99Bound": limit(p99_bound), "holds": figure.holds(form),
        })
    };
    json!({
        "form": if form == Form::Short { "short" } else { "long" },
        "version": env!("CARGO_PKG_VERSION"),
        "holds": all.iter().all(|figure| figure.holds(form)),
        "figures": all.iter().map(row).collect::<Vec<_>>(),
    })
}

/// Three digits or more, never more precise than the measurement.
fn number(value: f64) -> String {
    match value.abs() {
        n if n >= 100.0 => format!("{value:.0}"),
        n if n >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
