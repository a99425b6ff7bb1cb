//! Latency over time, through the takeovers.

use std::path::Path;

use plotters::prelude::*;

use crate::failure::Failure;
use crate::latency::Latencies;

/// Legible on white and on black.
const INK: RGBColor = RGBColor(0x7a, 0x7f, 0x87);
const LONGEST: RGBColor = RGBColor(0xd9, 0x6b, 0x27);
const MEDIAN: RGBColor = RGBColor(0x2f, 0x83, 0xc9);

/// The least that the scale shows, in milliseconds.
const FLOOR: f64 = 0.05;

/// Draws the slices of the first stretch with takeovers.
pub(crate) fn draw(latencies: &Latencies, path: &Path) -> Result<(), Failure> {
    let ends = latencies.slices.iter().map(|(at, ..)| *at).fold(1.0, f64::max);
    // With room for the legend above.
    let highest = latencies.slices.iter().map(|(.., longest)| *longest).fold(1.0, f64::max) * 12.0;
    let area = SVGBackend::new(path, (900, 360)).into_drawing_area();
    let text = ("sans-serif", 14).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..ends, (FLOOR..highest).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .axis_style(INK)
        .bold_line_style(INK.mix(0.35))
        .light_line_style(TRANSPARENT)
        .label_style(text.clone())
        .x_desc("seconds")
        .y_desc("latency, ms")
        .draw()?;
    for (number, at) in latencies.owned.iter().enumerate() {
        let line = chart.draw_series(LineSeries::new([(*at, FLOOR), (*at, highest)], INK.mix(0.8)))?;
        if number == 0 {
            line.label("a new version owns")
                .legend(|(x, y)| PathElement::new([(x + 9, y - 7), (x + 9, y + 7)], INK.mix(0.8)));
        }
    }
    let longest = latencies.slices.iter().map(|(at, _, longest)| (*at, longest.max(FLOOR)));
    chart
        .draw_series(LineSeries::new(longest, LONGEST.stroke_width(2)))?
        .label("longest in 50 ms")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], LONGEST.stroke_width(2)));
    let median = latencies.slices.iter().map(|(at, median, _)| (*at, median.max(FLOOR)));
    chart
        .draw_series(LineSeries::new(median, MEDIAN.stroke_width(2)))?
        .label("median in 50 ms")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], MEDIAN.stroke_width(2)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .border_style(INK.mix(0.5))
        .label_font(text)
        .draw()?;
    area.present()?;
    Ok(())
}
