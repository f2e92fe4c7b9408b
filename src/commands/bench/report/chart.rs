//! Bars beside their ceiling, as SVG: one bar a peer, a mark from the lowest to the highest round, and across each
//! shape's bars the line that nobody passes.
//!
//! Pure: numbers in, text out. Colours come from the page, so that they fit light and dark.

use std::fmt::Write as _;

use super::grouping::{Bar, Chart, Shape};

const WIDTH: f64 = 920.0;
const NAMES: f64 = 230.0;
const FIGURES: f64 = 150.0;
const PLOT: f64 = WIDTH - NAMES - FIGURES;
const BAR: f64 = 15.0;
const STEP: f64 = 22.0;
const HEAD: f64 = 30.0;
const GAP: f64 = 14.0;
const AXIS: f64 = 26.0;
/// Lines of the grid, at most.
const GRID_MAX: f64 = 6.0;

/// What a chart's bars are long by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Cpu,
    Latency,
    Rate,
}

impl Figure {
    const fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "CPU s/GB",
            Self::Latency => "us",
            Self::Rate => "GB/s",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Cpu => "CPU seconds per GB, both ends together (less is better)",
            Self::Latency => "latency of one transfer, median (less is better)",
            Self::Rate => "GB/s (more is better)",
        }
    }

    /// Whether a shape has its place in a chart of this figure.
    fn takes(self, shape: &Shape) -> bool {
        match self {
            Self::Cpu => !shape.is_small && shape.bars.iter().any(|bar| bar.cpu_s_per_gb.is_some()),
            Self::Latency => shape.is_small && shape.bars.iter().any(|bar| bar.p50_us.is_some()),
            Self::Rate => !shape.is_small,
        }
    }

    const fn of(self, bar: &Bar) -> Option<f64> {
        match self {
            Self::Cpu => bar.cpu_s_per_gb,
            Self::Latency => bar.p50_us,
            Self::Rate => Some(bar.gbps),
        }
    }

    fn ceiling(self, shape: &Shape) -> Option<&(String, f64)> {
        shape.ceiling.as_ref().filter(|_| self != Self::Cpu)
    }
}

/// The chart's shapes that have this figure; `None` when there are none.
pub(super) fn svg(chart: &Chart, figure: Figure) -> Option<String> {
    let shapes: Vec<&Shape> = chart.shapes.iter().filter(|shape| figure.takes(shape)).collect();
    let longest = shapes.iter().flat_map(|shape| reaches(shape, figure)).fold(0.0, f64::max);
    if longest <= 0.0 {
        return None;
    }
    let step = grid_step(longest);
    let top = (longest / step).ceil() * step;
    let scale = PLOT / top;
    let bars = |shape: &Shape| shape.bars.iter().filter(|bar| figure.of(bar).is_some()).count() as f64;
    let height: f64 = shapes.iter().map(|shape| HEAD + bars(shape) * STEP + GAP).sum::<f64>() + AXIS;
    let mut text = String::new();
    let label = format!("{}: {}", chart.title, figure.title());
    let _ = write!(text, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">", escape(&label));
    grid(&mut text, top, step, height, figure);
    let mut y = 0.0;
    for shape in shapes {
        draw_shape(&mut text, shape, figure, scale, y);
        y += HEAD + bars(shape) * STEP + GAP;
    }
    text.push_str("</svg>");
    Some(text)
}

/// How far to the right anything of the shape goes.
fn reaches(shape: &Shape, figure: Figure) -> impl Iterator<Item = f64> {
    let ceiling = figure.ceiling(shape).map(|(_, value)| *value);
    let highest = shape.bars.iter().map(move |bar| match figure {
        Figure::Rate => bar.gbps_max,
        Figure::Cpu | Figure::Latency => figure.of(bar).unwrap_or(0.0),
    });
    highest.chain(ceiling)
}

/// 1, 2 or 5 times a power of ten.
fn grid_step(longest: f64) -> f64 {
    let rough = longest / GRID_MAX;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough).unwrap_or(10.0 * power)
}

fn grid(text: &mut String, top: f64, step: f64, height: f64, figure: Figure) {
    let bottom = height - AXIS;
    let mut value = 0.0;
    while value <= top * 1.0001 {
        let x = NAMES + value / top * PLOT;
        let _ = write!(text, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"8\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>");
        let digits = if step < 0.1 { 2 } else { usize::from(step < 1.0) };
        let _ = write!(
            text,
            "<text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.digits$}</text>",
            bottom + 16.0
        );
        value += step;
    }
    let _ = write!(
        text,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        NAMES - 22.0,
        bottom + 16.0,
        figure.unit()
    );
}

fn draw_shape(text: &mut String, shape: &Shape, figure: Figure, scale: f64, y: f64) {
    let _ = write!(text, "<text class=\"shape\" x=\"0\" y=\"{:.1}\">{}</text>", y + HEAD - 9.0, escape(&shape.name));
    let mut at = y + HEAD;
    for bar in &shape.bars {
        let Some(value) = figure.of(bar) else { continue };
        draw_bar(text, bar, shape, figure, value, scale, at);
        at += STEP;
    }
    let Some((name, value)) = figure.ceiling(shape) else { return };
    let x = NAMES + value * scale;
    let _ = write!(
        text,
        "<line class=\"ceiling\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
        y + HEAD - 5.0,
        at - 3.0
    );
    // To the left of a line that stands far to the right.
    let (anchor, x) = if x > NAMES + PLOT * 0.6 { ("end", x + 4.0) } else { ("start", x - 4.0) };
    let _ = write!(
        text,
        "<text class=\"ceiling-name\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{} {}</text>",
        y + HEAD - 10.0,
        escape(name),
        number(*value)
    );
}

fn draw_bar(text: &mut String, bar: &Bar, shape: &Shape, figure: Figure, value: f64, scale: f64, y: f64) {
    let whose = if bar.is_ours { "ours" } else { "theirs" };
    let middle = y + BAR / 2.0;
    let _ = write!(
        text,
        "<text class=\"name {whose}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
         <rect class=\"bar {whose}\" x=\"{NAMES}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>",
        NAMES - 10.0,
        middle + 4.5,
        escape(&shortened(&bar.name)),
        (value * scale).max(1.0),
    );
    if figure == Figure::Rate && bar.gbps_min < bar.gbps_max {
        let (low, high) = (NAMES + bar.gbps_min * scale, NAMES + bar.gbps_max * scale);
        let _ = write!(
            text,
            "<path class=\"span\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v6M{high:.1} {:.1}v6\"/>",
            middle - 3.0,
            middle - 3.0
        );
    }
    let ratio = figure.ceiling(shape).filter(|(_, ceiling)| *ceiling > 0.0).map(|(_, ceiling)| value / ceiling);
    let ratio = ratio.map_or_else(String::new, |ratio| format!("  {ratio:.2} x"));
    let _ = write!(
        text,
        "<text class=\"figure\" x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">{}{ratio}</text>",
        middle + 4.5,
        number(value)
    );
}

/// Names longer than the column end in an ellipsis; the table has them whole.
fn shortened(name: &str) -> String {
    const LETTERS_MAX: usize = 29;
    if name.chars().count() <= LETTERS_MAX {
        return name.to_owned();
    }
    name.chars().take(LETTERS_MAX - 1).chain(['…']).collect()
}

/// Three digits.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

/// Text of a file, as text of a page.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::grouping::charts;
    use super::super::grouping::tests::row;
    use super::*;

    #[test]
    fn steps_are_round_numbers() {
        for (longest, step) in [(6.0, 1.0), (4.7, 1.0), (12.0, 2.0), (30.0, 5.0), (0.5, 0.1), (700.0, 200.0)] {
            assert!((grid_step(longest) / step - 1.0).abs() < 1e-9, "{longest}: {}", grid_step(longest));
        }
    }

    #[test]
    fn every_shape_has_its_ceiling_beside_it() {
        let chart = charts(vec![
            row("kvferry", 64, "", 3.0, 4.0),
            row("nixl", 64, "", 1.0, 4.0),
            row("kvferry", 9, "", 2.0, 4.0),
        ]);
        let svg = svg(&chart[0], Figure::Rate).expect("a chart");
        assert_eq!(svg.matches("class=\"ceiling\"").count(), 2);
        assert_eq!(svg.matches("raw tcp 4.00").count(), 2);
        assert_eq!(svg.matches("<rect class=\"bar ours\"").count(), 2);
        assert!(svg.contains("3.00  0.75 x") && svg.contains("1.00  0.25 x"), "{svg}");
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let chart = charts(vec![row("kvferry", 64, "", 2.0, 4.0), row("nixl", 64, "", 1.0, 4.0)]);
        let svg = svg(&chart[0], Figure::Rate).expect("a chart");
        let widths: Vec<f64> = svg
            .split("<rect")
            .skip(1)
            .filter_map(|rect| rect.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.01, "{widths:?}");
        assert!(widths.iter().all(|&width| width <= PLOT));
    }

    #[test]
    fn small_shapes_are_in_the_chart_of_latency() {
        let charts = charts(vec![row("kvferry", 1, "", 1.0, 4.0)]);
        assert_eq!(svg(&charts[0], Figure::Rate), None);
        let svg = svg(&charts[0], Figure::Latency).expect("a chart");
        assert!(svg.contains("10.0  2.00 x") && svg.contains("tcp ping pong p50 5.00"), "{svg}");
    }

    #[test]
    fn text_of_files_stays_text() {
        let chart = charts(vec![row("<b>x</b>&'", 64, "", 1.0, 4.0)]);
        let svg = svg(&chart[0], Figure::Rate).expect("a chart");
        assert!(svg.contains("&lt;b&gt;x&lt;/b&gt;&amp;&#39;") && !svg.contains("<b>"), "{svg}");
    }
}
