//! A report for a browser: one HTML file that holds its pictures, its style and its script.

mod frames;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::page;

pub use frames::Frames;

/// A picture in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    pub caption: String,
    /// `image/png`, `image/jpeg`, …
    pub media_type: &'static str,
    pub data: Vec<u8>,
}

/// An explained image of which there are only finished pictures: side by side, with the model's predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    pub title: String,
    /// Label and probability (0 to 1), the highest first.
    pub predictions: Vec<(String, f32)>,
    pub figures: Vec<Figure>,
}

/// The latencies of one stage, in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct StageRow {
    pub stage: String,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// The content of a report. Empty sections are left out.
#[derive(Debug, Default)]
pub struct Report {
    pub title: String,
    /// Model, version, digest, counts: name and value.
    pub facts: Vec<(String, String)>,
    /// Frames with their maps, which the report draws itself.
    pub frames: Frames,
    pub cards: Vec<Card>,
    /// In the order of the page.
    pub stages: Vec<StageRow>,
}

impl Report {
    /// The whole file.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>{}{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            page::STYLE,
            include_str!("report.css"),
        );
        self.write_facts(&mut page);
        if !self.frames.is_empty() {
            page.push_str(include_str!("frames.html"));
            page.push_str("<noscript><p>The frames are drawn with JavaScript, which is off.</p></noscript>\n");
        }
        self.cards.iter().for_each(|card| write_card(&mut page, card));
        self.write_stages(&mut page);
        if !self.frames.is_empty() || !self.cards.is_empty() {
            put(&mut page, format_args!("<section>{}</section>\n", page::HELP));
        }
        page.push_str("</main>\n");
        if !self.frames.is_empty() {
            // A script element ends at `</`, wherever that is in it.
            let frames = self.frames.json().to_string().replace('<', "\\u003c");
            put(
                &mut page,
                format_args!(
                    "<script type=\"application/json\" id=\"frames\">{frames}</script>\n\
                     <script type=\"module\">{}{}{}</script>\n",
                    page::colors_script(),
                    page::PAINT,
                    include_str!("report.js"),
                ),
            );
        }
        page.push_str("</body>\n</html>\n");
        page
    }

    fn write_facts(&self, page: &mut String) {
        if self.facts.is_empty() {
            return;
        }
        page.push_str("<dl class=\"facts\">\n");
        for (name, value) in &self.facts {
            put(page, format_args!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value)));
        }
        page.push_str("</dl>\n");
    }

    fn write_stages(&self, page: &mut String) {
        let total: f64 = self.stages.iter().map(|row| row.mean).sum();
        if total <= 0.0 {
            return;
        }
        page.push_str(
            "<section>\n<h2>Where the time goes</h2>\n<table>\n<thead><tr><th>stage</th><th></th><th>mean</th>\
             <th>p50</th><th>p90</th><th>p99</th><th>max</th></tr></thead>\n<tbody>\n",
        );
        let mut before = 0.0;
        for StageRow { stage, mean, p50, p90, p99, max } in &self.stages {
            put(
                page,
                format_args!(
                    "<tr><th>{}</th>{}<td>{mean:.2}</td><td>{p50:.2}</td><td>{p90:.2}</td><td>{p99:.2}</td>\
                     <td>{max:.2}</td></tr>\n",
                    escape(stage),
                    bar(before / total, mean / total),
                ),
            );
            before += mean;
        }
        put(
            page,
            format_args!(
                "</tbody>\n</table>\n<p class=\"faint\">milliseconds; together {total:.2} ms a frame</p>\n</section>\n"
            ),
        );
    }
}

/// A cell with a bar from `start` on, in parts of the cell's width.
fn bar(start: f64, share: f64) -> String {
    let style = format!("margin-left:{:.1}%;width:{:.1}%", start * 100.0, share * 100.0);
    format!("<td class=\"bar\"><span><i style=\"{style}\"></i></span></td>")
}

fn write_card(page: &mut String, card: &Card) {
    put(page, format_args!("<section class=\"card\">\n<h2>{}</h2>\n<div class=\"figures\">\n", escape(&card.title)));
    card.figures.iter().for_each(|figure| write_figure(page, figure));
    page.push_str("</div>\n");
    if !card.predictions.is_empty() {
        page.push_str("<table>\n<tbody>\n");
        for (label, probability) in &card.predictions {
            put(
                page,
                format_args!(
                    "<tr><th>{}</th>{}<td>{:.1} %</td></tr>\n",
                    escape(label),
                    bar(0.0, f64::from(*probability)),
                    probability * 100.0
                ),
            );
        }
        page.push_str("</tbody>\n</table>\n");
    }
    page.push_str("</section>\n");
}

fn write_figure(page: &mut String, figure: &Figure) {
    let caption = escape(&figure.caption);
    let data = STANDARD.encode(&figure.data);
    put(
        page,
        format_args!(
            "<figure><img alt=\"{caption}\" src=\"data:{};base64,{data}\">\
             <figcaption>{caption}</figcaption></figure>\n",
            figure.media_type
        ),
    );
}

/// Appends to the page. Writing to a string cannot fail.
fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    let written = page.write_fmt(text);
    debug_assert!(written.is_ok());
}

/// Escapes text for element content and for quoted attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{AffineTransform, Channels, Pixels};
    use crate::model::description::ColorOrder;
    use crate::render::{Grid, Prediction, Scene, Target};

    fn figure(caption: &str) -> Figure {
        Figure { caption: caption.to_owned(), media_type: "image/png", data: b"png".to_vec() }
    }

    pub(super) fn scene(class: &str) -> Scene {
        let cam = Grid { values: (0..49).map(|at| at as f32).collect(), shape: vec![7, 7] };
        Scene {
            sequence: 1,
            tag: "coffee.png".to_owned(),
            frame: Some(Pixels::upright(64, 48, Channels::Gray, vec![90; 64 * 48])),
            to_upright: AffineTransform::scale_shift(2.0, 0.5, 2.0, 0.5),
            map_size: (32, 24),
            color: ColorOrder::Rgb,
            predictions: vec![Prediction { class: class.to_owned(), probability: 0.953, logit: 12.0 }],
            targets: vec![Target {
                class: class.to_owned(),
                target_layer: "layer4".to_owned(),
                cam: Some(cam),
                guided: None,
                no_evidence: false,
            }],
            stages: vec![("forward", std::time::Duration::from_millis(40))],
            glass_to_answer: None,
        }
    }

    fn full() -> Report {
        let stages =
            vec![StageRow { stage: "forward".to_owned(), mean: 40.0, p50: 39.0, p90: 41.0, p99: 42.0, max: 43.5 }];
        let mut frames = Frames::default();
        frames.push(scene("espresso")).expect("a frame");
        Report {
            title: "espresso & <friends>".to_owned(),
            facts: vec![("model".to_owned(), "lite0".to_owned())],
            frames,
            cards: vec![Card {
                title: "coffee.png".to_owned(),
                predictions: vec![("espresso".to_owned(), 0.953)],
                figures: vec![figure("overlay"), figure("guided")],
            }],
            stages,
        }
    }

    #[test]
    fn a_report_holds_its_pictures_and_asks_nobody_for_anything() {
        let html = full().html();
        assert_eq!(html.matches("src=\"data:image/png;base64,cG5n\"").count(), 2);
        for needed in ["espresso", "95.3 %", "width:95.3%", "<th>forward</th>", "40.00", "43.50", "lite0"] {
            assert!(html.contains(needed), "{needed} is missing");
        }
        for foreign in ["http://", "https://", "<link", "@import", "url(", "src=\"/"] {
            assert!(!html.contains(foreign), "{foreign} reaches outside");
        }
    }

    #[test]
    fn labels_cannot_break_out_of_the_page() {
        let mut report = full();
        report.cards[0].predictions[0].0 = "<script>alert(1)</script>".to_owned();
        report.cards[0].figures[0].caption = "\" onload=\"alert(1)".to_owned();
        report.frames.push(scene("</script><script>alert(1)</script>")).expect("a frame");
        let html = report.html();
        assert!(html.contains("espresso &amp; &lt;friends&gt;"));
        assert!(!html.contains("<script>alert"));
        assert!(!html.contains("\" onload="));
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let html = Report { title: "nothing".to_owned(), ..Default::default() }.html();
        for part in ["<section", "<table", "<dl", "<script"] {
            assert!(!html.contains(part), "{part}");
        }
    }
}
