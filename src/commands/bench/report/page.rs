//! The page: a few words on how to read it, the charts, and every figure in tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::chart::{Figure, escape, number, svg};
use super::grouping::{Bar, Chart, Shape};

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub(super) fn render(charts: &[Chart], row_count: usize) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>KVFerry: measured transfers</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>Measured transfers</h1>\n\
         <p>{row_count} rows of <code>kvferry bench</code> {} and what was measured beside it. \
         GB/s is 10<sup>9</sup> bytes a second: the median of the rounds, with a mark from the lowest to the highest. \
         The dashed line is the ceiling of the same rounds: what raw sockets, iperf3 or memcpy reached; for small \
         transfers, a ping-pong of 64 bytes. The figure behind each bar is its ratio to that line. Only figures of one \
         run compare.</p>\n\
         <p><span class=\"key ours\"></span>KVFerry<span class=\"key theirs\"></span>others\
         <span class=\"key ceiling\"></span>ceiling</p>\n",
        env!("CARGO_PKG_VERSION")
    );
    for chart in charts {
        let _ = write!(text, "<section>\n<h2>{}</h2>\n", escape(&chart.title));
        for figure in [Figure::Rate, Figure::Latency, Figure::Cpu] {
            if let Some(svg) = svg(chart, figure) {
                let _ = write!(text, "<h3>{}</h3>\n{svg}\n", figure.title());
            }
        }
        text.push_str("<h3>all figures</h3>\n");
        table(&mut text, chart);
        ceilings(&mut text, chart);
        text.push_str("</section>\n");
    }
    text.push_str("</body>\n</html>\n");
    text
}

fn table(text: &mut String, chart: &Chart) {
    let head = [
        "cell",
        "peer",
        "GB/s",
        "min",
        "max",
        "of ceiling",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "CPU s/GB",
        "transfers",
        "content",
    ];
    open_table(text, &head);
    for shape in &chart.shapes {
        for bar in &shape.bars {
            let verified = match bar.verified {
                Some(true) => "right",
                Some(false) => "<span class=\"bad\">wrong</span>",
                None => "not checked",
            };
            let figures = [
                number(bar.gbps),
                number(bar.gbps_min),
                number(bar.gbps_max),
                of_ceiling(shape, bar),
                optional(bar.p50_us),
                optional(bar.p99_us),
                optional(bar.p999_us),
                optional(bar.cpu_s_per_gb),
                bar.transfers.map_or_else(String::new, |count| count.to_string()),
                verified.to_owned(),
            ];
            let _ = write!(text, "<tr><td>{}</td><td>{}</td>", escape(&shape.name), escape(&bar.name));
            for figure in figures {
                let _ = write!(text, "<td>{figure}</td>");
            }
            text.push_str("</tr>\n");
        }
    }
    text.push_str("</table></div>\n");
}

fn of_ceiling(shape: &Shape, bar: &Bar) -> String {
    let ours = if shape.is_small { bar.p50_us } else { Some(bar.gbps) };
    match (ours, &shape.ceiling) {
        (Some(ours), Some((_, ceiling))) if *ceiling > 0.0 => format!("{:.2}", ours / ceiling),
        _ => String::new(),
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(String::new, number)
}

/// Every ceiling of the chart's shapes, by name.
fn ceilings(text: &mut String, chart: &Chart) {
    let mut names: BTreeMap<&str, Vec<Option<f64>>> = BTreeMap::new();
    for (place, shape) in chart.shapes.iter().enumerate() {
        for (name, &value) in &shape.ceilings {
            let values = names.entry(name).or_insert_with(|| vec![None; chart.shapes.len()]);
            values[place] = Some(value);
        }
    }
    if names.is_empty() {
        return;
    }
    text.push_str("<details><summary>all ceilings</summary>\n");
    let shapes: Vec<String> = chart.shapes.iter().map(|shape| escape(&shape.name)).collect();
    let head: Vec<&str> = std::iter::once("ceiling").chain(shapes.iter().map(String::as_str)).collect();
    open_table(text, &head);
    for (name, values) in names {
        let _ = write!(text, "<tr><td>{}</td>", escape(name));
        for value in values {
            let _ = write!(text, "<td>{}</td>", optional(value));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</table></div>\n</details>\n");
}

/// `head` is markup already.
fn open_table(text: &mut String, head: &[&str]) {
    text.push_str("<div class=\"scroll\"><table>\n<tr>");
    for name in head {
        let _ = write!(text, "<th>{name}</th>");
    }
    text.push_str("</tr>\n");
}

#[cfg(test)]
mod tests {
    use super::super::grouping::charts;
    use super::super::grouping::tests::row;
    use super::*;

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        let page = render(&charts(vec![row("kvferry", 64, "", 3.0, 4.0), row("nixl", 64, "", 1.0, 4.0)]), 2);
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("2 rows"));
        for tag in ["svg", "table", "section", "details", "tr", "td", "text"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn every_figure_has_its_ratio() {
        let page = render(&charts(vec![row("kvferry", 64, "", 3.0, 4.0)]), 1);
        assert!(page.contains("<td>3.00</td><td>3.00</td><td>3.00</td><td>0.75</td><td>10.0</td>"), "{page}");
        assert!(page.contains("<td>raw_tcp_gbps</td><td>4.00</td>") && page.contains("not checked"));
    }
}
