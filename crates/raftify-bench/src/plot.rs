//! Plots of the results, as SVG.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use raftify::BoxError;

use crate::figures::{Figures, Pick};
use crate::line::Line;
use crate::table::thousands;

const SIZE: (u32, u32) = (760, 420);
const FONT: &str = "sans-serif";
const STORAGES: [&str; 3] = ["memory", "wal", "heed"];
const CLIENTS: [u64; 4] = [1, 64, 256, 1024];

/// Lines over a logarithmic number of clients or entries.
struct Chart {
    name: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    series: Vec<(String, Vec<(f64, f64)>)>,
}

/// Draws every plot for which there are results into `directory`, and returns the files.
pub(crate) fn draw(figures: &Figures, directory: &Path) -> Result<Vec<PathBuf>, BoxError> {
    std::fs::create_dir_all(directory)?;
    let mut drawn = Vec::new();
    for chart in charts(figures) {
        if chart.series.iter().all(|(_, points)| points.is_empty()) {
            continue;
        }
        let path = directory.join(chart.name).with_extension("svg");
        chart.draw(&path)?;
        drawn.push(path);
    }
    Ok(drawn)
}

fn charts(figures: &Figures) -> Vec<Chart> {
    let cluster = |figure: fn(&Line) -> Option<f64>| {
        let series = |storage: &&str| {
            let pick = Pick::cluster(storage).entry_bytes(64);
            let point = |clients: &u64| {
                Some((*clients as f64, figures.median(&pick.clone().clients(*clients), figure)?))
            };
            ((*storage).to_owned(), CLIENTS.iter().filter_map(point).collect())
        };
        STORAGES.iter().map(series).collect()
    };
    let log = |storage: &&str| {
        let point = |batch: &u64| {
            let pick = Pick::of("log").storage(storage).clients(*batch).entry_bytes(64);
            Some((*batch as f64, figures.median(&pick, |line| line.ops_per_second)?))
        };
        ((*storage).to_owned(), [1, 16, 64, 256].iter().filter_map(point).collect())
    };
    let memory = |line: &&Line| Some((line.number("proposals")?, line.number("resident_bytes_max")? / 1e6));
    vec![
        Chart {
            name: "throughput",
            title: "Proposals per second, three nodes, 64 B",
            x: "clients",
            y: "proposals/s",
            series: cluster(|line| line.ops_per_second),
        },
        Chart {
            name: "latency",
            title: "Median time of a proposal, three nodes, 64 B",
            x: "clients",
            y: "µs",
            series: cluster(|line| line.p50_us),
        },
        Chart {
            name: "latency-p99",
            title: "99th percentile of the time of a proposal, three nodes, 64 B",
            x: "clients",
            y: "µs",
            series: cluster(|line| line.p99_us),
        },
        Chart {
            name: "log",
            title: "Durable entries per second of one log, 64 B",
            x: "entries in a batch",
            y: "entries/s",
            series: STORAGES.iter().map(log).collect(),
        },
        Chart {
            name: "memory",
            title: "Resident memory of the largest node",
            x: "proposals",
            y: "MB",
            series: vec![(
                "wal".to_owned(),
                figures.all(&Pick::of("memory")).iter().filter_map(memory).collect(),
            )],
        },
    ]
}

impl Chart {
    fn draw(&self, path: &Path) -> Result<(), BoxError> {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let least = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::INFINITY, f64::min);
        let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::MIN_POSITIVE, f64::max);
        let (x_least, x_most) = (least(|point| point.0), most(|point| point.0));
        let (y_least, y_most) = (least(|point| point.1), most(|point| point.1));
        if x_least > 0.0 && x_most / x_least <= 1e5 && y_least > 0.0 && x_most < 1e5 {
            // No empty decade at either end; the outermost points are a little inside.
            let (x, y) = (x_least * 0.8..x_most * 1.3, y_least * 0.6..y_most * 1.6);
            self.draw_in(&root, x.log_scale(), y.log_scale())?;
        } else {
            self.draw_in(&root, 0.0..x_most * 1.05, 0.0..y_most * 1.2)?;
        }
        Ok(root.present()?)
    }

    fn draw_in<X, Y>(&self, root: &DrawingArea<SVGBackend<'_>, Shift>, x: X, y: Y) -> Result<(), BoxError>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(root)
            .caption(self.title, (FONT, 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(80)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|value| thousands(*value))
            .y_label_formatter(&|value| thousands(*value))
            .light_line_style(BLACK.mix(0.05))
            .draw()?;
        let series = self.series.iter().filter(|(_, points)| !points.is_empty());
        for (number, (name, points)) in series.enumerate() {
            let colour = Palette99::pick(number).to_rgba();
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(4);
            chart
                .draw_series(line)?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .label_font((FONT, 14))
            .draw()?;
        Ok(())
    }
}
