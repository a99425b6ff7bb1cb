//! What is measured in each round, and when it counts as growth.

use std::time::Duration;

use crate::trend::Trend;

/// When a figure is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Whenever it is not the same in each round.
    Same,
    /// When it grows for certain, and by more than this over all rounds.
    Within(f64),
    /// Never: it depends on what else the machine does. A change by less than a tenth over all rounds is called flat.
    Told,
}

/// One figure, with a value for each round.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) rule: Rule,
    values: Vec<f64>,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Flat,
    Grows,
    Falls,
    Changes,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Verdict::Flat => "flat",
            Verdict::Grows => "grows",
            Verdict::Falls => "falls",
            Verdict::Changes => "changes",
        }
    }
}

impl Figure {
    /// How it went, and what that means. `None` where there was no round.
    pub(crate) fn judge(&self) -> Option<(Trend, Verdict)> {
        let trend = Trend::of(&self.values)?;
        let rounds = self.values.len() as f64 - 1.0;
        let verdict = match self.rule {
            Rule::Same if trend.is_constant() => Verdict::Flat,
            Rule::Same => Verdict::Changes,
            Rule::Within(most) if trend.low > 0.0 && trend.slope * rounds > most => Verdict::Grows,
            Rule::Within(_) => Verdict::Flat,
            Rule::Told if (trend.slope * rounds).abs() < trend.median.abs() * TENTH => Verdict::Flat,
            Rule::Told if trend.low > 0.0 => Verdict::Grows,
            Rule::Told if trend.high < 0.0 => Verdict::Falls,
            Rule::Told => Verdict::Flat,
        };
        Some((trend, verdict))
    }

    /// Whether the run has failed by it.
    pub(crate) fn fails(&self) -> bool {
        self.rule != Rule::Told && self.judge().is_some_and(|(_, verdict)| verdict != Verdict::Flat)
    }
}

/// All figures, in the order in which they came up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) all: Vec<Figure>,
    /// Rounds that are complete.
    rounds: usize,
}

impl Figures {
    /// Enters the value of the round that goes on.
    pub(crate) fn enter(&mut self, name: &str, unit: &'static str, rule: Rule, value: f64) {
        let rounds = self.rounds;
        let at = self.all.iter().position(|figure| figure.name == name).unwrap_or_else(|| {
            // What was not there before was there zero times.
            self.all.push(Figure { name: name.to_owned(), unit, rule, values: vec![0.0; rounds] });
            self.all.len() - 1
        });
        self.all[at].values.push(value);
    }

    /// Enters the time that a step took, in milliseconds. Times are told and never judged.
    pub(crate) fn step(&mut self, name: &str, time: Duration) {
        self.enter(name, "ms", Rule::Told, time.as_micros() as f64 / 1000.0);
    }

    /// Ends a round. What has no value in it was not there.
    pub(crate) fn end_round(&mut self) {
        self.rounds += 1;
        for figure in &mut self.all {
            figure.values.resize(self.rounds, 0.0);
        }
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds
    }
}

const TENTH: f64 = 0.1;
