//! The steps of a takeover as they are seen from outside, each with its time; and how they are shown while it goes on.

use std::time::{Duration, Instant};

use heirloom::Status;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::printer::Printer;
use crate::table::{clean, table};
use crate::time;

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// What has happened since a new version was started.
#[derive(Debug)]
pub(crate) struct Steps {
    begin: Instant,
    steps: Vec<(String, Duration)>,
    /// What was last shown.
    shown: String,
    printer: Printer,
    spinner: Option<ProgressBar>,
}

impl Steps {
    /// Begins now, with the step `started`.
    pub(crate) fn begin(printer: Printer) -> Steps {
        let spinner = printer.is_watched().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(TURN);
            spinner
        });
        let mut steps = Steps { begin: Instant::now(), steps: Vec::new(), shown: String::new(), printer, spinner };
        steps.reach("started", "");
        steps
    }

    /// Takes note of a step, once each time that it is entered, and shows it with what is said of it.
    pub(crate) fn reach(&mut self, step: &str, text: &str) {
        if self.steps.last().is_none_or(|(last, _)| last != step) {
            self.steps.push((step.to_owned(), self.begin.elapsed()));
        }
        let shown = if text.is_empty() { step.to_owned() } else { format!("{step}: {}", clean(text)) };
        if shown == self.shown {
            return;
        }
        match &self.spinner {
            Some(spinner) => spinner.set_message(shown.clone()),
            None => self.printer.say(&shown),
        }
        self.shown = shown;
    }

    /// What a status says of the takeover that is under way.
    pub(crate) fn see(&mut self, status: &Status) {
        if let Some(takeover) = &status.takeover {
            self.reach(&takeover.step, &takeover.progress);
        }
    }

    /// The spinner makes room for what is printed next.
    pub(crate) fn finish(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    pub(crate) fn text(&self) -> String {
        let rows = self.steps.iter().map(|(step, at)| [step.clone(), time::duration(*at)]);
        table(["STEP", "AT"], rows)
    }

    pub(crate) fn json(&self) -> Value {
        self.steps.iter().map(|(step, at)| json!({"step": step, "at_ms": at.as_millis() as u64})).collect()
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.finish();
    }
}
