//! Whether a series of figures grows, or only looks like it.
//!
//! The slope is the median of the slopes of all pairs of points (Theil and Sen), which a few outliers do not move. Its
//! interval comes from Kendall's rank statistic (Sen 1968): a slope whose whole interval is above zero is growth, and
//! what reaches over zero may as well be noise.

/// One figure, taken round by round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trend {
    pub(crate) first: f64,
    pub(crate) median: f64,
    pub(crate) last: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Change in a round, with the interval around it.
    pub(crate) slope: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Trend {
    /// `None` for no figures at all.
    pub(crate) fn of(values: &[f64]) -> Option<Trend> {
        let (first, last) = (*values.first()?, *values.last()?);
        let points = points(values);
        let (slope, low, high) = slope(&points);
        Some(Trend {
            first,
            median: median(values),
            last,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            slope,
            low,
            high,
        })
    }

    /// Whether all figures are the same.
    pub(crate) fn is_constant(&self) -> bool {
        self.min == self.max
    }
}

/// As many points as are looked at: all pairs of them are, and there are 125,000 of these.
const POINTS: usize = 500;

/// The quantile of the normal distribution for an interval of 99 %: there are many series, and each may be wrong.
const Z: f64 = 2.576;

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// Round and figure; where there are too many rounds, the middle of a few neighbours and their median.
fn points(values: &[f64]) -> Vec<(f64, f64)> {
    let size = values.len().div_ceil(POINTS);
    let chunks = values.chunks(size).enumerate();
    chunks.map(|(n, chunk)| ((n * size) as f64 + (chunk.len() - 1) as f64 / 2.0, median(chunk))).collect()
}

/// The slope, and the two ends of its interval.
fn slope(points: &[(f64, f64)]) -> (f64, f64, f64) {
    let pairs = points.iter().enumerate().flat_map(|(n, a)| points[n + 1..].iter().map(move |b| (a, b)));
    let mut slopes: Vec<f64> = pairs.map(|(a, b)| (b.1 - a.1) / (b.0 - a.0)).collect();
    if slopes.is_empty() {
        return (0.0, 0.0, 0.0);
    }
    slopes.sort_by(f64::total_cmp);
    let count = slopes.len();
    let spread = Z * variance(points).sqrt();
    let at = |rank: f64| slopes[(rank.max(0.0) as usize).min(count - 1)];
    (median(&slopes), at((count as f64 - spread) / 2.0), at((count as f64 + spread) / 2.0))
}

/// The variance of Kendall's statistic for as many points without a trend, of which some are equal.
fn variance(points: &[(f64, f64)]) -> f64 {
    let term = |count: usize| {
        let count = count as f64;
        count * (count - 1.0) * (2.0 * count + 5.0)
    };
    let mut figures: Vec<f64> = points.iter().map(|point| point.1).collect();
    figures.sort_by(f64::total_cmp);
    let ties: f64 = figures.chunk_by(|a, b| a == b).map(|tie| term(tie.len())).sum();
    (term(points.len()) - ties) / 18.0
}
