//! The picture of a sweep: error and TD over training, one panel a run.

use super::{Findings, Point, RunFindings};
use plotters::{coord::Shift, prelude::*};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = Box<dyn std::error::Error>;

const PANEL: (u32, u32) = (520, 300);
const MOST_PANELS: usize = 12;
const ERROR: RGBColor = RGBColor(31, 119, 180);
const TD: RGBColor = RGBColor(214, 96, 20);
const GREY: RGBColor = RGBColor(110, 110, 110);

/// An SVG with a panel for each run that has at least two checkpoints.
pub fn emergence(found: &Findings) -> Result<String, Failure> {
    let runs: Vec<&RunFindings> = found.runs.iter().filter(|run| run.points.len() > 1).take(MOST_PANELS).collect();
    let columns = runs.len().clamp(1, 2);
    let rows = runs.len().div_ceil(columns).max(1);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32 + 64);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(64);
        legend(&head, &found.name)?;
        for (panel, run) in body.split_evenly((rows, columns)).iter().zip(&runs) {
            draw(panel, run)?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn legend(area: &Area, name: &str) -> Result<(), Failure> {
    let text = |size: i32, color: &RGBColor| ("sans-serif", size).into_font().color(color);
    area.draw(&Text::new(
        format!("{name}: task encoding and ICL performance through training"),
        (16, 12),
        text(17, &BLACK),
    ))?;
    let entries = [
        ("error over all positions (left)", ERROR, 0),
        ("TD of the best layer (right)", TD, 0),
        ("ridge · mixture · oracle error", ERROR, 4),
        ("TD: chance · ideal observer", TD, 4),
    ];
    for (i, (label, color, dash)) in entries.into_iter().enumerate() {
        let x = 16 + i as i32 * 250;
        let line = [(x, 48), (x + 26, 48)];
        if dash == 0 {
            area.draw(&PathElement::new(line, color.stroke_width(3)))?;
        } else {
            area.draw(&PathElement::new([(x, 48), (x + 7, 48)], color.stroke_width(1)))?;
            area.draw(&PathElement::new([(x + 10, 48), (x + 17, 48)], color.stroke_width(1)))?;
            area.draw(&PathElement::new([(x + 20, 48), (x + 26, 48)], color.stroke_width(1)))?;
        }
        area.draw(&Text::new(label, (x + 32, 41), text(13, &BLACK)))?;
    }
    Ok(())
}

/// How steps lie on the axis: as the checkpoints do, so that they are spread evenly.
#[derive(Clone, Copy)]
enum Axis {
    Linear,
    /// log(1 + step): the untrained model is at the left edge.
    Log,
}

impl Axis {
    fn of(points: &[Point]) -> Self {
        match points {
            [_, first, .., last] if first.step * 20 < last.step => Self::Log,
            _ => Self::Linear,
        }
    }

    fn place(self, step: i64) -> f64 {
        match self {
            Self::Linear => step as f64,
            Self::Log => (1.0 + step as f64).ln(),
        }
    }

    fn label(self, at: f64) -> String {
        match self {
            Self::Linear => format!("{at:.0}"),
            Self::Log => format!("{:.0}", at.exp() - 1.0),
        }
    }
}

fn draw(area: &Area, run: &RunFindings) -> Result<(), Failure> {
    let axis = Axis::of(&run.points);
    let end = axis.place(run.points.last().map_or(1, |p| p.step).max(1));
    let errors = errors_shown(run);
    let low = errors.iter().copied().fold(f64::INFINITY, f64::min) * 0.8;
    let high = errors.iter().copied().fold(0.0, f64::max) * 1.25;
    let (low, high) = if low < high { (low, high) } else { (0.1, 10.0) };
    let mut chart = ChartBuilder::on(area)
        .caption(format!("run {} {}", run.run_id, run.params), ("sans-serif", 14))
        .margin(6)
        .x_label_area_size(30)
        .y_label_area_size(48)
        .right_y_label_area_size(40)
        .build_cartesian_2d(0.0..end, (low..high).log_scale())?
        .set_secondary_coord(0.0..end, 0.0..1.02);
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("training step")
        .y_desc("error")
        .x_labels(8)
        .y_labels(5)
        .x_label_formatter(&|x| axis.label(*x))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .axis_style(GREY)
        .draw()?;
    chart.configure_secondary_axes().y_desc("TD").axis_style(GREY).draw()?;

    let dashes = |color: RGBColor| color.stroke_width(1);
    for bound in [run.bounds.ridge, run.bounds.mixture, run.bounds.oracle].into_iter().flatten() {
        chart.draw_series(DashedLineSeries::new([(0.0, bound), (end, bound)], 5, 4, dashes(ERROR)))?;
    }
    let chance = (run.latent_tasks > 0).then(|| 1.0 / run.latent_tasks as f64);
    for bound in [chance, run.bounds.td].into_iter().flatten() {
        chart.draw_secondary_series(DashedLineSeries::new([(0.0, bound), (end, bound)], 2, 4, dashes(TD)))?;
    }
    let mse = curve(run, axis, |p| p.mse);
    chart.draw_series(LineSeries::new(mse.clone(), ERROR.stroke_width(2)))?;
    chart.draw_series(mse.into_iter().map(|at| Circle::new(at, 3, ERROR.filled())))?;
    let td = curve(run, axis, |p| p.td);
    chart.draw_secondary_series(LineSeries::new(td.clone(), TD.stroke_width(2)))?;
    chart.draw_secondary_series(td.into_iter().map(|at| Circle::new(at, 3, TD.filled())))?;
    Ok(())
}

fn curve(run: &RunFindings, axis: Axis, value: impl Fn(&Point) -> Option<f64>) -> Vec<(f64, f64)> {
    run.points.iter().filter_map(|p| Some((axis.place(p.step), value(p)?))).collect()
}

fn errors_shown(run: &RunFindings) -> Vec<f64> {
    let bounds = [run.bounds.ridge, run.bounds.mixture, run.bounds.oracle];
    run.points.iter().map(|p| p.mse).chain(bounds).flatten().filter(|e| *e > 0.0).collect()
}
