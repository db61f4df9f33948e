//! A report to look at: one HTML file with its pictures inside, no script or style from elsewhere.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::client::latency::Stages;

/// Pictures of a clip that a report holds at most; of a longer one, every second, fourth, … frame.
const MAX_CLIP_PICTURES: usize = 300;

/// A picture inside the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    pub caption: String,
    /// `image/png`, `image/jpeg`, …
    pub media_type: &'static str,
    pub data: Vec<u8>,
}

/// One image explained: its pictures side by side, and what the model says.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    pub title: String,
    /// Label and probability, the highest first.
    pub predictions: Vec<(String, f32)>,
    pub figures: Vec<Figure>,
}

/// The frames of a clip, to be played.
#[derive(Debug, Clone, Default)]
pub struct Clip {
    figures: Vec<Figure>,
    /// Every how many frames one is kept.
    stride: usize,
    seen: usize,
}

impl Clip {
    /// Takes the next frame; when there are too many, every second one goes.
    pub fn push(&mut self, figure: Figure) {
        self.stride = self.stride.max(1);
        if self.seen.is_multiple_of(self.stride) {
            if self.figures.len() == MAX_CLIP_PICTURES {
                let mut index = 0;
                self.figures.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.figures.push(figure);
            }
        }
        self.seen += 1;
    }
}

/// Everything that a report shows; what is empty is left out.
#[derive(Debug, Default)]
pub struct Report {
    pub title: String,
    /// Model, version, digest, counts: name and value.
    pub facts: Vec<(String, String)>,
    pub cards: Vec<Card>,
    pub clip: Clip,
    pub stages: Stages,
}

impl Report {
    /// The whole file.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        );
        self.write_facts(&mut page);
        self.write_clip(&mut page);
        self.cards.iter().for_each(|card| write_card(&mut page, card));
        self.write_stages(&mut page);
        page.push_str("</main>\n</body>\n</html>\n");
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

    fn write_clip(&self, page: &mut String) {
        if self.clip.figures.is_empty() {
            return;
        }
        page.push_str("<section class=\"clip\">\n<div class=\"screen\">\n");
        for figure in &self.clip.figures {
            write_figure(page, figure);
        }
        put(
            page,
            format_args!(
                "</div>\n<div class=\"controls\"><button type=\"button\">Play</button>\
                 <input type=\"range\" min=\"0\" max=\"{}\" value=\"0\" aria-label=\"frame\"></div>\n\
                 </section>\n<script>{PLAYER}</script>\n",
                self.clip.figures.len() - 1
            ),
        );
    }

    fn write_stages(&self, page: &mut String) {
        let total: f64 = self.stages.iter().map(|(_, latencies)| latencies.mean_ms()).sum();
        if total <= 0.0 {
            return;
        }
        page.push_str(
            "<section>\n<h2>Where the time goes</h2>\n<table>\n<thead><tr><th>stage</th><th></th><th>mean</th><th>p50</th>\
             <th>p90</th><th>p99</th><th>max</th></tr></thead>\n<tbody>\n",
        );
        for (stage, latencies) in self.stages.iter() {
            put(
                page,
                format_args!(
                    "<tr><th>{}</th><td class=\"bar\"><i style=\"width:{:.1}%\"></i></td><td>{:.2}</td><td>{:.2}</td>\
                     <td>{:.2}</td><td>{:.2}</td><td>{:.2}</td></tr>\n",
                    escape(stage),
                    latencies.mean_ms() / total * 100.0,
                    latencies.mean_ms(),
                    latencies.percentile_ms(0.5),
                    latencies.percentile_ms(0.9),
                    latencies.percentile_ms(0.99),
                    latencies.max_ms(),
                ),
            );
        }
        put(
            page,
            format_args!(
                "</tbody>\n</table>\n<p class=\"note\">milliseconds; together {total:.2} ms a frame</p>\n</section>\n"
            ),
        );
    }
}

fn write_card(page: &mut String, card: &Card) {
    put(page, format_args!("<section class=\"card\">\n<h2>{}</h2>\n<div class=\"figures\">\n", escape(&card.title)));
    card.figures.iter().for_each(|figure| write_figure(page, figure));
    page.push_str("</div>\n");
    if !card.predictions.is_empty() {
        page.push_str("<table class=\"predictions\">\n<tbody>\n");
        for (label, probability) in &card.predictions {
            put(
                page,
                format_args!(
                    "<tr><th>{}</th><td class=\"bar\"><i style=\"width:{:.1}%\"></i></td><td>{:.1} %</td></tr>\n",
                    escape(label),
                    probability * 100.0,
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
            "<figure><img alt=\"{caption}\" src=\"data:{};base64,{data}\"><figcaption>{caption}</figcaption></figure>\n",
            figure.media_type
        ),
    );
}

/// A string takes everything that is written to it.
fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    let written = page.write_fmt(text);
    debug_assert!(written.is_ok());
}

/// Text for between tags and inside quoted attributes.
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

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --faint: #667085; --paper: #f6f7f9; --card: #fff; --line: #e3e6eb; --accent: #2f6fdf; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebf0; --faint: #98a2b3; --paper: #14171d; --card: #1d2129; --line: #2d333e; --accent: #7aa7ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 16px; }
h2 { font-size: 17px; margin: 0 0 12px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px; margin: 20px 0; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0; }
.facts dt { color: var(--faint); font-size: 12px; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; }
figure { margin: 0; }
img { display: block; width: 100%; border-radius: 8px; }
figcaption { color: var(--faint); font-size: 12px; margin-top: 4px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: 14px; }
th { text-align: left; font-weight: 500; white-space: nowrap; padding: 3px 12px 3px 0; }
td { text-align: right; padding: 3px 0 3px 12px; white-space: nowrap; }
thead th { color: var(--faint); font-size: 12px; text-align: right; padding: 0 0 4px 12px; }
thead th:first-child { text-align: left; }
.bar { width: 45%; padding: 3px 0; }
.bar i { display: block; height: 8px; min-width: 1px; border-radius: 4px; background: var(--accent); }
.note { color: var(--faint); font-size: 12px; margin: 10px 0 0; }
.screen { max-width: 448px; margin: 0 auto; }
.clip.live .screen figure { display: none; }
.clip.live .screen figure.on { display: block; }
.controls { display: none; max-width: 448px; margin: 12px auto 0; gap: 12px; }
.clip.live .controls { display: flex; }
.controls input { flex: 1; accent-color: var(--accent); }
button { font: inherit; padding: 2px 14px; border: 1px solid var(--line); border-radius: 8px; background: none; color: inherit; cursor: pointer; }
";

const PLAYER: &str = "
for (const clip of document.querySelectorAll('.clip')) {
  const frames = clip.querySelectorAll('figure'), slider = clip.querySelector('input'), button = clip.querySelector('button');
  let timer = 0;
  const show = () => frames.forEach((frame, index) => frame.classList.toggle('on', index === +slider.value));
  const step = () => { slider.value = (+slider.value + 1) % frames.length; show(); };
  const toggle = () => {
    timer = timer ? clearInterval(timer) || 0 : setInterval(step, 80);
    button.textContent = timer ? 'Pause' : 'Play';
  };
  slider.oninput = show; button.onclick = toggle;
  clip.classList.add('live'); show(); toggle();
}
";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn figure(caption: &str) -> Figure {
        Figure { caption: caption.to_owned(), media_type: "image/png", data: b"png".to_vec() }
    }

    fn full() -> Report {
        let mut stages = Stages::default();
        stages.record("forward", Duration::from_millis(40));
        let mut clip = Clip::default();
        clip.push(figure("frame 1"));
        Report {
            title: "espresso & <friends>".to_owned(),
            facts: vec![("model".to_owned(), "lite0".to_owned())],
            cards: vec![Card {
                title: "coffee.png".to_owned(),
                predictions: vec![("espresso".to_owned(), 0.953)],
                figures: vec![figure("overlay"), figure("guided")],
            }],
            clip,
            stages,
        }
    }

    #[test]
    fn a_report_holds_its_pictures_and_asks_nobody_for_anything() {
        let html = full().html();
        assert_eq!(html.matches("src=\"data:image/png;base64,cG5n\"").count(), 3);
        for needed in ["espresso", "95.3 %", "width:95.3%", "<th>forward</th>", "40.00", "lite0"] {
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

    #[test]
    fn a_long_clip_keeps_evenly_spaced_frames() {
        let mut clip = Clip::default();
        (0..1000).for_each(|frame| clip.push(figure(&frame.to_string())));
        let kept: Vec<usize> = clip.figures.iter().map(|f| f.caption.parse().expect("a number")).collect();
        assert_eq!(kept, (0..1000).step_by(4).collect::<Vec<_>>());
    }
}
