//! The picture of language models: TD by layer, and accuracy against TD, a row for each model or checkpoint.

use super::{Fit, NULL_TASK, State};
use plotters::{coord::Shift, prelude::*};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = Box<dyn std::error::Error>;

/// Points with a higher TD have their name on the left.
const NAMES_LEFT: f64 = 0.85;

const PANEL: (u32, u32) = (520, 300);
const HEAD: u32 = 64;
const MOST_ROWS: usize = 8;
const GREY: RGBColor = RGBColor(110, 110, 110);
/// By number of shots, in order.
const COLORS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 96, 20),
    RGBColor(44, 140, 60),
    RGBColor(148, 90, 170),
    RGBColor(120, 80, 60),
];

/// An SVG with two panels for each model or checkpoint whose TD was measured; none if there is no such.
pub fn picture(name: &str, states: &[State]) -> Result<Option<String>, Failure> {
    let drawn: Vec<&State> = states.iter().filter(|s| !s.by_layer.is_empty()).take(MOST_ROWS).collect();
    if drawn.is_empty() {
        return Ok(None);
    }
    let shots: Vec<i64> =
        drawn.iter().flat_map(|s| s.shots()).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let mut svg = String::new();
    {
        let size = (2 * PANEL.0, PANEL.1 * drawn.len() as u32 + HEAD);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(HEAD);
        legend(&head, name, &shots)?;
        let panels = body.split_evenly((drawn.len(), 2));
        for (pair, state) in panels.chunks(2).zip(&drawn) {
            let [left, right] = pair else { continue };
            layers(left, state, &shots)?;
            scatter(right, state, &shots)?;
        }
        root.present()?;
    }
    Ok(Some(svg))
}

fn color(shots: &[i64], n: i64) -> RGBColor {
    let place = shots.iter().position(|s| *s == n).unwrap_or(0);
    COLORS[place % COLORS.len()]
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

fn legend(area: &Area, name: &str, shots: &[i64]) -> Result<(), Failure> {
    area.draw(&Text::new(format!("{name}: task decodability and accuracy"), (16, 12), font(17)))?;
    for (i, n) in shots.iter().enumerate() {
        let x = 16 + i as i32 * 120;
        area.draw(&PathElement::new([(x, 48), (x + 26, 48)], color(shots, *n).stroke_width(3)))?;
        area.draw(&Text::new(format!("{n} shots"), (x + 32, 41), font(13)))?;
    }
    Ok(())
}

/// Mean TD over tasks by layer, a line for each number of shots, and chance.
fn layers(area: &Area, state: &State, shots: &[i64]) -> Result<(), Failure> {
    let last = state.by_layer.keys().map(|(layer, _)| *layer).max().unwrap_or(1).max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("run {} {}, step {}", state.run_id, state.params, state.step), ("sans-serif", 14))
        .margin(6)
        .x_label_area_size(30)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..last, 0.0..1.02)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("layer")
        .x_label_formatter(&|layer| format!("{layer:.0}"))
        .y_desc("TD")
        .x_labels(8)
        .y_labels(5)
        .axis_style(GREY)
        .draw()?;
    if let n @ 1.. = state.tasks().len() {
        let chance = 1.0 / n as f64;
        chart.draw_series(DashedLineSeries::new([(0.0, chance), (last, chance)], 2, 4, GREY.stroke_width(1)))?;
    }
    for n in shots {
        let curve = state.by_layer.iter().filter(|((_, s), _)| s == n).map(|((layer, _), td)| (*layer as f64, *td));
        let curve: Vec<(f64, f64)> = curve.collect();
        chart.draw_series(LineSeries::new(curve.clone(), color(shots, *n).stroke_width(2)))?;
        chart.draw_series(curve.into_iter().map(|at| Circle::new(at, 2, color(shots, *n).filled())))?;
    }
    Ok(())
}

/// Accuracy against TD at the best layer, a point for each task and number of shots, and the line through them.
fn scatter(area: &Area, state: &State, shots: &[i64]) -> Result<(), Failure> {
    let caption = match (state.best, state.fit) {
        (Some(layer), Some(fit)) => format!("layer {layer}, R² = {:.2} ({} points)", fit.r2, fit.points),
        (Some(layer), None) => format!("layer {layer}"),
        (None, _) => String::new(),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 14))
        .margin(6)
        .x_label_area_size(30)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..1.02, 0.0..1.02)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("TD")
        .y_desc("accuracy")
        .x_labels(6)
        .y_labels(5)
        .axis_style(GREY)
        .draw()?;
    if let Some(Fit { slope, intercept, .. }) = state.fit {
        let at = |x: f64| (x, (intercept + slope * x).clamp(0.0, 1.0));
        chart.draw_series(LineSeries::new((0..=100).map(|i| at(f64::from(i) / 100.0)), GREY.stroke_width(1)))?;
    }
    for ((task, n), td) in state.td.iter().filter(|((task, _), _)| task != NULL_TASK) {
        let Some(accuracy) = state.accuracy.get(&(task.clone(), *n)) else { continue };
        // Names near the right edge would leave the picture.
        let side = if *td > NAMES_LEFT { -6 - 6 * task.chars().count() as i32 } else { 6 };
        let dot = EmptyElement::at((*td, *accuracy))
            + Circle::new((0, 0), 4, color(shots, *n).filled())
            + Text::new(task.clone(), (side, -6), ("sans-serif", 11));
        chart.draw_series([dot])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::natural::tests::state;

    #[test]
    fn the_picture_has_every_task_and_the_fit() {
        let svg = picture("words", &[state()]).expect("draws").expect("there is something to draw");
        assert!(svg.starts_with("<svg") && svg.contains("R² = 0.81 (4 points)"), "{svg}");
        assert!(svg.contains("AND") && svg.contains("4 shots") && !svg.contains("Null"), "{svg}");
        assert!(picture("words", &[State::default()]).expect("nothing fails").is_none());
    }
}
