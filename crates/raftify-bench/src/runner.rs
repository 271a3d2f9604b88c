//! Runs each layer in its own process, so that no layer affects the next one, and a failure or hang of one
//! does not stop the others. Shows their reports.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::pin::{Pin, pin};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use raftify::BoxError;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::compare::{self, Side, Variant};
use crate::line::{Line, Report};
use crate::{machine, table};

/// A layer without a report for this long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(180);

/// How long a stopped process has to end.
const GRACE: Duration = Duration::from_secs(5);

/// The exit code of a program that was ended by Ctrl+C.
const INTERRUPTED: u8 = 130;

/// Runs the layers with these arguments, one after the other, below `directory`. The results go to standard
/// output, and to a file.
///
/// # Errors
/// If the first one could not be started. An error in a layer is a line and part of the exit code.
pub(crate) fn run(
    directory: &Path,
    layers: &[Vec<String>],
    also_to: Option<&Path>,
) -> Result<ExitCode, BoxError> {
    std::fs::create_dir_all(directory)
        .map_err(|error| format!("cannot make the directory {}: {error}", directory.display()))?;
    let directory = tempfile::tempdir_in(directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let file = also_to
        .map(|path| File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display())));
    let mut shown = Shown::new(layers.len(), file.transpose()?);
    shown.result(machine::describe(directory.path()))?;
    // One channel for all layers, so that no report is lost between two waits.
    let mut interruption = pin!(tokio::signal::ctrl_c());
    let program = std::env::current_exe()?;
    let mut code = ExitCode::SUCCESS;
    for layer in layers {
        let name = layer.first().map_or("", String::as_str);
        let outcome = run_layer(&program, name, layer, directory.path(), &mut shown, interruption.as_mut());
        match runtime.block_on(outcome) {
            Ok(End::Finished) => {}
            Ok(End::Interrupted) => {
                code = ExitCode::from(INTERRUPTED);
                break;
            }
            Err(error) => {
                code = ExitCode::FAILURE;
                shown.result(Line::of(name).with("error", error.to_string()))?;
            }
        }
        shown.layers.inc(1);
    }
    let passed = shown.finish();
    Ok(if passed { code } else { ExitCode::FAILURE })
}

/// Runs the two variants of a layer in turn, `rounds` times each, below `directory`. The ratios of the medians
/// follow all results, and are alone in the table.
///
/// # Errors
/// If one of the runs fails: the comparison would be of different rounds.
pub(crate) fn compare(
    directory: &Path,
    layer: &[String],
    variants: &[Variant; 2],
    rounds: u32,
) -> Result<ExitCode, BoxError> {
    std::fs::create_dir_all(directory)
        .map_err(|error| format!("cannot make the directory {}: {error}", directory.display()))?;
    let directory = tempfile::tempdir_in(directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut shown = Shown::new(2 * rounds as usize, None);
    shown.result(machine::describe(directory.path()))?;
    shown.lines.clear();
    let mut interruption = pin!(tokio::signal::ctrl_c());
    let name = layer.first().map_or("", String::as_str);
    let mut results = Vec::new();
    for _ in 0..rounds {
        for (side, variant) in Side::BOTH.into_iter().zip(variants) {
            shown.variant = Some(variant.name.clone());
            let (program, arguments) = (&variant.program, variant.complete(layer));
            let outcome =
                run_layer(program, name, &arguments, directory.path(), &mut shown, interruption.as_mut());
            let end = runtime.block_on(outcome).map_err(|error| format!("{}: {error}", program.display()))?;
            results.extend(shown.lines.drain(..).map(|line| (side, line)));
            if matches!(end, End::Interrupted) {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            shown.layers.inc(1);
        }
    }
    shown.variant = None;
    for line in compare::ratios(&results, variants.each_ref().map(|variant| variant.name.as_str())) {
        shown.result(line)?;
    }
    shown.finish();
    Ok(ExitCode::SUCCESS)
}

enum End {
    Finished,
    Interrupted,
}

async fn run_layer(
    program: &Path,
    name: &str,
    layer: &[String],
    directory: &Path,
    shown: &mut Shown,
    mut interruption: Pin<&mut impl Future<Output = std::io::Result<()>>>,
) -> Result<End, BoxError> {
    shown.layers.set_message(name.to_owned());
    // A separate process group: Ctrl+C reaches only this process, which then ends the layer in order.
    let mut child = Command::new(program)
        .args(layer)
        .arg("--worker")
        .arg("--directory")
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("the layer was started without its pipes".into());
    };
    let (mut output, mut errors) = (BufReader::new(output).lines(), BufReader::new(errors).lines());
    let mut last_words = None;
    loop {
        tokio::select! {
            told = timeout(SILENCE_MAX, output.next_line()) => match told {
                Ok(Ok(Some(told))) => shown.report(serde_json::from_str(&told)?)?,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    end(child).await?;
                    return Err(format!("no report for {} s: the layer was ended", SILENCE_MAX.as_secs()).into());
                }
            },
            Ok(Some(words)) = errors.next_line() => {
                shown.bars.suspend(|| eprintln!("{name}: {words}"));
                last_words = Some(words);
            }
            interrupted = &mut interruption => {
                interrupted?;
                end(child).await?;
                return Ok(End::Interrupted);
            }
        }
    }
    while let Some(words) = errors.next_line().await? {
        last_words = Some(words);
    }
    let status = child.wait().await?;
    if status.success() {
        return Ok(End::Finished);
    }
    let words = last_words.unwrap_or_else(|| format!("it ended with {status}"));
    Err(words.trim_start_matches("error: ").to_owned().into())
}

/// Ends a layer and all its processes: it ends when its standard input is closed.
async fn end(mut child: Child) -> Result<(), BoxError> {
    drop(child.stdin.take());
    if timeout(GRACE, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

/// In the process of a layer: its parent is gone, or stops it. The processes of its nodes end with it,
/// because it holds their standard input.
pub(crate) fn end_with_standard_input() {
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        while matches!(input.read(&mut [0; 64]), Ok(1..)) {}
        std::process::exit(i32::from(INTERRUPTED));
    });
}

/// The output on standard error, beside the lines on standard output.
struct Shown {
    bars: indicatif::MultiProgress,
    layers: ProgressBar,
    steps: ProgressBar,
    lines: Vec<Line>,
    file: Option<File>,
    /// What measures, if two variants are compared.
    variant: Option<String>,
}

impl Shown {
    fn new(layers: usize, file: Option<File>) -> Shown {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bars = indicatif::MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template("{bar:30} {pos:>3}/{len:<3} {elapsed:>4} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |length| bars.add(ProgressBar::new(length).with_style(style.clone()));
        let (layers, steps) = (bar(layers as u64), bar(0));
        Shown { bars, layers, steps, lines: Vec::new(), file, variant: None }
    }

    fn report(&mut self, report: Report) -> Result<(), BoxError> {
        match report {
            Report::Steps(count) => {
                self.steps.reset();
                self.steps.set_length(count);
            }
            Report::Step(what) => {
                if !self.steps.message().is_empty() {
                    self.steps.inc(1);
                }
                self.steps.set_message(what);
            }
            Report::Result(line) => self.result(*line)?,
        }
        Ok(())
    }

    fn result(&mut self, line: Line) -> Result<(), BoxError> {
        let line = match &self.variant {
            Some(variant) => line.with("variant", variant.as_str()),
            None => line,
        };
        let text = serde_json::to_string(&line)?;
        self.bars.suspend(|| writeln!(std::io::stdout(), "{text}"))?;
        if let Some(file) = &mut self.file {
            writeln!(file, "{text}")?;
        }
        self.lines.push(line);
        Ok(())
    }

    /// Whether all verdicts are passes.
    fn finish(self) -> bool {
        self.steps.finish_and_clear();
        self.layers.finish_and_clear();
        eprintln!("{}", table::of(&self.lines));
        let (passed, failed) = verdicts(&self.lines);
        if passed + failed > 0 {
            // Standard output has results only.
            eprintln!("{passed} passed, {failed} failed");
        }
        failed == 0
    }
}

/// The number of lines that have passed, and the number of those that have failed or have an error.
fn verdicts(lines: &[Line]) -> (usize, usize) {
    let with = |name: &'static str| move |line: &Line| line.more.get(name).cloned();
    let judged = lines.iter().filter_map(with("passed")).filter_map(|passed| passed.as_bool());
    let (passed, failed): (Vec<bool>, Vec<bool>) = judged.partition(|passed| *passed);
    (passed.len(), failed.len() + lines.iter().filter_map(with("error")).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_as_failed_and_a_line_without_verdict_is_not_counted() {
        let line = || Line::of("soak");
        let lines = [
            line(),
            line().with("passed", true),
            line().with("passed", false),
            line().with("error", "the disk is full"),
        ];
        assert_eq!(verdicts(&lines), (1, 2));
    }
}
