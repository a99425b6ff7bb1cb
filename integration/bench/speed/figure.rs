//! Figures with their spread: no single number says anything on a machine that does other things as well.

use std::fmt;

use serde::Serialize;

/// The middle of some figures, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// The median, and the quartiles around it. `None` for no figures.
    pub(crate) fn of(figures: &[f64]) -> Option<Spread> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (sorted.len() as f64 - 1.0);
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        (!sorted.is_empty()).then(|| Spread { low: at(0.25), median: at(0.5), high: at(0.75) })
    }

    /// The same in another unit.
    pub(crate) fn scaled(self, factor: f64) -> Spread {
        Spread { low: self.low * factor, median: self.median * factor, high: self.high * factor }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.median {
            median if median < 10.0 => 2,
            median if median < 100.0 => 1,
            _ => 0,
        };
        write!(f, "{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.low, self.high)
    }
}

/// What was measured in turn with the same thing: round by round, so that both met the same machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paired {
    ours: Vec<f64>,
    floor: Vec<f64>,
}

impl Paired {
    pub(crate) fn enter(&mut self, ours: f64, floor: f64) {
        self.ours.push(ours);
        self.floor.push(floor);
    }

    pub(crate) fn ours(&self) -> Option<Spread> {
        Spread::of(&self.ours)
    }

    pub(crate) fn floor(&self) -> Option<Spread> {
        Spread::of(&self.floor)
    }

    /// How many times as much ours is, by the pairs.
    pub(crate) fn ratio(&self) -> Option<Spread> {
        self.by_pairs(|ours, floor| ours / floor)
    }

    /// What part of the floor's rate ours is, in percent, by the pairs.
    pub(crate) fn part(&self) -> Option<Spread> {
        self.by_pairs(|ours, floor| floor / ours * 100.0)
    }

    /// How much more ours is, by the pairs.
    pub(crate) fn more(&self) -> Option<Spread> {
        self.by_pairs(|ours, floor| ours - floor)
    }

    fn by_pairs(&self, of: impl Fn(f64, f64) -> f64) -> Option<Spread> {
        let figures: Vec<f64> = self.ours.iter().zip(&self.floor).map(|(ours, floor)| of(*ours, *floor)).collect();
        Spread::of(&figures)
    }
}
