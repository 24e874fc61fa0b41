//! The live view as an SVG.

use std::fmt::Write as _;

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

const CELL: (f64, f64) = (8.4, 18.0);

pub fn svg(buffer: &Buffer, light: bool) -> String {
    let (ground, letters) = if light { ("#fdf6e3", "#333333") } else { ("#1b1e24", "#d0d4da") };
    let (width, height) = (f64::from(buffer.area.width) * CELL.0, f64::from(buffer.area.height) * CELL.1);
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" font-family="monospace" font-size="14"><rect width="100%" height="100%" fill="{ground}"/>"#
    );
    for y in 0..buffer.area.height {
        let mut x = 0;
        while x < buffer.area.width {
            let first = &buffer[(x, y)];
            let begins = x;
            let mut text = String::new();
            while x < buffer.area.width && buffer[(x, y)].style() == first.style() {
                text += buffer[(x, y)].symbol();
                x += 1;
            }
            let reversed = first.modifier.contains(Modifier::REVERSED);
            if text.trim().is_empty() && !reversed {
                continue;
            }
            let (left, top) = (f64::from(begins) * CELL.0, f64::from(y) * CELL.1);
            let color = color(first.fg, light).unwrap_or(letters);
            let (fill, behind) = if reversed { (ground, Some(color)) } else { (color, None) };
            if let Some(behind) = behind {
                let wide = f64::from(x - begins) * CELL.0;
                let _ = write!(
                    out,
                    r#"<rect x="{left:.1}" y="{top:.1}" width="{wide:.1}" height="{}" fill="{behind}"/>"#,
                    CELL.1
                );
            }
            let weight = if first.modifier.contains(Modifier::BOLD) { r#" font-weight="bold""# } else { "" };
            let dim = if first.modifier.contains(Modifier::DIM) { r#" opacity="0.6""# } else { "" };
            let line =
                if first.modifier.contains(Modifier::UNDERLINED) { r#" text-decoration="underline""# } else { "" };
            let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
            let wide = f64::from(x - begins) * CELL.0;
            let _ = write!(
                out,
                r#"<text x="{left:.1}" y="{:.1}" fill="{fill}"{weight}{dim}{line} xml:space="preserve" textLength="{wide:.1}" lengthAdjust="spacing">{escaped}</text>"#,
                top + 13.5
            );
        }
    }
    out + "</svg>"
}

fn color(color: Color, light: bool) -> Option<&'static str> {
    match (color, light) {
        (Color::Green, false) => Some("#7ec07e"),
        (Color::Green, true) => Some("#3a7d3a"),
        (Color::Red, false) => Some("#e06c75"),
        (Color::Red, true) => Some("#b3261e"),
        (Color::Yellow, false) => Some("#e5c07b"),
        (Color::Yellow, true) => Some("#8a6d00"),
        _ => None,
    }
}
